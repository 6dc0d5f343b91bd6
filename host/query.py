"""SQL of the user: one statement that reads, its result in a format, its figures' provenance."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

import duckdb
import pyarrow as pa

from host.errors import UserError
from host.store import Store
from quant.figures import Provenance

FORMATS = ("table", "csv", "json", "html", "markdown", "parquet")
READING = frozenset({"SELECT", "EXPLAIN", "MULTI"})  # MULTI is what PIVOT becomes
VIEWS = ("quantization_results", "all_results", "best_figures", "figures")


@dataclass(frozen=True)
class Answer:
    """`provenance`: figures by provenance in what the query read; empty where it read none."""

    table: pa.Table
    provenance: dict[Provenance, int]


def run_query(path: Path, sql: str, wait_s: float = 10.0) -> Answer:
    """The result of one SELECT. No file but `path` can be reached, and nothing is written.

    Raises UserError: not SQL, more than one statement, one that writes, or one that fails.
    """
    with Store.open(path, read_only=True, locked=True, wait_s=wait_s) as store:
        try:
            statements = store.connection.extract_statements(sql)
        except duckdb.Error as error:
            raise _sql_error(error) from error
        if len(statements) != 1:
            count = f"{len(statements)} statements" if statements else "no statement"
            raise UserError(f"The query has {count}.", "Give exactly one SELECT.")
        kind = statements[0].type.name
        if kind not in READING:
            raise _writes(kind)
        try:
            table = store.table(sql)
            return Answer(table, _provenance(store, sql, table))
        except duckdb.InvalidInputException as error:
            if "read-only" in str(error):
                raise _writes("writing") from error
            raise _sql_error(error) from error
        except duckdb.Error as error:
            raise _sql_error(error) from error


def provenance_line(counts: dict[Provenance, int]) -> str:
    """`figures read: 12 emulated_device, 4 file`."""
    parts = ", ".join(f"{count} {provenance.value}" for provenance, count in counts.items())
    return f"figures read: {parts or 'none'}"


def render(table: pa.Table, style: str) -> str:
    """`table` as text in one of FORMATS but `table` and `parquet`."""
    names = table.column_names
    rows = [[_plain(row[i]) for i in range(len(names))] for row in _rows(table)]
    if style == "json":
        records = [dict(zip(names, row, strict=True)) for row in rows]
        return json.dumps(records, indent=2, ensure_ascii=False, allow_nan=False)
    if style == "csv":
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(names)
        # In full: a CSV is read by programs.
        writer.writerows(
            [str(v) if isinstance(v, float) else cell_text(v) for v in r] for r in rows
        )
        return buffer.getvalue().rstrip("\n")
    cells = [[cell_text(value) for value in row] for row in rows]
    if style == "markdown":
        lines = ["| " + " | ".join(map(_markdown, names)) + " |", "|" + " --- |" * len(names)]
        lines += ["| " + " | ".join(map(_markdown, row)) + " |" for row in cells]
        return "\n".join(lines)
    assert style == "html", style
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in cells
    )
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>qhost query</title>\n'
        "<style>body{font:14px system-ui,sans-serif;margin:2rem}table{border-collapse:collapse}"
        "th,td{padding:.3rem .7rem;border-bottom:1px solid #ddd;text-align:left;"
        "font-variant-numeric:tabular-nums}</style>\n"
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</html>"
    )


def write_parquet(table: pa.Table, path: Path) -> None:
    # Imported here: a tenth of a second that other formats need not wait.
    from pyarrow import parquet

    parquet.write_table(table, path, compression="zstd")


def cell_text(value: object) -> str:
    """One value as text; absent ones are empty."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def _rows(table: pa.Table) -> list[tuple[object, ...]]:
    # By position: a query may name two columns alike.
    columns = [column.to_pylist() for column in table.columns]
    return list(zip(*columns, strict=True)) if columns else []


def _plain(value: object) -> object:
    """A value that JSON has: no NaN or infinity, times as ISO text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return str(value)


def _markdown(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def _provenance(store: Store, sql: str, table: pa.Table) -> dict[Provenance, int]:
    """Figures behind the result: of its runs where it names them, else of all it could read."""
    # By name: DuckDB's own list of a statement's tables cannot see into views with USING.
    words = set(re.findall(r"\w+", sql.lower()))
    touched = [view for view in VIEWS if view in words]
    if not touched:
        return {}
    only_valid = touched == ["quantization_results"]
    where = "WHERE valid AND runs.status = 'ok'" if only_valid else "WHERE true"
    parameters: list[object] = []
    if "run_id" in table.column_names:
        where += " AND run_id IN (SELECT unnest($1))"
        parameters.append([str(run_id) for run_id in set(table["run_id"].to_pylist())])
    rows = store.table(
        f"SELECT provenance, count(*) AS n FROM best_figures JOIN runs USING (run_id) {where} "
        "GROUP BY provenance ORDER BY provenance",
        parameters,
    )
    return {Provenance(row["provenance"]): row["n"] for row in rows.to_pylist()}


def _writes(kind: str) -> UserError:
    what = "statement that writes" if kind == "writing" else f"{kind} statement"
    return UserError(
        f"`qhost query` only reads; this is a {what}.",
        "Give a SELECT. To change a database see `qhost db`.",
    )


def _sql_error(error: duckdb.Error) -> UserError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    message = lines[0].removesuffix("!").removesuffix(".") if lines else "The query failed"
    hints = [line for line in lines[1:] if line.startswith(("Did you mean", "Candidate"))]
    known = "The views are quantization_results and all_results."
    return UserError(f"{message}.", (hints[0].rstrip(".") if hints else known))
