"""The pictures of single runs: layers, traces, the session's timeline."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from host.report import charts
from host.report.data import SessionReport
from host.report.lines import drawn_line, time_title, without_gaps
from host.report.marks import (
    PHASE_PATTERN,
    numbering,
    phase_colour,
    phase_kind,
    phase_word,
    short_name,
    time_range,
)
from host.report.static_frame import COLOURS, INK, MUTED, axes_in, canvas, grid_of, legend
from host.report.text import PROVENANCE_TEXT, scale_of

PHASES = {
    "phaseidle": "#7a8794",
    "phaseload": "#7b3fa0",
    "phasefirst": "#b3246b",
    "phasewarm": "#c98500",
    "phasetimed": "#0a5fb4",
    "phasecool": "#00808a",
    "phaseother": "#4d7c0f",
}

HATCH = {
    "warmup": "///",
    "load": "xxx",
    "first inference": "+++",
    "idle": "...",
    "golden": "---",
}


def layers(session: SessionReport) -> Figure | None:
    every = charts.layers(session)
    if not every:
        return None
    numbers = numbering(session)
    rows, columns = grid_of(len(every), 3)
    caption = "SQNR of each quantized weight against the float one; the ring marks the lowest."
    width = max(columns * 4.0, 6.4)
    figure, body = canvas(session, "layers", width, rows * 2.4, caption)
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
                (column * cell + 0.68) / width,
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
        legend(figure, figure.axes[0].get_legend_handles_labels()[0])
    return figure


def _tail(name: str, limit: int = 24) -> str:
    """The end of a node's name, which is the part that tells layers apart."""
    return name if len(name) <= limit else "…" + name[-(limit - 1) :]


def trace(session: SessionReport) -> Figure | None:
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
    figure, body = canvas(session, "trace", width, panel * len(every) + 0.25, caption)
    height = figure.get_size_inches()[1]
    cell = width / columns
    for row, original in enumerate(every):
        chart = without_gaps(original)
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
                axes.set_xlabel(time_title(original, chart), fontsize=8, labelpad=1)
    _phase_legend(figure, [p.name for c in every for p in c.phases])
    return figure


def _phase_legend(figure: Figure, names: list[str], *, solid: bool = False) -> None:
    kinds = list(dict.fromkeys(phase_kind(name) for name in names))
    if not kinds:
        return
    patches = [
        Patch(
            facecolor=PHASES[phase_colour(kind)],
            alpha=1.0 if solid else 0.3,
            hatch=HATCH.get(kind) if solid else None,
            edgecolor="white" if solid else "none",
            label=phase_word(kind),
        )
        for kind in kinds
    ]
    legend(figure, patches)


def timeline(session: SessionReport) -> Figure | None:
    every = charts.timelines(session)
    if not every:
        return None
    numbers = numbering(session)
    names = [f"{numbers[c.variant]} {short_name(c.variant, 30)}" for c in every]
    figure, body = canvas(session, "timeline", 10.0, 0.3 * len(names) + 0.8, "")
    axes = axes_in(figure, body, (2.5, 0.5, 0.25, 0.1))
    for row, chart in enumerate(every):
        for phase in chart.phases:
            kind = phase_kind(phase.name)
            axes.barh(
                row,
                phase.end_s - phase.start_s,
                left=phase.start_s,
                height=0.62,
                color=PHASES[phase_colour(kind)],
                hatch=HATCH.get(kind) if kind in PHASE_PATTERN else None,
                edgecolor="white",
                linewidth=0.4,
            )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_xlabel("Device time (s)")
    _phase_legend(figure, [p.name for c in every for p in c.phases], solid=True)
    return figure
