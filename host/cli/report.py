"""`qhost report`: what a database says, as a page, Markdown or JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType

from host.cli import terminal
from host.config import resolve
from host.errors import UserError, unknown_name

if TYPE_CHECKING:
    from host.report.data import SessionReport
    from host.store import Store

FORMATS = ("html", "markdown", "json")
REAL_DB, MOCK_DB = "qhost.duckdb", "qhost-mock.duckdb"


def report(
    kind: Annotated[
        str,
        typer.Argument(help="quantization_comparison, device_health, regression or energy."),
    ] = "quantization_comparison",
    format_: Annotated[
        str | None,
        typer.Option("--format", help="html, markdown or json; default: by the name of --output."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="File to write; without it the terminal.")
    ] = None,
    session: Annotated[
        str | None,
        typer.Option(
            help="Session id, the beginning of one, or latest (default; device_health: all)."
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="regression: session to compare with; default: the one before."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Which model, where the session has several.")
    ] = None,
    db_path: Annotated[Path | None, typer.Option(help="Database to read.")] = None,
    mock: Annotated[
        bool, typer.Option("--mock", help="Use the database of emulated devices.")
    ] = False,
    artifacts: Annotated[
        Path | None,
        typer.Option(help="Folder with the .qnn files, for layers (<output dir>/<session>)."),
    ] = None,
) -> None:
    """Compare the variants of a session, or tell the health, drift or energy of devices."""
    from host.report.sheets import KINDS

    known = ("quantization_comparison", *KINDS)
    if kind not in known:
        raise unknown_name("report", kind, known)
    if baseline is not None and kind != "regression":
        raise UserError(f"--baseline means nothing to {kind}.", "It belongs to regression.")
    style = _format(format_, output)
    if kind == "quantization_comparison":
        reports = chosen_reports(session or "latest", db_path, artifacts, mock=mock, model=model)
        if style is None:
            console = terminal.stdout()
            for one in reports:
                console.print(_table(one, console.width))
            return
        texts = [_comparison(one, style) for one in reports]
        if len(texts) > 1 and style != "markdown":
            raise UserError(
                f"The session has {len(texts)} models: {', '.join(r.model_name for r in reports)}.",
                "Choose one with --model.",
            )
        _emit("\n\n".join(texts), output)
        return
    with open_store(db_path, mock=mock) as store:
        sheet = KINDS[kind](store, session, baseline)
    if style is None:
        terminal.stdout().print(sheet.terminal())
        return
    _emit({"html": sheet.html, "markdown": sheet.markdown, "json": sheet.json}[style](), output)


def register(app: typer.Typer) -> None:
    app.command("report")(report)


def database_path(db_path: Path | None, *, mock: bool) -> Path:
    """Which database to read: as named or configured, else the default of the kind of device."""
    settings = resolve({"db_path": db_path, "mock": mock or None})
    configured: Path | None = settings["db_path"].value
    if configured is not None:
        return configured
    wanted, other = (MOCK_DB, REAL_DB) if settings["mock"].value else (REAL_DB, MOCK_DB)
    if not Path(wanted).exists() and Path(other).exists():
        flag = "without --mock" if other == REAL_DB else "with --mock"
        raise UserError(f"There is no {wanted} here, but {other}.", f"Read that one {flag}.")
    return Path(wanted)


def open_store(db_path: Path | None, *, mock: bool) -> Store:
    from host.store import Store

    return Store.open(database_path(db_path, mock=mock), read_only=True)


def chosen_reports(
    session: str,
    db_path: Path | None,
    artifacts: Path | None,
    *,
    mock: bool,
    model: str | None = None,
) -> list[SessionReport]:
    """The reports of a session, of all its models or of the one named.

    Raises:
        UserError: no such session or model (with the nearest names).
    """
    from host.report.load import load_session

    if artifacts is not None and not artifacts.is_dir():
        raise UserError(f"{artifacts} is not a folder.", "Give the folder of the .qnn files.")
    with open_store(db_path, mock=mock) as store:
        session_id = store.session(session).session_id
        folder = artifacts or resolve()["output_dir"].value / session_id
        reports = load_session(store, session_id, artifacts=sorted(folder.glob("*.qnn")))
    if model is None:
        return reports
    found = [one for one in reports if one.model_name == model]
    if not found:
        raise unknown_name("model", model, [one.model_name for one in reports])
    return found


def _format(format_: str | None, output: Path | None) -> str | None:
    """The format asked for, or the one of the output's name; None: a table in the terminal."""
    if format_ is not None:
        if format_ not in FORMATS:
            raise unknown_name("format", format_, FORMATS)
        return format_
    if output is None:
        return None
    by_name = {".html": "html", ".md": "markdown", ".json": "json"}
    if output.suffix.lower() not in by_name:
        raise UserError(
            f"No format known for {output.name!r}.", f"Give --format {'|'.join(FORMATS)}."
        )
    return by_name[output.suffix.lower()]


def _comparison(one: SessionReport, style: str) -> str:
    from host.report.document import dumps
    from host.report.markdown import comparison_markdown
    from host.report.page import report_page

    return {"html": report_page, "markdown": comparison_markdown, "json": dumps}[style](one)


def _table(one: SessionReport, width: int) -> RenderableType:
    from host.report.table import session_table

    return session_table(one, width)


def _emit(text: str, output: Path | None) -> None:
    from host.report.files import write_text

    if output is None:
        print(text)
        return
    write_text(output, text if text.endswith("\n") else text + "\n")
    print(output.resolve())
