"""What both ways of drawing share: ranges, names of phases and plots, shortened names."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from host.report.charts import Pareto, Traces, Value
from host.report.data import SessionReport
from host.report.labels import Box

# Light shades take ink, dark ones white text; the jump between leaves no shade unreadable.
HEATMAP_STOPS = (0.0, 0.6, 0.6, 1.0)

HEATMAP_DARK = 0.6

PHASE_PATTERN = {"warmup": "/", "load": "x", "first inference": "+", "idle": ".", "golden": "-"}

_PHASE_COLOUR = {
    "idle": "phaseidle",
    "load": "phaseload",
    "first inference": "phasefirst",
    "warmup": "phasewarm",
    "timed": "phasetimed",
    "cooldown": "phasecool",
}


def phase_kind(name: str) -> str:
    """The sort of a phase: idle_before and idle_after are idle, cold_load and warm_load load."""
    plain = name.lower().replace("_", " ")
    for kind in ("idle", "load"):
        if kind in plain.split():
            return kind
    return plain


def phase_word(kind: str) -> str:
    """What a legend calls a sort of phase."""
    return "warm-up" if kind == "warmup" else kind


def phase_colour(name: str) -> str:
    return _PHASE_COLOUR.get(phase_kind(name), "phaseother")


def time_range(chart: Traces) -> tuple[float, float]:
    """First and last moment of the run's samples and phases, in seconds."""
    ends = [float(t.t_s[i]) for t in chart.traces if t.t_s.size for i in (0, -1)]
    ends += [v for p in chart.phases for v in (p.start_s, p.end_s)]
    return (min(ends), max(ends)) if ends else (0.0, 1.0)


def short_name(variant: str, limit: int) -> str:
    """At most `limit` characters: variants differ at their ends, so the middle goes."""
    if len(variant) <= limit:
        return variant
    head = (limit - 1) * 2 // 5
    return f"{variant[:head]}…{variant[head + 1 - limit :]}"


def span(values: Sequence[Value], *, zero: bool = False) -> tuple[float, float]:
    """A range that shows every value with its interval and some air."""
    ends = [e for v in values for e in (v.value, v.low, v.high) if e is not None]
    if not ends:
        return (0.0, 1.0)
    low, high = min(ends), max(ends)
    if zero:
        return (min(0.0, low), max(0.0, high) * 1.02 or 1.0)
    pad = (high - low) * 0.08 or abs(high) * 0.05 or 1.0
    return (low - pad, high + pad)


def whiskers(
    chart: Pareto,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    size: tuple[float, float],
) -> list[Box]:
    """The intervals and the front's steps as thin boxes in pixels, y downwards."""

    def box(x0: float, y0: float, x1: float, y1: float) -> Box:
        px = [(x - x_range[0]) / (x_range[1] - x_range[0]) * size[0] for x in (x0, x1)]
        py = [(y_range[1] - y) / (y_range[1] - y_range[0]) * size[1] for y in (y0, y1)]
        return (min(px) - 1, min(py) - 1, max(px) + 1, max(py) + 1)

    boxes = []
    for p in chart.points:
        x, y = p.x, p.y
        if y.low is not None and y.high is not None:
            boxes.append(box(x.value, y.low, x.value, y.high))
        if x.low is not None and x.high is not None:
            boxes.append(box(x.low, y.value, x.high, y.value))
    for (x0, y0), (x1, y1) in itertools.pairwise(chart.front):
        boxes += [box(x0, y0, x1, y0), box(x1, y0, x1, y1)]
    return boxes


def chart_of(name: str) -> str:
    """The heading of a plot type."""
    return {
        "radar": "Each variant against the best",
        "pareto": "Accuracy against latency",
        "bars": "Metric by metric",
        "heatmap": "All metrics at a glance",
        "layers": "Error by layer",
        "trace": "Traces",
        "timeline": "Timeline",
    }[name]


def numbering(session: SessionReport) -> dict[str, int]:
    """Variant -> the number that stands for it in every table and plot."""
    return {run.variant: i + 1 for i, run in enumerate(session.runs)}
