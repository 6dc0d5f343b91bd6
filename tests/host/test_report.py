"""The terminal table, the comparison document and the verdict, on rows without a database."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from host.compare import Constraints, Drop
from host.errors import RunStatus, UserError
from host.report import document
from host.report.charts import PLOT_TYPES
from host.report.data import SessionReport
from host.report.markdown import comparison_markdown
from host.report.page import report_page
from host.report.static import draw_plot
from host.report.table import session_table
from host.report.text import column_decimals, interval_text, value_text, wrap_variant
from host.report.verdict import decide, pareto_front, with_verdict
from quant.figures import Figure, Provenance

_spec = importlib.util.spec_from_file_location(
    "report_rows", Path(__file__).with_name("report_rows.py")
)
assert _spec and _spec.loader
rows = sys.modules.setdefault("report_rows", importlib.util.module_from_spec(_spec))
_spec.loader.exec_module(rows)


def rendered(session: SessionReport, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(session_table(session, width))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_table_shows_every_figure_whole(width):
    text = rendered(rows.session(awkward=True), width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert "…" not in text  # rich's mark of a cut cell
    for word in ("0.900", "0.891–0.909", "76.5", "2.4", "20.68", "68.4–75.6", "HTP emulator"):
        assert word in text, word


def test_table_tells_failures_absent_and_invalid_figures():
    text = " ".join(rendered(rows.session(awkward=True), 100).split())
    assert "cluster failed (TIMEOUT): no answer within 60 s" in text
    assert "skipped (USER_ERROR): <b>needs torch</b>" in text
    assert "Energy missing, per-channel: it was charging" in text
    assert "Latency not valid (!), int4[group=64]: throttled" in text
    assert "1.100!" in text
    assert "EMULATED DEVICE. No time, power, energy, heat or memory figure" in text
    assert "Basis: published latencies." in text


def test_mixed_provenance_marks_every_figure():
    session = rows.session(3)
    other = replace(session.runs[1].figures["latency_ms"], provenance=Provenance.PREDICTED)
    runs = (session.runs[0], rows.with_figure(session.runs[1], other), session.runs[2])
    text = rendered(replace(session, runs=runs), 100)
    assert "mixed" in text
    assert "4.000 E" in text
    assert "1.000 P" in text
    assert "P predicted by a fitted model" in " ".join(text.split())


def test_decimals_follow_the_interval():
    figure = Figure("latency_ms", 1.23456, "ms", Provenance.MEASURED, 10, 1.2222, 1.2469)
    assert value_text(figure, unit=True) == "1.235 ms"
    assert interval_text(figure) == "1.222–1.247"
    negative = Figure("sqnr_db", -1.0, "dB", Provenance.ORT_CPU, 10, -2.0, 0.5)
    assert interval_text(negative) == "-2.0 to 0.5"
    assert value_text(Figure("spill_bytes", 0.0, "bytes", Provenance.COMPILER, 1)) == "0"
    fraction = Figure("accuracy", 0.7612, "fraction", Provenance.ORT_CPU, 256, 0.74, 0.78)
    assert value_text(fraction, unit=True) == "76.1 %"


def test_a_column_shares_its_decimals():
    session = rows.session(3)
    assert column_decimals(session, "latency_ms") == 3
    assert column_decimals(session, "memory_mb") == 2


@pytest.mark.parametrize("width", [8, 12, 20])
def test_wrapped_names_lose_nothing(width):
    for name in rows.NAMES:
        lines = wrap_variant(name, width)
        assert "".join(lines) == name
        assert max(map(len, lines)) <= width


def test_verdict_is_the_fastest_within_the_accuracy_limit():
    verdict = decide(rows.session())
    assert verdict.variant == "int8"  # int8[calibration=mse] is faster and 2.5 pt down
    assert "emulated, not measured" in verdict.headline
    assert (
        "int8[calibration=mse]: accuracy is 2.50 pt below the float model, limit 1 pt."
        in verdict.reasons
    )
    loose = decide(rows.session(), Constraints(Drop(0.03, True, "3pt")))
    assert loose.variant == "int8[calibration=mse]"


def test_verdict_under_limits_and_without_any():
    session = rows.session()
    small = decide(session, Constraints(Drop(0.03, True, "3pt"), max_size_mb=3.5))
    assert small.variant == "int8,sparse[sparsity=0.5]+hybrid"  # 3.5 MB, 1.4 ms
    none = decide(session, Constraints(max_latency_ms=0.1))
    assert none.variant is None
    assert "No variant meets the constraints." in none.headline
    assert "int8: latency is 1 ms, limit 0.1 ms." in none.reasons
    measured = decide(rows.session(3, Provenance.MEASURED))
    assert "not measured" not in measured.headline


def test_an_invalid_latency_is_never_recommended():
    session = rows.session(3)
    bad = replace(session.runs[1].figures["latency_ms"], valid=False, reason="throttled")
    runs = (session.runs[0], rows.with_figure(session.runs[1], bad), session.runs[2])
    assert decide(replace(session, runs=runs)).variant == "fp16"


def test_figures_of_different_provenance_are_not_ranked():
    session = rows.session(3)
    fast = replace(
        session.runs[2].figures["latency_ms"], value=0.1, provenance=Provenance.PREDICTED
    )
    mixed = replace(session, runs=(*session.runs[:2], rows.with_figure(session.runs[2], fast)))
    assert decide(mixed).variant is None
    assert pareto_front(mixed) == []


def test_an_unsettled_accuracy_is_said():
    session = rows.session(2)
    drop = replace(session.runs[1].figures["accuracy_drop"], ci_high=0.014)
    runs = (session.runs[0], rows.with_figure(session.runs[1], drop))
    verdict = decide(replace(session, runs=runs))
    assert verdict.variant == "int8"
    assert any("256 samples" in r and "1.40 pt" in r for r in verdict.reasons)
    assert not any("256 samples" in r for r in decide(session).reasons)


def test_variants_not_told_apart_are_chosen_by_accuracy():
    session = rows.session(3)
    near = replace(session.runs[2].figures["latency_ms"], value=1.005, ci_low=0.995, ci_high=1.015)
    run = rows.with_figure(session.runs[2], near)
    for metric, value in (("accuracy", 0.765), ("accuracy_drop", 0.0)):
        run = rows.with_figure(run, replace(run.figures[metric], value=value))
    verdict = decide(replace(session, runs=(*session.runs[:2], run)))
    assert verdict.variant == "int8[calibration=mse]"
    assert any("do not tell it from int8" in r for r in verdict.reasons)


def test_without_labels_disagreement_is_the_drop():
    session = rows.session(2)
    bare = []
    for row, agreement in zip(session.runs, (1.0, 0.95), strict=True):
        figures = {k: f for k, f in row.figures.items() if not k.startswith("accuracy")}
        figures["agreement"] = rows.figure("agreement", agreement, Provenance.HTP_EMULATOR)
        bare.append(replace(row, figures=figures))
    verdict = decide(replace(session, runs=tuple(bare)))
    assert verdict.variant == "fp16"
    assert any(r.startswith("int8: accuracy is 5.00 pt below") for r in verdict.reasons)


def test_pareto_front_is_ordered_and_undominated():
    assert pareto_front(rows.session()) == ["int8[calibration=mse]", "int8", "fp16"]


def test_document_round_trip_keeps_every_figure():
    session = rows.session(awkward=True)
    session = replace(session, verdict=decide(session))
    text = document.dumps(session)
    back = document.from_document(json.loads(text))
    assert document.dumps(back) == text
    for ours, theirs in zip(session.runs, back.runs, strict=True):
        assert dict(theirs.figures) == dict(ours.figures)
        assert theirs.status is ours.status
        for line, other in zip(ours.traces, theirs.traces, strict=True):
            np.testing.assert_allclose(other.values, line.values, rtol=1e-5)
            np.testing.assert_allclose(other.t_s, line.t_s, atol=1e-5)


def test_every_figure_of_the_document_is_complete():
    written = document.to_document(rows.session(awkward=True))
    assert written["schema"] == {"name": "qhost.comparison", "version": 1}
    figures = [f for run in written["runs"] for f in run["figures"].values()]
    assert len(figures) == 10 * 8
    keys = {"value", "ci", "unit", "provenance", "n", "valid", "reason"}
    assert all(set(f) == keys for f in figures)
    absent = written["runs"][3]["figures"]["energy_mj"]
    assert (absent["value"], absent["ci"], absent["reason"]) == (None, None, "it was charging")


def test_a_nan_becomes_null():
    session = rows.session(1)
    bad = replace(session.runs[0].figures["power_mw"], value=float("nan"))
    text = document.dumps(replace(session, runs=(rows.with_figure(session.runs[0], bad),)))
    assert json.loads(text)["runs"][0]["figures"]["power_mw"]["value"] is None


def test_lists_of_numbers_stand_on_one_line():
    text = document.dumps(rows.session(1, samples=2000))
    assert len(text.splitlines()) < 1000
    assert json.loads(text) == document.to_document(rows.session(1, samples=2000))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not a qhost comparison"),
        ('{"schema": {"name": "qhost.comparison", "version": 99}}', "version 99"),
        ('{"schema": {"name": "qhost.comparison", "version": 1}}', "is damaged"),
    ],
)
def test_bad_comparison_files_are_named(tmp_path, content, says):
    path = tmp_path / "x_comparison.json"
    path.write_text(content)
    with pytest.raises(UserError, match=says) as caught:
        document.read(path)
    assert caught.value.hint
    with pytest.raises(UserError, match="Cannot read"):
        document.read(tmp_path / "none.json")


def odd_sessions():
    """Sessions that a bad day leaves behind."""
    whole = rows.session(3)
    failed = tuple(
        replace(r, status=RunStatus.FAILED, message="", figures={}, traces=(), phases=(), layers=())
        for r in whole.runs
    )
    zero = rows.with_figure(
        whole.runs[1], replace(whole.runs[1].figures["latency_ms"], value=0.0, ci_low=0.0)
    )
    gaps = replace(
        whole.runs[1],
        traces=tuple(
            replace(t, values=np.full_like(t.values, np.nan)) for t in whole.runs[1].traces
        ),
    )
    perplexity = tuple(
        rows.with_figure(
            replace(r, accuracy_metric="perplexity", accuracy_higher_is_better=False),
            Figure("accuracy", 12.5 + i, "", Provenance.ORT_CPU, 100, 12.0, 14.0),
        )
        for i, r in enumerate(whole.runs)
    )
    return {
        "one": replace(whole, runs=whole.runs[:1]),
        "no fp16": replace(whole, runs=whole.runs[1:]),
        "none": replace(whole, runs=()),
        "all failed": replace(whole, runs=failed),
        "zero": replace(whole, runs=(whole.runs[0], zero)),
        "empty trace": replace(whole, runs=(whole.runs[0], gaps)),
        "lower is better": replace(whole, runs=perplexity),
        "no figures": replace(whole, runs=tuple(replace(r, figures={}) for r in whole.runs)),
    }


@pytest.mark.parametrize("name", odd_sessions())
def test_odd_sessions_are_reported_too(name):
    session = odd_sessions()[name]
    for run in session.runs:
        assert run.variant in rendered(session, 100)
        assert run.variant in comparison_markdown(session)
    assert session.session_id in report_page(session)
    assert document.from_document(json.loads(document.dumps(session))).runs is not None
    for kind in PLOT_TYPES:
        try:
            draw_plot(with_verdict(session), kind)
        except UserError as error:
            assert "Nothing to draw" in error.message
    if name == "lower is better":
        verdict = decide(session, Constraints())
        assert "perplexity" in verdict.headline
