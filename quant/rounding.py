"""Weight rounding: range search, second-order rounding and bias correction.

All work on weights (G, N, K), rows of inputs (G, rows, K) and Hessians (G, K, K) of the layer's
squared output error: error = sum over outputs of e^T H e, e = w - dequantized(w).

Where the layer has a bias, H is the covariance of the inputs rather than their second moment: a
constant error of an output is then free, because bias correction removes it exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg

Array = np.ndarray[Any, Any]
# The codes allowed in column j of the depth that are nearest to the real-valued targets x, (N,).
Snap = Callable[[Array, int], Array]

DAMPING = 0.01  # share of the mean diagonal added to a Hessian (GPTQ, Frantar et al. 2023)
_BLOCK = 64
_FLOAT32_NOISE = 1e-5  # relative error of a sum of float32 products, with a margin
SEARCH_STEPS = 24
SMALLEST_FRACTION = 0.35


@dataclass
class Moments:
    """Running second moment and mean of a layer's input rows."""

    groups: int
    depth: int

    def __post_init__(self) -> None:
        self.n = 0
        self.second = np.zeros((self.groups, self.depth, self.depth), np.float32)
        self.total = np.zeros((self.groups, self.depth), np.float64)

    def update(self, rows: Array) -> None:
        """rows: (groups, n, depth)."""
        self.n += rows.shape[1]
        self.second += np.matmul(rows.transpose(0, 2, 1), rows)
        self.total += rows.sum(1, dtype=np.float64)

    @property
    def mean(self) -> Array:
        """(groups, depth)."""
        return self.total / max(self.n, 1)

    def hessian(self, *, centred: bool, damping: float = DAMPING) -> Array:
        """(groups, depth, depth) float64, damped, positive definite."""
        h = self.second.astype(np.float64) / max(self.n, 1)
        noise = _FLOAT32_NOISE * np.einsum("gkk->gk", h).mean(1)  # what centring may leave
        if centred:
            mean = self.mean
            h -= mean[:, :, None] * mean[:, None, :]
        diagonal = np.einsum("gkk->gk", h)
        level = np.maximum(diagonal.mean(1), 1e-12)
        h[:, np.arange(self.depth), np.arange(self.depth)] = (
            np.maximum(diagonal, 0.0) + (damping * level + noise)[:, None]
        )
        return h


def weighted_error(error: Array, hessian: Array) -> Array:
    """e^T H e of each output, (G, N)."""
    return np.asarray(np.einsum("gnk,gnk->gn", np.matmul(error, hessian), error))


def search_scale(
    weight: Array,
    hessian: Array,
    bits: int,
    *,
    block_size: int = 0,
    per_channel: bool = True,
    steps: int = SEARCH_STEPS,
    smallest: float = SMALLEST_FRACTION,
) -> Array:
    """Scales of least Hessian-weighted error under rounding to nearest.

    Candidates are shrunk ranges. Returns (G, N, 1) per channel, (1, 1, 1) per tensor, or
    (G, N, K / block_size) per block (each block then judged by its own part of the Hessian).
    """
    levels = 2 ** (bits - 1) - 1
    g, n, k = weight.shape
    if block_size:
        blocks = k // block_size
        w = weight.reshape(g, n, blocks, block_size)
        limit = np.abs(w).max(-1, keepdims=True)
        index = np.arange(k).reshape(blocks, block_size)
        parts = hessian[:, index[:, :, None], index[:, None, :]]  # (G, blocks, B, B)
        best = np.full(limit.shape, np.inf)
        chosen = limit.copy()
        for fraction in np.linspace(smallest, 1.0, steps):
            scale = np.maximum(limit * fraction / levels, 1e-12)
            e = w - np.clip(np.rint(w / scale), -levels, levels) * scale
            cost = np.einsum("gnbi,gbij,gnbj->gnb", e, parts, e, optimize=True)[..., None]
            better = cost < best
            best = np.where(better, cost, best)
            chosen = np.where(better, limit * fraction, chosen)
        return np.asarray(np.maximum(chosen[..., 0] / levels, 1e-12))
    limit = np.abs(weight).max(-1, keepdims=True)
    if not per_channel:
        limit = np.full((1, 1, 1), limit.max())
    best = np.full(limit.shape, np.inf)
    chosen = limit.copy()
    for fraction in np.linspace(smallest, 1.0, steps):
        scale = np.maximum(limit * fraction / levels, 1e-12)
        e = weight - np.clip(np.rint(weight / scale), -levels, levels) * scale
        cost = weighted_error(e.astype(np.float32), hessian.astype(np.float32))[..., None]
        if not per_channel:
            cost = cost.sum(keepdims=True)
        better = cost < best
        best = np.where(better, cost, best)
        chosen = np.where(better, limit * fraction, chosen)
    return np.asarray(np.maximum(chosen / levels, 1e-12))


def expand_scale(scale: Array, depth: int) -> Array:
    """Scales of search_scale per weight: (G or 1, N or 1, depth)."""
    if scale.shape[-1] in (1, depth):
        return np.broadcast_to(scale, (*scale.shape[:2], depth))
    return np.repeat(scale, depth // scale.shape[-1], axis=-1)


def second_order(
    weight: Array, hessian: Array, scale: Array, bits: int, *, sweeps: int = 2
) -> Array:
    """Integer codes (G, N, K) of least Hessian-weighted error, found greedily.

    Optimal-brain rounding in order of falling diagonal (GPTQ with act-order), then `sweeps` rounds
    of coordinate descent, each weight moved to the best code given all others (QuantEase,
    Behdin et al. 2023). scale: as search_scale returns it.
    """
    levels = 2 ** (bits - 1) - 1
    g, _, k = weight.shape
    scales = np.broadcast_to(expand_scale(scale, k), weight.shape)
    codes = np.empty(weight.shape, np.int32)

    def snap(target: Array, _column: int) -> Array:
        return np.asarray(np.clip(np.rint(target), -levels, levels))

    for i in range(g):
        codes[i] = greedy_round(weight[i], hessian[i], scales[i], snap, sweeps)
    return codes


def second_order_batched(
    weight: Array, hessian: Array, bits: int, *, sweeps: int = 4, steps: int = SEARCH_STEPS
) -> tuple[Array, Array]:
    """(scale (G, N, 1), codes (G, N, K)) by coordinate descent, for many small groups (depthwise).

    With nine weights a scale is good or bad by luck of the rounding, so each candidate is judged
    after its own descent rather than after rounding to nearest.
    """
    levels = 2 ** (bits - 1) - 1
    limit = np.maximum(np.abs(weight).max(-1, keepdims=True), 1e-12)
    w = weight.astype(np.float64)
    best = np.full(limit.shape, np.inf)
    scale, codes = limit / levels, np.zeros(weight.shape, np.int32)
    for fraction in np.linspace(SMALLEST_FRACTION, 1.0, steps):
        s = np.maximum((limit * fraction / levels).astype(np.float32), 1e-12).astype(np.float64)
        q = _descend_batched(w, hessian, s, levels, sweeps)
        cost = weighted_error(w - q * s, hessian)[..., None]
        better = cost < best
        best = np.where(better, cost, best)
        scale = np.where(better, s, scale)
        codes = np.where(better, q.astype(np.int32), codes)
    return scale, codes


def _descend_batched(w: Array, hessian: Array, s: Array, levels: int, sweeps: int) -> Array:
    q = np.clip(np.rint(w / s), -levels, levels)
    diagonal = np.einsum("gkk->gk", hessian)
    for _ in range(sweeps):
        gradient = np.matmul(w - q * s, hessian)
        moved = False
        for j in range(w.shape[-1]):
            target = q[..., j] + gradient[..., j] / (diagonal[:, j, None] * s[..., 0])
            new = np.clip(np.rint(target), -levels, levels)
            delta = (new - q[..., j]) * s[..., 0]
            if delta.any():
                moved = True
                gradient -= delta[..., None] * hessian[:, None, j, :]
                q[..., j] = new
        if not moved:
            break
    return q


def greedy_round(weight: Array, hessian: Array, scale: Array, snap: Snap, sweeps: int = 2) -> Array:
    """Codes (N, K) of least squared output error within what `snap` allows, found greedily.

    weight, scale: (N, K); hessian: (K, K). Columns are decided in order of falling diagonal and
    each column's error is pushed onto those not yet decided (optimal brain: Frantar et al. 2023),
    then `sweeps` rounds of coordinate descent. A pruned weight is one whose snap is always zero, so
    the same sweep is the second-order weight update of SparseGPT (Frantar and Alistarh 2023).
    """
    order = np.argsort(-np.diagonal(hessian), kind="stable")
    h = hessian[np.ix_(order, order)].astype(np.float64)
    w, s = weight[:, order].astype(np.float64), scale[:, order].astype(np.float64)
    q = _optimal_brain(w, h, s, snap, order)
    for _ in range(sweeps):
        if not _descend(w, h, s, q, snap, order):
            break
    out = np.empty(weight.shape, np.int64)
    out[:, order] = q
    return out


def _optimal_brain(w: Array, h: Array, s: Array, snap: Snap, order: Array) -> Array:
    k = h.shape[0]
    # Upper Cholesky factor of the inverse Hessian, through the factor of the reversed matrix.
    low = scipy.linalg.cholesky(h[::-1, ::-1], lower=True, check_finite=False)
    inverse = scipy.linalg.solve_triangular(low, np.eye(k), lower=True, check_finite=False)
    factor = inverse[::-1, ::-1]
    w, q = w.copy(), np.empty_like(w)
    for start in range(0, k, _BLOCK):
        end = min(start + _BLOCK, k)
        errors = np.empty((w.shape[0], end - start))
        for j in range(start, end):
            q[:, j] = snap(w[:, j] / s[:, j], int(order[j]))
            error = (w[:, j] - q[:, j] * s[:, j]) / factor[j, j]
            w[:, j:end] -= error[:, None] * factor[j, j:end]
            errors[:, j - start] = error
        w[:, end:] -= errors @ factor[start:end, end:]
    return q


def _descend(w: Array, h: Array, s: Array, q: Array, snap: Snap, order: Array) -> bool:
    """One sweep over the codes q (in place); whether anything moved. Never raises the error."""
    k = h.shape[0]
    gradient = (w - q * s) @ h
    moved = False
    for start in range(0, k, _BLOCK):
        end = min(start + _BLOCK, k)
        deltas = np.zeros((w.shape[0], end - start))
        for j in range(start, end):
            new = snap(q[:, j] + gradient[:, j] / (h[j, j] * s[:, j]), int(order[j]))
            delta = (new - q[:, j]) * s[:, j]
            if delta.any():
                moved = True
                gradient[:, start:end] -= delta[:, None] * h[j, start:end]
                deltas[:, j - start] = delta
                q[:, j] = new
        rest = deltas @ h[start:end]
        gradient[:, :start] -= rest[:, :start]
        gradient[:, end:] -= rest[:, end:]
    return moved


def bias_shift(weight: Array, restored: Array, mean: Array) -> Array:
    """What to add to the bias, (G * N,): the mean output lost to weight rounding."""
    shift = np.einsum("gnk,gk->gn", weight.astype(np.float64) - restored, mean)
    return np.asarray(shift.reshape(-1))
