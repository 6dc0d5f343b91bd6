"""A channel: one quantity that can be read over and over, and says what it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from protos import agent_pb2 as pb

Parse = Callable[[bytes], float | None]


@dataclass(frozen=True)
class Scaled:
    """A parser for one integer, multiplied by `factor`; None for text that is no integer."""

    factor: float

    def __call__(self, data: bytes) -> float | None:
        try:
            return int(data) * self.factor
        except ValueError:
            return None


@dataclass(frozen=True)
class Spec:
    """What the host stores about a channel. `poll_hz` is the highest useful rate of reading."""

    name: str
    site: str
    kind: pb.ChannelKind
    unit: str
    method: str
    poll_hz: float
    source: str

    def to_proto(self, channel_id: int) -> pb.Channel:
        return pb.Channel(
            id=channel_id,
            name=self.name,
            site=self.site,
            kind=self.kind,
            unit=self.unit,
            method=self.method,
            nominal_rate_hz=self.poll_hz,
            source=self.source,
        )


class Channel(Protocol):
    """One quantity that can be read over and over. Picklable until it is opened."""

    spec: Spec

    def open(self) -> None: ...
    def close(self) -> None: ...

    def read(self) -> float | None:
        """The value in the channel's unit, or None where there is none at the moment."""
        ...


class FileChannel:
    """A file under /sys or /proc whose descriptor stays open, and the parser of its text.

    `read` gives the value in the channel's unit, or None where the node has none at the moment
    (-EAGAIN from a busy fuel gauge, -ENODATA, a powered-down block).
    """

    def __init__(
        self,
        spec: Spec,
        path: Path,
        parse: Parse,
        *,
        size: int = 64,
        pread: Callable[[int, int, int], bytes] = os.pread,
    ) -> None:
        self.spec = spec
        self.path = path
        self._parse = parse
        self._size = size
        self._pread = pread
        self._fd = -1

    def open(self) -> None:
        if self._fd < 0:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(self) -> float | None:
        try:
            return self._parse(self._pread(self._fd, self._size, 0))
        except OSError:
            return None


def read_text(path: Path) -> str | None:
    """The node's text, or None when it is absent, denied or has no value now."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def read_int(path: Path) -> int | None:
    text = read_text(path)
    try:
        return int(text) if text else None
    except ValueError:
        return None
