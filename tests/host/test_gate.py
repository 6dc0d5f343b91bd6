from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from host.cli import gate as gate_verb
from host.errors import ExitCode, FailureClass, RunStatus, UserError
from host.gate import Limit, Outcome, Subject, judge, judge_blocks, parse_limits
from host.report.data import RunReport, SessionReport
from host.report.document import dumps
from host.store import Block, RawBatch, RunRow, SessionRow, Store
from quant.figures import METRICS, Figure, Provenance

LATENCY = Limit("latency_ms", 0.05, False, "5%")
ACCURACY = Limit("accuracy", 0.005, True, "0.5pt")


def figure(metric, value, provenance=Provenance.MEASURED, **more):
    return Figure(metric, value, METRICS[metric].unit, provenance, 10, **more)


def subject(name="net int8 sm8650", *, blocks=None, status=RunStatus.OK, **values):
    figures = {
        metric: value if isinstance(value, Figure) else figure(metric, value)
        for metric, value in values.items()
    }
    return Subject(name, status, figures, blocks or {}, "it broke")


def one(old, new, limit=LATENCY):
    (judgement,) = judge([old], [new], [limit])
    return judgement


def blocks_around(value, n=10, cv=0.01, seed=0):
    return value * (1 + cv * np.random.default_rng(seed).standard_normal(n))


def test_limits_are_parsed():
    assert parse_limits("latency=5%, accuracy=0.5pt,memory_mb=10%") == (
        LATENCY, ACCURACY, Limit("memory_mb", 0.10, False, "10%"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("latencey=5%", "Unknown metric 'latencey'. Did you mean latency"),
        ("latency", "is no limit"),
        ("latency=fast", "is no limit"),
        ("latency=-5%", "is no limit"),
        ("latency=2pt", "Points are of a fraction, and latency_ms is in ms. Write latency=2%"),
        (" , ", "No limit is given"),
    ],
)
def test_bad_limits_are_named(text, message):
    with pytest.raises(UserError) as caught:
        parse_limits(text)
    assert message in str(caught.value)


def test_a_regression_must_be_certain_and_reach_the_limit():
    base = blocks_around(2.0, seed=1)
    assert judge_blocks(blocks_around(2.2, seed=2), base, 0.05)[0] is Outcome.REGRESSION
    assert judge_blocks(blocks_around(2.0, seed=2), base, 0.05)[0] is Outcome.PASS
    # Certainly slower, but certainly by less than the limit.
    outcome, change = judge_blocks(blocks_around(2.04, seed=2), base, 0.05)
    assert outcome is Outcome.PASS and 0 < change.low < change.value < change.high < 0.05
    noisy = blocks_around(2.1, n=4, cv=0.2, seed=3)
    assert judge_blocks(noisy, blocks_around(2.0, n=4, cv=0.2, seed=4), 0.05)[0] is (
        Outcome.UNDECIDED
    )
    assert judge_blocks(blocks_around(1.5, seed=2), base, 0.05)[0] is Outcome.PASS


def test_blocks_decide_where_both_sides_have_them():
    old = subject(latency_ms=2.0, blocks={"latency_ms": blocks_around(2.0, seed=1)})
    new = subject(latency_ms=2.3, blocks={"latency_ms": blocks_around(2.3, seed=2)})
    found = one(old, new)
    assert found.outcome is Outcome.REGRESSION
    assert "2 -> 2.3 ms" in found.reason and "worse" in found.reason and "limit 5%" in found.reason
    better = one(new, old)
    assert better.outcome is Outcome.PASS and "better" in better.reason


def test_throughput_gets_worse_downwards():
    limit = parse_limits("throughput=5%")[0]
    values = {"throughput_items_per_sec": blocks_around(100, seed=1)}
    slower = {"throughput_items_per_sec": blocks_around(90, seed=2)}
    old = subject(throughput_items_per_sec=100.0, blocks=values)
    new = subject(throughput_items_per_sec=90.0, blocks=slower)
    assert one(old, new, limit).outcome is Outcome.REGRESSION
    assert one(new, old, limit).outcome is Outcome.PASS


def test_accuracy_in_points_is_exact_and_knows_its_direction():
    assert one(subject(accuracy=0.900), subject(accuracy=0.895), ACCURACY).outcome is Outcome.PASS
    worse = one(subject(accuracy=0.900), subject(accuracy=0.894), ACCURACY)
    assert worse.outcome is Outcome.REGRESSION and "0.60 pt worse" in worse.reason
    error = replace(subject(accuracy=0.10), accuracy_higher_is_better=False)
    more = replace(subject(accuracy=0.12), accuracy_higher_is_better=False)
    assert one(error, more, ACCURACY).outcome is Outcome.REGRESSION
    assert one(more, error, ACCURACY).outcome is Outcome.PASS


def test_figures_without_blocks_use_their_intervals_and_sizes_are_exact():
    old = subject(latency_ms=figure("latency_ms", 2.0, ci_low=1.95, ci_high=2.05))
    slow = subject(latency_ms=figure("latency_ms", 2.3, ci_low=2.25, ci_high=2.35))
    near = subject(latency_ms=figure("latency_ms", 2.06, ci_low=2.0, ci_high=2.12))
    assert one(old, slow).outcome is Outcome.REGRESSION
    assert one(old, near).outcome is Outcome.UNDECIDED
    size = parse_limits("size=10%")[0]
    assert one(subject(model_size_bytes=100.0), subject(model_size_bytes=111.0), size).outcome is (
        Outcome.REGRESSION
    )
    assert one(subject(model_size_bytes=100.0), subject(model_size_bytes=110.0), size).outcome is (
        Outcome.PASS
    )


def test_other_provenance_is_not_compared():
    new = subject(latency_ms=figure("latency_ms", 9.0, Provenance.EMULATED_DEVICE))
    found = one(subject(latency_ms=2.0), new)
    assert found.outcome is Outcome.UNDECIDED
    assert found.reason == "not comparable: measured before, emulated_device now"


def test_a_run_that_fails_now_is_a_regression_and_one_that_failed_before_is_not():
    bad = subject(latency_ms=2.0, status=RunStatus.FAILED)
    found = one(subject(latency_ms=2.0), bad)
    assert found.outcome is Outcome.REGRESSION and "is now failed: it broke" in found.reason
    assert judge([bad], [subject(latency_ms=2.0)], [LATENCY]) == []


def test_missing_things_are_said():
    old, other = subject(latency_ms=2.0), subject("net int4 sm8650", latency_ms=1.0)
    found = judge([old, other], [old], [LATENCY])
    assert [j.outcome for j in found] == [Outcome.PASS, Outcome.UNDECIDED]
    assert found[1].reason == "it is not in the new session"
    with pytest.raises(UserError, match="no variant in common"):
        judge([old], [other], [LATENCY])
    with pytest.raises(UserError, match="No run of the two sides has a figure energy_mj"):
        judge([old], [old], parse_limits("energy=5%"))
    invalid = subject(latency_ms=figure("latency_ms", 2.0, valid=False, reason="throttled"))
    assert one(old, invalid).reason == "the new session has no valid figure: throttled"


def test_false_alarms_and_misses_in_small():
    """Acceptance: 1,000 pairs in tools/bench_stats.py. Block CV 3 %, 10 blocks, limit 5 %."""
    rng = np.random.default_rng(12)
    old, new = 1 + 0.03 * rng.standard_normal((2, 200, 10))
    alarms = sum(
        judge_blocks(b, a, 0.05)[0] is Outcome.REGRESSION for a, b in zip(old, new, strict=True)
    )
    found = sum(
        judge_blocks(1.05 * b, a, 0.05)[0] is Outcome.REGRESSION
        for a, b in zip(old, new, strict=True)
    )
    assert alarms <= 8 and found >= 174


# The command -------------------------------------------------------------------------------


def fill(store, session_id, latency_ms, when, *, seed, int4_ok=True):
    store.new_session(
        SessionRow(session_id, "p", emulated=False, profile="rapid", seed=0, created_at=when)
    )
    for variant in ("int8", "int4"):
        run = RunRow(
            run_id=f"{session_id}-{variant}", session_id=session_id, model_name="net",
            model_type="vision", model_fingerprint="f", task_fingerprint="t", soc="sm8650",
            device="Phone", device_serial="SER", method=variant, variant=variant,
            profile="rapid", accuracy_metric="top1", accuracy_higher_is_better=True,
        )  # fmt: skip
        store.add_run(run)
        rng = np.random.default_rng([seed, len(variant)])
        spread = latency_ms * 1000 * (1 + 0.01 * rng.standard_normal(6))
        store.append(
            session_id, run.run_id,
            [
                RawBatch(i + 1, run.run_id,
                         block=Block(i, 5, i * 10**9, i * 10**9 + int(5000 * us),
                                     np.full(5, us, np.float32)))
                for i, us in enumerate(spread)
            ],
        )  # fmt: skip
        if variant == "int4" and not int4_ok:
            store.finish_run(
                run.run_id, RunStatus.FAILED, failure_class=FailureClass.TIMEOUT, message="hung"
            )
            continue
        store.finish_run(
            run.run_id,
            RunStatus.OK,
            figures=[figure("latency_ms", latency_ms), figure("accuracy", 0.9)],
        )


@pytest.fixture(scope="module")
def gate(tmp_path_factory):
    path = tmp_path_factory.mktemp("gate") / "q.duckdb"
    with Store.open(path, create=True) as store:
        fill(store, "20260101-a", 2.0, datetime(2026, 1, 1), seed=1)
        fill(store, "20260102-b", 2.0, datetime(2026, 1, 2), seed=2)
        fill(store, "20260103-c", 2.4, datetime(2026, 1, 3), seed=3)
        fill(store, "20260104-d", 2.0, datetime(2026, 1, 4), seed=4, int4_ok=False)
    app = typer.Typer()

    @app.callback()
    def root() -> None:
        """Several verbs, as in qhost."""

    gate_verb.register(app)

    def call(*args):
        args = ["gate", *args, "--db-path", str(path)]
        result = CliRunner().invoke(app, args, standalone_mode=False)
        if result.exception:
            raise result.exception
        return result.return_value, result.stdout

    return call


LIMITS = ("--max-regression", "latency=5%,accuracy=0.5pt")


def test_command_passes_and_fails(gate):
    code, out = gate("--baseline", "20260101-a", "--session", "20260102", *LIMITS)
    assert code == ExitCode.OK and "4 comparisons: 4 pass" in out
    code, out = gate("--baseline", "20260101-a", "--session", "20260103-c", *LIMITS)
    assert code == ExitCode.REGRESSION
    assert "REGRESSION net int8 sm8650, latency_ms: 2 -> 2.4 ms" in out
    assert "2 pass, 2 regression" in out
    code, out = gate("--baseline", "20260101-a", *LIMITS)
    assert code == ExitCode.REGRESSION and "it was ok and is now failed: hung" in out


def test_command_writes_junit_and_summary(gate, tmp_path):
    junit, summary = tmp_path / "gate.xml", tmp_path / "out" / "gate.md"
    gate(
        "--baseline", "20260101-a", "--session", "20260103-c", *LIMITS,
        "--junit", str(junit), "--summary", str(summary),
    )  # fmt: skip
    suite = ET.parse(junit).getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("4", "2", "0")
    failed = [c for c in suite.findall("testcase") if c.find("failure") is not None]
    assert {c.get("name") for c in failed} == {"latency_ms"}
    assert "2 -> 2.4 ms" in failed[0].find("failure").get("message")
    lines = summary.read_text().splitlines()
    assert lines[0] == "### qhost gate: 4 comparisons: 2 pass, 2 regression"
    assert lines[6].startswith("| net int8 sm8650 | latency_ms | regression |")


def test_a_comparison_file_is_a_baseline_too(gate, tmp_path):
    runs = tuple(
        RunReport("r", v, v, RunStatus.OK,
                  figures={"latency_ms": figure("latency_ms", 2.0, ci_low=1.98, ci_high=2.02)})
        for v in ("int8", "int4")
    )  # fmt: skip
    session = SessionReport("s", datetime(2026, 1, 1), "Phone", "sm8650", "net", "vision", runs)
    path = tmp_path / "net_comparison.json"
    path.write_text(dumps(session))
    code, out = gate(
        "--baseline", str(path), "--session", "20260102-b", "--max-regression", "latency=5%"
    )
    assert code == ExitCode.OK and "2 comparisons" in out
    document = json.loads(path.read_text())
    document["schema"]["version"] = 99
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match="comparison version 99; this qhost reads up to"):
        gate("--baseline", str(path), "--max-regression", "latency=5%")


def test_bad_input_of_the_command(gate):
    with pytest.raises(UserError, match="Did you mean 20260101-a"):
        gate("--baseline", "20260101-x", *LIMITS)
    with pytest.raises(UserError, match="both baseline and session"):
        gate("--baseline", "20260104-d", *LIMITS)
    with pytest.raises(UserError, match=r"No run of the two sides has a figure energy_mj"):
        gate("--baseline", "20260101-a", "--max-regression", "energy=5%")


def test_strict_fails_on_what_cannot_be_decided(gate, tmp_path):
    args = ("--baseline", "20260104-d", "--session", "20260102-b")
    code, _ = gate(*args, *LIMITS)
    assert code == ExitCode.OK
    wide = ("--max-regression", "latency=0.1%")
    assert "UNDECIDED" in gate(*args, *wide)[1]
    assert gate(*args, *wide)[0] == ExitCode.OK
    assert gate(*args, *wide, "--strict")[0] == ExitCode.REGRESSION
