"""The `sync:` service: push, pull, stat and list, versions 1 and 2.

Source: packages/modules/adb/SYNC.TXT and file_sync_protocol.h of the Android Open Source Project.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from agent.emulator.adb.files import Resolve
from agent.emulator.adb.protocol import Stream

REQUEST = struct.Struct("<4sI")
STAT_V1 = struct.Struct("<4s3I")
STAT_V2 = struct.Struct("<IQQIIIIQqqq")  # error dev ino mode nlink uid gid size a/m/ctime
DENT_V1 = struct.Struct("<4s4I")
SETUP_V2 = struct.Struct("<4s2I")  # id, mode, flags
MAX_PATH = 1024
MAX_DATA = 64 * 1024
READ_BLOCK = 64 * 1024
COMPRESSION = 0x7  # brotli, lz4, zstd: none is offered in the banner


@dataclass
class PushLimit:
    """The fault `refuse-push`: the next file fails after this many bytes of it."""

    byte: int | None = None


class SyncFailed(Exception):
    """The request cannot be served; the host is told the message."""


class SyncService:
    """One `sync:` stream: requests until QUIT or until the host hangs up."""

    def __init__(self, stream: Stream, resolve: Resolve, limit: PushLimit) -> None:
        self._stream = stream
        self._resolve = resolve
        self._limit = limit

    async def run(self) -> None:
        while True:
            request, size = REQUEST.unpack(await self._stream.read_exactly(REQUEST.size))
            if request == b"QUIT":
                return
            if size > MAX_PATH:
                await self._fail("path too long")
                return
            name = (await self._stream.read_exactly(size)).decode(errors="surrogateescape")
            try:
                if "\0" in name:
                    raise SyncFailed("path holds a NUL")
                if not await self._serve(request, name):
                    return
            except SyncFailed as error:
                await self._fail(str(error))
            except OSError as error:
                await self._fail(error.strerror or str(error))

    async def _serve(self, request: bytes, name: str) -> bool:
        match request:
            case b"STAT":
                await self._stream.write(self._stat_v1(name))
            case b"STA2" | b"LST2":
                await self._stream.write(request + self._stat_v2(name, request == b"STA2"))
            case b"LIST" | b"LIS2":
                await self._list(name, v2=request == b"LIS2")
            case b"SEND":
                path, _, mode = name.rpartition(",")
                if not mode.isdecimal():
                    raise SyncFailed("missing file mode")
                await self._receive(path, int(mode))
            case b"SND2":
                _, mode_v2, flags = SETUP_V2.unpack(await self._stream.read_exactly(SETUP_V2.size))
                if flags & COMPRESSION:
                    raise SyncFailed("compression is not offered")
                await self._receive(name, mode_v2)
            case b"RECV":
                await self._send(name)
            case b"RCV2":
                await self._stream.read_exactly(REQUEST.size)
                await self._send(name)
            case _:
                await self._fail(f"unknown request {request!r}")
                return False
        return True

    async def _fail(self, message: str) -> None:
        text = message.encode(errors="replace")
        await self._stream.write(REQUEST.pack(b"FAIL", len(text)) + text)

    def _stat_v1(self, name: str) -> bytes:
        try:
            found = self._resolve(name, False).lstat()
        except OSError:
            return STAT_V1.pack(b"STAT", 0, 0, 0)
        size = found.st_size & 0xFFFFFFFF
        return STAT_V1.pack(b"STAT", found.st_mode, size, int(found.st_mtime) & 0xFFFFFFFF)

    def _stat_v2(self, name: str, follow: bool) -> bytes:
        try:
            return _pack_stat(self._resolve(name, follow).stat(follow_symlinks=follow))
        except OSError as error:
            return struct.pack("<I", error.errno or errno.EIO) + bytes(STAT_V2.size - 4)

    async def _list(self, name: str, v2: bool) -> None:
        reply = bytearray()
        try:
            names = sorted(child.name for child in self._resolve(name, True).iterdir())
        except OSError:
            names = []
        for entry in names:
            try:
                found = self._resolve(f"{name}/{entry}", False).lstat()
            except OSError:
                continue  # gone since it was listed
            text = os.fsencode(entry)
            if v2:
                reply += b"DNT2" + _pack_stat(found) + struct.pack("<I", len(text)) + text
            else:
                size, when = found.st_size & 0xFFFFFFFF, int(found.st_mtime) & 0xFFFFFFFF
                reply += DENT_V1.pack(b"DENT", found.st_mode, size, when, len(text)) + text
        reply += b"DONE" + bytes(72 if v2 else 16)
        await self._stream.write(reply)

    async def _send(self, name: str) -> None:
        with self._resolve(name, True).open("rb") as file:
            reply = bytearray()
            while data := file.read(READ_BLOCK):
                reply += REQUEST.pack(b"DATA", len(data)) + data
                if len(reply) >= 8 * READ_BLOCK:
                    await self._stream.write(reply)
                    reply = bytearray()
            await self._stream.write(reply + REQUEST.pack(b"DONE", 0))

    async def _receive(self, name: str, mode: int) -> None:
        """One pushed file or symlink. A failed one leaves nothing behind under its name."""
        limit, self._limit.byte = self._limit.byte, None
        target: _Target | None = None
        try:
            target = _Target(self._resolve(name, False), mode, limit)
            while True:
                part, size = REQUEST.unpack(await self._stream.read_exactly(REQUEST.size))
                if part == b"DONE":
                    target.finish(modified=size)
                    break
                if part != b"DATA" or size > MAX_DATA:
                    raise SyncFailed("bad data")
                target.write(await self._stream.read_exactly(size))
        except BaseException as error:
            if target:
                target.discard()
            if not isinstance(error, OSError | SyncFailed) or isinstance(error, ConnectionError):
                raise
            # The host reads this before or after it has sent the rest, which must go unanswered.
            await self._fail(getattr(error, "strerror", None) or str(error))
            await self._drain()
            return
        await self._stream.write(REQUEST.pack(b"OKAY", 0))

    async def _drain(self) -> None:
        while True:
            part, size = REQUEST.unpack(await self._stream.read_exactly(REQUEST.size))
            if part != b"DATA" or size > MAX_DATA:
                return
            await self._stream.read_exactly(size)


class _Target:
    """A file or symlink in the making."""

    def __init__(self, path: Path, mode: int, limit: int | None) -> None:
        self._path = path
        self._mode = mode
        self._limit = limit
        self._written = 0
        self._file: BinaryIO | None = None
        self._link = bytearray()
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or path.is_file():
            path.unlink()
        if not stat.S_ISLNK(mode):
            self._file = path.open("xb")

    def write(self, data: bytes) -> None:
        if self._limit is not None and self._written + len(data) > self._limit:
            raise SyncFailed(f"write failed: I/O error at byte {self._limit}")
        self._written += len(data)
        if self._file:
            self._file.write(data)
        elif self._written > MAX_PATH:
            raise SyncFailed("symlink target too long")
        else:
            self._link += data

    def finish(self, modified: int) -> None:
        if self._file:
            self._file.close()
            self._path.chmod(self._mode & 0o777)
            os.utime(self._path, (modified, modified))
        else:
            self._path.symlink_to(os.fsdecode(bytes(self._link).rstrip(b"\0")))

    def discard(self) -> None:
        if self._file:
            self._file.close()
            self._path.unlink(missing_ok=True)


def _pack_stat(found: os.stat_result) -> bytes:
    return STAT_V2.pack(
        0,
        found.st_dev,
        found.st_ino,
        found.st_mode,
        found.st_nlink,
        found.st_uid,
        found.st_gid,
        found.st_size,
        int(found.st_atime),
        int(found.st_mtime),
        int(found.st_ctime),
    )
