"""Graph surgery: put a QuantPlan into a graph as QuantizeLinear/DequantizeLinear pairs.

insert_qdq
- replaces each planned float initializer by its integers and one DequantizeLinear;
- puts Quantize -> Dequantize behind each planned activation, model inputs included; model inputs
  and outputs keep their names and stay float;
- removes a Relu or Clip whose output encoding saturates at the same ends;
- does not touch a value that the plan does not name.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from quant.encoding import Array, Encoding, QuantPlan
from quant.graph import array_of, clip_bounds, folded_into, name_of
from quant.model import Model, wrap


def insert_qdq(model: Model, plan: QuantPlan) -> Model:
    """The QDQ form of `model` under `plan`; the same model for an empty plan.

    Raises KeyError for a planned name that the graph lacks: a bug of the method that planned it.
    """
    if not plan.tensors:
        return model
    graph = model.clone()
    _remove_folded_activations(graph.graph, plan)
    values: dict[str, ir.Value] = {name_of(v): v for v in graph.graph.inputs}
    for node in graph.graph:
        values.update({name_of(v): v for v in node.outputs})
    for name, encoding in plan.tensors.items():
        if name in graph.graph.initializers:
            _quantize_initializer(graph.graph, name, encoding, plan.codes.get(name))
        elif name in values:
            _quantize_activation(graph.graph, values[name], encoding, plan.converted.get(name))
        else:
            raise KeyError(f"the plan names {name!r}, which the graph does not have")
    graph.graph.sort()
    return wrap(graph, model.name)


def replace_weights(model: Model, weights: Mapping[str, Array]) -> Model:
    """The model with the data of some initializers replaced (same shapes)."""
    graph = model.clone()
    for name, data in weights.items():
        value = graph.graph.initializers[name]
        value.const_value = ir.tensor(np.ascontiguousarray(data, np.float32), name=name)
        value.shape = ir.Shape(data.shape)
    return wrap(graph, model.name)


def removable(node: ir.Node, encoding: Encoding) -> bool:
    """Whether quantizing with `encoding` already does what this Relu or Clip does, exactly.

    Quantizing is monotone, so it holds when the bounds themselves have the extreme codes.
    """
    low, high = clip_bounds(node)
    if low is None or high is None:
        return False
    ends = np.array([low, high], np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        codes = np.clip(
            np.rint(ends / encoding.scale) + encoding.zero_point.astype(np.float32),
            encoding.qmin,
            encoding.qmax,
        )
    return bool(codes[0] == encoding.qmin and codes[1] == encoding.qmax)


def _remove_folded_activations(graph: ir.Graph, plan: QuantPlan) -> None:
    for node in list(graph):
        if node.op_type not in {"Relu", "Clip"} or node.inputs[0] is None:
            continue
        source, output = node.inputs[0], node.outputs[0]
        encoding = plan.tensors.get(name_of(output))
        if encoding is None or name_of(source) in plan.tensors:
            continue
        if folded_into(source) is not output or not removable(node, encoding):
            continue
        name, is_output = name_of(output), output.is_graph_output()
        output.name = f"{name}_before_fold"
        source.name = name
        ir.convenience.replace_all_uses_with(output, source, replace_graph_outputs=is_output)
        graph.remove(node, safe=True)


def _initializer(graph: ir.Graph, name: str, data: Array, dtype: ir.DataType) -> ir.Value:
    tensor = ir.Tensor(data, dtype=dtype, name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(data.shape), type=ir.TensorType(dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def _parameters(graph: ir.Graph, name: str, encoding: Encoding) -> list[ir.Value]:
    scale = _initializer(graph, f"{name}_scale", encoding.scale, ir.DataType.FLOAT)
    zero = _initializer(graph, f"{name}_zero_point", encoding.zero_point, encoding.data_type)
    return [scale, zero]


def _attributes(encoding: Encoding) -> dict[str, int]:
    attributes: dict[str, int] = {}
    if encoding.axis is not None:
        attributes["axis"] = encoding.axis
    if encoding.block_size is not None:
        attributes["block_size"] = encoding.block_size
    return attributes


def _quantize_initializer(
    graph: ir.Graph, name: str, encoding: Encoding, codes: Array | None
) -> None:
    value = graph.initializers[name]
    if codes is None:
        codes = encoding.quantize(array_of(value))
    uses = list(value.uses())
    integer = _initializer(
        graph, f"{name}_quantized", codes.astype(encoding.numpy_dtype), encoding.data_type
    )
    dequantize = ir.node(
        "DequantizeLinear",
        [integer, *_parameters(graph, name, encoding)],
        _attributes(encoding),
        name=f"{name}_DequantizeLinear",
    )
    out = dequantize.outputs[0]
    out.name = f"{name}_dequantized"
    out.shape, out.type = value.shape, value.type
    graph.insert_before(graph[0], dequantize)
    for node, index in uses:
        node.replace_input_with(index, out)
    if value.is_graph_output():
        raise KeyError(f"initializer {name!r} is a graph output")
    del graph.initializers[name]


def _quantize_activation(
    graph: ir.Graph, value: ir.Value, encoding: Encoding, converted: Encoding | None
) -> None:
    name = name_of(value)
    uses = list(value.uses())
    is_output = value.is_graph_output()
    if is_output:
        value.name = f"{name}_float"
    chain = [(encoding, name)]
    if converted is not None:
        chain.append((converted, f"{name}_converted"))
    current, nodes = value, []
    for step, label in chain:
        parameters = _parameters(graph, label, step)
        quantize = ir.node("QuantizeLinear", [current, *parameters], name=f"{label}_QuantizeLinear")
        dequantize = ir.node(
            "DequantizeLinear",
            [quantize.outputs[0], *parameters],
            name=f"{label}_DequantizeLinear",
        )
        quantize.outputs[0].name = f"{label}_quantized"
        dequantize.outputs[0].name = f"{label}_dequantized"
        quantize.outputs[0].shape = dequantize.outputs[0].shape = value.shape
        quantize.outputs[0].type = ir.TensorType(step.data_type)
        dequantize.outputs[0].type = value.type
        nodes += [quantize, dequantize]
        current = dequantize.outputs[0]
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], nodes)
    else:
        graph.insert_after(producer, nodes)
    for node, index in uses:
        node.replace_input_with(index, current)
    if is_output:
        current.name = name
        for position, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[position] = current


__all__ = ["insert_qdq", "removable", "replace_weights"]
