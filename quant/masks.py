"""Saturating constants of attention masks, tamed before any range is taken.

An exporter writes "no attention here" as -3.4e38, -inf or -1e4. Left alone it becomes the range of
the scores, and every real score lands in one or two codes. Here the constant becomes just large
enough: for a Softmax whose real scores reach `high`, and whose least row maximum is m, everything
below m - MARGIN contributes less than exp(-MARGIN) of a row, so the scores need no range below it
and the mask no value below that minus `high`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from quant.calibrate import stream
from quant.encoding import Array
from quant.graph import array_of, is_float, name_of
from quant.layers import token_mask
from quant.model import Model, wrap
from quant.task import Task

SATURATING = 1e3  # larger magnitudes on a mask's path mean "never"
FLOAT_LIMIT = 1e4  # what half precision and exp() still take as "never"
MARGIN = 10.0  # exp(-10) = 4.5e-5
_SAMPLES = 32
_PATH = {
    "Add",
    "Cast",
    "Concat",
    "Expand",
    "Gather",
    "Identity",
    "Mul",
    "Reshape",
    "Slice",
    "Sub",
    "Transpose",
    "Unsqueeze",
    "Where",
}


@dataclass(frozen=True)
class Tamed:
    """The model with its mask constants replaced, and [low, high] of values feeding a Softmax."""

    model: Model
    ranges: Mapping[str, tuple[float, float]]


def limit_constants(graph: ir.Graph) -> bool:
    """Clamp mask constants beyond -1e4 to -1e4: exp() of either is zero (in place)."""
    changed = False
    for value in mask_constants(graph):
        data = array_of(value)
        if (data < -FLOAT_LIMIT).any():
            clamped = np.maximum(data, np.float32(-FLOAT_LIMIT)).astype(np.float32)
            value.const_value = ir.tensor(clamped, name=name_of(value))
            changed = True
    return changed


def mask_constants(graph: ir.Graph) -> list[ir.Value]:
    """Saturating float initializers from which a Softmax input is computed by moves and sums."""
    found: dict[str, ir.Value] = {}
    seen: set[int] = set()
    stack = [n.inputs[0] for n in graph if n.op_type in {"Softmax", "LogSoftmax"}]
    while stack:
        value = stack.pop()
        if value is None or id(value) in seen:
            continue
        seen.add(id(value))
        if value.is_initializer():
            if is_float(value) and (array_of(value) <= -SATURATING).any():
                found[name_of(value)] = value
            continue
        producer = value.producer()
        if producer is not None and producer.op_type in _PATH:
            stack.extend(producer.inputs)
    return list(found.values())


def tame(model: Model, task: Task) -> Tamed:
    """Measure the real scores of each Softmax, then replace the saturating constants."""
    inputs = {
        name_of(n.inputs[0]): n
        for n in model.ir.graph
        if n.op_type in {"Softmax", "LogSoftmax"} and n.inputs[0] is not None
    }
    inputs = {k: n for k, n in inputs.items() if _last_axis(n)}
    if not inputs:
        return Tamed(model, {})
    high = dict.fromkeys(inputs, -math.inf)
    low = dict.fromkeys(inputs, math.inf)
    least = dict.fromkeys(inputs, math.inf)
    mask = token_mask(model, task)
    extra = [] if mask is None else [mask.name]
    for values in stream(model, task, [*inputs, *extra], samples=_SAMPLES):
        for name in inputs:
            x = values[name]
            if mask is not None:
                x = mask.rows(x, mask.keep(values))
            real = np.where(x > -SATURATING, x, -np.inf)
            top = real.max(-1)
            top = top[np.isfinite(top)]
            if top.size:
                high[name] = max(high[name], float(top.max()))
                least[name] = min(least[name], float(top.min()))
                low[name] = min(low[name], float(real[np.isfinite(real)].min()))
    ranges: dict[str, tuple[float, float]] = {}
    constants = mask_constants(model.ir.graph)
    depth = 0.0
    for name in inputs:
        if not math.isfinite(high[name]):
            continue
        floor = least[name] - MARGIN
        ranges[name] = (floor if constants else max(floor, low[name]), high[name])
        depth = max(depth, high[name] - floor)
    if not constants or depth == 0.0:
        return Tamed(model, ranges)
    graph = model.clone()
    for constant in constants:
        value = graph.graph.initializers[name_of(constant)]
        data: Array = np.maximum(array_of(constant), np.float32(-depth)).astype(np.float32)
        data = np.where(array_of(constant) <= -SATURATING, np.float32(-depth), data)
        value.const_value = ir.tensor(data, name=name_of(value))
    return Tamed(wrap(graph, model.name), ranges)


def _last_axis(node: ir.Node) -> bool:
    axis = node.attributes.get("axis")
    value = node.inputs[0]
    rank = 0 if value is None or value.shape is None else len(value.shape)
    return axis is None or axis.as_int() in (-1, rank - 1)
