"""Where a series settles: warm-up detection by change point, on latency and on temperature.

Three shapes of a warm-up are fitted by least squares to all series at once, with a common place:
a step (a cold cache, a clock that rises), a ramp (linear up to the level), and an exponential
approach (heat). The best by Schwarz's criterion wins, if it beats "settled from the start" by
enough; how often that goes wrong is measured in docs/measuring.md.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Matrix = NDArray[np.float64]
Ints = NDArray[np.int64]

MIN_TAIL = 3  # blocks that must follow a change for it to count as settled
MIN_BLOCKS = 6
# What a change costs in parameters, beside the coefficients of its shape: its place and kind are
# searched for, and few values are fitted by chance. Chosen so that a quiet series of any length
# shows a change in about 5 % (docs/measuring.md); a plain count of one would in 20 % of short ones.
SEARCH_COST, SHORT_COST = 1.5, 20.0


def settles_at(*series: ArrayLike) -> int:
    """Index of the first settled value of the first series (n,); 0 where nothing changes.

    The other series change with it and help to find the place. An exponential approach has
    settled when the first series is nearer to its level than its own noise.
    """
    rows = np.array([np.asarray(s, np.float64).ravel() for s in series])
    n = rows.shape[1]
    if n < MIN_BLOCKS:
        return 0
    # A quantised sensor can fit exactly. Its step is not known here, so a floor relative to the
    # size of the series stands in for it and keeps the logarithm finite.
    floor = n * (1e-6 * np.maximum(np.abs(rows).max(axis=1), 1e-12)) ** 2
    level = np.sum((rows - rows.mean(axis=1, keepdims=True)) ** 2, axis=1) + floor
    quiet = n * float(np.sum(np.log(level / n)))
    cost = SEARCH_COST + SHORT_COST / n + len(rows)
    best = quiet - cost * np.log(n)
    places, shapes = _shapes(n)
    slopes, rss = _fit(rows, shapes)
    scores = n * np.sum(np.log((rss + floor[:, None]) / n), axis=0)
    for i in np.argsort(scores):
        if scores[i] >= best:
            break
        settled = int(places[i]) or _within_noise(shapes[i], slopes[0, i], rss[0, i], n)
        if settled <= n - MIN_TAIL:
            return settled
    return 0


def warm_up_blocks(latency: ArrayLike, temperature: ArrayLike | None = None) -> int:
    """How many blocks at the start belong to the warm-up, by latency and the NPU's heat."""
    return settles_at(latency) if temperature is None else settles_at(latency, temperature)


def _shapes(n: int) -> tuple[Ints, Matrix]:
    """(m,) places and (m, n) shapes of every candidate; place 0: found from the fit."""
    i = np.arange(n, dtype=np.float64)
    steps = [(k, (i < k).astype(np.float64)) for k in range(1, n - MIN_TAIL + 1)]
    ramps = [(k, np.clip(1 - i / k, 0.0, None)) for k in range(2, n - MIN_TAIL + 1)]
    curves = [(0, np.exp(-i / tau)) for tau in np.geomspace(0.5, n / 3, 24)]
    places, shapes = zip(*steps, *ramps, *curves, strict=True)
    return np.array(places), np.array(shapes)


def _fit(rows: Matrix, shapes: Matrix) -> tuple[Matrix, Matrix]:
    """Slopes on the shapes and residual sums of squares: (series, m) each."""
    x = shapes - shapes.mean(axis=1, keepdims=True)
    centred = rows - rows.mean(axis=1, keepdims=True)
    norms = np.sum(x**2, axis=1)
    slopes = centred @ x.T / norms
    # Rounding can leave a perfect fit a little below zero.
    rss = np.sum(centred**2, axis=1, keepdims=True) - slopes**2 * norms
    return slopes, np.maximum(rss, 0.0)


def _within_noise(shape: Matrix, slope: float, rss: float, n: int) -> int:
    """First index at which the first series is nearer to its level than its noise."""
    far = np.flatnonzero(abs(slope) * shape > (rss / n) ** 0.5)
    return int(far[-1]) + 1 if len(far) else 0
