"""Thermal zones, classified by the name of their type.

Not every zone is a temperature: Qualcomm's battery current limiter (BCL) shows milliamperes,
millivolts and percent as zones, and powered-down blocks read -273000. So only types that are
known by name become channels, and no maximum is ever taken over all zones.
"""

from __future__ import annotations

import re
from pathlib import Path

from agent.sensors.channel import Channel, FileChannel, Scaled, Spec, read_text
from protos import agent_pb2 as pb

ZONE_HZ = 10.0
COOLING_CODING = "0 unthrottled, higher: slower"
_BCL = re.compile(r"ibat|vbat|socd|-lvl\d|bcl", re.IGNORECASE)
_SITES = tuple(
    (re.compile(pattern), site)
    for pattern, site in (
        (r"nsp(ss|hvx|hmx)?[-_]?\d", "npu"),
        (r"cpu(ss)?[-_]?\d", "cpu"),
        (r"gpu(ss)?[-_]?\d?", "gpu"),
        (r"ddr", "ddr"),
        (r"skin|sys-therm-\d|quiet[-_]therm|shell", "skin"),
        (r"batt(ery)?([-_]therm)?$", "battery"),
        (r"pcb|board|xo-therm", "board"),
    )
)
_POWERED_DOWN_MC = -273_000
_LOWEST_C, _HIGHEST_C = -40.0, 200.0


def classify(zone_type: str) -> str | None:
    """The site of a zone by its type name, or None for what is no known temperature."""
    if _BCL.search(zone_type):
        return None
    return next((site for pattern, site in _SITES if pattern.match(zone_type)), None)


def parse_millidegrees(data: bytes) -> float | None:
    """Degrees C; None for a powered-down block (-273000) and for what no part survives."""
    try:
        value = int(data)
    except ValueError:
        return None
    return None if value <= _POWERED_DOWN_MC else _plausible(value / 1000)


def parse_battery(data: bytes) -> float | None:
    """Degrees C of the `battery` zone, which some phones give in C and others in mC."""
    try:
        value = int(data)
    except ValueError:
        return None
    if value <= _POWERED_DOWN_MC:
        return None
    return _plausible(value / 1000 if abs(value) >= 1000 else float(value))


def zones(root: Path) -> list[Channel]:
    """One channel per zone of a known type whose `temp` can be read."""
    found: list[Channel] = []
    for base in sorted((root / "sys/class/thermal").glob("thermal_zone*"), key=_number):
        zone_type = read_text(base / "type")
        site = classify(zone_type) if zone_type else None
        if zone_type is None or site is None or read_text(base / "temp") is None:
            continue
        spec = Spec(
            name=zone_type,
            site=site,
            kind=pb.TEMPERATURE,
            unit="C",
            method="thermal_zone temp",
            poll_hz=ZONE_HZ,
            source=f"/sys/class/thermal/{base.name}/temp",
        )
        parse = parse_battery if site == "battery" else parse_millidegrees
        found.append(FileChannel(spec, base / "temp", parse))
    return found


def cooling(root: Path) -> list[Channel]:
    """The NPU's cooling devices (`cdsp_sw`, `cdsp_hw`): how far its clock is held down.

    0 is not at all. There is no unprivileged clock of the NPU: this is what tells throttling.
    """
    found: list[Channel] = []
    for base in sorted((root / "sys/class/thermal").glob("cooling_device*"), key=_number):
        name = read_text(base / "type")
        if name is None or "cdsp" not in name or read_text(base / "cur_state") is None:
            continue
        spec = Spec(
            name=name,
            site="npu",
            kind=pb.STATE,
            unit=COOLING_CODING,
            method="cooling_device cur_state",
            poll_hz=ZONE_HZ,
            source=f"/sys/class/thermal/{base.name}/cur_state",
        )
        found.append(FileChannel(spec, base / "cur_state", Scaled(1.0)))
    return found


def _plausible(celsius: float) -> float | None:
    return celsius if _LOWEST_C <= celsius <= _HIGHEST_C else None


def _number(path: Path) -> int:
    return int("".join(c for c in path.name if c.isdigit()) or 0)
