"""What each weight and each activation costs at low precision, measured one at a time.

The graph is cut into segments. For each segment one session runs from there to the outputs, on
the float values that enter it; a switch input picks the one tensor that is quantized. So a
candidate costs the part of the graph behind it, on a few samples, and never a new session.

The figure is the squared error of the outputs relative to their power, averaged over samples and
outputs. Errors of single tensors add up to first order (Nagel et al. 2021, "A White Paper on Neural
Network Quantization", section 4), which the search over assignments relies on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from quant.calibrate import session, stream
from quant.encoding import Array, asymmetric
from quant.graph import (
    activations,
    array_of,
    encoding_groups,
    folded_into,
    initializer_uses,
    name_of,
)
from quant.model import Model
from quant.parts import computes, is_layer
from quant.planning import PlanOptions, weight_encoding
from quant.task import Task

LAYERS, OTHERS = "layers", "others"  # who reads an activation
_SWITCH = "qhost_switch"
_SEGMENTS = 10


@dataclass(frozen=True)
class Sensitivity:
    """Relative squared output error of one tensor quantized alone.

    weights: by name and bits. activations: by encoding group (its root's name) and by who reads
    the 8-bit value, LAYERS (Conv, Gemm, MatMul with a weight) or OTHERS; an activation at 16 bits
    costs 2**-16 of that. samples: how many were used.
    """

    weights: Mapping[str, Mapping[int, float]]
    activations: Mapping[str, Mapping[str, float]]
    samples: int


@dataclass(frozen=True)
class _Unit:
    """One position of the switch."""

    number: int
    weight: tuple[str, int] | None = None
    activation: tuple[str, str] | None = None


@dataclass
class _Edges:
    """Readers of the values of one (group, class): (node or None for a graph output, index)."""

    places: list[tuple[int, ir.Node | None, int, ir.Value]] = field(default_factory=list)


def analyse(
    model: Model,
    task: Task,
    ranges: Mapping[str, tuple[float, float]],
    *,
    weight_bits: Sequence[int] = (8, 4),
    weights: Mapping[str, Mapping[int, Array]] | None = None,
    measure_activations: bool = True,
    samples: int = 4,
) -> Sensitivity:
    """Measure every weight at `weight_bits` and every activation at 8 bits.

    ranges: [low, high] by activation name. weights: values a weight would have at given bits, by
    name and bits; without them it is rounded to nearest per channel. samples: taken evenly from
    the calibration set.
    """
    nodes = list(model.ir.graph)
    units, edges = _units(model.ir.graph, nodes, weight_bits, measure_activations)
    cuts = _cuts(nodes)
    picked = _pick(task.n_calibration, samples)
    boundaries = [_boundary(nodes, start) for start, _ in cuts]
    names = list(dict.fromkeys(n for b in boundaries for n in b))
    outputs = [o.name for o in model.outputs if np.dtype(o.dtype).kind == "f"]
    kept = _float_pass(model, task, [*names, *outputs], picked)
    powers = _powers(kept, outputs)
    errors = dict.fromkeys(range(1, len(units) + 1), 0.0)
    for (start, end), boundary in zip(cuts, boundaries, strict=True):
        here = [u for u in units if start <= _position(u, nodes, edges) < end]
        if not here:
            continue
        made = {name_of(v) for n in nodes[start:] for v in n.outputs}
        later = [o for o in outputs if o in made]
        suffix = _suffix(model, start, boundary, later, here, edges, ranges, weights or {})
        running = session(suffix, later)
        for values in kept:
            feed = {n: values[n] for n in boundary}
            for unit in here:
                feed[_SWITCH] = np.array(unit.number, np.int64)
                got = dict(zip(later, running.run(later, feed), strict=True))
                errors[unit.number] += _relative(values, got, powers) / len(kept)
    by_weight: dict[str, dict[int, float]] = {}
    by_activation: dict[str, dict[str, float]] = {}
    for unit in units:
        if unit.weight is not None:
            by_weight.setdefault(unit.weight[0], {})[unit.weight[1]] = errors[unit.number]
        elif unit.activation is not None:
            by_activation.setdefault(unit.activation[0], {})[unit.activation[1]] = errors[
                unit.number
            ]
    return Sensitivity(by_weight, by_activation, len(kept))


def _pick(total: int, samples: int) -> list[int]:
    count = min(total, samples)
    return sorted({int(i) for i in np.linspace(0, total - 1, count)})


def _relative(
    reference: Mapping[str, Array], got: Mapping[str, Array], powers: Mapping[str, float]
) -> float:
    """Squared error over power, mean over the outputs; one made before the tensor has none."""
    return float(
        np.mean(
            [
                0.0
                if name not in got
                else np.square(reference[name].astype(np.float64) - got[name]).sum() / power
                for name, power in powers.items()
            ]
        )
    )


def _powers(kept: Sequence[Mapping[str, Array]], names: Iterable[str]) -> dict[str, float]:
    """Mean power of each output over the samples: one near zero must not outweigh the others."""
    return {
        n: max(float(np.mean([np.square(k[n].astype(np.float64)).sum() for k in kept])), 1e-30)
        for n in names
    }


def _units(
    graph: ir.Graph, nodes: Sequence[ir.Node], weight_bits: Sequence[int], with_activations: bool
) -> tuple[list[_Unit], dict[tuple[str, str], _Edges]]:
    order = {id(n): i for i, n in enumerate(nodes)}
    units: list[_Unit] = []
    for use in initializer_uses(graph):
        name = name_of(use.value)
        if use.role == "weight" and all(u.weight is None or u.weight[0] != name for u in units):
            units += [
                _Unit(len(units) + 1 + k, weight=(name, bits)) for k, bits in enumerate(weight_bits)
            ]
    edges: dict[tuple[str, str], _Edges] = {}
    if not with_activations:
        return units, edges
    groups = encoding_groups(graph)
    for value in activations(graph):
        if folded_into(value) is not None:
            continue
        root = groups[name_of(value)]
        for reader in value.uses():
            if computes(reader.node):
                kind = LAYERS if is_layer(reader.node) else OTHERS
                place = (order[id(reader.node)], reader.node, reader.idx, value)
                edges.setdefault((root, kind), _Edges()).places.append(place)
        if value.is_graph_output():
            edges.setdefault((root, OTHERS), _Edges()).places.append(
                (len(nodes) - 1, None, 0, value)
            )
    for key in edges:
        units.append(_Unit(len(units) + 1, activation=key))
    return units, edges


def _position(
    unit: _Unit, nodes: Sequence[ir.Node], edges: Mapping[tuple[str, str], _Edges]
) -> int:
    """Index of the first node that reads what the unit quantizes."""
    if unit.activation is not None:
        return min(place[0] for place in edges[unit.activation].places)
    assert unit.weight is not None
    name = unit.weight[0]
    return next(
        i for i, n in enumerate(nodes) if any(v is not None and v.name == name for v in n.inputs)
    )


def _cuts(nodes: Sequence[ir.Node]) -> list[tuple[int, int]]:
    """[start, end) of segments of about equal work."""
    work = np.cumsum([_work(n) for n in nodes])
    limits = np.searchsorted(work, np.linspace(0, work[-1], _SEGMENTS + 1)[1:-1])
    starts = sorted({0, *(int(i) for i in limits)})
    return list(zip(starts, [*starts[1:], len(nodes)], strict=True))


def _work(node: ir.Node) -> float:
    """Multiplications of a layer, or values moved, roughly."""
    size = max((_size(v) for v in node.outputs), default=0)
    if not is_layer(node) or node.inputs[1] is None or node.inputs[1].shape is None:
        return float(size)
    dims = [d for d in node.inputs[1].shape if isinstance(d, int)]
    depth = int(np.prod(dims[1:])) if node.op_type == "Conv" else dims[0]
    return float(size * depth)


def _size(value: ir.Value) -> int:
    if value.shape is None:
        return 0
    return int(np.prod([d for d in value.shape if isinstance(d, int)]))


def _boundary(nodes: Sequence[ir.Node], start: int) -> list[str]:
    """Values made before `start` (model inputs included) and read from there on."""
    made = {id(v) for n in nodes[start:] for v in n.outputs}
    found: dict[str, None] = {}
    for node in nodes[start:]:
        for value in node.inputs:
            if value is not None and not value.is_initializer() and id(value) not in made:
                found[name_of(value)] = None
    return list(found)


def _float_pass(
    model: Model, task: Task, names: Sequence[str], picked: Sequence[int]
) -> list[dict[str, Array]]:
    wanted = list(dict.fromkeys(names))
    few = {k: a[list(picked)] for k, a in task.calibration.items()}
    return list(stream(model, replace(task, calibration=few), wanted))


def _suffix(
    model: Model,
    start: int,
    boundary: Sequence[str],
    outputs: Sequence[str],
    units: Sequence[_Unit],
    edges: Mapping[tuple[str, str], _Edges],
    ranges: Mapping[str, tuple[float, float]],
    weights: Mapping[str, Mapping[int, Array]],
) -> ir.Model:
    """The graph from node `start` on, with a switch in front of each tensor of `units`."""
    originals = list(model.ir.graph)
    place_of = {id(n): i for i, n in enumerate(originals)}
    graph = model.clone().graph
    nodes = list(graph)
    values = {name_of(v): v for v in graph.inputs}
    for node in nodes:
        values.update({name_of(v): v for v in node.outputs})
    builder = _Builder(graph)
    uses = {name_of(u.value): u for u in initializer_uses(model.ir.graph) if u.role == "weight"}
    for unit in units:
        if unit.weight is not None:
            name, bits = unit.weight
            data = weights.get(name, {}).get(bits)
            if data is None:
                use = uses[name]
                data = weight_encoding(use, PlanOptions(weight_bits=bits)).fake(array_of(use.value))
            builder.switch_weight(name, data, unit.number)
            continue
        assert unit.activation is not None
        for _, at, index, original in edges[unit.activation].places:
            name = name_of(original)
            low, high = ranges[name]
            reader = None if at is None else nodes[place_of[id(at)]]
            builder.switch_activation(values[name], low, high, unit.number, reader, index)
    kept = [o for o in graph.outputs if o.name in outputs]
    graph.outputs.clear()
    graph.outputs.extend(kept)
    entering = set(boundary)
    for node in reversed(nodes[:start]):
        for output in node.outputs:
            if output.name in entering:
                fresh = ir.val(name_of(output), dtype=output.dtype, shape=output.shape)
                output.name = f"{name_of(output)}_made_before"
                ir.convenience.replace_all_uses_with(output, fresh)
                values[name_of(fresh)] = fresh
        graph.remove(node, safe=True)
    graph.inputs.clear()
    graph.inputs.extend([*(values[n] for n in boundary), builder.switch])
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]
    graph.sort()
    return ir.Model(graph, ir_version=model.ir.ir_version)


class _Builder:
    """Puts `Where(switch == number, quantized, float)` in front of readers."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.switch = ir.val(_SWITCH, dtype=ir.DataType.INT64, shape=ir.Shape([]))
        self.made: dict[tuple[int, str], ir.Value] = {}

    def _constant(self, name: str, data: Array) -> ir.Value:
        value = ir.val(name, const_value=ir.tensor(np.ascontiguousarray(data), name=name))
        self.graph.register_initializer(value)
        return value

    def _condition(self, number: int, before: ir.Node) -> ir.Value:
        key = (number, "")
        if key not in self.made:
            constant = self._constant(f"{_SWITCH}_{number}", np.array(number, np.int64))
            node = ir.node("Equal", [self.switch, constant], name=f"{_SWITCH}_is_{number}")
            node.outputs[0].name = f"{_SWITCH}_on_{number}"
            self.graph.insert_before(before, node)
            self.made[key] = node.outputs[0]
        return self.made[key]

    def _where(
        self, number: int, quantized: ir.Value, plain: ir.Value, before: ir.Node
    ) -> ir.Value:
        name = f"{name_of(plain)}_switched_{number}"
        if (number, name) not in self.made:
            node = ir.node("Where", [self._condition(number, before), quantized, plain])
            output = node.outputs[0]
            output.name, output.type, output.shape = name, plain.type, plain.shape
            self.graph.insert_before(before, node)
            self.made[number, name] = output
        return self.made[number, name]

    def switch_weight(self, name: str, data: Array, number: int) -> None:
        value = self.graph.initializers[name]
        uses = list(value.uses())
        quantized = self._constant(f"{name}_at_{number}", data.astype(np.float32))
        # A second candidate of the same weight goes in front of the first one's Where.
        first = min((u.node for u in uses), key=lambda n: list(self.graph).index(n))
        output = self._where(number, quantized, value, first)
        for node, index in uses:
            node.replace_input_with(index, output)

    def switch_activation(
        self,
        value: ir.Value,
        low: float,
        high: float,
        number: int,
        reader: ir.Node | None,
        index: int,
    ) -> None:
        key = (number, name_of(value))
        current = value
        if reader is not None:
            operand = reader.inputs[index]
            assert operand is not None
            current = operand
        if key not in self.made:
            before = reader if reader is not None else self.graph[-1]
            self.made[key] = self._quantized(value, low, high, number, before)
        if reader is not None:
            output = self._where(number, self.made[key], current, reader)
            reader.replace_input_with(index, output)
            return
        name = name_of(value)
        output = self._where(number, self.made[key], value, self.graph[-1])
        value.name, output.name = f"{name}_plain", name
        for position, item in enumerate(self.graph.outputs):
            if item is value:
                self.graph.outputs[position] = output

    def _quantized(
        self, value: ir.Value, low: float, high: float, number: int, before: ir.Node
    ) -> ir.Value:
        encoding = asymmetric(low, high, 8)
        stem = f"{name_of(value)}_q{number}"
        scale = self._constant(f"{stem}_scale", encoding.scale)
        zero = self._constant(f"{stem}_zero", encoding.zero_point)
        quantize = ir.node("QuantizeLinear", [value, scale, zero], name=stem)
        restore = ir.node("DequantizeLinear", [quantize.outputs[0], scale, zero], name=f"{stem}_d")
        quantize.outputs[0].name, restore.outputs[0].name = stem, f"{stem}_d"
        restore.outputs[0].type, restore.outputs[0].shape = value.type, value.shape
        self.graph.insert_before(before, [quantize, restore])
        return restore.outputs[0]


__all__ = ["LAYERS", "OTHERS", "Sensitivity", "analyse"]
