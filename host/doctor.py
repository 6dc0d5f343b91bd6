"""What this machine has and lacks for qhost: one Check per question, no printing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from host.config import cache_dir

MIN_GLIBC = (2, 35)
MIN_FREE_BYTES = 2_000_000_000
UDEV_RULE_DIRS = ("/etc/udev/rules.d", "/usr/lib/udev/rules.d", "/lib/udev/rules.d")


@dataclass(frozen=True)
class Check:
    """`ok` None: not needed for everything; `fix` says what to do when it is not ok."""

    name: str
    ok: bool | None
    found: str
    fix: str = ""


def _python() -> Check:
    version = platform.python_version()
    return Check("python", sys.version_info >= (3, 11), version, "Install Python 3.11 or newer.")


def _glibc() -> Check:
    name, version = platform.libc_ver()
    numbers = tuple(int(p) for p in version.split(".")[:2] if p.isdigit())
    good = name == "glibc" and numbers >= MIN_GLIBC
    need = ".".join(map(str, MIN_GLIBC))
    return Check(
        "glibc", good, f"{name or 'unknown'} {version}",
        f"The HTP compiler and emulator need glibc {need} or newer (Debian 12, Ubuntu 22.04).",
    )  # fmt: skip


def _package(name: str, why: str, *, needed: bool = True) -> Check:
    try:
        return Check(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check(name, False if needed else None, "absent", f"pip install {name}: {why}")


def _adb() -> Check:
    try:
        import adbutils

        path = adbutils.adb_path()
        text = subprocess.run([path, "version"], capture_output=True, text=True, timeout=10).stdout
        return Check("adb", True, f"{text.splitlines()[0]} (of adbutils)" if text else path)
    except (ImportError, OSError, subprocess.TimeoutExpired, RuntimeError) as e:
        return Check("adb", None, f"not usable: {e}", "Needed for real devices only.")


def _udev() -> Check:
    """Rules that let a normal user open a phone's USB node."""
    if os.geteuid() == 0:
        return Check("udev", True, "running as root: USB devices are accessible")
    for folder in UDEV_RULE_DIRS:
        if list(Path(folder).glob("*android*.rules")):
            return Check("udev", True, f"Android rules in {folder}")
    return Check(
        "udev", None, "no Android rules",
        "For real devices: apt-get install android-sdk-platform-tools-common, "
        "and join group plugdev.",
    )  # fmt: skip


def _qairt() -> Check:
    root = os.environ.get("QAIRT_SDK_ROOT")
    fix = "Only needed for real Android devices: set QAIRT_SDK_ROOT to the unpacked QAIRT SDK."
    if not root:
        return Check("QAIRT SDK", None, "QAIRT_SDK_ROOT is not set", fix)
    path = Path(root)
    if not (path / "bin").is_dir():
        return Check("QAIRT SDK", False, f"{root} has no bin/", fix)
    version = next(
        (
            line.split(":", 1)[1].strip()
            for name in ("sdk.yaml", "sdk.yml")
            if (path / name).is_file()
            for line in (path / name).read_text(errors="replace").splitlines()
            if line.strip().startswith("version:")
        ),
        "version unknown",
    )
    return Check("QAIRT SDK", True, f"{version} at {root}")


def _space() -> Check:
    folder = cache_dir(None)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return Check(
        "free space", free >= MIN_FREE_BYTES, f"{free / 1e9:.1f} GB at {folder}",
        "Free some space, or set QHOST_CACHE_DIR to another disk.",
    )  # fmt: skip


CHECKS: tuple[Callable[[], Check], ...] = (
    _python,
    _glibc,
    lambda: _package("onnxruntime", "runs the float reference"),
    lambda: _package("onnxruntime-qnn", "brings the HTP compiler and emulator"),
    _qairt,
    _adb,
    _udev,
    _space,
    lambda: _package("torch", "for qat and fine-tuning: pip install 'qhost[train]'", needed=False),
)


def run_checks() -> list[Check]:
    return [check() for check in CHECKS]
