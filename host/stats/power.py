"""Which channels give the power, how fast they really update, and the energy in a window.

Energy is the trapezoid over device time, clipped to the window that the agent marked on the same
clock. What a sensor does between two updates is unknown: `end_uncertainty_mj` says what that
can cost at one end of a window.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from host.store.rows import Block, Channel, Floats, Ints, Samples

# Best first. Only the board's rail is the power of the whole device; a rail of one part (also the
# SoC's mx rail) is the last resort, and says so.
METER = "meter"  # outside the device, at its supply
_PARTS = ("soc", "npu", "cpu", "gpu", "ddr")
_NS = 1e-9

_TO_MW = {"W": 1e3, "mW": 1.0, "uW": 1e-3}
_TO_MA = {"A": 1e3, "mA": 1.0, "uA": 1e-3}
_TO_MV = {"V": 1e3, "mV": 1.0, "uV": 1e-3}
_TO_MJ = {"J": 1e3, "mJ": 1.0, "uJ": 1e-3}


@dataclass(frozen=True)
class PowerTrace:
    """Power over device time. `update_hz`: measured rate at which the reading changes."""

    method: str
    battery: bool  # read at the battery, so only true while it discharges
    t_ns: Ints
    mw: Floats
    updates_ns: Ints  # times at which the reading changed
    update_hz: float
    partial: bool = False  # a part of the SoC only

    @property
    def update_s(self) -> float:
        return 1 / self.update_hz if self.update_hz > 0 else float("inf")

    def updates_in(self, start_ns: int, end_ns: int) -> int:
        """Distinct readings within a window."""
        first, last = np.searchsorted(self.updates_ns, [start_ns, end_ns])
        return int(last - first)

    def energy_mj(self, start_ns: int, end_ns: int) -> float | None:
        """Trapezoid over [start, end], power at the ends interpolated; None without cover."""
        if len(self.t_ns) < 2 or start_ns < self.t_ns[0] or end_ns > self.t_ns[-1]:
            return None
        inside = slice(*np.searchsorted(self.t_ns, [start_ns, end_ns], side="right"))
        edges = np.interp([start_ns, end_ns], self.t_ns, self.mw)
        # Relative to the start: absolute nanoseconds do not fit a float's 53 bits.
        t = np.concatenate([[start_ns], self.t_ns[inside], [end_ns]]) - start_ns
        mw = np.concatenate([edges[:1], self.mw[inside], edges[1:]])
        return float(np.trapezoid(mw, t * _NS))

    def mean_mw(self, start_ns: int, end_ns: int) -> float | None:
        """Time-weighted mean power of a window."""
        energy = self.energy_mj(start_ns, end_ns)
        return (
            None if energy is None or end_ns <= start_ns else energy / ((end_ns - start_ns) * _NS)
        )

    def end_uncertainty_mj(self, step_mw: float) -> float:
        """Standard uncertainty of a window's energy at one end, from the sensor's rate D.

        Power steps by `step_mw` somewhere within one update interval, evenly likely:
        D |step| / sqrt(12).
        """
        return self.update_s * abs(step_mw) / 12**0.5


def choose_power(
    channels: Sequence[Channel], samples: Mapping[int, Samples], blocks: Sequence[Block] = ()
) -> PowerTrace | None:
    """The best power trace the channels allow, or None: the first of power_traces that covers
    every block, else the first (a meter that was lost half way gives no figure of half a run)."""
    first = None
    for trace in power_traces(channels, samples):
        if all(trace.energy_mj(b.t_first_ns, b.t_last_ns) is not None for b in blocks):
            return trace
        first = first or trace
    return first


def power_traces(
    channels: Sequence[Channel], samples: Mapping[int, Samples]
) -> Iterator[PowerTrace]:
    """Every power trace the channels allow, the best first.

    Order: an external meter, the board's rail, an energy counter, battery power, battery current
    x voltage, and at last a rail of one part. Only channels with two samples count.
    """
    usable = [c for c in channels if c.channel in samples and len(samples[c.channel].t_ns) >= 2]

    def find(kind: str, sites: Sequence[str], units: Mapping[str, float]) -> Channel | None:
        for site in sites:
            for channel in usable:
                if (channel.kind, channel.site) == (kind, site) and channel.unit in units:
                    return channel
        return None

    for site in (METER, "board"):
        if total := find("power", (site,), _TO_MW):
            yield _from_power(total, samples[total.channel])
    if counter := find("energy", ("board", "soc"), _TO_MJ):
        yield _from_counter(counter, samples[counter.channel])
    if battery := find("power", ("battery",), _TO_MW):
        yield _from_power(battery, samples[battery.channel])
    current = find("current", ("battery",), _TO_MA)
    voltage = find("voltage", ("battery",), _TO_MV)
    if current and voltage:
        yield _from_battery(current, voltage, samples)
    if rail := find("power", _PARTS, _TO_MW):
        yield _from_power(rail, samples[rail.channel], partial=True)


def measured_updates(t_ns: Ints, value: Floats) -> tuple[Ints, float]:
    """(times of change, rate): the rate from the median interval between changes of value.

    A reading that repeats is taken for the same reading, so a quiet sensor seems slower than it
    is: the safe side.
    """
    changed = np.flatnonzero(np.diff(value)) + 1
    times = t_ns[np.concatenate([[0], changed])]
    if len(times) < 2:
        return times, 0.0
    return times, 1 / (float(np.median(np.diff(times))) * _NS)


def _from_power(channel: Channel, data: Samples, *, partial: bool = False) -> PowerTrace:
    updates, rate = measured_updates(data.t_ns, data.value)
    scope = f"{channel.site} rail only" if partial else f"{channel.site} rail"
    if channel.site == "battery":
        scope = "battery power"
    elif channel.site == METER:
        scope = "external meter"
    return PowerTrace(
        f"{scope}: {channel.name}" + (f" ({channel.method})" if channel.method else ""),
        channel.site == "battery",
        data.t_ns,
        np.abs(data.value) * _TO_MW[channel.unit],
        updates,
        rate,
        partial,
    )


def _from_counter(channel: Channel, data: Samples) -> PowerTrace:
    """Power from a counter: constant between two readings, placed at the middle of the two."""
    updates, rate = measured_updates(data.t_ns, data.value)
    keep = np.isin(data.t_ns, updates)
    t, mj = data.t_ns[keep], data.value[keep] * _TO_MJ[channel.unit]
    mw = np.diff(mj) / (np.diff(t) * _NS)
    return PowerTrace(
        f"{channel.site} energy counter: {channel.name}",
        False,
        t[:-1] + np.diff(t) // 2,
        np.maximum(mw, 0.0),  # a counter that wraps or restarts
        updates,
        rate,
    )


def _from_battery(current: Channel, voltage: Channel, samples: Mapping[int, Samples]) -> PowerTrace:
    amps, volts = samples[current.channel], samples[voltage.channel]
    mv = np.interp(amps.t_ns, volts.t_ns, volts.value * _TO_MV[voltage.unit])
    # The sign of a discharging battery differs between makers; the validity table checks the state.
    ma = np.abs(amps.value) * _TO_MA[current.unit]
    updates, rate = measured_updates(amps.t_ns, amps.value)
    method = f"battery current x voltage: {current.name} x {voltage.name}"
    return PowerTrace(method, True, amps.t_ns, ma * mv * 1e-3, updates, rate)
