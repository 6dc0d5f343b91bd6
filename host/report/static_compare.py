"""The pictures that compare variants: Pareto, bars, radar, heat map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from host.report import charts
from host.report.charts import Axis, Value
from host.report.data import SessionReport
from host.report.labels import place_labels, text_width
from host.report.marks import (
    HEATMAP_DARK,
    HEATMAP_STOPS,
    numbering,
    short_name,
    span,
    whiskers,
)
from host.report.static_frame import (
    COLOURS,
    HALO,
    INK,
    MUTED,
    axes_in,
    canvas,
    grid_of,
    label_axis,
    legend,
)

HEATMAP_COLOURS = ("#f2f5f9", "#9dc3e8", "#1f66ad", "#0a4f96")

_MARKER = {"best": "*", "front": "o", "baseline": "D", "other": "s"}

_SIZE = {"best": 190.0, "front": 62.0, "baseline": 62.0, "other": 44.0}


def pareto(session: SessionReport) -> Figure | None:
    chart = charts.pareto(session)
    if not chart.points:
        return None
    numbers = numbering(session)
    figure, body = canvas(session, "pareto", 9.6, 5.4, chart.caption)
    axes = axes_in(figure, body, (0.85, 0.7, 0.25, 0.1))
    if len(chart.front) > 1:
        axes.step(
            [x for x, _ in chart.front],
            [y for _, y in chart.front],
            where="post",
            color=COLOURS["front"],
            linestyle=":",
            linewidth=1.5,
        )
    for p in chart.points:
        colour = COLOURS[p.role]
        axes.errorbar(
            p.x.value,
            p.y.value,
            xerr=_errors(p.x),
            yerr=_errors(p.y),
            fmt="none",
            ecolor=colour,
            elinewidth=0.9,
            capsize=2.5,
            alpha=0.75,
        )
        hollow = p.x.hollow or p.y.hollow
        axes.scatter(
            [p.x.value],
            [p.y.value],
            s=_SIZE[p.role],
            marker=_MARKER[p.role],
            facecolor="white" if hollow else colour,
            edgecolor=colour,
            linewidth=1.6,
            zorder=3,
        )
    axes.set_xlim(*span([p.x for p in chart.points]))
    axes.set_ylim(*span([p.y for p in chart.points]))
    label_axis(axes, chart.x, "x")
    label_axis(axes, chart.y, "y")
    _name_points(axes, chart, numbers)
    hollow = all(p.x.hollow or p.y.hollow for p in chart.points)
    _role_legend(figure, chart.points, hollow=hollow, line=len(chart.front) > 1)
    return figure


def _role_legend(
    figure: Figure, points: Sequence[charts.Point], *, hollow: bool, line: bool
) -> None:
    handles = [
        Line2D(
            [],
            [],
            linestyle=":" if role == "front" and line else "none",
            linewidth=1.5,
            color=COLOURS[role],
            marker=_MARKER[role],
            markersize=math.sqrt(_SIZE[role]) * 0.85,
            markerfacecolor="white" if hollow else COLOURS[role],
            markeredgewidth=1.4,
            label=words,
        )
        for role, words in charts.role_names(p.role for p in points).items()
    ]
    legend(figure, handles)


def _name_points(axes: Axes, chart: charts.Pareto, numbers: dict[str, int]) -> None:
    box = axes.get_window_extent()
    span_x, span_y = axes.get_xlim(), axes.get_ylim()
    points = [axes.transData.transform((p.x.value, p.y.value)) for p in chart.points]
    pixels = [(x - box.x0, box.y1 - y) for x, y in points]
    scale = axes.get_figure().dpi / 72  # type: ignore[union-attr]
    texts = [f"{numbers[p.variant]} {short_name(p.variant, 34)}" for p in chart.points]
    sizes = [(text_width(t, 8.5 * scale), 12.0 * scale) for t in texts]
    placed = place_labels(
        pixels,
        sizes,
        (box.width, box.height),
        marker=6 * scale,
        lines=whiskers(chart, span_x, span_y, (box.width, box.height)),
    )
    for p, text, spot, (px, py) in zip(chart.points, texts, placed, pixels, strict=True):
        axes.annotate(
            text,
            (p.x.value, p.y.value),
            xytext=((spot.x - px) / scale, (py - spot.y) / scale),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8.5,
            weight="bold" if p.role == "best" else "normal",
            color=INK if p.role != "other" else MUTED,
            zorder=4,
            path_effects=HALO,
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkB": 4}
            if spot.leader
            else None,
        )


def _errors(value: Value) -> list[list[float]] | None:
    if value.low is None or value.high is None:
        return None
    return [[max(value.value - value.low, 0)], [max(value.high - value.value, 0)]]


def _face(value: Value, colour: str) -> str:
    return "white" if value.hollow else colour


def bars(session: SessionReport) -> Figure | None:
    chart = charts.bars(session)
    if not chart.axes:
        return None
    numbers = numbering(session)
    names = [f"{numbers[v]} {short_name(v, 24)}" for v in chart.variants]
    rows, columns = grid_of(len(chart.axes), 3)
    panel = 0.24 * len(names) + 0.95
    figure, body = canvas(session, "bars", 12.0, rows * panel, chart.caption)
    width, height = figure.get_size_inches()
    left, gap = 1.95, 0.42
    each = (width - left - 0.25 - gap * (columns - 1)) / columns
    for index, axis in enumerate(chart.axes):
        row, column = divmod(index, columns)
        axes = figure.add_axes(
            (
                (left + column * (each + gap)) / width,
                body[1] - (row * panel + panel - 0.62) / height,
                each / width,
                (panel - 0.8) / height,
            )
        )
        _bar_panel(axes, axis, chart.values[index], chart.roles)
        axes.set_yticks(range(len(names)), names if column == 0 else [""] * len(names))
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        label_axis(axes, axis, "x", 8.5)
    named = charts.role_names(chart.roles)
    legend(figure, [Patch(facecolor=COLOURS[role], label=words) for role, words in named.items()])
    return figure


def _bar_panel(
    axes: Axes, axis: Axis, values: Sequence[Value | None], roles: Sequence[str]
) -> None:
    known = [v for v in values if v is not None]
    dots = axis.metric == "accuracy"  # a bar that does not start at zero would lie
    low, high = span(known, zero=not dots)
    axes.set_xlim(low, high + (high - low) * 0.28)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    for row, (value, role) in enumerate(zip(values, roles, strict=True)):
        if value is None:
            axes.text(low, row, " no valid figure", va="center", size=7.5, color=MUTED)
            continue
        colour = COLOURS[role]
        if dots:
            axes.scatter(
                [value.value],
                [row],
                s=_SIZE[role] * 0.7,
                marker=_MARKER[role],
                facecolor=_face(value, colour),
                edgecolor=colour,
                linewidth=1.5,
                zorder=3,
            )
        else:
            axes.barh(
                row,
                value.value,
                height=0.62,
                color=_face(value, colour),
                edgecolor=colour,
                hatch="////" if value.hollow else None,
                linewidth=1,
            )
        if (error := _errors(value)) is not None:
            axes.errorbar(
                value.value, row, xerr=error, fmt="none", ecolor=INK, elinewidth=1, capsize=2
            )
        end = value.high if value.high is not None else value.value
        axes.annotate(
            value.text,
            (end, row),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            size=8,
        )


def radar(session: SessionReport) -> Figure | None:
    chart = charts.shares(session, charts.RADAR_METRICS)
    count = len(chart.axes)
    if count < 3 or not chart.variants:
        return None
    numbers = numbering(session)
    rows, columns = grid_of(len(chart.variants), 4)
    caption = f"{charts.radar_key(session)} {chart.caption}"
    width = max(columns * 2.9, 6.4)
    figure, body = canvas(session, "radar", width, rows * 2.9, caption)
    height = figure.get_size_inches()[1]
    angles = [2 * math.pi * i / count for i in range(count)]
    base = chart.roles.index("baseline") if "baseline" in chart.roles else None
    for index, name in enumerate(chart.variants):
        row, column = divmod(index, columns)
        side = 1.55
        axes = figure.add_axes(
            (
                (column * width / columns + (width / columns - side) / 2) / width,
                body[1] - (row * 2.9 + 0.82 + side) / height,
                side / width,
                side / height,
            ),
            projection="polar",
        )
        _radar_panel(axes, chart, index, base, angles)
        axes.set_title(
            f"{numbers[name]} {short_name(name, 28)}",
            fontsize=9,
            weight="bold" if chart.roles[index] == "best" else "normal",
            pad=32,
        )
    return figure


def _radar_panel(
    axes: Any, chart: charts.Shares, index: int, base: int | None, angles: list[float]
) -> None:
    axes.set_theta_offset(math.pi / 2)
    axes.set_theta_direction(-1)
    axes.set_ylim(0, 1.02)
    axes.set_yticks([0.25, 0.5, 0.75, 1.0], [])
    axes.set_xticks(angles, [""] * len(angles))
    for angle, axis, best in zip(angles, chart.axes, chart.best, strict=True):
        side = math.sin(angle)
        axes.text(
            angle,
            1.16,
            f"{axis.short}\n{best}",
            fontsize=7,
            linespacing=1.15,
            ha="center" if abs(side) < 0.1 else ("left" if side > 0 else "right"),
            va="center" if abs(side) >= 0.1 else ("bottom" if math.cos(angle) > 0 else "top"),
        )
    if base is not None and base != index:
        r = [s if s is not None else math.nan for s in chart.shares[base]]
        axes.plot([*angles, angles[0]], [*r, r[0]], color=MUTED, linestyle=":", linewidth=1.2)
    colour = COLOURS[chart.roles[index]]
    r = [s if s is not None else math.nan for s in chart.shares[index]]
    hollow = any(chart.hollow[index])
    axes.plot(
        [*angles, angles[0]],
        [*r, r[0]],
        color=colour,
        linestyle="--" if hollow else "-",
        linewidth=1.6,
        marker="o",
        markersize=3.2,
    )
    if not any(math.isnan(v) for v in r):  # an area over a missing axis would invent a figure
        axes.fill(angles, r, color=colour, alpha=0.18)


def heat_colours() -> mpl.colors.Colormap:
    """Share of the best, 0 to 1, to a colour. 250 steps: the jump at 0.6 falls between two."""
    stops = list(zip(HEATMAP_STOPS, HEATMAP_COLOURS, strict=True))
    return mpl.colors.LinearSegmentedColormap.from_list("share", stops, N=250)


def heatmap(session: SessionReport) -> Figure | None:
    chart = charts.shares(session, charts.HEATMAP_METRICS)
    if not chart.axes:
        return None
    numbers = numbering(session)
    names = [f"{numbers[v]} {short_name(v, 32)}" for v in chart.variants]
    caption = f"Darker: closer to the best. ◌ not measured. {chart.caption}"
    width = 2.9 + 1.12 * len(chart.axes)
    figure, body = canvas(session, "heatmap", width, 0.32 * len(names) + 0.85, caption)
    axes = axes_in(figure, body, (2.65, 0.1, 0.25, 0.75))
    shares = [[math.nan if s is None else s for s in row] for row in chart.shares]
    axes.imshow(shares, cmap=heat_colours(), vmin=0, vmax=1, aspect="auto")
    for i, row in enumerate(chart.texts):
        for j, text in enumerate(row):
            dark = (chart.shares[i][j] or 0) >= HEATMAP_DARK
            mark = " ◌" if chart.hollow[i][j] else ""
            axes.text(
                j,
                i,
                f"{text}{mark}",
                ha="center",
                va="center",
                size=8.5,
                color="white" if dark else INK,
            )
    heads = [
        f"{a.short}\n{a.unit} {a.hint[0] if a.better is not None else ''}\n{a.source}"
        for a in chart.axes
    ]
    axes.set_xticks(range(len(heads)), heads, fontsize=8, linespacing=1.3, color=INK)
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0, labelcolor=INK)
    axes.grid(visible=False)
    axes.set_xticks([i + 0.5 for i in range(len(heads) - 1)], minor=True)
    axes.set_yticks([i + 0.5 for i in range(len(names) - 1)], minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure
