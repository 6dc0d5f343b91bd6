"""What a device can do for measurements, asked of its shell before any agent runs there.

The first contact with a new phone decides whether the agent can live on it at all: its system
calls, page size, DSP nodes, room, and what its user may read. The answers are kept as the device's
capability report, a JSON file in the cache folder.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from host.adb import AdbDevice
from host.doctor import Check
from host.errors import DeviceError
from host.install import ABI
from host.lease import BASE
from quant.htp.soc import SOCS

FORMAT = 1
NEEDED_BYTES = 600_000_000  # the layers of a board unpacked, their archives, and some artifacts
CLOCK_LIMIT_S = 120.0
_TIMEOUT_S = 60.0
_NODES = (
    "/sys/class/hwmon/hwmon*/power*_input", "/sys/bus/iio/devices/iio:device*/*energy*_value",
    "/sys/class/power_supply/*/current_now", "/sys/class/power_supply/*/voltage_now",
    "/sys/class/power_supply/*/status", "/sys/class/thermal/thermal_zone*/temp",
    "/sys/class/thermal/cooling_device*/cur_state",
    "/sys/devices/system/cpu/cpufreq/policy*/scaling_cur_freq", "/sys/class/kgsl/kgsl-3d0/gpuclk",
    "/sys/devices/system/cpu/bus_dcvs/DDR/cur_freq", "/proc/meminfo", "/proc/self/smaps_rollup",
)  # fmt: skip
_SWITCHES = (
    "/sys/class/power_supply/*/input_suspend", "/sys/class/power_supply/*/charging_enabled",
)  # fmt: skip
_ZONE = re.compile(r"/sys/class/thermal/thermal_zone\d+/")
# Sections of one answer: a line `== name`, then what the commands print. Errors are part of it.
_SCRIPT = f"""
echo == seccomp; grep Seccomp: /proc/self/status
echo == page_size; getconf PAGE_SIZE
echo == dsp; ls -l /dev/fastrpc* /dev/adsprpc* 2>/dev/null
echo == selinux; getenforce || cat /sys/fs/selinux/enforce
echo == space; mkdir -p {BASE} && df -k {BASE}
echo == clock; date +%s
echo == kernel; uname -r
echo == machine; uname -m
echo == abi; getprop ro.product.cpu.abi
echo == user; id
echo == soc_id; cat /sys/devices/soc0/soc_id
echo == soc_model; getprop ro.soc.model
echo == run; echo "#!$(command -v sh)" > {BASE}/probe; echo 'echo runs' >> {BASE}/probe
chmod 700 {BASE}/probe; {BASE}/probe; rm -f {BASE}/probe
echo == nodes
for n in {" ".join(_NODES)}; do
  [ -e "$n" ] || continue
  if v=$(head -n 1 "$n" 2>/dev/null); then echo "ok $n $v"; else echo "no $n"; fi
done
echo == zones
for z in /sys/class/thermal/thermal_zone*; do echo "$z/ $(cat $z/type 2>/dev/null)"; done
echo == switches
for n in {" ".join(_SWITCHES)}; do [ -w "$n" ] && echo "$n"; done
echo == energy; dumpsys android.hardware.power.stats.IPowerStats/default | head -n 40
echo == end
"""


@dataclass(frozen=True)
class Sensor:
    """One node. `value`: its first line when it was asked; `readable`: whether it gave one."""

    node: str
    kind: str  # of a thermal zone: its type
    readable: bool
    value: str


@dataclass(frozen=True)
class CapabilityReport:
    """All that was found. `facts` are the raw answers by name."""

    serial: str
    taken_at: str
    model: str
    soc: str
    build: str
    os: str
    emulated: bool
    checks: tuple[Check, ...]
    sensors: tuple[Sensor, ...]
    facts: dict[str, str]

    def to_json(self) -> dict[str, object]:
        return {"format": FORMAT, **asdict(self)}


def ask(device: AdbDevice) -> CapabilityReport:
    """Ask the device. DeviceError when it cannot be reached."""
    device.require_ready()
    answer = device.shell(_SCRIPT, _TIMEOUT_S).stdout
    host_s = time.time()
    facts = sections(answer)
    if "end" not in facts:
        raise DeviceError(
            f"{device.serial} has no shell that answers a script.",
            "An emulated device without a sandbox has none; a real one is frozen.",
        )
    return CapabilityReport(
        device.serial,
        datetime.now(UTC).isoformat(timespec="seconds"),
        device.model,
        device.soc,
        device.build,
        "android" if device.android else "linux",
        device.emulated,
        tuple(checks(facts, host_s, android=device.android, emulated=device.emulated)),
        tuple(sensors(facts)),
        facts,
    )


def sections(answer: str) -> dict[str, str]:
    """{name: text} of the script's answer."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in answer.splitlines():
        if line.startswith("== "):
            lines = found.setdefault(line[3:].strip(), [])
        else:
            lines.append(line)
    return {name: "\n".join(text).strip() for name, text in found.items()}


def checks(
    facts: dict[str, str], host_s: float, *, android: bool, emulated: bool
) -> Iterator[Check]:
    """Each question with what was found and what to do. `host_s`: the host's clock then."""
    yield _soc(facts)
    yield _machine(facts, android=android)
    yield _seccomp(facts)
    page = facts.get("page_size", "")
    # Every program of the bundle is aligned to 64 KiB.
    good = page.isdigit() and int(page) <= 65536
    yield Check("page size", good, page or "unknown", "The agent's programs need 64 KiB or less.")
    yield _dsp(facts, emulated=emulated)
    mode = {"1": "Enforcing", "0": "Permissive"}.get(facts.get("selinux", ""), facts.get("selinux"))
    yield Check("SELinux", bool(mode) or None, mode or "none", "It says no mode: nothing to do.")
    yield _space(facts)
    yield _clock(facts, host_s)
    runs = "runs" in facts.get("run", "")
    yield Check(
        "programs", runs, "may be started" if runs else "may not be started",
        f"{BASE} must be on a file system that is not mounted noexec.",
    )  # fmt: skip
    yield _power(facts)
    yield _temperature(facts)


def _soc(facts: dict[str, str]) -> Check:
    soc_id = facts.get("soc_id", "")
    named = facts.get("soc_model", "").lower()
    soc = next((s for s in SOCS.values() if soc_id in map(str, s.soc_ids)), SOCS.get(named))
    by = f"soc_id {soc_id or 'hidden'}"
    found = f"{soc.id}, Hexagon v{soc.arch} ({by})" if soc else by
    return Check(
        "SoC", soc is not None, found,
        "qhost does not know this part: send the report, it has to be added to the tables.",
    )  # fmt: skip


def _machine(facts: dict[str, str], *, android: bool) -> Check:
    machine, abi = facts.get("machine", ""), facts.get("abi", "")
    good = abi == ABI if android else machine == "aarch64"
    return Check(
        "processor", good, " ".join(filter(None, (machine, abi))) or "unknown",
        "The agent needs a 64-bit ARM system.",
    )  # fmt: skip


def _seccomp(facts: dict[str, str]) -> Check:
    mode = facts.get("seccomp", "").rpartition(":")[2].strip()
    words = {"0": "off for the shell user", "1": "strict", "2": "a filter is on"}
    return Check(
        "seccomp", mode == "0" or None, words.get(mode, "unknown"),
        "A filter may kill the agent's Python when it makes a call that apps do not make; "
        "if the agent dies at its start, send the report and the kernel's log.",
    )  # fmt: skip


def _dsp(facts: dict[str, str], *, emulated: bool) -> Check:
    nodes = re.findall(r"/dev/\S+", facts.get("dsp", ""))
    found = ", ".join(nodes) or ("none, as it is emulated" if emulated else "none visible")
    return Check(
        "DSP nodes", True if nodes else (None if emulated else False), found,
        "Without /dev/fastrpc-cdsp or /dev/adsprpc-smd this user does not reach the HTP.",
    )  # fmt: skip


def _space(facts: dict[str, str]) -> Check:
    fields = facts.get("space", "").splitlines()[-1:]
    words = fields[0].split() if fields else []
    free = int(words[3]) * 1024 if len(words) > 3 and words[3].isdigit() else None
    found = "unknown" if free is None else f"{free / 1e9:.1f} GB at {BASE}"
    return Check(
        "free space", None if free is None else free >= NEEDED_BYTES, found,
        f"The agent and its artifacts want {NEEDED_BYTES / 1e6:.0f} MB.",
    )  # fmt: skip


def _clock(facts: dict[str, str], host_s: float) -> Check:
    said = facts.get("clock", "")
    if not said.isdigit():
        return Check("clock", None, "unknown", "It says no time.")
    off = int(said) - host_s
    return Check(
        "clock", abs(off) <= CLOCK_LIMIT_S, f"{off:+.0f} s against this host",
        "Set the device's clock: leases on it run out by it.",
    )  # fmt: skip


def _power(facts: dict[str, str]) -> Check:
    nodes = [s.node for s in sensors(facts) if s.readable]
    rails = [n for n in nodes if "hwmon" in n or "energy" in n]
    battery = [n for n in nodes if n.endswith("current_now")]
    meters = "mWs" in facts.get("energy", "")
    words = [
        f"{len(rails)} rails" if rails else "",
        "energy meters (dumpsys)" if meters else "",
        "battery current" if battery else "",
    ]
    found = ", ".join(filter(None, words)) or "nothing"
    return Check(
        "power", bool(rails or battery or meters) or None, found,
        "Latency and accuracy can be measured; for energy use an external meter.",
    )  # fmt: skip


def _temperature(facts: dict[str, str]) -> Check:
    kinds = [s.kind for s in sensors(facts) if s.readable and s.kind]
    npu = [k for k in kinds if k.startswith("nsp")]
    skin = [k for k in kinds if "skin" in k or k == "sys-therm-2"]
    found = f"{len(kinds)} zones, {len(npu)} of the NPU, {len(skin)} of the skin"
    return Check(
        "temperature", bool(npu and skin) or None, found,
        "Without these zones the cooldown gate and the ceilings cannot see them.",
    )  # fmt: skip


def sensors(facts: dict[str, str]) -> Iterator[Sensor]:
    """Every node that exists, with what it said."""
    zones = {
        zone: kind
        for zone, _, kind in (line.partition(" ") for line in facts.get("zones", "").splitlines())
    }
    for line in facts.get("nodes", "").splitlines():
        word, _, rest = line.partition(" ")
        node, _, value = rest.partition(" ")
        zone = _ZONE.match(node)
        yield Sensor(node, zones.get(zone[0], "") if zone else "", word == "ok", value.strip())


def path_of(serial: str, cache: Path) -> Path:
    """Where a device's report is kept."""
    return cache / "devices" / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', serial)}.json"


def known_build(serial: str, cache: Path) -> str | None:
    """The build that the kept report is about; None where there is none."""
    try:
        return str(json.loads(path_of(serial, cache).read_text())["build"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep(report: CapabilityReport, cache: Path) -> Path:
    """Write the report, whole or not at all."""
    path = path_of(report.serial, cache)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(report.to_json(), indent=1) + "\n")
    part.replace(path)
    return path
