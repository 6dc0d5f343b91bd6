"""per-channel: 8-bit weights per output channel with optimisation levels.

Level 0 rounds to nearest on calibrated ranges; 1 adds a range search weighted by the inputs and
bias correction; 2 adds equalisation, smoothing (the rewrites of quant.transformer) and second-order
rounding of convolutions; 3 adds second-order rounding of every layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from quant import calibrate
from quant.errors import UserError, unknown_name
from quant.methods.base import (
    CALIBRATION_METHOD_HELP,
    OPTIMIZE_FOR_HELP,
    PERCENTILE_HELP,
    Method,
    Quantized,
    option,
)
from quant.methods.int8 import check_activation_bits
from quant.pipeline import Pipeline, check_target, run
from quant.task import Task

GRANULARITIES = ("per-tensor", "per-channel")


@dataclass(frozen=True)
class PerChannelOptions:
    """Per-channel activations do not exist on HTP: the channels' scales are folded into the weights
    around them, which levels 2 and 3 do by themselves.
    """

    weight_method: str = option(
        "per-channel", "Scales of weights: per-channel (of the output) or per-tensor."
    )
    activation_method: str = option(
        "per-tensor",
        "per-channel: fold channel scales of activations into the weights around them; per-tensor.",
    )
    optimize_zero_points: bool = option(
        False, "Search both ends of each activation's range for the least squared error."
    )
    optimization_level: int = option(
        2,
        "0: plain; 1: range search, bias correction; 2: + equalisation, smoothing; "
        "3: + second-order rounding of every layer.",
    )
    activation_bits: int = option(8, "Width of activations: 8 or 16.")
    weight_bits: int = option(8, "Width of weights: 8 or 4.")
    calibration_method: str = option("min-max", CALIBRATION_METHOD_HELP)
    percentile: float = option(calibrate.DEFAULT_PERCENTILE, PERCENTILE_HELP)
    optimize_for: str = option("hexagon", OPTIMIZE_FOR_HELP)

    def __post_init__(self) -> None:
        check_activation_bits(self.activation_bits)
        calibrate.RangeOptions(self.calibration_method, self.percentile)
        if self.weight_bits not in (4, 8):
            raise UserError(f"weight-bits {self.weight_bits} is not 4 or 8.")
        check_target(self.optimize_for, self.weight_bits, self.activation_bits)
        for value in (self.weight_method, self.activation_method):
            if value not in GRANULARITIES:
                raise unknown_name("granularity", value, GRANULARITIES)
        if not 0 <= self.optimization_level <= 3:
            raise UserError(f"optimization-level {self.optimization_level} is not 0, 1, 2 or 3.")


def apply(state: Quantized, task: Task, options: PerChannelOptions) -> Quantized:
    searched = options.optimize_zero_points and options.calibration_method == "min-max"
    method = "mse" if searched else options.calibration_method
    return run(
        state,
        task,
        Pipeline(
            weight_bits=options.weight_bits,
            activation_bits=options.activation_bits,
            per_channel=options.weight_method == "per-channel",
            level=options.optimization_level,
            smooth=options.optimization_level >= 2,
            equalize=options.optimization_level >= 2 or options.activation_method == "per-channel",
            calibration_method=method,
            percentile=options.percentile,
            optimize_for=options.optimize_for,
        ),
    )


PER_CHANNEL = Method(
    "per-channel", "8-bit weights per channel, optimisation levels", PerChannelOptions, apply
)
