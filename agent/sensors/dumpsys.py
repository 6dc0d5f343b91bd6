"""What only Android's services tell: IPowerStats energy meters (Pixels) and thermalservice.

One dump serves all channels made from it, and is taken anew when it is older than half a period.
"""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agent.sensors.channel import Channel, Spec
from agent.sensors.power import rail_site
from protos import agent_pb2 as pb

# (command) -> its output, or None when it is missing, fails or takes too long.
Run = Callable[[Sequence[str]], str | None]
DUMP_HZ = 1.0  # a dump costs tens of milliseconds of a core: it must not warm what is measured
_LIMIT_S = 3.0
POWER_STATS = ("dumpsys", "android.hardware.power.stats.IPowerStats/default")
THERMAL = ("dumpsys", "thermalservice")
THERMAL_STATUS_CODING = "0 none, 1 light, 2 moderate, 3 severe, 4 critical, 5 emergency, 6 shutdown"
# android.hardware.thermal TemperatureType; 6 to 8 are the battery current limiter: no temperatures.
_TYPE_SITES = {0: "cpu", 1: "gpu", 2: "battery", 3: "skin", 9: "npu"}
_SUBSYSTEM_SITES = {"cpu": "cpu", "gpu": "gpu", "ddr": "ddr", "memory": "ddr"}
_METER = re.compile(r"^\s*(?:\[(?P<name>[^\]]+)\]:(?P<subsystem>\S+)|(?P<bare>\S+))\s+"
                    r"(?P<mws>\d+(?:\.\d+)?) mWs\b")  # fmt: skip
_TEMPERATURE = re.compile(
    r"Temperature\{mValue=(?P<value>[-+.\deE]+|NaN), mType=(?P<type>\d+), "
    r"mName=(?P<name>[^,}]+), mStatus=\d+\}"
)


def run_command(argv: Sequence[str]) -> str | None:
    """The real runner."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", timeout=_LIMIT_S,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def parse_energy_meter(text: str) -> dict[str, tuple[str, float]]:
    """{rail: (subsystem, mJ since boot)} of the dump's energy meter section (1 mWs = 1 mJ)."""
    found = {}
    for line in _section(text, "energy meter").splitlines():
        if match := _METER.match(line):
            name = match["name"] or match["bare"]
            found[name] = (match["subsystem"] or "", float(match["mws"]))
    return found


def parse_thermal_status(text: str) -> float | None:
    match = re.search(r"Thermal Status:\s*(\d+)", text)
    return float(match[1]) if match else None


def parse_temperatures(text: str) -> dict[str, tuple[str, float]]:
    """{name: (site, C)} as the HAL reads now. The cached list before it can be hours old."""
    _, found, current = text.partition("Current temperatures from HAL:")
    if not found:
        return {}
    current = current.partition("Current cooling devices")[0].partition("static thresholds")[0]
    temperatures = {}
    for match in _TEMPERATURE.finditer(current):
        site = _TYPE_SITES.get(int(match["type"]))
        value = float(match["value"])
        if site is not None and -40.0 <= value <= 200.0:
            temperatures[match["name"]] = (site, value)
    return temperatures


@dataclass(frozen=True)
class EnergyOf:
    """Picks one rail out of an energy meter's dump."""

    name: str

    def __call__(self, text: str) -> float | None:
        entry = parse_energy_meter(text).get(self.name)
        return entry[1] if entry else None


@dataclass(frozen=True)
class TemperatureOf:
    """Picks one sensor out of thermalservice's dump."""

    name: str

    def __call__(self, text: str) -> float | None:
        entry = parse_temperatures(text).get(self.name)
        return entry[1] if entry else None


class Dump:
    """The output of one command, shared by channels and threads."""

    def __init__(self, argv: Sequence[str], run: Run) -> None:
        self._argv = tuple(argv)
        self._run = run
        self._lock = threading.Lock()
        self._taken_s = float("-inf")
        self._text: str | None = None

    def __reduce__(self) -> tuple[type[Dump], tuple[Sequence[str], Run]]:
        return (Dump, (self._argv, self._run))

    def text(self) -> str | None:
        with self._lock:
            if time.monotonic() - self._taken_s > 0.5 / DUMP_HZ:
                self._text = self._run(self._argv)
                self._taken_s = time.monotonic()
            return self._text


class DumpChannel:
    """One value out of a dump."""

    def __init__(self, spec: Spec, dump: Dump, parse: Callable[[str], float | None]) -> None:
        self.spec = spec
        self._dump = dump
        self._parse = parse

    def open(self) -> None:
        """A command is run anew for every reading."""

    def close(self) -> None:
        """Nothing is held."""

    def read(self) -> float | None:
        text = self._dump.text()
        return self._parse(text) if text else None


def energy_meters(run: Run) -> list[Channel]:
    """Cumulative energy per rail in mJ; empty where the HAL has no energy meter."""
    text = run(POWER_STATS)
    dump = Dump(POWER_STATS, run)
    return [
        DumpChannel(
            Spec(
                name, _SUBSYSTEM_SITES.get(subsystem.lower()) or rail_site(name), pb.ENERGY, "mJ",
                "IPowerStats energy meter, mWs since boot", DUMP_HZ, " ".join(POWER_STATS),
            ),
            dump,
            EnergyOf(name),
        )
        for name, (subsystem, _) in parse_energy_meter(text or "").items()
    ]  # fmt: skip


def thermal_service(run: Run, *, temperatures: bool) -> list[Channel]:
    """Android's thermal status; with `temperatures` the HAL's too (where the zones are denied)."""
    text = run(THERMAL)
    if not text or parse_thermal_status(text) is None:
        return []
    dump = Dump(THERMAL, run)
    source = " ".join(THERMAL)
    channels: list[Channel] = [
        DumpChannel(
            Spec(
                "thermal_status", "soc", pb.STATE, THERMAL_STATUS_CODING, "thermalservice status",
                DUMP_HZ, source,
            ),
            dump,
            parse_thermal_status,
        )
    ]  # fmt: skip
    for name, (site, _) in parse_temperatures(text).items() if temperatures else ():
        spec = Spec(name, site, pb.TEMPERATURE, "C", "thermalservice, HAL", DUMP_HZ, source)
        channels.append(DumpChannel(spec, dump, TemperatureOf(name)))
    return channels


def _section(text: str, title: str) -> str:
    """The lines from `===== ... title =====` to the next line of that kind."""
    lines = text.splitlines()
    starts = [i for i, line in enumerate(lines) if line.lstrip().startswith("=====")]
    for at, start in enumerate(starts):
        if title in lines[start] and "End of" not in lines[start]:
            end = starts[at + 1] if at + 1 < len(starts) else len(lines)
            return "\n".join(lines[start + 1 : end])
    return ""
