"""The state that methods pass on: a float graph with a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quant.encoding import Array, QuantPlan
from quant.model import Model


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
    """A float graph (weights possibly replaced) and the plan to encode it with.

    codebooks: the codes that a clustered weight may take, by name. teacher: the float model before
    its weights were pruned, clustered or trained, for what is to learn from it. reports: JSON
    documents by name that the artifact keeps as report/<name>.json.
    """

    model: Model
    plan: QuantPlan = field(default_factory=QuantPlan)
    notes: tuple[str, ...] = ()
    layers: tuple[LayerReport, ...] = ()
    codebooks: Mapping[str, Array] = field(default_factory=dict)
    teacher: Model | None = None
    reports: Mapping[str, Any] = field(default_factory=dict)
