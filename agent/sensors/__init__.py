"""Sensors: discovered under a root, described by themselves, parsed by pure functions."""

from __future__ import annotations

from pathlib import Path

from agent.sensors import power, system, thermal
from agent.sensors.channel import Channel


def discover(root: Path, pid: int | None = None) -> list[Channel]:
    """Every channel that can be read under `root` ("/" on a device), in a stable order.

    A channel's id is its place in this list, counted from 1.
    """
    return [
        *power.rails(root),
        *power.battery(root),
        *thermal.zones(root),
        *system.cpu_clocks(root),
        *system.memory(root, pid),
    ]
