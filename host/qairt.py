"""The device's side of a QAIRT SDK: what an Android device gets of it, and whether it fits.

The layout is that of the SDK's public documentation. All libraries must come from one build of the
SDK: a skel of another one fails on the device with error 14001, which says nothing of the cause.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from host.errors import UserError
from host.layers import Layer, Member, pack
from quant.htp.sdk import SDK_VARIABLE

TOOLS = ("qnn-net-run", "qnn-throughput-net-run")
VIEWER = Path("bin/x86_64-linux-clang/qnn-profile-viewer")
DESCRIPTION = "qairt.json"  # in the layer: what the agent says its runtime is
_DEVICE = "aarch64-android"
_BUILD = re.compile(rb"v(\d+\.\d+\.\d+\.\d{6,14})")
_YAML_VERSION = re.compile(r"^\s*version:\s*['\"]?([\d.]+)", re.MULTILINE)
_ELF = b"\x7fELF"


def is_set() -> bool:
    return bool(os.environ.get(SDK_VARIABLE))


def sdk_root() -> Path:
    """QAIRT_SDK_ROOT. UserError where it is unset or no folder."""
    root = os.environ.get(SDK_VARIABLE, "")
    if not root:
        raise UserError(
            f"An Android device runs your QAIRT SDK's libraries, and {SDK_VARIABLE} is not set.",
            "Point it at the unpacked SDK, the folder that holds bin and lib.",
        )
    if not Path(root).is_dir():
        raise UserError(f"{SDK_VARIABLE} is {root}, which is no folder.", "Mend it.")
    return Path(root)


def device_files(root: Path, arch: int) -> dict[str, Path]:
    """{name on the device: file} for a Hexagon of this architecture.

    UserError for the first that the SDK lacks, and where they are not all of one build.
    """
    libraries = root / "lib" / _DEVICE
    files = {name: root / "bin" / _DEVICE / name for name in TOOLS}
    for name in (
        "libQnnHtp.so", "libQnnSystem.so", "libQnnHtpNetRunExtensions.so",
        f"libQnnHtpV{arch}Stub.so",
    ):  # fmt: skip
        files[name] = libraries / name
    skel = f"libQnnHtpV{arch}Skel.so"
    files[skel] = root / f"lib/hexagon-v{arch}/unsigned" / skel
    for name, path in files.items():
        if not path.is_file():
            why = f" It knows no Hexagon v{arch}." if f"V{arch}" in name else ""
            raise UserError(
                f"The QAIRT SDK at {root} lacks {path.relative_to(root)}.{why}",
                f"Point {SDK_VARIABLE} at a complete SDK that supports this device.",
            )
    return files


def build_of(root: Path, files: dict[str, Path]) -> str:
    """The one build of all the libraries: 2.31.0.250130151446.

    UserError where two differ, where sdk.yaml says another version, or where none says its build.
    """
    builds: dict[str, str] = {}
    for name, path in files.items():
        if path.suffix == ".so" and (found := _BUILD.search(path.read_bytes())):
            builds[name] = found[1].decode()
    if not builds:
        raise UserError(
            f"No library of the QAIRT SDK at {root} says of which build it is.",
            "It is damaged, or no SDK that qhost knows.",
        )
    first = next(iter(builds))
    for name, build in builds.items():
        if build != builds[first]:
            raise UserError(
                f"The QAIRT SDK at {root} is mixed: {first} is of {builds[first]}, "
                f"{name} of {build}.",
                "All libraries have to come from one SDK: unpack it anew.",
            )
    said = _yaml_version(root)
    if said and version_of(said) != version_of(builds[first]):
        raise UserError(
            f"The QAIRT SDK at {root} says {said} in sdk.yaml, its libraries are of "
            f"{builds[first]}.",
            "Unpack it anew.",
        )
    return builds[first]


def _yaml_version(root: Path) -> str:
    for name in ("sdk.yaml", "sdk.yml"):
        if (root / name).is_file():
            found = _YAML_VERSION.search((root / name).read_text(errors="replace"))
            return found[1] if found else ""
    return ""


def version_of(build: str) -> tuple[int, int, int]:
    """(2, 31, 0) of "v2.31.0.250130151446_114721" or "2.31.0". ValueError for anything else."""
    found = re.match(r"v?(\d+)\.(\d+)\.(\d+)", build)
    if not found:
        raise ValueError(f"{build!r} is no QAIRT version")
    return (int(found[1]), int(found[2]), int(found[3]))


def runtime_layer(root: Path, arch: int, folder: Path, *, emulated: bool) -> Layer:
    """Tools and libraries for one Hexagon architecture as a layer: qnn-v75."""
    files = device_files(root, arch)
    build = build_of(root, files)
    if emulated and files[TOOLS[0]].read_bytes()[:4] == _ELF:
        raise UserError(
            f"An emulated device cannot run the Android programs of {root}.",
            f"Unset {SDK_VARIABLE}: it brings tools of its own.",
        )
    members = [Member(name, path, name in TOOLS) for name, path in files.items()]
    said = json.dumps({"build": build, "htp_arch": arch}, sort_keys=True) + "\n"
    members.append(Member(DESCRIPTION, said.encode()))
    return pack(f"qnn-v{arch}", members, folder)


def require_runnable(context_build: str, runtime_build: str, device: str) -> None:
    """UserError where the context was compiled by a newer QAIRT than the device runs."""
    try:
        newer = version_of(context_build) > version_of(runtime_build)
    except ValueError:
        return  # one of them does not say: the device will
    if newer:
        raise UserError(
            f"The context was compiled by QAIRT {context_build.removeprefix('v')}, the runtime on "
            f"{device} is {runtime_build}: it cannot load what a newer one made.",
            f"Compile with the SDK whose libraries the device gets ({SDK_VARIABLE}).",
        )
