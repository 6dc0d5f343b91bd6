"""config, doctor, --version, and how errors reach the user."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

import host.cli
from host import __version__, doctor
from host.cli import VERBS, main
from host.doctor import Check


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"qhost {__version__}"


@pytest.mark.parametrize(
    ("args", "line"), [([], "The main job:"), (["--debug"], "Results:"), (["db"], "  merge")]
)
def test_without_a_verb_the_help_is_shown(capsys, args, line):
    assert main(args) == 2
    err = capsys.readouterr().err
    assert any(shown.startswith(line) for shown in err.splitlines())
    assert "qhost: error" not in err


RESUME = "; the same with --resume runs what is missing"


@pytest.mark.parametrize(("verb", "says"), [("bench", RESUME), ("doctor", "")])
def test_an_interrupt_says_so_and_for_a_bench_what_to_do(monkeypatch, capsys, verb, says):
    def interrupted(*_args: object, **_named: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("host.cli.bench.run_shown", interrupted)
    monkeypatch.setattr(doctor, "CHECKS", (interrupted,))
    assert main([verb, *(["--mock"] if verb == "bench" else [])]) == 130
    (line,) = [s for s in capsys.readouterr().err.splitlines() if "interrupted" in s]
    assert line == f"qhost: interrupted{says}"


def test_config_shows_value_and_source(tmp_path, monkeypatch, capsys):
    (tmp_path / "qhost.toml").write_text("seed = 4\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QHOST_METHODS", "int8")
    assert main(["config", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows["seed"] == {"value": "4", "source": str(tmp_path / "qhost.toml")}
    assert rows["methods"] == {"value": "int8", "source": "environment QHOST_METHODS"}
    assert rows["device"] == {"value": None, "source": "default"}


def test_brackets_are_not_taken_for_markup(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QHOST_METHODS", "sparse[sparsity=0.5]")
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["config"]) == 0
    assert "sparse[sparsity=0.5]" in capsys.readouterr().out
    cli = Path(host.cli.__file__).parent
    makers = {p.name for p in cli.glob("*.py") if "Console(" in p.read_text("utf-8")}
    assert makers == {"terminal.py", "query.py"}, "consoles come from host.cli.terminal"


def test_help_names_every_verb_with_a_whole_sentence(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for verb in (v for verbs in VERBS.values() for v in verbs):
        assert f"\n  {verb} " in out
    assert "..." not in out.partition("The main job")[2]
    assert out.index("The main job:") < out.index("Results:") < out.index("This machine:")


def test_doctor_names_what_is_missing_and_what_to_do(monkeypatch, capsys):
    lacking = Check("glibc", False, "glibc 2.31", "Needs glibc 2.35 or newer.")
    monkeypatch.setattr(doctor, "CHECKS", (lambda: lacking,))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "MISSING" in out
    assert "2.35" in out


def test_doctor_here(capsys):
    assert main(["doctor", "--json"]) == 0
    found = {c["name"]: c for c in json.loads(capsys.readouterr().out)}
    assert found["onnxruntime-qnn"]["ok"] is True
    assert found["glibc"]["found"].startswith("glibc 2.")
    assert {"python", "adb", "udev", "QAIRT SDK", "free space"} <= set(found)


def test_a_qairt_root_without_bin_is_a_finding(tmp_path, monkeypatch):
    monkeypatch.setenv("QAIRT_SDK_ROOT", str(tmp_path))
    (check,) = [c for c in doctor.run_checks() if c.name == "QAIRT SDK"]
    assert check.ok is False
    (tmp_path / "bin").mkdir()
    (tmp_path / "sdk.yaml").write_text("product: QAIRT\nversion: 2.51.0\n")
    (check,) = [c for c in doctor.run_checks() if c.name == "QAIRT SDK"]
    assert check.ok is True
    assert "2.51.0" in check.found


@pytest.mark.parametrize("debug", [True, False])
def test_debug_shows_the_traceback_and_nothing_else_does(debug, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ["inspect", "missing.qnn", *(["--debug"] if debug else [])]
    assert main(args) == 1
    err = capsys.readouterr().err
    assert ("Traceback" in err) is debug
    assert err.strip().splitlines()[-1].startswith("qhost: error: ")
