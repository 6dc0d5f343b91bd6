"""What a method takes and gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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


__all__ = ["LayerReport", "Method", "Quantized"]
