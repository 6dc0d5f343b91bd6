"""hybrid: precision by part of the network, by layer, or by measured sensitivity and a budget."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from quant import calibrate, transformer
from quant.encoding import Encoding
from quant.encodings_io import encodings_document, read_encodings
from quant.errors import UserError, unknown_name
from quant.evaluate import Evaluation, evaluate_outputs, run_model
from quant.figures import Provenance
from quant.graph import initializer_uses, name_of
from quant.layerwise import read_layer_config, resolve
from quant.masks import tame
from quant.methods.base import LayerReport, Method, Quantized
from quant.mixed import FLOAT, Assignment, Ranges, assemble, compatible, leaders
from quant.model import Model
from quant.parts import PARTS, computes, find_parts, is_table_lookup, node_key
from quant.planning import activation_ranges_by
from quant.report import with_layers
from quant.rewrite import insert_qdq
from quant.search import (
    Budget,
    Roundings,
    choose,
    few_rows,
    measure,
    needed_roundings,
    parse_drop,
    parse_share,
    report,
    roundings,
)
from quant.task import Task

PRECISIONS = ("fp16", "int8", "int4")
_RECURRENT = {"LSTM", "GRU", "RNN"}  # no integer form: they run in fp16
_HEADS_SHARE = 0.1  # of the allowed wide activations
_DROP_SAMPLES = 256  # judged per step of a search for --max-accuracy-drop


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class HybridOptions:
    """Precisions are fp16, int8 or int4; None takes the default of the model type."""

    attention_precision: str | None = _option(
        None, "Precision of attention layers: fp16, int8, int4; by model type."
    )
    feedforward_precision: str | None = _option(
        None, "Precision of feed-forward layers: fp16, int8, int4; by model type."
    )
    embedding_precision: str | None = _option(
        None, "Precision of embedding tables: fp16, int8; by model type."
    )
    conv_precision: str | None = _option(
        None, "Precision of convolutions: fp16, int8, int4; by model type."
    )
    output_precision: str | None = _option(
        None, "Precision of the output part: fp16, int8, int4; by model type."
    )
    layer_wise_config: str | None = _option(
        None, "JSON file with precisions of single layers (docs/hybrid.md)."
    )
    encodings: str | None = _option(
        None, "Encodings file of AIMET or QAIRT (JSON); its tensors take what it says."
    )
    sensitivity_analysis: bool = _option(
        False, "Measure every layer's sensitivity; a budget implies it."
    )
    max_accuracy_drop: str | None = _option(
        None, "Budget: accuracy lost, in points (0.5pt) or percent of it (5%)."
    )
    target_size: float | None = _option(None, "Budget: stored weights in MB (1e6 bytes).")
    target_latency: float | None = _option(None, "Budget: latency in ms; not available yet.")
    max_a16: str | None = _option(
        None, "Budget: share of activations above 8 bits, for example 30%."
    )
    activation_bits: int | None = _option(
        None, "Activations without a budget: 8 or 16 bits; 16 with attention, else 8."
    )
    calibration_method: str = _option(
        "mse", "Range of an 8-bit activation: min-max, percentile, mse or entropy."
    )
    percentile: float = _option(
        calibrate.DEFAULT_PERCENTILE, "Share of values kept by --calibration-method percentile."
    )
    sensitivity_samples: int = _option(4, "Calibration samples of the sensitivity analysis.")

    def __post_init__(self) -> None:
        for part in PARTS:
            value = getattr(self, f"{part}_precision")
            if value is not None and value not in PRECISIONS:
                raise unknown_name(f"{part} precision", value, PRECISIONS)
        if self.embedding_precision == "int4":
            raise UserError(
                "embedding-precision int4: the HTP looks up 8-bit, 16-bit or fp16 tables only.",
                "Use int8 or fp16.",
            )
        if self.activation_bits not in (None, 8, 16):
            raise UserError(f"activation-bits {self.activation_bits} is not 8 or 16.")
        if self.target_latency is not None:
            raise UserError(
                "target-latency: there is no latency predictor per layer yet, so a budget in ms "
                "cannot be kept.",
                "Bench a few budgets of --max-a16 or --target-size on the device instead.",
            )
        if self.target_size is not None and not self.target_size > 0:
            raise UserError(f"target-size {self.target_size} is not a size in MB.")
        if self.sensitivity_samples < 1:
            raise UserError(f"sensitivity-samples {self.sensitivity_samples} is below 1.")
        calibrate.RangeOptions(self.calibration_method, self.percentile)
        if self.budget() is not None and self.encodings is not None:
            raise UserError(
                "A budget and an encodings file both decide precisions.", "Give one of them."
            )

    def budget(self) -> Budget | None:
        """The budget, or None where none is given."""
        drop = None if self.max_accuracy_drop is None else parse_drop(self.max_accuracy_drop)
        share = None if self.max_a16 is None else parse_share(self.max_a16, "max-a16")
        if drop is None and share is None and self.target_size is None:
            return None
        return Budget(
            share,
            None if self.target_size is None else self.target_size * 1e6,
            None if drop is None else drop[0],
            drop is not None and drop[1],
        )


def default_precisions(model_type: str, has_attention: bool) -> dict[str, str]:
    """Precision of each part where the user names none and there is no budget."""
    feedforward = "int4" if has_attention or model_type == "audio" else "int8"
    return {
        "attention": "int8",
        "feedforward": feedforward,
        "embedding": "int8",
        "conv": "int8",
        "output": "fp16",
    }


def part_precisions(
    has_attention: bool, task: Task, options: HybridOptions
) -> tuple[dict[str, str], set[str], int]:
    """(precision by part, parts the user named, activation bits) after the defaults.

    With a budget the search decides, so every part that is not named starts as int8; the output
    stays in fp16 unless wide activations are what is limited, and then its heads alone do.
    """
    named = {p for p in PARTS if getattr(options, f"{p}_precision") is not None}
    searched = options.budget() is not None
    chosen = (
        dict.fromkeys(PARTS, "int8")
        if searched
        else default_precisions(task.model_type, has_attention)
    )
    if searched and options.max_a16 is None:
        chosen["output"] = "fp16"
    chosen |= {p: getattr(options, f"{p}_precision") for p in named}
    return chosen, named, options.activation_bits or (16 if has_attention else 8)


@dataclass(frozen=True)
class _Base:
    """The assignment before any search, and what the user has decided in it."""

    assignment: Assignment
    fixed_widths: dict[str, int]
    fixed_weights: dict[str, int]


def _base(
    graph: ir.Graph,
    parts: Mapping[str, str],
    precisions: Mapping[str, str],
    named: set[str],
    bits: int,
    layers: tuple[dict[str, int], dict[str, int]],
    float_heads: Collection[str],
) -> _Base:
    widths: dict[str, int] = {}
    fixed: dict[str, int] = {}
    for node in graph:
        if not computes(node):
            continue
        key = node_key(node)
        fp16 = precisions[parts[key]] == "fp16" or node.op_type in _RECURRENT
        fp16 |= key in float_heads
        lookup = is_table_lookup(node)
        widths[key] = FLOAT if fp16 else 8 if lookup else bits
        if fp16 or lookup:
            fixed[key] = widths[key]
    weights, fixed_weights = {}, {}
    for use in initializer_uses(graph):
        if use.role == "weight":
            part = parts[node_key(use.node)]
            weights[name_of(use.value)] = 4 if precisions[part] == "int4" else 8
            if part in named:
                fixed_weights[name_of(use.value)] = weights[name_of(use.value)]
    layer_widths, layer_weights = layers
    for use in initializer_uses(graph):  # an integer layer in a part of fp16
        name = name_of(use.value)
        if name in layer_weights and not widths.get(node_key(use.node), FLOAT):
            layer_widths.setdefault(node_key(use.node), bits)
    widths.update(layer_widths)
    fixed.update(layer_widths)
    weights.update(layer_weights)
    fixed_weights.update(layer_weights)
    widths = compatible(graph, widths)
    return _Base(Assignment(widths, weights), {k: widths[k] for k in fixed}, fixed_weights)


def _float_heads(
    graph: ir.Graph, parts: Mapping[str, str], budget: Budget | None
) -> Collection[str]:
    """Layers of the output with one row per sample, for fp16 where `budget` limits wide values.

    A head often stretches what is small in its input, and eight bits of its weights lose that;
    its own few values count for little among the wide ones. None where they would take more than
    a tenth of what is allowed, or where bytes are limited as well.
    """
    if budget is None or budget.max_a16 is None or budget.target_size is not None:
        return ()
    nodes = [n for n in graph if computes(n)]
    heads = {node_key(n) for n in nodes if parts[node_key(n)] == "output" and few_rows(n)}
    return heads if len(heads) <= _HEADS_SHARE * budget.max_a16 * len(nodes) else ()


def apply(state: Quantized, task: Task, options: HybridOptions) -> Quantized:
    budget = options.budget()
    attention = "attention" in find_parts(state.model.ir.graph).values()
    precisions, named, bits = part_precisions(attention, task, options)
    by_layer: tuple[dict[str, int], dict[str, int]] = ({}, {})
    if options.layer_wise_config is not None:
        path = Path(options.layer_wise_config)
        by_layer = resolve(state.model.ir.graph, read_layer_config(path), path.name)
    model = state.model
    searches_widths = budget is not None and (budget.max_a16 is not None or budget.drop is not None)
    # Names of single layers are those of the user's graph: leave its operators as they are.
    by_name = options.layer_wise_config is not None or options.encodings is not None
    if attention and (bits == 8 or searches_widths) and not by_name:
        model = transformer.prepare(model, task)
    tamed = tame(model, task)
    graph = tamed.model.ir.graph
    parts = find_parts(graph)
    heads = _float_heads(graph, parts, None if "output" in named else budget)
    base = _base(graph, parts, precisions, named, bits, by_layer, heads)
    searches_weights = budget is not None and (
        budget.target_size is not None or budget.drop is not None
    )
    wanted: Mapping[int, Collection[str] | None] = needed_roundings(graph, base.assignment)
    if searches_weights:
        wanted = dict.fromkeys((8, 4))
    elif budget is not None or options.sensitivity_analysis or options.encodings is not None:
        wanted = dict.fromkeys(base.assignment.weights.values())  # it may still change
    rounded = roundings(tamed.model, task, wanted)
    ranges = _ranges(rounded.compose(base.assignment).model, task, options, tamed.ranges)
    used = sorted(set(parts.values()), key=PARTS.index)
    notes = ["hybrid: " + ", ".join(f"{p} {precisions[p]}" for p in used)]
    notes += [f"heads in fp16: {', '.join(sorted(heads))}"] if heads else []
    chosen, reports = base.assignment, dict(state.reports)
    given: Mapping[str, Encoding] = {}
    if options.encodings is not None:
        given, chosen, said = _given(Path(options.encodings), graph, chosen)
        notes += said
    if budget is not None or options.sensitivity_analysis:
        analysis = measure(
            tamed.model,
            task,
            base.assignment,
            base.fixed_widths,
            base.fixed_weights,
            rounded,
            ranges[8],
            widths=searches_widths or options.sensitivity_analysis,
            weights=searches_weights or options.sensitivity_analysis,
            samples=options.sensitivity_samples,
        )
        if budget is not None:
            judge = (
                None if budget.drop is None else _judge(state.model, task, rounded, ranges, budget)
            )
            chosen, said = choose(analysis, budget, judge)
            notes += said
        reports["sensitivity"] = report(analysis, chosen)
    done = build(rounded, chosen, ranges, given)
    reports["aimet_encodings"] = encodings_document(done.plan, done.model.ir.graph)
    return replace(
        state,
        model=done.model,
        plan=done.plan,
        layers=done.layers,
        notes=(*state.notes, *notes, *_figures(done, chosen)),
        reports=reports,
    )


def _ranges(
    model: Model, task: Task, options: HybridOptions, known: Mapping[str, tuple[float, float]]
) -> dict[int, Ranges]:
    """Ranges by width: 16 bits have room for the extremes, 8 bits often do better without."""
    narrow = calibrate.RangeOptions(options.calibration_method, options.percentile, 8)
    wide = calibrate.RangeOptions("min-max", bits=16)
    found = activation_ranges_by(model, task, [narrow, wide], known)
    return dict(zip((8, 16), found, strict=True))


def build(
    rounded: Roundings,
    chosen: Assignment,
    ranges: Mapping[int, Ranges],
    given: Mapping[str, Encoding] | None = None,
) -> Quantized:
    """The quantized model of an assignment, with its report per layer. given: encodings that are
    taken as they are."""
    given = given or {}
    composed = rounded.compose(chosen)
    mixed, plan = assemble(
        composed.model,
        chosen,
        ranges,
        weights={**composed.encodings, **given},
        codes={n: q for n, q in composed.codes.items() if n not in given},
        given=given,
    )
    done = with_layers(Quantized(mixed, plan))
    return replace(done, layers=(*done.layers, *_float_layers(mixed.ir.graph, chosen)))


def _given(
    path: Path, graph: ir.Graph, chosen: Assignment
) -> tuple[dict[str, Encoding], Assignment, list[str]]:
    """(encodings of an imported file, the assignment with its widths, what to say about it)."""
    found = read_encodings(path, graph)
    leader = leaders(graph)
    makers = {name_of(v): leader[node_key(n)] for n in graph if computes(n) for v in n.outputs}
    uses = {name_of(u.value): u for u in initializer_uses(graph)}
    inputs = {v.name for v in graph.inputs}
    widths, weights = dict(chosen.widths), dict(chosen.weights)
    used: dict[str, Encoding] = {}
    foreign: list[str] = []
    for name, encoding in found.tensors.items():
        if name in makers:
            widths[makers[name]] = encoding.bits
        elif name in uses and uses[name].role == "weight":
            weights[name] = encoding.bits
        elif name in uses and uses[name].role == "bias":
            continue  # its encoding follows from input and weight
        elif name not in inputs and name not in uses:
            foreign.append(name)
            continue
        used[name] = encoding
    for name in found.floats:
        if name in makers:
            widths[makers[name]] = FLOAT
    if not used and not found.floats:
        known = [*(n for n in inputs if n), *uses, *makers]
        raise unknown_name(f"tensor in {path.name}:", foreign[0] if foreign else "", known)
    notes = [f"{len(used)} encodings from {path.name}"]
    if foreign:
        listed = ", ".join(foreign[:3]) + (" ..." if len(foreign) > 3 else "")
        notes.append(f"{len(foreign)} encodings name tensors that fusion removed: {listed}")
    return used, Assignment(compatible(graph, widths), weights), notes


def _judge(
    original: Model,
    task: Task,
    rounded: Roundings,
    ranges: Mapping[int, Ranges],
    budget: Budget,
) -> Callable[[Assignment], float]:
    """A function that measures the accuracy an assignment loses (positive: worse)."""
    n = min(len(task), _DROP_SAMPLES)
    reference = run_model(original, task, n)
    best = evaluate_outputs(task, reference, reference, Provenance.ORT_CPU)

    def drop(chosen: Assignment) -> float:
        done = build(rounded, chosen, ranges)
        outputs = run_model(insert_qdq(done.model, done.plan), task, n)
        got = evaluate_outputs(task, reference, outputs, Provenance.ORT_CPU)
        return _lost(best, got, budget.drop_relative)

    return drop


def _lost(best: Evaluation, got: Evaluation, relative: bool) -> float:
    if best.value is None or got.value is None:
        return best.agreement - got.agreement
    lost = best.value - got.value
    if best.higher_is_better is False:
        lost = -lost
    return lost / abs(best.value) if relative and best.value else lost


def _figures(done: Quantized, chosen: Assignment) -> list[str]:
    """What the assignment came to: mean weight bits, share of wide activations."""
    notes = []
    sizes = {
        name_of(u.value): (u.value.const_value.size if u.value.const_value is not None else 0)
        for u in initializer_uses(done.model.ir.graph)
        if u.role == "weight"
    }
    bits = {r.name: r.bits for r in done.layers if r.name in sizes}
    total = sum(sizes[n] for n in bits)
    if total:
        mean = sum(bits[n] * sizes[n] for n in bits) / total
        notes.append(f"{mean:.2f} bits per weight on average over {len(bits)} layers")
    wide = sum(w == 16 for w in chosen.widths.values())
    half = sum(w == FLOAT for w in chosen.widths.values())
    notes.append(
        f"of {len(chosen.widths)} operators {wide} compute in 16 bits and {half} in fp16; "
        f"{len(done.plan.converted)} conversions"
    )
    return notes


def _float_layers(graph: ir.Graph, chosen: Assignment) -> list[LayerReport]:
    rows = []
    for use in initializer_uses(graph):
        table = is_table_lookup(use.node) and use.index == 0
        if (use.role == "weight" or table) and not chosen.widths.get(node_key(use.node), FLOAT):
            size = use.value.const_value.size if use.value.const_value is not None else 0
            name = name_of(use.value)
            rows.append(LayerReport(name, use.node.op_type, 16, "float", float("inf"), 2 * size))
    return rows


HYBRID = Method("hybrid", "fp16, 8 and 4 bits by part, layer or sensitivity", HybridOptions, apply)
