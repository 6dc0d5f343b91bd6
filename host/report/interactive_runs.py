"""The charts of single runs as Plotly figures: layers, traces, the session's timeline."""

from __future__ import annotations

from collections.abc import Sequence

from host.report.charts import Layers, Traces
from host.report.interactive import Chart
from host.report.lines import drawn_line, time_title, without_gaps
from host.report.marks import (
    PHASE_PATTERN,
    phase_colour,
    phase_kind,
    phase_word,
    short_name,
    time_range,
)
from host.report.text import PROVENANCE_TEXT, scale_of

ENVELOPE_BUCKETS = 500


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
                "name": phase_word(kind),
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
