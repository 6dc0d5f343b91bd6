"""The charts as PNG or SVG by Matplotlib: the same data, marks and words as the page's."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from host.report import charts
from host.report.charts import Axis, Value, drawn_line
from host.report.data import NOT_REAL, SessionReport
from host.report.files import write_whole
from host.report.interactive import (
    HEATMAP_DARK,
    HEATMAP_STOPS,
    PHASE_PATTERN,
    chart_of,
    phase_colour,
    phase_kind,
    short_name,
    span,
    time_range,
    whiskers,
)
from host.report.labels import place_labels, text_width
from host.report.page import numbering
from host.report.text import PROVENANCE_TEXT, scale_of
from host.report.verdict import with_verdict
from quant.figures import Provenance

# The light theme of templates/report.css.
INK, MUTED, LINE, GRID = "#14202b", "#56626f", "#d5dbe2", "#e4e8ed"
COLOURS = {"best": "#0a5fb4", "front": "#00705f", "other": "#6f7b88", "baseline": "#14202b"}
PHASES = {
    "phaseidle": "#7a8794",
    "phaseload": "#7b3fa0",
    "phasefirst": "#b3246b",
    "phasewarm": "#c98500",
    "phasetimed": "#0a5fb4",
    "phasecool": "#00808a",
    "phaseother": "#4d7c0f",
}
HEATMAP_COLOURS = ("#f2f5f9", "#9dc3e8", "#1f66ad", "#0a4f96")
WARN_BG, WARN_INK, WARN_LINE = "#fff4dc", "#6b4300", "#b97700"
_MARKER = {"best": "*", "front": "o", "baseline": "D", "other": "s"}
_SIZE = {"best": 190.0, "front": 62.0, "baseline": 62.0, "other": 44.0}
_HATCH = {
    "warmup": "///",
    "load": "xxx",
    "first inference": "+++",
    "idle": "...",
    "golden": "---",
}
_DPI = 144
_HALO = [withStroke(linewidth=2.5, foreground="white")]
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "hatch.linewidth": 0.7,
    "svg.fonttype": "none",
    "svg.hashsalt": "qhost",  # the same rows give the same file
}


def save_plot(session: SessionReport, plot_type: str, path: Path, *, dpi: int = _DPI) -> None:
    """Draw one plot type into `path`, PNG or SVG by its suffix; `dpi` is of a PNG.

    Raises:
        UserError: the session has nothing to draw for this plot type.
    """
    with mpl.rc_context(_STYLE):
        figure = draw_plot(with_verdict(session), plot_type)
        kind = path.suffix.lstrip(".").lower()
        # A date in the file would make the same rows give another file every time.
        metadata = {"Date": None} if kind == "svg" else None
        write_whole(
            path,
            lambda part: figure.savefig(
                part, format=kind, dpi=dpi, facecolor="white", metadata=metadata
            ),
        )


def draw_plot(session: SessionReport, plot_type: str) -> Figure:
    """The Matplotlib figure of a plot type; call it inside the style of `save_plot`."""
    draw: dict[str, Callable[[SessionReport], Figure | None]] = {
        "pareto": _pareto,
        "bars": _bars,
        "radar": _radar,
        "heatmap": _heatmap,
        "layers": _layers,
        "trace": _trace,
        "timeline": _timeline,
    }
    figure = draw[plot_type](session)
    if figure is None:
        raise charts.nothing_to_draw(session, plot_type)
    return figure


def _canvas(
    session: SessionReport, kind: str, width: float, body: float, caption: str
) -> tuple[Figure, tuple[float, float]]:
    """A figure with heading, banner and caption; returns it with the body's bottom and top.

    `width` and `body` (the height left for the plots) are in inches.
    """
    lines = textwrap.wrap(caption, int(width * 15.5)) if caption else []
    banner = _banner(session, int(width * 14))
    head = 0.72 + (0.16 * len(banner) + 0.2 if banner else 0.0)
    foot = 0.14 + 0.17 * len(lines)
    height = head + body + foot
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    left = 0.25 / width
    figure.text(left, 1 - 0.32 / height, chart_of(kind), size=14, weight="bold")
    subtitle = f"{session.model_name} on {session.device} · session {session.session_id}"
    figure.text(left, 1 - 0.56 / height, subtitle, size=9, color=MUTED)
    if banner:
        figure.text(
            left,
            1 - 0.76 / height,
            "\n".join(banner),
            size=8.5,
            color=WARN_INK,
            va="top",
            linespacing=1.25,
            bbox={"facecolor": WARN_BG, "edgecolor": WARN_LINE, "boxstyle": "square,pad=0.35"},
        )
    if lines:
        figure.text(
            left, 0.1 / height, "\n".join(lines), size=8, color=MUTED, va="bottom", linespacing=1.3
        )
    return figure, (foot / height, 1 - head / height)


def _banner(session: SessionReport, columns: int) -> list[str]:
    """Lines that say what was not measured; none for a session of measured figures only."""
    if session.emulated:
        basis = f" Basis: {session.emulation_basis}." if session.emulation_basis else ""
        text = (
            f"EMULATED DEVICE: no time, power, energy, heat or memory figure was measured.{basis}"
        )
        return textwrap.wrap(text, columns)
    figures = [f for run in session.drawable for f in run.figures.values() if f.value is not None]
    unreal = [p for p in Provenance if p in NOT_REAL and p in {f.provenance for f in figures}]
    if not unreal:
        return []
    words = " or ".join(PROVENANCE_TEXT[p].long for p in unreal)
    text = f"NOT ALL MEASURED: figures {words} are drawn hollow, hatched, dashed or with ◌."
    return textwrap.wrap(text, columns)


def _axes(
    figure: Figure, body: tuple[float, float], inches: tuple[float, float, float, float]
) -> Axes:
    """Axes inside the body; `inches` are the margins left, bottom, right, top."""
    width, height = figure.get_size_inches()
    left, bottom, right, top = inches
    return figure.add_axes(
        (
            left / width,
            body[0] + bottom / height,
            1 - (left + right) / width,
            body[1] - body[0] - (bottom + top) / height,
        )
    )


def _label(axes: Axes, axis: Axis, which: str, size: float = 9.5) -> None:
    text = f"{axis.title}\n{axis.hint}"
    (axes.set_xlabel if which == "x" else axes.set_ylabel)(text, fontsize=size, linespacing=1.3)


def _face(value: Value, colour: str) -> str:
    return "white" if value.hollow else colour


def _pareto(session: SessionReport) -> Figure | None:
    chart = charts.pareto(session)
    if not chart.points:
        return None
    numbers = numbering(session)
    figure, body = _canvas(session, "pareto", 9.6, 5.4, chart.caption)
    axes = _axes(figure, body, (0.85, 0.7, 0.25, 0.1))
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
    _label(axes, chart.x, "x")
    _label(axes, chart.y, "y")
    _name_points(axes, chart, numbers)
    return figure


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
            path_effects=_HALO,
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkB": 4}
            if spot.leader
            else None,
        )


def _errors(value: Value) -> list[list[float]] | None:
    if value.low is None or value.high is None:
        return None
    return [[max(value.value - value.low, 0)], [max(value.high - value.value, 0)]]


def _grid(count: int, widest: int) -> tuple[int, int]:
    """Rows and columns for `count` panels, at most `widest` beside each other."""
    columns = min(count, widest)
    return math.ceil(count / columns), columns


def _bars(session: SessionReport) -> Figure | None:
    chart = charts.bars(session)
    if not chart.axes:
        return None
    numbers = numbering(session)
    names = [f"{numbers[v]} {short_name(v, 24)}" for v in chart.variants]
    rows, columns = _grid(len(chart.axes), 3)
    panel = 0.24 * len(names) + 0.95
    figure, body = _canvas(session, "bars", 12.0, rows * panel, chart.caption)
    width, height = figure.get_size_inches()
    left, gap = 1.95, 0.32
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
        axes.tick_params(axis="y", length=0)
        _label(axes, axis, "x", 8.5)
    return figure


def _bar_panel(
    axes: Axes, axis: Axis, values: Sequence[Value | None], roles: Sequence[str]
) -> None:
    known = [v for v in values if v is not None]
    dots = axis.metric == "accuracy"  # a bar that does not start at zero would lie
    low, high = span(known, zero=not dots)
    axes.set_xlim(low, high + (high - low) * 0.28)
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


def _radar(session: SessionReport) -> Figure | None:
    chart = charts.shares(session, charts.RADAR_METRICS)
    count = len(chart.axes)
    if count < 3 or not chart.variants:
        return None
    numbers = numbering(session)
    rows, columns = _grid(len(chart.variants), 4)
    caption = (
        "Each axis: share of the best variant's figure; outer ring = the best. "
        f"Dotted: fp16. Dashed: not measured. {chart.caption}"
    )
    width = max(columns * 2.9, 6.4)
    figure, body = _canvas(session, "radar", width, rows * 2.9, caption)
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


def _heatmap(session: SessionReport) -> Figure | None:
    chart = charts.shares(session, charts.HEATMAP_METRICS)
    if not chart.axes:
        return None
    numbers = numbering(session)
    names = [f"{numbers[v]} {short_name(v, 32)}" for v in chart.variants]
    caption = f"Darker: closer to the best. ◌ not measured. {chart.caption}"
    width = 2.9 + 1.12 * len(chart.axes)
    figure, body = _canvas(session, "heatmap", width, 0.32 * len(names) + 0.85, caption)
    axes = _axes(figure, body, (2.65, 0.1, 0.25, 0.75))
    colours = mpl.colors.LinearSegmentedColormap.from_list(
        "share", list(zip(HEATMAP_STOPS, HEATMAP_COLOURS, strict=True))
    )
    shares = [[math.nan if s is None else s for s in row] for row in chart.shares]
    axes.imshow(shares, cmap=colours, vmin=0, vmax=1, aspect="auto")
    for i, row in enumerate(chart.texts):
        for j, text in enumerate(row):
            dark = (chart.shares[i][j] or 0) > HEATMAP_DARK
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
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.set_xticks([i + 0.5 for i in range(len(heads) - 1)], minor=True)
    axes.set_yticks([i + 0.5 for i in range(len(names) - 1)], minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def _layers(session: SessionReport) -> Figure | None:
    every = charts.layers(session)
    if not every:
        return None
    numbers = numbering(session)
    rows, columns = _grid(len(every), 3)
    caption = "SQNR of each quantized weight against the float one; the ring marks the lowest."
    width = max(columns * 4.0, 6.4)
    figure, body = _canvas(session, "layers", width, rows * 2.4, caption)
    height = figure.get_size_inches()[1]
    values = [row.sqnr_db or 0.0 for chart in every for _, row in chart.drawn]
    low, high = min(values), max(values)
    pad = max((high - low) * 0.15, 1.0)
    precisions = list(dict.fromkeys(r.precision for c in every for _, r in c.drawn))
    marks = ("o", "^", "s", "D", "P", "X")
    tones = (COLOURS["front"], COLOURS["best"], COLOURS["other"], COLOURS["baseline"])
    for index, chart in enumerate(every):
        row, column = divmod(index, columns)
        cell = width / columns
        axes = figure.add_axes(
            (
                (column * cell + 0.62) / width,
                body[1] - (row * 2.4 + 1.95) / height,
                (cell - 0.85) / width,
                1.4 / height,
            )
        )
        for place, precision in enumerate(precisions):
            some = [(i, r) for i, r in chart.drawn if r.precision == precision]
            axes.scatter(
                [i + 1 for i, _ in some],
                [r.sqnr_db or 0.0 for _, r in some],
                s=14,
                marker=marks[place % len(marks)],
                color=tones[place % len(tones)],
                label=precision or "layer",
            )
        axes.set_xlim(0, len(chart.layers) + 1)
        axes.set_ylim(low - pad, high + pad)
        (worst, lowest), *_ = chart.worst(1)
        axes.plot(
            [worst + 1],
            [lowest.sqnr_db or 0.0],
            "o",
            ms=9,
            mfc="none",
            mec=INK,
            mew=1,
            clip_on=False,
        )
        axes.set_title(
            f"{numbers[chart.variant]} {short_name(chart.variant, 36)}",
            fontsize=9,
            loc="left",
            pad=16,
        )
        axes.annotate(
            f"lowest: {_tail(lowest.name, 30)} {lowest.sqnr_db:.1f} dB",
            (0, 1),
            xytext=(0, 4),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=7.5,
            color=MUTED,
        )
        if index + columns >= len(every):
            axes.set_xlabel("Layer, in graph order", fontsize=8)
        if column == 0:
            axes.set_ylabel("Weight SQNR (dB)\n↑ higher is better", fontsize=8)
    if len(precisions) > 1:
        handles, words = figure.axes[0].get_legend_handles_labels()
        figure.legend(
            handles,
            words,
            loc="upper right",
            ncols=len(precisions),
            frameon=False,
            fontsize=8.5,
            bbox_to_anchor=(1 - 0.2 / width, 1 - 0.15 / height),
        )
    return figure


def _tail(name: str, limit: int = 24) -> str:
    """The end of a node's name, which is the part that tells layers apart."""
    return name if len(name) <= limit else "…" + name[-(limit - 1) :]


def _trace(session: SessionReport) -> Figure | None:
    every = charts.traces(session)
    if not every:
        return None
    numbers = numbering(session)
    columns = max(len(c.traces) for c in every)
    width = max(columns * 4.6, 7.0)
    caption = "Shaded: phases. " + " · ".join(
        dict.fromkeys(
            f"{t.channel}: {PROVENANCE_TEXT[t.provenance].short}" for c in every for t in c.traces
        )
    )
    panel = 1.6
    figure, body = _canvas(session, "trace", width, panel * len(every) + 0.25, caption)
    height = figure.get_size_inches()[1]
    cell = width / columns
    for row, original in enumerate(every):
        chart = charts.without_gaps(original)
        for column, channel in enumerate(chart.traces):
            axes = figure.add_axes(
                (
                    (column * cell + 0.72) / width,
                    body[1] - (row * panel + 1.32) / height,
                    (cell - 0.92) / width,
                    1.0 / height,
                )
            )
            for phase in chart.phases:
                colour = PHASES[phase_colour(phase.name)]
                axes.axvspan(phase.start_s, phase.end_s, color=colour, alpha=0.16, linewidth=0)
            t_s, values = drawn_line(channel, 700)
            axes.plot(t_s, values, color=COLOURS["front"], linewidth=0.8)
            axes.set_xlim(*time_range(chart))
            axes.set_ylabel(scale_of(channel.unit).unit, fontsize=8)
            name = f"{numbers[chart.variant]} {short_name(chart.variant, 26)}"
            axes.set_title(
                f"{name} · {short_name(channel.channel, 34)}",
                fontsize=8.5,
                loc="left",
            )
            if row == len(every) - 1:
                axes.set_xlabel(charts.time_title(original, chart), fontsize=8, labelpad=1)
    _phase_legend(figure, [p.name for c in every for p in c.phases])
    return figure


def _phase_legend(figure: Figure, names: list[str], *, solid: bool = False) -> None:
    width, height = figure.get_size_inches()
    kinds = list(dict.fromkeys(phase_kind(name) for name in names))
    if not kinds:
        return
    patches = [
        Patch(
            facecolor=PHASES[phase_colour(kind)],
            alpha=1.0 if solid else 0.3,
            hatch=_HATCH.get(kind) if solid else None,
            edgecolor="white" if solid else "none",
            label=kind,
        )
        for kind in kinds
    ]
    figure.legend(
        handles=patches,
        loc="upper right",
        ncols=len(kinds),
        frameon=False,
        fontsize=8.5,
        bbox_to_anchor=(1 - 0.15 / width, 1 - 0.12 / height),
        columnspacing=1.2,
        handlelength=1.4,
    )


def _timeline(session: SessionReport) -> Figure | None:
    every = charts.timelines(session)
    if not every:
        return None
    numbers = numbering(session)
    names = [f"{numbers[c.variant]} {short_name(c.variant, 30)}" for c in every]
    figure, body = _canvas(session, "timeline", 10.0, 0.3 * len(names) + 0.8, "")
    axes = _axes(figure, body, (2.5, 0.5, 0.25, 0.1))
    for row, chart in enumerate(every):
        for phase in chart.phases:
            kind = phase_kind(phase.name)
            axes.barh(
                row,
                phase.end_s - phase.start_s,
                left=phase.start_s,
                height=0.62,
                color=PHASES[phase_colour(kind)],
                hatch=_HATCH.get(kind) if kind in PHASE_PATTERN else None,
                edgecolor="white",
                linewidth=0.4,
            )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("Device time (s)")
    _phase_legend(figure, [p.name for c in every for p in c.phases], solid=True)
    return figure
