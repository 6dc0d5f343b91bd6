"""Power: hwmon rails and the battery's fuel gauge.

hwmon `power1_input` is microwatts by the kernel's ABI. A fuel gauge gives current and voltage.
The ABI says microamperes and, since 2020, negative while discharging; phones exist with
milliamperes and with either sign, so unit and sign are detected once and said in the channel's
method. `power_now` is never used: it read 68 W on an SM8750 at rest.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from agent.sensors.channel import Channel, FileChannel, Parse, Scaled, Spec, read_int, read_text
from protos import agent_pb2 as pb

# A rail's label to the part that it feeds; the first match counts. "board" is the whole device,
# so only names that say nothing else may have it: Pixel's VSYS_PWR_MODEM feeds a modem.
_RAIL_SITES = tuple(
    (re.compile(pattern, re.IGNORECASE), site)
    for pattern, site in (
        (r"(vdd_?)?(vph(_pwr)?|vin|vin_sys|vsys|vbat|system|total)$", "board"),
        (r".*(nsp|npu|turing|cdsp)", "npu"),
        (r".*(cpu|apc|apss)", "cpu"),
        (r".*(gpu|gfx|g3d)", "gpu"),
        (r".*(ddr|lpddr|dram)", "ddr"),
        (r"(vdd_?)?(soc|mx|cx)(_|$)", "soc"),
    )
)
_STATUS = {"Discharging": 0.0, "Charging": 1.0, "Full": 2.0, "Not charging": 3.0}
STATUS_CODING = "0 discharging, 1 charging, 2 full, 3 not charging, 4 unknown"
RAIL_HZ = 1000.0
# Every read of a fuel gauge is a call to its firmware: polling faster warms what is measured.
GAUGE_HZ = 4.0
COUNTER_HZ = 50.0
_ODPM = re.compile(rb"^CH\d+\(T=\d+\)\[([^\]]+)\],\s*(\d+)", re.MULTILINE)
# |current| below this is milliamperes: 10 mA is less than any awake phone draws.
_MILLIAMPERE_BELOW = 10_000
# How often, and how far apart, a gauge is asked that has no value at the moment.
_TRIES, _BUSY_S = 5, 0.1


@dataclass(frozen=True)
class OdpmRail:
    """A parser for one rail of Pixel's energy_value, in mJ."""

    name: bytes

    def __call__(self, data: bytes) -> float | None:
        for name, value in _ODPM.findall(data):
            if name == self.name:
                return int(value) * 1e-3
        return None


def parse_status(data: bytes) -> float | None:
    text = data.strip().decode(errors="replace")
    return _STATUS.get(text, 4.0) if text else None


def rails(root: Path) -> list[Channel]:
    """One channel per readable hwmon power1_input, in mW."""
    found: list[Channel] = []
    for node in sorted((root / "sys/class/hwmon").glob("hwmon*/power*_input")):
        if read_int(node) is None:
            continue
        stem = node.name.removesuffix("_input")
        label = read_text(node.with_name(f"{stem}_label")) or read_text(node.with_name("name"))
        name = label or f"{node.parent.name}_{stem}"
        spec = Spec(
            name=name,
            site=rail_site(name),
            kind=pb.POWER,
            unit="mW",
            method=f"hwmon {node.name}, uW",
            poll_hz=RAIL_HZ,
            source=_shown(node, root),
        )
        found.append(FileChannel(spec, node, Scaled(1e-3)))
    return found


def energy_counters(root: Path) -> list[Channel]:
    """IIO energy counters, cumulative, in mJ.

    Two shapes: one file per rail with microjoules, and Pixel's `energy_value`, which lists
    `CH0(T=1234)[S10M_VDD_TPU], 5678` (microwatt-seconds) for all rails of a meter.
    """
    found: list[Channel] = []
    for node in sorted((root / "sys/bus/iio/devices").glob("iio:device*/*energy*_value")):
        text = read_text(node)
        if not text:
            continue
        device = read_text(node.with_name("name")) or node.parent.name
        parsers: list[tuple[str, Parse]] = [
            (name.decode(), OdpmRail(name)) for name, _ in _ODPM.findall(text.encode())
        ]
        if not parsers:
            if read_int(node) is None:
                continue
            parsers = [(f"{device}_{node.name.removesuffix('_value')}", Scaled(1e-3))]
        for name, parse in parsers:
            spec = Spec(
                name, rail_site(name), pb.ENERGY, "mJ", f"iio {node.name}, uJ since boot",
                COUNTER_HZ, _shown(node, root),
            )  # fmt: skip
            found.append(FileChannel(spec, node, parse, size=4096))
    return found


def battery(root: Path) -> list[Channel]:
    """Current (mA, positive = out of the battery), voltage (mV), charge (percent) and status."""
    supplies = root / "sys/class/power_supply"
    for name in ("battery", "bms"):
        base = supplies / name
        current, voltage = _when_free(base / "current_now"), _when_free(base / "voltage_now")
        if current is None or voltage is None:
            continue
        status = read_text(base / "status") or ""
        parse, how = current_scale(current, status)
        channels: list[Channel] = [
            _gauge(root, base / "current_now", "battery_current", pb.CURRENT, "mA", how, parse),
            _gauge(
                root, base / "voltage_now", "battery_voltage", pb.VOLTAGE, "mV", "uV",
                Scaled(1e-3 if voltage > 100_000 else 1.0),
            ),
        ]  # fmt: skip
        if read_int(base / "capacity") is not None:
            channels.append(
                _gauge(
                    root, base / "capacity", "battery_charge", pb.CHARGE, "percent", "", Scaled(1.0)
                )
            )
        if status:
            spec = Spec(
                "battery_status", "battery", pb.STATE, STATUS_CODING, "power_supply status",
                GAUGE_HZ, _shown(base / "status", root),
            )  # fmt: skip
            channels.append(FileChannel(spec, base / "status", parse_status))
        return channels
    return []


@dataclass(frozen=True)
class EitherUnit:
    """A parser for a current whose unit did not show yet: each value is told apart by its size."""

    sign: float

    def __call__(self, data: bytes) -> float | None:
        try:
            value = int(data)
        except ValueError:
            return None
        return value * self.sign * (1e-3 if abs(value) >= _MILLIAMPERE_BELOW else 1.0)


def current_scale(current: int, status: str) -> tuple[Parse, str]:
    """How `current_now` becomes mA out of the battery, and the words that say it.

    On the charger a small value is no sign of milliamperes: a full battery takes none. The unit
    is then left open, because a wrong one would be a thousand times off once it discharges.
    """
    negative_out = (current < 0) != (status == "Charging")
    sign, words = (-1.0, "negative") if negative_out else (1.0, "positive")
    words += " = discharging"
    if abs(current) >= _MILLIAMPERE_BELOW:
        return Scaled(sign * 1e-3), f"uA, {words}"
    if status == "Discharging" and current:
        return Scaled(sign), f"mA, {words}"
    return EitherUnit(sign), f"mA or uA by size, {words}"


def _when_free(node: Path) -> int | None:
    """A gauge's value, asked again where its firmware is busy; None where it has no such node."""
    for _ in range(_TRIES):
        value = read_int(node)
        if value is not None or not os.access(node, os.R_OK):
            return value
        time.sleep(_BUSY_S)
    return None


def rail_site(rail: str) -> str:
    """The part of the device that a rail of this name feeds; "other" when the name says nothing."""
    return next((site for pattern, site in _RAIL_SITES if pattern.match(rail)), "other")


def _gauge(
    root: Path, path: Path, name: str, kind: pb.ChannelKind, unit: str, how: str, parse: Parse
) -> Channel:
    method = f"power_supply {path.name}" + (f", {how}" if how else "")
    spec = Spec(name, "battery", kind, unit, method, GAUGE_HZ, _shown(path, root))
    return FileChannel(spec, path, parse)


def _shown(path: Path, root: Path) -> str:
    return "/" + str(path.relative_to(root))
