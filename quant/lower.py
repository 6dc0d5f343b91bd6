"""Lower composite operators to ones that can be quantized piece by piece."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from quant.encoding import Array
from quant.fuse import remove_dead
from quant.graph import array_of, int_attribute, name_of, set_initializer


def lower_lstm(graph: ir.Graph) -> bool:
    """A one-step LSTM into two Gemms, the gates and the state update.

    A streaming model calls its LSTM with one step and carries the state itself. As one operator it
    would stay float between quantized neighbours, and its state with it.

    Applies to a forward LSTM with sequence length 1, batch 1, constant weights, initial states
    given, and default activations; without peepholes, clipping, or sequence lengths.
    """
    changed = False
    for node in list(graph):
        if node.op_type == "LSTM" and _lowerable(node):
            _lower(graph, node)
            changed = True
    if changed:
        remove_dead(graph)
        graph.sort()
    return changed


def _lowerable(node: ir.Node) -> bool:
    inputs = list(node.inputs) + [None] * (8 - len(node.inputs))
    x, w, r, b, lengths, h, c, peepholes = inputs[:8]
    if any(v is None for v in (x, w, r, h, c)) or lengths is not None or peepholes is not None:
        return False
    constants = [w, r] if b is None else [w, r, b]
    if not all(v is not None and v.is_initializer() for v in constants):
        return False
    if x is None or x.shape is None or list(x.shape[:2]) != [1, 1]:
        return False
    direction = node.attributes.get("direction")
    if direction is not None and direction.as_string() != "forward":
        return False
    if "activations" in node.attributes or "clip" in node.attributes:
        return False
    return not int_attribute(node, "input_forget", 0) and not int_attribute(node, "layout", 0)


def _lower(graph: ir.Graph, node: ir.Node) -> None:
    x, w, r = node.inputs[:3]
    h, c = node.inputs[5], node.inputs[6]
    assert x is not None and w is not None and r is not None and h is not None and c is not None
    weight, recurrent = array_of(w)[0], array_of(r)[0]
    hidden, depth = recurrent.shape[1], weight.shape[1]
    bias_value = node.inputs[3]
    bias = np.zeros(8 * hidden, np.float32) if bias_value is None else array_of(bias_value)[0]
    stem = node.name or "lstm"
    made: list[ir.Node] = []

    def constant(tag: str, data: Array) -> ir.Value:
        return set_initializer(graph, f"{stem}_{tag}", data)

    def put(op: str, inputs: list[ir.Value], tag: str, shape: list[int], **attrs: int) -> ir.Value:
        new = ir.node(op, inputs, attrs, name=f"{stem}_{tag}")
        made.append(new)
        out = new.outputs[0]
        out.name, out.shape, out.type = f"{stem}_{tag}", ir.Shape(shape), x.type
        return out

    def rows(value: ir.Value, width: int, tag: str) -> ir.Value:
        dims = constant(f"{tag}_dims", np.array([1, width], np.int64))
        return put("Reshape", [value, dims], tag, [1, width])

    x_row, h_row, c_row = rows(x, depth, "x"), rows(h, hidden, "h"), rows(c, hidden, "c")
    # Each gate is a Gemm of its own width, so that its output has an encoding of its own.
    gates: dict[str, ir.Value] = {}
    for k, gate in enumerate("iofc"):  # the order of ONNX
        part = slice(k * hidden, (k + 1) * hidden)
        wide = [1, hidden]
        b = bias[: 4 * hidden][part] + bias[4 * hidden :][part]
        from_x = put(
            "Gemm",
            [x_row, constant(f"w_{gate}", weight[part]), constant(f"b_{gate}", b)],
            f"x_{gate}",
            wide,
            transB=1,
        )
        zero = constant(f"rb_{gate}", np.zeros(hidden, np.float32))
        from_h = put(
            "Gemm", [h_row, constant(f"r_{gate}", recurrent[part]), zero], f"h_{gate}", wide,
            transB=1,
        )  # fmt: skip
        total = put("Add", [from_x, from_h], f"sum_{gate}", wide)
        gates[gate] = put("Tanh" if gate == "c" else "Sigmoid", [total], f"gate_{gate}", wide)
    wide = [1, hidden]
    kept = put("Mul", [gates["f"], c_row], "kept", wide)
    new = put("Mul", [gates["i"], gates["c"]], "new", wide)
    cell = put("Add", [kept, new], "cell", wide)
    squashed = put("Tanh", [cell], "squashed", wide)
    output = put("Mul", [gates["o"], squashed], "output", wide)
    results = [(output, [1, 1, 1, hidden]), (output, [1, 1, hidden]), (cell, [1, 1, hidden])]
    pairs: list[tuple[ir.Value, ir.Value]] = []
    for position, (value, shape) in enumerate(results[: len(node.outputs)]):
        old = node.outputs[position]
        if not old.uses() and not old.is_graph_output():
            continue
        dims = constant(f"y{position}_dims", np.array(shape, np.int64))
        fresh = put("Reshape", [value, dims], f"y{position}", shape)
        pairs.append((old, fresh))
    graph.insert_before(node, made)
    for old, fresh in pairs:
        is_output, name = old.is_graph_output(), name_of(old)
        if is_output:
            old.name, fresh.name = f"{name}_lowered", name
        ir.convenience.replace_all_uses_with(old, fresh, replace_graph_outputs=is_output)
    graph.remove(node, safe=True)
