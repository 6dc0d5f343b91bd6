"""Self-attention as the usual exporters write it, shared by the transformer samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from host.samples.graph import GraphBuilder

Linear = tuple[NDArray[Any], NDArray[Any]]  # weight (outputs, inputs), bias (outputs,)

# What exporters add to the scores of masked positions: the lowest float32.
MASKED = float(np.finfo(np.float32).min)


def scalar(graph: GraphBuilder, name: str, value: float) -> str:
    return graph.parameter(name, np.array(value, np.float32))


def integers(graph: GraphBuilder, *values: int) -> str:
    """An int64 list (axes, a shape), shared by every node that asks for the same one."""
    return graph.parameter("const." + "_".join(str(v) for v in values), np.array(values, np.int64))


def attention(
    graph: GraphBuilder,
    name: str,
    x: str,
    bias: str,
    projections: Mapping[str, Linear],
    *,
    length: int,
    heads: int,
    batch: int = 1,
) -> str:
    """Multi-head attention of x (batch, length, hidden), without the residual connection.

    `bias` is added to the scores (batch, heads, length, length). `projections`: query, key, value,
    output.
    """
    hidden = len(projections["query"][1])
    size = hidden // heads

    def split(part: str, permutation: tuple[int, ...]) -> str:
        projected = graph.linear(f"{name}.{part}", x, *projections[part])
        shape = integers(graph, batch, length, heads, size)
        rows = graph.node("Reshape", [projected, shape], f"{name}.{part}.split")
        return graph.node("Transpose", [rows], f"{name}.{part}.heads", perm=permutation)

    query, value = split("query", (0, 2, 1, 3)), split("value", (0, 2, 1, 3))
    scores = graph.node("MatMul", [query, split("key", (0, 2, 3, 1))], f"{name}.scores")
    root = scalar(graph, "attention.scale", size**0.5)
    scores = graph.node("Div", [scores, root], f"{name}.scores.scaled")
    scores = graph.node("Add", [scores, bias], f"{name}.scores.masked")
    shares = graph.node("Softmax", [scores], f"{name}.softmax", axis=-1)
    context = graph.node("MatMul", [shares, value], f"{name}.context")
    context = graph.node("Transpose", [context], f"{name}.context.rows", perm=(0, 2, 1, 3))
    shape = integers(graph, batch, length, hidden)
    context = graph.node("Reshape", [context, shape], f"{name}.context.joined")
    return graph.linear(f"{name}.output", context, *projections["output"])
