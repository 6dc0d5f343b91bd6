"""The statistics against independent implementations, and small versions of tools/bench_stats."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from host.stats.changepoint import settles_at, warm_up_blocks
from host.stats.intervals import (
    median_absolute_deviation,
    median_interval,
    shift_interval,
    signed_rank_interval,
)
from host.stats.paired import accuracy_drop, ratio_independent, ratio_paired

ROOT = Path(__file__).resolve().parents[2]


def load_bench():
    spec = importlib.util.spec_from_file_location("bench_stats", ROOT / "tools/bench_stats.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_stats"] = module
    spec.loader.exec_module(module)
    return module


bench = load_bench()


@pytest.mark.parametrize("n", [6, 7, 10, 19, 20, 31])
def test_median_interval_is_the_shortest_that_the_binomial_allows(n):
    values = np.arange(n, dtype=float)
    found = median_interval(values)
    k = int(found.low) + 1
    assert found.high == n - k and found.n == n
    # P(the median lies outside) = 2 P(Bin(n, 1/2) < k)
    assert 2 * scipy.stats.binom.cdf(k - 1, n, 0.5) <= 0.05
    assert 2 * scipy.stats.binom.cdf(k, n, 0.5) > 0.05


def test_too_few_values_have_no_interval():
    for few in (median_interval(np.arange(5.0)), signed_rank_interval(np.arange(5.0))):
        assert few.value == 2 and (few.low, few.high) == (-np.inf, np.inf)
    for empty in (median_interval, signed_rank_interval):
        with pytest.raises(ValueError, match="no "):
            empty([])


@pytest.mark.parametrize("n", [6, 10, 17])
def test_signed_rank_interval_excludes_zero_when_the_exact_test_rejects(n):
    rng = np.random.default_rng(n)
    seen = set()
    for _ in range(200):
        d = rng.standard_normal(n) + 0.6
        rejected = scipy.stats.wilcoxon(d, method="exact").pvalue <= 0.05
        assert signed_rank_interval(d).excludes(0) == rejected
        seen.add(bool(rejected))
    assert seen == {True, False}


@pytest.mark.parametrize(("m", "n"), [(6, 6), (10, 10), (5, 9)])
def test_shift_interval_excludes_zero_when_the_exact_test_rejects(m, n):
    rng = np.random.default_rng(m * n)
    seen = set()
    for _ in range(200):
        x, y = rng.standard_normal(m) + 1, rng.standard_normal(n)
        rejected = scipy.stats.mannwhitneyu(x, y, method="exact").pvalue <= 0.05
        assert shift_interval(x, y).excludes(0) == rejected
        seen.add(bool(rejected))
    assert seen == {True, False}


def test_large_groups_agree_with_the_exact_rank():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal(50), rng.standard_normal(50)
    exact = shift_interval(x, y)
    approximate = shift_interval(np.append(x, x.mean()), y)
    assert approximate.low == pytest.approx(exact.low, abs=0.02)
    assert approximate.high == pytest.approx(exact.high, abs=0.02)


def test_deviation_is_robust():
    assert median_absolute_deviation([1, 2, 3, 4, 1000]) == 1


def test_ratios_cancel_what_a_block_does_to_both():
    rng = np.random.default_rng(2)
    shared = rng.uniform(1, 3, 10)
    values = 0.9 * shared * (1 + 0.001 * rng.standard_normal(10))
    paired = ratio_paired(values, shared)
    assert paired.value == pytest.approx(0.9, abs=0.001) and paired.high < 0.902
    assert not ratio_independent(values, shared).excludes(1)


def test_accuracy_drop_of_zero_one_scores_is_paired_and_exact():
    reference = np.ones(200)
    reference[:20] = 0
    scores = reference.copy()
    scores[20:32] = 0  # twelve lost
    scores[:2] = 1  # two won
    found = accuracy_drop(reference, scores, np.mean, seed=0)
    assert found.drop.value == pytest.approx(0.05)
    assert found.p_value == pytest.approx(scipy.stats.binomtest(12, 14).pvalue)
    assert 0.01 < found.drop.low < 0.05 < found.drop.high < 0.09
    same = accuracy_drop(reference, reference, np.mean, seed=0)
    assert same.drop.value == 0 and same.p_value == 1 and same.drop.low < 0 < same.drop.high
    with pytest.raises(ValueError, match="do not pair"):
        accuracy_drop(reference, scores[:5], np.mean, seed=0)


def test_accuracy_drop_of_other_metrics_bootstraps_pairs():
    rng = np.random.default_rng(5)
    hard = rng.uniform(0, 4, 300)  # how hard a sample is, for both
    error, worse = hard, hard + 0.1 + 0.02 * rng.standard_normal(300)

    def root_mean_square(scores: np.ndarray) -> float:
        return float(np.sqrt(np.mean(scores**2)))

    found = accuracy_drop(error, worse, root_mean_square, seed=1, higher_is_better=False)
    assert found.p_value is None
    assert found.drop.value == pytest.approx(root_mean_square(worse) - root_mean_square(error))
    assert found.drop.low < found.drop.value < found.drop.high
    # Unpaired, the spread of `hard` alone would leave +-0.15.
    assert found.drop.high - found.drop.low < 0.03
    again = accuracy_drop(error, worse, root_mean_square, seed=1, higher_is_better=False)
    assert again == found


def test_bootstrap_intervals_cover():
    """Difference of means of pairs: the true drop is 0.5."""
    rng = np.random.default_rng(11)
    inside = 0
    for i in range(60):
        reference = rng.gamma(2, 1, 80)
        drop = accuracy_drop(reference, reference - rng.exponential(0.5, 80), np.mean, seed=i).drop
        inside += drop.low <= 0.5 <= drop.high
    assert inside >= 52


def test_settling_is_found_where_it_is():
    flat = np.ones(12)
    assert settles_at(flat) == 0 and settles_at(np.ones(4)) == 0
    assert settles_at(np.r_[np.full(4, 1.2), flat]) == 4
    assert settles_at(np.r_[np.linspace(1.5, 1.1, 5), flat]) in (4, 5)
    # A change in the last blocks is no warm-up: nothing settled after it.
    assert settles_at(np.r_[flat, 1.5]) == 0
    warming = 60 - 20 * np.exp(-np.arange(20) / 2)
    rng = np.random.default_rng(0)
    latency = 1 + 0.1 * np.exp(-np.arange(20) / 2) + 0.01 * rng.standard_normal(20)
    assert 3 <= warm_up_blocks(latency, warming) <= 7


@pytest.mark.parametrize(
    "make",
    [
        lambda: bench.coverage(400, seed=21),
        lambda: bench.interleaving(20, seed=22),
        lambda: bench.false_claims(300, seed=23),
        lambda: bench.warm_up(60, seed=24),
        lambda: bench.gate(300, seed=25),
        lambda: bench.energy(30, seed=26),
    ],
    ids=["coverage", "interleaving", "false_claims", "warm_up", "gate", "energy"],
)
def test_acceptance_in_small(make):
    table = make()
    assert table.failures == ()
    assert all(len(row) == len(table.columns) for row in table.rows)


def test_fixed_order_is_worse_than_interleaving():
    """The reason for randomised blocks: a fixed order turns heat into a wrong ranking."""
    table = bench.interleaving(20, seed=3)
    strong = dict(zip(table.columns, table.rows[-1], strict=True))
    assert int(strong["5% gap, interleaved"]) >= 95 and int(strong["5% gap, fixed order"]) <= 50


def test_the_document_holds_what_the_script_makes():
    text = (ROOT / "docs/measuring.md").read_text("utf-8")
    for table in (bench.levels(), bench.rules(), bench.interleaving(100), bench.false_claims(1000)):
        assert f"<!-- table: {table.name} -->\n{table.markdown()}\n<!-- end -->" in text, (
            f"{table.name}: run tools/bench_stats.py --write docs/measuring.md"
        )
    # One more is written by tools/bench_energy.py, which takes minutes.
    assert text.count("<!-- table: ") == len(bench.tables(20, 20, 1, 5)) + 1
    assert "| 100 Hz | " in text.partition("<!-- table: chain -->")[2].partition("<!-- end -->")[0]
    with pytest.raises(SystemExit, match="no place"):
        bench.filled("nothing", [bench.levels()])
