"""The file-system root of an emulated Android device: properties, /system/bin, writable places.

The /sys and /proc files are those of `sysfs`. Everything here says that it is emulated: the
property ro.qhost.emulated=1 is one that no real device has.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from agent.emulator import android_commands
from agent.emulator.device import Device
from agent.emulator.personalities import PERSONALITIES
from agent.emulator.phone import PROPERTIES, TREE
from agent.emulator.sysfs import SysfsTree

# Names that Android's toybox has and the host uses; the device's are the host's own programs.
_TOYBOX = """
    [ awk base64 basename cat chmod cp cut date dd df dirname du echo env expr false find getconf
    grep gunzip gzip head hostname id kill ln ls md5sum mkdir mkfifo mktemp mv nice nohup nproc
    od pgrep pkill printenv printf ps pwd readlink realpath rm rmdir sed seq setsid sh sha1sum
    sha256sum sleep sort split stat stty sync tail tar tee test timeout touch tr true truncate
    uname uniq uptime wc which xargs
"""
PACKAGES = Path(__file__).parents[2]  # where the package `agent` lies
QNN_TOOLS = ("qnn-net-run", "qnn-throughput-net-run")
COMMANDS_FILE = Path("system/lib/android_commands.py")


# ro.board.platform: the code name that Android builds use.
BOARDS = {
    "sm8350": "lahaina",
    "sm8450": "taro",
    "sm8475": "taro",
    "sm8550": "kalama",
    "sm8650": "pineapple",
    "sm8750": "sun",
    "sm8850": "canoe",
}


def properties(
    soc: str, serial: str, time_factor: float, personality: str, *, native: bool = True
) -> dict[str, str]:
    """The `getprop` list of an emulated `soc`; the last two are for the device model.

    `native`: it offers this machine's Python. Otherwise it has none, like a phone.
    """
    part = soc.upper()
    python = {"ro.qhost.python": sys.executable} if native else {}
    return {
        "ro.product.manufacturer": "qhost",
        "ro.product.model": f"{part} emulated",
        "ro.product.name": f"{soc}_emulated",
        "ro.product.device": f"{soc}_emulated",
        "ro.product.cpu.abi": "arm64-v8a",
        "ro.soc.manufacturer": "QTI",
        "ro.soc.model": part,
        "ro.board.platform": BOARDS[soc],
        "ro.hardware": "qcom",
        "ro.serialno": serial,
        "ro.build.version.release": "15",
        "ro.build.version.sdk": "35",
        "ro.build.type": "user",
        "ro.build.id": "QHOST.EMULATED",
        "ro.build.fingerprint": f"qhost/emulated/{soc}:15/QHOST.EMULATED/1:user/test-keys",
        "sys.boot_completed": "1",
        "ro.qhost.emulated": "1",
        **python,
        "ro.qhost.soc": soc,
        "ro.qhost.time_factor": f"{time_factor:g}",
        "ro.qhost.personality": personality,
    }


def build_root(root: Path, soc: str, props: dict[str, str]) -> None:
    """Lay out the root. What a run left under /data stays, as on a device that was rebooted."""
    for name in ("system/bin", "system/lib", "vendor/lib64", "data/local/tmp", "sdcard"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / PROPERTIES).write_text("".join(f"{key}={value}\n" for key, value in props.items()))
    _system_bin(root)
    # The device at rest; the agent's device model takes the tree over when it starts.
    personality = PERSONALITIES[props["ro.qhost.personality"]]
    SysfsTree(root / TREE, Device(soc, seed=0, personality=personality)).close()
    if not (root / "sys").is_symlink():
        (root / "sys").symlink_to(TREE / "sys")


def _system_bin(root: Path) -> None:
    bin_dir = root / "system/bin"
    for name in _TOYBOX.split():
        host = shutil.which(name)
        link = bin_dir / name
        if host and not link.is_symlink():
            link.symlink_to(host)
    shutil.copyfile(str(android_commands.__file__), root / COMMANDS_FILE)
    python = shlex.quote(sys.executable)
    for name in android_commands.COMMANDS:
        script = bin_dir / name
        script.write_text(f'#!/system/bin/sh\nexec {python} -ISB "/{COMMANDS_FILE}" {name} "$@"\n')
        script.chmod(0o755)
    # The stand-in of the SDK's tool needs the agent's code, which is nowhere else on the device.
    code = root / "system/lib/qhost"
    for package in ("agent", "protos"):
        shutil.copytree(
            PACKAGES / package,
            code / package,
            ignore=shutil.ignore_patterns("__pycache__"),
            dirs_exist_ok=True,
        )
    for name in QNN_TOOLS:
        tool = bin_dir / name
        tool.write_text(
            f"#!/system/bin/sh\nPYTHONPATH=/{code.relative_to(root)} PYTHONDONTWRITEBYTECODE=1 "
            f'exec {python} -P -m agent.emulator.android_qnn {name} "$@"\n'
        )
        tool.chmod(0o755)
