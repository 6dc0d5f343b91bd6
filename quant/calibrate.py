"""Streaming calibration: one pass over the samples, fixed memory, ranges by four methods.

Each tensor keeps a minimum, a maximum and (where the method needs one) a histogram of fixed size:
4096 bins over [-A, A), A a power of two. When a value exceeds A, A doubles and bins merge in
pairs, so a histogram never grows and does not depend on the order of the samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from quant.errors import UserError, unknown_name
from quant.layers import token_mask
from quant.model import Model
from quant.task import Task

Array = np.ndarray[Any, Any]

BINS = 4096
METHODS = ("min-max", "percentile", "mse", "entropy")
DEFAULT_PERCENTILE = 99.99


@dataclass
class Statistics:
    """What calibration knows of one tensor. `counts` (BINS,) covers [-2**exponent, 2**exponent)."""

    low: float = math.inf
    high: float = -math.inf
    n: int = 0
    exponent: int = -40
    counts: Array | None = None

    def update(self, x: Array, histogram: bool) -> None:
        if x.size == 0:
            return
        low, high = float(x.min()), float(x.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.n += x.size
        if histogram:
            self._count(x.reshape(-1), max(-low, high))

    def _count(self, x: Array, limit: float) -> None:
        if self.counts is None:
            self.counts = np.zeros(BINS, np.int64)
            self.exponent = _exponent(limit)
        while limit >= math.ldexp(1.0, self.exponent):
            self._double()
        half = BINS // 2
        scale = np.float32(math.ldexp(half, -self.exponent))
        index = np.floor(x * scale).astype(np.int32)
        index += half
        self.counts += np.bincount(index, minlength=BINS)[:BINS]

    def _double(self) -> None:
        assert self.counts is not None
        half = BINS // 2
        merged = np.zeros_like(self.counts)
        merged[half // 2 : half + half // 2] = self.counts.reshape(-1, 2).sum(1)
        self.counts = merged
        self.exponent += 1

    @property
    def centers(self) -> Array:
        width = math.ldexp(2.0, self.exponent) / BINS
        return (np.arange(BINS) - BINS // 2 + 0.5) * width


def _exponent(limit: float) -> int:
    return -40 if limit <= 0 else max(-40, math.floor(math.log2(limit)) + 1)


def session(graph: ir.Model, outputs: Sequence[str], *, exact: bool = True) -> ort.InferenceSession:
    """A CPU session that returns `outputs` (any value of the graph), single-threaded.

    One thread: sums then have one order, so a calibration gives the same plan on every machine
    with the same instruction set. `exact`: ORT_DISABLE_ALL.
    """
    proto = ir.to_proto(graph)
    known = {o.name for o in proto.graph.output}
    missing = [name for name in outputs if name not in known]
    types = {v.name: v for node in graph.graph for v in node.outputs}
    for name in missing:
        proto.graph.output.append(ir.serde.serialize_value(types[name]))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False
    options.graph_optimization_level = (
        ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if exact
        else ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    )
    data = proto.SerializeToString()
    del proto  # a copy of the weights that onnxruntime does not need
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def stream(
    model: Model,
    task: Task,
    names: Sequence[str],
    *,
    samples: int | None = None,
    split: str = "calibration",
) -> Iterator[dict[str, Array]]:
    """Yield {name: array} per sample for values of the graph, inputs included."""
    given = {s.name for s in model.inputs}
    produced = [n for n in names if n not in given]
    total = task.n_calibration if split == "calibration" else len(task)
    count = total if samples is None else min(samples, total)
    if count == 0:
        raise UserError("The calibration set is empty.", "Give at least one sample.")
    running = session(model.ir, produced) if produced else None
    for i in range(count):
        feed = task.feed(model, i, split)
        results = dict(feed)
        if running is not None:
            results.update(zip(produced, running.run(produced, feed), strict=True))
        yield {name: results[name] for name in names}


def collect(
    model: Model,
    task: Task,
    names: Sequence[str],
    *,
    histogram: bool = False,
    samples: int | None = None,
) -> dict[str, Statistics]:
    """Statistics of each named value over the calibration samples, in one streaming pass.

    Padded tokens of a masked sequence are left out: nothing of them reaches the result.
    """
    statistics = {name: Statistics() for name in names}
    mask = token_mask(model, task)
    extra = [] if mask is None or mask.name in names else [mask.name]
    for values in stream(model, task, [*names, *extra], samples=samples):
        keep = None if mask is None else mask.keep(values)
        for name in names:
            x = values[name]
            if mask is not None and keep is not None:
                x = mask.rows(x, keep)
            if not np.isfinite(x.max(initial=0.0)) or not np.isfinite(x.min(initial=0.0)):
                raise UserError(
                    f"Tensor {name!r} is NaN or Inf on a calibration sample.",
                    "Check the preprocessing of the calibration data and the model's weights.",
                )
            statistics[name].update(x, histogram)
    return statistics


@dataclass(frozen=True)
class RangeOptions:
    """How statistics become a range."""

    method: str = "min-max"
    percentile: float = DEFAULT_PERCENTILE
    bits: int = field(default=8)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise unknown_name("calibration method", self.method, METHODS)
        if not 50.0 < self.percentile <= 100.0:
            raise UserError(f"percentile {self.percentile} is not in (50, 100].")


def needs_histogram(method: str) -> bool:
    return method != "min-max"


def value_range(statistics: Statistics, options: RangeOptions) -> tuple[float, float]:
    """[low, high] to encode. A range always lies within the observed minimum and maximum."""
    if statistics.n == 0:
        return 0.0, 0.0
    low, high = statistics.low, statistics.high
    if options.method == "min-max" or statistics.counts is None or low == high:
        return low, high
    a, b = _SEARCHES[options.method](statistics, options)
    return max(low, min(a, 0.0)) if low < 0 else low, min(high, max(b, 0.0)) if high > 0 else high


def _percentile(s: Statistics, options: RangeOptions) -> tuple[float, float]:
    assert s.counts is not None
    tail = (1.0 - options.percentile / 100.0) / 2.0 * s.n
    total = np.cumsum(s.counts)
    width = math.ldexp(2.0, s.exponent) / BINS
    edges = (np.arange(BINS + 1) - BINS // 2) * width
    first = int(np.searchsorted(total, tail, side="right"))
    last = int(np.searchsorted(total, s.n - tail, side="left"))
    return float(edges[first]), float(edges[min(last, BINS - 1) + 1])


def _mse(s: Statistics, options: RangeOptions) -> tuple[float, float]:
    """Range of least squared error: step**2/12 inside it, the clipped distance outside it.

    Both ends are searched on a grid of 80 shrunk ranges. Sums over the histogram come from
    cumulated moments, so a candidate costs a few operations.
    """
    assert s.counts is not None
    c = s.centers
    h = s.counts.astype(np.float64)
    m0, m1, m2 = (np.concatenate([[0.0], np.cumsum(h * c**k)]) for k in (0, 1, 2))
    fractions = np.geomspace(0.02, 1.0, 80)
    lows = np.unique(np.minimum(s.low, 0.0) * fractions)
    highs = np.unique(np.maximum(s.high, 0.0) * fractions)

    def below(limit: Array) -> Array:
        k = np.searchsorted(c, limit)
        return np.asarray(m2[k] - 2 * limit * m1[k] + limit**2 * m0[k])

    def above(limit: Array) -> Array:
        k = np.searchsorted(c, limit)
        return np.asarray(
            (m2[-1] - m2[k]) - 2 * limit * (m1[-1] - m1[k]) + limit**2 * (m0[-1] - m0[k])
        )

    step = (highs[None, :] - lows[:, None]) / (2**options.bits - 1)
    error = below(lows)[:, None] + above(highs)[None, :] + s.n * step**2 / 12.0
    i, j = np.unravel_index(int(error.argmin()), error.shape)
    return float(lows[i]), float(highs[j])


def _entropy(s: Statistics, options: RangeOptions) -> tuple[float, float]:
    """Range of least KL divergence between the clipped histogram and its quantized form.

    The search of TensorRT (Migacz, GTC 2017) on nested ranges: both ends shrink in proportion.
    """
    assert s.counts is not None
    h = s.counts.astype(np.float64)
    c = s.centers
    # Exact zeros (of a ReLU, of padding) are represented exactly at any range: left in, their
    # spike outweighs everything that clipping loses.
    zero = BINS // 2
    h[zero] = min(h[zero], np.maximum(h[zero - 1], h[zero + 1]))
    levels = min(2**options.bits, 1024)
    best, chosen = math.inf, (s.low, s.high)
    for fraction in np.geomspace(0.05, 1.0, 64):
        low, high = min(s.low, 0.0) * fraction, max(s.high, 0.0) * fraction
        inside = (c >= low) & (c <= high)
        # With fewer bins than levels the quantized form is the histogram itself: no range is too
        # narrow for it, and clipping looks free.
        if inside.sum() < levels and fraction < 1.0:
            continue
        p = h[inside].copy()
        p[0] += h[c < low].sum()
        p[-1] += h[c > high].sum()
        groups = (np.arange(p.size) * levels) // p.size if p.size > levels else np.arange(p.size)
        sums = np.bincount(groups, weights=h[inside])
        filled = np.bincount(groups, weights=(p > 0).astype(np.float64))
        q = np.where(p > 0, sums[groups] / np.maximum(filled[groups], 1.0), 0.0)
        p /= p.sum()
        q = (q + 1e-12) / (q + 1e-12).sum()
        divergence = float(np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0])))
        if divergence < best:
            best, chosen = divergence, (float(low), float(high))
    return chosen


_SEARCHES: dict[str, Callable[[Statistics, RangeOptions], tuple[float, float]]] = {
    "percentile": _percentile,
    "mse": _mse,
    "entropy": _entropy,
}


def merge(parts: Iterable[Statistics]) -> Statistics:
    """Statistics of several tensors that share one encoding."""
    out = Statistics()
    for part in parts:
        out.low, out.high = min(out.low, part.low), max(out.high, part.high)
        out.n += part.n
        if part.counts is None:
            continue
        if out.counts is None:
            out.counts, out.exponent = part.counts.copy(), part.exponent
            continue
        other = Statistics(exponent=part.exponent, counts=part.counts.copy())
        while other.exponent < out.exponent:
            other._double()
        while out.exponent < other.exponent:
            out._double()
        assert other.counts is not None
        out.counts = out.counts + other.counts
    return out
