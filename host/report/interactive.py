"""The charts as Plotly figures: plain dictionaries that the page's script draws.

Colours are written as "@name" and resolved by the page from its theme, so that one figure serves
dark, light and print. Annotations that must not overlap are placed here for several widths.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from host.report.charts import (
    Axis,
    Bars,
    Layers,
    Pareto,
    Point,
    Shares,
    Traces,
    Value,
    drawn_line,
    time_title,
    without_gaps,
)
from host.report.labels import Box, place_labels, text_width
from host.report.text import PROVENANCE_TEXT, scale_of

Chart = dict[str, Any]

# Widths in pixels of the container for which labels are placed; the page takes the widest
# that fits. The narrow one has room for numbers only: the key is the table beside it.
WIDTHS = (300, 460, 680, 960)
_FONT = 12
_SYMBOL = {"best": "star", "front": "circle", "baseline": "diamond", "other": "square"}
_SIZE = {"best": 16, "front": 11, "baseline": 12, "other": 9}
ENVELOPE_BUCKETS = 500
# Light shades take ink, dark ones white text; the jump between leaves no shade unreadable.
HEATMAP_STOPS = (0.0, 0.6, 0.601, 1.0)
HEATMAP_DARK = 0.6


def pareto(chart: Pareto, numbers: dict[str, int], height: int = 460) -> Chart:
    """Accuracy against latency with both intervals, the front, and a label on every point."""
    margin = {"l": 72, "r": 20, "t": 20, "b": 72}
    x_range = span([p.x for p in chart.points])
    y_range = span([p.y for p in chart.points])
    data: list[Chart] = []
    if len(chart.front) > 1:
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": [x for x, _ in chart.front],
                "y": [y for _, y in chart.front],
                "line": {"color": "@front", "width": 1.5, "dash": "dot", "shape": "hv"},
                "hoverinfo": "skip",
                "name": "Pareto front",
            }
        )
    data += [_point(p, chart, numbers) for p in chart.points]
    return {
        "height": height,
        "data": data,
        "layout": {
            "margin": margin,
            "xaxis": _axis(chart.x, x_range),
            "yaxis": _axis(chart.y, y_range),
            "showlegend": False,
        },
        "annotations": {
            str(width): _point_labels(chart, numbers, width, height, margin, x_range, y_range)
            for width in WIDTHS
        },
    }


def bars(chart: Bars, panel: int, numbers: dict[str, int]) -> Chart:
    """One metric: a horizontal bar per variant with its interval and its value in words."""
    axis, values = chart.axes[panel], chart.values[panel]
    names = [f"{numbers[v]} {short_name(v, 20)}" for v in chart.variants]
    low, high = span([v for v in values if v is not None], zero=True)
    if axis.metric == "accuracy":
        low, high = span([v for v in values if v is not None])
    room = (high - low) * 0.3  # for the value at the end of the longest bar
    error = [None if v is None or v.high is None else v.high - v.value for v in values]
    minus = [None if v is None or v.low is None else v.value - v.low for v in values]
    dots = axis.metric == "accuracy"  # a bar that does not start at zero would lie
    drawn: Chart = {
        "y": names,
        "x": [None if v is None else v.value for v in values],
        "customdata": [_hover(v, axis) for v in values],
        "hovertemplate": "%{y}<br>%{customdata}<extra></extra>",
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": error,
            "arrayminus": minus,
            "color": "@ink",
            "thickness": 1.2,
            "width": 3,
        },
    }
    if dots:
        drawn |= {"type": "scatter", "mode": "markers", "marker": _markers(chart.roles, values)}
    else:
        drawn |= {
            "type": "bar",
            "orientation": "h",
            "marker": {
                "color": [f"@{role}" for role in chart.roles],
                "pattern": {
                    "shape": ["/" if v is not None and v.hollow else "" for v in values],
                    "fillmode": "replace",
                    "size": 7,
                    "solidity": 0.35,
                },
                "line": {"color": [f"@{role}" for role in chart.roles], "width": 1.2},
            },
        }
    texts = [
        {
            "x": (v.high if v.high is not None else v.value) if v is not None else low,
            "y": name,
            "text": v.text if v is not None else "no valid figure",
            "xanchor": "left",
            "xshift": 6,
            "showarrow": False,
            "font": {"size": 11, "color": "@ink" if v is not None else "@muted"},
        }
        for name, v in zip(names, values, strict=True)
    ]
    return {
        "height": 92 + 26 * len(names),
        "data": [drawn],
        "layout": {
            "margin": {"l": 150, "r": 10, "t": 6, "b": 58},
            "xaxis": _axis(axis, (low, high + room), f"{axis.short} ({axis.unit})"),
            "yaxis": {
                "autorange": "reversed",
                "type": "category",
                "tickfont": {"size": 11},
                "categoryorder": "array",
                "categoryarray": names,
                "fixedrange": True,
            },
            "bargap": 0.35,
            "showlegend": False,
            "annotations": texts,
        },
    }


def radar(chart: Shares, row: int) -> Chart:
    """One variant's shares of the best, over the fp16 outline."""
    names = [f"{a.short}<br>{b}" for a, b in zip(chart.axes, chart.best, strict=True)]
    data: list[Chart] = []
    base = chart.roles.index("baseline") if "baseline" in chart.roles else None
    if base is not None and base != row:
        data.append(_outline(chart, base, names, "@muted", "dot", fill=False, name="fp16"))
    hollow = any(chart.hollow[row])
    data.append(
        _outline(
            chart,
            row,
            names,
            f"@{chart.roles[row]}",
            "dash" if hollow else "solid",
            fill=None not in chart.shares[row],
            name=chart.variants[row],
        )
    )
    return {
        "height": 270,
        "data": data,
        "layout": {
            "margin": {"l": 60, "r": 60, "t": 42, "b": 44},
            "showlegend": False,
            "polar": {
                "bgcolor": "@surface",
                "radialaxis": {
                    "range": [0, 1.02],
                    "tickvals": [0.25, 0.5, 0.75, 1],
                    "showticklabels": False,
                    "ticks": "",
                    "gridcolor": "@grid",
                    "linecolor": "@grid",
                },
                "angularaxis": {
                    "direction": "clockwise",
                    "tickfont": {"size": 10, "color": "@ink"},
                    "gridcolor": "@grid",
                    "linecolor": "@line",
                },
            },
        },
    }


def heatmap(chart: Shares, numbers: dict[str, int]) -> Chart:
    """Variants by metrics; the colour is the share of the best, the text the figure itself."""
    names = [f"{numbers[v]} {short_name(v, 24)}" for v in chart.variants]
    heads = [f"<b>{a.short}</b><br>{a.unit} {_mark(a)}<br>{a.source}" for a in chart.axes]
    texts = [
        [f"{t}{' ◌' if h else ''}" for t, h in zip(chart.texts[i], chart.hollow[i], strict=True)]
        for i in range(len(names))
    ]
    annotations = [
        {
            "x": heads[j],
            "y": names[i],
            "text": texts[i][j],
            "showarrow": False,
            "font": {
                "size": 11,
                "color": "#ffffff" if (chart.shares[i][j] or 0) > HEATMAP_DARK else "@heatink",
            },
        }
        for i in range(len(names))
        for j in range(len(heads))
    ]
    return {
        "height": 110 + 30 * len(names),
        "min_width": 170 + 92 * len(heads),
        "data": [
            {
                "type": "heatmap",
                "x": heads,
                "y": names,
                "z": [list(row) for row in chart.shares],
                "zmin": 0,
                "zmax": 1,
                "colorscale": [[stop, f"@heat{index}"] for index, stop in enumerate(HEATMAP_STOPS)],
                "xgap": 2,
                "ygap": 2,
                "showscale": False,
                "hovertemplate": "%{y}<br>%{z:.0%} of the best<extra></extra>",
            }
        ],
        "layout": {
            "margin": {"l": 180, "r": 8, "t": 64, "b": 8},
            "xaxis": {
                "showgrid": False,
                "ticks": "",
                "side": "top",
                "tickfont": {"size": 11},
                "fixedrange": True,
                "type": "category",
            },
            "yaxis": {
                "showgrid": False,
                "ticks": "",
                "autorange": "reversed",
                "tickfont": {"size": 11},
                "fixedrange": True,
                "type": "category",
            },
            "annotations": annotations,
        },
    }


def layers(chart: Layers) -> Chart:
    """Per-layer SQNR in graph order, one symbol per precision, the worst three named."""
    data: list[Chart] = []
    precisions = list(dict.fromkeys(row.precision for _, row in chart.drawn))
    symbols = ("circle", "triangle-up", "square", "diamond", "cross", "x")
    colours = ("@front", "@best", "@other", "@baseline")
    for index, precision in enumerate(precisions):
        rows = [(i, r) for i, r in chart.drawn if r.precision == precision]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": precision or "layer",
                "x": [i + 1 for i, _ in rows],
                "y": [r.sqnr_db for _, r in rows],
                "text": [f"{r.name}<br>{r.op_type} {r.precision}" for _, r in rows],
                "hovertemplate": "%{text}<br>%{y:.1f} dB<extra></extra>",
                "marker": {
                    "symbol": symbols[index % len(symbols)],
                    "size": 7,
                    "color": colours[index % len(colours)],
                },
            }
        )
    values = [r.sqnr_db or 0.0 for _, r in chart.drawn]
    low, high = min(values), max(values)
    pad = max((high - low) * 0.12, 1.0)
    return {
        "height": 260,
        "data": data,
        "layout": {
            "margin": {"l": 58, "r": 12, "t": 28, "b": 48},
            "xaxis": {
                "title": {"text": "Layer, in graph order"},
                "range": [0, len(chart.layers) + 1],
                "fixedrange": True,
            },
            "yaxis": {
                "title": {"text": "Weight SQNR (dB)<br>↑ higher is better"},
                "range": [low - pad, high + pad],
                "fixedrange": True,
            },
            "showlegend": len(precisions) > 1,
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        },
    }


def trace(original: Traces) -> Chart:
    """Channels over device time, one panel per channel, phases shaded behind all of them."""
    chart = without_gaps(original)
    count = len(chart.traces)
    height = 64 + 130 * count + 24
    data: list[Chart] = []
    layout: Chart = {
        "margin": {"l": 66, "r": 12, "t": 34, "b": 48},
        "showlegend": False,
        "shapes": [],
        "annotations": [],
        "xaxis": {
            "title": {"text": time_title(original, chart)},
            "anchor": f"y{count}" if count > 1 else "y",
            "fixedrange": True,
            "range": list(time_range(chart)),
        },
    }
    gap = 0.14
    panel = (1 - gap * (count - 1)) / count
    for index, channel in enumerate(chart.traces):
        top = 1 - index * (panel + gap)
        suffix = "" if index == 0 else str(index + 1)
        t_s, values = drawn_line(channel, ENVELOPE_BUCKETS)
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": [round(v, 4) for v in t_s.tolist()],
                "y": [None if v != v else float(f"{v:.5g}") for v in values.tolist()],
                "yaxis": f"y{suffix}",
                "line": {"color": ("@front", "@best", "@other")[index % 3], "width": 1.3},
                "name": channel.channel,
                "hovertemplate": f"%{{x:.2f}} s, %{{y:.4g}} {channel.unit}<extra></extra>",
            }
        )
        layout[f"yaxis{suffix}"] = {
            "domain": [max(top - panel, 0.0), top],
            "title": {"text": scale_of(channel.unit).unit},
            "fixedrange": True,
        }
        layout["annotations"].append(
            {
                "x": 0,
                "y": top,
                "xref": "paper",
                "yref": "paper",
                "xanchor": "left",
                "yanchor": "bottom",
                "showarrow": False,
                "text": (  # short enough for a phone; the caption has the whole name
                    f"{short_name(channel.channel, 26)} · "
                    f"{PROVENANCE_TEXT[channel.provenance].short}"
                ),
                "font": {"size": 11, "color": "@ink"},
            }
        )
    layout["shapes"] = [
        {
            "type": "rect",
            "xref": "x",
            "yref": "paper",
            "x0": p.start_s,
            "x1": p.end_s,
            "y0": 0,
            "y1": 1,
            "line": {"width": 0},
            "fillcolor": f"@{phase_colour(p.name)}",
            "opacity": 0.16,
            "layer": "below",
        }
        for p in chart.phases
    ]
    return {"height": height, "data": data, "layout": layout}


def timeline(chart: Sequence[Traces], numbers: dict[str, int]) -> Chart:
    """When each run did what, in device time."""
    names = {c.variant: f"{numbers[c.variant]} {short_name(c.variant, 20)}" for c in chart}
    kinds = list(dict.fromkeys(phase_kind(p.name) for c in chart for p in c.phases))
    data: list[Chart] = []
    for kind in kinds:
        rows = [(c.variant, p) for c in chart for p in c.phases if phase_kind(p.name) == kind]
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": kind,
                "y": [names[v] for v, _ in rows],
                "x": [p.end_s - p.start_s for _, p in rows],
                "base": [p.start_s for _, p in rows],
                "marker": {
                    "color": f"@{phase_colour(kind)}",
                    "pattern": {
                        "shape": PHASE_PATTERN.get(kind, ""),
                        "fillmode": "overlay",
                        "size": 6,
                        "solidity": 0.3,
                        "fgcolor": "@surface",
                    },
                },
                "text": [p.name for _, p in rows],
                "textposition": "none",
                "hovertemplate": "%{y}<br>%{text}: %{base:.2f} s, for %{x:.2f} s<extra></extra>",
            }
        )
    return {
        "height": 116 + 26 * len(names),
        "data": data,
        "layout": {
            "barmode": "overlay",
            "bargap": 0.35,
            "margin": {"l": 150, "r": 12, "t": 40, "b": 48},
            "xaxis": {"title": {"text": "Device time (s)"}, "fixedrange": True},
            "yaxis": {
                "type": "category",
                "categoryorder": "array",
                "categoryarray": list(names.values()),
                "autorange": "reversed",
                "tickfont": {"size": 11},
                "fixedrange": True,
            },
            "showlegend": True,
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        },
    }


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


def phase_colour(name: str) -> str:
    return _PHASE_COLOUR.get(phase_kind(name), "phaseother")


def time_range(chart: Traces) -> tuple[float, float]:
    """First and last moment of the run's samples and phases, in seconds."""
    ends = [float(t.t_s[i]) for t in chart.traces if t.t_s.size for i in (0, -1)]
    ends += [v for p in chart.phases for v in (p.start_s, p.end_s)]
    return (min(ends), max(ends)) if ends else (0.0, 1.0)


def short_name(variant: str, limit: int) -> str:
    return variant if len(variant) <= limit else variant[: limit - 1] + "…"


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


def _mark(axis: Axis) -> str:
    return axis.hint[0] if axis.better is not None else ""


def _axis(axis: Axis, bounds: tuple[float, float], title: str = "") -> Chart:
    return {
        "title": {
            "text": f"{title or axis.title}<br><span style='font-size:11px'>{axis.hint}</span>"
        },
        "range": list(bounds),
        "fixedrange": True,
    }


def _hover(value: Value | None, axis: Axis) -> str:
    if value is None:
        return "no valid figure"
    text = f"{value.text} {axis.unit}"
    if value.low is not None and value.high is not None:
        text += f" [{value.low:.4g}, {value.high:.4g}]"
    return f"{text}, {PROVENANCE_TEXT[value.provenance].short}"


def _markers(roles: Sequence[str], values: Sequence[Value | None]) -> Chart:
    return {
        "symbol": [_SYMBOL[r] for r in roles],
        "size": [_SIZE[r] for r in roles],
        "color": [
            "@surface" if v is not None and v.hollow else f"@{r}"
            for r, v in zip(roles, values, strict=True)
        ],
        "line": {"color": [f"@{r}" for r in roles], "width": 2},
    }


def _point(point: Point, chart: Pareto, numbers: dict[str, int]) -> Chart:
    def error(value: Value) -> Chart:
        if value.low is None or value.high is None:
            return {"visible": False}
        return {
            "type": "data",
            "symmetric": False,
            "array": [value.high - value.value],
            "arrayminus": [value.value - value.low],
            "color": f"@{point.role}",
            "thickness": 1,
            "width": 3,
        }

    hollow = point.x.hollow or point.y.hollow
    return {
        "type": "scatter",
        "mode": "markers",
        "name": point.variant,
        "x": [point.x.value],
        "y": [point.y.value],
        "error_x": error(point.x),
        "error_y": error(point.y),
        "marker": {
            "symbol": _SYMBOL[point.role],
            "size": _SIZE[point.role],
            "color": "@surface" if hollow else f"@{point.role}",
            "line": {"color": f"@{point.role}", "width": 2},
        },
        "hovertemplate": (
            f"<b>{numbers[point.variant]} {point.variant}</b><br>"
            f"{chart.x.short}: {_hover(point.x, chart.x)}<br>"
            f"{chart.y.short}: {_hover(point.y, chart.y)}<extra></extra>"
        ),
    }


def _point_labels(
    chart: Pareto,
    numbers: dict[str, int],
    width: int,
    height: int,
    margin: dict[str, int],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
) -> list[Chart]:
    plot_w, plot_h = width - margin["l"] - margin["r"], height - margin["t"] - margin["b"]
    texts = [point_label(p.variant, numbers, width) for p in chart.points]
    pixels = [
        (
            (p.x.value - x_range[0]) / (x_range[1] - x_range[0]) * plot_w,
            (y_range[1] - p.y.value) / (y_range[1] - y_range[0]) * plot_h,
        )
        for p in chart.points
    ]
    sizes = [(text_width(t, _FONT), _FONT + 4.0) for t in texts]
    lines = whiskers(chart, x_range, y_range, (plot_w, plot_h))
    placed = place_labels(pixels, sizes, (plot_w, plot_h), lines=lines)
    return [
        {
            "x": p.x.value,
            "y": p.y.value,
            "ax": round(spot.x - px, 1),
            "ay": round(spot.y - py, 1),
            "text": f"<b>{text}</b>" if p.role == "best" else text,
            "showarrow": True,
            "arrowhead": 0,
            "arrowwidth": 0.8,
            "arrowcolor": "@muted" if spot.leader else "rgba(0,0,0,0)",
            "standoff": 6,
            "borderpad": 0,
            "bgcolor": "@surface/0.8",
            "font": {"size": _FONT, "color": "@ink" if p.role != "other" else "@muted"},
        }
        for p, text, spot, (px, py) in zip(chart.points, texts, placed, pixels, strict=True)
    ]


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


def point_label(variant: str, numbers: dict[str, int], width: int) -> str:
    """The number alone where there is no room for names; the table is the key."""
    if width < 460:
        return str(numbers[variant])
    room = 16 if width < 680 else 24 if width < 960 else 36
    return f"{numbers[variant]} {short_name(variant, room)}"


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


def _outline(
    chart: Shares,
    row: int,
    names: list[str],
    colour: str,
    dash: str,
    *,
    fill: bool,
    name: str,
) -> Chart:
    values: list[float | None] = list(chart.shares[row])
    return {
        "type": "scatterpolar",
        "r": [*values, values[0]] if values else [],
        "theta": [*names, names[0]] if names else [],
        "mode": "lines+markers",
        "marker": {"size": 5, "color": colour},
        "line": {"color": colour, "width": 1.2 if dash == "dot" else 2, "dash": dash},
        "fill": "toself" if fill else "none",
        "fillcolor": f"{colour}/0.22" if fill else "rgba(0,0,0,0)",
        "name": name,
        "hovertemplate": "%{theta}<br>%{r:.0%} of the best<extra></extra>",
    }
