"""The charts as Plotly figures: plain dictionaries that the page's script draws.

Colours are written as "@name" and resolved by the page from its theme, so that one figure serves
dark, light and print. Annotations that must not overlap are placed here for several widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from host.report.charts import (
    Axis,
    Bars,
    Pareto,
    Point,
    Shares,
    Value,
)
from host.report.labels import place_labels, text_width
from host.report.marks import HEATMAP_DARK, HEATMAP_STOPS, short_name, span, whiskers
from host.report.text import PROVENANCE_TEXT

Chart = dict[str, Any]

# Widths in pixels of the container for which labels are placed; the page takes the widest
# that fits. The narrow one has room for numbers only: the key is the table beside it.
WIDTHS = (300, 460, 680, 960)
_FONT = 12
_SYMBOL = {"best": "star", "front": "circle", "baseline": "diamond", "other": "square"}
_REACH = 11.0  # half the widest symbol, from its centre to the tip of the star
_SIZE = {"best": 16, "front": 11, "baseline": 12, "other": 9}


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
            "visible": any(e is not None for e in error),
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
                "color": "#ffffff" if (chart.shares[i][j] or 0) >= HEATMAP_DARK else "@heatink",
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
    placed = place_labels(pixels, sizes, (plot_w, plot_h), marker=_REACH, lines=lines)
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


def point_label(variant: str, numbers: dict[str, int], width: int) -> str:
    """The number alone where there is no room for names; the table is the key."""
    if width < 460:
        return str(numbers[variant])
    room = 16 if width < 680 else 24 if width < 960 else 36
    return f"{numbers[variant]} {short_name(variant, room)}"


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
