"""What a QDQ graph says of its tensors: one row per quantized tensor, read from the graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

_TYPES: dict[int, str] = {
    onnx.TensorProto.UINT4: "uint4",
    onnx.TensorProto.INT4: "int4",
    onnx.TensorProto.UINT8: "uint8",
    onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.UINT16: "uint16",
    onnx.TensorProto.INT16: "int16",
    onnx.TensorProto.INT32: "int32",
}


@dataclass(frozen=True)
class QuantizedTensor:
    """real = scale * (stored - zero_point); ranges where there are several scales.

    role: activation, or constant (weights and biases). scales: how many, along `axis`, or in
    blocks of `block_size` along it; axis is None for one scale per tensor.
    """

    name: str
    role: str
    dtype: str
    shape: tuple[int, ...]
    scales: int
    axis: int | None
    block_size: int
    scale_min: float
    scale_max: float
    zero_point_min: int
    zero_point_max: int


def quantized_tensors(model: onnx.ModelProto) -> list[QuantizedTensor]:
    """Every tensor of the main graph that is dequantized, in the order of the graph.

    Constants with external data must be loaded. Activations have the name they have as floats:
    that of what is quantized.
    """
    graph = onnx.shape_inference.infer_shapes(model).graph
    constants = {i.name: i for i in graph.initializer}
    shapes = {
        v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim)
        for v in [*graph.input, *graph.output, *graph.value_info]
    }
    quantizer = {n.output[0]: n for n in graph.node if n.op_type == "QuantizeLinear"}
    rows: dict[str, QuantizedTensor] = {}
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or node.input[1] not in constants:
            continue
        source = node.input[0]
        stored = constants.get(source)
        name = (
            source
            if stored is not None or source not in quantizer
            else (quantizer[source].input[0])
        )
        shape = tuple(stored.dims) if stored is not None else shapes.get(name, ())
        rows.setdefault(name, _row(node, name, shape, stored, constants))
    return list(rows.values())


def _row(
    node: onnx.NodeProto,
    name: str,
    shape: tuple[int, ...],
    stored: onnx.TensorProto | None,
    constants: dict[str, onnx.TensorProto],
) -> QuantizedTensor:
    scale = numpy_helper.to_array(constants[node.input[1]])
    zero = constants.get(node.input[2]) if len(node.input) > 2 else None
    points = numpy_helper.to_array(zero).astype(np.int64) if zero is not None else np.zeros(1, int)
    kind = stored.data_type if stored is not None else zero.data_type if zero is not None else 0
    attributes = {a.name: a.i for a in node.attribute}
    return QuantizedTensor(
        name=name,
        role="activation" if stored is None else "constant",
        dtype=_TYPES.get(kind, "uint8"),
        shape=shape,
        scales=int(scale.size),
        axis=int(attributes.get("axis", 1)) if scale.size > 1 else None,
        block_size=int(attributes.get("block_size", 0)),
        scale_min=float(scale.min()),
        scale_max=float(scale.max()),
        zero_point_min=int(points.min()),
        zero_point_max=int(points.max()),
    )
