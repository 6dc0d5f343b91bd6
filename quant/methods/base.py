"""What a method takes and gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from quant.state import LayerReport, Quantized
from quant.task import Task


@dataclass(frozen=True)
class Method:
    """One row of METHODS. `options` is a frozen dataclass with a default for every field.

    reweights: it changes the weights of a planned model, so in a composition it runs after the
    methods that make the plan. missing: why it cannot run here (a package to install), or "".
    """

    name: str
    summary: str
    options: type[Any]
    apply: Callable[[Quantized, Task, Any], Quantized]
    reweights: bool = False
    missing: Callable[[], str] = lambda: ""


def option(default: Any, text: str) -> Any:
    """A field of an options dataclass with its help text, a sentence about values and effect."""
    return field(default=default, metadata={"help": text})


# Options that several methods share, said in one way.
CALIBRATION_METHOD_HELP = (
    "Range of an activation: min-max, percentile, mse (least squared error) or entropy (KL)."
)
PERCENTILE_HELP = "Share of the values kept by calibration-method percentile, 50 to 100."
OPTIMIZE_FOR_HELP = (
    "hexagon: what HTP runs; mobile: also QNN's CPU and GPU backends; general: plain ONNX QDQ."
)


__all__ = [
    "CALIBRATION_METHOD_HELP",
    "OPTIMIZE_FOR_HELP",
    "PERCENTILE_HELP",
    "LayerReport",
    "Method",
    "Quantized",
    "option",
]
