"""Cross-layer equalisation: channel scales of activations folded into the weights around them.

HTP has one scale per activation tensor. Where every operator between some layers commutes with a
positive scale per channel (Add, Relu, pooling), the activations x_c may become f_c x_c: the layers
that make them multiply their rows by f_c, those that read them divide their columns by it. The
function stays; the channels come to use the range alike (Nagel et al. 2019, "Data-Free Quantization
Through Weight Equalization and Bias Correction", section 4.1).

A Clip at `high` (ReLU6) commutes only for a channel that never reaches it: such a channel may grow
until it does, with a margin; the others keep their scale.

The factors are f_c = w_c^a / m_c^b, m_c the channel's largest activation and w_c the largest weight
that reads it (equalisation of weights and SmoothQuant are the special cases b = 1 - a). a and b are
those of least predicted noise at the readers' outputs, relative to their power: the rounding noise
of activations (step**2/12, all channels share the step) through the weights, and the rounding noise
of the weights (each row has one step) through the activations.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from quant.calibrate import stream
from quant.encoding import DEAD, Array
from quant.graph import (
    array_of,
    clip_bounds,
    int_attribute,
    is_float,
    name_of,
)
from quant.model import Model, wrap
from quant.task import Task

LARGEST = 256.0  # bound of a channel's factor either way
QUIET = 1.0 / 256  # of the largest channel: what a channel counts as at least
CLIP_MARGIN = 1.15  # a channel grows until its largest calibrated value times this meets the Clip
_EXPONENTS = tuple(k / 8 for k in range(9))
_COMMUTING = {
    "AveragePool",
    "Flatten",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Identity",
    "LeakyRelu",
    "MaxPool",
    "Relu",
}
_SAMPLES = 64


@dataclass
class _Group:
    """Values that must share their channel scales, and who makes and reads them."""

    values: list[ir.Value] = field(default_factory=list)
    makers: list[ir.Node] = field(default_factory=list)
    readers: list[tuple[ir.Node, ir.Value]] = field(default_factory=list)
    ceilings: list[tuple[ir.Value, float]] = field(default_factory=list)  # Clip output, its bound
    pinned: bool = False


@dataclass
class _Channels:
    """Per channel: largest value, largest magnitude, second moment."""

    top: Array
    peak: Array
    power: Array

    def scaled(self, factor: Array) -> _Channels:
        return _Channels(self.top * factor, self.peak * factor, self.power * factor**2)


def equalize(model: Model, task: Task, *, weight_bits: int = 8, activation_bits: int = 8) -> Model:
    """The model with equalised channels; the same model where no group of values qualifies."""
    graph = model.clone()
    groups = [g for g in _groups(graph.graph) if not g.pinned and g.makers and g.readers]
    if not groups:
        return model
    channels = _statistics(model, task, [name_of(v) for g in groups for v in g.values])
    for group in groups:
        factor = _factors(group, channels, weight_bits, activation_bits)
        for maker in group.makers:
            _scale_rows(maker, factor)
        for reader, _ in group.readers:
            _scale_columns(reader, 1.0 / factor)
    return wrap(graph, model.name)


def _factors(
    group: _Group, channels: Mapping[str, _Channels], weight_bits: int, activation_bits: int
) -> Array:
    """The factor of each channel, (C,): the member of the family with the least noise.

    A channel that calibration never saw fire counts as one of QUIET times the largest: its weights,
    which may be huge, must not set the scale of all others.
    """
    peak = np.max([channels[name_of(v)].peak for _, v in group.readers], axis=0)
    peak = np.maximum(peak, QUIET * peak.max())
    weight = np.max([np.abs(_columns(node)).max(axis=(0, 2)) for node, _ in group.readers], axis=0)
    weight = np.maximum(weight, QUIET * weight.max())
    ceiling = np.full(peak.shape, LARGEST)
    for value, high in group.ceilings:
        top = np.maximum(channels[name_of(value)].top, QUIET * high)
        ceiling = np.minimum(ceiling, high / (CLIP_MARGIN * top))
    free = ceiling > 1.0
    best = math.inf
    chosen: Array = np.ones_like(peak)
    if not free.any() or not peak.all() or not weight.all():
        return chosen
    for a, b in itertools.product(_EXPONENTS, _EXPONENTS):
        factor = _family(peak, weight, free, ceiling, a, b)
        noise = sum(
            _noise(node, channels[name_of(v)].scaled(factor), factor, weight_bits, activation_bits)
            for node, v in group.readers
        )
        if noise < best:
            best, chosen = noise, factor
    return chosen


def _family(peak: Array, weight: Array, free: Array, ceiling: Array, a: float, b: float) -> Array:
    """weight**a / peak**b, scaled so that the largest value of all keeps its size."""
    logs = a * np.log(weight[free]) - b * np.log(peak[free])
    logs += math.log(peak.max()) - (np.log(peak[free]) + logs).max()
    factor = np.ones_like(peak)
    factor[free] = np.minimum(np.clip(np.exp(logs), 1.0 / LARGEST, LARGEST), ceiling[free])
    return factor


def _noise(
    node: ir.Node, seen: _Channels, factor: Array, weight_bits: int, activation_bits: int
) -> float:
    """Predicted squared error over power of a reader's outputs, mean over the outputs.

    seen: the channels of its input after scaling by `factor`.
    """
    activation = (float(seen.peak.max()) / (2**activation_bits - 1)) ** 2 / 12.0
    if _depthwise(node):  # each channel has its own step: scales cost the weights nothing
        live = seen.power > DEAD * seen.power.max()
        return float((activation / seen.power[live]).mean()) if live.any() else 0.0
    weight = _columns(node) / factor[:, None]
    squares = np.square(weight).sum(2)
    steps = np.abs(weight).max((1, 2)) / (2 ** (weight_bits - 1) - 1)
    rounding = steps**2 / 12.0 * weight.shape[2] * seen.power.sum()
    signal = squares @ seen.power
    live = signal > DEAD * signal.max(initial=0.0)
    noise = activation * squares.sum(1) + rounding
    return float((noise[live] / signal[live]).mean()) if live.any() else 0.0


def _channels(value: ir.Value) -> int | None:
    """Channels of an activation of a Conv (N, C, ...) or Gemm (N, C)."""
    if not is_float(value) or value.shape is None or not 2 <= len(value.shape) <= 4:
        return None
    size = value.shape[1]
    return size if isinstance(size, int) else None


def _groups(graph: ir.Graph) -> list[_Group]:
    """Groups of values connected by operators that commute with channel scales."""
    parent: dict[int, ir.Value] = {}
    values: dict[int, ir.Value] = {}

    def find(value: ir.Value) -> ir.Value:
        while parent[id(value)] is not value:
            value = parent[id(value)]
        return value

    for value in [*graph.inputs, *(v for n in graph for v in n.outputs)]:
        if _channels(value) is not None:
            values[id(value)] = parent[id(value)] = value
    for node in graph:
        if not _inside(node):
            continue
        for operand in node.inputs if node.op_type == "Add" else node.inputs[:1]:
            if operand is not None and id(operand) in values:
                parent[id(find(operand))] = find(node.outputs[0])
    found: dict[int, _Group] = {}
    for value in values.values():
        group = found.setdefault(id(find(value)), _Group())
        group.values.append(value)
        _attach(group, value)
    return list(found.values())


def _inside(node: ir.Node) -> bool:
    """Whether the operator treats every channel alone and commutes with its positive scale."""
    source, output = node.inputs[0] if node.inputs else None, node.outputs[0]
    if source is None or _channels(output) is None or _channels(source) != _channels(output):
        return False
    if node.op_type == "Add":
        return all(
            v is not None and not v.is_initializer() and _channels(v) == _channels(output)
            for v in node.inputs
        )
    return node.op_type in _COMMUTING or (node.op_type == "Clip" and clip_bounds(node)[0] == 0.0)


def _attach(group: _Group, value: ir.Value) -> None:
    producer = value.producer()
    if producer is None or value.is_graph_output():
        group.pinned = True
    elif producer.op_type in {"Conv", "Gemm"} and _own_weights(producer):
        group.makers.append(producer)
    elif not _inside(producer):
        group.pinned = True
    elif producer.op_type == "Clip":
        high = clip_bounds(producer)[1]
        if high is None:
            group.pinned = True
        elif high != math.inf:
            group.ceilings.append((value, high))
    for node, index in value.uses():
        if _inside(node):
            continue
        if index == 0 and _readable(node) and _own_weights(node):
            group.readers.append((node, value))
        else:
            group.pinned = True


def _own_weights(node: ir.Node) -> bool:
    constants = node.inputs[1:]
    return all(v is not None and v.is_initializer() and len(list(v.uses())) == 1 for v in constants)


def _depthwise(node: ir.Node) -> bool:
    weight = node.inputs[1]
    if node.op_type != "Conv" or weight is None or not weight.is_initializer():
        return False
    shape = array_of(weight).shape
    return bool(int_attribute(node, "group", 1) == shape[0] and shape[1] == 1)


def _readable(node: ir.Node) -> bool:
    if node.op_type == "Gemm":
        return not int_attribute(node, "transA", 0)
    return node.op_type == "Conv" and (int_attribute(node, "group", 1) == 1 or _depthwise(node))


def _output_axis(node: ir.Node) -> int:
    return 0 if node.op_type == "Conv" or int_attribute(node, "transB", 0) else 1


def _columns(node: ir.Node) -> Array:
    """(outputs, channels, taps) float64; (1, channels, taps) of a depthwise Conv."""
    assert node.inputs[1] is not None
    data = array_of(node.inputs[1]).astype(np.float64)
    data = data if _output_axis(node) == 0 else data.T
    if _depthwise(node):
        return data.reshape(1, data.shape[0], -1)
    return data.reshape(*data.shape[:2], -1)


def _scale_rows(node: ir.Node, factor: Array) -> None:
    for index in (1, 2):
        value = node.inputs[index] if len(node.inputs) > index else None
        if value is not None:
            _scale(value, factor, _output_axis(node) if index == 1 else array_of(value).ndim - 1)


def _scale_columns(node: ir.Node, factor: Array) -> None:
    assert node.inputs[1] is not None
    _scale(node.inputs[1], factor, 0 if _depthwise(node) else 1 - _output_axis(node))


def _scale(value: ir.Value, factor: Array, axis: int) -> None:
    """Multiply an initializer by the factors along `axis`."""
    data = array_of(value).astype(np.float64)
    shape = [1] * data.ndim
    shape[axis] = -1
    scaled = (data * factor.reshape(shape)).astype(np.float32)
    value.const_value = ir.tensor(scaled, name=name_of(value))


def _statistics(model: Model, task: Task, names: list[str]) -> Mapping[str, _Channels]:
    found: dict[str, _Channels] = {}
    count = min(_SAMPLES, task.n_calibration)
    for values in stream(model, task, list(dict.fromkeys(names)), samples=_SAMPLES):
        for name, x in values.items():
            axes = tuple(i for i in range(x.ndim) if i != 1)
            top = x.max(axes).astype(np.float64)
            peak = np.maximum(top, -x.min(axes).astype(np.float64))
            power = np.square(x).mean(axes, dtype=np.float64) / count
            seen = found.get(name)
            if seen is not None:
                top, peak = np.maximum(seen.top, top), np.maximum(seen.peak, peak)
                power = seen.power + power
            found[name] = _Channels(top, peak, power)
    return found
