"""fp16: the float model; with a SoC set, HTP computes it in half precision."""

from __future__ import annotations

from dataclasses import dataclass

from quant.methods.base import Method, Quantized
from quant.task import Task


@dataclass(frozen=True)
class Fp16Options:
    """No options."""


def apply(state: Quantized, task: Task, options: Fp16Options) -> Quantized:
    return state


FP16 = Method("fp16", "half precision, no quantization: the baseline", Fp16Options, apply)
