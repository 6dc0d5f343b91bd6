"""int4: 4-bit weights per output channel or block, 16-bit activations by default."""

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
from quant.methods.int8 import check_activation_bits
from quant.pipeline import Pipeline, check_target, run
from quant.task import Task


@dataclass(frozen=True)
class Int4Options:
    """block_size: 0 for per channel; else 16, 32, 64 ... along the input axis of MatMul, Gemm.

    keep_8bit_share: share of all weights that may stay at 8 bits, those whose rounding to 4 bits
    costs most output error per byte (early and depthwise layers); 0 puts every layer at 4.
    """

    activation_bits: int = option(16, "Width of activations: 16 or 8.")
    calibration_method: str = option("min-max", CALIBRATION_METHOD_HELP)
    percentile: float = option(calibrate.DEFAULT_PERCENTILE, PERCENTILE_HELP)
    optimize_for: str = option("hexagon", OPTIMIZE_FOR_HELP)
    block_size: int = option(
        0, "0: one scale per output channel; 16, 32, 64 ...: one per so many inputs (MatMul, Gemm)."
    )
    keep_8bit_share: float = option(
        0.1, "Share of the weights that may stay at 8 bits, the costliest to round; 0: none."
    )

    def __post_init__(self) -> None:
        check_activation_bits(self.activation_bits)
        calibrate.RangeOptions(self.calibration_method, self.percentile)
        check_target(self.optimize_for, 4, self.activation_bits)
        if not 0.0 <= self.keep_8bit_share < 1.0:
            raise UserError(f"keep-8bit-share {self.keep_8bit_share} is not in [0, 1).")
        size = self.block_size
        if size and (size < 16 or size & (size - 1)):
            raise UserError(f"block-size {size} is not 0 or a power of two from 16 up.")
        if size and self.activation_bits != 16:
            raise UserError(
                "Block-wise int4 weights need 16-bit activations on HTP.",
                "Set activation-bits 16 or block-size 0.",
            )


def apply(state: Quantized, task: Task, options: Int4Options) -> Quantized:
    return run(
        state,
        task,
        Pipeline(
            weight_bits=4,
            activation_bits=options.activation_bits,
            calibration_method=options.calibration_method,
            percentile=options.percentile,
            optimize_for=options.optimize_for,
            block_size=options.block_size,
            level=3,
            equalize=True,
            keep_share=options.keep_8bit_share,
        ),
    )


INT4 = Method("int4", "4-bit weights per channel or block, 16-bit activations", Int4Options, apply)
