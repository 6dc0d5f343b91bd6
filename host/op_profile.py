"""Times per operator from a log of the SDK's tools, read by the SDK's own viewer on this host.

The log is binary and its format is not documented; the viewer turns it into the CSV that
onnxruntime's QNN provider writes, too, whose parser belongs to the agent and runs as a process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from host import qairt
from host.errors import ToolchainError
from host.store.rows import OpProfile, Profile

_TIMEOUT_S = 120.0


def can_read() -> bool:
    """Whether the SDK of QAIRT_SDK_ROOT brings the viewer."""
    return qairt.is_set() and (qairt.sdk_root() / qairt.VIEWER).is_file()


def read_log(log: Path) -> tuple[Profile, tuple[OpProfile, ...]]:
    """The whole graph's times and each operator's cycles. ToolchainError with the cause where the
    viewer or the parser refuses the log."""
    root = qairt.sdk_root()
    with tempfile.TemporaryDirectory(prefix="qhost-profile-") as folder:
        csv = Path(folder) / "profile.csv"
        viewer = root / qairt.VIEWER
        library = {"LD_LIBRARY_PATH": str(root / "lib" / viewer.parent.name)}
        _run([str(viewer), "--input_log", str(log), "--output", str(csv)], viewer.name, library)
        if not csv.is_file():
            raise ToolchainError(f"{viewer.name} wrote nothing about {log.name}.")
        parser = [sys.executable, "-P", "-m", "agent.runtime.profile", str(csv)]
        said = json.loads(_run(parser, "the parser of QNN profiles", {}))
    ops = tuple(OpProfile(op["id"], op["name"], tuple(op["cycles"])) for op in said["operators"])
    return Profile(tuple(said["execute_us"]), log.name), ops


def _run(command: list[str], what: str, environment: dict[str, str]) -> str:
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolchainError(f"{what} cannot be run: {error}.") from error
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        said = lines[-1].strip()[:300] if lines else f"it ended with status {done.returncode}"
        raise ToolchainError(f"{what} refuses the profile: {said}")
    return done.stdout
