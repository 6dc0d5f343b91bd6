"""The rows every report is drawn from: one session, its runs, their figures, layers and traces.

`host.report.load` fills these from the database and `host.report.document` from a JSON file;
everything else in this package is a pure function of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import numpy.typing as npt

from host.errors import RunStatus
from quant.figures import METRICS, Figure, Provenance

FloatArray = npt.NDArray[np.float64]

# What the model of a device or a fit says, as opposed to what was executed or weighed.
NOT_REAL = frozenset({Provenance.EMULATED_DEVICE, Provenance.PREDICTED, Provenance.HTP_EMULATOR})

# The figures of a comparison in the order people ask for them.
MAIN_METRICS = (
    "accuracy",
    "accuracy_drop_fp16",
    "latency_ms",
    "energy_mj",
    "power_mw",
    "model_size_bytes",
    "memory_mb",
    "startup_ms",
    "throughput_items_per_sec",
)


@dataclass(frozen=True)
class LayerRow:
    """One quantized weight. `sqnr_db` is of the weight itself; None: not computed, or no error."""

    name: str
    op_type: str = ""
    precision: str = ""  # such as "w8 per-channel"
    sqnr_db: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Trace:
    """Samples of one channel over device time; `t_s` and `values` have equal shape (points,).

    A long trace comes as the minimum and maximum of each stretch; `samples` is how many there
    were, 0 meaning all of them are here.
    """

    channel: str
    unit: str
    provenance: Provenance
    t_s: FloatArray
    values: FloatArray
    samples: int = 0


@dataclass(frozen=True)
class Phase:
    """A marked stretch of a run on the session's device clock, in seconds."""

    name: str  # idle_before, cold_load, first_inference, warmup, timed, ...
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Stage:
    """A stage of the session on the host (quantize, compile, run ...) with its wall seconds."""

    name: str
    seconds: float


@dataclass(frozen=True)
class RunReport:
    """One variant on one device. `figures`, by metric, holds the source closest to the device."""

    run_id: str
    method: str
    variant: str
    status: RunStatus
    failure_class: str = ""
    message: str = ""
    figures: Mapping[str, Figure] = field(default_factory=dict)
    blocks: Mapping[str, FloatArray] = field(default_factory=dict)  # metric -> value per block
    others: tuple[Figure, ...] = ()  # the same metrics from farther sources, such as ORT CPU
    accuracy_metric: str = ""
    accuracy_higher_is_better: bool | None = None
    options_json: str = ""
    layers: tuple[LayerRow, ...] = ()
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    traces: tuple[Trace, ...] = ()
    phases: tuple[Phase, ...] = ()
    notes: tuple[str, ...] = ()

    def figure(self, metric: str) -> Figure | None:
        """The figure if it has a value; an absent one (value None) counts as none."""
        found = self.figures.get(metric)
        return found if found is not None and found.value is not None else None

    def value(self, metric: str) -> float | None:
        """The value of a valid figure of a run that can be ranked, else None."""
        found = self.figure(metric)
        if found is None or not found.valid or self.status is not RunStatus.OK:
            return None
        return found.value

    def higher_is_better(self, metric: str) -> bool | None:
        if metric == "accuracy":
            return self.accuracy_higher_is_better
        known = METRICS.get(metric)
        return known.higher_is_better if known else None


@dataclass(frozen=True)
class Verdict:
    """Which variant to ship, in words. `variant` is None when none can be recommended.

    `front`: variants on the Pareto front of latency and accuracy, by latency.
    """

    variant: str | None
    headline: str
    reasons: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    front: tuple[str, ...] = ()


@dataclass(frozen=True)
class SessionReport:
    """One bench call: what was run on which device, and every run of it."""

    session_id: str
    created_at: datetime
    device: str
    soc: str
    model_name: str
    model_type: str
    runs: tuple[RunReport, ...]
    notes: tuple[str, ...] = ()
    db_path: str = ""
    emulated: bool = False
    emulation_basis: str = ""
    stages: tuple[Stage, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    verdict: Verdict | None = None

    @property
    def baseline(self) -> RunReport | None:
        """The fp16 run, which factors such as "3.1x faster" refer to, if it succeeded."""
        for run in self.runs:
            if run.variant == "fp16" and run.status is RunStatus.OK:
                return run
        return None

    @property
    def drawable(self) -> tuple[RunReport, ...]:
        """Runs whose figures may stand in a plot: those with status ok."""
        return tuple(run for run in self.runs if run.status is RunStatus.OK)

    def metrics(self, wanted: Iterable[str] = MAIN_METRICS) -> tuple[str, ...]:
        """Those of `wanted` that any run has a figure for, present or absent with a reason."""
        return tuple(m for m in wanted if any(m in run.figures for run in self.runs))

    def provenances(self, metric: str) -> tuple[Provenance, ...]:
        """The provenances of a metric's values over all runs, without repeats."""
        found = [run.figure(metric) for run in self.runs]
        return tuple(dict.fromkeys(f.provenance for f in found if f is not None))
