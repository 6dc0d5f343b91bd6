"""The frame of every picture: style, colours, heading, banner, caption."""

from __future__ import annotations

import math
import textwrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from host.report.charts import Axis
from host.report.data import NOT_REAL, SessionReport
from host.report.marks import chart_of
from host.report.text import PROVENANCE_TEXT
from quant.figures import Provenance

# The light theme of templates/report.css.
INK, MUTED, LINE, GRID = "#14202b", "#56626f", "#d5dbe2", "#e4e8ed"

COLOURS = {"best": "#0a5fb4", "front": "#00705f", "other": "#6f7b88", "baseline": "#14202b"}

WARN_BG, WARN_INK, WARN_LINE = "#fff4dc", "#6b4300", "#b97700"

HALO = [withStroke(linewidth=2.5, foreground="white")]

STYLE: dict[Any, Any] = {
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
    "ytick.color": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "hatch.linewidth": 0.7,
    "svg.fonttype": "none",
    "svg.hashsalt": "qhost",  # the same rows give the same file
}


def canvas(
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


def axes_in(
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


def legend(figure: Figure, handles: list[Any]) -> None:
    """At the top right, beside the heading."""
    width, height = figure.get_size_inches()
    figure.legend(
        handles=handles,
        loc="upper right",
        ncols=len(handles),
        frameon=False,
        fontsize=8.5,
        bbox_to_anchor=(1 - 0.15 / width, 1 - 0.12 / height),
        columnspacing=1.2,
        handlelength=1.4,
    )


def label_axis(axes: Axes, axis: Axis, which: str, size: float = 9.5) -> None:
    text = f"{axis.title}\n{axis.hint}"
    (axes.set_xlabel if which == "x" else axes.set_ylabel)(text, fontsize=size, linespacing=1.3)


def grid_of(count: int, widest: int) -> tuple[int, int]:
    """Rows and columns for `count` panels, at most `widest` beside each other."""
    columns = min(count, widest)
    return math.ceil(count / columns), columns
