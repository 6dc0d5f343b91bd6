"""The parts of a network, found from the structure of its graph: names are never looked at.

- attention: around each Softmax over the last axis that weighs values in a MatMul: the layers that
  make queries, keys and values, the scores, and the output projection.
- embedding: look-ups in a constant table, and what is added to them before the first layer.
- output: what turns the last layer's features into a graph output: back from each output to the
  first layer (its own), or to a normalisation or attention (not its own).
- feedforward: the other Gemms and MatMuls with a constant weight.
- conv: convolutions.

Every other operator belongs to the part that made its first input, or, where only integers and
model inputs do, to the part that reads it.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from quant.graph import PASS_THROUGH, classify, is_float, name_of

PARTS = ("attention", "feedforward", "embedding", "conv", "output")

_NORMS = {"LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization"}
# Between a layer and the scores, or a layer and the context: moves, scaling, masks, rotations.
_ON_THE_WAY = PASS_THROUGH | {"Add", "Sub", "Mul", "Div", "Neg", "Concat", "Where", "Cast"} | _NORMS


def node_key(node: ir.Node) -> str:
    """A node's identity: the name of its first output."""
    return name_of(node.outputs[0])


def is_layer(node: ir.Node) -> bool:
    """Whether the node multiplies by a constant weight."""
    return any(
        v is not None and v.is_initializer() and is_float(v) and classify(node, i)[0] == "weight"
        for i, v in enumerate(node.inputs)
    )


def computes(node: ir.Node) -> bool:
    """Whether the node makes a float value of its own (it does not merely move one)."""
    return any(is_float(v) for v in node.outputs) and not moves(node)


def moves(node: ir.Node) -> bool:
    """Whether the node moves the float values of its first input, which is not a constant."""
    if node.op_type not in PASS_THROUGH or not node.inputs:
        return False
    source = node.inputs[0]
    return source is not None and is_float(source) and not source.is_initializer()


def find_parts(graph: ir.Graph) -> dict[str, str]:
    """Part of every node with a float output, by node_key."""
    parts: dict[str, str] = {}
    for node in graph:
        if node.op_type == "Softmax":
            for member in _attention(node):
                parts.setdefault(node_key(member), "attention")
    for node in graph:
        if node.op_type in {"Conv", "ConvTranspose"}:
            parts.setdefault(node_key(node), "conv")
        elif is_table_lookup(node):
            parts.setdefault(node_key(node), "embedding")
    _outputs(graph, parts)
    for node in graph:
        if is_layer(node):
            parts.setdefault(node_key(node), "feedforward")
    _spread(graph, parts)
    return parts


def is_table_lookup(node: ir.Node) -> bool:
    """A Gather from a constant float table."""
    table = node.inputs[0] if node.op_type == "Gather" else None
    return table is not None and table.is_initializer() and is_float(table)


def _producers(node: ir.Node) -> Iterator[ir.Node]:
    for value in node.inputs:
        producer = None if value is None or not is_float(value) else value.producer()
        if producer is not None:
            yield producer


def _back_to_layers(start: ir.Node | None) -> list[ir.Node]:
    """The nodes from `start` back to the layers that feed it; empty where there are none."""
    found: list[ir.Node] = []
    layers = False
    stack, seen = [start], set()
    while stack:
        node = stack.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if is_layer(node):
            layers = True
            found.append(node)
        elif node.op_type in _ON_THE_WAY:
            found.append(node)
            stack.extend(_producers(node))
    return found if layers else []


def _attention(softmax: ir.Node) -> list[ir.Node]:
    context = _next_matmul(softmax)
    if context is None:
        return []
    members = [softmax, context]
    scores = softmax.inputs[0].producer() if softmax.inputs[0] is not None else None
    while scores is not None and scores.op_type in _ON_THE_WAY:
        members.append(scores)
        products = [p for p in _producers(scores) if p.op_type in _ON_THE_WAY | {"MatMul"}]
        scores = next((p for p in products if p.op_type == "MatMul"), None) or next(
            (p for p in products if _leads_to_matmul(p)), None
        )
    if scores is None or scores.op_type != "MatMul":
        return []
    members.append(scores)
    for operand in (*scores.inputs, context.inputs[1]):
        members += _back_to_layers(None if operand is None else operand.producer())
    node: ir.Node | None = context
    while node is not None:
        uses = list(node.outputs[0].uses())
        node = uses[0].node if len(uses) == 1 else None
        if node is not None and (is_layer(node) or node.op_type in PASS_THROUGH):
            members.append(node)
            if is_layer(node):
                break
        else:
            break
    return members


def _leads_to_matmul(node: ir.Node) -> bool:
    for _ in range(8):
        if node.op_type == "MatMul":
            return True
        if node.op_type not in _ON_THE_WAY:
            return False
        producers = list(_producers(node))
        if not producers:
            return False
        node = next((p for p in producers if p.op_type == "MatMul"), producers[0])
    return False


def _next_matmul(softmax: ir.Node) -> ir.Node | None:
    """The MatMul that takes the attention weights as its first operand."""
    value = softmax.outputs[0]
    for _ in range(4):
        uses = list(value.uses())
        if len(uses) != 1:
            return None
        node, index = uses[0].node, uses[0].idx
        if node.op_type == "MatMul":
            return node if index == 0 and not is_layer(node) else None
        if node.op_type not in PASS_THROUGH | {"Cast"}:
            return None
        value = node.outputs[0]
    return None


def _outputs(graph: ir.Graph, parts: dict[str, str]) -> None:
    after_layer: set[str] = set()
    for node in graph:
        if is_layer(node) or any(node_key(p) in after_layer for p in _producers(node)):
            after_layer.add(node_key(node))
    stack = [v.producer() for v in graph.outputs if is_float(v)]
    while stack:
        last = stack.pop()
        if last is None or last.op_type in _NORMS:
            continue
        part = parts.get(node_key(last))
        if is_layer(last):
            if part in {None, "conv"}:
                parts[node_key(last)] = "output"
            continue
        joins = sum(node_key(p) in after_layer for p in _producers(last)) > 1
        if part is not None or joins:  # a residual sum or a gate is body, not output
            continue
        parts[node_key(last)] = "output"
        stack.extend(_producers(last))


def _spread(graph: ir.Graph, parts: dict[str, str]) -> None:
    """Give the remaining nodes the part that made their input, else the part that reads them."""
    nodes = [n for n in graph if any(is_float(v) for v in n.outputs)]
    order = {node_key(n): i for i, n in enumerate(nodes)}
    for node in nodes:
        made_by = [p for p in _producers(node) if node_key(p) in parts]
        if node_key(node) not in parts and made_by:
            # The latest: a residual sum belongs to the branch just computed, not to the stream.
            latest = max(made_by, key=lambda p: order[node_key(p)])
            parts[node_key(node)] = parts[node_key(latest)]
    for node in reversed(nodes):
        if node_key(node) not in parts:
            readers = [use.node for value in node.outputs for use in value.uses()]
            found = [parts[node_key(r)] for r in readers if node_key(r) in parts]
            parts[node_key(node)] = found[0] if found else "output"


__all__ = [
    "PARTS",
    "computes",
    "find_parts",
    "is_layer",
    "is_table_lookup",
    "moves",
    "node_key",
]
