"""Remove whole channels from a planned graph: the one pruning that every runtime profits from.

A group is a Conv, Gemm or MatMul whose output reaches its readers through operators that treat
every channel alone (activations, pooling, depthwise Conv); the readers' input channels go with it.
Channels that meet others in a residual sum, a concatenation or a reshape stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from quant.codebook import nearest
from quant.encoding import Encoding, QuantPlan
from quant.errors import UserError
from quant.graph import array_of, int_attribute, name_of
from quant.layers import Layer, from_matrix, linear_layers, to_matrix
from quant.model import wrap
from quant.planning import plan_biases
from quant.report import with_layers
from quant.reweight import input_moments, scale_of
from quant.rounding import Moments, greedy_round
from quant.state import Quantized
from quant.task import Task

Array = np.ndarray[Any, Any]

STEP = 8  # channels stay in multiples of it where the layer allows: the HTP's vectors are wide
_ALONE = {
    "Abs",
    "AveragePool",
    "Clip",
    "Elu",
    "Gelu",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LeakyRelu",
    "MaxPool",
    "Relu",
    "Sigmoid",
    "Tanh",
}


@dataclass(frozen=True, eq=False)
class Group:
    """Channels of `producer`; depthwise layers in between; layers that read them."""

    producer: Layer
    between: tuple[Layer, ...]
    readers: tuple[Layer, ...]
    values: tuple[tuple[str, int], ...]  # activations with their channel axis
    channels: int


def find_groups(state: Quantized) -> list[Group]:
    """Every group of the graph, in order."""
    layers = {
        id(layer.node): layer
        for layer in linear_layers(state.model)
        if layer.weight in state.plan.tensors
    }
    groups = []
    for layer in layers.values():
        if layer.groups == 1:
            found = _follow(state, layer, layers)
            if found is not None:
                groups.append(found)
    return groups


def _follow(state: Quantized, producer: Layer, layers: Mapping[int, Layer]) -> Group | None:
    data = array_of(state.model.ir.graph.initializers[producer.weight])
    channels = data.shape[producer.axis]
    values: list[tuple[str, int]] = []
    between: list[Layer] = []
    readers: list[Layer] = []
    pending = [producer.node.outputs[0]]
    while pending:
        value = pending.pop()
        axis = _channel_axis(value, producer)
        if axis is None or value.is_graph_output() or not value.uses():
            return None
        values.append((name_of(value), axis))
        for node, index in value.uses():
            layer = layers.get(id(node))
            if layer is not None and index == 0 and layer.groups == 1:
                readers.append(layer)
            elif layer is not None and index == 0 and layer.groups == channels:
                between.append(layer)
                pending.append(node.outputs[0])
            elif index == 0 and (node.op_type in _ALONE or _flattens_channels(node, channels)):
                pending.append(node.outputs[0])
            else:
                return None
    if not readers:
        return None
    return Group(producer, tuple(between), tuple(readers), tuple(values), channels)


def _channel_axis(value: ir.Value, producer: Layer) -> int | None:
    if value.shape is None:
        return None
    rank = len(value.shape)
    return 1 if producer.is_conv or rank == 2 else rank - 1


def _flattens_channels(node: ir.Node, channels: int) -> bool:
    if node.op_type != "Flatten":
        return False
    shape = node.outputs[0].shape
    axis = int_attribute(node, "axis", 1)
    return shape is not None and axis == 1 and len(shape) == 2 and shape[1] == channels


def kept_count(channels: int, sparsity: float) -> int:
    """How many channels stay: the share, rounded to STEP where there are at least 2 x STEP."""
    wanted = channels * (1.0 - sparsity)
    if channels < 2 * STEP:
        return max(1, round(wanted))
    return min(channels, max(STEP, STEP * round(wanted / STEP)))


def remove_channels(
    state: Quantized, task: Task, sparsity: float, shares: Mapping[str, float]
) -> tuple[Quantized, dict[str, tuple[int, int]]]:
    """The state without the least useful channels, and {producer weight: (before, after)}.

    shares: sparsity of single groups by producer weight. Channels are chosen by the output error
    of their readers; the readers' remaining weights take over what the removed ones carried, by
    least squares on the calibration inputs. Raises UserError where no group exists.
    """
    groups = find_groups(state)
    if not groups:
        raise UserError(
            "No channel of this model can be removed: all meet in sums, joins or outputs.",
            "Choose pruning-method magnitude or weight_importance.",
        )
    moments = dict(_moments_by_weight(state, task, groups))
    outputs: dict[str, Array] = {}  # kept output channels by weight
    inputs: dict[str, Array] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for group in groups:
        name = group.producer.weight
        count = kept_count(group.channels, shares.get(name, sparsity))
        if count == group.channels:
            continue
        kept = np.sort(np.argsort(-_score(state, group, moments), kind="stable")[:count])
        sizes[name] = (group.channels, count)
        outputs[name] = kept
        outputs |= {layer.weight: kept for layer in group.between}
        inputs |= {layer.weight: kept for layer in group.readers}
    return _rebuild(state, groups, moments, outputs, inputs), sizes


def _moments_by_weight(
    state: Quantized, task: Task, groups: list[Group]
) -> list[tuple[str, Moments]]:
    wanted = {layer.weight for group in groups for layer in group.readers}
    return [
        (layer.weight, moments)
        for layer, moments in input_moments(state.model, task)
        if layer.weight in wanted
    ]


def _columns(layer: Layer, shape: tuple[int, ...], channels: Array) -> Array:
    """Columns of the layer's matrix that belong to these input channels."""
    taps = int(np.prod(shape[2:])) if layer.is_conv else 1
    return (channels[:, None] * taps + np.arange(taps)).reshape(-1)


def _score(state: Quantized, group: Group, moments: Mapping[str, Moments]) -> Array:
    """(channels,): what the readers lose without the channel, over all they put out."""
    initializers = state.model.ir.graph.initializers
    total = np.zeros(group.channels)
    for layer in group.readers:
        data = array_of(initializers[layer.weight])
        weight = to_matrix(layer, data)[0].astype(np.float64)
        hessian = moments[layer.weight].hessian(centred=layer.bias is not None)[0]
        # Saliency of a column when the others make up for it, summed over a channel's taps.
        saliency = np.square(weight).sum(0) / np.diagonal(np.linalg.inv(hessian))
        power = float(np.einsum("nk,kl,nl->", weight, hessian, weight, optimize=True))
        total += saliency.reshape(group.channels, -1).sum(1) / max(power, 1e-30)
    return total


def _rebuild(
    state: Quantized,
    groups: list[Group],
    moments: Mapping[str, Moments],
    outputs: Mapping[str, Array],
    inputs: Mapping[str, Array],
) -> Quantized:
    graph = state.model.clone()
    initializers = graph.graph.initializers
    tensors: dict[str, Encoding] = dict(state.plan.tensors)
    codes: dict[str, Array] = {k: np.asarray(v) for k, v in state.plan.codes.items()}
    for layer in linear_layers(state.model):
        name = layer.weight
        if name not in outputs and name not in inputs:
            continue
        data = array_of(initializers[name])
        bias = None if layer.bias is None else array_of(initializers[layer.bias])
        encoding = tensors[name]
        if name in inputs:
            data, q, shift = _without_inputs(state, layer, encoding, moments[name], inputs[name])
            codes[name] = q
            bias = None if bias is None else (bias + shift).astype(np.float32)
        if name in outputs:
            kept, axis = outputs[name], layer.axis
            data = data.take(kept, axis)
            encoding = _sliced(encoding, axis, kept)
            tensors[name] = encoding
            if name in codes:
                codes[name] = codes[name].take(kept, axis)
            bias = None if bias is None else bias.take(kept, 0)
        _set(initializers[name], data)
        if layer.bias is not None and bias is not None:
            _set(initializers[layer.bias], bias)
    _resize(graph.graph, groups, outputs)
    model = wrap(graph, state.model.name)
    plan = plan_biases(model, QuantPlan(tensors, codes, state.plan.converted))
    return with_layers(replace(state, model=model, plan=plan))


def _without_inputs(
    state: Quantized, layer: Layer, encoding: Encoding, moments: Moments, kept: Array
) -> tuple[Array, Array, Array]:
    """(weight, codes, bias shift) of a reader whose other input channels are gone."""
    data = array_of(state.model.ir.graph.initializers[layer.weight])
    columns = _columns(layer, data.shape, kept)
    weight = to_matrix(layer, data)[0].astype(np.float64)
    hessian = moments.hessian(centred=layer.bias is not None)[0]
    inner = hessian[np.ix_(columns, columns)]
    target = np.linalg.solve(inner, hessian[columns] @ weight.T).T  # least squares on the kept
    scale = to_matrix(layer, scale_of(encoding, data.shape))[0][:, columns].astype(np.float64)
    levels = state.codebooks.get(layer.weight)
    low, high = encoding.qmin, encoding.qmax

    def snap(x: Array, j: int) -> Array:
        return np.clip(np.rint(x), low, high) if levels is None else nearest(levels, x)

    q = greedy_round(target, inner, scale, snap)
    after = q * scale
    mean = moments.mean[0]
    shift = weight @ mean - after @ mean[columns]
    axis = 1 if layer.is_conv else 1 - layer.axis
    shape = tuple(len(kept) if k == axis else n for k, n in enumerate(data.shape))
    if layer.is_conv:
        return (
            after.reshape(shape).astype(np.float32),
            q.reshape(shape).astype(encoding.numpy_dtype),
            shift,
        )
    restored = from_matrix(layer, after[None], shape).astype(np.float32)
    return restored, from_matrix(layer, q[None], shape).astype(encoding.numpy_dtype), shift


def _sliced(encoding: Encoding, axis: int, kept: Array) -> Encoding:
    if encoding.axis is None:
        return encoding
    if encoding.block_size is None and encoding.axis != axis:
        return encoding
    where = 0 if encoding.block_size is None else axis
    return replace(
        encoding,
        scale=encoding.scale.take(kept, where),
        zero_point=encoding.zero_point.take(kept, where),
    )


def _set(value: ir.Value, data: Array) -> None:
    value.const_value = ir.tensor(np.ascontiguousarray(data, np.float32), name=value.name)
    value.shape = ir.Shape(data.shape)


def _resize(graph: ir.Graph, groups: list[Group], outputs: Mapping[str, Array]) -> None:
    """Shapes of the values and group counts of the depthwise layers that lost channels."""
    sizes = {
        name: (axis, len(outputs[group.producer.weight]))
        for group in groups
        if group.producer.weight in outputs
        for name, axis in group.values
    }
    depthwise = {layer.weight for group in groups for layer in group.between}
    for node in graph:
        for value in node.outputs:
            found = sizes.get(value.name or "")
            if found is not None and value.shape is not None:
                axis, count = found
                dims = [count if k == axis else d for k, d in enumerate(value.shape)]
                value.shape = ir.Shape(dims)
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        if node.op_type == "Conv" and weight is not None and weight.name in depthwise:
            kept = outputs.get(name_of(weight))
            if kept is not None:
                node.attributes["group"] = ir.AttrInt64("group", len(kept))
