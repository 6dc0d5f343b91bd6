"""int8: 8-bit weights per output channel, 8- or 16-bit activations, ranges by calibration."""

from __future__ import annotations

from dataclasses import dataclass

from quant import calibrate
from quant.errors import UserError
from quant.methods.base import Method, Quantized
from quant.pipeline import Pipeline, check_target, run
from quant.task import Task


@dataclass(frozen=True)
class Int8Options:
    """activation_bits: 8 or 16. calibration_method: min-max, percentile, mse, entropy."""

    activation_bits: int = 8
    calibration_method: str = "min-max"
    percentile: float = calibrate.DEFAULT_PERCENTILE
    optimize_for: str = "hexagon"

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
            activation_bits=options.activation_bits,
            calibration_method=options.calibration_method,
            percentile=options.percentile,
            optimize_for=options.optimize_for,
        ),
    )


INT8 = Method("int8", "8-bit weights per channel, 8- or 16-bit activations", Int8Options, apply)
