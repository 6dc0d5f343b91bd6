"""What the bench stands on: a clock, sensors and a runtime, real or emulated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.runtime import Runtime, Stop
from protos import agent_pb2 as pb


@dataclass
class Column:
    """Samples of one channel: times (ns on the device clock) and values, of equal length."""

    channel: int
    t_ns: list[int]
    values: list[float]


Sink = Callable[[Sequence[Column]], None]


class Platform(Protocol):
    """One device under the agent."""

    def description(self) -> pb.Description:
        """Substrate, basis, identity, channels, runtimes and fingerprint; the server adds more."""
        ...

    @property
    def soc(self) -> str: ...

    @property
    def soc_model(self) -> int: ...

    def active(self) -> AbstractContextManager[None]:
        """Held while a segment runs."""
        ...

    def now_ns(self) -> int:
        """The device's monotonic clock; from any thread."""
        ...

    def idle(self, ns: int, stop: Stop) -> None:
        """Let the device rest for this long, or until `stop()`."""
        ...

    def runtime(self) -> Runtime:
        """The runtime of this device; the caller closes it."""
        ...

    def sampling(self, rate_hz: float, sink: Sink) -> AbstractContextManager[None]:
        """Read the channels at up to `rate_hz` while the context is open, into `sink`."""
        ...

    def kill_children(self) -> None:
        """End child processes at once; from any thread, when the agent shuts down."""
        ...


def log_path(root: Path, name: str) -> Path:
    """Where a part of the agent writes its log; `Fetch` reaches it."""
    return root / "logs" / f"{name}.log"
