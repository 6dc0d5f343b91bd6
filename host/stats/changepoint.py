"""Where a series settles: warm-up detection by change point, on latency and on temperature."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

MIN_TAIL = 3  # blocks that must follow a change for it to count as settled
MIN_BLOCKS = 6


def settles_at(series: ArrayLike) -> int:
    """Index of the first value of the settled part of `series` (n,); 0 where there is no change.

    Fits "a line, then a constant" for every place of the change by least squares, and takes the
    best one if it beats "a constant throughout" by Schwarz's criterion: n log(RSS / n) +
    p log(n), p = 1 for the constant, and 4 (two for the line, one level, one place) with a change
    (Yao 1988 on the number of change points).
    """
    y = np.asarray(series, np.float64).ravel()
    n = len(y)
    if n < MIN_BLOCKS:
        return 0
    # A quantised sensor can fit exactly; its step is not known here, so a floor relative to the
    # size of the series stands in for it and keeps the logarithm finite.
    floor = n * (1e-6 * max(float(np.max(np.abs(y))), 1e-12)) ** 2
    best, place = n * np.log((_constant_rss(y) + floor) / n) + np.log(n), 0
    for k in range(1, n - MIN_TAIL + 1):
        rss = _line_rss(y[:k]) + _constant_rss(y[k:]) + floor
        score = n * np.log(rss / n) + (4 if k > 1 else 3) * np.log(n)
        if score < best:
            best, place = score, k
    return place


def warm_up_blocks(latency: ArrayLike, temperature: ArrayLike | None = None) -> int:
    """How many blocks at the start belong to the warm-up: the later of the two change points."""
    found = settles_at(latency)
    return found if temperature is None else max(found, settles_at(temperature))


def _constant_rss(y: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    return float(np.sum((y - y.mean()) ** 2))


def _line_rss(y: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    if len(y) < 3:
        return 0.0
    x = np.arange(len(y)) - (len(y) - 1) / 2
    centred = y - y.mean()
    slope = float(x @ centred) / float(x @ x)
    return float(np.sum((centred - slope * x) ** 2))
