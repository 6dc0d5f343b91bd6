"""Intervals that hold without assuming a distribution. The unit is the block.

Every interval here is for 95 % unless a level is given, and exact: its coverage follows from
counting, whatever the distribution of the blocks. Too few values give an infinite interval
rather than a narrow one that is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import comb, inf
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; infinite ends where n is too small for the level."""

    value: float
    low: float
    high: float
    n: int

    def excludes(self, point: float) -> bool:
        """The whole interval lies on one side of `point`."""
        return self.low > point or self.high < point

    def scaled(self, factor: float) -> Estimate:
        """The estimate of a quantity `factor` (> 0) times as large."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor, self.n)


def median_interval(values: ArrayLike, level: float = LEVEL) -> Estimate:
    """Median of `values` (n,) with the exact order-statistic interval.

    [x_(k), x_(n+1-k)] with the largest k for which P(Binomial(n, 1/2) < k) <= (1 - level) / 2:
    Conover, Practical Nonparametric Statistics, 3.2. Needs n >= 6 for 95 %. Where the blocks'
    medians drift, coverage only rises (Hoeffding 1956 on sums of unequal Bernoulli trials).
    """
    ordered = np.sort(np.asarray(values, np.float64).ravel())
    n = len(ordered)
    if n == 0:
        raise ValueError("no values")
    k = _median_rank(n, level)
    low, high = (float(ordered[k - 1]), float(ordered[n - k])) if k else (-inf, inf)
    return Estimate(float(np.median(ordered)), low, high, n)


def signed_rank_interval(differences: ArrayLike, level: float = LEVEL) -> Estimate:
    """Hodges-Lehmann centre of paired differences (n,) with the exact Wilcoxon interval.

    The centre is the median of the Walsh averages (d_i + d_j) / 2, i <= j; the ends are those
    averages that the signed-rank distribution gives: Hollander & Wolfe, 3.2 and 3.3.
    """
    d = np.asarray(differences, np.float64).ravel()
    n = len(d)
    if n == 0:
        raise ValueError("no differences")
    i, j = np.triu_indices(n)
    walsh = np.sort((d[i] + d[j]) / 2)
    k = _rank_from(_signed_rank_counts(n), level)
    low, high = (float(walsh[k - 1]), float(walsh[len(walsh) - k])) if k else (-inf, inf)
    return Estimate(float(np.median(walsh)), low, high, n)


def shift_interval(sample: ArrayLike, reference: ArrayLike, level: float = LEVEL) -> Estimate:
    """Shift of `sample` (m,) against `reference` (n,), independent of each other.

    Hodges-Lehmann: median of all x_i - y_j, with the exact Mann-Whitney interval
    (Hollander & Wolfe, 4.2 and 4.3). For m or n above 50 the normal approximation of the rank
    is used, which differs from the exact one by less than one rank there.
    """
    x = np.asarray(sample, np.float64).ravel()
    y = np.asarray(reference, np.float64).ravel()
    m, n = len(x), len(y)
    if not m or not n:
        raise ValueError("no values")
    gaps = np.sort((x[:, None] - y[None, :]).ravel())
    k = _shift_rank(m, n, level)
    low, high = (float(gaps[k - 1]), float(gaps[len(gaps) - k])) if k else (-inf, inf)
    return Estimate(float(np.median(gaps)), low, high, min(m, n))


def median_absolute_deviation(values: ArrayLike) -> float:
    """Median distance from the median, unscaled."""
    v = np.asarray(values, np.float64)
    return float(np.median(np.abs(v - np.median(v))))


@cache
def _median_rank(n: int, level: float) -> int:
    """Largest k with P(Binomial(n, 1/2) < k) <= (1 - level) / 2; 0 when there is none."""
    below, k = 0, 0
    limit = (1 - level) / 2 * 2**n
    while k < n:
        below += comb(n, k)
        if below > limit:
            return k
        k += 1
    return k


@cache
def _signed_rank_counts(n: int) -> NDArray[np.float64]:
    """P(W+ = w), w = 0 .. n (n + 1) / 2."""
    chances = np.zeros(n * (n + 1) // 2 + 1)
    chances[0] = 1.0
    for rank in range(1, n + 1):
        shifted = np.zeros_like(chances)
        shifted[rank:] = chances[: len(chances) - rank]
        chances = (chances + shifted) / 2
    return chances


@cache
def _mann_whitney_counts(m: int, n: int) -> NDArray[np.float64]:
    """P(U = u), u = 0 .. m n: coefficients of the Gaussian binomial (m + n choose m)."""
    counts = np.zeros(m * n + 1)
    counts[0] = 1.0
    for i in range(1, m + 1):
        top, bottom = n + i, i
        raised = counts.copy()
        raised[top:] -= counts[: len(counts) - top] if top < len(counts) else 0.0
        for u in range(bottom, len(raised)):
            raised[u] += raised[u - bottom]
        counts = raised
    return counts / comb(m + n, m)


def _rank_from(chances: NDArray[np.float64], level: float) -> int:
    """Largest k with P(statistic < k) <= (1 - level) / 2."""
    # The tolerance keeps rounding from turning an exact tie into one rank less.
    return int(np.searchsorted(np.cumsum(chances), (1 - level) / 2 + 1e-12, side="right"))


@cache
def _shift_rank(m: int, n: int, level: float) -> int:
    if max(m, n) <= 50:
        return _rank_from(_mann_whitney_counts(m, n), level)
    spread = np.sqrt(m * n * (m + n + 1) / 12)
    return max(0, int(m * n / 2 + NormalDist().inv_cdf((1 - level) / 2) * spread))
