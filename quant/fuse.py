"""Fuse operator patterns that HTP has as one operator.

Every operator boundary costs one quantization; Erf does not exist on HTP at all. Each function
edits a graph in place, states its pattern, and returns whether it changed anything. A pattern is
left alone when one of its inner values is read elsewhere or is a graph output.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from quant.graph import array_of, name_of


def _scalar(value: ir.Value | None) -> float | None:
    """The value of a one-element constant."""
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return float(value.const_value.numpy().reshape(-1)[0])


def _only_use(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _with_constant(node: ir.Node | None, op: str) -> tuple[ir.Value, float] | None:
    """(other operand, constant) of a binary node with one scalar constant."""
    if node is None or node.op_type != op or len(node.inputs) != 2:
        return None
    a, b = node.inputs
    for value, constant in ((a, b), (b, a)):
        number = _scalar(constant)
        if value is not None and number is not None:
            if op in {"Div", "Sub", "Pow"} and constant is a:
                continue
            return value, number
    return None


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-3)


def _other(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """The operand of a binary node that is not `value`."""
    a, b = node.inputs[0], node.inputs[1]
    return b if a is value else a if b is value else None


def replace(
    graph: ir.Graph, last: ir.Node, new: ir.Node, dead: list[ir.Node], *, output: int = 0
) -> None:
    """Put `new` in the place of `last` (same output name) and remove `dead` if nothing reads it."""
    old, fresh = last.outputs[output], new.outputs[0]
    fresh.name, fresh.shape, fresh.type = old.name, old.shape, old.type
    old.name = f"{old.name}_fused"
    graph.insert_after(last, new)
    ir.convenience.replace_all_uses_with(old, fresh, replace_graph_outputs=old.is_graph_output())
    for node in [last, *dead]:
        if node.graph is not None and not any(
            v.uses() or v.is_graph_output() for v in node.outputs
        ):
            graph.remove(node, safe=True)


def fuse_gelu(graph: ir.Graph) -> bool:
    """x * 0.5 * (1 + erf(x / sqrt 2)), factors in any order, into Gelu (opset 20)."""
    changed = False
    for erf in list(graph):
        if erf.op_type != "Erf" or erf.inputs[0] is None:
            continue
        inner = erf.inputs[0].producer()
        found = _with_constant(inner, "Div")
        root2 = math.sqrt(2.0)
        if found is None or not _close(found[1], root2):
            found = _with_constant(inner, "Mul")
            if found is None or not _close(found[1], 1.0 / root2):
                continue
        x = found[0]
        plus = _only_use(erf.outputs[0])
        one = _with_constant(plus, "Add")
        if inner is None or plus is None or one is None or not _close(one[1], 1.0):
            continue
        chain = _half_product(plus.outputs[0], x)
        if chain is None:
            continue
        replace(graph, chain[-1], ir.node("Gelu", [x]), [*reversed(chain[:-1]), plus, erf, inner])
        changed = True
    return changed


def _half_product(factor: ir.Value, x: ir.Value) -> list[ir.Node] | None:
    """Nodes that multiply `factor` by x and by 0.5 in any order, last one last."""
    nodes: list[ir.Node] = []
    halves = 0
    saw_x = False
    current = factor
    while not (saw_x and halves):
        node = _only_use(current)
        if node is None or node.op_type != "Mul":
            return None
        other = _other(node, current)
        number = _scalar(other)
        if number is not None and _close(number, 0.5) and not halves:
            halves = 1
        elif other is x and not saw_x:
            saw_x = True
        else:
            half = _with_constant(None if other is None else other.producer(), "Mul")
            if half is None or half[0] is not x or not _close(half[1], 0.5) or halves or saw_x:
                return None
            halves, saw_x = 1, True
            producer = other.producer() if other is not None else None
            if producer is not None:
                nodes.insert(0, producer)
        nodes.append(node)
        current = node.outputs[0]
    return nodes


def fuse_tanh_gelu(graph: ir.Graph) -> bool:
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) into Gelu(approximate=tanh)."""
    changed = False
    for tanh in list(graph):
        if tanh.op_type != "Tanh" or tanh.inputs[0] is None:
            continue
        outer = tanh.inputs[0].producer()
        scaled = _with_constant(outer, "Mul")
        plus = _only_use(tanh.outputs[0])
        one = _with_constant(plus, "Add")
        if scaled is None or outer is None or plus is None or one is None:
            continue
        if not _close(one[1], 1.0) or not _close(scaled[1], math.sqrt(2 / math.pi)):
            continue
        total = scaled[0].producer()
        if total is None or total.op_type != "Add":
            continue
        found: ir.Value | None = None
        cubic: ir.Node | None = None
        for a, b in (total.inputs, reversed(total.inputs)):
            term = _with_constant(None if b is None else b.producer(), "Mul")
            if a is not None and b is not None and term is not None and _close(term[1], 0.044715):
                found, cubic = a, b.producer()
        if found is None or cubic is None:
            continue
        chain = _half_product(plus.outputs[0], found)
        if chain is None:
            continue
        dead = [*reversed(chain[:-1]), plus, tanh, outer, total, cubic]
        replace(graph, chain[-1], ir.node("Gelu", [found], {"approximate": "tanh"}), dead)
        remove_dead(graph)
        changed = True
    return changed


def fuse_layer_norm(graph: ir.Graph) -> bool:
    """(x - mean) / sqrt(mean((x - mean)^2) + eps) * gamma + beta into LayerNormalization.

    Over the last axis only. The square may be Pow 2 or a product, the quotient a Div or a product
    with Reciprocal or Div(1, .).
    """
    changed = False
    for mean in list(graph):
        if mean.op_type != "ReduceMean" or mean.inputs[0] is None:
            continue
        x = mean.inputs[0]
        if not _last_axis(mean, x):
            continue
        subs = {u.node for u in mean.outputs[0].uses() if u.node.op_type == "Sub" and u.idx == 1}
        subs = {s for s in subs if s.inputs[0] is x}
        if not subs or len(subs) != len(mean.outputs[0].uses()):
            continue
        centred = {s.outputs[0] for s in subs}
        match = _norm_tail(centred)
        if match is None:
            continue
        last, gamma, beta, epsilon = match
        shape = x.shape
        if shape is None or gamma.shape is None or list(gamma.shape) != [shape[-1]]:
            continue
        new = ir.node("LayerNormalization", [x, gamma, beta], {"axis": -1, "epsilon": epsilon})
        replace(graph, last, new, [])
        remove_dead(graph)
        changed = True
    return changed


def _last_axis(node: ir.Node, x: ir.Value) -> bool:
    if len(node.inputs) < 2 or node.inputs[1] is None or node.inputs[1].const_value is None:
        return False
    axes = node.inputs[1].const_value.numpy().reshape(-1).tolist()
    keep = node.attributes.get("keepdims")
    rank = -99 if x.shape is None else len(x.shape)
    return axes in ([-1], [rank - 1]) and (keep is None or keep.as_int() == 1)


def _norm_tail(
    centred: set[ir.Value],
) -> tuple[ir.Node, ir.Value, ir.Value, float] | None:
    """From the centred values to the last Add: (node, gamma, beta, epsilon)."""
    square = next(
        (
            u.node
            for c in centred
            for u in c.uses()
            if (u.node.op_type == "Pow" and _scalar(u.node.inputs[1]) == 2.0)
            or (u.node.op_type == "Mul" and u.node.inputs[0] is u.node.inputs[1])
        ),
        None,
    )
    variance = None if square is None else _only_use(square.outputs[0])
    if variance is None or variance.op_type != "ReduceMean":
        return None
    plus = _only_use(variance.outputs[0])
    added = _with_constant(plus, "Add")
    root = None if plus is None else _only_use(plus.outputs[0])
    if plus is None or added is None or root is None or root.op_type != "Sqrt":
        return None
    divide = _only_use(root.outputs[0])
    if divide is None:
        return None
    if divide.op_type == "Reciprocal" or (
        divide.op_type == "Div" and _scalar(divide.inputs[0]) == 1.0
    ):
        product = _only_use(divide.outputs[0])
        if product is None or product.op_type != "Mul":
            return None
        if _other(product, divide.outputs[0]) not in centred:
            return None
        divide = product
    elif divide.op_type != "Div" or divide.inputs[0] not in centred:
        return None
    scale = _only_use(divide.outputs[0])
    if scale is None or scale.op_type != "Mul":
        return None
    gamma = _other(scale, divide.outputs[0])
    shift = _only_use(scale.outputs[0])
    if shift is None or shift.op_type != "Add" or gamma is None or not gamma.is_initializer():
        return None
    beta = _other(shift, scale.outputs[0])
    if beta is None or not beta.is_initializer():
        return None
    return shift, gamma, beta, added[1]


def remove_dead(graph: ir.Graph) -> None:
    """Remove nodes and initializers nothing reads."""
    for node in reversed(list(graph)):
        if not any(v.uses() or v.is_graph_output() for v in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def fuse_linear(graph: ir.Graph) -> bool:
    """MatMul(x, W) + b, with W (K, N) and b (N,) constant, into one Gemm on flattened rows.

    The bias then joins the 32-bit accumulator instead of costing a quantization of the product.
    Applies when x has static leading dimensions; the reshapes around the Gemm move no data.
    """
    changed = False
    for matmul in list(graph):
        x, weight = (
            (matmul.inputs[0], matmul.inputs[1]) if matmul.op_type == "MatMul" else (None,) * 2
        )
        if x is None or weight is None or not weight.is_initializer() or x.shape is None:
            continue
        if weight.shape is None or len(weight.shape) != 2 or len(x.shape) < 2:
            continue
        dims = [d for d in x.shape if isinstance(d, int)]
        if len(dims) != len(x.shape):
            continue
        rows, depth = dims[:-1], dims[-1]
        width = array_of(weight).shape[1]
        add = _only_use(matmul.outputs[0])
        if add is None or add.op_type != "Add":
            continue
        bias = _other(add, matmul.outputs[0])
        if bias is None or not bias.is_initializer():
            continue
        data = array_of(bias)
        if data.size != width or data.shape[-1:] != (width,):
            continue
        last = add
        flat = ir.tensor(data.reshape(-1), name=f"{name_of(bias)}_row")
        row = ir.val(f"{name_of(bias)}_row_{name_of(last.outputs[0])}", const_value=flat)
        graph.register_initializer(row)
        stem = name_of(last.outputs[0])
        operand = x
        nodes: list[ir.Node] = []
        count = int(np.prod(rows))
        if len(rows) != 1:
            operand = _reshape(graph, nodes, x, [count, depth], f"{stem}_rows")
        gemm = ir.node("Gemm", [operand, weight, row])
        nodes.append(gemm)
        out = gemm.outputs[0]
        out.type = x.type
        out.shape = ir.Shape([count, width])
        if len(rows) != 1:
            out.name = f"{stem}_gemm"
            _reshape(graph, nodes, out, [*rows, width], f"{stem}_shape")
        graph.insert_before(matmul, nodes[:-1])
        replace(graph, last, nodes[-1], [matmul])
        changed = True
    if changed:
        remove_dead(graph)
    return changed


def _reshape(
    graph: ir.Graph, nodes: list[ir.Node], value: ir.Value, shape: list[int], stem: str
) -> ir.Value:
    constant = ir.val(f"{stem}_dims", const_value=ir.tensor(np.array(shape, np.int64)))
    graph.register_initializer(constant)
    node = ir.node("Reshape", [value, constant])
    nodes.append(node)
    node.outputs[0].name = stem
    node.outputs[0].shape = ir.Shape(shape)
    node.outputs[0].type = value.type
    return node.outputs[0]
