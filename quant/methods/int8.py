"""int8: 8-bit weights per output channel, 8- or 16-bit activations, ranges by calibration."""

from __future__ import annotations

from dataclasses import dataclass

from quant import calibrate
from quant.errors import UserError
from quant.methods.base import (
    CALIBRATION_METHOD_HELP,
    OPTIMIZE_FOR_HELP,
    PERCENTILE_HELP,
    Method,
    Quantized,
    option,
)
from quant.pipeline import Pipeline, check_target, run
from quant.task import Task


@dataclass(frozen=True)
class Int8Options:
    """8-bit weights per output channel, rounded to nearest; the help texts say what each does."""

    activation_bits: int = option(
        8, "Width of activations: 8, or 16 for twice the traffic and less error."
    )
    calibration_method: str = option("min-max", CALIBRATION_METHOD_HELP)
    percentile: float = option(calibrate.DEFAULT_PERCENTILE, PERCENTILE_HELP)
    optimize_for: str = option("hexagon", OPTIMIZE_FOR_HELP)

    def __post_init__(self) -> None:
        check_activation_bits(self.activation_bits)
        calibrate.RangeOptions(self.calibration_method, self.percentile)
        check_target(self.optimize_for, 8, self.activation_bits)


def check_activation_bits(bits: int) -> None:
    if bits not in (8, 16):
        raise UserError(f"activation-bits {bits} is not 8 or 16.", "HTP has 8- and 16-bit inputs.")


def apply(state: Quantized, task: Task, options: Int8Options) -> Quantized:
    return run(
        state,
        task,
        Pipeline(
            weight_bits=8,
            equalize=True,
            activation_bits=options.activation_bits,
            calibration_method=options.calibration_method,
            percentile=options.percentile,
            optimize_for=options.optimize_for,
        ),
    )


INT8 = Method("int8", "8-bit weights per channel, 8- or 16-bit activations", Int8Options, apply)
