"""`qhost report` and `qhost visualize` on a database as the bench leaves it."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from host.cli import report, visualize
from host.errors import UserError
from host.report.load import load_session
from host.report.sheet import Sheet
from host.report.sheet import Table as SheetTable
from host.store import Store
from quant.figures import Figure, Provenance

_spec = importlib.util.spec_from_file_location(
    "report_rows", Path(__file__).with_name("report_rows.py")
)
assert _spec and _spec.loader
rows = sys.modules.setdefault("report_rows", importlib.util.module_from_spec(_spec))
_spec.loader.exec_module(rows)

NEW, OLD = "20261121-120000-aaa1", "20261120-120000-aaa0"


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    """Two sessions of four variants, the second 5 % slower, its last run failed."""
    path = tmp_path_factory.mktemp("db") / "lab.duckdb"
    return rows.database(path, sessions=2, count=4, slower=1.05)


@pytest.fixture
def qhost(db, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    report.register(app)
    visualize.register(app)

    def run(*args: str, named: bool = True) -> str:
        extra = ["--db-path", str(db)] if named else []
        result = CliRunner().invoke(app, [*args, *extra], env={"COLUMNS": "120"})
        if result.exception is not None:
            raise result.exception
        return result.stdout

    return run


def test_a_session_becomes_rows(db):
    with Store.open(db, read_only=True) as store:
        (one,) = load_session(store, "latest")
    assert one.session_id == NEW
    assert one.emulated
    assert one.emulation_basis == "published latencies"
    assert [r.variant for r in one.runs] == list(rows.NAMES[:4])
    assert one.notes == ("shared note",)
    assert one.runs[1].notes == ("own note",)
    assert [(s.name, s.seconds) for s in one.stages] == [("quantize", 6.0), ("compile", 9.0)]
    fp16, *_, last = one.runs
    assert fp16.figures["latency_ms"].value == pytest.approx(4.2)
    # The blocks, which the verdict rests on, are those that the figures were made of.
    assert fp16.blocks["latency_ms"].shape == (8,)
    assert np.median(fp16.blocks["latency_ms"]) == pytest.approx(4.2, rel=0.01)
    # Of two accuracies the emulator's stands for the run; onnxruntime's is kept beside it.
    assert fp16.figures["accuracy"].provenance is Provenance.HTP_EMULATOR
    assert [f.provenance for f in fp16.others] == [Provenance.ORT_CPU]
    assert last.message == "adb: device offline"
    assert last.failure_class == "DEVICE_ERROR"


def test_traces_are_power_and_the_hottest_zone(db):
    with Store.open(db, read_only=True) as store:
        (one,) = load_session(store, NEW)
    power, heat = one.runs[0].traces
    assert power.unit == "mW"
    assert heat.channel == "nsphmx-0, hottest"  # not the cooler skin zone
    assert power.samples == 8 * 100
    assert power.t_s[0] == 0.0
    assert power.values.max() == pytest.approx(2150, abs=100)
    # The second run starts 8 s later on the same clock.
    assert one.runs[1].phases[0].start_s == pytest.approx(8.0)
    assert {p.name for p in one.runs[0].phases} == {"idle_before", "timed"}
    with Store.open(db, read_only=True) as store:
        (bare,) = load_session(store, NEW, traces=False)
    assert bare.runs[0].traces == ()


def test_comparison_in_every_format(qhost, tmp_path):
    assert "Ship int8" in qhost("report")
    page = tmp_path / "r.html"
    assert qhost("report", "--output", str(page)).strip() == str(page)
    assert "Ship int8" in page.read_text()
    markdown = qhost("report", "quantization_comparison", "--format", "markdown")
    assert "| **`int8`** (ship this) | 76.0 [74.0–78.0]" in markdown
    assert "> **Emulated device.**" in markdown
    assert "`per-channel` failed (DEVICE_ERROR): adb: device offline" in markdown
    document = json.loads(qhost("report", "--format", "json"))
    assert document["verdict"]["variant"] == "int8"
    assert document["runs"][1]["figures"]["latency_ms"]["provenance"] == "emulated_device"
    assert len(document["runs"][1]["blocks"]["latency_ms"]) == 8


def test_regression_finds_the_slower_session(qhost):
    text = qhost("report", "regression")
    assert f"Session {NEW} against {OLD}" in text
    document = json.loads(qhost("report", "regression", "--format", "json"))
    changed, same = document["tables"]
    assert {row[1] for row in changed["rows"]} == {"Latency, median"}
    assert {row[0] for row in changed["rows"]} == {"fp16", "int8", "int8[calibration=mse]"}
    for row in changed["rows"]:
        assert row[-1] == "worse"
        low, high = (float(x) for x in re.findall(r"[+-][\d.]+", row[5]))
        assert low < 5.0 < high
    assert all(row[-1] == "same" for row in same["rows"])
    back = json.loads(
        qhost("report", "regression", "--session", OLD, "--baseline", NEW, "--format", "json")
    )
    assert {row[-1] for row in back["tables"][0]["rows"]} == {"better"}


def test_regression_refuses_what_cannot_be_compared(qhost):
    with pytest.raises(UserError, match="own baseline"):
        qhost("report", "regression", "--session", NEW, "--baseline", NEW)
    with pytest.raises(UserError, match="No session before"):
        qhost("report", "regression", "--session", OLD)


def test_device_health_tells_failures_throttling_and_changes(qhost, tmp_path):
    document = json.loads(qhost("report", "device_health", "--format", "json"))
    findings = " ".join(document["findings"])
    assert "failed runs: 2 DEVICE_ERROR" in findings
    assert "throttled in 25% of its blocks" in findings
    devices, changes, failures = document["tables"]
    row = dict(zip(devices["columns"], devices["rows"][0], strict=True))
    assert row["Sessions"] == 2
    assert row["Runs ok / failed / invalid"] == "6 / 2 / 0"
    assert row["Throttled blocks"] == "16 of 64"
    assert changes["rows"][0][2:] == ["build", "build-0", "build-1"]
    assert len(failures["rows"]) == 2
    page = tmp_path / "health.html"
    qhost("report", "device_health", "--output", str(page))
    assert "16 of 64" in page.read_text()


def test_energy_ranks_and_turns_the_interval_over(qhost):
    document = json.loads(qhost("report", "energy", "--format", "json"))
    assert document["emulated"] is True
    assert "least energy with int8[calibration=mse]" in document["lead"]
    table = document["tables"][0]
    fp16 = dict(zip(table["columns"], table["rows"][0], strict=True))
    assert fp16["Net per inference"]["value"] == pytest.approx(8.4)
    per_joule = fp16["Inferences per J"]
    assert per_joule["value"] == pytest.approx(1e3 / 8.4)
    assert per_joule["ci"] == pytest.approx([1e3 / (8.4 * 1.04), 1e3 / (8.4 * 0.96)])
    assert "int8[calibration=mse]" in qhost("report", "energy")  # not taken for markup


@pytest.mark.parametrize("suffix", ["html", "png", "svg"])
def test_visualize_from_session_and_from_file(qhost, tmp_path, suffix):
    shown = tmp_path / f"trace.{suffix}"
    assert qhost("visualize", "--plot-type", "trace", "--output-path", str(shown)).strip() == str(
        shown
    )
    assert shown.stat().st_size > 10_000
    comparison = tmp_path / "mobilenet_v2_comparison.json"
    qhost("report", "--output", str(comparison))
    other = tmp_path / f"pareto.{suffix}"
    qhost("visualize", "--results-path", str(comparison), "--output-path", str(other), named=False)
    assert other.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("visualize", "--plot-type", "rader", "--output-path", "x.png"), "Did you mean radar"),
        (("visualize", "--output-path", "x.pdf"), "Cannot draw into"),
        (("visualize", "--plot-type", "layers", "--output-path", "x.png"), "Nothing to draw"),
        (("visualize", "--session", "2026112", "--output-path", "x.png"), "20261121-120000-aaa1"),
        (("report", "energie"), "Did you mean energy"),
        (("report", "--format", "pdf"), "Unknown format"),
        (("report", "--output", "x.txt"), "No format known"),
        (("report", "--model", "resnet"), "Unknown model"),
        (("report", "energy", "--baseline", OLD), "means nothing to energy"),
    ],
)
def test_bad_input_is_one_clear_line(qhost, tmp_path, args, says):
    with pytest.raises(UserError, match=says):
        qhost(*args)
    assert list(tmp_path.iterdir()) == []


def test_the_other_kind_of_database_is_named(qhost, tmp_path):
    (tmp_path / "qhost-mock.duckdb").touch()
    with pytest.raises(UserError, match="with --mock"):
        qhost("report", named=False)


def test_a_narrow_terminal_keeps_the_names_of_the_rows():
    energy = Figure("energy_mj", 0.0871, "mJ", Provenance.MEASURED, 6, 0.0858, 0.0886)
    table = SheetTable(
        "T", ("Variant", "Net per inference", "Gross per inference", "Remark"),
        (("fp16", energy, energy, ""), ("int8", energy, energy, "")),
    )  # fmt: skip
    sheet = Sheet("energy", "Energy", "s", "lead", (), (table,), emulated=False)
    out = io.StringIO()
    Console(file=out, width=44).print(sheet.terminal())
    lines = out.getvalue().splitlines()
    assert any(line.startswith("fp16 ") for line in lines)
    assert any(line.startswith("int8 ") for line in lines)
    assert "Remark" not in out.getvalue()  # nothing stands in it
    assert "[0.0858–0.0886]" in out.getvalue()
