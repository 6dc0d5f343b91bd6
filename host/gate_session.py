"""What the gate reads and writes: sessions and comparison files in, words and JUnit XML out."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from host.errors import UserError
from host.gate import Judgement, Limit, Outcome, Subject
from host.measure import block_values
from host.report.document import read
from host.store import Store
from host.store.rows import Floats
from quant.figures import Provenance


def session_subjects(store: Store, session_id: str) -> list[Subject]:
    """The runs of a session, with their blocks. Raises UserError when it has none."""
    runs = store.runs_of(session_id)
    if not runs:
        raise UserError(
            f"Session {session_id} has no runs.", "It was interrupted before its first job."
        )
    plain = [f"{run.model_name} {run.variant} {run.soc}" for run in runs]
    twice = Counter(plain)
    return [
        Subject(
            name if twice[name] == 1 else f"{name} {run.device_serial}",
            run.status,
            {figure.metric: figure for figure in store.best_figures_of(run.run_id)},
            block_values(store.run_data(run.run_id)),
            run.message,
            run.accuracy_higher_is_better,
            run.variant,
            _scores(store, run.run_id),
        )
        for name, run in zip(plain, runs, strict=True)
    ]


def _scores(store: Store, run_id: str) -> Floats | None:
    for engine in (Provenance.MEASURED, Provenance.HTP_EMULATOR, Provenance.ORT_CPU):
        scores = store.scores_of(run_id, engine)
        if scores is not None:
            return scores
    return None


def file_subjects(path: Path) -> list[Subject]:
    """The runs of a `<model>_comparison.json`. Raises UserError for any other file."""
    session = read(path)
    return [
        Subject(
            f"{session.model_name} {run.variant} {session.soc}",
            run.status,
            run.figures,
            run.blocks,
            message=run.message,
            accuracy_higher_is_better=run.accuracy_higher_is_better,
            variant=run.variant,
        )
        for run in session.runs
    ]


def failed(judgements: Sequence[Judgement], *, strict: bool) -> bool:
    """Whether the gate is closed; `strict` closes it also for what is undecided."""
    closing = {Outcome.REGRESSION, Outcome.UNDECIDED} if strict else {Outcome.REGRESSION}
    return any(judgement.outcome in closing for judgement in judgements)


def headline(judgements: Sequence[Judgement]) -> str:
    """One line: how many comparisons came out how."""
    counts = Counter(judgement.outcome for judgement in judgements)
    parts = [f"{counts[outcome]} {outcome.value}" for outcome in Outcome if counts[outcome]]
    return f"{len(judgements)} comparisons: {', '.join(parts)}" if parts else "nothing to compare"


def summary(
    judgements: Sequence[Judgement], limits: Sequence[Limit], baseline: str, session: str
) -> str:
    """Markdown for a CI job's summary page, regressions first."""
    order = (Outcome.REGRESSION, Outcome.UNDECIDED, Outcome.MISSING, Outcome.PASS)
    rows = sorted(judgements, key=lambda judgement: order.index(judgement.outcome))
    lines = [
        f"### qhost gate: {headline(judgements)}",
        "",
        f"Session `{session}` against `{baseline}`, limits "
        + ", ".join(f"{limit.metric} {limit.text}" for limit in limits)
        + ".",
        "",
        "| variant | metric | outcome | reason |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {_cell(j.subject)} | {j.metric} | {j.outcome.value} | {_cell(j.reason)} |" for j in rows
    ]
    return "\n".join(lines) + "\n"


def junit(judgements: Sequence[Judgement], session: str, *, strict: bool) -> str:
    """JUnit XML: a test case per comparison; undecided and missing ones are skipped."""
    suite = ET.Element("testsuite", name="qhost gate", tests=str(len(judgements)))
    failures = skipped = 0
    for judgement in judgements:
        case = ET.SubElement(
            suite, "testcase", classname=f"qhost.{judgement.subject}", name=judgement.metric
        )
        if failed([judgement], strict=strict):
            failures += 1
            node = ET.SubElement(case, "failure", message=judgement.reason)
            node.text = f"{judgement.subject} {judgement.metric}: {judgement.reason}"
        elif judgement.outcome is not Outcome.PASS:
            skipped += 1
            ET.SubElement(case, "skipped", message=judgement.reason)
        else:
            ET.SubElement(case, "system-out").text = judgement.reason
    suite.set("failures", str(failures))
    suite.set("skipped", str(skipped))
    suite.set("errors", "0")
    properties = ET.Element("properties")
    ET.SubElement(properties, "property", name="session", value=session)
    suite.insert(0, properties)
    ET.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(suite, "unicode") + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
