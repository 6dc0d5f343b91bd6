"""Power: hwmon rails and the battery's fuel gauge.

hwmon `power1_input` is microwatts by the kernel's ABI. A fuel gauge gives current and voltage.
The ABI says microamperes and, since 2020, negative while discharging; phones exist with
milliamperes and with either sign, so unit and sign are detected once and said in the channel's
method. `power_now` is never used: it read 68 W on an SM8750 at rest.
"""

from __future__ import annotations

from pathlib import Path

from agent.sensors.channel import Channel, Parse, Spec, read_int, read_text
from protos import agent_pb2 as pb

# A rail's label to the part of the SoC it feeds. "board" is the whole device: the sum of the rest.
_RAIL_SITES = (
    ("vph", "board"), ("vin", "board"), ("vsys", "board"), ("nsp", "npu"), ("npu", "npu"),
    ("cpu", "cpu"), ("apc", "cpu"), ("gpu", "gpu"), ("gfx", "gpu"), ("ddr", "ddr"), ("mx", "soc"),
)  # fmt: skip
_STATUS = {"Discharging": 0.0, "Charging": 1.0, "Full": 2.0, "Not charging": 3.0}
STATUS_CODING = "0 discharging, 1 charging, 2 full, 3 not charging, 4 unknown"
RAIL_HZ = 1000.0
# Every read of a fuel gauge is a call to its firmware: polling faster warms what is measured.
GAUGE_HZ = 4.0
# |current| below this is milliamperes: 10 mA is less than any awake phone draws.
_MILLIAMPERE_BELOW = 10_000


def scaled(factor: float) -> Parse:
    """A parser for one integer, multiplied by `factor`; None for text that is no integer."""

    def parse(data: bytes) -> float | None:
        try:
            return int(data) * factor
        except ValueError:
            return None

    return parse


def parse_status(data: bytes) -> float | None:
    text = data.strip().decode(errors="replace")
    return _STATUS.get(text, 4.0) if text else None


def rails(root: Path) -> list[Channel]:
    """One channel per readable hwmon power1_input, in mW."""
    found = []
    for node in sorted((root / "sys/class/hwmon").glob("hwmon*/power*_input")):
        if read_int(node) is None:
            continue
        stem = node.name.removesuffix("_input")
        label = read_text(node.with_name(f"{stem}_label")) or read_text(node.with_name("name"))
        name = label or f"{node.parent.name}_{stem}"
        spec = Spec(
            name=name,
            site=next((site for key, site in _RAIL_SITES if key in name.lower()), "soc"),
            kind=pb.POWER,
            unit="mW",
            method=f"hwmon {node.name}, uW",
            poll_hz=RAIL_HZ,
            source=_shown(node, root),
        )
        found.append(Channel(spec, node, scaled(1e-3)))
    return found


def battery(root: Path) -> list[Channel]:
    """Current (mA, positive = out of the battery), voltage (mV), charge (percent) and status."""
    supplies = root / "sys/class/power_supply"
    for name in ("battery", "bms"):
        base = supplies / name
        current, voltage = read_int(base / "current_now"), read_int(base / "voltage_now")
        if current is None or voltage is None:
            continue
        status = read_text(base / "status") or ""
        scale, how = current_scale(current, status)
        channels = [
            _gauge(root, base / "current_now", "battery_current", pb.CURRENT, "mA", how, scale),
            _gauge(
                root, base / "voltage_now", "battery_voltage", pb.VOLTAGE, "mV", "uV",
                1e-3 if voltage > 100_000 else 1.0,
            ),
        ]  # fmt: skip
        if read_int(base / "capacity") is not None:
            channels.append(
                _gauge(root, base / "capacity", "battery_charge", pb.CHARGE, "percent", "", 1.0)
            )
        if status:
            spec = Spec(
                "battery_status", "battery", pb.STATE, STATUS_CODING, "power_supply status",
                GAUGE_HZ, _shown(base / "status", root),
            )  # fmt: skip
            channels.append(Channel(spec, base / "status", parse_status))
        return channels
    return []


def current_scale(current: int, status: str) -> tuple[float, str]:
    """The factor from `current_now` to mA out of the battery, and the words that say it."""
    unit, factor = ("uA", 1e-3) if abs(current) >= _MILLIAMPERE_BELOW else ("mA", 1.0)
    charging = status == "Charging"
    negative_out = (current < 0) != charging
    sign = "negative" if negative_out else "positive"
    return (-factor if negative_out else factor), f"{unit}, {sign} = discharging"


def _gauge(
    root: Path, path: Path, name: str, kind: pb.ChannelKind, unit: str, how: str, scale: float
) -> Channel:
    method = f"power_supply {path.name}" + (f", {how}" if how else "")
    spec = Spec(name, "battery", kind, unit, method, GAUGE_HZ, _shown(path, root))
    return Channel(spec, path, scaled(scale))


def _shown(path: Path, root: Path) -> str:
    return "/" + str(path.relative_to(root))
