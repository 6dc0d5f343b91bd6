"""A report made of tables: the same rows as a page, Markdown, JSON or in the terminal."""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass
from datetime import datetime

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from host.report.data import NOT_REAL
from host.report.document import figure_document
from host.report.markdown import escaped, table_markdown
from host.report.page import render_sheet
from host.report.text import (
    ABSENT,
    EMULATED_NOTE,
    PROVENANCE_TEXT,
    interval_text,
    scale_of,
    value_text,
)
from quant.figures import Figure

Value = str | int | float | None | datetime | Figure

VERSION = 1


# A text column is never squeezed below this, so that a row keeps its name.
MIN_TEXT_WIDTH = 8


@dataclass(frozen=True)
class Table:
    """`rows` hold one value per column; a Figure brings its interval and provenance along."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    note: str = ""

    def numeric(self, column: int) -> bool:
        return any(isinstance(row[column], int | float | Figure) for row in self.rows)


@dataclass(frozen=True)
class Sheet:
    """`lead` is the answer in words; it stands first everywhere."""

    kind: str
    title: str
    subtitle: str
    lead: str
    findings: tuple[str, ...]
    tables: tuple[Table, ...]
    emulated: bool
    notes: tuple[str, ...] = ()

    def json(self) -> str:
        """Versioned JSON; a figure is written as in the comparison document."""
        return json.dumps(
            {
                "schema": {"name": f"qhost.report.{self.kind}", "version": VERSION},
                "title": self.title,
                "subtitle": self.subtitle,
                "emulated": self.emulated,
                "lead": self.lead,
                "findings": list(self.findings),
                "tables": [
                    {
                        "title": table.title,
                        "columns": list(table.columns),
                        "rows": [[_json(value) for value in row] for row in table.rows],
                        "note": table.note,
                    }
                    for table in self.tables
                ],
                "notes": list(self.notes),
            },
            indent=2,
            ensure_ascii=False,
            allow_nan=False,
        )

    def markdown(self) -> str:
        parts = [f"# {escaped(self.title)}", escaped(self.subtitle)]
        if self.emulated:
            parts.append(f"> **Emulated.** {EMULATED_NOTE}")
        parts.append(f"**{escaped(self.lead)}**")
        if self.findings:
            parts.append("\n".join(f"- {escaped(finding)}" for finding in self.findings))
        for table in self.tables:
            order = range(len(table.columns))
            first = next((i for i in order if table.numeric(i)), len(table.columns))
            parts.append(f"## {escaped(table.title)}")
            parts.append(
                table_markdown(
                    [escaped(c) for c in table.columns],
                    [[_markdown(value) for value in row] for row in table.rows],
                    first,
                )
            )
            if table.note:
                parts.append(escaped(table.note))
        parts += [escaped(note) for note in self.notes]
        return "\n\n".join(parts)

    def html(self) -> str:
        return render_sheet(self, EMULATED_NOTE if self.emulated else "", cell_html)

    def terminal(self) -> RenderableType:
        """Text cells fold where the terminal is narrow, figures do not. Empty columns are left out,
        and a heading is as narrow as what stands below it."""
        parts: list[RenderableType] = [Text(self.title, style="bold"), Text(self.subtitle)]
        if self.emulated:
            parts.append(Text(f"EMULATED: {EMULATED_NOTE}", style="bold yellow"))
        parts += [Text(""), Text(self.lead, style="bold")]
        parts += [Text(f"  {finding}") for finding in self.findings]
        for table in self.tables:
            drawn = RichTable(
                box=box.SIMPLE_HEAD,
                pad_edge=False,
                show_edge=False,
                title=Text(table.title),
                title_justify="left",
                title_style="bold",
            )
            cells = [[plain(value, break_="\n") for value in row] for row in table.rows]
            shown = [
                i for i in range(len(table.columns)) if not cells or any(row[i] for row in cells)
            ]
            for index in shown:
                column, number = table.columns[index], table.numeric(index)
                lines = [line for row in cells for line in row[index].splitlines()]
                width = max((len(line) for line in [*lines, *column.split()]), default=1)
                drawn.add_column(
                    Text(textwrap.fill(column, width) if number else column),
                    justify="right" if number else "left",
                    overflow="fold",
                    no_wrap=number,
                    min_width=None if number else min(width, MIN_TEXT_WIDTH),
                )
            for row in cells:
                drawn.add_row(*(Text(row[i]) for i in shown))
            parts += [Text(""), drawn]
            if table.note:
                parts.append(Text(table.note, style="dim"))
        parts += [Text(note, style="dim") for note in self.notes]
        return Group(*parts)


def plain(value: Value, *, break_: str = " ") -> str:
    """A cell as text. A figure: value, unit, interval and source, parted by `break_`."""
    if value is None:
        return ABSENT
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    if isinstance(value, Figure):
        if value.value is None:
            return f"{ABSENT} ({value.reason})" if value.reason else ABSENT
        text = value_text(value, unit=True) + ("" if value.valid else "!")
        if interval := interval_text(value):
            text += f"{break_}[{interval}]"
        return f"{text}{break_}{PROVENANCE_TEXT[value.provenance].short}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def cell_html(value: Value) -> dict[str, object]:
    """The parts of a cell for the page's template."""
    if isinstance(value, Figure) and value.value is not None:
        source = PROVENANCE_TEXT[value.provenance]
        return {
            "text": value_text(value),
            "unit": scale_of(value.unit, value.metric).unit,
            "interval": interval_text(value),
            "mark": source.mark,
            "source": source.long,
            "not_real": value.provenance in NOT_REAL,
            "valid": value.valid,
            "reason": value.reason,
        }
    return {"text": plain(value), "unit": "", "interval": "", "mark": "", "valid": True}


def _markdown(value: Value) -> str:
    return escaped(plain(value))


def _json(value: Value) -> object:
    if isinstance(value, Figure):
        return {"metric": value.metric, **figure_document(value)}
    if isinstance(value, datetime):
        return value.isoformat()
    return value
