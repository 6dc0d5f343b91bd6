"""Regenerate protos/agent_pb2*.py from protos/agent.proto (a test regenerates and diffs)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def generate(out: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I.", f"--python_out={out}",
         f"--pyi_out={out}", f"--grpc_python_out={out}", "protos/agent.proto"],
        cwd=ROOT,
        check=True,
    )  # fmt: skip


if __name__ == "__main__":
    generate(ROOT)
