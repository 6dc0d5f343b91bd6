"""The spilling graphs that `tools/bench_optimize.py` and the tests of quant.optimize work on.

A stack of 3x3 convolutions with a skip from the first to the last, quantized with 16-bit
activations and 8-bit weights: at 512x512 its activations do not fit into 8 MB of VTCM.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def conv_stack(path: Path, size: int, channels: int, layers: int = 6, seed: int = 0) -> Path:
    """Write a QDQ model: input x (1, 3, size, size), output y (1, channels, size, size)."""
    rng = np.random.default_rng(seed)
    init: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, value: np.ndarray) -> str:
        init.append(numpy_helper.from_array(value, name))
        return name

    def activation(name: str, scale: float, zero_point: int) -> str:
        """Q and DQ behind tensor `name`; the dequantized tensor's name."""
        s = constant(f"{name}_s", np.float32(scale))
        z = constant(f"{name}_z", np.uint16(zero_point))
        nodes.append(helper.make_node("QuantizeLinear", [name, s, z], [f"{name}_q"], f"{name}_Q"))
        out = f"{name}_dq"
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", s, z], [out], f"{name}_DQ"))
        return out

    def conv(index: int, source: str, c_in: int) -> str:
        bound = float(np.sqrt(6.0 / (c_in * 9)))
        weight = rng.uniform(-bound, bound, (channels, c_in, 3, 3))
        scale = np.float32(bound / 127)
        q = np.clip(np.round(weight / scale) + 128, 0, 255).astype(np.uint8)
        w = constant(f"w{index}", q)
        ws, wz = constant(f"w{index}_s", scale), constant(f"w{index}_z", np.uint8(128))
        nodes.append(helper.make_node("DequantizeLinear", [w, ws, wz], [f"w{index}_dq"]))
        out = f"c{index}"
        nodes.append(
            helper.make_node("Conv", [source, f"w{index}_dq"], [out], out, pads=[1, 1, 1, 1])
        )
        nodes.append(helper.make_node("Relu", [out], [f"r{index}"], f"relu{index}"))
        return activation(f"r{index}", 8.0 / 65535, 0)

    first = tensor = conv(1, activation("x", 8.0 / 65535, 32768), 3)
    for index in range(2, layers + 1):
        tensor = conv(index, tensor, channels)
    nodes.append(helper.make_node("Add", [tensor, first], ["sum"], "skip"))
    last = activation("sum", 16.0 / 65535, 0)
    nodes[-1].output[0] = "y"
    assert last == "sum_dq"
    graph = helper.make_graph(
        nodes,
        f"stack{size}",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, channels, size, size])],
        init,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
