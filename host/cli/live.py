"""What the device does right now: a line under the bench's table, from the samples as they come."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.text import Text

if TYPE_CHECKING:
    from host.store.rows import Channel, RawBatch

SPARK_POINTS = 24
# A point of the spark line is the mean of so much device time.
_POINT_NS = 250_000_000
# What follows the phase that the last mark closed.
_NEXT = {
    "cooldown": "idle baseline",
    "idle_before": "warm-up",
    "warmup": "timed",
    "timed": "idle baseline",
    "idle_after": "next",
    "cold_load": "first inference",
    "first_inference": "warm load",
    "warm_load": "goldens",
    "golden": "idle",
}


class LiveLine:
    """Power with its recent course, temperatures, throttling, phase. `update` takes every batch."""

    def __init__(self, channels: Sequence[Channel], *, emulated: bool) -> None:
        self._emulated = emulated
        self._power = _first(channels, "power", "meter", "board") or _first(
            channels, "current", "battery"
        )
        self._zones = [
            zone
            for site in ("npu", "skin")
            if (zone := _first(channels, "temperature", site)) is not None
        ]
        self._throttle = _first(channels, "state", "npu")
        self._last: dict[int, float] = {}
        self._course: deque[float] = deque(maxlen=SPARK_POINTS)
        self._from_ns = 0
        self._sum, self._count = 0.0, 0
        self._phase = ""
        self._run_id = ""

    def update(self, raw: RawBatch) -> None:
        self._run_id = raw.run_id
        for part in raw.samples:
            if len(part.value):
                self._last[part.channel] = float(part.value[-1])
                if self._power is not None and part.channel == self._power.channel:
                    self._add(part.t_ns, part.value)
        for mark in raw.marks:
            self._phase = _NEXT.get(mark.phase, mark.phase)
        if raw.block is not None:
            self._phase = "idle"

    def text(self, jobs: dict[str, str]) -> Text:
        """One line; empty before the first sample."""
        from host.trace import sparkline

        if not self._last:
            return Text("")
        line = Text(f"{jobs.get(self._run_id, self._run_id)}", style="bold")
        if self._phase:
            line.append(f"  {self._phase}", style="not bold")
        if self._power is not None and self._power.channel in self._last:
            now = self._course[-1] if self._course else self._last[self._power.channel]
            line.append(f"  {now:.0f} {self._power.unit} ", style="not bold")
            line.append(sparkline(np.array(self._course), SPARK_POINTS), style="green")
        for zone in self._zones:
            if zone.channel in self._last:
                line.append(f"  {zone.site} {self._last[zone.channel]:.1f} C", style="not bold")
        if self._throttle is not None and self._last.get(self._throttle.channel, 0.0) > 0:
            line.append("  THROTTLED", style="bold red")
        if self._emulated:
            line.append("  (emulated)", style="dim not bold")
        return line

    def _add(self, t_ns: np.ndarray, value: np.ndarray) -> None:
        for t, v in zip(t_ns.tolist(), value.tolist(), strict=True):
            if self._count and not 0 <= t - self._from_ns < _POINT_NS:
                self._course.append(self._sum / self._count)
                self._sum, self._count = 0.0, 0
            if not self._count:
                self._from_ns = t
            self._sum += v
            self._count += 1


def _first(channels: Sequence[Channel], kind: str, *sites: str) -> Channel | None:
    """The first channel of a kind at the first of these sites that has one."""
    for site in sites:
        for channel in channels:
            if (channel.kind, channel.site) == (kind, site):
                return channel
    return None
