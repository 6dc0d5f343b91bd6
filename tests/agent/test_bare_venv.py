"""The agent needs grpcio, protobuf and numpy, and nothing else that qhost has."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
IMPORT_ALL = """
import importlib, importlib.metadata, json, pkgutil, sys
import agent, protos
names = [m.name for p in (agent, protos)
         for m in pkgutil.walk_packages(p.__path__, p.__name__ + ".")]
for name in names:
    importlib.import_module(name)
print(json.dumps({"modules": names, "roots": sorted({n.split(".")[0] for n in sys.modules}),
                  "installed": [d.name for d in importlib.metadata.distributions()]}))
"""


def test_every_module_imports_in_a_bare_venv(tmp_path):
    venv, code = tmp_path / "venv", tmp_path / "code"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin/python"
    subprocess.run(
        [
            sys.executable, "-m", "pip", "--python", python, "install", "--quiet",
            "--disable-pip-version-check", "-c", ROOT / "constraints.txt",
            "grpcio", "protobuf", "numpy",
        ],
        check=True,
    )  # fmt: skip
    for package in ("agent", "protos"):
        shutil.copytree(ROOT / package, code / package)
    done = subprocess.run(
        [python, "-P", "-c", IMPORT_ALL],
        env={"PATH": os.defpath, "PYTHONPATH": str(code)},
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    # typing-extensions is grpcio's own need.
    assert set(said["installed"]) == {"grpcio", "protobuf", "numpy", "typing_extensions"}
    assert {"agent.__main__", "agent.runtime.net_run", "agent.emulator.adbd"} <= set(
        said["modules"]
    )
    # __main__ of the agent is imported, not run: a module for each file.
    files = list((ROOT / "agent").rglob("*.py")) + list((ROOT / "protos").rglob("*.py"))
    assert len(said["modules"]) == len(files) - 2  # the two packages themselves
    assert not {"onnxruntime", "onnxruntime_qnn", "host", "quant"} & set(said["roots"])
