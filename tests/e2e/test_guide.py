"""The commands of docs/guide.md run, in order, and leave what they name."""

from __future__ import annotations

import itertools
import re
import shlex
import shutil
from pathlib import Path

import pytest

from host.cli import main

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide.md"
# What needs a device, or does not end by itself; tests/host/test_docs.py knows that they exist.
NOT_HERE = ("SERIAL", "qhost emulate", "qhost devices")


def guide_commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```$", GUIDE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    lines = [re.sub(r"\s+#.*$", "", line) for block in blocks for line in block.splitlines()]
    return [c for c in lines if c.startswith("qhost ") and not any(n in c for n in NOT_HERE)]


@pytest.fixture(scope="module")
def folder(finished_lab, tmp_path_factory):
    lab, _ = finished_lab
    folder = tmp_path_factory.mktemp("guide")
    shutil.copyfile(lab.model, folder / "net.onnx")
    shutil.copyfile(lab.task, folder / "task.npz")
    return folder


def test_the_guide_has_commands_to_run():
    verbs = {shlex.split(c)[1] for c in guide_commands()}
    assert {"bench", "compare-all", "quantize", "optimize", "report", "query", "gate"} <= verbs


@pytest.mark.parametrize("command", guide_commands())
def test_the_command_runs(command, folder, finished_lab, monkeypatch, capsys):
    lab, _ = finished_lab
    monkeypatch.chdir(folder)
    monkeypatch.setenv("QHOST_CACHE_DIR", str(lab.folder / "cache"))
    monkeypatch.setenv("QHOST_EMULATOR_SAMPLES", "8")
    args = shlex.split(command)[1:]
    assert main(args) == 0, capsys.readouterr().err
    for option, value in itertools.pairwise(args):
        if option in {"--output", "--output-path"}:
            path = folder / value
            assert any(path.iterdir()) if path.is_dir() else path.stat().st_size > 0
    if args[0] == "compare-all":
        assert (folder / "qhost-out" / "net_comparison.json").exists()
