"""Second-order rounding in graph order, each layer compensating what the layers before it lost.

The float and the quantized network run side by side, operator by operator, over the calibration
samples. With X the float and Y the quantized input of a layer, its weight W is first moved to the
least-squares weight on Y, W + W (X - Y) Y^T (Y Y^T + damping)^-1, and then rounded against the
Hessian Y Y^T; the bias takes up the mean (after GPTAQ, Li et al. 2025).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from quant.encoding import Array, Encoding, QuantPlan
from quant.execute import NodeRunner, read_counts
from quant.graph import array_of, name_of
from quant.layers import Layer, from_matrix, input_rows, linear_layers, to_matrix, token_mask
from quant.model import Model
from quant.refine import Refined, RefineOptions, round_layer
from quant.rewrite import replace_weights
from quant.rounding import CrossMoments
from quant.task import Task


def refine_sequential(
    model: Model,
    task: Task,
    options: RefineOptions,
    activations: QuantPlan,
    bits_of: Mapping[str, int] | None = None,
) -> Refined:
    """As refine_weights, one layer after the other on the outputs of the quantized ones.

    activations: encodings of the activations, applied on the quantized side. Memory: the values
    alive between two operators, for all samples, twice.
    """
    graph = model.ir.graph
    layers = {id(layer.node): layer for layer in linear_layers(model)}
    mask = token_mask(model, task)
    count = min(options.samples, task.n_calibration)
    feeds = [task.feed(model, i, "calibration") for i in range(count)]
    keeps = [None if mask is None else mask.keep(feed) for feed in feeds]
    exact: list[dict[str, Array]] = [dict(feed) for feed in feeds]
    rounded: list[dict[str, Array]] = [_encoded(activations, feed) for feed in feeds]
    left = read_counts(graph)
    encodings: dict[str, Encoding] = {}
    codes: dict[str, Array] = {}
    biases: dict[str, Array] = {}
    for node in graph:
        runner = NodeRunner(node, model.ir.opset_imports[""])
        layer = layers.get(id(node))
        replaced: dict[str, Array] = {}
        if layer is not None:
            data = array_of(graph.initializers[layer.weight])
            moments = CrossMoments(layer.groups, to_matrix(layer, data).shape[-1])
            for x, y, keep in zip(exact, rounded, keeps, strict=True):
                pair = [values[layer.source] for values in (x, y)]
                if mask is not None and keep is not None:
                    pair = [mask.rows(v, keep) for v in pair]
                moments.update(*(input_rows(layer, v, data.shape) for v in pair))
            bits = (bits_of or {}).get(layer.weight, options.bits)
            encoding, q, restored, bias = _solve(model, layer, data, moments, options, bits)
            encodings[layer.weight], codes[layer.weight] = encoding, q
            replaced[layer.weight] = restored
            if layer.bias is not None and bias is not None:
                biases[layer.bias] = bias
                replaced[layer.bias] = bias
        for x, y in zip(exact, rounded, strict=True):
            x.update(runner.run(x, {}))
            y.update(_encoded(activations, runner.run(y, replaced)))
        for value in {v for v in node.inputs if v is not None}:
            name = name_of(value)
            left[name] -= 1
            if left[name] == 0:
                for values in (*exact, *rounded):
                    values.pop(name, None)
    corrected = replace_weights(model, biases) if biases else model
    return Refined(corrected, encodings, codes)


def _encoded(plan: QuantPlan, values: Mapping[str, Array]) -> dict[str, Array]:
    return {
        name: plan.tensors[name].fake(x) if name in plan.tensors else x
        for name, x in values.items()
    }


def _solve(
    model: Model,
    layer: Layer,
    data: Array,
    moments: CrossMoments,
    options: RefineOptions,
    bits: int,
) -> tuple[Encoding, Array, Array, Array | None]:
    """(encoding, codes, dequantized weight, bias) of one layer."""
    has_bias = layer.bias is not None
    hessian = moments.hessian(centred=has_bias)
    weight = to_matrix(layer, data).astype(np.float64)
    moved = weight + weight @ moments.correction(hessian, centred=has_bias)
    target = from_matrix(layer, moved.astype(np.float32), data.shape)
    encoding, q = round_layer(layer, target, hessian, options, bits)
    restored = encoding.dequantize(q)
    if layer.bias is None:
        return encoding, q, restored, None
    old = array_of(model.ir.graph.initializers[layer.bias])
    lost = np.einsum("gnk,gk->gn", weight, moments.mean_exact) - np.einsum(
        "gnk,gk->gn", to_matrix(layer, restored).astype(np.float64), moments.mean
    )
    bias = (old.astype(np.float64) + lost.reshape(old.shape)).astype(np.float32)
    return encoding, q, restored, bias
