"""From a budget to an assignment: measure once, then walk the fronts."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from quant.budget import (
    Activations,
    Point,
    WeightStep,
    stored_size,
    weight_front,
    within_share,
    within_size,
)
from quant.encoding import Array, Encoding
from quant.errors import UserError
from quant.graph import Use, array_of, initializer_uses, name_of
from quant.mixed import FLOAT, Assignment, Ranges
from quant.model import Model
from quant.parts import node_key
from quant.planning import PlanOptions, weight_encoding
from quant.refine import Refined, RefineOptions, refine_weights
from quant.report import stored_bytes
from quant.rewrite import replace_weights
from quant.sensitivity import Sensitivity, analyse
from quant.task import Task


@dataclass(frozen=True)
class Budget:
    """What must hold. drop: of the metric, in points (share 0.005 for 0.5pt) or relative."""

    max_a16: float | None = None
    target_size: float | None = None
    drop: float | None = None
    drop_relative: bool = False


def parse_share(text: str, what: str) -> float:
    """`30%` or 0.3 as 0.3. Raises UserError."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*(%?)\s*", text)
    try:
        value = float(match.group(1)) / (100.0 if match.group(2) else 1.0) if match else -1.0
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise UserError(f"{what} {text!r} is not a share.", "Write for example 30%.")
    return value


def parse_drop(text: str) -> tuple[float, bool]:
    """`0.5pt` as (0.005, absolute), `5%` as (0.05, relative). Raises UserError."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*(pt|%)\s*", text)
    try:
        if match is None:
            raise ValueError(text)
        return float(match.group(1)) / 100.0, match.group(2) == "%"
    except ValueError as error:
        raise UserError(
            f"max-accuracy-drop {text!r} has no unit.",
            "Write points (0.5pt) or percent of the figure (5%).",
        ) from error


@dataclass(frozen=True)
class Roundings:
    """Encodings, integers and corrected biases of the weights at each bit width."""

    model: Model
    by_bits: Mapping[int, Refined]

    def compose(self, assignment: Assignment) -> Refined:
        """The model and the encodings of the integer layers under `assignment`."""
        encodings: dict[str, Encoding] = {}
        codes: dict[str, Array] = {}
        biases: dict[str, Array] = {}
        for use, name, bits in _rounded(self.model.ir.graph, assignment):
            refined = self.by_bits.get(bits)
            if refined is None or name not in refined.encodings:
                continue
            encodings[name] = refined.encodings[name]
            if name in refined.codes:
                codes[name] = refined.codes[name]
            bias = use.node.inputs[2] if len(use.node.inputs) > 2 else None
            if bias is not None and bias.is_initializer():
                key = name_of(bias)
                biases[key] = array_of(refined.model.ir.graph.initializers[key])
        model = replace_weights(self.model, biases) if biases else self.model
        return Refined(model, encodings, codes)


def few_rows(node: ir.Node) -> bool:
    """Whether the layer sees one row per sample, as a classifier's head does.

    A search under the inputs of a few samples then fits those and nothing else: such a layer is
    rounded to nearest.
    """
    value = node.inputs[0]
    shape = None if value is None else value.shape
    if node.op_type not in {"Gemm", "MatMul"} or shape is None:
        return False
    return all(rows == 1 for rows in shape[:-1])


def restore(refined: Refined, name: str, data: Array) -> Array:
    """The float values of a rounded weight."""
    encoding = refined.encodings[name]
    q = refined.codes.get(name)
    return encoding.fake(data) if q is None else encoding.dequantize(q)


def _rounded(graph: ir.Graph, assignment: Assignment) -> Iterator[tuple[Use, str, int]]:
    """Each use of a weight that an integer layer has searched for: the use, its name, its bits."""
    for use in initializer_uses(graph):
        integer = assignment.widths.get(node_key(use.node), FLOAT)
        if use.role == "weight" and integer and not few_rows(use.node):
            name = name_of(use.value)
            yield use, name, assignment.weights.get(name, 8)


def needed_roundings(graph: ir.Graph, assignment: Assignment) -> dict[int, set[str]]:
    """The weights that `assignment` takes from roundings, by bits."""
    names: dict[int, set[str]] = {}
    for _, name, bits in _rounded(graph, assignment):
        names.setdefault(bits, set()).add(name)
    return names


def roundings(model: Model, task: Task, wanted: Mapping[int, Collection[str] | None]) -> Roundings:
    """Range search and bias correction at 8 bits, convolutions and 4 bits second-order besides.

    wanted: names of the weights to round, by bits (4, 8); None: every one.
    """
    convs = any(node.op_type == "Conv" for node in model.ir.graph)
    options = {
        8: RefineOptions(bits=8, second_order_conv=True, samples=64 if convs else 16),
        4: RefineOptions(bits=4, second_order=True, samples=64),
    }
    return Roundings(
        model,
        {b: refine_weights(model, task, options[b], only=wanted[b]) for b in sorted(wanted)},
    )


@dataclass(frozen=True)
class Analysis:
    """All that a search needs, measured once."""

    sensitivity: Sensitivity
    activations: Activations
    act_front: list[tuple[Point, dict[str, int]]]
    weight_front: list[WeightStep]
    sizes: Mapping[str, Callable[[int], int]]
    base: Assignment


def measure(
    model: Model,
    task: Task,
    base: Assignment,
    fixed_widths: Mapping[str, int],
    fixed_weights: Mapping[str, int],
    rounded: Roundings,
    ranges: Ranges,
    *,
    widths: bool,
    weights: bool,
    samples: int,
) -> Analysis:
    """One sensitivity analysis and the fronts that follow from it.

    base: where nothing is searched. fixed_widths, fixed_weights: decided beforehand.
    """
    graph = model.ir.graph
    restored: dict[str, dict[int, Array]] = {}
    sizes: dict[str, Callable[[int], int]] = {}
    other = 0
    size, elements = stored_size(graph, base.widths, searched=widths)
    for use in initializer_uses(graph):
        name = name_of(use.value)
        if use.role != "weight" or name in restored or name not in elements:
            continue
        data = array_of(use.value)
        restored[name] = {}
        for bits, refined in rounded.by_bits.items():
            if name in refined.encodings and not few_rows(use.node):
                restored[name][bits] = restore(refined, name, data)
        channels, count = weight_encoding(use, PlanOptions(weight_bits=8)), elements[name]
        if name in fixed_weights or not weights:
            bits = base.weights.get(name, 8)
            other += _bytes(channels, count, bits)
        else:
            by_bits = {b: _bytes(channels, count, b) for b in (4, 8)}
            sizes[name] = by_bits.__getitem__
    found = analyse(
        model,
        task,
        ranges,
        weight_bits=(8, 4) if weights else (),
        weights=restored,
        measure_activations=widths,
        samples=samples,
    )
    activations = Activations(graph, found, fixed_widths)
    front = activations.front() if widths else []
    ladder = weight_front(sizes, found.weights, base=size + other) if weights else []
    return Analysis(found, activations, front, ladder, sizes, base)


def _bytes(encoding: Encoding, elements: int, bits: int) -> int:
    return stored_bytes(replace(encoding, bits=bits), elements)


def choose(
    analysis: Analysis, budget: Budget, drop_of: Callable[[Assignment], float] | None
) -> tuple[Assignment, list[str]]:
    """The assignment within `budget`, and what was predicted for it, in words.

    drop_of: measures the accuracy lost under an assignment; needed with a drop budget. Raises
    UserError with the closest possible where the budget cannot be kept.
    """
    notes: list[str] = []
    if budget.drop is None:
        widths: dict[str, int] = {}
        weights: dict[str, int] = {}
        if budget.max_a16 is not None:
            widths = within_share(analysis.act_front, budget.max_a16)[1]
        if budget.target_size is not None:
            fitted = within_size(
                analysis.weight_front,
                budget.target_size,
                analysis.sizes,
                analysis.sensitivity.weights,
            )
            weights = dict(fitted.bits)
            notes.append(
                f"weights {fitted.point.cost / 1e6:.4g} MB of {budget.target_size / 1e6:.4g} MB"
            )
        return _assignment(analysis, widths, weights), notes
    assert drop_of is not None
    steps = list(_ladder(analysis, budget))
    low, high = 0, len(steps) - 1
    best: tuple[Assignment, float] | None = None
    closest: float | None = None
    while low <= high:
        middle = (low + high) // 2 if best is not None or closest is not None else low
        candidate = _assignment(analysis, steps[middle][1], steps[middle][2])
        drop = drop_of(candidate)
        closest = drop if closest is None else min(closest, drop)
        if drop <= budget.drop:
            best, low = (candidate, drop), middle + 1
        elif middle == 0:
            break
        else:
            high = middle - 1
    if best is None:
        assert closest is not None
        unit = f"{closest:.2%} of the figure" if budget.drop_relative else f"{closest * 100:.2f}pt"
        wanted = f"{budget.drop:.2%}" if budget.drop_relative else f"{budget.drop * 100:g}pt"
        raise UserError(
            f"No assignment within the other limits keeps the accuracy drop at {wanted}: "
            f"the most precise one loses {unit}.",
            f"Allow {unit}, or raise the other limits.",
        )
    lost = f"{best[1]:.2%} of the figure" if budget.drop_relative else f"{best[1] * 100:.2f}pt"
    notes.append(f"accuracy drop {lost}, measured in onnxruntime while searching")
    return best[0], notes


Step = tuple[float, dict[str, int], dict[str, int]]


def _ladder(analysis: Analysis, budget: Budget) -> Iterator[Step]:
    """(predicted error, leaders' widths, weight bits) from the most precise allowed to the least.

    Two fronts are merged by error added per share of cost saved: an activation step saves its
    share of the activations, a weight step its share of the stored bytes.
    """
    acts = analysis.act_front
    weights = analysis.weight_front
    if acts and budget.max_a16 is not None:
        first = within_share(acts, budget.max_a16)
        acts = acts[acts.index(first) :]
    if weights and budget.target_size is not None:
        fitted = within_size(
            weights, budget.target_size, analysis.sizes, analysis.sensitivity.weights
        )
        weights = [fitted, *(w for w in weights if w.point.cost < fitted.point.cost)]
    i = j = 0
    total = weights[0].point.cost if weights else 1.0
    while True:
        error = (acts[i][0].error if acts else 0.0) + (weights[j].point.error if weights else 0.0)
        yield error, acts[i][1] if acts else {}, dict(weights[j].bits) if weights else {}
        slope_a = slope_w = float("inf")
        if acts and i + 1 < len(acts):
            saved = acts[i][0].cost - acts[i + 1][0].cost
            slope_a = (acts[i + 1][0].error - acts[i][0].error) / max(saved, 1e-6)
        if weights and j + 1 < len(weights):
            saved = (weights[j].point.cost - weights[j + 1].point.cost) / total
            slope_w = (weights[j + 1].point.error - weights[j].point.error) / max(saved, 1e-9)
        if slope_a == slope_w == float("inf"):
            return
        if slope_a <= slope_w:
            i += 1
        else:
            j += 1


def _assignment(
    analysis: Analysis, widths: Mapping[str, int], weights: Mapping[str, int]
) -> Assignment:
    base = analysis.base
    expanded = analysis.activations.expand(widths) if widths else dict(base.widths)
    return Assignment(expanded, {**base.weights, **weights})


def report(analysis: Analysis, chosen: Assignment) -> dict[str, Any]:
    """The analysis as JSON: sensitivities, both fronts, the point that was chosen."""
    leaders = {k: chosen.widths[k] for k in analysis.activations.operators}
    front = analysis.weight_front
    bits = {n: chosen.weights.get(n, 8) for n in analysis.sizes}
    stored = error = None
    if front:
        saved = sum(analysis.sizes[n](8) - analysis.sizes[n](b) for n, b in bits.items())
        stored = front[0].point.cost - saved
        error = sum(analysis.sensitivity.weights[n][b] for n, b in bits.items())
    return {
        "version": 1,
        "unit": "squared error of the outputs over their power, one tensor quantized at a time",
        "samples": analysis.sensitivity.samples,
        "weights": {
            name: {str(b): e for b, e in found.items()}
            for name, found in analysis.sensitivity.weights.items()
        },
        "activations": {k: dict(v) for k, v in analysis.sensitivity.activations.items()},
        "activation_front": [
            {"share_above_8_bits": p.cost, "predicted_error": p.error}
            for p, _ in analysis.act_front
        ],
        "weight_front": [
            {"stored_bytes": s.point.cost, "predicted_error": s.point.error}
            for s in analysis.weight_front
        ],
        "chosen": {
            "share_above_8_bits": analysis.activations.wide_share(leaders),
            "predicted_activation_error": analysis.activations.predicted_error(leaders),
            "stored_bytes": stored,
            "predicted_weight_error": error,
            "widths": dict(chosen.widths),
            "weight_bits": dict(chosen.weights),
        },
    }
