"""Which variant to ship: constraints first, then the objective, then what the intervals allow."""

from __future__ import annotations

from dataclasses import dataclass

from host.errors import RunStatus
from host.report.data import RunReport, SessionReport, Verdict
from host.report.text import (
    PROVENANCE_TEXT,
    baseline_text,
    interval_text,
    metric_label,
    value_text,
)
from quant.figures import Figure, Provenance


@dataclass(frozen=True)
class Constraints:
    """What a variant must meet. The accuracy drop is in the accuracy's own unit (0.01 = 1 pt)."""

    max_accuracy_drop: float = 0.01
    max_latency_ms: float | None = None
    max_size_mb: float | None = None
    max_energy_mj: float | None = None
    objective: str = "latency_ms"

    def describe(self) -> tuple[str, ...]:
        limits = [f"accuracy at most {self.max_accuracy_drop * 100:g} pt below fp16"]
        for limit, text in (
            (self.max_latency_ms, "latency at most {:g} ms"),
            (self.max_size_mb, "context binary at most {:g} MB"),
            (self.max_energy_mj, "energy at most {:g} mJ per inference"),
        ):
            if limit is not None:
                limits.append(text.format(limit))
        return tuple(limits)


def pareto_front(session: SessionReport, x: str = "latency_ms", y: str = "accuracy") -> list[str]:
    """Variants that no other beats on both metrics, ordered by x.

    Only runs whose two figures are valid take part, and only against runs of the same
    provenance in both: figures of different provenance are not ranked together.
    """
    points: list[tuple[float, float, str, tuple[Provenance, Provenance]]] = []
    for run in session.drawable:
        a, b = run.value(x), run.value(y)
        if a is None or b is None:
            continue
        sign_a = -1.0 if run.higher_is_better(x) else 1.0
        sign_b = 1.0 if run.higher_is_better(y) is False else -1.0
        sources = (run.figures[x].provenance, run.figures[y].provenance)
        points.append((sign_a * a, sign_b * b, run.variant, sources))
    front = [
        (a, variant)
        for a, b, variant, sources in points
        if not any(
            c <= a and d <= b and (c < a or d < b)
            for c, d, _, others in points
            if others == sources
        )
    ]
    return [variant for _, variant in sorted(front)]


def decide(session: SessionReport, constraints: Constraints | None = None) -> Verdict:
    """The valid variant that is best at the objective among those that meet every constraint."""
    limits = constraints or Constraints()
    described = limits.describe()
    base = session.baseline
    candidates = [run for run in session.drawable if run.value(limits.objective) is not None]
    if not candidates:
        return Verdict(
            None,
            "No variant can be recommended: none has a valid latency.",
            _failures(session),
            described,
        )
    sources = {run.figures[limits.objective].provenance for run in candidates}
    if len(sources) > 1:
        names = " and ".join(sorted(PROVENANCE_TEXT[p].short for p in sources))
        return Verdict(
            None,
            "No variant can be recommended: the figures to rank by differ in provenance.",
            (f"{limits.objective} is {names}; rank them apart.",),
            described,
        )
    refusals = {run.variant: _refusal(run, base, limits) for run in candidates}
    passing = [run for run in candidates if not refusals[run.variant]]
    reasons = [f"{name}: {why}." for name, why in refusals.items() if why]
    if not passing:
        return Verdict(
            None, "No variant meets the constraints.", (*reasons, *_failures(session)), described
        )
    best = min(passing, key=lambda run: _rank(run, limits.objective))
    return Verdict(
        best.variant,
        _headline(session, best, limits.objective),
        (*_why(session, best, passing, limits), *reasons, *_failures(session)),
        described,
    )


def _rank(run: RunReport, objective: str) -> float:
    value = run.value(objective)
    assert value is not None
    return -value if run.higher_is_better(objective) else value


def _refusal(run: RunReport, base: RunReport | None, limits: Constraints) -> str:
    """Why the run does not meet the constraints; empty when it does."""
    if base is not None and run is not base:
        ours, theirs = run.figure("accuracy"), base.figure("accuracy")
        if ours is None:
            return "no accuracy figure"
        if (paired := run.figure("accuracy_drop_fp16")) is not None:
            # From the same samples in both runs, so it is sharper than the two figures apart.
            assert paired.value is not None
            if paired.value > limits.max_accuracy_drop:
                text = f"accuracy {_drop_text(paired, paired.value)} below fp16"
                interval = interval_text(paired)
                return f"{text} (95 %: {interval})" if interval else text
        elif theirs is not None:
            assert ours.value is not None and theirs.value is not None
            sign = -1.0 if run.accuracy_higher_is_better is False else 1.0
            drop = sign * (theirs.value - ours.value)
            if ours.provenance is not theirs.provenance:
                return "its accuracy and that of fp16 differ in provenance"
            if drop > limits.max_accuracy_drop:
                return f"accuracy {_drop_text(ours, drop)} below fp16"
    for metric, limit, factor, unit in (
        ("latency_ms", limits.max_latency_ms, 1.0, "ms"),
        ("model_size_bytes", limits.max_size_mb, 1e-6, "MB"),
        ("energy_mj", limits.max_energy_mj, 1.0, "mJ"),
    ):
        if limit is None:
            continue
        value = run.value(metric)
        if value is None:
            return f"no valid {metric} to hold against the limit"
        if value * factor > limit:
            return f"{metric} is {value * factor:.4g} {unit}, over {limit:g} {unit}"
    return ""


def _drop_text(figure: Figure, drop: float) -> str:
    return f"{drop * 100:.2f} pt" if figure.unit == "fraction" else f"{drop:.3g} {figure.unit}"


def _headline(session: SessionReport, best: RunReport, objective: str) -> str:
    figure = best.figures[objective]
    name = metric_label(session, objective, short=True).lower()
    text = f"Ship {best.variant}: {name} {value_text(figure, unit=True)}"
    if (accuracy := best.figure("accuracy")) is not None:
        text += f" at {best.accuracy_metric or 'accuracy'} {value_text(accuracy, unit=True)}"
    if figure.provenance is not Provenance.MEASURED:
        text += f" ({PROVENANCE_TEXT[figure.provenance].short}, not measured)"
    return text + "."


def _why(
    session: SessionReport, best: RunReport, passing: list[RunReport], limits: Constraints
) -> list[str]:
    lines, objective = [], limits.objective
    changes = [
        f"{metric_label(session, m, short=True).lower()} {change}"
        for m in ("latency_ms", "energy_mj", "model_size_bytes", "accuracy")
        if (change := baseline_text(session, best, m))
    ]
    if changes:
        lines.append(f"Against fp16: {', '.join(changes)}.")
    paired = best.figure("accuracy_drop_fp16")
    if paired is not None and (paired.ci_high or 0.0) > limits.max_accuracy_drop:
        lines.append(
            f"Not settled: the accuracy drop against fp16 is {interval_text(paired)} pt (95 %, "
            f"n = {paired.n}), the limit {limits.max_accuracy_drop * 100:g} pt; evaluate more "
            "samples."
        )
    ours = best.figures[objective]
    ties = [
        run.variant for run in passing if run is not best and _overlap(ours, run.figures[objective])
    ]
    if ties:
        lines.append(
            f"Not told apart from {', '.join(ties)}: the 95 % intervals of "
            f"{metric_label(session, objective, short=True).lower()} overlap."
        )
    return lines


def _overlap(a: Figure, b: Figure) -> bool:
    if a.ci_low is None or a.ci_high is None or b.ci_low is None or b.ci_high is None:
        return False
    return a.ci_low <= b.ci_high and b.ci_low <= a.ci_high


def _failures(session: SessionReport) -> tuple[str, ...]:
    bad = [run.variant for run in session.runs if run.status is not RunStatus.OK]
    return (f"Without a result: {', '.join(bad)}.",) if bad else ()
