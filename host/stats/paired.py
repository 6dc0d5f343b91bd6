"""Comparisons that use the pairing: per block for times, per sample for accuracy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import comb
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from host.stats.intervals import LEVEL, Estimate, shift_interval, signed_rank_interval
from host.store.rows import Floats

RESAMPLES = 2000
NORMAL = NormalDist()  # of the standard library: importing scipy.stats takes half a second
# What a claim ("faster than") rests on: the strictest level that six blocks can reach, whose
# smallest two-sided error is 2 / 2^6 = 3.1 %. Exact tests at 95 % come so close to 5 % errors
# that one count of 1,000 pairs in three would exceed it.
CLAIM_LEVEL = 0.965


@dataclass(frozen=True)
class AccuracyDrop:
    """How much worse the second scores are (positive = worse), in the unit of the aggregate.

    `p_value`: exact McNemar test for 0/1 scores, None for others.
    """

    drop: Estimate
    method: str
    p_value: float | None


def ratio_paired(values: ArrayLike, baseline: ArrayLike, level: float = CLAIM_LEVEL) -> Estimate:
    """values / baseline of blocks measured side by side: (n,) and (n,), both > 0.

    exp of the Hodges-Lehmann centre of the paired log differences, exact Wilcoxon interval. What
    a block does to both (heat, clocks) cancels.
    """
    logs = np.log(np.asarray(values, np.float64)) - np.log(np.asarray(baseline, np.float64))
    return _exp(signed_rank_interval(logs, level))


def ratio_independent(
    values: ArrayLike, baseline: ArrayLike, level: float = CLAIM_LEVEL
) -> Estimate:
    """values / baseline of blocks of two sessions: (m,) and (n,), both > 0.

    exp of the Hodges-Lehmann shift of the logs, exact Mann-Whitney interval.
    """
    return _exp(shift_interval(np.log(np.asarray(values)), np.log(np.asarray(baseline)), level))


def accuracy_drop(
    reference: Floats,
    scores: Floats,
    aggregate: Callable[[Floats], float],
    *,
    seed: int,
    higher_is_better: bool = True,
) -> AccuracyDrop:
    """Drop of `aggregate(scores)` against `aggregate(reference)` on the same samples (N, ...).

    0/1 scores (N,) with their mean as aggregate: the interval of Bonett and Price (2012) for a
    difference of paired proportions, and the exact McNemar test. Others: BCa bootstrap over
    samples drawn in pairs (Efron 1987).
    """
    if reference.shape != scores.shape or not len(scores):
        raise ValueError(f"scores do not pair: {reference.shape} and {scores.shape}")
    sign = 1.0 if higher_is_better else -1.0
    value = sign * (aggregate(reference) - aggregate(scores))
    binary = scores.ndim == 1 and bool(np.isin(scores, (0, 1)).all() and
                                       np.isin(reference, (0, 1)).all())  # fmt: skip
    if binary and np.isclose(abs(value), abs(reference.mean() - scores.mean())):
        return _mcnemar(reference, scores, value, sign)
    low, high = _bca(reference, scores, aggregate, value, sign, seed)
    return AccuracyDrop(Estimate(value, low, high, len(scores)), "paired BCa bootstrap", None)


def _mcnemar(reference: Floats, scores: Floats, value: float, sign: float) -> AccuracyDrop:
    n = len(scores)
    lost = int(np.sum((reference == 1) & (scores == 0)))
    won = int(np.sum((reference == 0) & (scores == 1)))
    p_lost, p_won = (lost + 1) / (n + 2), (won + 1) / (n + 2)
    centre = sign * (p_lost - p_won)
    half = (
        NORMAL.inv_cdf((1 + LEVEL) / 2)
        * ((p_lost + p_won - (p_lost - p_won) ** 2) / (n + 2)) ** 0.5
    )
    p_value = _sign_test(lost, won)
    # The adjusted centre is drawn to 0, so with few samples the plain value can fall outside.
    low, high = min(centre - half, value), max(centre + half, value)
    return AccuracyDrop(Estimate(value, low, high, n), "McNemar, Bonett-Price", p_value)


def _sign_test(lost: int, won: int) -> float:
    """Two-sided P of so uneven a split under Binomial(lost + won, 1/2)."""
    n = lost + won
    tail = sum(comb(n, i) for i in range(min(lost, won) + 1))
    return min(1.0, 2 * tail / (1 << n))


def _bca(
    reference: Floats,
    scores: Floats,
    aggregate: Callable[[Floats], float],
    value: float,
    sign: float,
    seed: int,
) -> tuple[float, float]:
    n = len(scores)
    random = np.random.default_rng(seed)

    def drop(index: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float:
        return sign * (aggregate(reference[index]) - aggregate(scores[index]))

    draws = np.array([drop(random.integers(0, n, n)) for _ in range(RESAMPLES)])
    if np.ptp(draws) == 0:
        return float(draws[0]), float(draws[0])
    # Leave-one-out on at most 500 samples: the acceleration is a skewness and needs no more.
    left_out = random.permutation(n)[: min(n, 500)]
    everything = np.arange(n)
    jack = np.array([drop(np.delete(everything, i)) for i in left_out])
    spread = jack.mean() - jack
    scale = float(np.sum(spread**2)) ** 1.5
    acceleration = float(np.sum(spread**3)) / (6 * scale) if scale > 0 else 0.0
    below = np.mean(draws < value) + np.mean(draws == value) / 2
    bias = NORMAL.inv_cdf(float(np.clip(below, 1 / RESAMPLES, 1 - 1 / RESAMPLES)))
    ends = []
    for tail in ((1 - LEVEL) / 2, (1 + LEVEL) / 2):
        z = bias + NORMAL.inv_cdf(tail)
        ends.append(NORMAL.cdf(bias + z / (1 - acceleration * z)))
    low, high = np.quantile(draws, ends)
    return float(low), float(high)


def _exp(estimate: Estimate) -> Estimate:
    return Estimate(
        float(np.exp(estimate.value)), float(np.exp(estimate.low)), float(np.exp(estimate.high)),
        estimate.n,
    )  # fmt: skip
