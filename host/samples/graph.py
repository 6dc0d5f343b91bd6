"""A small ONNX graph writer: static shapes, one opset, names that say which layer they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

OPSET = 21
IR_VERSION = 10


class GraphBuilder:
    """Collects nodes and initializers in topological order.

    A node's output tensor carries the node's name, so a report by tensor reads like one by layer.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._inputs: list[onnx.ValueInfoProto] = []
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}

    def input(self, name: str, dtype: type[np.generic], shape: Sequence[int]) -> str:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def parameter(self, name: str, value: NDArray[Any]) -> str:
        """An initializer; asking twice for one name shares it (tied weights, shared constants)."""
        if name not in self._initializers:
            tensor = numpy_helper.from_array(np.ascontiguousarray(value), name)
            self._initializers[name] = tensor
        return name

    def node(self, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def nodes(
        self, op: str, inputs: Sequence[str], name: str, outputs: Sequence[str], **attributes: Any
    ) -> list[str]:
        """A node of several outputs, `name.output`; "" in `outputs` leaves one out."""
        names = [f"{name}.{output}" if output else "" for output in outputs]
        self._nodes.append(helper.make_node(op, inputs, names, name=name, **attributes))
        return [n for n in names if n]

    def conv(
        self,
        name: str,
        x: str,
        weight: NDArray[np.float32],
        bias: NDArray[np.float32],
        *,
        stride: int = 1,
        pads: Sequence[int] = (0, 0, 0, 0),
        groups: int = 1,
    ) -> str:
        """weight (outputs, inputs / groups, k, k); pads top, left, bottom, right."""
        return self.node(
            "Conv",
            [x, self.parameter(f"{name}.weight", weight), self.parameter(f"{name}.bias", bias)],
            name,
            kernel_shape=list(weight.shape[2:]),
            strides=[stride, stride],
            pads=list(pads),
            dilations=[1, 1],
            group=groups,
        )

    def gemm(
        self, name: str, x: str, weight: NDArray[np.float32], bias: NDArray[np.float32]
    ) -> str:
        """weight (outputs, inputs)."""
        weights = [self.parameter(f"{name}.weight", weight), self.parameter(f"{name}.bias", bias)]
        return self.node("Gemm", [x, *weights], name, transB=1)

    def linear(
        self, name: str, x: str, weight: NDArray[np.float32], bias: NDArray[np.float32]
    ) -> str:
        """MatMul and Add on the last axis, as exporters write it; weight (outputs, inputs)."""
        product = self.node(
            "MatMul",
            [x, self.parameter(f"{name}.weight", np.ascontiguousarray(weight.T))],
            f"{name}.matmul",
        )
        return self.node("Add", [product, self.parameter(f"{name}.bias", bias)], name)

    def layer_norm(
        self, name: str, x: str, gain: NDArray[np.float32], bias: NDArray[np.float32], eps: float
    ) -> str:
        weights = [self.parameter(f"{name}.weight", gain), self.parameter(f"{name}.bias", bias)]
        return self.node("LayerNormalization", [x, *weights], name, axis=-1, epsilon=eps)

    def build(self, outputs: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
        """The checked model; `outputs`: float32 tensors by name with their shapes."""
        values = [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
            for name, shape in outputs.items()
        ]
        graph = helper.make_graph(
            self._nodes,
            self.name,
            self._inputs,
            values,
            initializer=list(self._initializers.values()),
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
        )
        model.producer_name = "qhost samples"
        onnx.checker.check_model(model, full_check=True)
        return model
