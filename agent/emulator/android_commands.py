"""The commands of Android that a Linux machine lacks: getprop, settings and dumpsys.

Each takes the device's root and its arguments, and gives (exit code, standard output). Needs the
standard library alone, because it also runs as a script inside the emulated device.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

PROPERTIES = Path("system/build.prop")
Command = Callable[[Path, list[str]], tuple[int, str]]

# What the device model's idle power stands for: screen off, radios off.
GLOBAL_SETTINGS = {"airplane_mode_on": "1", "wifi_on": "0", "bluetooth_on": "0"}
# android.os.BatteryManager
STATUS = {"Unknown": 1, "Charging": 2, "Discharging": 3, "Not charging": 4, "Full": 5}
# android.os.Temperature: type of the skin sensor, and THROTTLING_* by the limits of its zone
SKIN_TYPE = 3
SKIN_ZONES = re.compile(r"skin|sys-therm-2")
SKIN_LIMITS_C = (36.5, 40.0, 46.5, 50.0, 55.0, 95.0)  # light .. shutdown


def getprop(root: Path, arguments: list[str]) -> tuple[int, str]:
    """`getprop [NAME [DEFAULT]]`."""
    lines = (root / PROPERTIES).read_text().splitlines()
    props = dict(line.split("=", 1) for line in lines)
    if arguments:
        default = arguments[1] if len(arguments) > 1 else ""
        return 0, props.get(arguments[0], default) + "\n"
    return 0, "".join(f"[{key}]: [{value}]\n" for key, value in sorted(props.items()))


def dumpsys(root: Path, arguments: list[str]) -> tuple[int, str]:
    """`dumpsys battery`, `power` and `thermalservice`; any other service is not there."""
    services = {"battery": _battery, "power": _power, "thermalservice": _thermal}
    name = arguments[0] if arguments else ""
    if name not in services:
        return 1, f"Can't find service: {name}\n"
    return 0, services[name](root)


def settings(root: Path, arguments: list[str]) -> tuple[int, str]:
    """`settings get global NAME`; `null` for what is not set."""
    if arguments[:2] != ["get", "global"] or len(arguments) != 3:
        return 1, "usage: settings get global NAME\n"
    return 0, GLOBAL_SETTINGS.get(arguments[2], "null") + "\n"


def _power(root: Path) -> str:
    return "POWER MANAGER (dumpsys power)\n\nPower Manager State:\n  mWakefulness=Asleep\n"


def _battery(root: Path) -> str:
    base = root / "sys/class/power_supply/battery"
    status = _text(base / "status") or "Unknown"
    online = [_text(node) == "1" for node in sorted((base.parent).glob("*/online"))]
    micro_volts = _number(base / "voltage_now")
    lines = [
        "Current Battery Service state:",
        "  AC powered: false",
        f"  USB powered: {str(any(online) or status in ('Charging', 'Full')).lower()}",
        "  Wireless powered: false",
        f"  status: {STATUS.get(status, 1)}",
        "  health: 2",
        "  present: true",
        f"  level: {_number(base / 'capacity') or 0:.0f}",
        "  scale: 100",
        f"  voltage: {(micro_volts or 0) / 1000:.0f}",
        f"  temperature: {_battery_tenths(root):.0f}",
        "  technology: Li-ion",
    ]
    return "\n".join(lines) + "\n"


def _battery_tenths(root: Path) -> float:
    """Tenths of a degree, from the gauge or from the thermal zone (in C or mC) of that name."""
    gauge = _number(root / "sys/class/power_supply/battery/temp")
    if gauge is not None:
        return gauge
    for zone in (root / "sys/class/thermal").glob("thermal_zone*"):
        if _text(zone / "type") == "battery" and (value := _number(zone / "temp")) is not None:
            return value / 100 if value > 1000 else value * 10
    return 0.0


def _thermal(root: Path) -> str:
    sensors = []
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        name, milli = _text(zone / "type"), _number(zone / "temp")
        if name and milli is not None and SKIN_ZONES.search(name):
            celsius = milli / 1000
            sensors.append((name, celsius, sum(celsius >= limit for limit in SKIN_LIMITS_C)))
    worst = max((status for _, _, status in sensors), default=0)
    lines = ["IsStatusOverride: false", f"Thermal Status: {worst}", "Cached temperatures:"]
    lines += [
        f"\tTemperature{{mValue={celsius:.1f}, mType={SKIN_TYPE}, mName={name}, mStatus={status}}}"
        for name, celsius, status in sensors
    ]
    return "\n".join(lines) + "\n"


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _number(path: Path) -> float | None:
    try:
        return float(_text(path) or "")
    except ValueError:
        return None


COMMANDS: dict[str, Command] = {"getprop": getprop, "dumpsys": dumpsys, "settings": settings}

if __name__ == "__main__":
    code, text = COMMANDS[sys.argv[1]](Path("/"), sys.argv[2:])
    sys.stdout.write(text)
    sys.exit(code)
