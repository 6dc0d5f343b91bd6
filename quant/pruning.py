"""Which weights to prune: patterns, saliencies and thresholds, as plain functions on matrices.

Masks are booleans of what stays. Matrices are (outputs, depth); for a Conv the depth runs over
input channels, then taps, as stored.
"""

from __future__ import annotations

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
HIGHEST_LAYER_SPARSITY = 0.95  # a threshold over all layers must not empty one of them


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


def layer_sparsities(errors: Mapping[str, Array], sparsity: float) -> dict[str, float]:
    """Each layer's share of a whole sparsity, by one threshold on the relative error of removal.

    errors: per weight, the rise of the layer's squared output error over its output power. The
    threshold makes every layer give up weights of like worth: a layer of little redundancy keeps
    more. The result lies half-way between that and equal shares: errors taken one by one say too
    little of what many removed together do. No layer goes beyond HIGHEST_LAYER_SPARSITY.
    """
    sizes = {k: e.size for k, e in errors.items()}
    wanted = sparsity * sum(sizes.values())
    flat = {k: np.sort(e.reshape(-1)) for k, e in errors.items()}
    everything = np.concatenate(list(flat.values()))
    low, high = 0.0, float(everything.max(initial=0.0)) * (1 + 1e-9)

    def share(threshold: float) -> dict[str, float]:
        return {
            k: min(float(np.searchsorted(e, threshold)) / e.size, HIGHEST_LAYER_SPARSITY)
            for k, e in flat.items()
        }

    for _ in range(60):
        middle = (low + high) / 2
        if sum(s * sizes[k] for k, s in share(middle).items()) < wanted:
            low = middle
        else:
            high = middle
    return {k: (s + sparsity) / 2 for k, s in share(high).items()}
