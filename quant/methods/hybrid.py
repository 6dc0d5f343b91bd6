"""hybrid: precision by part of the network, by layer, or by measured sensitivity and a budget."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import onnx_ir as ir

from quant import calibrate, transformer
from quant.errors import UserError, unknown_name
from quant.graph import initializer_uses, name_of
from quant.masks import tame
from quant.methods.base import LayerReport, Method, Quantized
from quant.mixed import FLOAT, Assignment, assemble, compatible
from quant.model import Model
from quant.parts import PARTS, computes, find_parts, is_layer, is_table_lookup, node_key
from quant.planning import PlanOptions, activation_ranges
from quant.refine import Refined, RefineOptions, refine_weights
from quant.report import with_layers
from quant.rewrite import replace_weights
from quant.task import Task

PRECISIONS = ("fp16", "int8", "int4")
_RECURRENT = {"LSTM", "GRU", "RNN"}  # no integer form: they run in fp16


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
    activation_bits: int | None = _option(
        None, "Activations of int8 and int4 parts: 8 or 16 bits; 16 with attention, else 8."
    )
    calibration_method: str = _option(
        "min-max", "Range of an activation: min-max, percentile, mse or entropy."
    )
    percentile: float = _option(
        calibrate.DEFAULT_PERCENTILE, "Share of values kept by --calibration-method percentile."
    )

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
        calibrate.RangeOptions(self.calibration_method, self.percentile)


def default_precisions(model_type: str, has_attention: bool) -> dict[str, str]:
    """Precision of each part where the user names none."""
    feedforward = "int4" if has_attention or model_type == "audio" else "int8"
    return {
        "attention": "int8",
        "feedforward": feedforward,
        "embedding": "int8",
        "conv": "int8",
        "output": "fp16",
    }


def part_precisions(
    parts: dict[str, str], task: Task, options: HybridOptions
) -> tuple[dict[str, str], int]:
    """(precision by part, activation bits) after the defaults."""
    attention = "attention" in parts.values()
    chosen = default_precisions(task.model_type, attention)
    for part in PARTS:
        given = getattr(options, f"{part}_precision")
        if given is not None:
            chosen[part] = given
    return chosen, options.activation_bits or (16 if attention else 8)


def assignment_by_part(
    graph: ir.Graph, parts: dict[str, str], precisions: dict[str, str], bits: int
) -> Assignment:
    widths: dict[str, int] = {}
    for node in graph:
        if computes(node):
            precision = precisions[parts[node_key(node)]]
            fp16 = precision == "fp16" or node.op_type in _RECURRENT
            lookup = is_table_lookup(node)
            widths[node_key(node)] = FLOAT if fp16 else 8 if lookup else bits
    widths = compatible(graph, widths)
    weights = {
        name_of(use.value): 4 if precisions[parts[node_key(use.node)]] == "int4" else 8
        for use in initializer_uses(graph)
        if use.role == "weight"
    }
    return Assignment(widths, weights)


def apply(state: Quantized, task: Task, options: HybridOptions) -> Quantized:
    parts = find_parts(state.model.ir.graph)
    precisions, bits = part_precisions(parts, task, options)
    model = state.model
    if bits == 8 and "attention" in parts.values():
        model = transformer.prepare(model, task)
        parts = find_parts(model.ir.graph)
    tamed = tame(model, task)
    assignment = assignment_by_part(tamed.model.ir.graph, parts, precisions, bits)
    done = quantize_as(tamed.model, task, assignment, options, tamed.ranges)
    used = sorted(set(parts.values()), key=PARTS.index)
    text = ", ".join(f"{p} {precisions[p]}" for p in used)
    return replace(
        done, notes=(*state.notes, f"hybrid: {text}; activations {bits} bits", *done.notes)
    )


def quantize_as(
    model: Model,
    task: Task,
    assignment: Assignment,
    options: HybridOptions,
    known: Any,
) -> Quantized:
    """Quantize `model` (masks tamed, `known` their ranges) at the precisions of `assignment`."""
    refined = _refine(model, task, assignment)
    ranges = activation_ranges(
        refined.model,
        task,
        PlanOptions(calibration_method=options.calibration_method, percentile=options.percentile),
        known,
    )
    mixed, plan = assemble(
        refined.model, assignment, ranges, weights=refined.encodings, codes=refined.codes
    )
    done = with_layers(Quantized(mixed, plan))
    return replace(done, layers=(*done.layers, *_float_layers(mixed.ir.graph, assignment)))


def _refine(model: Model, task: Task, assignment: Assignment) -> Refined:
    """Second-order rounding where a weight has 4 bits; rounding to nearest otherwise."""
    integer = {
        name_of(use.value)
        for use in initializer_uses(model.ir.graph)
        if use.role == "weight" and assignment.widths.get(node_key(use.node), FLOAT)
    }
    if not any(assignment.weights.get(n, 8) < 8 for n in integer):
        return Refined(model)
    refined = refine_weights(
        model, task, RefineOptions(second_order=True), bits_of=assignment.weights
    )
    # Layers in fp16 keep weights and biases: undo their share of the bias correction.
    biases = {}
    for node in model.ir.graph:
        if is_layer(node) and not assignment.widths[node_key(node)] and len(node.inputs) > 2:
            bias = node.inputs[2]
            if bias is not None and bias.const_value is not None:
                biases[name_of(bias)] = bias.const_value.numpy()
    kept = replace_weights(refined.model, biases) if biases else refined.model
    return Refined(
        kept,
        {n: e for n, e in refined.encodings.items() if n in integer},
        {n: q for n, q in refined.codes.items() if n in integer},
    )


def _float_layers(graph: ir.Graph, assignment: Assignment) -> list[LayerReport]:
    rows = []
    for use in initializer_uses(graph):
        table = is_table_lookup(use.node) and use.index == 0
        if (use.role == "weight" or table) and not assignment.widths.get(node_key(use.node), FLOAT):
            size = use.value.const_value.size if use.value.const_value is not None else 0
            name = name_of(use.value)
            rows.append(LayerReport(name, use.node.op_type, 16, "float", float("inf"), 2 * size))
    return rows


HYBRID = Method("hybrid", "fp16, 8 and 4 bits by part, layer or sensitivity", HybridOptions, apply)
