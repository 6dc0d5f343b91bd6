"""From calibration statistics to a QuantPlan in the form the HTP takes.

The form: activations unsigned asymmetric per tensor; weights signed symmetric, per output channel
or per tensor (or per block along the input axis); biases int32 at scale input x weight; gamma of a
normalisation unsigned 8 bits (HTP refuses signed there); constants as activations. Operators that
only move values share one encoding across them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from quant import calibrate
from quant.encoding import (
    Array,
    Encoding,
    QuantPlan,
    asymmetric,
    bias_encoding,
    symmetric,
)
from quant.graph import (
    FIXED_RANGES,
    Use,
    activations,
    array_of,
    encoding_groups,
    folded_into,
    initializer_uses,
    name_of,
)
from quant.model import Model
from quant.task import Task

_INT32_HEADROOM = 2.0**30


@dataclass(frozen=True)
class PlanOptions:
    """Bit widths and range methods of a plan. `table_bits`: embedding tables."""

    weight_bits: int = 8
    activation_bits: int = 8
    per_channel: bool = True
    block_size: int = 0
    calibration_method: str = "min-max"
    percentile: float = calibrate.DEFAULT_PERCENTILE
    table_bits: int = 8
    samples: int | None = None


def make_plan(
    model: Model,
    task: Task,
    options: PlanOptions,
    *,
    weights: Mapping[str, Encoding] | None = None,
    codes: Mapping[str, Array] | None = None,
    known: Mapping[str, tuple[float, float]] | None = None,
) -> QuantPlan:
    """Calibrate `model` on `task` and encode every float value that flows between operators.

    weights, codes: encodings and integers of weights that a search chose, by name; the other
    weights take the range of their largest magnitude and are rounded to nearest. known: ranges
    of activations decided beforehand.
    """
    ranges = activation_ranges(model, task, options, known or {})
    tensors = {
        name: asymmetric(low, high, options.activation_bits) for name, (low, high) in ranges.items()
    }
    plan = QuantPlan(tensors)
    plan = plan_weights(model, plan, options, weights or {})
    plan = plan.updated({}, codes)
    return plan_biases(model, plan)


def activation_ranges(
    model: Model,
    task: Task,
    options: PlanOptions,
    known: Mapping[str, tuple[float, float]],
) -> dict[str, tuple[float, float]]:
    """[low, high] of every activation to encode; group members share their root's."""
    search = calibrate.RangeOptions(
        options.calibration_method, options.percentile, options.activation_bits
    )
    (ranges,) = activation_ranges_by(model, task, [search], known, options.samples)
    return ranges


def activation_ranges_by(
    model: Model,
    task: Task,
    searches: Sequence[calibrate.RangeOptions],
    known: Mapping[str, tuple[float, float]],
    samples: int | None = None,
) -> list[dict[str, tuple[float, float]]]:
    """`activation_ranges` by each of several searches, in one pass over the samples."""
    graph = model.ir.graph
    groups = encoding_groups(graph)
    values = {name_of(v): v for v in activations(graph) if folded_into(v) is None}
    tables = {
        root: graph.initializers[root] for root in groups.values() if root in graph.initializers
    }
    fixed = {groups[name]: limits for name, limits in known.items() if name in values}
    for name in {groups[n] for n in values}:
        producer = None if name in tables else _producer(values, graph, name)
        if producer is not None and producer.op_type in FIXED_RANGES:
            fixed[name] = FIXED_RANGES[producer.op_type]
    for name, table in tables.items():
        data = array_of(table)
        fixed[name] = (float(data.min(initial=0.0)), float(data.max(initial=0.0)))
    measured = [n for n in dict.fromkeys(groups[n] for n in values) if n not in fixed]
    statistics = calibrate.collect(
        model,
        task,
        measured,
        histogram=any(calibrate.needs_histogram(s.method) for s in searches),
        samples=samples,
    )
    found = []
    for search in searches:
        ranges = {name: calibrate.value_range(statistics[name], search) for name in measured}
        found.append({name: (ranges | fixed)[groups[name]] for name in values})
    return found


def _producer(values: Mapping[str, ir.Value], graph: ir.Graph, name: str) -> ir.Node | None:
    value = values.get(name)
    return None if value is None else value.producer()


def weight_limits(data: Array, axis: int | None) -> Array:
    """Largest magnitude, per channel of `axis` or of the whole tensor (shape () )."""
    if axis is None:
        return np.asarray(np.abs(data).max(initial=0.0))
    other = tuple(i for i in range(data.ndim) if i != axis)
    return np.asarray(np.abs(data).max(axis=other, initial=0.0))


def block_limits(data: Array, axis: int, block_size: int) -> Array:
    """Largest magnitude of each block of `block_size` along `axis`."""
    length = data.shape[axis]
    starts = np.arange(0, length, block_size)
    return np.asarray(np.maximum.reduceat(np.abs(data), starts, axis=axis))


def weight_encoding(use: Use, options: PlanOptions) -> Encoding:
    """The encoding of one weight operand: per block, per channel, or per tensor."""
    data = array_of(use.value)
    bits = options.weight_bits
    if options.block_size and use.node.op_type in {"MatMul", "Gemm"} and use.axis is not None:
        axis = 1 - use.axis
        if data.shape[axis] % options.block_size == 0:
            limits = block_limits(data, axis, options.block_size)
            return symmetric(limits, bits, axis=axis, block_size=options.block_size)
    axis_or_none = use.axis if options.per_channel or bits < 8 else None
    return symmetric(weight_limits(data, axis_or_none), bits, axis=axis_or_none)


def plan_weights(
    model: Model, plan: QuantPlan, options: PlanOptions, chosen: Mapping[str, Encoding]
) -> QuantPlan:
    """Add encodings of weights, gammas and constants to a plan of activations."""
    tensors: dict[str, Encoding] = {}
    converted: dict[str, Encoding] = {}
    for use in initializer_uses(model.ir.graph):
        name = name_of(use.value)
        if name in tensors or use.role in {"bias", "parameter"}:
            continue
        if use.role == "weight":
            tensors[name] = chosen.get(name) or weight_encoding(use, options)
            continue
        data = array_of(use.value)
        low, high = float(data.min(initial=0.0)), float(data.max(initial=0.0))
        if use.role == "gamma":
            tensors[name] = asymmetric(low, high, 8)
        elif use.node.op_type == "Gather" and use.index == 0:
            out = name_of(use.node.outputs[0])
            table = asymmetric(low, high, min(options.table_bits, options.activation_bits))
            tensors[name] = table
            if options.activation_bits > options.table_bits:
                converted[out] = plan.tensors[out]
            tensors[out] = table
        else:
            tensors[name] = asymmetric(low, high, options.activation_bits)
    return plan.updated(tensors, converted=converted)


def seen_encoding(plan: QuantPlan, value: ir.Value) -> Encoding | None:
    """The encoding that consumers of an activation see."""
    name = name_of(value)
    return plan.converted.get(name) or plan.tensors.get(name)


def plan_biases(model: Model, plan: QuantPlan) -> QuantPlan:
    """Add int32 encodings of biases; widens the scale of a weight whose bias would overflow.

    A nearly dead channel has a tiny weight scale, against which an ordinary bias overflows 32
    bits: its weight scale is raised to |bias| / (input scale x 2**30). The weights lose nothing:
    they are far below one step of what the bias adds. Chosen codes follow the scale.
    """
    tensors: dict[str, Encoding] = {}
    codes: dict[str, Array] = {}
    for use in initializer_uses(model.ir.graph):
        if use.role != "bias":
            continue
        source, weight_value = use.node.inputs[0], use.node.inputs[1]
        assert source is not None and weight_value is not None
        activation = seen_encoding(plan, source)
        weight = plan.tensors.get(name_of(weight_value))
        if activation is None or weight is None:
            continue
        data = np.abs(array_of(use.value)).astype(np.float64).reshape(-1)
        if weight.block_size is not None:
            # A block-wise weight has no one scale per output channel; the bias takes its own.
            limit = np.asarray(data.max(initial=0.0) * (2.0**31 - 1) / _INT32_HEADROOM)
            tensors[name_of(use.value)] = symmetric(limit, 32)
            continue
        floor = data / (float(activation.scale) * _INT32_HEADROOM)
        if weight.signed and use.node.op_type in {"Conv", "ConvTranspose", "Gemm"}:
            floor = floor if weight.axis is not None else floor.max(initial=0.0)
            raised = np.maximum(weight.scale, np.asarray(floor, np.float32))
            if not np.array_equal(raised, weight.scale):
                name, old = name_of(weight_value), weight
                weight = replace(weight, scale=raised.astype(np.float32))
                tensors[name] = weight
                if name in plan.codes:
                    codes[name] = weight.quantize(old.dequantize(plan.codes[name]))
        tensors[name_of(use.value)] = bias_encoding(activation.scale, weight)
    return plan.updated(tensors, codes)


__all__ = [
    "PlanOptions",
    "activation_ranges",
    "block_limits",
    "make_plan",
    "plan_biases",
    "plan_weights",
    "seen_encoding",
    "weight_encoding",
    "weight_limits",
]
