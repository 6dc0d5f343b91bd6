"""The interval of an accuracy figure from its per-sample scores."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.stats import binomtest, bootstrap

from host.stats.intervals import LEVEL, Estimate
from host.store.rows import Floats

RESAMPLES = 2000


def accuracy_interval(
    scores: Floats, aggregate: Callable[[Floats], float], *, seed: int
) -> Estimate:
    """`aggregate(scores)` of scores (N, ...) with its 95 % interval over the samples.

    0/1 scores (N,): Wilson's interval (1927) of a proportion. Others: BCa bootstrap over samples
    (Efron 1987). It says how far the figure would move with other samples of the same kind; two
    variants on the same samples are compared by their paired drop, which is much sharper.
    """
    n = len(scores)
    value = float(aggregate(scores))
    if scores.ndim == 1 and bool(np.isin(scores, (0, 1)).all()):
        interval = binomtest(int(scores.sum()), n).proportion_ci(LEVEL, "wilson")
        return Estimate(value, float(interval.low), float(interval.high), n)
    if n < 3 or np.ptp(scores, axis=0).max() == 0:
        return Estimate(value, -np.inf, np.inf, n) if n < 3 else Estimate(value, value, value, n)
    found = bootstrap(
        (np.arange(n),),
        lambda index: aggregate(scores[index]),
        vectorized=False,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(value, float(found.low), float(found.high), n)
