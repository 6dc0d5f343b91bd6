"""What a segment waits for and what ends it early: heat, and the steadiness of its warm-up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from agent.errors import DeviceFailure
from agent.platform import Platform
from agent.runtime import Block, Stop
from protos import agent_pb2 as pb

_LOOK_NS = 500_000_000
STEADY_SHARE = 0.01  # two warm-up pieces in a row that differ by less are steady


@dataclass(frozen=True)
class Zone:
    """A temperature that is named in a message."""

    name: str
    site: str
    celsius: float


def read_zones(platform: Platform, sites: Sequence[str]) -> list[Zone]:
    """Every zone of these sites that has a value now."""
    return [
        Zone(spec.name, spec.site, celsius)
        for spec, celsius in platform.temperatures()
        if spec.site in sites
    ]


def cool_down(
    platform: Platform, gate: pb.CooldownGate, start: Mapping[str, float], stop: Stop
) -> pb.CooldownResult:
    """Rest until every zone of the gate's sites is near its temperature at the session's start.

    Raises DeviceFailure where no such zone can be read: a gate that sees nothing is none.
    """
    began = platform.now_ns()
    while not stop():
        zones = [z for z in read_zones(platform, gate.sites) if z.name in start]
        if not zones:
            raise DeviceFailure(f"cooldown gate: no zone of {', '.join(gate.sites)} can be read")
        waited = platform.now_ns() - began
        over = max(zones, key=lambda z: z.celsius - start[z.name])
        excess = over.celsius - start[over.name]
        if excess <= gate.above_start_c:
            return pb.CooldownResult(waited_ns=waited)
        if waited >= gate.timeout_ns:
            return pb.CooldownResult(
                waited_ns=waited,
                timed_out=True,
                message=(
                    f"{over.name} is {over.celsius:.1f} C after {waited / 1e9:.0f} s, "
                    f"{excess:.1f} C above the session's start ({gate.above_start_c:g} C allowed)"
                ),
            )
        platform.idle(min(_LOOK_NS, gate.timeout_ns - waited), stop)
    return pb.CooldownResult(waited_ns=platform.now_ns() - began)


class CeilingWatch:
    """`reached()` is true from the first time that a zone was as hot as its site's ceiling."""

    def __init__(self, platform: Platform, ceilings: Sequence[pb.Ceiling]) -> None:
        self._platform = platform
        self._limits = {ceiling.site: ceiling.celsius for ceiling in ceilings}
        self.message = ""

    def reached(self) -> bool:
        if self.message or not self._limits:
            return bool(self.message)
        for zone in read_zones(self._platform, list(self._limits)):
            if zone.celsius >= self._limits[zone.site]:
                self.message = (
                    f"{zone.name} reached {zone.celsius:.1f} C, the ceiling of "
                    f"{zone.site} is {self._limits[zone.site]:g} C"
                )
        return bool(self.message)


def steady(before: Block, after: Block) -> bool:
    """Whether two pieces of a warm-up took the same time per inference."""
    first, second = _typical_us(before), _typical_us(after)
    return abs(second - first) <= STEADY_SHARE * first


def _typical_us(block: Block) -> float:
    if block.per_iteration_us is not None and len(block.per_iteration_us):
        return float(np.median(block.per_iteration_us))
    return (block.t_last_ns - block.t_first_ns) / 1e3 / max(block.inferences, 1)
