"""`qhost trace show|export`: the samples of one run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from host.cli import terminal
from host.errors import UserError

if TYPE_CHECKING:
    from host.store.rows import RunData, RunRow

DbPath = Annotated[Path | None, typer.Option(help="Database of the run.")]
Mock = Annotated[bool, typer.Option("--mock", help="Use the database of emulated devices.")]
Run = Annotated[str, typer.Argument(help="Run id, the beginning of one, or latest.")]
SPARK_WIDTH = 32
SHOWN_OPERATORS = 15
OF_THE_CHECK = ("cold_load", "first_inference", "warm_load", "golden")  # they belong to no block


def register(app: typer.Typer) -> None:
    trace = typer.Typer(
        help="Power, thermal, clock and memory samples of a run.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )

    @trace.command("show")
    def show(
        run: Run,
        output: Annotated[
            Path | None, typer.Option(help="Draw into this .html, .png or .svg instead.")
        ] = None,
        db_path: DbPath = None,
        mock: Mock = False,
    ) -> None:
        """Show every channel of a run in the terminal, or draw its trace."""
        if output is not None:
            _draw(run, output, db_path, mock)
            print(output.resolve())
            return
        row, data, provenance = _read(run, db_path, mock)
        _print(row, data, provenance, _how_it_was_timed(row, db_path, mock))

    @trace.command("export")
    def export(
        run: Run,
        output: Annotated[Path, typer.Option(help="File to write.")],
        form: Annotated[
            str, typer.Option("--format", help="parquet, csv or perfetto.")
        ] = "parquet",
        db_path: DbPath = None,
        mock: Mock = False,
    ) -> None:
        """Write every sample of a run to a file."""
        from host.trace import export_trace

        if not output.resolve().parent.is_dir():
            raise UserError(f"The folder {output.parent} does not exist.", "Create it first.")
        row, data, provenance = _read(run, db_path, mock)
        export_trace(row, data, provenance, form, output)
        print(output.resolve())

    app.add_typer(trace, name="trace")


def _read(name: str, db_path: Path | None, mock: bool) -> tuple[RunRow, RunData, str]:
    from host.cli.report import open_store
    from quant.figures import Provenance

    with open_store(db_path, mock=mock) as store:
        row = store.run(name)
        emulated = store.session(row.session_id).emulated
        data = store.run_data(row.run_id)
    if not data.samples:
        raise UserError(
            f"Run {row.run_id} ({row.variant}, {row.status}) has no samples.",
            row.message or "Its raw data may have been removed by `qhost db vacuum`.",
        )
    provenance = Provenance.EMULATED_DEVICE if emulated else Provenance.MEASURED
    return row, data, provenance.value


def _draw(name: str, output: Path, db_path: Path | None, mock: bool) -> None:
    from dataclasses import replace

    from host.cli.report import open_store
    from host.cli.visualize import require_drawable, write_plot
    from host.report.load import load_session

    require_drawable(output)
    with open_store(db_path, mock=mock) as store:
        row = store.run(name)
        reports = load_session(store, row.session_id)
    for report in reports:
        runs = tuple(r for r in report.runs if r.run_id == row.run_id)
        if runs:
            write_plot(replace(report, runs=runs), "trace", output)


def _how_it_was_timed(row: RunRow, db_path: Path | None, mock: bool) -> list[str]:
    """The sampler's punctuality and cost, and how the device's clock relates to the host's."""
    from host.cli.report import open_store

    lines = []
    with open_store(db_path, mock=mock) as store:
        reports = store.sampler_reports(row.run_id)
        clocks = store.clock_estimates(row.session_id)
    ticks, seconds = sum(r.ticks for r in reports), sum(r.duration_s for r in reports)
    if seconds:
        late, cpu = sum(r.late_ticks for r in reports), sum(r.cpu_s for r in reports)
        worst = max(r.worst_late_ns for r in reports) / 1e6
        lines.append(
            f"Sampler: {ticks:,} ticks in {seconds:.0f} s, {late:,} late (worst {worst:.1f} ms), "
            f"{cpu / seconds:.1%} of a core"
        )
    for clock in clocks:
        if clock.uncertainty_ns < 5e7:  # else the device's clock does not go with the wall
            drift = "" if clock.drift_ppm is None else f", drift {clock.drift_ppm:+.1f} ppm"
            lines.append(
                f"Device clock: known to the host within {clock.uncertainty_ns / 1e6:.1f} ms{drift}"
            )
    return lines


def _print(row: RunRow, data: RunData, provenance: str, timing: list[str]) -> None:
    from host.trace import channel_summary, sparkline

    console = terminal.stdout()
    console.print(
        f"{row.run_id}: {row.model_name} {row.variant} on {row.device} ({provenance})",
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, right in (
        ("channel", False), ("unit", False), ("samples", True), ("updates/s", True),
        ("min", True), ("median", True), ("max", True), ("over time", False),
    ):  # fmt: skip
        table.add_column(
            column, justify="right" if right else "left", no_wrap=column == "over time"
        )
    width = max(8, min(SPARK_WIDTH, console.width - 70))
    for channel in data.channels:
        if channel.channel not in data.samples:
            continue
        n, rate, low, middle, high = channel_summary(channel, data)
        unit = channel.unit if channel.kind != "state" else "state"
        table.add_row(
            f"{channel.site}/{channel.name}",
            unit,
            str(n),
            f"{rate:.3g}" if rate else "constant",
            *(f"{v:.4g}" if abs(v) < 1e6 else f"{v / 1e6:.4g}M" for v in (low, middle, high)),
            sparkline(data.samples[channel.channel].value, width),
        )
    console.print(table)
    for line in timing:
        console.print(line, highlight=False, soft_wrap=True)
    if data.ops:
        console.print(_operators(data))
    first = min(m.t_start_ns for m in data.marks) if data.marks else 0
    phases = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("phase", "block", "from s", "to s"):
        phases.add_column(column, justify="left" if column == "phase" else "right")
    for m in data.marks:
        phases.add_row(
            m.phase,
            "" if m.phase in OF_THE_CHECK else str(m.block_index + 1),
            f"{(m.t_start_ns - first) / 1e9:.3f}",
            f"{(m.t_end_ns - first) / 1e9:.3f}",
        )
    console.print(phases)


def _operators(data: RunData) -> Table:
    """The operators that take the most cycles, from the pass of their own."""
    from host.trace import operator_shares

    rows = operator_shares(data.ops)
    title = f"{len(rows)} operators, by their share of the cycles (a pass of its own)"
    table = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    for column, right in (("operator", False), ("cycles", True), ("share", True)):
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for name, cycles, share in rows[:SHOWN_OPERATORS]:
        table.add_row(name, f"{cycles:,.0f}", f"{share:.1%}")
    return table
