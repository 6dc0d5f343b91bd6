"""The spool: an append-only file-backed queue of numbered records between a run and its host.

Records are numbered from 1 without gaps. They stay on disk until `ack`, so a host that goes away
for an hour, or an agent that is killed, loses nothing that was appended. The size is bounded:
`append` raises `SpoolFull` at the bound, and never overwrites or drops. A small reserve beyond
the bound takes the records that say so (`reserved=True`: ends of segments).

On disk: `<first seq, 20 digits>.spool`, each record a little-endian header (length u32, crc32 u32,
seq u64) and its bytes. A record cut short by a kill is recognised by length or crc and removed
when the spool is opened again. `acked` holds the last acknowledged number. `ballast` keeps room
on a full disk for the ends of segments.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import zlib
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

from agent.errors import SpoolFull

_HEADER = struct.Struct("<IIQ")
CAPACITY_BYTES = 256 << 20
RESERVE_BYTES = 8 << 20
FILE_BYTES = 4 << 20
BALLAST_BYTES = 256 << 10


@dataclass
class _File:
    path: Path
    first_seq: int
    offsets: list[int] = field(default_factory=list)  # start of each record's header
    size: int = 0


class Spool:
    """Thread-safe: one or more writers, any number of readers.

    `on_append` is called (from the writer's thread) after every append.
    """

    def __init__(
        self,
        directory: Path,
        *,
        capacity_bytes: int = CAPACITY_BYTES,
        reserve_bytes: int = RESERVE_BYTES,
        file_bytes: int = FILE_BYTES,
    ) -> None:
        self.capacity_bytes = capacity_bytes
        self._reserve = reserve_bytes
        self._file_bytes = file_bytes
        self._dir = directory
        self._lock = threading.Lock()
        self._files: list[_File] = []
        self._out: FileIO | None = None
        self._listeners: list[Callable[[], None]] = []
        directory.mkdir(parents=True, exist_ok=True)
        self._acked = self._read_acked()
        self._next = self._acked + 1
        self._recover()
        with contextlib.suppress(OSError):
            (self._dir / "ballast").write_bytes(bytes(BALLAST_BYTES))

    @property
    def next_seq(self) -> int:
        """The number that the next record will get."""
        with self._lock:
            return self._next

    @property
    def acked_seq(self) -> int:
        with self._lock:
            return self._acked

    @property
    def first_seq(self) -> int:
        """The oldest record that `read` still gives (== next_seq when there is none)."""
        with self._lock:
            return self._acked + 1

    @property
    def size_bytes(self) -> int:
        with self._lock:
            return self._size()

    def append(self, encode: Callable[[int], bytes], *, reserved: bool = False) -> int:
        """Append `encode(seq)` under the next number and return that number.

        Raises SpoolFull when the record would pass the bound; the number is then not used.
        """
        with self._lock:
            seq = self._next
            data = encode(seq)
            limit = self.capacity_bytes + (self._reserve if reserved else 0)
            if self._size() + _HEADER.size + len(data) > limit:
                raise self._full()
            record = _HEADER.pack(len(data), zlib.crc32(data), seq) + data
            try:
                file = self._write(seq, record)
            except OSError as error:
                if not (reserved and self._drop_ballast()):
                    raise SpoolFull(f"the device's disk takes no more: {error.strerror}") from error
                file = self._write(seq, record)
            file.offsets.append(file.size)
            file.size += len(record)
            self._next = seq + 1
            listeners = tuple(self._listeners)
        for listener in listeners:
            listener()
        return seq

    def require_room(self) -> None:
        """Raises SpoolFull when the bound is reached already: nothing new may begin."""
        with self._lock:
            if self._size() >= self.capacity_bytes:
                raise self._full()

    def read(self, seq: int) -> bytes | None:
        """The record, or None when it is not written yet. Numbers up to the last ack are gone."""
        with self._lock:
            if seq >= self._next or seq <= self._acked:
                return None
            file = self._files[bisect_right(self._files, seq, key=lambda f: f.first_seq) - 1]
            offset = file.offsets[seq - file.first_seq]
            with file.path.open("rb") as source:
                source.seek(offset)
                length, crc, stored = _HEADER.unpack(source.read(_HEADER.size))
                data = source.read(length)
        if stored != seq or zlib.crc32(data) != crc:
            raise OSError(f"spool record {seq} is damaged in {file.path.name}")
        return data

    def ack(self, seq: int) -> None:
        """Forget everything up to seq. Lower numbers than the last ack are harmless."""
        with self._lock:
            if seq >= self._next:
                raise ValueError(f"record {seq} does not exist yet (next is {self._next})")
            if seq <= self._acked:
                return
            self._acked = seq
            # The number first: a kill in between keeps acknowledged records, it never reuses one.
            tmp = self._dir / "acked.tmp"
            tmp.write_text(str(seq))
            tmp.replace(self._dir / "acked")
            while self._files and self._files[0].first_seq + len(self._files[0].offsets) <= seq + 1:
                done = self._files.pop(0)
                if not self._files and self._out is not None:
                    self._out.close()
                    self._out = None
                done.path.unlink()

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` after every append; returns the function that ends this."""
        with self._lock:
            self._listeners.append(listener)

        def cancel() -> None:
            with self._lock:
                self._listeners.remove(listener)

        return cancel

    def close(self) -> None:
        with self._lock:
            if self._out is not None:
                os.fsync(self._out.fileno())
                self._out.close()
                self._out = None

    def _full(self) -> SpoolFull:
        return SpoolFull(
            f"the spool is full ({self.capacity_bytes} bytes, records {self._acked + 1} to "
            f"{self._next - 1} not acknowledged by a host)"
        )

    def _size(self) -> int:
        return sum(f.size for f in self._files)

    def _write(self, seq: int, record: bytes) -> _File:
        """Write one record at the end, or leave everything as it was and raise OSError."""
        if self._out is None or self._files[-1].size >= self._file_bytes:
            if self._out is not None:
                self._out.close()
            file = _File(self._dir / f"{seq:020d}.spool", seq)
            self._out = file.path.open("wb", buffering=0)
            self._files.append(file)
        file = self._files[-1]
        try:
            written = 0
            while written < len(record):  # a full disk takes a part, and then nothing
                written += self._out.write(record[written:])
        except OSError:
            self._out.truncate(file.size)
            self._out.seek(file.size)
            raise
        return file

    def _drop_ballast(self) -> bool:
        """Give up the file that keeps room for the last records on a full disk."""
        try:
            (self._dir / "ballast").unlink()
        except FileNotFoundError:
            return False
        return True

    def _read_acked(self) -> int:
        try:
            return int((self._dir / "acked").read_text())
        except FileNotFoundError:
            return 0

    def _recover(self) -> None:
        for path in sorted(self._dir.glob("*.spool")):
            file = _File(path, int(path.stem))
            with path.open("r+b") as source:
                expected = file.first_seq
                while len(header := source.read(_HEADER.size)) == _HEADER.size:
                    length, crc, seq = _HEADER.unpack(header)
                    data = source.read(length)
                    if seq != expected or len(data) != length or zlib.crc32(data) != crc:
                        break
                    file.offsets.append(file.size)
                    file.size += _HEADER.size + length
                    expected += 1
                source.truncate(file.size)
            if expected <= self._acked + 1 or not file.offsets:
                path.unlink()
                continue
            self._files.append(file)
            self._next = expected
