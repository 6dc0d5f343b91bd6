"""ONNX operators as torch functions on batches.

A graph has static shapes and a leading dimension of one call. Here several calls run at once, laid
side by side along the leading dimension: a Reshape to (a, b, c) becomes a reshape to (-1, b, c).
Where a graph mixes samples that way, quant/train/graph.py notices and runs one call at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from quant.graph import array_of, float_attribute, int_attribute

Tensor = Any  # torch.Tensor: torch is imported inside functions only
Operator = Callable[[ir.Node, Sequence[Tensor]], Any]


def ints(node: ir.Node, name: str, default: Sequence[int] = ()) -> list[int]:
    attribute = node.attributes.get(name)
    return list(default) if attribute is None else [int(v) for v in attribute.as_ints()]


def text(node: ir.Node, name: str, default: str) -> str:
    attribute = node.attributes.get(name)
    return default if attribute is None else str(attribute.as_string())


def constant(node: ir.Node, index: int) -> np.ndarray[Any, Any] | None:
    """The data of a constant operand, None where it is absent."""
    value = node.inputs[index] if len(node.inputs) > index else None
    return None if value is None else array_of(value)


def static_shape(node: ir.Node, output: int = 0) -> list[int]:
    shape = node.outputs[output].shape
    assert shape is not None
    return [int(str(d)) for d in shape]


def axes_of(node: ir.Node, index: int = 1) -> list[int]:
    given = constant(node, index)
    return ints(node, "axes") if given is None else [int(a) for a in given.reshape(-1)]


def reshape(node: ir.Node, x: Sequence[Tensor]) -> Tensor:
    """Any operator that only changes the shape; contiguous, leading dimension free."""
    shape = static_shape(node)
    return x[0].reshape(-1, *shape[1:]) if shape else x[0].reshape(())


def pads_of(node: ir.Node, size: Sequence[int], kernel: Sequence[int]) -> list[tuple[int, int]]:
    """(begin, end) per spatial axis."""
    rank = len(kernel)
    strides, dilations = ints(node, "strides", [1] * rank), ints(node, "dilations", [1] * rank)
    mode = text(node, "auto_pad", "NOTSET")
    if mode in {"SAME_UPPER", "SAME_LOWER"}:
        out = []
        for n, k, s, d in zip(size, kernel, strides, dilations, strict=True):
            total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            small, large = total // 2, total - total // 2
            out.append((small, large) if mode == "SAME_UPPER" else (large, small))
        return out
    flat = ints(node, "pads", [0] * 2 * rank) if mode == "NOTSET" else [0] * 2 * rank
    return [(flat[i], flat[i + rank]) for i in range(rank)]


def _padded(x: Tensor, pads: list[tuple[int, int]], value: float) -> tuple[Tensor, list[int]]:
    """x and the symmetric padding left for the operator itself."""
    import torch

    if all(a == b for a, b in pads):
        return x, [a for a, _ in pads]
    flat = [p for pair in reversed(pads) for p in pair]
    return torch.nn.functional.pad(x, flat, value=value), [0] * len(pads)


def conv(node: ir.Node, x: Sequence[Tensor]) -> Tensor:
    import torch

    weight, bias = x[1], x[2] if len(x) > 2 else None
    rank = weight.dim() - 2
    data, pads = _padded(x[0], pads_of(node, x[0].shape[2:], weight.shape[2:]), 0.0)
    function = (torch.nn.functional.conv1d, torch.nn.functional.conv2d)[rank - 1]
    return function(
        data,
        weight,
        bias,
        stride=ints(node, "strides", [1] * rank),
        padding=pads,
        dilation=ints(node, "dilations", [1] * rank),
        groups=int_attribute(node, "group", 1),
    )


def gemm(node: ir.Node, x: Sequence[Tensor]) -> Tensor:
    a = x[0].transpose(0, 1) if int_attribute(node, "transA", 0) else x[0]
    b = x[1].transpose(0, 1) if int_attribute(node, "transB", 0) else x[1]
    out = a @ b
    alpha = float_attribute(node, "alpha", 1.0)
    out = out if alpha == 1.0 else out * alpha
    if len(x) > 2 and x[2] is not None:
        beta = float_attribute(node, "beta", 1.0)
        out = out + (x[2] if beta == 1.0 else x[2] * beta)
    return out


def layer_norm(node: ir.Node, x: Sequence[Tensor]) -> Tensor:
    import torch

    axis = int_attribute(node, "axis", -1) % x[0].dim()
    bias = x[2] if len(x) > 2 else None
    return torch.nn.functional.layer_norm(
        x[0], x[0].shape[axis:], x[1], bias, float_attribute(node, "epsilon", 1e-5)
    )


def lp_norm(node: ir.Node, x: Sequence[Tensor]) -> Tensor:
    import torch

    p, axis = int_attribute(node, "p", 2), int_attribute(node, "axis", -1)
    return x[0] / torch.linalg.vector_norm(x[0], p, dim=axis, keepdim=True).clamp(min=1e-12)


def batch_norm(node: ir.Node, x: Sequence[Tensor]) -> Tensor:
    import torch

    return torch.nn.functional.batch_norm(
        x[0], x[3], x[4], x[1], x[2], eps=float_attribute(node, "epsilon", 1e-5)
    )


def clip(node: ir.Node, x: Sequence[Tensor]) -> Tensor:
    low = x[1] if len(x) > 1 else None
    high = x[2] if len(x) > 2 else None
    if low is not None and high is not None:  # one pass backwards where clamp takes four
        import torch

        return torch.nn.functional.hardtanh(x[0], float(low), float(high))
    return x[0].clamp(None if low is None else float(low), None if high is None else float(high))


def max_pool(node: ir.Node, x: Sequence[Tensor]) -> Tensor:
    import torch

    kernel = ints(node, "kernel_shape")
    data, pads = _padded(x[0], pads_of(node, x[0].shape[2:], kernel), float("-inf"))
    function = (torch.nn.functional.max_pool1d, torch.nn.functional.max_pool2d)[len(kernel) - 1]
    strides = ints(node, "strides", [1] * len(kernel))
    dilations = ints(node, "dilations", [1] * len(kernel))
    ceil = bool(int_attribute(node, "ceil_mode", 0))
    return function(data, kernel, strides, pads, dilations, ceil_mode=ceil)


def average_pool(node: ir.Node, x: Sequence[Tensor]) -> Tensor:
    import torch

    kernel = ints(node, "kernel_shape")
    include = bool(int_attribute(node, "count_include_pad", 0))
    pads = pads_of(node, x[0].shape[2:], kernel)
    # Uneven padding is rare; zeros counted or not, torch has only the even form.
    data, even = _padded(x[0], pads, 0.0)
    function = (torch.nn.functional.avg_pool1d, torch.nn.functional.avg_pool2d)[len(kernel) - 1]
    strides = ints(node, "strides", [1] * len(kernel))
    ceil = bool(int_attribute(node, "ceil_mode", 0))
    return function(data, kernel, strides, even, ceil, include)


def _reduce(name: str) -> Operator:
    def run(node: ir.Node, x: Sequence[Tensor]) -> Tensor:
        import torch

        axes = axes_of(node) or list(range(1, x[0].dim()))
        keep = bool(int_attribute(node, "keepdims", 1))
        return getattr(torch, name)(x[0], dim=axes, keepdim=keep)

    return run


def gather(node: ir.Node, x: Sequence[Tensor]) -> Tensor:
    import torch

    axis = int_attribute(node, "axis", 0) % x[0].dim()
    index = x[1].long()
    if axis == 0:
        return torch.nn.functional.embedding(index, x[0]) if x[0].dim() == 2 else x[0][index]
    if index.dim() == 0:
        return x[0].select(axis, int(index))
    picked = x[0].index_select(axis, index.reshape(-1))
    return picked.reshape(*x[0].shape[:axis], *index.shape, *x[0].shape[axis + 1 :])


def slice_(node: ir.Node, x: Sequence[Tensor]) -> Tensor:
    starts, ends = constant(node, 1), constant(node, 2)
    assert starts is not None and ends is not None
    axes, steps = constant(node, 3), constant(node, 4)
    listed = range(len(starts)) if axes is None else axes.tolist()
    out = x[0]
    for k, axis in enumerate(listed):
        step = 1 if steps is None else int(steps[k])
        if step < 1:
            raise NotImplementedError("Slice with a negative step")
        where = [slice(None)] * out.dim()
        where[int(axis)] = slice(int(starts[k]), int(ends[k]), step)
        out = out[tuple(where)]
    return out


def split(node: ir.Node, x: Sequence[Tensor]) -> Any:
    axis = int_attribute(node, "axis", 0) % x[0].dim()
    sizes = [static_shape(node, k)[axis] for k in range(len(node.outputs))]
    return x[0].split(sizes, axis)


def expand(node: ir.Node, x: Sequence[Tensor]) -> Tensor:
    shape = static_shape(node)
    if x[0].dim() == len(shape) and x[0].shape[0] > 1:
        shape[0] = x[0].shape[0]
    return x[0].expand(*shape)


def pad(node: ir.Node, x: Sequence[Tensor]) -> Tensor:
    import torch

    if text(node, "mode", "constant") != "constant" or len(node.inputs) > 3:
        raise NotImplementedError("Pad other than by a constant over all axes")
    amounts, value = constant(node, 1), constant(node, 2)
    assert amounts is not None
    rank = x[0].dim()
    flat = [int(amounts[k + side * rank]) for k in reversed(range(rank)) for side in (0, 1)]
    fill = 0.0 if value is None else float(value.reshape(-1)[0])
    return torch.nn.functional.pad(x[0], flat, value=fill)


def cast(node: ir.Node, x: Sequence[Tensor]) -> Tensor:
    import torch

    kind = node.outputs[0].dtype
    assert kind is not None
    return x[0].to(getattr(torch, kind.numpy().name))


def _torch(name: str) -> Operator:
    def run(node: ir.Node, x: Sequence[Tensor]) -> Tensor:
        import torch

        return getattr(torch, name)(*x)

    return run


def _functional(name: str, **attributes: tuple[str, float]) -> Operator:
    """torch.nn.functional.<name>; attributes: torch argument -> (ONNX attribute, default)."""

    def run(node: ir.Node, x: Sequence[Tensor]) -> Tensor:
        import torch

        given = {k: float_attribute(node, a, d) for k, (a, d) in attributes.items()}
        return getattr(torch.nn.functional, name)(x[0], **given)

    return run


def _softmax(name: str) -> Operator:
    def run(node: ir.Node, x: Sequence[Tensor]) -> Tensor:
        import torch

        return getattr(torch, name)(x[0], dim=int_attribute(node, "axis", -1))

    return run


def _concat(node: ir.Node, x: Sequence[Tensor]) -> Tensor:
    import torch

    return torch.cat(list(x), int_attribute(node, "axis", 0))


def _hard_sigmoid(node: ir.Node, x: Sequence[Tensor]) -> Tensor:
    alpha, beta = float_attribute(node, "alpha", 0.2), float_attribute(node, "beta", 0.5)
    return (x[0] * alpha + beta).clamp(0.0, 1.0)


def _global_pool(node: ir.Node, x: Sequence[Tensor]) -> Tensor:
    return x[0].mean(dim=tuple(range(2, x[0].dim())), keepdim=True)


def _gelu(node: ir.Node, x: Sequence[Tensor]) -> Tensor:
    import torch

    return torch.nn.functional.gelu(x[0], approximate=text(node, "approximate", "none"))


OPERATORS: dict[str, Operator] = {
    **{
        onnx: _torch(name)
        for onnx, name in {
            "Abs": "abs",
            "Add": "add",
            "Div": "div",
            "Erf": "erf",
            "Exp": "exp",
            "Log": "log",
            "MatMul": "matmul",
            "Max": "maximum",
            "Min": "minimum",
            "Mul": "mul",
            "Neg": "neg",
            "Pow": "pow",
            "Reciprocal": "reciprocal",
            "Relu": "relu",
            "Sigmoid": "sigmoid",
            "Sqrt": "sqrt",
            "Sub": "sub",
            "Tanh": "tanh",
            "Where": "where",
        }.items()
    },
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), reshape),
    "AveragePool": average_pool,
    "BatchNormalization": batch_norm,
    "Cast": cast,
    "Clip": clip,
    "Concat": _concat,
    "Conv": conv,
    "Elu": _functional("elu", alpha=("alpha", 1.0)),
    "Expand": expand,
    "Gather": gather,
    "Gelu": _gelu,
    "Gemm": gemm,
    "GlobalAveragePool": _global_pool,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _functional("hardswish"),
    "Identity": lambda node, x: x[0],
    "LayerNormalization": layer_norm,
    "LeakyRelu": _functional("leaky_relu", negative_slope=("alpha", 0.01)),
    "LogSoftmax": _softmax("log_softmax"),
    "LpNormalization": lp_norm,
    "MaxPool": max_pool,
    "Pad": pad,
    "ReduceMax": _reduce("amax"),
    "ReduceMean": _reduce("mean"),
    "ReduceSum": _reduce("sum"),
    "Slice": slice_,
    "Softmax": _softmax("softmax"),
    "Softplus": _functional("softplus"),
    "Split": split,
    "Transpose": lambda node, x: x[0].permute(*ints(node, "perm", range(x[0].dim() - 1, -1, -1))),
}
