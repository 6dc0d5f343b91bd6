"""A ZIP file with exactly one valid spelling: stored members, fixed timestamps, no extras.

Any unzip reads it. The reader here demands more than any unzip: every byte outside the members'
data must be the one the writer would have written, so damage to a header or to the central
directory is found without trusting either. Nothing is ever decompressed, so nothing can expand.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from quant.errors import UserError

CHUNK = 1 << 20
MAX_BYTES = 0xFFFF_FFFE  # beyond it a ZIP needs the 64-bit extension, which this format lacks
MAX_MEMBERS = 10_000

_VERSION = 20
_DOS_DATE = 0x0021  # 1980-01-01, the format's zero
_EXTERNAL = 0o100644 << 16
_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_NAME_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}")


@dataclass(frozen=True)
class Member:
    """One file inside: `offset` is where its data begins."""

    name: str
    offset: int
    size: int
    crc: int
    sha256: str


def safe_name(name: str) -> bool:
    """Whether `name` is a relative path of plain parts: no `..`, no absolute path, no hidden."""
    parts = name.split("/")
    return len(parts) <= 8 and all(_NAME_PART.fullmatch(p) for p in parts)


def digest(source: Path | bytes) -> tuple[int, int, str]:
    """(size, crc32, sha256 hex) of a file or of bytes."""
    size, crc, sha = 0, 0, hashlib.sha256()
    for chunk in _chunks(source):
        size += len(chunk)
        crc = zlib.crc32(chunk, crc)
        sha.update(chunk)
    return size, crc, sha.hexdigest()


def _chunks(source: Path | bytes) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def _local_header(name: bytes, size: int, crc: int) -> bytes:
    fields = (b"PK\x03\x04", _VERSION, 0, 0, 0, _DOS_DATE, crc, size, size, len(name), 0)
    return _LOCAL.pack(*fields) + name


def _central_header(name: bytes, size: int, crc: int, offset: int) -> bytes:
    made_by = (3 << 8) | _VERSION  # Unix
    return (
        _CENTRAL.pack(
            *(b"PK\x01\x02", made_by, _VERSION, 0, 0, 0, _DOS_DATE, crc, size, size),
            *(len(name), 0, 0, 0, 0, _EXTERNAL, offset),
        )
        + name
    )


def _end(count: int, size: int, offset: int) -> bytes:
    return _END.pack(b"PK\x05\x06", 0, 0, count, count, size, offset, 0)


def write_archive(path: Path, members: Sequence[tuple[str, Path | bytes]]) -> None:
    """Write `members` in the given order to `path`, which appears whole or not at all.

    Raises UserError where the result would exceed 4 GB, ValueError for a bad or double name.
    """
    names = [name for name, _ in members]
    if len(set(names)) != len(names) or not all(safe_name(n) for n in names):
        raise ValueError(f"member names must be plain and unique: {names}")
    if len(names) > MAX_MEMBERS:
        raise ValueError(f"more than {MAX_MEMBERS} members")
    central = b""
    with replacing(path) as out:
        for name, source in members:
            raw = name.encode("ascii")
            size, crc, _ = digest(source)
            offset = out.tell()
            central += _central_header(raw, size, crc, min(offset, MAX_BYTES))
            out.write(_local_header(raw, min(size, MAX_BYTES), crc))
            for chunk in _chunks(source):
                out.write(chunk)
            if out.tell() + len(central) + _END.size > MAX_BYTES:
                raise UserError(f"{path.name} would be larger than 4 GB.", "Split the model.")
        start = out.tell()
        out.write(central + _end(len(names), len(central), start))


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` only when the block ends without error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temp = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as out:
            yield out
        umask = os.umask(0)
        os.umask(umask)
        Path(temp).chmod(0o666 & ~umask)
        Path(temp).replace(path)
    except BaseException:
        Path(temp).unlink(missing_ok=True)
        raise


def read_archive(path: Path) -> tuple[dict[str, Member], str]:
    """The members of the archive at `path`, in order, and the sha256 of the whole file.

    Raises UserError for anything that write_archive would not have written: damage, truncation,
    appended bytes, compression, unsafe or double names.
    """
    try:
        with path.open("rb") as file:
            return _read(path, file)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error


def _read(path: Path, file: BinaryIO) -> tuple[dict[str, Member], str]:
    total = file.seek(0, os.SEEK_END)
    file.seek(0)
    whole = hashlib.sha256()

    def take(size: int) -> bytes:
        data = file.read(size)
        if len(data) != size:
            raise _damaged(path, "it is truncated")
        whole.update(data)
        return data

    members: dict[str, Member] = {}
    central = b""
    while True:
        offset = file.tell()
        signature = take(4)
        if signature != b"PK\x03\x04":
            if not offset:
                raise _damaged(path, "it does not begin as an artifact does")
            break
        head = signature + take(_LOCAL.size - 4)
        *_, crc, _, size, name_size, _ = _LOCAL.unpack(head)
        raw = take(name_size)
        if head + raw != _local_header(raw, size, crc):
            raise _damaged(path, f"the header at byte {offset} is not an artifact's")
        name = raw.decode("ascii", errors="replace")
        if not safe_name(name):
            raise _damaged(path, f"it holds the unsafe name {name!r}")
        if name in members:
            raise _damaged(path, f"it holds {name} twice")
        if len(members) >= MAX_MEMBERS:
            raise _damaged(path, f"it has more than {MAX_MEMBERS} members")
        members[name] = Member(
            name, file.tell(), size, crc, _take_data(path, name, take, size, crc)
        )
        central += _central_header(raw, size, crc, offset)
    tail = central + _end(len(members), len(central), offset)
    if signature + take(len(tail) - 4) != tail:
        raise _damaged(path, "its directory does not match its members")
    if file.tell() != total:
        raise _damaged(path, "something follows its end")
    return members, whole.hexdigest()


def _take_data(path: Path, name: str, take: Callable[[int], bytes], size: int, crc: int) -> str:
    found, sha, left = 0, hashlib.sha256(), size
    while left:
        chunk = take(min(CHUNK, left))
        found = zlib.crc32(chunk, found)
        sha.update(chunk)
        left -= len(chunk)
    if found != crc:
        raise _damaged(path, f"{name} is damaged")
    return sha.hexdigest()


def copy_member(archive: Path, member: Member, out: IO[bytes]) -> None:
    """Write a member's data to `out`. Raises UserError where it changed since it was read."""
    sha, left = hashlib.sha256(), member.size
    with archive.open("rb") as file:
        file.seek(member.offset)
        while left:
            chunk = file.read(min(CHUNK, left))
            if not chunk:
                break
            sha.update(chunk)
            out.write(chunk)
            left -= len(chunk)
    if left or sha.hexdigest() != member.sha256:
        raise _damaged(archive, f"{member.name} changed while it was read")


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path} is not a valid artifact: {why}.", "Build it again, or copy it again.")
