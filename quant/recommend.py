"""Which variants to try first: a table by model type, refined by the model's size and structure."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

import numpy as np
import onnx_ir as ir

from quant.errors import unknown_name
from quant.graph import array_of, int_attribute, is_float
from quant.model import Model
from quant.parts import find_parts, is_layer, is_table_lookup, moves, node_key
from quant.simplify import simplify
from quant.task import MODEL_TYPES


@dataclass(frozen=True)
class Recommendation:
    """One row of the table. methods: the grammar of --methods, the first to try first.

    fits: whether it is the row for the model that was given.
    """

    model_type: str
    title: str
    methods: str
    reason: str
    clusters: str
    sparsity: str
    kind: str | None = None
    min_parameters: int = 0
    max_parameters: int | None = None
    fits: bool = False


@dataclass(frozen=True)
class Structure:
    """What a recommendation looks at. parameters: elements of float constants; shares of them by
    part; cross_attention: queries and keys are made from different values."""

    parameters: int
    shares: Mapping[str, float]
    attention_blocks: int
    convolutions: int
    depthwise: int
    recurrent: bool
    cross_attention: bool
    outputs: int
    output_rank: int


def table() -> tuple[Recommendation, ...]:
    """Every row of recommendations.toml, in its order."""
    text = resources.files("quant").joinpath("recommendations.toml").read_text(encoding="utf-8")
    data: dict[str, list[dict[str, Any]]] = tomllib.loads(text)
    return tuple(Recommendation(kind_of, **row) for kind_of, rows in data.items() for row in rows)


def structure(model: Model) -> Structure:
    """Look at the graph (in the form the methods work on)."""
    graph = simplify(model).ir.graph
    parts = find_parts(graph)
    sizes = dict.fromkeys(parts.values(), 0)
    counted: set[str | None] = set()
    for node in graph:
        for value in node.inputs:
            if value is None or not value.is_initializer() or not is_float(value):
                continue
            if value.name not in counted and node_key(node) in parts:
                counted.add(value.name)
                sizes[parts[node_key(node)]] += int(array_of(value).size)
    total = sum(sizes.values())
    convolutions = [n for n in graph if n.op_type == "Conv"]
    shapes = [v.shape for v in graph.outputs if v.shape is not None]
    return Structure(
        total,
        {part: size / max(total, 1) for part, size in sizes.items()},
        sum(n.op_type == "Softmax" and parts[node_key(n)] == "attention" for n in graph),
        len(convolutions),
        sum(int_attribute(n, "group", 1) > 1 for n in convolutions),
        _is_recurrent(model.ir.graph),
        any(_crosses(n) for n in graph if parts.get(node_key(n)) == "attention"),
        len(shapes),
        max((sum(d != 1 for d in s) for s in shapes), default=0),
    )


def kind_of(model_type: str, found: Structure) -> str:
    """The kind of network within its type that the table distinguishes."""
    if model_type == "vision":
        if found.outputs > 1 or found.output_rank > 1:
            return "detection"
        if found.attention_blocks:
            return "transformer"
        # Depthwise layers are a third or more of a mobile network's convolutions.
        return "depthwise" if found.depthwise * 4 >= max(found.convolutions, 1) else "cnn"
    if model_type == "audio":
        if found.recurrent or found.attention_blocks:
            return "speech"
        return "features" if found.output_rank > 1 else "classification"
    if model_type == "multimodal":
        if found.cross_attention:
            return "cross-attention"
        return "towers" if found.convolutions and found.attention_blocks else "text"
    return "text"


def recommend(model_type: str, model: Model | None = None) -> tuple[Recommendation, ...]:
    """The rows of `model_type`; with a model, the one that fits it first and marked.

    Raises UserError for an unknown type, naming the nearest.
    """
    key = model_type.strip().lower().replace("-", "_")
    if key not in MODEL_TYPES:
        raise unknown_name("model type", model_type, MODEL_TYPES)
    rows = [r for r in table() if r.model_type == key]
    if model is None:
        return tuple(rows)
    found = structure(model)
    kind = kind_of(key, found)
    chosen = next(
        r
        for r in rows
        if r.kind in {None, kind}
        and found.parameters >= r.min_parameters
        and (r.max_parameters is None or found.parameters < r.max_parameters)
    )
    first = replace(chosen, fits=True, reason=f"{chosen.reason}{_because(found)}")
    return (first, *(r for r in rows if r is not chosen))


def _because(found: Structure) -> str:
    largest = max(found.shares, key=lambda p: found.shares[p], default="")
    text = f" This model: {found.parameters / 1e6:.3g} M parameters"
    if largest:
        text += f", {found.shares[largest]:.0%} of them {largest}"
    extra = [
        f"{found.attention_blocks} attention blocks" if found.attention_blocks else "",
        f"{found.convolutions} convolutions ({found.depthwise} in groups)"
        if found.convolutions
        else "",
        "recurrent" if found.recurrent else "",
        "cross-attention" if found.cross_attention else "",
    ]
    return "; ".join([text, *(e for e in extra if e)]) + "."


def _is_recurrent(graph: ir.Graph) -> bool:
    if any(n.op_type in {"LSTM", "GRU", "RNN"} for n in graph):
        return True
    # A streaming model takes its state as an input and returns it in the same shape.
    shapes = [tuple(v.shape) for v in graph.inputs if is_float(v) and v.shape is not None]
    outputs = [tuple(v.shape) for v in graph.outputs if v.shape is not None]
    return len(shapes) > 1 and any(s in outputs and np.prod(_dims(s)) > 1 for s in shapes)


def _dims(shape: tuple[Any, ...]) -> list[int]:
    return [d for d in shape if isinstance(d, int)]


def _crosses(node: ir.Node) -> bool:
    """Whether a product of two layers' outputs (the scores) has its layers read other values."""
    if node.op_type != "MatMul" or is_layer(node):
        return False
    sources = [_layer_input(v) for v in node.inputs]
    return None not in sources and sources[0] is not sources[1]


def _layer_input(value: ir.Value | None) -> ir.Value | None:
    """What the layer that makes `value` reads, seen through moves and scaling."""
    for _ in range(12):
        node = None if value is None else value.producer()
        if node is None:
            return None
        if is_layer(node):
            source = node.inputs[0]
            while source is not None and (made := source.producer()) is not None and moves(made):
                source = made.inputs[0]
            return source
        if is_table_lookup(node) or not (moves(node) or node.op_type in {"Mul", "Div"}):
            return None
        value = node.inputs[0]
    return None


__all__ = ["Recommendation", "Structure", "kind_of", "recommend", "structure", "table"]
