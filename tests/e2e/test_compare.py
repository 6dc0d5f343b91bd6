"""`qhost compare-all`: one comparison file, one verdict, checks across the methods."""

from __future__ import annotations

import json

import pytest

from host.cli import main
from host.cli.compare import parse_metrics
from host.errors import UserError


def test_a_comparison_under_constraints(finished_lab):
    lab, _ = finished_lab
    done = lab.run(
        "compare-all", "--mock", "--model-path", str(lab.model), "--task", str(lab.task),
        "--model-type", "vision", "--methods", "fp16,int8,int4", "--emulator-samples", "16",
        "--metrics", "accuracy,latency,size", "--max-size-mb", "0.000001",
        "--output-dir", "cmp", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert json.loads((lab.folder / "cmp" / "tiny_comparison.json").read_text()) == document
    assert document["verdict"]["variant"] is None
    assert "No variant meets the constraints" in document["verdict"]["headline"]
    assert all(r["rule"] != "goldens" for r in document["remarks"]), "the emulator is bit-exact"
    assert not (lab.folder / "qhost.duckdb").exists()


def test_metric_words():
    assert parse_metrics("latency, size") == ("latency_ms", "model_size_bytes")
    with pytest.raises(UserError, match="Did you mean latency"):
        parse_metrics("latncy")


def test_bad_words_are_refused_before_anything_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["compare-all", "--mock", "--max-accuracy-drop", "much"]) == 1
    assert "is no accuracy drop" in capsys.readouterr().err
    assert main(["compare-all", "--mock", "--methods", "fp16", "--db-path", "x.duckdb"]) == 1
    assert "--db-path without --store-in-db" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
