"""Sensors: discovered under a root, described by themselves, parsed by pure functions."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from agent.sensors import dumpsys, power, system, thermal
from agent.sensors.channel import Channel
from agent.sensors.dumpsys import Run

# Nodes whose refusal a user should know of: without them figures are missing.
_WANTED = (
    "sys/class/hwmon/hwmon*/power*_input",
    "sys/bus/iio/devices/iio:device*/*energy*_value",
    "sys/class/power_supply/*/current_now",
    "sys/class/power_supply/*/voltage_now",
    "sys/class/thermal/thermal_zone*/temp",
    "sys/devices/system/cpu/cpufreq/policy*/scaling_cur_freq",
    "sys/class/kgsl/kgsl-3d0/gpuclk",
)


@dataclass(frozen=True)
class Discovery:
    """A channel's id is its place in `channels`, counted from 1. `denied`: nodes that exist and
    refuse to be read, as seen on the device."""

    channels: tuple[Channel, ...]
    denied: tuple[str, ...]


def discover(root: Path, run: Run | None = None) -> Discovery:
    """Every channel that can be read under `root` ("/" on a device), in a stable order.

    `run`: how to run dumpsys; None where there is no Android. Which nodes an app or a shell may
    read differs by maker, so each is tried.
    """
    zones = thermal.zones(root)
    channels: list[Channel] = [
        *power.rails(root),
        *power.energy_counters(root),
        *power.battery(root),
        *zones,
        *thermal.cooling(root),
        *system.clocks(root),
        *system.memory(root),
    ]
    if run is not None:
        channels += dumpsys.energy_meters(run)
        channels += dumpsys.thermal_service(run, temperatures=not zones)
    return Discovery(_named_once(channels), denied(root))


def denied(root: Path) -> tuple[str, ...]:
    """Paths of wanted nodes that exist and cannot be opened for reading."""
    return tuple(
        f"/{node.relative_to(root)}"
        for pattern in _WANTED
        for node in sorted(root.glob(pattern))
        if not os.access(node, os.R_OK)
    )


def _named_once(channels: list[Channel]) -> tuple[Channel, ...]:
    """The same channels, without later ones of a name that is taken (two dumps of one sensor)."""
    seen: dict[str, Channel] = {}
    for channel in channels:
        seen.setdefault(channel.spec.name, channel)
    return tuple(seen.values())
