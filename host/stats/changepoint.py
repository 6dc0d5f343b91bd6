"""Where a series settles: warm-up detection by change point, on latency and on temperature.

Three shapes of a warm-up are fitted by least squares to all series at once, with a common place:
a step (a cold cache, a clock that rises), a ramp (linear up to the level), and an exponential
approach (heat). The best by Schwarz's criterion wins, if it beats "settled from the start" by
enough; how often that goes wrong is measured in docs/measuring.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Matrix = NDArray[np.float64]

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
    best, place = quiet - cost * np.log(n), 0
    for k, shape in _shapes(n):
        slope, rss = _fit(rows, shape)
        rss = rss + floor
        score = n * float(np.sum(np.log(rss / n)))
        if score < best:
            settled = k if k else _within_noise(shape, slope, rss, n)
            if settled <= n - MIN_TAIL:
                best, place = score, settled
    return place


def warm_up_blocks(latency: ArrayLike, temperature: ArrayLike | None = None) -> int:
    """How many blocks at the start belong to the warm-up, by latency and the NPU's heat."""
    return settles_at(latency) if temperature is None else settles_at(latency, temperature)


def _shapes(n: int) -> Sequence[tuple[int, Matrix]]:
    """(place, shape (n,)) of every candidate; place 0: found from the fit."""
    i = np.arange(n, dtype=np.float64)
    found: list[tuple[int, Matrix]] = []
    for k in range(1, n - MIN_TAIL + 1):
        found.append((k, (i < k).astype(np.float64)))
        if k > 1:
            found.append((k, np.clip(1 - i / k, 0.0, None)))
    found += [(0, np.exp(-i / tau)) for tau in np.geomspace(0.5, n / 3, 24)]
    return found


def _fit(rows: Matrix, shape: Matrix) -> tuple[Matrix, Matrix]:
    """Slope on the shape and residual sum of squares, per series."""
    x = shape - shape.mean()
    centred = rows - rows.mean(axis=1, keepdims=True)
    slope = centred @ x / float(x @ x)
    return slope, np.sum((centred - slope[:, None] * x) ** 2, axis=1)


def _within_noise(shape: Matrix, slope: Matrix, rss: Matrix, n: int) -> int:
    """First index at which the first series is nearer to its level than its noise."""
    far = np.flatnonzero(abs(slope[0]) * shape > (rss[0] / n) ** 0.5)
    return int(far[-1]) + 1 if len(far) else 0
