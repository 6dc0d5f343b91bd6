"""Cross-layer equalisation: channel scales of activations folded into the weights around them.

HTP has one scale per activation tensor. Where every operator between some convolutions commutes
with a positive scale per channel (Add, Relu, pooling), the activations s_c may become s_c / d_c:
the convolutions that make them divide their rows by d_c, those that read them multiply their
columns by it. The function stays; the channels come to use the range alike.

d_c = (peak_c / w_c)^strength up to a common factor, w_c the largest weight that reads channel c:
at strength 0.5 activations and weights share the burden (SmoothQuant, Xiao et al. 2023; without
activations' peaks it is the equalisation of Nagel et al. 2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from quant.calibrate import stream
from quant.encoding import Array
from quant.graph import array_of, int_attribute, is_float, name_of, set_initializer
from quant.model import Model, wrap
from quant.task import Task

STRENGTH = 0.5
LARGEST = 32.0  # bound of a channel's factor either way
_COMMUTING = {"Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Identity"}
_SAMPLES = 32


@dataclass
class _Group:
    """Values that must share their channel scales, and who makes and reads them."""

    values: list[ir.Value] = field(default_factory=list)
    makers: list[ir.Node] = field(default_factory=list)
    readers: list[ir.Node] = field(default_factory=list)
    pinned: bool = False


def equalize(model: Model, task: Task, strength: float = STRENGTH) -> Model:
    """The model with equalised channels; the same model where no group of values qualifies."""
    graph = model.clone()
    groups = [g for g in _groups(graph.graph) if not g.pinned and g.makers and g.readers]
    if not groups:
        return model
    names = [name_of(v) for g in groups for v in g.values]
    peaks = _peaks(model, task, names)
    for group in groups:
        peak = np.max([peaks[name_of(v)] for v in group.values], axis=0)
        weight = np.max([_column_peaks(reader) for reader in group.readers], axis=0)
        factor = _factors(peak, weight, strength)
        for maker in group.makers:
            _scale_rows(graph.graph, maker, 1.0 / factor)
        for reader in group.readers:
            _scale_columns(graph.graph, reader, factor)
    return wrap(graph, model.name)


def _factors(peak: Array, weight: Array, strength: float) -> Array:
    live = (peak > 1e-9) & (weight > 1e-9)
    ratio = np.where(live, peak, 1.0) / np.where(live, weight, 1.0)
    logs = np.where(live, strength * np.log(ratio), 0.0)
    if live.any():
        logs = np.where(live, logs - logs[live].mean(), 0.0)
    return np.clip(np.exp(logs), 1.0 / LARGEST, LARGEST)


def _channels(value: ir.Value) -> int | None:
    if not is_float(value) or value.shape is None or len(value.shape) != 4:
        return None
    size = value.shape[1]
    return size if isinstance(size, int) else None


def _groups(graph: ir.Graph) -> list[_Group]:
    """Groups of 4-D values connected by operators that commute with channel scales."""
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
        out = node.outputs[0]
        if id(out) not in values:
            continue
        linked = node.inputs if node.op_type == "Add" else node.inputs[:1]
        if node.op_type in _COMMUTING or (node.op_type == "Add" and _plain_sum(node)):
            for operand in linked:
                if operand is not None and id(operand) in values:
                    parent[id(find(operand))] = find(out)
    found: dict[int, _Group] = {}
    for value in values.values():
        group = found.setdefault(id(find(value)), _Group())
        group.values.append(value)
        _attach(group, value)
    return list(found.values())


def _plain_sum(node: ir.Node) -> bool:
    return all(
        v is not None and not v.is_initializer() and _channels(v) == _channels(node.outputs[0])
        for v in node.inputs
    )


def _inside(node: ir.Node) -> bool:
    return node.op_type in _COMMUTING or (node.op_type == "Add" and _plain_sum(node))


def _attach(group: _Group, value: ir.Value) -> None:
    producer = value.producer()
    if producer is None or value.is_graph_output():
        group.pinned = True
    elif producer.op_type == "Conv" and _own_weights(producer):
        group.makers.append(producer)
    elif not _inside(producer):
        group.pinned = True
    for node, index in value.uses():
        if _inside(node):
            continue
        if node.op_type == "Conv" and index == 0 and _own_weights(node) and _readable(node):
            group.readers.append(node)
        else:
            group.pinned = True


def _own_weights(node: ir.Node) -> bool:
    constants = node.inputs[1:]
    return all(v is not None and v.is_initializer() and len(list(v.uses())) == 1 for v in constants)


def _depthwise(node: ir.Node) -> bool:
    weight = node.inputs[1]
    assert weight is not None
    shape = array_of(weight).shape
    return bool(int_attribute(node, "group", 1) == shape[0] and shape[1] == 1)


def _readable(node: ir.Node) -> bool:
    return int_attribute(node, "group", 1) == 1 or _depthwise(node)


def _column_peaks(node: ir.Node) -> Array:
    """Largest weight that reads each input channel, (C,)."""
    assert node.inputs[1] is not None
    data = np.abs(array_of(node.inputs[1]))
    axes = (1, 2, 3) if _depthwise(node) else (0, 2, 3)
    return np.asarray(data.max(axis=axes))


def _scale_rows(graph: ir.Graph, node: ir.Node, factor: Array) -> None:
    for index in (1, 2):
        value = node.inputs[index] if len(node.inputs) > index else None
        if value is not None:
            data = array_of(value).astype(np.float64)
            scaled = data * factor.reshape(-1, *[1] * (data.ndim - 1))
            _replace(graph, node, index, value, scaled)


def _scale_columns(graph: ir.Graph, node: ir.Node, factor: Array) -> None:
    value = node.inputs[1]
    assert value is not None
    shape = (-1, 1, 1, 1) if _depthwise(node) else (1, -1, 1, 1)
    _replace(graph, node, 1, value, array_of(value).astype(np.float64) * factor.reshape(shape))


def _replace(graph: ir.Graph, node: ir.Node, index: int, old: ir.Value, data: Array) -> None:
    node.replace_input_with(
        index, set_initializer(graph, f"{old.name}_equalized", data.astype(np.float32))
    )
    if not old.uses():
        del graph.initializers[name_of(old)]


def _peaks(model: Model, task: Task, names: list[str]) -> Mapping[str, Array]:
    peaks: dict[str, Array] = {}
    for values in stream(model, task, names, samples=_SAMPLES):
        for name, x in values.items():
            top = np.abs(x).max(axis=(0, 2, 3)).astype(np.float64)
            peaks[name] = np.maximum(peaks[name], top) if name in peaks else top
    return peaks
