"""What a run's figures depend on besides the model: read from the device, kept with every run."""

from __future__ import annotations

import importlib.metadata
import platform as host_platform
from pathlib import Path

from agent.sensors.channel import read_text


def read(root: Path) -> dict[str, str]:
    """Facts under `root` ("/" on a device), and the versions that the agent runs with."""
    facts = {
        "soc_id": read_text(root / "sys/devices/soc0/soc_id"),
        "machine": read_text(root / "sys/devices/soc0/machine"),
        "governor": _governors(root),
        "kernel": read_text(root / "proc/sys/kernel/osrelease"),
        "python": host_platform.python_version(),
        "onnxruntime": _version("onnxruntime"),
        "onnxruntime_qnn": _version("onnxruntime-qnn"),
    }
    return {name: value for name, value in facts.items() if value}


def _governors(root: Path) -> str:
    policies = (root / "sys/devices/system/cpu/cpufreq").glob("policy*/scaling_governor")
    return ",".join(sorted({text for p in policies if (text := read_text(p))}))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
