"""Which weights to prune: patterns, saliencies and thresholds, as plain functions on matrices.

Masks are booleans of what stays. Matrices are (outputs, depth); for a Conv the depth runs over
input channels, then taps, as stored.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quant.errors import UserError, unknown_name

Array = np.ndarray[Any, Any]

_PATTERN = re.compile(r"(\d+):(\d+)")
# Sparsities at which a layer's output error is found out; nowhere is more than the last pruned,
# unless more is asked for as a whole.
GRID = (0.0, 0.25, 0.5, 0.7, 0.85, 0.95)
_CURVE_STEPS = 38


@dataclass(frozen=True)
class Pattern:
    """n non-zero weights in every group of m consecutive input channels (of one tap)."""

    n: int
    m: int

    @property
    def sparsity(self) -> float:
        return 1.0 - self.n / self.m


def parse_pattern(text: str) -> Pattern | None:
    """`2:4` -> Pattern(2, 4); `none` or nothing -> None. UserError for anything else."""
    if text in {"", "none"}:
        return None
    match = _PATTERN.fullmatch(text.strip())
    if match is None:
        raise UserError(
            f"Pattern {text!r} is not n:m.", "For example 2:4: two of four weights stay."
        )
    n, m = int(match.group(1)), int(match.group(2))
    if not (0 < n < m <= 32):
        raise UserError(
            f"Pattern {text!r} needs 0 < n < m <= 32.", "For example 2:4: two of four weights stay."
        )
    return Pattern(n, m)


def check_sparsity(value: float, what: str = "sparsity") -> None:
    if not 0.0 < value < 1.0:
        raise UserError(f"{what} {value:g} is not between 0 and 1.", "For example 0.5.")


def read_layer_sparsities(path: str, known: Mapping[str, object]) -> dict[str, float]:
    """{weight name: sparsity} from a JSON file. UserError names the first bad entry.

    0 keeps a layer dense.
    """
    try:
        data = json.loads(Path(path).read_text())
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.", "Check the path.") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}.", 'Write {"layer": 0.5}.') from error
    if not isinstance(data, dict):
        raise UserError(f"{path} is not a JSON object.", 'Write {"layer": 0.5}.')
    out: dict[str, float] = {}
    for name, value in data.items():
        if name not in known:
            raise unknown_name(f"layer in {path}:", name, known)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise UserError(f"{path}: sparsity {value!r} of {name!r} is not in [0, 1).")
        out[name] = float(value)
    return out


def pattern_mask(score: Array, pattern: Pattern, taps: int = 1) -> Array:
    """The n highest of every m consecutive input channels, (N, K); K = channels x taps.

    Ties go to the lower channel. The number of channels must be a multiple of m.
    """
    rows, depth = score.shape
    groups = score.reshape(rows, depth // taps // pattern.m, pattern.m, taps)
    order = np.argsort(-groups, axis=2, kind="stable")
    mask = np.zeros(groups.shape, bool)
    np.put_along_axis(mask, order[:, :, : pattern.n], True, axis=2)
    return mask.reshape(rows, depth)


def share_mask(score: Array, sparsity: float) -> Array:
    """Everything but the `sparsity` share of lowest score in the whole matrix."""
    pruned = round(score.size * sparsity)
    mask = np.ones(score.size, bool)
    mask[np.argsort(score.reshape(-1), kind="stable")[:pruned]] = False
    return mask.reshape(score.shape)


def layer_sparsities(
    curves: Mapping[str, Array], sizes: Mapping[str, int], sparsity: float
) -> dict[str, float]:
    """Each layer's share of a whole sparsity: the least sum of relative output errors.

    curves: per weight, the layer's squared output error over its output power when GRID of it is
    pruned, (len(GRID),); sizes: its elements. Between the points of GRID the error's root is
    linear. Steps of all layers are taken in order of the error they add per weight (the curves'
    convex hulls: what is cheap first), so a layer of little redundancy keeps more.
    """
    fine = np.linspace(GRID[0], GRID[-1], _CURVE_STEPS + 1)
    steps: list[tuple[float, str, float]] = []
    for name, errors in curves.items():
        between = np.square(np.interp(fine, GRID, np.sqrt(errors)))
        hull = _lower_hull(fine, between)
        for k, m in itertools.pairwise(hull):
            count = (fine[m] - fine[k]) * sizes[name]
            steps.append(((between[m] - between[k]) / count, name, count))
    shares = dict.fromkeys(curves, 0.0)
    left = sparsity * sum(sizes[n] for n in curves)
    for _, name, count in sorted(steps):
        taken = min(count, left)
        shares[name] += taken / sizes[name]
        left -= taken
    return shares


def _lower_hull(x: Array, y: Array) -> list[int]:
    """Indices of the points on the lower convex hull (Andrew's monotone chain)."""
    hull: list[int] = []
    for k in range(len(x)):
        while len(hull) > 1:
            i, j = hull[-2:]
            if (y[j] - y[i]) * (x[k] - x[j]) < (y[k] - y[j]) * (x[j] - x[i]):
                break
            hull.pop()
        hull.append(k)
    return hull
