"""What a method takes and gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from quant.encoding import QuantPlan
from quant.model import Model
from quant.task import Task


@dataclass(frozen=True)
class LayerReport:
    """One weight of the quantized model. sqnr_db: of the weight itself; size_bytes: as stored."""

    name: str
    op_type: str
    bits: int
    granularity: str  # per-tensor, per-channel, block-<n>
    sqnr_db: float
    size_bytes: int


@dataclass(frozen=True)
class Quantized:
    """A float graph (weights possibly replaced) and the plan to encode it with."""

    model: Model
    plan: QuantPlan = field(default_factory=QuantPlan)
    notes: tuple[str, ...] = ()
    layers: tuple[LayerReport, ...] = ()


@dataclass(frozen=True)
class Method:
    """One row of METHODS. `options` is a frozen dataclass with a default for every field."""

    name: str
    summary: str
    options: type[Any]
    apply: Callable[[Quantized, Task, Any], Quantized]
