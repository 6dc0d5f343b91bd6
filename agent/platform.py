"""What the bench stands on: a clock, sensors and a runtime, real or emulated."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.charging import Charger
from agent.runtime import Runtime, Stop
from agent.sensors.channel import Channel, Spec
from agent.sensors.system import ProcessMemory
from protos import agent_pb2 as pb


@dataclass
class Column:
    """Samples of one channel: times (ns on the device clock) and values, of equal length."""

    channel: int
    t_ns: list[int]
    values: list[float]


Sink = Callable[[Sequence[Column]], None]
Report = Callable[[pb.SamplerReport], None]


class Platform(Protocol):
    """One device under the agent."""

    charger: Charger

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

    def clock_ns(self) -> int:
        """The same clock as a host may relate it to its own: no coarser than the clock itself."""
        ...

    def idle(self, ns: int, stop: Stop) -> None:
        """Let the device rest for this long, or until `stop()`."""
        ...

    def temperatures(self) -> list[tuple[Spec, float]]:
        """Every temperature channel that has a value now, in C."""
        ...

    def throttling(self) -> bool:
        """Whether the NPU's clock is held down now; false where nothing tells."""
        ...

    def model_memory(self) -> ProcessMemory | None:
        """Memory now of the process that runs the model; from any thread. None where it cannot be
        read, or nothing is loaded."""
        ...

    def runtime(self) -> Runtime:
        """The runtime of this device; the caller closes it."""
        ...

    def sampling(self, rate_hz: float, sink: Sink, report: Report) -> AbstractContextManager[None]:
        """Read the channels at up to `rate_hz` while the context is open.

        Every channel is read at the beginning and once more at the end, so that what happens in
        between lies inside its samples. `sink` gets columns, `report` one report at the end.
        """
        ...

    def kill_children(self) -> None:
        """End child processes at once; from any thread, when the agent shuts down."""
        ...


class Watch:
    """Reads temperatures and throttling beside a sampler, with descriptors of its own."""

    def __init__(self, channels: Sequence[Channel]) -> None:
        own = [copy.copy(channel) for channel in channels]
        self._zones = [ch for ch in own if ch.spec.kind == pb.TEMPERATURE]
        self._cooling = [ch for ch in own if ch.spec.kind == pb.STATE and ch.spec.site == "npu"]
        for channel in (*self._zones, *self._cooling):
            channel.open()

    def temperatures(self) -> list[tuple[Spec, float]]:
        """Every temperature that has a value now, in C."""
        values = ((channel.spec, channel.read()) for channel in self._zones)
        return [(spec, value) for spec, value in values if value is not None]

    def throttling(self) -> bool:
        return any(channel.read() for channel in self._cooling)


def log_path(root: Path, name: str) -> Path:
    """Where a part of the agent writes its log; `Fetch` reaches it."""
    return root / "logs" / f"{name}.log"
