"""What each plot shows, apart from how it is drawn: both Plotly and Matplotlib draw these.

Values are already in the shown unit (percent, MB). A figure that is not valid is left out of
every plot; the caption names it. `hollow` marks a figure that was not measured, executed on
silicon or weighed: such figures are drawn hollow or hatched, and the axis says their source.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from host.errors import UserError
from host.report.data import (
    NOT_REAL,
    LayerRow,
    Phase,
    RunReport,
    SessionReport,
    Trace,
)
from host.report.text import (
    PROVENANCE_TEXT,
    arrow,
    column_decimals,
    direction,
    higher_is_better,
    metric_label,
    metric_unit,
    provenance_line,
    provenance_sentence,
    scale_of,
    value_text,
)
from host.report.verdict import decide
from quant.figures import Figure, Provenance

PLOT_TYPES = ("radar", "pareto", "bars", "heatmap", "layers", "trace", "timeline")
# The part of a variant in a picture: its colour and its symbol say it.
ROLES = {"best": "ship this", "front": "Pareto front", "baseline": "fp16", "other": "other"}
BAR_METRICS = ("accuracy", "latency_ms", "energy_mj", "model_size_bytes", "memory_mb", "power_mw")
RADAR_METRICS = (
    "accuracy",
    "latency_ms",
    "energy_mj",
    "model_size_bytes",
    "memory_mb",
    "startup_ms",
)
HEATMAP_METRICS = (
    "accuracy",
    "sqnr_db",
    "latency_ms",
    "energy_mj",
    "power_mw",
    "model_size_bytes",
    "memory_mb",
    "startup_ms",
)


@dataclass(frozen=True)
class Axis:
    """One metric as an axis: what, in which unit, which way is better, and from where."""

    metric: str
    label: str
    short: str
    unit: str
    better: bool | None
    source: str  # provenance in words; "mixed" when the runs differ

    @property
    def title(self) -> str:
        return f"{self.label} ({self.unit})" if self.unit else self.label

    @property
    def hint(self) -> str:
        """Direction and provenance, the second line of an axis title."""
        words = [f"{arrow(self.better)} {direction(self.better)}".strip(), self.source]
        return " · ".join(word for word in words if word)


@dataclass(frozen=True)
class Value:
    """One figure ready to draw; `low` and `high` are its 95 % interval or None."""

    value: float
    low: float | None
    high: float | None
    text: str
    provenance: Provenance

    @property
    def hollow(self) -> bool:
        return self.provenance in NOT_REAL


@dataclass(frozen=True)
class Point:
    variant: str
    role: str  # "best", "front", "baseline" or "other"
    x: Value
    y: Value


@dataclass(frozen=True)
class Pareto:
    x: Axis
    y: Axis
    points: tuple[Point, ...]
    front: tuple[tuple[float, float], ...]
    caption: str


@dataclass(frozen=True)
class Bars:
    """One panel per axis; `values[panel][row]` is None where a run has no valid figure."""

    variants: tuple[str, ...]
    roles: tuple[str, ...]
    axes: tuple[Axis, ...]
    values: tuple[tuple[Value | None, ...], ...]
    caption: str


@dataclass(frozen=True)
class Shares:
    """Radar and heatmap: each value as a share of the best variant's, in 0..1 (1 = best)."""

    variants: tuple[str, ...]
    roles: tuple[str, ...]
    axes: tuple[Axis, ...]
    shares: tuple[tuple[float | None, ...], ...]  # [variant][axis]
    texts: tuple[tuple[str, ...], ...]
    best: tuple[str, ...]  # the best value of each axis, with its unit
    hollow: tuple[tuple[bool, ...], ...]
    caption: str


@dataclass(frozen=True)
class Layers:
    variant: str
    layers: tuple[LayerRow, ...]

    @property
    def drawn(self) -> tuple[tuple[int, LayerRow], ...]:
        return tuple((i, row) for i, row in enumerate(self.layers) if row.sqnr_db is not None)

    def worst(self, count: int) -> tuple[tuple[int, LayerRow], ...]:
        return tuple(sorted(self.drawn, key=lambda pair: pair[1].sqnr_db or 0.0)[:count])


@dataclass(frozen=True)
class Traces:
    variant: str
    traces: tuple[Trace, ...]
    phases: tuple[Phase, ...]


def axis(session: SessionReport, metric: str) -> Axis:
    return Axis(
        metric,
        metric_label(session, metric),
        metric_label(session, metric, short=True),
        scale_of(metric_unit(session, metric), metric).unit,
        higher_is_better(session, metric),
        _source(session, metric),
    )


def roles(session: SessionReport) -> dict[str, str]:
    """Each drawable variant's part in the picture."""
    verdict = session.verdict or decide(session)
    best, front = verdict.variant, set(verdict.front)
    found = {}
    for run in session.drawable:
        if run.variant == best:
            found[run.variant] = "best"
        elif run is session.baseline:
            found[run.variant] = "baseline"
        else:
            found[run.variant] = "front" if run.variant in front else "other"
    return found


def pareto(session: SessionReport) -> Pareto:
    parts = roles(session)
    points = []
    left_out = []
    for run in session.drawable:
        x, y = _value(session, run, "latency_ms"), _value(session, run, "accuracy")
        if x is None or y is None:
            left_out.append(run.variant)
        else:
            points.append(Point(run.variant, parts[run.variant], x, y))
    mixed = len({(p.x.provenance, p.y.provenance) for p in points}) > 1
    front = [] if mixed else _stairs(points, higher_is_better(session, "accuracy"))
    words = [provenance_sentence(session, ("accuracy", "latency_ms"))]
    if mixed:
        words.append("no front is drawn across provenances")
    if any(v.low is not None for p in points for v in (p.x, p.y)):
        words.append("bars: 95 % intervals")
    if any(p.x.hollow or p.y.hollow for p in points):
        words.append("hollow: not measured")
    if any(p.role == "front" for p in points):
        words.append("front: no other is better for certain")
    if left_out:
        words.append(f"not drawn, no valid figure: {', '.join(left_out)}")
    return Pareto(
        axis(session, "latency_ms"),
        axis(session, "accuracy"),
        tuple(points),
        tuple((p.x.value, p.y.value) for p in front),
        " · ".join(w for w in words if w),
    )


def _stairs(points: list[Point], better: bool | None) -> list[Point]:
    """The points that no other beats in both values, by x: what the line of the front joins.

    The front itself also holds points that are beaten within noise only; they are marked, and
    the line passes them by.
    """
    sign = -1.0 if better is False else 1.0
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x.value, -sign * p.y.value)):
        if not kept or sign * point.y.value > sign * kept[-1].y.value:
            kept.append(point)
    return kept


def bars(session: SessionReport) -> Bars:
    runs, parts = session.drawable, roles(session)
    metrics = _present(session, BAR_METRICS)
    return Bars(
        tuple(r.variant for r in runs),
        tuple(parts[r.variant] for r in runs),
        tuple(axis(session, m) for m in metrics),
        tuple(tuple(_value(session, r, m) for r in runs) for m in metrics),
        _caption(session, metrics, key="hatched or hollow: not measured", intervals=True),
    )


def shares(session: SessionReport, metrics: tuple[str, ...]) -> Shares:
    """Share of the best: best/value where lower is better, value/best where higher is."""
    runs, parts = session.drawable, roles(session)
    present = tuple(
        m for m in _present(session, metrics) if higher_is_better(session, m) is not None
    )
    columns: list[list[float | None]] = []
    best_texts = []
    for metric in present:
        better = higher_is_better(session, metric)
        values = [_value(session, r, metric) for r in runs]
        positive = [v for v in values if v is not None and v.value > 0]
        if not positive:
            columns.append([None] * len(runs))
            best_texts.append("")
            continue
        best = (max if better else min)(positive, key=lambda v: v.value)
        best_texts.append(f"{best.text} {scale_of(metric_unit(session, metric), metric).unit}")
        columns.append(
            [
                None
                if v is None or v.value <= 0
                else (v.value / best.value if better else best.value / v.value)
                for v in values
            ]
        )
    found = [[_value(session, r, m) for m in present] for r in runs]
    return Shares(
        tuple(r.variant for r in runs),
        tuple(parts[r.variant] for r in runs),
        tuple(axis(session, m) for m in present),
        tuple(tuple(column[i] for column in columns) for i in range(len(runs))),
        tuple(tuple("–" if v is None else v.text for v in row) for row in found),
        tuple(best_texts),
        tuple(tuple(v is not None and v.hollow for v in row) for row in found),
        _caption(session, present),
    )


def radar_key(session: SessionReport) -> str:
    """How a radar is read."""
    base = " Dotted: fp16." if session.baseline is not None else ""
    dashed = (
        " Dashed: not measured." if any(map(any, shares(session, RADAR_METRICS).hollow)) else ""
    )
    return (
        "Each axis: share of the best variant's figure, which stands at its end; rings every 25 %, "
        f"the outer one is the best.{base}{dashed}"
    )


def role_names(present: Iterable[str]) -> dict[str, str]:
    """Those of ROLES that occur, in their order: the legend of a picture."""
    found = set(present)
    return {role: words for role, words in ROLES.items() if role in found}


def layers(session: SessionReport) -> tuple[Layers, ...]:
    every = (Layers(r.variant, r.layers) for r in session.drawable)
    return tuple(chart for chart in every if chart.drawn)


def traces(session: SessionReport) -> tuple[Traces, ...]:
    return tuple(Traces(r.variant, r.traces, r.phases) for r in session.runs if r.traces)


def timelines(session: SessionReport) -> tuple[Traces, ...]:
    """Phases per run; runs that failed after starting have some too."""
    return tuple(Traces(r.variant, (), r.phases) for r in session.runs if r.phases)


def nothing_to_draw(session: SessionReport, plot_type: str) -> UserError:
    """What to tell a user whose session lacks what a plot type shows."""
    needs = {
        "pareto": "a run with a valid accuracy and a valid latency",
        "bars": "a run with a valid figure",
        "radar": "runs with valid figures in three metrics",
        "heatmap": "a run with a valid figure",
        "layers": "a per-layer report",
        "trace": "sampled traces",
        "timeline": "recorded phases",
    }[plot_type]
    return UserError(
        f"Nothing to draw: session {session.session_id} has no {needs.removeprefix('a ')}.",
        f"A {plot_type} plot needs {needs}; `qhost query` shows what is stored.",
    )


def _present(session: SessionReport, metrics: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(m for m in metrics if any(r.value(m) is not None for r in session.drawable))


def _value(session: SessionReport, run: RunReport, metric: str) -> Value | None:
    if run.value(metric) is None:
        return None
    figure = run.figures[metric]
    return _shown(figure, column_decimals(session, metric))


def _shown(figure: Figure, decimals: int) -> Value:
    assert figure.value is not None
    factor = scale_of(figure.unit, figure.metric).factor
    low, high = figure.ci_low, figure.ci_high
    return Value(
        figure.value * factor,
        None if low is None or high is None else low * factor,
        None if low is None or high is None else high * factor,
        value_text(figure, decimals=decimals),
        figure.provenance,
    )


def _source(session: SessionReport, metric: str) -> str:
    line = provenance_line(session, metric)
    if line != "mixed":
        return line
    return "MIXED: " + " + ".join(PROVENANCE_TEXT[p].short for p in session.provenances(metric))


def _caption(
    session: SessionReport, metrics: tuple[str, ...], *, key: str = "", intervals: bool = False
) -> str:
    words = [provenance_sentence(session, metrics)]
    if intervals and any(
        f.ci_low is not None for r in session.drawable for m in metrics if (f := r.figure(m))
    ):
        words.append("whiskers: 95 % intervals")
    if key and any(r.figures[m].provenance in NOT_REAL for r in session.drawable for m in metrics
                   if r.value(m) is not None):  # fmt: skip
        words.append(key)
    left_out = [
        f"{metric_label(session, m, short=True).lower()} of {r.variant}"
        for m in metrics
        for r in session.drawable
        if r.value(m) is None
    ]
    if left_out:
        words.append(f"no valid figure: {', '.join(left_out)}")
    return " · ".join(w for w in words if w)
