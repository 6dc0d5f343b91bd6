"""Graphs whose operators differ in precision: 8-bit, 16-bit and fp16 side by side.

The HTP computes one integer operator at one activation width, inputs and output alike. So the
width is chosen per operator; an input of another width is converted in front of it, which is one
Convert operator. An operator in fp16 has float inputs, weights and outputs; its integer inputs are
dequantized and its outputs quantized for whoever reads them as integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from quant.encoding import Array, Encoding, QuantPlan, asymmetric
from quant.graph import (
    activations,
    array_of,
    encoding_groups,
    folded_into,
    initializer_uses,
    is_float,
    name_of,
    set_initializer,
)
from quant.model import Model, wrap
from quant.parts import computes, is_table_lookup, moves, node_key
from quant.planning import PlanOptions, plan_biases, weight_encoding

FLOAT = 0  # the width of an operator or value in fp16
Ranges = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Assignment:
    """widths: 8, 16 or FLOAT of each computing node by node_key. weights: bits by weight name
    (operators in fp16 keep float weights whatever it says); other weights have 8."""

    widths: Mapping[str, int]
    weights: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Flow:
    """Where widths meet. `forms`: width in which each float value exists (FLOAT: as fp16);
    `needs`: for each value, the widths its computing readers want, with (node, input) pairs."""

    forms: Mapping[str, int]
    needs: Mapping[str, Mapping[int, tuple[tuple[ir.Node, int], ...]]]


def leaders(graph: ir.Graph) -> dict[str, str]:
    """For each computing node the one whose width it shares: a folded Relu follows its layer."""
    leader: dict[str, str] = {}
    for node in graph:
        if not computes(node):
            continue
        leader.setdefault(node_key(node), node_key(node))
        folded = folded_into(node.outputs[0])
        if folded is not None:
            reader = folded.producer()
            assert reader is not None
            leader[node_key(reader)] = leader[node_key(node)]
    return leader


def compatible(graph: ir.Graph, widths: Mapping[str, int]) -> dict[str, int]:
    """The widths with those of leaders given to their followers."""
    return {key: widths[leader] for key, leader in leaders(graph).items()}


def flow(
    graph: ir.Graph, widths: Mapping[str, int], inputs: Mapping[str, int] | None = None
) -> Flow:
    """Follow widths through the graph (see Flow); `widths` must be compatible. inputs: widths of
    model inputs that are decided."""
    groups = encoding_groups(graph)
    forms: dict[str, int] = {}
    needs: dict[str, dict[int, list[tuple[ir.Node, int]]]] = {}
    wanted: dict[str, set[int]] = {}
    for node in graph:
        if not computes(node):
            continue
        for index, value in enumerate(node.inputs):
            if value is None or value.is_initializer() or not is_float(value):
                continue
            width = widths[node_key(node)]
            needs.setdefault(name_of(value), {}).setdefault(width, []).append((node, index))
            wanted.setdefault(groups.get(name_of(value), name_of(value)), set()).add(width)
    for value in graph.inputs:
        if is_float(value):
            want = wanted.get(groups.get(name_of(value), name_of(value)), {FLOAT})
            # An input is quantized once, in the widest form that is read, unless fp16 reads it.
            form = FLOAT if FLOAT in want else max(want)
            forms[name_of(value)] = (inputs or {}).get(name_of(value), form)
    for node in graph:
        for value in node.outputs:
            if not is_float(value):
                continue
            if moves(node):
                assert node.inputs[0] is not None
                forms[name_of(value)] = forms[name_of(node.inputs[0])]
            else:
                forms[name_of(value)] = widths[node_key(node)]
    return Flow(forms, {k: {w: tuple(p) for w, p in v.items()} for k, v in needs.items()})


def assemble(
    model: Model,
    assignment: Assignment,
    ranges: Mapping[int, Ranges],
    *,
    weights: Mapping[str, Encoding] | None = None,
    codes: Mapping[str, Array] | None = None,
    given: Mapping[str, Encoding] | None = None,
) -> tuple[Model, QuantPlan]:
    """The float graph with a branch (Identity) where one value is needed at two widths, and the
    plan that encodes it.

    ranges: [low, high] of each activation of `model`, by width (8 and 16). weights, codes: chosen
    encodings and integers by name; a weight without one is rounded to nearest at its bits. given:
    encodings that values and constants take as they are, at the width they have.
    """
    edited = model.clone()
    graph = edited.graph
    widths = compatible(graph, assignment.widths)
    _own_constants(graph, widths)
    paths = flow(graph, widths, {n: e.bits for n, e in (given or {}).items()})
    tensors: dict[str, Encoding] = {}
    converted: dict[str, Encoding] = {}
    tables = _tables(graph, widths)
    tensors.update(tables)
    values = {name_of(v): v for v in activations(graph)}
    roots = encoding_groups(graph)

    named: dict[tuple[str, int], Encoding] = {}
    for name, encoding in (given or {}).items():
        named.setdefault((roots.get(name, name), encoding.bits), encoding)

    def encode(name: str, width: int) -> Encoding:
        if (roots[name], width) in named:
            return named[roots[name], width]
        return asymmetric(*ranges[width][name], width)

    for name, value in values.items():
        if folded_into(value) is not None:
            continue
        form = paths.forms[name]
        needs = dict(paths.needs.get(name, {}))
        root = roots[name]
        own = tables[root] if root in tables else encode(name, form) if form else None
        if own is not None:
            tensors[name] = own
        readers = {(id(n), i) for pairs in needs.values() for n, i in pairs}
        everyone = {(id(u.node), u.idx) for u in value.uses()}
        only = len(needs) == 1 and readers == everyone and not value.is_graph_output()
        for width, pairs in needs.items():
            if width in (form, FLOAT):
                continue
            if only:
                table = tensors if own is None else converted
                table[name] = encode(name, width)
                continue
            branch = _branch(graph, value, width, pairs)
            if own is None:
                tensors[branch] = encode(name, width)
            else:
                tensors[branch] = own
                converted[branch] = encode(name, width)
    edited_model = wrap(edited, model.name)
    plan = QuantPlan(tensors, {}, converted)
    plan = _plan_constants(edited_model, plan, assignment, widths, weights or {})
    plan = plan.updated({}, {k: q for k, q in (codes or {}).items() if k in plan.tensors})
    return edited_model, plan_biases(edited_model, plan)


def _branch(
    graph: ir.Graph, value: ir.Value, width: int, pairs: tuple[tuple[ir.Node, int], ...]
) -> str:
    node = ir.node("Identity", [value], name=f"{name_of(value)}_as{width}")
    output = node.outputs[0]
    output.name, output.shape, output.type = f"{name_of(value)}_as{width}", value.shape, value.type
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(producer, node)
    for reader, index in pairs:
        reader.replace_input_with(index, output)
    return name_of(output)


def _tables(graph: ir.Graph, widths: Mapping[str, int]) -> dict[str, Encoding]:
    """Encodings of look-up tables, by initializer name."""
    found: dict[str, Encoding] = {}
    for node in graph:
        if not is_table_lookup(node) or not widths[node_key(node)]:
            continue
        table = node.inputs[0]
        assert table is not None
        data = array_of(table)
        low, high = float(data.min(initial=0.0)), float(data.max(initial=0.0))
        found[name_of(table)] = asymmetric(low, high, widths[node_key(node)])
    return found


def _own_constants(graph: ir.Graph, widths: Mapping[str, int]) -> None:
    """Give a constant that is read at several widths one copy per width."""
    first: dict[str, int] = {}
    copies: dict[tuple[str, int], ir.Value] = {}
    for use in list(initializer_uses(graph)):
        if use.role == "parameter" or moves(use.node):
            continue
        width = widths.get(node_key(use.node), FLOAT)
        name = name_of(use.value)
        if first.setdefault(name, width) == width:
            continue
        if (name, width) not in copies:
            copies[name, width] = set_initializer(graph, f"{name}_as{width}", array_of(use.value))
        use.node.replace_input_with(use.index, copies[name, width])


def _plan_constants(
    model: Model,
    plan: QuantPlan,
    assignment: Assignment,
    widths: Mapping[str, int],
    chosen: Mapping[str, Encoding],
) -> QuantPlan:
    tensors: dict[str, Encoding] = {}
    for use in initializer_uses(model.ir.graph):
        name = name_of(use.value)
        width = widths.get(node_key(use.node), FLOAT)
        if not width or use.role in {"bias", "parameter"} or name in plan.tensors:
            continue
        if use.role == "weight":
            bits = assignment.weights.get(name, 8)
            tensors[name] = chosen.get(name) or weight_encoding(use, PlanOptions(weight_bits=bits))
            continue
        if name in chosen and chosen[name].bits == (8 if use.role == "gamma" else width):
            tensors[name] = chosen[name]
            continue
        data = array_of(use.value)
        low, high = float(data.min(initial=0.0)), float(data.max(initial=0.0))
        tensors[name] = asymmetric(low, high, 8 if use.role == "gamma" else width)
    return plan.updated(tensors)


__all__ = ["FLOAT", "Assignment", "Flow", "assemble", "compatible", "flow", "leaders"]
