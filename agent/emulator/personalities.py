"""How emulated devices differ in what they show: the quirks of boards and phones seen in labs."""

from __future__ import annotations

from dataclasses import dataclass, replace

_MS = 1_000_000
_S = 1_000_000_000


@dataclass(frozen=True)
class Personality:
    """What the device's files look like. Defaults: a development board with rails.

    rail_period_ns, gauge_period_ns: the monitors show the mean of the last whole period. 10 ms is
    an INA-type monitor that averages several conversions; with a shorter window than the time
    between two samples, bursts of single inferences would alias.
    busy_every: every n-th update of the fuel gauge finds its firmware busy, and the node has no
    value until the next. npu_clock: devfreq shows the NPU's clock. denied: nodes (patterns below
    the root) without permission to read.
    """

    name: str
    rails: bool = True
    rail_period_ns: int = 10 * _MS
    gauge_period_ns: int = _S
    microamperes: bool = True
    negative_out: bool = True
    battery_zone_milli: bool = True
    power_now: bool = False
    busy_every: int = 0
    plugged: bool = False
    npu_clock: bool = False
    ambient_c: float = 24.0
    denied: tuple[str, ...] = ()


_PHONE = Personality("phone", rails=False)

PERSONALITIES: dict[str, Personality] = {
    p.name: p
    for p in (
        Personality("board"),
        Personality("board-1khz", rail_period_ns=_MS),
        Personality("board-clocks", npu_clock=True),
        Personality("board-1hz", rail_period_ns=_S),
        Personality("board-0.1hz", rail_period_ns=10 * _S),
        _PHONE,
        replace(_PHONE, name="phone-ma", microamperes=False, battery_zone_milli=False),
        replace(_PHONE, name="phone-inverted", negative_out=False),
        replace(_PHONE, name="phone-slow-gauge", gauge_period_ns=10 * _S),
        replace(_PHONE, name="phone-bogus-power", power_now=True),
        replace(_PHONE, name="phone-busy-gauge", busy_every=3),
        replace(_PHONE, name="phone-denied", denied=("sys/class/thermal/thermal_zone*/temp",)),
        replace(_PHONE, name="phone-plugged", plugged=True),
        Personality("hot", ambient_c=35.0),
    )
}
