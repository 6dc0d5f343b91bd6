"""`qhost visualize`: one plot of a session or of a comparison file, as a page or a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from host.cli.report import chosen_reports
from host.errors import UserError, unknown_name

if TYPE_CHECKING:
    from host.report.data import SessionReport

SUFFIXES = (".html", ".png", ".svg")
SENSITIVITY = "sensitivity"  # the one plot of an artifact; all others are of a session


def visualize(
    output_path: Annotated[
        Path, typer.Option(help="File to write: .html (interactive), .png or .svg.")
    ],
    plot_type: Annotated[
        str,
        typer.Option(
            help="radar, pareto, bars, heatmap, layers, trace or timeline; of a .qnn sensitivity."
        ),
    ] = "pareto",
    results_path: Annotated[
        Path | None,
        typer.Option(help="Comparison file, <model>_comparison.json, or a .qnn for sensitivity."),
    ] = None,
    session: Annotated[
        str | None, typer.Option(help="Session id, the beginning of one, or latest (default).")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Which model, where the session has several.")
    ] = None,
    db_path: Annotated[Path | None, typer.Option(help="Database of the session.")] = None,
    mock: Annotated[
        bool, typer.Option("--mock", help="Use the database of emulated devices.")
    ] = False,
    artifacts: Annotated[
        Path | None,
        typer.Option(help="Folder with the .qnn files, for layers (<output dir>/<session>)."),
    ] = None,
) -> None:
    """Draw accuracy against latency, all metrics, layers, traces or the timeline."""
    from host.report.charts import PLOT_TYPES
    from host.report.document import read

    if plot_type == SENSITIVITY:
        from host.report.fronts import save_fronts

        if results_path is None or results_path.suffix != ".qnn":
            raise UserError(
                "A sensitivity plot is drawn from an artifact.", "Give --results-path X.qnn."
            )
        save_fronts(results_path, output_path)
        print(output_path.resolve())
        return
    if plot_type not in PLOT_TYPES:
        raise unknown_name("plot type", plot_type, (*PLOT_TYPES, SENSITIVITY))
    require_drawable(output_path)
    if results_path is not None and session is not None:
        raise UserError("--results-path and --session both given.", "Give one of them.")
    if results_path is not None:
        report = read(results_path)
    else:
        reports = chosen_reports(session or "latest", db_path, artifacts, mock=mock, model=model)
        if len(reports) > 1:
            raise UserError(
                f"The session has {len(reports)} models: "
                f"{', '.join(r.model_name for r in reports)}.",
                "Choose one with --model.",
            )
        report = reports[0]
    write_plot(report, plot_type, output_path)
    print(output_path.resolve())


def register(app: typer.Typer) -> None:
    app.command("visualize")(visualize)


def require_drawable(path: Path) -> None:
    """UserError for a file that no plot can be."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"Cannot draw into {path.name!r}.", f"End the name in {', '.join(SUFFIXES)}."
        )


def write_plot(report: SessionReport, plot_type: str, path: Path) -> None:
    if path.suffix.lower() != ".html":
        from host.report.static import save_plot

        save_plot(report, plot_type, path)
        return
    from host.report.files import write_text
    from host.report.page import plot_page

    write_text(path, plot_page(report, plot_type))
