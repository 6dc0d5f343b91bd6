"""MobileNetV2 (224x224, width 1) as a QDQ graph with random weights, dense or 2:4 pruned.

For figures that depend on the shape of a network and not on what it learned: context size, DDR
traffic. Architecture: Sandler et al., MobileNetV2, 2018, table 2.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# expansion, output channels, repeats, first stride
_BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class _Builder:
    def __init__(self, sparse: bool) -> None:
        self.sparse = sparse
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.init: list[onnx.TensorProto] = []
        self.count = 0

    def constant(self, name: str, value: np.ndarray) -> str:
        self.init.append(numpy_helper.from_array(value, name))
        return name

    def quantized(self, name: str, scale: float, zero_point: int) -> str:
        """Q and DQ (uint8) behind tensor `name`."""
        s = self.constant(f"{name}_s", np.float32(scale))
        z = self.constant(f"{name}_z", np.uint8(zero_point))
        self.nodes.append(helper.make_node("QuantizeLinear", [name, s, z], [f"{name}_q"]))
        self.nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", s, z], [f"{name}_dq"]))
        return f"{name}_dq"

    def weight(self, name: str, shape: tuple[int, ...]) -> str:
        """int8 per output channel; 2:4 along the input channels where that divides."""
        fan_in = int(np.prod(shape[1:]))
        w = self.rng.normal(0, np.sqrt(2.0 / fan_in), shape)
        if self.sparse and shape[1] % 4 == 0:
            groups = w.reshape(shape[0], shape[1] // 4, 4, -1)
            order = np.argsort(np.abs(groups), axis=2)
            np.put_along_axis(groups, order[:, :, :2], 0.0, axis=2)
            w = groups.reshape(shape)
        scale = (np.abs(w).max(axis=tuple(range(1, w.ndim))) / 127).astype(np.float32)
        q = np.round(w / scale.reshape(-1, *[1] * (w.ndim - 1))).astype(np.int8)
        names = [
            self.constant(name, q),
            self.constant(f"{name}_s", scale),
            self.constant(f"{name}_z", np.zeros(shape[0], np.int8)),
        ]
        self.nodes.append(helper.make_node("DequantizeLinear", names, [f"{name}_dq"], axis=0))
        return f"{name}_dq"

    def conv(
        self,
        x: str,
        c_in: int,
        c_out: int,
        kernel: int,
        stride: int,
        *,
        groups: int = 1,
        relu: bool = True,
    ) -> str:
        self.count += 1
        name = f"conv{self.count}"
        w = self.weight(f"{name}_w", (c_out, c_in // groups, kernel, kernel))
        pads, strides = [kernel // 2] * 4, [stride, stride]
        self.nodes.append(
            helper.make_node("Conv", [x, w], [name], name, pads=pads, strides=strides, group=groups)
        )
        if not relu:
            return self.quantized(name, 8.0 / 255, 128)
        self.nodes.append(helper.make_node("Relu", [name], [f"{name}_r"]))
        return self.quantized(f"{name}_r", 6.0 / 255, 0)


def mobilenet_v2(path: Path, *, sparse: bool) -> Path:
    """Write the model: input x (1, 3, 224, 224), output y (1, 1000)."""
    b = _Builder(sparse)
    x = b.conv(b.quantized("x", 6.0 / 255, 128), 3, 32, 3, 2)
    channels = 32
    for expansion, c_out, repeats, first_stride in _BLOCKS:
        for i in range(repeats):
            stride = first_stride if i == 0 else 1
            hidden = channels * expansion
            h = x if expansion == 1 else b.conv(x, channels, hidden, 1, 1)
            h = b.conv(h, hidden, hidden, 3, stride, groups=hidden)
            h = b.conv(h, hidden, c_out, 1, 1, relu=False)
            if stride == 1 and channels == c_out:
                b.nodes.append(helper.make_node("Add", [x, h], [f"add{b.count}"]))
                h = b.quantized(f"add{b.count}", 8.0 / 255, 128)
            x, channels = h, c_out
    x = b.conv(x, channels, 1280, 1, 1)
    b.nodes.append(helper.make_node("GlobalAveragePool", [x], ["pool"]))
    x = b.quantized("pool", 6.0 / 255, 0)
    x = b.conv(x, 1280, 1000, 1, 1, relu=False)
    shape = b.constant("shape", np.array([1, 1000], np.int64))
    b.nodes.append(helper.make_node("Reshape", [x, shape], ["flat"]))
    b.quantized("flat", 8.0 / 255, 128)
    b.nodes[-1].output[0] = "y"
    graph = helper.make_graph(
        b.nodes,
        "mobilenet_v2",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 224, 224])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1000])],
        b.init,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
