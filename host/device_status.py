"""What a device says about itself, for `qhost devices`: by shell, and by its agent if one runs."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, replace

from host import install, lease
from host.adb import LIST_TIMEOUT_S, AdbDevice
from host.client import AgentClient
from host.deploy import AgentEndpoint
from host.errors import DeviceError
from quant.errors import UserError
from quant.htp.soc import get_soc

# android.os.BatteryManager.BATTERY_STATUS_*
_CHARGING = {"1": "unknown", "2": "charging", "3": "discharging", "4": "not charging", "5": "full"}
_THERMAL = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
_SENSOR_NODES = (
    "/sys/class/power_supply/*/current_now /sys/class/power_supply/*/voltage_now "
    "/sys/class/hwmon/hwmon*/power1_input /sys/class/thermal/thermal_zone*/temp "
    "/sys/devices/system/cpu/cpufreq/policy*/scaling_cur_freq /proc/meminfo"
)


@dataclass(frozen=True)
class DeviceStatus:
    """One row. Empty: not known. `sensors`: nodes that can be read, or the agent's channels."""

    serial: str
    state: str
    emulated: bool = False
    model: str = ""
    soc: str = ""
    build: str = ""
    htp_arch: str = ""
    charge_percent: int | None = None
    charging: str = ""
    thermal_status: str = ""
    lease_holder: str = ""
    agent_version: str = ""
    sensors: int | None = None
    problem: str = ""
    hint: str = ""


def status_of(device: AdbDevice) -> DeviceStatus:
    """Ask the device. A device that cannot be used says why in `problem` and `hint`."""
    status = DeviceStatus(
        device.serial, device.state, device.emulated, device.model, device.soc, device.build
    )
    try:
        device.require_ready()
        status = _ask_shell(device, status)
        return _ask_agent(device, status)
    except DeviceError as error:
        return replace(status, problem=error.message, hint=error.hint)


def _ask_shell(device: AdbDevice, status: DeviceStatus) -> DeviceStatus:
    battery = device.shell("dumpsys battery", LIST_TIMEOUT_S).stdout
    thermal = device.shell("dumpsys thermalservice", LIST_TIMEOUT_S).stdout
    charge = re.search(r"^\s*level: (\d+)", battery, re.MULTILINE)
    charging = re.search(r"^\s*status: (\d+)", battery, re.MULTILINE)
    heat = re.search(r"Thermal Status: (\d+)", thermal)
    held = lease.read(device)
    arch = ""
    with contextlib.suppress(UserError):
        arch = f"v{get_soc(device.soc).arch}"
    readable = device.shell(
        f"for node in {_SENSOR_NODES}; do cat $node > /dev/null 2>&1 && echo $node; done"
    )
    return replace(
        status,
        htp_arch=arch,
        charge_percent=int(charge[1]) if charge else None,
        charging=_CHARGING.get(charging[1], "") if charging else "",
        thermal_status=_THERMAL[min(int(heat[1]), len(_THERMAL) - 1)] if heat else "",
        lease_holder=held.owner if held and not held.expired else "",
        sensors=len(readable.stdout.split()) if readable.stdout else None,
    )


def _ask_agent(device: AdbDevice, status: DeviceStatus) -> DeviceStatus:
    agent = install.running_agent(device)
    if agent is None:
        return status
    endpoint = AgentEndpoint(device, agent)
    client = AgentClient(endpoint.address, endpoint.token)
    try:
        said = client.describe()
        return replace(status, agent_version=said.agent_version, sensors=len(said.channels))
    finally:
        client.close()
        endpoint.close()
