"""The comparison as Markdown, for pull requests and notes."""

from __future__ import annotations

from collections.abc import Sequence

from host.errors import RunStatus
from host.report.data import RunReport, SessionReport
from host.report.text import (
    ABSENT,
    PROVENANCE_TEXT,
    arrow,
    column_decimals,
    higher_is_better,
    interval_text,
    metric_label,
    metric_unit,
    provenance_line,
    scale_of,
    value_text,
)
from host.report.verdict import decide


def escaped(text: str) -> str:
    """Text that stays itself within a table's cell."""
    for mark in "\\`*_[]<>|":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def table_markdown(head: Sequence[str], rows: Sequence[Sequence[str]], numeric: int = 1) -> str:
    """A pipe table; columns from index `numeric` on are set right. Cells are taken as they are."""
    rule = ["---" if i < numeric else "---:" for i in range(len(head))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def comparison_markdown(session: SessionReport) -> str:
    """Verdict, table with intervals and provenance, failures and notes."""
    verdict = session.verdict or decide(session)
    metrics = session.metrics()
    parts = [
        f"# {escaped(session.model_name)} on {escaped(session.device)}",
        f"Session `{session.session_id}`, {session.created_at:%Y-%m-%d %H:%M}, "
        f"{session.model_type}, {session.soc}.",
    ]
    if session.emulated:
        basis = f" Basis: {escaped(session.emulation_basis)}." if session.emulation_basis else ""
        parts.append(
            f"> **Emulated device.** No time, power, energy, heat or memory figure was "
            f"measured.{basis}"
        )
    parts.append(f"**{escaped(verdict.headline)}**")
    if verdict.reasons:
        parts.append("\n".join(f"- {escaped(reason)}" for reason in verdict.reasons))
    head = ["Variant", *(_head(session, m) for m in metrics)]
    rows = [
        [_name(run, verdict.variant), *(_cell(session, run, m) for m in metrics)]
        for run in session.runs
    ]
    parts.append(table_markdown(head, rows))
    failures = [
        f"- `{run.variant}` {run.status.value}"
        f"{f' ({run.failure_class})' if run.failure_class else ''}: {escaped(run.message)}"
        for run in session.runs
        if run.status is not RunStatus.OK
    ]
    if failures:
        parts.append("\n".join(failures))
    used = dict.fromkeys(p for m in metrics for p in session.provenances(m))
    marks = "; ".join(f"{PROVENANCE_TEXT[p].mark} = {PROVENANCE_TEXT[p].long}" for p in used)
    parts.append(f"In brackets: 95 % intervals. Provenance: {marks}.")
    return "\n\n".join(parts)


def _head(session: SessionReport, metric: str) -> str:
    unit = scale_of(metric_unit(session, metric), metric).unit
    words = f"{unit} {arrow(higher_is_better(session, metric))}".strip()
    label = metric_label(session, metric, short=True)
    return f"{label}<br>{words}<br>{provenance_line(session, metric)}"


def _name(run: RunReport, best: str | None) -> str:
    name = f"`{run.variant}`"
    return f"**{name}** (ship this)" if run.variant == best else name


def _cell(session: SessionReport, run: RunReport, metric: str) -> str:
    figure = run.figures.get(metric)
    if figure is None or figure.value is None:
        return ABSENT
    decimals = column_decimals(session, metric)
    text = value_text(figure, decimals=decimals)
    if interval := interval_text(figure, decimals=decimals):
        text += f" [{interval}]"
    if not figure.valid:
        text += f" (not valid: {escaped(figure.reason)})"
    if provenance_line(session, metric) == "mixed":
        text += f" {PROVENANCE_TEXT[figure.provenance].mark}"
    return text
