"""`qhost gate`: fail the build when a session is worse than its baseline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from host.cli.report import database_path
from host.errors import ExitCode, UserError

if TYPE_CHECKING:
    from host.gate import Subject
    from host.store import Store


def gate(
    baseline: Annotated[
        str, typer.Option(help="Session id (or its beginning), or a <model>_comparison.json.")
    ],
    max_regression: Annotated[
        str, typer.Option(help="Limits, e.g. latency=5%,accuracy=0.5pt,energy=5%.")
    ],
    session: Annotated[
        str, typer.Option(help="Session to judge: id, the beginning of one, or latest.")
    ] = "latest",
    junit: Annotated[Path | None, typer.Option(help="JUnit XML file to write.")] = None,
    summary: Annotated[
        Path | None, typer.Option(help="Markdown summary to write, for the page of a CI job.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail also on what is too noisy to decide.")
    ] = False,
    db_path: Annotated[Path | None, typer.Option(help="Database to read.")] = None,
    mock: Annotated[
        bool, typer.Option("--mock", help="Use the database of emulated devices.")
    ] = False,
) -> int:
    """Exit 4 when a variant got worse than its baseline by a limit, beyond chance."""
    from host.gate import Outcome, judge, parse_limits
    from host.gate_session import failed, headline, session_subjects
    from host.gate_session import junit as junit_xml
    from host.gate_session import summary as summary_text
    from host.report.files import write_text
    from host.store import Store

    limits = parse_limits(max_regression)
    with Store.open(database_path(db_path, mock=mock), read_only=True) as store:
        current_id = store.session(session).session_id
        baseline_name, before = _baseline(store, baseline, current_id)
        judgements = judge(before, session_subjects(store, current_id), limits)
    for judgement in judgements:
        mark = "" if judgement.outcome is Outcome.PASS else f"{judgement.outcome.value.upper()} "
        print(f"{mark}{judgement.subject}, {judgement.metric}: {judgement.reason}")
    print(f"{current_id} against {baseline_name}: {headline(judgements)}")
    if junit is not None:
        write_text(junit, junit_xml(judgements, current_id, strict=strict))
    if summary is not None:
        write_text(summary, summary_text(judgements, limits, baseline_name, current_id))
    return ExitCode.REGRESSION if failed(judgements, strict=strict) else ExitCode.OK


def register(app: typer.Typer) -> None:
    app.command("gate")(gate)


def _baseline(store: Store, name: str, current_id: str) -> tuple[str, list[Subject]]:
    from host.gate_session import file_subjects, session_subjects

    path = Path(name)
    if path.suffix.lower() == ".json" or path.is_file():
        return name, file_subjects(path)
    session_id = store.session(name).session_id
    if session_id == current_id:
        raise UserError(
            f"Session {session_id} is both baseline and session.", "Name two different ones."
        )
    return session_id, session_subjects(store, session_id)
