"""Whether this is an emulated Android device: ro.qhost.emulated=1 is a property no real one has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PROPERTIES = Path("system/build.prop")
TREE = Path("vendor/emulated")  # the sys/ and proc/ files that the device model keeps up to date


@dataclass(frozen=True)
class Phone:
    """What the properties of an emulated device say. `tree` is where its sensors' files lie.
    `native`: the agent runs on the emulating machine's Python, and the device model in the agent.
    """

    soc: str
    serial: str
    build: str
    time_factor: float
    personality: str
    native: bool
    tree: Path


def emulated_phone(device_root: Path) -> Phone | None:
    """The emulated device whose file system is `device_root`; None on anything else."""
    try:
        lines = (device_root / PROPERTIES).read_text().splitlines()
    except OSError:
        return None
    props = dict(line.partition("=")[::2] for line in lines)
    if props.get("ro.qhost.emulated") != "1":
        return None
    return Phone(
        props["ro.qhost.soc"],
        props["ro.serialno"],
        props["ro.build.id"],
        float(props["ro.qhost.time_factor"]),
        props["ro.qhost.personality"],
        "ro.qhost.python" in props,
        device_root / TREE,
    )
