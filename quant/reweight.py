"""Change the weights of a planned model: what clustering and pruning share.

Weights are seen as matrices (groups, outputs, depth) with the second moments of their inputs
(quant/layers.py, quant/rounding.py), rounded greedily onto any set of codes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from quant.calibrate import stream
from quant.codebook import nearest
from quant.encoding import Encoding
from quant.graph import array_of
from quant.layers import Layer, input_rows, linear_layers, to_matrix, token_mask
from quant.model import Model
from quant.planning import plan_biases
from quant.report import with_layers
from quant.rewrite import replace_weights
from quant.rounding import Moments, bias_shift
from quant.state import Quantized
from quant.task import Task

Array = np.ndarray[Any, Any]
_BUDGET_BYTES = 400_000_000  # Hessians held at once; beyond it, another pass over the samples
SAMPLES = 64


def planned(state: Quantized, task: Task, activation_bits: int = 8) -> Quantized:
    """The state itself where a step before made a plan, else the int8 plan."""
    if state.plan.tensors:
        return state
    from quant.methods import int8

    return int8.apply(state, task, int8.Int8Options(activation_bits=activation_bits))


def input_moments(
    model: Model, task: Task, samples: int = SAMPLES
) -> Iterator[tuple[Layer, Moments]]:
    """Every linear layer of the graph with the second moments of its input rows."""
    shapes = {n: tuple(array_of(v).shape) for n, v in model.ir.graph.initializers.items()}
    mask = token_mask(model, task)
    pending = linear_layers(model)
    while pending:
        taken: list[tuple[Layer, Moments]] = []
        used = 0
        for layer in pending:
            shape = shapes[layer.weight]
            depth = int(np.prod(shape[1:])) if layer.is_conv else shape[1 - layer.axis]
            size = 4 * layer.groups * depth * depth
            if taken and used + size > _BUDGET_BYTES:
                break
            used += size
            taken.append((layer, Moments(layer.groups, depth)))
        names = list(dict.fromkeys(layer.source for layer, _ in taken))
        extra = [] if mask is None or mask.name in names else [mask.name]
        for values in stream(model, task, [*names, *extra], samples=samples):
            for layer, moments in taken:
                x = values[layer.source]
                if mask is not None:
                    x = mask.rows(x, mask.keep(values))
                moments.update(input_rows(layer, x, shapes[layer.weight]))
        yield from taken
        pending = pending[len(taken) :]


def scale_of(encoding: Encoding, shape: tuple[int, ...]) -> Array:
    """The scale of every element, in the weight's stored shape."""
    one = np.ones(shape, np.int32) + encoding.zero_point.reshape(-1)[0].astype(np.int32)
    return encoding.dequantize(one)


def corrected_bias(
    model: Model, layer: Layer, before: Array, after: Array, moments: Moments
) -> dict[str, Array]:
    """The bias that keeps the layer's mean output as `before` (stored shape) made it."""
    if layer.bias is None or layer.bias not in model.ir.graph.initializers:
        return {}
    old = array_of(model.ir.graph.initializers[layer.bias])
    shift = bias_shift(to_matrix(layer, before), to_matrix(layer, after), moments.mean)
    return {layer.bias: (old + shift.reshape(old.shape)).astype(np.float32)}


def with_codes(
    state: Quantized,
    codes: Mapping[str, Array],
    biases: Mapping[str, Array],
    encodings: Mapping[str, Encoding] | None = None,
) -> Quantized:
    """The state with these integers as weights; the float weights become what they stand for.

    encodings: where scales changed too. The per-layer report compares with the weights before.
    """
    plan = state.plan.updated(dict(encodings or {}))
    integers = {n: q.astype(plan.tensors[n].numpy_dtype) for n, q in codes.items()}
    biased = replace_weights(state.model, biases) if biases else state.model
    final = plan_biases(biased, plan.updated({}, integers))
    # A nearly dead channel may have its scale raised for its bias: its codes follow.
    for name in [n for n in integers if final.tensors[n] is not plan.tensors[n]]:
        old, new = plan.tensors[name], final.tensors[name]
        levels = state.codebooks.get(name)
        if levels is None:
            integers[name] = final.codes[name]
            continue
        shape = integers[name].shape
        target = integers[name] * (scale_of(old, shape) / scale_of(new, shape))
        integers[name] = nearest(levels, target).astype(new.numpy_dtype)
    final = final.updated({}, integers)
    stored = {n: final.tensors[n].dequantize(q) for n, q in integers.items()}
    report = with_layers(replace(state, model=biased, plan=final))
    model = replace_weights(biased, stored)
    return replace(report, model=model, teacher=state.teacher or state.model)
