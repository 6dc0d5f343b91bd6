"""Random small graphs over the operators that the checker knows, for property tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from onnx import helper

from .conftest import GraphBuilder

ELEMENTWISE = (
    "Abs", "Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Neg", "PRelu",
    "Relu", "Sigmoid", "Softmax", "Tanh",
)  # fmt: skip
BINARY = ("Add", "Max", "Min", "Mul", "Sub")
SHAPED = (
    "AveragePool", "BatchNormalization", "Concat", "Conv", "ConvTranspose", "DepthToSpace",
    "Depthwise", "InstanceNormalization", "LayerNormalization", "MatMul", "MaxPool", "Pad",
    "ReduceMean", "Resize", "Slice", "Split", "Transpose", "constant Add", "constant Mul",
)  # fmt: skip
METHODS = (
    "int8",
    "int8[activation-bits=16]",
    "int4",
    "per-channel",
    "per-channel[optimization-level=3]",
)
STEPS = (*ELEMENTWISE, *BINARY, *SHAPED)


@st.composite
def recipes(draw):
    """(seed, steps): what build turns into a graph."""
    steps = draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=6))
    return draw(st.integers(0, 10_000)), steps


def build(path: Path, seed: int, steps: list[str]) -> Path:
    """x (1, 4, 8, 8) through the steps, then pooled into three outputs."""
    b = GraphBuilder(seed)
    b.constant("lo", np.float32(0))
    b.constant("hi", np.float32(2))
    b.constant("sizes", np.array([1.0, 1.0, 2.0, 2.0], np.float32))
    x, shape, earlier = "x", (1, 4, 8, 8), []
    for k, step in enumerate(steps):
        made = _step(b, k, step, x, shape, earlier)
        if made is not None:
            earlier.append((x, shape))
            x, shape = made
    b.node("GlobalAveragePool", [x], "pool")
    b.node("Flatten", ["pool"], "flat")
    b.node("Gemm", ["flat", b.weight("wf", 3, shape[1]), b.weight("bf", 3)], "y", transB=1)
    return b.save(path, [("x", [1, 4, 8, 8])], [("y", [1, 3])], opset=21)


def _step(b, k, step, x, shape, earlier):
    """(value, shape) after the step, or None where it does not fit the shape."""
    name, (n, c, h, w) = f"v{k}", shape
    if step == "Clip":
        return b.node("Clip", [x, "lo", "hi"], name), shape
    if step == "PRelu":
        slope = b.constant(f"s{k}", np.full((c, 1, 1), 0.1, np.float32))
        return b.node("PRelu", [x, slope], name), shape
    if step in ELEMENTWISE:
        return b.node(step, [x], name), shape
    if step in BINARY:
        other = next((v for v, s in reversed(earlier) if s == shape), x)
        return b.node(step, [x, other], name), shape
    if step.startswith("constant"):
        operand = b.weight(f"c{k}", 1, c, 1, 1)
        return b.node(step.split()[1], [x, operand], name), shape
    if step == "Conv":
        weights = [b.weight(f"w{k}", 8, c, 1, 1, scale=0.5), b.weight(f"b{k}", 8)]
        return b.node("Conv", [x, *weights], name), (n, 8, h, w)
    if step == "Depthwise":
        weight = b.weight(f"w{k}", c, 1, 3, 3, scale=0.3)
        return b.node("Conv", [x, weight], name, group=c, pads=[1, 1, 1, 1]), shape
    if step == "ConvTranspose":
        if h > 16:
            return None
        weights = [b.weight(f"w{k}", c, 4, 2, 2, scale=0.5), b.weight(f"b{k}", 4)]
        return b.node("ConvTranspose", [x, *weights], name, strides=[2, 2]), (n, 4, 2 * h, 2 * w)
    if step == "MatMul":
        return b.node("MatMul", [x, b.weight(f"w{k}", w, 8, scale=0.4)], name), (n, c, h, 8)
    if step in {"MaxPool", "AveragePool"}:
        if h < 2 or w < 2:
            return None
        b.node(step, [x], name, kernel_shape=[2, 2], strides=[2, 2])
        return name, (n, c, h // 2, w // 2)
    if step == "BatchNormalization":
        rows = [np.full(c, 1.5), np.full(c, 0.1), np.full(c, 0.2), np.full(c, 2.0)]
        names = [b.constant(f"bn{k}_{i}", r.astype(np.float32)) for i, r in enumerate(rows)]
        return b.node("BatchNormalization", [x, *names], name), shape
    if step == "InstanceNormalization":
        if h * w < 2:
            return None
        rows = [b.constant(f"g{k}", np.ones(c, np.float32)), b.weight(f"b{k}", c, scale=0.1)]
        return b.node("InstanceNormalization", [x, *rows], name), shape
    if step == "LayerNormalization":
        if w < 2:
            return None
        rows = [b.constant(f"g{k}", np.ones(w, np.float32)), b.weight(f"b{k}", w, scale=0.1)]
        return b.node("LayerNormalization", [x, *rows], name, axis=-1), shape
    if step == "DepthToSpace":
        if c % 4 or h > 16:
            return None
        return b.node(step, [x], name, blocksize=2), (n, c // 4, 2 * h, 2 * w)
    if step == "Concat":
        return None if c > 16 else (b.node("Concat", [x, x], name, axis=1), (n, 2 * c, h, w))
    if step == "Split":
        if c % 2:
            return None
        b.nodes.append(
            helper.make_node("Split", [x], [name, f"{name}_rest"], name=name, axis=1, num_outputs=2)
        )
        return name, (n, c // 2, h, w)
    if step == "Slice":
        if h < 2:
            return None
        values = {"start": 0, "end": h // 2, "axis": 2}
        bounds = [b.constant(f"{name}_{n}", np.array([v], np.int64)) for n, v in values.items()]
        return b.node("Slice", [x, *bounds], name), (shape[0], c, h // 2, w)
    if step == "Pad":
        pads = b.constant(f"{name}_pads", np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
        return b.node("Pad", [x, pads], name), (n, c, h + 2, w + 2)
    if step == "ReduceMean":
        axes = b.constant(f"{name}_axes", np.array([3], np.int64))
        return b.node("ReduceMean", [x, axes], name, keepdims=1), (n, c, h, 1)
    if step == "Resize":
        if h > 16 or w > 16:
            return None
        b.node("Resize", [x, "", "sizes"], name, mode="nearest",
               coordinate_transformation_mode="asymmetric", nearest_mode="floor")  # fmt: skip
        return name, (n, c, 2 * h, 2 * w)
    if step == "Transpose":
        return b.node("Transpose", [x], name, perm=[0, 1, 3, 2]), (n, c, w, h)
    raise AssertionError(step)
