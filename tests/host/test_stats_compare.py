"""The verdict of a comparison, Pareto fronts with intervals, and the rules that cross-check."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from host.compare import Constraints, Drop, compare, parse_drop, parse_objective
from host.crosscheck import cross_check
from host.errors import RunStatus, UserError
from host.gate import Subject
from host.stats.intervals import Estimate
from host.stats.pareto import dominance, pareto_front
from quant.figures import METRICS, Figure, Provenance

HALF_POINT = Drop(0.005, True, "0.5 pt")


def variant(name, latency, accuracy=0.9, drop=0.0, *, seed=0, source=Provenance.MEASURED, **more):
    """A run with ten blocks of 0.5 % spread around `latency`."""
    blocks = latency * (1 + 0.005 * np.random.default_rng(seed).standard_normal(10))
    low, high = sorted(blocks)[1], sorted(blocks)[-2]

    def figure(metric, value, provenance=source, **bounds):
        return Figure(metric, value, METRICS[metric].unit, provenance, 10, **bounds)

    figures = {
        "latency_ms": figure("latency_ms", float(np.median(blocks)), ci_low=low, ci_high=high),
        "accuracy": figure("accuracy", accuracy, Provenance.HTP_EMULATOR),
        "accuracy_drop": figure(
            "accuracy_drop", drop, Provenance.HTP_EMULATOR, ci_low=drop - 0.002,
            ci_high=drop + 0.002,
        ),
    }  # fmt: skip
    figures |= {metric: figure(metric, value) for metric, value in more.items()}
    return Subject(name, RunStatus.OK, figures, {"latency_ms": blocks})


FP16 = variant("fp16", 4.0, 0.90, seed=1)
INT8 = variant("int8", 2.0, 0.899, 0.001, seed=2, energy_mj=2.0, model_size_bytes=2e6)
INT4 = variant("int4", 1.5, 0.87, 0.03, seed=3)


def test_drops_and_objectives_are_parsed():
    assert parse_drop("0.5pt") == HALF_POINT
    assert parse_drop(" 5 % ") == Drop(0.05, False, "5%")
    for bad in ("0.5", "-1pt", "pt", "five%"):
        with pytest.raises(UserError, match="no accuracy drop"):
            parse_drop(bad)
    assert parse_objective("energy") == "energy_mj"
    with pytest.raises(UserError, match="Did you mean energy"):
        parse_objective("enery")
    with pytest.raises(UserError):
        parse_objective("accuracy")


def test_the_fastest_that_meets_the_constraints_is_shipped_with_reasons():
    found = compare([FP16, INT8, INT4], Constraints(HALF_POINT))
    assert found.variant == "int8"
    ratio = found.against_baseline["int8"]
    assert ratio.value == pytest.approx(0.5, abs=0.005) and 0.49 < ratio.low < ratio.high < 0.51
    assert found.headline == (
        "Ship int8: latency, median 1.999 ms, "
        f"{ratio.value:.3f} x fp16 [{ratio.low:.3f}, {ratio.high:.3f}], accuracy 0.899."
    )
    assert "int4: accuracy is 3.00 pt below the float model, limit 0.5 pt." in found.reasons
    assert found.constraints == ("accuracy at most 0.5 pt below the float model",)
    assert any(
        "latency, energy and size: measured; accuracy: HTP emulator" in r for r in found.reasons
    )
    assert compare([FP16, INT8, INT4], Constraints()).variant == "int4"


def test_a_relative_drop_is_of_the_float_models_accuracy():
    # 3 points of 0.90 are 3.33 %.
    assert compare([INT4], Constraints(Drop(0.034, False, "3.4%"))).variant == "int4"
    assert compare([INT4], Constraints(Drop(0.033, False, "3.3%"))).variant is None


def test_a_limit_within_the_interval_is_met_with_a_doubt():
    near = variant("int8", 2.0, 0.896, 0.004)
    found = compare([near], Constraints(HALF_POINT))
    assert found.variant == "int8"
    assert any("may be as large as 0.60 pt, limit 0.5 pt: evaluate" in r for r in found.reasons)


@pytest.mark.parametrize(
    ("constraints", "why"),
    [
        (Constraints(max_latency_ms=1.0), "limit 1 ms"),
        (Constraints(max_size_mb=1.0), "size is 2 MB, limit 1 MB"),
        (Constraints(max_energy_mj=1.5), "energy is 2 mJ, limit 1.5 mJ"),
    ],
)
def test_other_constraints(constraints, why):
    found = compare([INT8], constraints)
    assert found.variant is None and found.headline == "No variant meets the constraints."
    assert why in found.reasons[0]
    bare = replace(INT8, figures={"latency_ms": INT8.figures["latency_ms"]})
    reason = compare([bare], Constraints(HALF_POINT)).reasons[0]
    assert reason == "int8: no accuracy drop is known to hold against the limit."


def test_what_blocks_cannot_tell_apart_is_decided_by_accuracy():
    twin = variant("qat", 2.001, 0.905, 0.0, seed=5)
    found = compare([FP16, INT8, twin], Constraints())
    assert found.variant == "qat"
    assert found.reasons[0].startswith("In latency these blocks do not tell it from int8:")
    slower = variant("qat", 2.1, 0.905, 0.0, seed=5)
    assert compare([FP16, INT8, slower], Constraints()).variant == "int8"


def test_an_accuracy_within_its_interval_does_not_decide_but_energy_does():
    # 0.900 against 0.899, each known to +-0.002: the twin is no more accurate, and costs more.
    twin = variant("qat", 2.001, 0.900, 0.0, seed=5, energy_mj=2.4)
    assert compare([INT8, twin], Constraints()).variant == "int8"
    frugal = variant("qat", 2.001, 0.898, 0.002, seed=5, energy_mj=1.6)
    assert compare([INT8, frugal], Constraints()).variant == "qat"


def test_mixed_provenance_is_not_ranked():
    emulated = variant("int4", 1.0, source=Provenance.EMULATED_DEVICE)
    found = compare([FP16, INT8, emulated], Constraints())
    assert found.variant is None and "differ in provenance" in found.headline
    assert "emulated device, not measured and measured" in found.reasons[0]
    other = replace(
        INT8,
        figures=INT8.figures
        | {"accuracy": replace(INT8.figures["accuracy"], provenance=Provenance.ORT_CPU)},
    )
    found = compare([FP16, other], Constraints())
    assert found.variant == "int8" and found.front == ()
    assert "Accuracies differ in provenance, so they are not ranked." in found.reasons


def test_runs_without_a_result_are_named():
    failed = replace(INT4, status=RunStatus.FAILED, message="Conv 3 cannot be int4")
    hot = replace(
        INT8,
        figures={
            "latency_ms": replace(INT8.figures["latency_ms"], valid=False, reason="throttled")
        },
    )
    found = compare([FP16, failed, hot], Constraints())
    assert found.variant == "fp16"
    assert "int4: failed: Conv 3 cannot be int4" in found.reasons
    assert "int8: no valid latency: throttled." in found.reasons
    nothing = compare([failed], Constraints())
    assert nothing.variant is None and "none has a valid latency" in nothing.headline
    assert nothing.reasons == ("int4: failed: Conv 3 cannot be int4",)


def test_a_dominated_variant_is_named_and_off_the_front():
    worse = variant("cluster", 3.0, 0.89, 0.01, seed=7)
    found = compare([FP16, INT8, INT4, worse], Constraints())
    assert found.front == ("int4", "int8", "fp16")
    assert (
        "int8 is no worse in latency and accuracy than cluster, and better in one." in found.reasons
    )


def cost(value, half=0.0):
    return Estimate(value, value - half, value + half, 10)


def test_front_keeps_what_is_beaten_only_within_noise():
    points = {
        "a": {"x": cost(1.0, 0.1), "y": cost(1.0, 0.1)},
        "b": {"x": cost(1.05, 0.1), "y": cost(1.05, 0.1)},
        "c": {"x": cost(2.0, 0.1), "y": cost(1.0, 0.1)},
        "d": {"x": cost(3.0, 0.1), "y": cost(0.5, 0.1)},
        "e": {"x": cost(0.1)},
    }
    beaten = dominance(points, ("x", "y"))
    assert {name: (d.by, d.certain) for name, d in beaten.items()} == {
        "b": ("a", False), "c": ("a", True),
    }  # fmt: skip
    assert pareto_front(points, ("x", "y")) == ["a", "b", "d"]
    equal = {"a": {"x": cost(1.0)}, "b": {"x": cost(1.0)}}
    assert dominance(equal, ("x",)) == {}


def figures(**values):
    return {
        metric: Figure(metric, value, METRICS[metric].unit, Provenance.MEASURED, 6)
        for metric, value in values.items()
    }


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"latency_min_ms": 2.0, "latency_ms": 1.9}, "latency_order"),
        ({"latency_min_ms": 2.0, "throughput_items_per_sec": 600.0}, "throughput"),
        (
            {"power_mw": 2000.0, "throughput_items_per_sec": 100.0, "energy_gross_mj": 5.0},
            "energy",
        ),
        ({"energy_mj": 3.0, "energy_gross_mj": 2.0}, "net_energy"),
        ({"startup_ms": 10.0, "startup_warm_ms": 20.0}, "loads"),
        ({"agreement": 0.2}, "agreement"),
    ],
)
def test_figures_that_contradict_each_other_are_remarked(values, rule):
    odd = Subject("int8", RunStatus.OK, figures(**values))
    assert [remark.rule for remark in cross_check([odd])] == [rule]
    assert cross_check([replace(odd, status=RunStatus.INVALID)]) == []


def test_a_plain_run_has_no_remarks():
    plain = figures(
        latency_min_ms=1.9, latency_ms=2.0, latency_p90_ms=2.1, throughput_items_per_sec=498.0,
        power_mw=2000.0, energy_gross_mj=4.1, energy_mj=3.0, startup_ms=20.0, startup_warm_ms=4.0,
        agreement=0.99,
    )  # fmt: skip
    assert cross_check([Subject("int8", RunStatus.OK, plain)]) == []


def test_methods_are_checked_against_each_other():
    runs = [
        Subject(name, RunStatus.OK, figures(model_size_bytes=size, sqnr_db=sqnr))
        for name, size, sqnr in (("fp16", 4e6, 60.0), ("int8", 2e6, 40.0), ("int4", 2.1e6, 44.0))
    ]
    texts = {remark.rule: remark.text for remark in cross_check(runs)}
    assert set(texts) == {"sizes", "precision"}
    assert texts["sizes"].startswith("int4 is not smaller than int8 (2.1 and 2 MB)")
    assert "int4 is nearer to the float model than int8 (44.0 and 40.0 dB)" in texts["precision"]


def scored(name, scores):
    return Subject(f"net {name} sm8650", RunStatus.OK, {}, variant=name, scores=scores)


def test_a_method_unlike_all_others_is_found():
    rng = np.random.default_rng(0)
    base = (rng.random(400) < 0.9).astype(float)
    alike = [scored(name, np.where(rng.random(400) < 0.02, 1 - base, base)) for name in "abc"]
    assert cross_check(alike) == []
    odd = scored("d", rng.permutation(base) * (rng.random(400) < 0.7))
    (remark,) = cross_check([*alike, odd])
    assert remark.rule == "outputs" and remark.text.startswith("d is right and wrong")
    (pair,) = cross_check([alike[0], odd])
    assert pair.text.startswith("a and d are right and wrong on the same samples in ")
    # Fewer samples of one: the common ones are compared. Scores that are not 0/1 are not.
    assert cross_check([alike[0], scored("e", base[:100])]) == []
    assert cross_check([alike[0], scored("e", rng.random(400))]) == []
