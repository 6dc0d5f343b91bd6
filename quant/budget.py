"""The cheapest assignment of precisions within a budget, from sensitivities.

Errors of single tensors are taken to add. Widths are chosen backwards: all operators start at 16
bits, and the one whose change to 8 bits adds the least error per step goes first. Starting from
the wide end matters: one 16-bit operator between 8-bit neighbours gains nothing, so a search from
the narrow end would never take the first step. Weights go from 8 to 4 bits in the order of error
added per byte saved. Either order is a Pareto front of its own: error against cost.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from quant.errors import UserError
from quant.graph import (
    activations,
    array_of,
    encoding_groups,
    folded_into,
    initializer_uses,
    name_of,
)
from quant.mixed import FLOAT, leaders
from quant.parts import computes, is_layer, is_table_lookup, moves, node_key
from quant.sensitivity import LAYERS, OTHERS, Sensitivity

_AT_16_BITS = 2.0**-16  # squared step of 16 bits over that of 8


@dataclass(frozen=True)
class Point:
    """One assignment of the front. error: predicted relative squared error of the outputs;
    cost: share of activations at 16 bits, or bytes of stored weights."""

    cost: float
    error: float


@dataclass(frozen=True)
class _Group:
    """An activation and whoever reads it. owner: the operator that makes it (None: an input)."""

    root: str
    owner: str | None
    readers: Mapping[str, tuple[str, ...]]  # class -> operators


class Activations:
    """The activations of a graph as the search sees them: one group per encoding.

    fixed: operators whose width is decided (fp16 parts, look-ups in 8-bit tables, the user's
    layers), by node_key.
    """

    def __init__(self, graph: ir.Graph, sensitivity: Sensitivity, fixed: Mapping[str, int]) -> None:
        self.sensitivity = sensitivity
        self.fixed = dict(fixed)
        self.leader = leaders(graph)
        roots = encoding_groups(graph)
        owners: dict[str, str] = {}
        readers: dict[str, dict[str, list[str]]] = {}
        order: dict[str, None] = {}
        for node in graph:
            if computes(node):
                for value in node.outputs:
                    if name_of(value) in roots and folded_into(value) is None:
                        owners[roots[name_of(value)]] = self.leader[node_key(node)]
        for value in activations(graph):
            if folded_into(value) is not None:
                continue
            root = roots[name_of(value)]
            order[root] = None
            for use in value.uses():
                if computes(use.node):
                    kind = LAYERS if is_layer(use.node) else OTHERS
                    key = self.leader[node_key(use.node)]
                    readers.setdefault(root, {}).setdefault(kind, []).append(key)
        self.groups = {
            r: _Group(r, owners.get(r), {k: tuple(v) for k, v in readers.get(r, {}).items()})
            for r in order
        }
        self.operators = [
            node_key(n) for n in graph if computes(n) and self.leader[node_key(n)] == node_key(n)
        ]
        self._touching: dict[str, list[str]] = {}
        for group in self.groups.values():
            for operator in {
                *([group.owner] if group.owner else []),
                *(o for keys in group.readers.values() for o in keys),
            }:
                self._touching.setdefault(operator, []).append(group.root)

    def expand(self, widths: Mapping[str, int]) -> dict[str, int]:
        """Widths of every computing node from those of the leaders."""
        return {key: widths[leader] for key, leader in self.leader.items()}

    def width_of(self, group: _Group, widths: Mapping[str, int]) -> int:
        if group.owner is not None:
            return widths[group.owner]
        wanted = {widths[o] for keys in group.readers.values() for o in keys}
        return FLOAT if FLOAT in wanted or not wanted else max(wanted)

    def error(self, group: _Group, widths: Mapping[str, int]) -> float:
        """Predicted error of one activation under `widths`."""
        measured = self.sensitivity.activations.get(group.root, {})
        width = self.width_of(group, widths)
        total = 0.0
        for kind, value in measured.items():
            if width == 8:
                total += value
                continue
            keys = group.readers.get(kind, ())
            narrow = sum(widths[k] == 8 for k in keys) / len(keys) if keys else 0.0
            rest = 0.0 if width == FLOAT else _AT_16_BITS
            total += value * (narrow + (1.0 - narrow) * rest)
        return total

    def predicted_error(self, widths: Mapping[str, int]) -> float:
        return sum(self.error(g, widths) for g in self.groups.values())

    def wide_share(self, widths: Mapping[str, int]) -> float:
        """Share of the activations that are stored in more than 8 bits."""
        wide = sum(self.width_of(g, widths) != 8 for g in self.groups.values())
        return wide / max(len(self.groups), 1)

    def front(self) -> list[tuple[Point, dict[str, int]]]:
        """Assignments (widths of leaders) from all 16 bits to all 8 bits, error growing."""
        widths = {o: self.fixed.get(o, 16) for o in self.operators}
        free = [o for o in self.operators if o not in self.fixed]
        error = self.predicted_error(widths)
        steps = [(Point(self.wide_share(widths), error), dict(widths))]
        gains = {o: self._added(o, widths) for o in free}
        while gains:
            operator = min(gains, key=lambda o: (gains[o], o))
            error += gains.pop(operator)
            widths[operator] = 8
            stale = {
                o
                for root in self._touching.get(operator, ())
                for o in _members(self.groups[root])
                if o in gains
            }
            for other in stale:
                gains[other] = self._added(other, widths)
            steps.append((Point(self.wide_share(widths), error), dict(widths)))
        return steps

    def _added(self, operator: str, widths: dict[str, int]) -> float:
        groups = [self.groups[r] for r in self._touching.get(operator, ())]
        before = sum(self.error(g, widths) for g in groups)
        widths[operator] = 8
        after = sum(self.error(g, widths) for g in groups)
        widths[operator] = 16
        return after - before


def _members(group: _Group) -> set[str]:
    owner = {group.owner} if group.owner else set()
    return owner | {o for keys in group.readers.values() for o in keys}


def within_share(
    steps: Sequence[tuple[Point, dict[str, int]]], limit: float
) -> tuple[Point, dict[str, int]]:
    """The most accurate step with at most `limit` of the activations above 8 bits.

    Raises UserError with the least share there is where `limit` is below it.
    """
    fitting = [s for s in steps if s[0].cost <= limit + 1e-9]
    if not fitting:
        least = min(s[0].cost for s in steps)
        raise UserError(
            f"No assignment has at most {limit:.1%} of the activations above 8 bits: the parts in "
            f"fp16 alone hold {least:.1%}.",
            f"Allow {least:.1%}, or give those parts int8.",
        )
    return min(fitting, key=lambda s: s[0].error)


@dataclass(frozen=True)
class WeightStep:
    """State of the weights after some went to 4 bits."""

    point: Point
    bits: Mapping[str, int]


def weight_front(
    sizes: Mapping[str, Callable[[int], int]],
    errors: Mapping[str, Mapping[int, float]],
    *,
    base: int,
) -> list[WeightStep]:
    """From all weights at 8 bits to all at 4, by error added per byte saved.

    sizes: stored bytes of each free weight by bits; base: bytes of everything else.
    """
    bits = dict.fromkeys(sizes, 8)
    size = base + sum(sizes[n](8) for n in sizes)
    error = sum(errors[n][8] for n in sizes)
    steps = [WeightStep(Point(size, error), dict(bits))]
    queue: list[tuple[float, str, int]] = []
    for name in sizes:
        saved = sizes[name](8) - sizes[name](4)
        if saved > 0:
            heapq.heappush(queue, ((errors[name][4] - errors[name][8]) / saved, name, saved))
    while queue:
        _, name, saved = heapq.heappop(queue)
        bits[name] = 4
        size -= saved
        error += errors[name][4] - errors[name][8]
        steps.append(WeightStep(Point(size, error), dict(bits)))
    return steps


def within_size(
    steps: Sequence[WeightStep],
    limit: float,
    sizes: Mapping[str, Callable[[int], int]],
    errors: Mapping[str, Mapping[int, float]],
) -> WeightStep:
    """The first step of at most `limit` bytes, with weights put back to 8 bits that still fit.

    Raises UserError with the smallest size there is where `limit` is below it.
    """
    fitting = next((s for s in steps if s.point.cost <= limit), None)
    if fitting is None:
        least = steps[-1].point.cost
        raise UserError(
            f"No assignment is as small as {limit / 1e6:.4g} MB: with 4 bits wherever they are "
            f"allowed the weights take {least / 1e6:.4g} MB.",
            f"Allow {least / 1e6:.4g} MB, or give more parts int4.",
        )
    bits, size, error = dict(fitting.bits), fitting.point.cost, fitting.point.error
    worth = sorted((n for n in bits if bits[n] == 4), key=lambda n: errors[n][8] - errors[n][4])
    for name in worth:  # the most harmful first
        grown = sizes[name](8) - sizes[name](4)
        if size + grown <= limit:
            bits[name] = 8
            size += grown
            error += errors[name][8] - errors[name][4]
    return WeightStep(Point(size, error), bits)


def stored_size(
    graph: ir.Graph, widths: Mapping[str, int], *, searched: bool = False
) -> tuple[int, dict[str, int]]:
    """(bytes of all constants but the integer layers' weights, elements of those weights).

    Float weights count two bytes per element, as the HTP keeps them; biases four; tables, gammas
    and other constants their width, once for each width they are read at. Scales and zero points
    come with the weights. searched: `widths` may still change, so constants count for the most
    they can take.
    """
    base, elements = 0, {}
    constants: dict[str, set[int]] = {}
    for use in initializer_uses(graph):
        name = name_of(use.value)
        if use.role == "parameter" or name in elements:
            continue
        count = array_of(use.value).size
        width = widths.get(node_key(use.node), FLOAT) if not moves(use.node) else FLOAT
        if use.role == "weight" and width:
            elements[name] = count
        elif use.role == "bias" and width:
            base += 4 * count
        elif use.role == "gamma" and width:
            base += count
        else:
            taken = constants.setdefault(name, set())
            size = width // 8 if width else 2
            if searched and width and not is_table_lookup(use.node):
                both = {1, 2} if len(use.value.uses()) > 1 else {2}
                base += count * sum(both - taken)
                taken |= both
            elif size not in taken:
                base += count * size
                taken.add(size)
    return base, elements


__all__ = [
    "Activations",
    "Point",
    "WeightStep",
    "stored_size",
    "weight_front",
    "within_share",
    "within_size",
]
