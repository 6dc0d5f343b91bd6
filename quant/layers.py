"""Linear layers as matrices: what rounding and equalisation need to know of Conv, Gemm, MatMul.

Every layer is brought to a weight of shape (groups, outputs, depth) and input rows of shape
(groups, rows, depth), so that output = rows @ weight.T + bias in each group. A depthwise Conv has
one group per channel and a depth of 9 (3 x 3 taps): its Hessians are tiny and cheap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from quant.graph import initializer_uses, int_attribute, name_of
from quant.model import Model
from quant.task import Task

Array = np.ndarray[Any, Any]

MAX_ROWS = 1024  # positions of an image kept per sample: they are strongly correlated


@dataclass(frozen=True, eq=False)
class Layer:
    """A Conv, Gemm or MatMul whose weight is an initializer."""

    node: ir.Node
    weight: str
    bias: str | None
    source: str  # the input activation
    output: str
    axis: int  # output-channel axis of the stored weight
    groups: int

    @property
    def is_conv(self) -> bool:
        return self.node.op_type == "Conv"


def linear_layers(model: Model) -> list[Layer]:
    """The layers of the graph in order; ConvTranspose and shared weights are left out."""
    layers: list[Layer] = []
    for use in initializer_uses(model.ir.graph):
        node = use.node
        if use.role != "weight" or node.op_type == "ConvTranspose" or use.axis is None:
            continue
        source = node.inputs[0]
        if source is None or source.is_initializer() or len(use.value.uses()) != 1:
            continue
        if node.op_type == "Gemm" and int_attribute(node, "transA", 0):
            continue
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        groups = int_attribute(node, "group", 1) if node.op_type == "Conv" else 1
        layers.append(
            Layer(
                node,
                name_of(use.value),
                None if bias is None else name_of(bias),
                name_of(source),
                name_of(node.outputs[0]),
                use.axis,
                groups,
            )
        )
    return layers


def to_matrix(layer: Layer, data: Array) -> Array:
    """Stored weight (or codes, or per-element scales) -> (groups, outputs, depth)."""
    if layer.is_conv:
        return data.reshape(layer.groups, data.shape[0] // layer.groups, -1)
    return data[None] if layer.axis == 0 else data.T[None]


def from_matrix(layer: Layer, matrix: Array, shape: tuple[int, ...]) -> Array:
    """The inverse of to_matrix."""
    if layer.is_conv:
        return matrix.reshape(shape)
    return np.ascontiguousarray(matrix[0] if layer.axis == 0 else matrix[0].T)


def input_rows(layer: Layer, x: Array, kernel: tuple[int, ...]) -> Array:
    """Rows of the layer's input for one sample, (groups, rows, depth).

    kernel: shape of the stored weight. For a Conv at most MAX_ROWS output positions, evenly
    spread.
    """
    if not layer.is_conv:
        return x.reshape(1, -1, x.shape[-1])
    patches = _patches(layer.node, x, kernel[2:])
    n, channels, positions, taps = patches.shape
    per_group = channels // layer.groups
    patches = patches.transpose(0, 2, 1, 3).reshape(n * positions, layer.groups, per_group * taps)
    return patches.transpose(1, 0, 2)


def _patches(node: ir.Node, x: Array, kernel: tuple[int, ...]) -> Array:
    """Input windows of a 1-D or 2-D Conv, (N, C, positions, taps), positions subsampled."""
    rank = len(kernel)
    strides = _ints(node, "strides", [1] * rank)
    dilations = _ints(node, "dilations", [1] * rank)
    pads = _padding(node, x.shape[2:], kernel, strides, dilations)
    x = np.pad(x, [(0, 0), (0, 0), *pads])
    spans = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(x, spans, axis=tuple(range(2, 2 + rank)))
    steps = tuple(slice(None, None, s) for s in strides)
    taps = tuple(slice(None, None, d) for d in dilations)
    windows = windows[(slice(None), slice(None), *steps, *taps)]
    out = windows.shape[2 : 2 + rank]
    total = int(np.prod(out))
    chosen = np.unravel_index(_spread(total), out)
    index: tuple[Any, ...] = (slice(None), slice(None), *chosen)
    picked = windows[index]
    return np.asarray(picked.reshape(x.shape[0], x.shape[1], len(chosen[0]), -1))


def _spread(total: int) -> Array:
    """At most MAX_ROWS indices below `total`, spread by a stride coprime to grid rows."""
    if total <= MAX_ROWS:
        return np.arange(total)
    return np.sort((np.arange(MAX_ROWS) * 7919) % total)


def _ints(node: ir.Node, name: str, default: list[int]) -> list[int]:
    attr = node.attributes.get(name)
    return default if attr is None else [int(v) for v in attr.as_ints()]


def _padding(
    node: ir.Node,
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: list[int],
    dilations: list[int],
) -> list[tuple[int, int]]:
    attr = node.attributes.get("auto_pad")
    mode = "NOTSET" if attr is None else attr.as_string()
    rank = len(kernel)
    if mode in {"SAME_UPPER", "SAME_LOWER"}:
        pads = []
        for n, k, s, d in zip(size, kernel, strides, dilations, strict=True):
            total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            small, big = total // 2, total - total // 2
            pads.append((small, big) if mode == "SAME_UPPER" else (big, small))
        return pads
    flat = _ints(node, "pads", [0] * (2 * rank)) if mode == "NOTSET" else [0] * (2 * rank)
    return [(flat[i], flat[i + rank]) for i in range(rank)]


@dataclass(frozen=True, eq=False)
class TokenMask:
    """Which rows of a sequence are real tokens: padding must not shape ranges or Hessians."""

    name: str
    length: int

    def keep(self, feed: Mapping[str, Array]) -> Array:
        """(length,) booleans for one sample."""
        return np.asarray(feed[self.name].reshape(-1) != 0)

    def rows(self, x: Array, keep: Array) -> Array:
        """x without its padded tokens, where it has a token axis: (..., S, D) or (.., S, S)."""
        if x.ndim >= 2 and x.shape[-2] == self.length and not keep.all():
            if x.ndim == 4 and x.shape[-1] == self.length:
                x = x[..., keep]
            return x[..., keep, :]
        return x


def token_mask(model: Model, task: Task) -> TokenMask | None:
    """The model's attention mask input of shape (1, S), if the task's calibration pads with it."""
    for spec in model.inputs:
        if "mask" not in spec.name.lower() or len(spec.shape) != 2 or spec.shape[0] != 1:
            continue
        values = task.calibration[spec.name]
        if np.isin(values, (0, 1)).all() and (values == 0).any():
            return TokenMask(spec.name, spec.shape[1])
    return None
