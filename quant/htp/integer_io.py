"""Give a QDQ graph integer inputs and outputs: the caller quantizes, the graph no longer does.

Float inputs and outputs cost four bytes per element over DDR and a conversion on the vector unit;
a camera or a decoder often has the integers already. The interface of the model changes, so this
is only done when asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_DTYPES = (TensorProto.UINT8, TensorProto.INT8, TensorProto.UINT16, TensorProto.INT16)


@dataclass(frozen=True)
class IoEncoding:
    """How a float tensor became `dtype`: real = scale * (stored - zero_point)."""

    dtype: str
    scale: float
    zero_point: int

    def quantize(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """As QuantizeLinear does: round half to even, clip."""
        limits = np.iinfo(self.dtype)
        codes = np.rint(x / np.float32(self.scale)) + self.zero_point
        stored: np.ndarray[Any, Any] = np.clip(codes, limits.min, limits.max).astype(self.dtype)
        return stored

    def dequantize(self, q: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return (q.astype(np.int64) - self.zero_point).astype(np.float32) * np.float32(self.scale)


def integer_io(
    model: onnx.ModelProto,
) -> tuple[onnx.ModelProto, dict[str, IoEncoding]] | None:
    """`model` without the Q at its float inputs and the DQ at its float outputs, and the encodings.

    The tensors keep their names. Only inputs that go into one per-tensor QuantizeLinear and
    outputs that come from one per-tensor DequantizeLinear change; None where there is none.
    """
    out = onnx.ModelProto()
    out.CopyFrom(model)
    graph = out.graph
    constants = {i.name: i for i in graph.initializer}
    encodings: dict[str, IoEncoding] = {}
    removed: list[onnx.NodeProto] = []
    renamed: dict[str, str] = {}
    for value in graph.input:
        users = [n for n in graph.node if value.name in n.input]
        if len(users) != 1 or users[0].op_type != "QuantizeLinear":
            continue
        encoding = _encoding(users[0], constants)
        if encoding is not None:
            encodings[value.name] = encoding
            renamed[users[0].output[0]] = value.name
            removed.append(users[0])
            _retype(value, encoding)
    produced = {o: n for n in graph.node for o in n.output}
    for value in graph.output:
        node = produced.get(value.name)
        used = any(value.name in n.input for n in graph.node)
        if node is None or node.op_type != "DequantizeLinear" or used:
            continue
        encoding = _encoding(node, constants)
        # The quantized tensor takes the output's name, so it must come from an operator.
        if encoding is not None and node.input[0] in produced and node.input[0] not in renamed:
            encodings[value.name] = encoding
            renamed[node.input[0]] = value.name
            removed.append(node)
            _retype(value, encoding)
    if not encodings:
        return None
    kept = [n for n in graph.node if not any(n is r for r in removed)]
    del graph.node[:], graph.value_info[:]
    for node in kept:
        copy = graph.node.add()
        copy.CopyFrom(node)
        for names in (copy.input, copy.output):
            for i, name in enumerate(names):
                names[i] = renamed.get(name, name)
    onnx.checker.check_model(out)
    return out, encodings


def convert(
    arrays: Mapping[str, np.ndarray[Any, Any]], encodings: Mapping[str, IoEncoding], *, to: str
) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays by tensor name, those with an encoding turned to `integer` or `float`."""
    out = {}
    for name, array in arrays.items():
        encoding = encodings.get(name)
        if encoding is None:
            out[name] = array
        else:
            out[name] = (encoding.quantize if to == "integer" else encoding.dequantize)(array)
    return out


def _encoding(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> IoEncoding | None:
    if len(node.input) < 3 or any(i not in constants for i in node.input[1:3]):
        return None
    scale = numpy_helper.to_array(constants[node.input[1]])
    zero = constants[node.input[2]]
    if scale.size != 1 or zero.data_type not in _DTYPES:
        return None
    dtype = helper.tensor_dtype_to_np_dtype(zero.data_type).name
    return IoEncoding(dtype, float(scale.reshape(())), int(numpy_helper.to_array(zero).reshape(())))


def _retype(value: onnx.ValueInfoProto, encoding: IoEncoding) -> None:
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(encoding.dtype))
    value.type.tensor_type.elem_type = dtype
