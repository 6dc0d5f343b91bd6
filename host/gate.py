"""Is a session worse than its baseline? Pure: figures, blocks and limits in, judgements out.

A regression must be certain and matter: the new blocks are worse than the old ones beyond chance,
and the change may be as large as the limit. What is too noisy to say is `undecided`, not passed
over. Figures of different provenance are not compared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from host.errors import RunStatus, UserError, unknown_name
from host.stats.intervals import Estimate
from host.stats.paired import ratio_independent
from host.store.rows import Floats
from quant.figures import METRICS, Figure

# Two-sided, so one side errs in 3.5 % of comparisons: false alarms stay below 5 %, and ten blocks
# with a spread of 3 % find a change of 5 % in more than nine of ten sessions (docs/measuring.md).
GATE_LEVEL = 0.93

ALIASES = {
    "latency": "latency_ms",
    "throughput": "throughput_items_per_sec",
    "power": "power_mw",
    "energy": "energy_mj",
    "size": "model_size_bytes",
    "memory": "memory_mb",
    "startup": "startup_ms",
}


class Outcome(StrEnum):
    PASS = "pass"
    REGRESSION = "regression"
    UNDECIDED = "undecided"  # too noisy, or not comparable
    MISSING = "missing"  # neither side has the figure


@dataclass(frozen=True)
class Limit:
    """The largest regression allowed. `points`: amount is absolute (0.005), else relative."""

    metric: str
    amount: float
    points: bool
    text: str


@dataclass(frozen=True)
class Subject:
    """One run as the gate sees it. `blocks`: metric -> value of each block (n,).

    `variant`: where `name` says more than that; `scores`: per sample (N, ...), of the engine
    closest to the device.
    """

    name: str
    status: RunStatus
    figures: Mapping[str, Figure]
    blocks: Mapping[str, Floats] = field(default_factory=dict)
    message: str = ""
    accuracy_higher_is_better: bool | None = True
    variant: str = ""
    scores: Floats | None = None


@dataclass(frozen=True)
class Judgement:
    """`change`: how much worse, positive = worse; relative, or absolute for points."""

    subject: str
    metric: str
    outcome: Outcome
    reason: str
    change: Estimate | None = None


def parse_limits(text: str) -> tuple[Limit, ...]:
    """`latency=5%,accuracy=0.5pt,energy=5%`. Raises UserError naming what is wrong."""
    limits = []
    for part in (piece.strip() for piece in text.split(",") if piece.strip()):
        name, equals, amount = part.partition("=")
        metric = ALIASES.get(name.strip(), name.strip())
        if metric not in METRICS:
            raise unknown_name("metric", name.strip(), [*ALIASES, *METRICS])
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%|pt)\s*", amount)
        if not equals or match is None:
            raise UserError(
                f"{part!r} is no limit.", "Write e.g. latency=5% or, for accuracy, accuracy=0.5pt."
            )
        points = match[2] == "pt"
        if points and METRICS[metric].unit != "fraction":
            raise UserError(
                f"Points are of a fraction, and {metric} is in {METRICS[metric].unit}.",
                f"Write {name.strip()}={match[1]}%.",
            )
        limits.append(Limit(metric, float(match[1]) / 100, points, f"{match[1]}{match[2]}"))
    if not limits:
        raise UserError("No limit is given.", "Write e.g. --max-regression latency=5%.")
    return tuple(limits)


def judge(
    baseline: Sequence[Subject], current: Sequence[Subject], limits: Sequence[Limit]
) -> list[Judgement]:
    """Every subject of the baseline against the one of the same name, for every limit.

    Raises UserError when nothing can be compared: no common subject, or a metric that no run of
    the two sides has.
    """
    now = {subject.name: subject for subject in current}
    if not set(now) & {subject.name for subject in baseline}:
        raise UserError(
            "The two sides have no variant in common.",
            f"Baseline: {_names(baseline)}; session: {_names(current)}.",
        )
    for limit in limits:
        if not any(_has(s, limit.metric) for s in (*baseline, *current)):
            raise UserError(
                f"No run of the two sides has a figure {limit.metric}.",
                "Leave it out of --max-regression, or bench with it.",
            )
    found = []
    for old in baseline:
        new = now.get(old.name)
        if old.status is not RunStatus.OK:
            continue
        if new is None:
            found.append(
                Judgement(old.name, "run", Outcome.UNDECIDED, "it is not in the new session")
            )
        elif new.status is not RunStatus.OK:
            reason = f"it was ok and is now {new.status.value}: {new.message}"
            found.append(Judgement(old.name, "run", Outcome.REGRESSION, reason))
        else:
            found += [_compare(old, new, limit) for limit in limits]
    return found


def judge_blocks(current: Floats, baseline: Floats, limit: float) -> tuple[Outcome, Estimate]:
    """Blocks of two sessions (m,) and (n,), lower is better; `limit` relative (0.05).

    Returns the outcome and the relative change with its interval.
    """
    ratio = ratio_independent(current, baseline, GATE_LEVEL)
    change = Estimate(ratio.value - 1, ratio.low - 1, ratio.high - 1, ratio.n)
    return _decide(change, limit), change


def _decide(change: Estimate, limit: float) -> Outcome:
    if change.high < limit:
        return Outcome.PASS
    return Outcome.REGRESSION if change.low > 0 else Outcome.UNDECIDED


def _compare(old: Subject, new: Subject, limit: Limit) -> Judgement:
    name = limit.metric

    def judgement(outcome: Outcome, reason: str, change: Estimate | None = None) -> Judgement:
        return Judgement(old.name, name, outcome, reason, change)

    if not _has(old, name) and not _has(new, name):
        return judgement(Outcome.MISSING, "neither side has the figure")
    if not _has(old, name) or not _has(new, name):
        side = "baseline" if not _has(old, name) else "new session"
        subject = old if side == "baseline" else new
        why = subject.figures[name].reason if name in subject.figures else ""
        return judgement(
            Outcome.UNDECIDED, f"the {side} has no valid figure" + (why and f": {why}")
        )
    before, after = old.figures[name], new.figures[name]
    if before.provenance is not after.provenance:
        return judgement(
            Outcome.UNDECIDED,
            f"not comparable: {before.provenance.value} before, {after.provenance.value} now",
        )
    better_up = METRICS[name].higher_is_better
    if name == "accuracy":
        better_up = new.accuracy_higher_is_better is not False
    change, outcome = _change(old, new, limit, bool(better_up))
    return judgement(outcome, _words(before, after, change, limit, outcome), change)


def _change(
    old: Subject, new: Subject, limit: Limit, higher_is_better: bool
) -> tuple[Estimate, Outcome]:
    before, after = old.figures[limit.metric], new.figures[limit.metric]
    assert before.value is not None and after.value is not None
    a, b = old.blocks.get(limit.metric), new.blocks.get(limit.metric)
    if a is not None and b is not None and len(a) and len(b) and min(a.min(), b.min()) > 0:
        worse, reference = (a, b) if higher_is_better else (b, a)
        outcome, change = judge_blocks(worse, reference, limit.amount)
        return change, outcome
    sign = -1.0 if higher_is_better else 1.0
    scale = 1.0 if limit.points else abs(before.value) or 1.0
    value = sign * (after.value - before.value) / scale
    n = min(before.n, after.n)
    quality = METRICS[limit.metric].unit == "fraction"
    if quality or None in (before.ci_low, before.ci_high, after.ci_low, after.ci_high):
        # The same samples, or a size: the figures have no noise of their own. The tolerance is
        # for the rounding of decimal fractions.
        exact = Estimate(value, value, value, n)
        over = value > limit.amount * (1 + 1e-9)
        return exact, Outcome.REGRESSION if over else Outcome.PASS
    ends = [
        sign * (y - x) / scale
        for x, y in ((before.ci_low, after.ci_high), (before.ci_high, after.ci_low))
        if x is not None and y is not None
    ]
    change = Estimate(value, min(ends), max(ends), n)
    return change, _decide(change, limit.amount)


def _words(before: Figure, after: Figure, change: Estimate, limit: Limit, outcome: Outcome) -> str:
    unit = " pt" if limit.points else " %"
    measure, factor = "" if before.unit == "fraction" else f" {before.unit}", 1.0
    if before.unit == "bytes":
        measure, factor = " MB", 1e-6
    assert before.value is not None and after.value is not None
    amount = f"{abs(change.value) * 100:.2f}"
    if float(amount) == 0:
        words = "no change"
    else:
        words = f"{amount}{unit} {'worse' if change.value > 0 else 'better'}"
    text = f"{before.value * factor:.4g} -> {after.value * factor:.4g}{measure}: {words}"
    if change.low < change.high:
        text += f" [{change.low * 100:+.2f}, {change.high * 100:+.2f}]"
    tail = {
        Outcome.PASS: f"within {limit.text}",
        Outcome.REGRESSION: f"limit {limit.text}",
        Outcome.UNDECIDED: f"too noisy to hold against {limit.text}: use more blocks",
    }
    return f"{text}; {tail[outcome]}"


def _has(subject: Subject, metric: str) -> bool:
    figure = subject.figures.get(metric)
    return figure is not None and figure.value is not None and figure.valid


def _names(subjects: Sequence[Subject]) -> str:
    return ", ".join(subject.name for subject in subjects) or "nothing"
