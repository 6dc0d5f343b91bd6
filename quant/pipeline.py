"""The stages every integer method shares, in order: masks, rewriting, weights, ranges, plan."""

from __future__ import annotations

from dataclasses import dataclass

from quant import calibrate, rules, transformer
from quant.equalize import equalize
from quant.errors import UserError, unknown_name
from quant.masks import tame
from quant.planning import PlanOptions, make_plan
from quant.refine import Refined, RefineOptions, refine_weights
from quant.report import with_layers
from quant.state import Quantized
from quant.task import Task


@dataclass(frozen=True)
class Pipeline:
    """How to quantize.

    level: 0 plain; 1 range search + bias correction; 2 + second-order rounding of convolutions;
    3 of all layers. smooth: transformer rewrites first; equalize: channel scales into the weights
    first. optimize_for: hexagon obeys HTP; mobile also what QNN's CPU and GPU backends take;
    general is plain ONNX QDQ of the graph as it is, for any runtime.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    per_channel: bool = True
    block_size: int = 0
    level: int = 0
    smooth: bool = True
    equalize: bool = False
    keep_share: float = 0.0
    optimize_for: str = "hexagon"
    calibration_method: str = "min-max"
    percentile: float = calibrate.DEFAULT_PERCENTILE
    samples: int | None = None


def check_target(optimize_for: str, weight_bits: int, activation_bits: int) -> None:
    """Raise UserError for an unknown target or bit widths that it does not take."""
    if optimize_for not in rules.TARGETS:
        raise unknown_name("target of optimize-for", optimize_for, rules.TARGETS)
    if optimize_for == "mobile" and (weight_bits, activation_bits) != (8, 8):
        raise UserError(
            "QNN's CPU and GPU backends take 8-bit weights and activations only.",
            "Use 8 bits for both, or optimize-for hexagon.",
        )


def run(state: Quantized, task: Task, options: Pipeline) -> Quantized:
    """Quantize the float model of `state` as the options say."""
    model = state.model
    if options.smooth and options.optimize_for != "general":
        model = transformer.prepare(model, task, spread_outliers=options.activation_bits == 8)
    if options.equalize:
        model = equalize(
            model,
            task,
            weight_bits=options.weight_bits,
            activation_bits=options.activation_bits,
        )
    tamed = tame(model, task)
    refined = Refined(tamed.model)
    if options.level >= 1:
        refined = refine_weights(
            tamed.model,
            task,
            RefineOptions(
                bits=options.weight_bits,
                per_channel=options.per_channel,
                block_size=options.block_size,
                second_order=options.level >= 3,
                second_order_conv=options.level >= 2,
                keep_share=options.keep_share,
            ),
        )
    plan = make_plan(
        refined.model,
        task,
        PlanOptions(
            weight_bits=options.weight_bits,
            activation_bits=options.activation_bits,
            per_channel=options.per_channel,
            block_size=options.block_size,
            calibration_method=options.calibration_method,
            percentile=options.percentile,
            samples=options.samples,
        ),
        weights=refined.encodings,
        codes=refined.codes,
        known=tamed.ranges,
    )
    notes = state.notes
    if options.optimize_for != "general":
        notes += tuple(str(f) for f in rules.unsupported(refined.model, plan))
    return with_layers(Quantized(refined.model, plan, notes))
