"""A QDQ graph as a float graph and a quantization overrides file, as the QAIRT converter wants."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from quant.errors import UserError

_BITS: dict[int, tuple[int, bool]] = {
    TensorProto.UINT4: (4, False),
    TensorProto.INT4: (4, True),
    TensorProto.UINT8: (8, False),
    TensorProto.INT8: (8, True),
    TensorProto.UINT16: (16, False),
    TensorProto.INT16: (16, True),
    TensorProto.INT32: (32, True),
}


def float_graph_and_overrides(
    model: onnx.ModelProto,
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """`model` without its Q and DQ, and their encodings by tensor name.

    Weights become float again (code minus zero point, times scale), so that quantizing them with
    the encoding gives the same codes. The encodings are in the AIMET format, version 0.6.1; 32-bit
    biases get none, the converter derives theirs. Raises UserError for block-wise encodings, which
    the format cannot express. External weights must be loaded.
    """
    return _Stripper(model).run()


class _Stripper:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        graph = model.graph
        self.constants = {i.name: i for i in graph.initializer}
        self.producer = {o: n for n in graph.node for o in n.output}
        self.outputs = {o.name for o in graph.output}
        self.renamed: dict[str, str] = {}
        self.weights: dict[str, onnx.TensorProto] = {}
        self.activations: dict[str, list[dict[str, Any]]] = {}
        self.parameters: dict[str, list[dict[str, Any]]] = {}

    def run(self) -> tuple[onnx.ModelProto, dict[str, Any]]:
        kept = []
        for node in self.model.graph.node:
            if node.op_type == "QuantizeLinear":
                self._activation(node)
            elif node.op_type == "DequantizeLinear":
                self._dequantize(node)
            else:
                kept.append(node)
        out = onnx.ModelProto()
        out.CopyFrom(self.model)
        del out.graph.node[:]
        for node in kept:
            copy = out.graph.node.add()
            copy.CopyFrom(node)
            for names in (copy.input, copy.output):
                for i, name in enumerate(names):
                    names[i] = self._final(name)
        used = {i for n in out.graph.node for i in n.input}
        initializers = [*self.weights.values(), *self.constants.values()]
        del out.graph.initializer[:], out.graph.value_info[:]
        out.graph.initializer.extend(i for i in initializers if i.name in used)
        onnx.checker.check_model(out)
        activations = {self._final(k): v for k, v in self.activations.items()}
        return out, {
            "version": "0.6.1",
            "activation_encodings": activations,
            "param_encodings": self.parameters,
        }

    def _final(self, name: str) -> str:
        while name in self.renamed:
            name = self.renamed[name]
        return name

    def _activation(self, node: onnx.NodeProto) -> None:
        # Behind a DQ this is a change of width; the first encoding is the tensor's own.
        source = self._final(node.input[0])
        table = self.parameters if source in self.constants else self.activations
        table.setdefault(source, self._encodings(node))
        self.renamed[node.output[0]] = source

    def _dequantize(self, node: onnx.NodeProto) -> None:
        if node.input[0] in self.constants:
            self._weight(node)
            return
        source, target = self._final(node.input[0]), node.output[0]
        if target not in self.outputs:
            self.renamed[target] = source
        elif source in self.constants or source not in self.producer:
            raise UserError(
                f"Output {target!r} is an input passed through quantization alone.",
                "Compile this model with the onnxruntime-qnn back end (--backend ort).",
            )
        else:  # the graph's output keeps its name; the tensor before Q and DQ takes it
            self.renamed[source] = target

    def _weight(self, node: onnx.NodeProto) -> None:
        codes = numpy_helper.to_array(self.constants[node.input[0]]).astype(np.float64)
        scale = numpy_helper.to_array(self.constants[node.input[1]]).astype(np.float64)
        zero = np.zeros_like(scale)
        if len(node.input) > 2 and node.input[2]:
            zero = numpy_helper.to_array(self.constants[node.input[2]]).astype(np.float64)
        encodings = self._encodings(node)
        if scale.size > 1:
            shape = [1] * codes.ndim
            shape[_attribute(node, "axis", 1)] = -1
            scale, zero = scale.reshape(shape), zero.reshape(shape)
        name = node.output[0]
        self.weights[name] = numpy_helper.from_array(
            ((codes - zero) * scale).astype(np.float32), name
        )
        if encodings[0]["bitwidth"] < 32:
            self.parameters[name] = encodings

    def _encodings(self, node: onnx.NodeProto) -> list[dict[str, Any]]:
        if _attribute(node, "block_size", 0):
            raise UserError(
                f"{node.name or node.output[0]}: block-wise encodings have no overrides format.",
                "Compile this model with the onnxruntime-qnn back end (--backend ort).",
            )
        scales = numpy_helper.to_array(self.constants[node.input[1]]).reshape(-1)
        bits, signed = 8, False
        zeros = np.zeros(scales.size, np.int64)
        if len(node.input) > 2 and node.input[2]:
            zero = self.constants[node.input[2]]
            bits, signed = _BITS[zero.data_type]
            zeros = numpy_helper.to_array(zero).reshape(-1).astype(np.int64)
        low = -(2 ** (bits - 1)) if signed else 0
        return [
            {
                "bitwidth": bits,
                "dtype": "int",
                "is_symmetric": str(bool(signed and z == 0)),
                "offset": int(low - z),
                "scale": float(s),
                "min": float((low - z) * s),
                "max": float((low + 2**bits - 1 - z) * s),
            }
            for s, z in zip(scales, zeros, strict=True)
        ]


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)
