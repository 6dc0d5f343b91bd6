"""The charts as PNG or SVG by Matplotlib: the same data, marks and words as the page's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from host.report import charts, static_compare, static_runs
from host.report.data import SessionReport
from host.report.files import write_whole
from host.report.static_frame import STYLE
from host.report.verdict import with_verdict

_DPI = 144


def save_plot(session: SessionReport, plot_type: str, path: Path, *, dpi: int = _DPI) -> None:
    """Draw one plot type into `path`, PNG or SVG by its suffix; `dpi` is of a PNG.

    Raises:
        UserError: the session has nothing to draw for this plot type.
    """
    with mpl.rc_context(STYLE):
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
        "pareto": static_compare.pareto,
        "bars": static_compare.bars,
        "radar": static_compare.radar,
        "heatmap": static_compare.heatmap,
        "layers": static_runs.layers,
        "trace": static_runs.trace,
        "timeline": static_runs.timeline,
    }
    figure = draw[plot_type](session)
    if figure is None:
        raise charts.nothing_to_draw(session, plot_type)
    return figure
