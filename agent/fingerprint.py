"""What a run's figures depend on besides the model: read from the device, kept with every run."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import platform as machine
import re
from pathlib import Path

from agent.sensors.channel import read_text
from agent.sensors.dumpsys import THERMAL, Run, parse_thermal_status

# Of the runtime that computes; their bytes decide more than any version string.
_LIBRARIES = ("libQnnHtp.so", "libQnnSystem.so", "libonnxruntime_providers_qnn.so")
_BUILD = re.compile(rb"v(\d+\.\d+\.\d+\.\d{6,14})")
_SETTINGS = {
    "airplane_mode": "airplane_mode_on",
    "wifi": "wifi_on",
    "bluetooth": "bluetooth_on",
}


def read(root: Path, run: Run | None = None) -> dict[str, str]:
    """Facts under `root` ("/" on a device), of Android's services through `run` where there are
    any, and of the interpreter and its packages. A fact that cannot be had is left out."""
    battery = root / "sys/class/power_supply/battery"
    facts = {
        "soc_id": read_text(root / "sys/devices/soc0/soc_id"),
        "machine": read_text(root / "sys/devices/soc0/machine"),
        "governor": _governors(root),
        "kernel": read_text(root / "proc/sys/kernel/osrelease"),
        "charge_percent": read_text(battery / "capacity"),
        "wake_locks": read_text(root / "sys/power/wake_lock"),
        "seccomp": _seccomp(),
        "page_size": str(os.sysconf("SC_PAGE_SIZE")),
        "python": machine.python_version(),
        "onnxruntime": _version("onnxruntime"),
        "onnxruntime_qnn": _version("onnxruntime-qnn"),
        **(_android(run) if run is not None else {}),
    }
    return {name: value for name, value in facts.items() if value}


@functools.cache
def of_package() -> dict[str, str]:
    """What of_folder says of the installed onnxruntime-qnn; empty where there is none."""
    spec = importlib.util.find_spec("onnxruntime_qnn")
    folders = (spec.submodule_search_locations or []) if spec is not None else []
    return {k: v for folder in folders for k, v in of_folder(Path(folder)).items()}


def of_folder(folder: Path) -> dict[str, str]:
    """Of the QNN libraries in `folder`: "qairt", the build of libQnnHtp.so, and for each
    "sha256 <library>", its first 16 digits."""
    found = {}
    for path in sorted(folder.rglob("*.so")):
        if path.name not in _LIBRARIES:
            continue
        data = path.read_bytes()
        found[f"sha256 {path.name}"] = hashlib.sha256(data).hexdigest()[:16]
        if path.name == "libQnnHtp.so" and (build := _BUILD.search(data)):
            found["qairt"] = build[1].decode()
    return found


def _android(run: Run) -> dict[str, str]:
    facts = {"selinux": (run(("getenforce",)) or "").strip()}
    if match := re.search(r"mWakefulness=(\w+)", run(("dumpsys", "power")) or ""):
        facts["screen"] = match[1]
    for name, setting in _SETTINGS.items():
        value = (run(("settings", "get", "global", setting)) or "").strip()
        if value != "null":  # not set
            facts[name] = value
    status = parse_thermal_status(run(THERMAL) or "")
    if status is not None:
        facts["thermal_status"] = str(int(status))
    return facts


def _seccomp() -> str:
    """0: no filter judges this process's system calls; 2: one does."""
    lines = (read_text(Path("/proc/self/status")) or "").splitlines()
    return next((line.split()[1] for line in lines if line.startswith("Seccomp:")), "")


def _governors(root: Path) -> str:
    policies = (root / "sys/devices/system/cpu/cpufreq").glob("policy*/scaling_governor")
    return ",".join(sorted({text for p in policies if (text := read_text(p))}))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
