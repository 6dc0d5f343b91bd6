"""`qhost query`: SQL over the database, read-only."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from host.cli.report import database_path
from host.errors import UserError, unknown_name

if TYPE_CHECKING:
    import pyarrow as pa

# More does not help on a terminal; the other formats have no limit.
TABLE_ROWS = 1000
SUFFIXES = {
    ".csv": "csv",
    ".json": "json",
    ".html": "html",
    ".md": "markdown",
    ".parquet": "parquet",
}


def query(
    sql: Annotated[
        str, typer.Option(help="One SELECT over quantization_results, all_results, ...")
    ],
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="table (default), csv, json, html, markdown or parquet; or by --output's name.",
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="File to write instead of stdout.")] = None,
    db_path: Annotated[Path | None, typer.Option(help="Database to read.")] = None,
    mock: Annotated[
        bool, typer.Option("--mock", help="Use the database of emulated devices.")
    ] = False,
) -> None:
    """Ask the database in SQL. Says on stderr what the figures it read are worth."""
    from host.query import FORMATS, provenance_line, render, run_query, write_parquet
    from host.report.files import write_text, write_whole

    if format_ is not None and format_ not in FORMATS:
        raise unknown_name("format", format_, FORMATS)
    style = format_ or (SUFFIXES.get(output.suffix.lower(), "table") if output else "table")
    if style == "parquet" and output is None:
        raise UserError("Parquet is binary.", "Name a file with --output.")
    answer = run_query(database_path(db_path, mock=mock), sql)
    if style == "parquet" and output is not None:
        table = answer.table
        write_whole(output, lambda part: write_parquet(table, part))
    elif style == "table":
        text = _table_text(answer.table, output)
        if output is not None:
            write_text(output, text)
    elif output is not None:
        write_text(output, render(answer.table, style) + "\n")
    else:
        print(render(answer.table, style))
    if output is not None:
        print(output.resolve())
    print(f"qhost: {provenance_line(answer.provenance)}", file=sys.stderr)


def register(app: typer.Typer) -> None:
    app.command("query")(query)


def _table_text(table: pa.Table, output: Path | None) -> str:
    """Prints the table, or returns its text when it goes to a file."""
    import io

    from rich.console import Console
    from rich.table import Table

    from host.query import cell_text

    shown = table.slice(0, TABLE_ROWS)
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for field in shown.schema:
        right = str(field.type) in {"double", "float"} or "int" in str(field.type)
        grid.add_column(field.name, justify="right" if right else "left", overflow="fold")
    for row in zip(*(column.to_pylist() for column in shown.columns), strict=True):
        grid.add_row(*(cell_text(value) for value in row))
    buffer = io.StringIO()
    # A pipe or a file has no width: wide enough that no value is cut.
    wide = None if output is None and sys.stdout.isatty() else 20 + 40 * table.num_columns
    console = Console(file=buffer if output else None, width=wide, highlight=False, markup=False)
    console.print(grid)
    left = table.num_rows - shown.num_rows
    if left > 0:
        console.print(f"... and {left} more rows; --format csv gives all of them.")
    return buffer.getvalue()
