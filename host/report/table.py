"""The comparison in the terminal: as many tables as the width needs, never a cut figure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from host.errors import RunStatus
from host.report.data import MAIN_METRICS, RunReport, SessionReport
from host.report.text import (
    ABSENT,
    EMULATED_NOTE,
    PROVENANCE_TEXT,
    accuracy_name,
    arrow,
    column_decimals,
    higher_is_better,
    interval_text,
    metric_label,
    metric_unit,
    provenance_line,
    scale_of,
    value_text,
    wrap_variant,
)
from host.report.verdict import decide

_GAP = 3  # columns between two cells
_NAME_MAX = 28
_NAME_MAX_NARROW = 20  # lets four figures stand beside the name in 80 columns


def session_table(
    session: SessionReport, width: int, *, metrics: Iterable[str] = MAIN_METRICS
) -> RenderableType:
    """Verdict, tables and notes, for a terminal of `width` columns.

    Each figure has its 95 % interval under it. The provenance stands under the column's name;
    where a column mixes provenances, each of its figures carries a letter.
    """
    shown = session.metrics(metrics)
    verdict = session.verdict or decide(session)
    columns = [_column(session, metric) for metric in shown]
    name_max = _NAME_MAX if width >= 100 else _NAME_MAX_NARROW
    name_width = min(max([cell_len(run.variant) for run in session.runs] + [7]), name_max) + 2
    parts: list[RenderableType] = [_heading(session), Text("")]
    parts.append(Text(verdict.headline, style="bold"))
    parts += [_item(reason, width) for reason in verdict.reasons]
    rows = [i for i, run in enumerate(session.runs) if any(run.figure(m) for m in shown)]
    for number, group in enumerate(_chunks([_width(c) for c in columns], width - name_width)):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 1), show_edge=False)
        table.add_column(Text("Variant"), width=name_width, no_wrap=True)
        for index in group:
            head, *_ = columns[index]
            table.add_column(
                Text(head), justify="right", no_wrap=True, width=_width(columns[index])
            )
        # Runs without a result are told once: in the first table.
        for row in range(len(session.runs)) if number == 0 else rows:
            run = session.runs[row]
            table.add_row(
                _name(run, run.variant == verdict.variant, name_width),
                *(_styled(columns[index][row + 1]) for index in group),
            )
        parts += [Text(""), table]
    parts += _notes(session, shown)
    return Group(*parts)


def _item(text: str, width: int) -> Text:
    """A line of a list, wrapped with a hanging indent; no blanks at the ends of lines."""
    return Text(
        "\n".join(
            textwrap.wrap(
                text, max(width, 40), initial_indent="- ", subsequent_indent="  ",
                break_on_hyphens=False,
            )
        )
    )  # fmt: skip


def _heading(session: SessionReport) -> Text:
    text = Text()
    text.append(session.model_name, style="bold")
    text.append(f" ({session.model_type}) on {session.device}")
    if session.soc and session.soc not in session.device:
        text.append(f" ({session.soc})")
    text.append(f" · session {session.session_id}", style="dim")
    if session.emulated:
        basis = f" Basis: {session.emulation_basis}." if session.emulation_basis else ""
        text.append(f"\nEMULATED DEVICE. {EMULATED_NOTE}{basis}", style="bold yellow")
    return text


def _column(session: SessionReport, metric: str) -> list[str]:
    """The header and then one cell per run; lines within a cell are separated by newlines."""
    unit = scale_of(metric_unit(session, metric), metric).unit
    if metric == "accuracy" and (name := accuracy_name(session)):
        unit = f"{name} {unit}"
    better = arrow(higher_is_better(session, metric))
    source = provenance_line(session, metric)
    head = f"{metric_label(session, metric, short=True)}\n{unit} {better}".rstrip()
    decimals = column_decimals(session, metric)
    cells = [f"{head}\n{source}"]
    for run in session.runs:
        cells.append(_cell(run, metric, decimals, mixed=source == "mixed"))
    return cells


def _cell(run: RunReport, metric: str, decimals: int, *, mixed: bool) -> str:
    figure = run.figures.get(metric)
    if figure is None or figure.value is None:
        return ABSENT
    value = value_text(figure, decimals=decimals)
    if not figure.valid:
        value += "!"
    if mixed:
        value += f" {PROVENANCE_TEXT[figure.provenance].mark}"
    return f"{value}\n{interval_text(figure, decimals=decimals)}"


def _width(column: Sequence[str]) -> int:
    return max(cell_len(line) for cell in column for line in cell.split("\n"))


def _chunks(widths: list[int], room: int) -> list[list[int]]:
    """Column indices by table: each table's columns fit into `room`."""
    groups: list[list[int]] = []
    used = room + 1
    for index, width in enumerate(widths):
        if used + width + _GAP > room:
            groups.append([])
            used = 0
        groups[-1].append(index)
        used += width + _GAP
    return groups


def _name(run: RunReport, recommended: bool, width: int) -> Text:
    lines = wrap_variant(run.variant, width - 2)
    text = Text("▶ " if recommended else "  ")
    text.append("\n  ".join(lines), style="bold" if recommended else "")
    if run.status is not RunStatus.OK:
        text.append(f"\n  {run.status.value}", style="red")
    return text


def _styled(cell: str) -> Text:
    value, _, interval = cell.partition("\n")
    text = Text(value)
    if interval:
        text.append(f"\n{interval}", style="dim")
    return text


def _notes(session: SessionReport, metrics: Sequence[str]) -> list[RenderableType]:
    """What the tables leave unsaid: failures, absent and invalid figures, marks, session notes."""
    lines: list[Text] = []
    for run in session.runs:
        if run.status is RunStatus.OK:
            continue
        kind = f" ({run.failure_class})" if run.failure_class else ""
        text = Text()
        text.append(f"{run.variant} {run.status.value}{kind}", style="red")
        text.append(f": {run.message or 'no reason recorded'}")
        lines.append(text)
    for (metric, valid, reason), variants in _remarks(session, metrics).items():
        what = "missing" if valid is None else "not valid (!)"
        label = metric_label(session, metric, short=True)
        lines.append(Text(f"{label} {what}, {', '.join(variants)}: {reason}"))
    if any(provenance_line(session, m) == "mixed" for m in metrics):
        used = dict.fromkeys(p for m in metrics for p in session.provenances(m))
        marks = ", ".join(f"{PROVENANCE_TEXT[p].mark} {PROVENANCE_TEXT[p].long}" for p in used)
        lines.append(Text(f"Provenance marks: {marks}."))
    if any(interval_text(f) for run in session.runs for f in run.figures.values()):
        lines.append(Text("Second line of a row: 95 % interval.", style="dim"))
    lines += [Text(note, style="dim") for note in session.notes]
    return [Text(""), *lines] if lines else []


def _remarks(
    session: SessionReport, metrics: Sequence[str]
) -> dict[tuple[str, bool | None, str], list[str]]:
    found: dict[tuple[str, bool | None, str], list[str]] = {}
    for metric in metrics:
        for run in session.runs:
            figure = run.figures.get(metric)
            if figure is None or not figure.reason:
                continue
            if figure.value is None:
                found.setdefault((metric, None, figure.reason), []).append(run.variant)
            elif not figure.valid:
                found.setdefault((metric, False, figure.reason), []).append(run.variant)
    return found
