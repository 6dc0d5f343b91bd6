"""The stages every integer method shares, in order: masks, rewriting, weights, ranges, plan."""

from __future__ import annotations

from dataclasses import dataclass

from quant import calibrate, transformer
from quant.masks import tame
from quant.planning import PlanOptions, make_plan
from quant.refine import Refined, RefineOptions, refine_weights
from quant.report import with_layers
from quant.state import Quantized
from quant.task import Task


@dataclass(frozen=True)
class Pipeline:
    """level: 0 to 1: range search + bias correction; 3: + second order. smooth: rewrites first."""

    weight_bits: int = 8
    activation_bits: int = 8
    per_channel: bool = True
    block_size: int = 0
    level: int = 0
    smooth: bool = True
    keep_share: float = 0.0
    calibration_method: str = "min-max"
    percentile: float = calibrate.DEFAULT_PERCENTILE
    samples: int | None = None


def run(state: Quantized, task: Task, options: Pipeline) -> Quantized:
    """Quantize the float model of `state` as the options say."""
    model = transformer.prepare(state.model, task) if options.smooth else state.model
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
    return with_layers(Quantized(refined.model, plan, state.notes))
