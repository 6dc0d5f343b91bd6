"""The verdict of a session: `host.compare` over its runs, in the words of a report."""

from __future__ import annotations

from dataclasses import replace

from host import compare
from host.errors import RunStatus
from host.gate import Subject
from host.report.data import RunReport, SessionReport, Verdict
from host.report.text import PROVENANCE_TEXT, baseline_text, metric_label, value_text
from quant.figures import METRICS, Figure, Provenance

# Without constraints of the user's, more than a point below the float model is not shipped.
DEFAULT = compare.Constraints(compare.parse_drop("1pt"))


def decide(session: SessionReport, asked: compare.Constraints = DEFAULT) -> Verdict:
    """Which variant to ship under the constraints, with every reason, and the Pareto front."""
    found = compare.compare([_subject(run) for run in session.runs], asked)
    best = next((run for run in session.runs if run.variant == found.variant), None)
    reasons = list(found.reasons)
    headline = found.headline
    if best is not None:
        headline = _headline(session, best, asked.objective)
        if against := _against_baseline(session, best):
            reasons.insert(0, against)
    return Verdict(found.variant, headline, tuple(reasons), found.constraints, found.front)


def with_verdict(session: SessionReport) -> SessionReport:
    """The session with its verdict; one that it has already is kept."""
    return session if session.verdict is not None else replace(session, verdict=decide(session))


def pareto_front(session: SessionReport) -> list[str]:
    """Variants that no other beats for certain in latency and accuracy, ordered by latency."""
    return list((session.verdict or decide(session)).front)


def _subject(run: RunReport) -> Subject:
    figures = dict(run.figures)
    if "accuracy_drop" not in figures and (agreement := run.figure("agreement")) is not None:
        # Without labels there are no scores to lose; what differs from the float model is lost.
        assert agreement.value is not None
        figures["accuracy_drop"] = Figure(
            "accuracy_drop",
            1 - agreement.value,
            METRICS["accuracy_drop"].unit,
            agreement.provenance,
            agreement.n,
            reason="share of outputs that differ from the float model's",
        )
    return Subject(
        run.variant,
        run.status,
        figures,
        run.blocks,
        run.message,
        run.accuracy_higher_is_better,
    )


def _headline(session: SessionReport, best: RunReport, objective: str) -> str:
    figure = best.figures[objective]
    name = metric_label(session, objective, short=True).lower()
    text = f"Ship {best.variant}: {name} {value_text(figure, unit=True)}"
    if (accuracy := best.figure("accuracy")) is not None:
        text += f" at {best.accuracy_metric or 'accuracy'} {value_text(accuracy, unit=True)}"
    if figure.provenance is not Provenance.MEASURED:
        text += f" ({PROVENANCE_TEXT[figure.provenance].short}, not measured)"
    return text + "."


def _against_baseline(session: SessionReport, best: RunReport) -> str:
    changes = [
        f"{metric_label(session, m, short=True).lower()} {change}"
        for m in ("latency_ms", "energy_mj", "model_size_bytes", "accuracy")
        if best.status is RunStatus.OK and (change := baseline_text(session, best, m))
    ]
    return f"Against fp16: {', '.join(changes)}." if changes else ""
