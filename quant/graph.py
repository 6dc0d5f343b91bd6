"""What each value of a graph is to a quantizer: weight, bias, activation, or left alone.

One classification, used by planning, by the rewriter and by the rule checker, so that they can
never disagree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

Array = np.ndarray[Any, Any]
Role = Literal["weight", "bias", "gamma", "constant", "parameter"]

# Operators that move values without computing: input 0 and the outputs share one encoding.
PASS_THROUGH = {
    "DepthToSpace",
    "Expand",
    "Flatten",
    "Gather",
    "GatherElements",
    "GatherND",
    "Identity",
    "MaxPool",
    "GlobalMaxPool",
    "ReduceMax",
    "ReduceMin",
    "Reshape",
    "Slice",
    "SpaceToDepth",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
}

# Output ranges known without data.
FIXED_RANGES: dict[str, tuple[float, float]] = {
    "Softmax": (0.0, 1.0),
    "Sigmoid": (0.0, 1.0),
    "HardSigmoid": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
}

# Inputs that configure the operator; they stay as they are.
_PARAMETERS: dict[str, set[int]] = {
    "Clip": {1, 2},
    "Resize": {1, 2, 3},
    "Upsample": {1},
    "Pad": {1, 2, 3},
    "Reshape": {1},
    "Expand": {1},
    "Tile": {1},
    "Dropout": {1, 2},
    "OneHot": {1, 2},
    "TopK": {1},
    "BatchNormalization": {1, 2, 3, 4},
}

FOLDABLE_ACTIVATIONS = {"Relu", "Clip"}  # a quantizer that saturates at the same ends replaces them
_FOLDS_INTO = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "BatchNormalization"}


@dataclass(frozen=True)
class Use:
    """One operand that is an initializer: its node, index, role and channel axis."""

    node: ir.Node
    index: int
    value: ir.Value
    role: Role
    axis: int | None = None


def name_of(value: ir.Value) -> str:
    if value.name is None:
        raise ValueError("a value of the graph has no name")
    return value.name


def is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.FLOAT


def array_of(value: ir.Value) -> Array:
    """The data of an initializer (a view, read-only by convention)."""
    if value.const_value is None:
        raise ValueError(f"{value.name} is not an initializer")
    return value.const_value.numpy()


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    attr = node.attributes.get(name)
    return default if attr is None else int(attr.as_int())


def float_attribute(node: ir.Node, name: str, default: float) -> float:
    attr = node.attributes.get(name)
    return default if attr is None else float(attr.as_float())


def classify(node: ir.Node, index: int) -> tuple[Role, int | None]:
    """Role of the initializer at operand `index` of `node`, and its output-channel axis."""
    op = node.op_type
    if index in _PARAMETERS.get(op, ()):
        return "parameter", None
    if op in {"Conv", "ConvTranspose"}:
        if index == 2:
            return "bias", None
        if index == 1:
            return "weight", 0 if op == "Conv" else 1
    if op == "Gemm":
        if index == 2:
            return "bias", None
        if index == 1:
            return "weight", 0 if int_attribute(node, "transB", 0) else 1
    if op == "MatMul" and index == 1:
        value = node.inputs[1]
        rank = 0 if value is None or value.shape is None else len(value.shape)
        return ("weight", 1) if rank == 2 else ("constant", None)
    if op in {"LayerNormalization", "InstanceNormalization", "GroupNormalization"}:
        if index == 1:
            return "gamma", None
        if index == 2:
            return "bias", None
    if op in {"RMSNormalization"} and index == 1:
        return "gamma", None
    if op in {"LSTM", "GRU", "RNN"}:
        return "parameter", None
    return "constant", None


def initializer_uses(graph: ir.Graph) -> Iterator[Use]:
    """Every float initializer operand of every node, in graph order."""
    for node in graph:
        for index, value in enumerate(node.inputs):
            if value is not None and value.is_initializer() and is_float(value):
                role, axis = classify(node, index)
                yield Use(node, index, value, role, axis)


def activations(graph: ir.Graph) -> list[ir.Value]:
    """Float values that flow between operators, inputs first, in graph order."""
    seen: dict[str, ir.Value] = {}
    for node in graph:
        for index, value in enumerate(node.inputs):
            if value is None or value.is_initializer() or not is_float(value):
                continue
            if index not in _PARAMETERS.get(node.op_type, ()):
                seen.setdefault(name_of(value), value)
        for value in node.outputs:
            if is_float(value) and (value.uses() or value.is_graph_output()):
                seen.setdefault(name_of(value), value)
    return list(seen.values())


def folded_into(value: ir.Value) -> ir.Value | None:
    """The output of the Relu or Clip that alone consumes `value`, if quantizing there suffices.

    HTP saturates a convolution's accumulator at the ends of the output encoding, which is what
    Relu and Clip do: quantizing between the two would only add noise.
    """
    producer = value.producer()
    uses = list(value.uses())
    if producer is None or producer.op_type not in _FOLDS_INTO or value.is_graph_output():
        return None
    if len(uses) != 1:
        return None
    node = uses[0].node
    if node.op_type not in FOLDABLE_ACTIVATIONS or uses[0].idx != 0:
        return None
    low, high = clip_bounds(node)
    if low is None or high is None or low > 0.0 or high < 0.0:
        return None
    if low < 0.0 and high != float("inf") and low == -float("inf"):
        return None
    output: ir.Value = node.outputs[0]
    return output


def clip_bounds(node: ir.Node) -> tuple[float | None, float | None]:
    """(low, high) of a Relu or Clip; None where a bound is not a constant."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    bounds: list[float | None] = [-float("inf"), float("inf")]
    for position in (1, 2):
        operand = node.inputs[position] if len(node.inputs) > position else None
        if operand is not None:
            constant = operand.const_value
            bounds[position - 1] = (
                None if constant is None else float(constant.numpy().reshape(-1)[0])
            )
    return bounds[0], bounds[1]


def encoding_groups(graph: ir.Graph) -> dict[str, str]:
    """Representative name for each activation (and Gather table) that must share an encoding."""
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for value in activations(graph):
        find(name_of(value))
    for node in graph:
        if node.op_type not in PASS_THROUGH or not node.inputs or node.inputs[0] is None:
            continue
        if not is_float(node.inputs[0]):
            continue
        for output in node.outputs:
            if is_float(output):
                a, b = find(name_of(node.inputs[0])), find(name_of(output))
                parent[b] = a
    return {name: find(name) for name in parent}


def set_initializer(graph: ir.Graph, name: str, data: Array) -> ir.Value:
    """A new initializer with this float data under an unused name."""
    unique, k = name, 0
    taken = {v.name for node in graph for v in node.outputs} | {v.name for v in graph.inputs}
    while unique in graph.initializers or unique in taken:
        k += 1
        unique = f"{name}_{k}"
    array = np.ascontiguousarray(data)
    value = ir.val(unique, const_value=ir.tensor(array, name=unique))
    graph.register_initializer(value)
    return value
