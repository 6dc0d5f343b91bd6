"""Which variant to ship. Pure: the runs of one model on one device, and constraints, in.

Constraints come first, then the objective. Of variants that blocks cannot tell apart in the
objective, the more accurate one is chosen, then the more frugal, then the smaller; each step keeps
what its own intervals cannot tell from its best. Figures of different provenance are not ranked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from host.errors import RunStatus, UserError, unknown_name
from host.gate import ALIASES, Subject
from host.stats.intervals import Estimate
from host.stats.paired import ratio_independent, ratio_paired
from host.stats.pareto import dominance, pareto_front
from quant.figures import METRICS, Figure, Provenance

FRONT = ("latency_ms", "accuracy")
TIE_BREAKS = ("accuracy", "energy_mj", "model_size_bytes")
ACCURACY_REFERENCE = "accuracy_drop"  # against the float model in onnxruntime, paired

PROVENANCE_WORDS = {
    Provenance.MEASURED: "measured",
    Provenance.HTP_EMULATOR: "HTP emulator",
    Provenance.ORT_CPU: "onnxruntime on the CPU",
    Provenance.COMPILER: "compiler",
    Provenance.PREDICTED: "predicted, not measured",
    Provenance.EMULATED_DEVICE: "emulated device, not measured",
    Provenance.FILE: "file",
}


@dataclass(frozen=True)
class Drop:
    """An accuracy drop: in points (0.005 = 0.5pt) or relative to the reference (0.05 = 5%)."""

    amount: float
    points: bool
    text: str


@dataclass(frozen=True)
class Constraints:
    max_accuracy_drop: Drop | None = None
    max_latency_ms: float | None = None
    max_size_mb: float | None = None
    max_energy_mj: float | None = None
    objective: str = "latency_ms"

    def describe(self) -> tuple[str, ...]:
        """One phrase per constraint, for the reader of a verdict."""
        texts = []
        if self.max_accuracy_drop is not None:
            texts.append(f"accuracy at most {self.max_accuracy_drop.text} below the float model")
        for limit, text in (
            (self.max_latency_ms, "latency at most {:g} ms"),
            (self.max_size_mb, "context binary at most {:g} MB"),
            (self.max_energy_mj, "energy at most {:g} mJ per inference"),
        ):
            if limit is not None:
                texts.append(text.format(limit))
        return tuple(texts)


@dataclass(frozen=True)
class Comparison:
    """`variant`: what to ship, None when nothing can be recommended.

    `front`: names on the Pareto front of latency and accuracy. `against_baseline`: objective
    relative to fp16 (0.5 = half), with its interval, where blocks of both exist.
    """

    variant: str | None
    headline: str
    reasons: tuple[str, ...]
    constraints: tuple[str, ...]
    front: tuple[str, ...]
    against_baseline: Mapping[str, Estimate]


def parse_drop(text: str) -> Drop:
    """`0.5pt` or `5%`. Raises UserError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(pt|%)\s*", text)
    if match is None:
        raise UserError(
            f"{text!r} is no accuracy drop.", "Write points, 0.5pt, or percent of it, 5%."
        )
    text = f"{match[1]} pt" if match[2] == "pt" else f"{match[1]}%"
    return Drop(float(match[1]) / 100, match[2] == "pt", text)


def parse_objective(text: str) -> str:
    """A metric name or its alias (latency, energy, size ...). Raises UserError, nearest names."""
    metric = ALIASES.get(text, text)
    if metric not in METRICS or METRICS[metric].higher_is_better is None:
        raise unknown_name("objective", text, ALIASES)
    return metric


def compare(
    subjects: Sequence[Subject], constraints: Constraints, baseline: str = "fp16"
) -> Comparison:
    """The verdict over the variants of one model on one device, with every reason.

    Subjects are named by their variants. Never raises for what the figures are like: a verdict
    without a variant says why.
    """
    objective = constraints.objective
    usable = {
        s.name: s for s in subjects if s.status is RunStatus.OK and _value(s, objective) is not None
    }
    reasons = [_without_result(s, objective) for s in subjects if s.name not in usable]
    described = constraints.describe()

    def verdict(variant: str | None, headline: str, *first: str) -> Comparison:
        return Comparison(variant, headline, (*first, *reasons), described, front, against_baseline)

    front: tuple[str, ...] = ()
    against_baseline: dict[str, Estimate] = {}
    if not usable:
        return verdict(None, f"No variant can be recommended: none has a valid {_word(objective)}.")
    sources = {s.figures[objective].provenance for s in usable.values()}
    if len(sources) > 1:
        words = " and ".join(sorted(PROVENANCE_WORDS[source] for source in sources))
        return verdict(
            None,
            "No variant can be recommended: the figures to rank by differ in provenance.",
            f"{_word(objective)} is {words}; compare them apart.",
        )
    costs = {name: _costs(s) for name, s in usable.items()}
    one_accuracy = len({s.figures["accuracy"].provenance for s in usable.values()
                        if _value(s, "accuracy") is not None}) <= 1  # fmt: skip
    if one_accuracy:
        front = tuple(pareto_front(costs, FRONT))
    if baseline in usable:
        against_baseline = {
            name: ratio
            for name, s in usable.items()
            if name != baseline and (ratio := _ratio(s, usable[baseline], objective)) is not None
        }
    refused = {name: why for name, s in usable.items() if (why := _refusal(s, constraints))}
    reasons = [f"{name}: {why}." for name, why in refused.items()] + reasons
    passing = [s for name, s in usable.items() if name not in refused]
    if not passing:
        return verdict(None, "No variant meets the constraints.")
    best, tied = _choose(passing, objective, break_ties=one_accuracy)
    reasons = _dominated(costs, [s.name for s in passing], best.name, one_accuracy) + reasons
    first = []
    if tied:
        first.append(
            f"In {_word(objective)} these blocks do not tell it from {_and(tied)}: "
            "accuracy, then energy, then size decide."
        )
    if not one_accuracy:
        first.append("Accuracies differ in provenance, so they are not ranked.")
    if doubt := _accuracy_doubt(best, constraints):
        first.append(doubt)
    first.append(_provenance_sentence(best))
    return verdict(best.name, _headline(best, objective, against_baseline, baseline), *first)


def _choose(
    passing: Sequence[Subject], objective: str, *, break_ties: bool
) -> tuple[Subject, list[str]]:
    """The best at the objective; among those not told apart from it, the best otherwise."""
    leader = min(passing, key=lambda s: _cost(s, objective))
    if not break_ties:
        return leader, []
    tied = [s for s in passing if s is leader or _same(s, leader, objective)]
    left = tied
    for metric in TIE_BREAKS:
        if metric != objective:
            first = min(left, key=lambda s: _cost(s, metric))
            left = [s for s in left if s is first or _same(s, first, metric)]
    best = min(left, key=lambda s: _cost(s, objective))
    return best, [s.name for s in tied if s is not best]


def _same(a: Subject, b: Subject, metric: str) -> bool:
    """Whether the blocks, or the intervals where there are none, cannot tell the two apart."""
    if _value(a, metric) is None or _value(b, metric) is None:
        return _value(a, metric) is _value(b, metric)
    ratio = _ratio(a, b, metric)
    if ratio is not None:
        return not ratio.excludes(1)
    x, y = _estimate(a.figures[metric]), _estimate(b.figures[metric])
    if metric == "accuracy":
        x, y = _with_drop_interval(x, a), _with_drop_interval(y, b)
    return x.low <= y.high and y.low <= x.high


def _ratio(a: Subject, b: Subject, metric: str) -> Estimate | None:
    """a / b over blocks: paired where both have the same number, as interleaved runs do."""
    x, y = a.blocks.get(metric), b.blocks.get(metric)
    if x is None or y is None or not len(x) or not len(y) or min(x.min(), y.min()) <= 0:
        return None
    ratio = ratio_paired(x, y) if len(x) == len(y) else ratio_independent(x, y)
    return ratio if np.isfinite(ratio.low) else None


def _refusal(s: Subject, limits: Constraints) -> str:
    """Why a variant does not meet the constraints; empty when it does."""
    drop = limits.max_accuracy_drop
    if drop is not None:
        found = s.figures.get(ACCURACY_REFERENCE)
        if found is None or found.value is None:
            return "no accuracy drop is known to hold against the limit"
        allowed = _allowed(s, drop)
        if allowed is None:
            return "no accuracy figure to hold the limit against"
        # The tolerance is for the rounding of decimal fractions.
        if found.value > allowed * (1 + 1e-9):
            lost = _points(found, found.value)
            return f"accuracy is {lost} below the float model, limit {drop.text}"
    for metric, limit, factor, unit in (
        ("latency_ms", limits.max_latency_ms, 1.0, "ms"),
        ("model_size_bytes", limits.max_size_mb, 1e-6, "MB"),
        ("energy_mj", limits.max_energy_mj, 1.0, "mJ"),
    ):
        if limit is None:
            continue
        value = _value(s, metric)
        if value is None:
            return f"no valid {_word(metric)} to hold against the limit"
        if value * factor > limit:
            return f"{_word(metric)} is {value * factor:.4g} {unit}, limit {limit:g} {unit}"
    return ""


def _allowed(s: Subject, drop: Drop) -> float | None:
    """The allowed drop in the accuracy's own unit."""
    if drop.points:
        return drop.amount
    accuracy, lost = _value(s, "accuracy"), s.figures[ACCURACY_REFERENCE].value
    if accuracy is None or lost is None:
        return None
    reference = accuracy - lost if s.accuracy_higher_is_better is False else accuracy + lost
    return drop.amount * abs(reference)


def _accuracy_doubt(s: Subject, limits: Constraints) -> str:
    drop, found = limits.max_accuracy_drop, s.figures.get(ACCURACY_REFERENCE)
    if drop is None or found is None or found.ci_high is None:
        return ""
    allowed = _allowed(s, drop)
    if allowed is None or found.ci_high <= allowed:
        return ""
    return (
        f"With {found.n} samples its drop may be as large as {_points(found, found.ci_high)}, "
        f"limit {drop.text}: evaluate more samples to be sure."
    )


def _dominated(
    costs: Mapping[str, Mapping[str, Estimate]],
    passing: Sequence[str],
    best: str,
    one_accuracy: bool,
) -> list[str]:
    if not one_accuracy:
        return []
    behind: dict[str, list[str]] = {}
    for name, found in dominance({n: costs[n] for n in passing}, FRONT).items():
        if name != best and found.certain:
            behind.setdefault(found.by, []).append(name)
    return [
        f"{by} is no worse in latency and accuracy than {_and(names)}, and better in one."
        for by, names in behind.items()
    ]


def _without_result(s: Subject, objective: str) -> str:
    if s.status is not RunStatus.OK:
        return f"{s.name}: {s.status.value}{': ' + s.message if s.message else ''}"
    figure = s.figures.get(objective)
    why = figure.reason if figure is not None and figure.reason else "it was not measured"
    return f"{s.name}: no valid {_word(objective)}: {why}."


def _headline(best: Subject, objective: str, against: Mapping[str, Estimate], baseline: str) -> str:
    figure = best.figures[objective]
    text = f"Ship {best.name}: {METRICS[objective].label.lower()} {figure.value:.4g} {figure.unit}"
    ratio = against.get(best.name)
    if ratio is not None and ratio.excludes(1):
        text += f", {ratio.value:.3f} x {baseline} [{ratio.low:.3f}, {ratio.high:.3f}]"
    accuracy = best.figures.get("accuracy")
    if accuracy is not None and accuracy.value is not None:
        text += f", accuracy {accuracy.value:.4g}"
    return text + "."


def _provenance_sentence(s: Subject) -> str:
    by_source: dict[Provenance, list[str]] = {}
    for metric in ("latency_ms", "energy_mj", "accuracy", "model_size_bytes"):
        if (figure := s.figures.get(metric)) is not None and figure.value is not None:
            by_source.setdefault(figure.provenance, []).append(_word(metric))
    parts = [f"{_and(words)}: {PROVENANCE_WORDS[p]}" for p, words in by_source.items()]
    return f"Where its figures come from: {'; '.join(parts)}."


def _word(metric: str) -> str:
    """What users call a metric: latency for latency_ms."""
    return next((word for word, name in ALIASES.items() if name == metric), metric)


def _and(names: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _points(figure: Figure, value: float) -> str:
    return f"{value * 100:.2f} pt" if figure.unit == "fraction" else f"{value:.3g} {figure.unit}"


def _value(s: Subject, metric: str) -> float | None:
    figure = s.figures.get(metric)
    return figure.value if figure is not None and figure.valid else None


def _sign(s: Subject, metric: str) -> float:
    """-1 where more is better, so that cost = sign x value."""
    better = METRICS[metric].higher_is_better
    if metric == "accuracy":
        better = s.accuracy_higher_is_better is not False
    return -1.0 if better else 1.0


def _cost(s: Subject, metric: str) -> float:
    value = _value(s, metric)
    return float("inf") if value is None else _sign(s, metric) * value


def _costs(s: Subject) -> dict[str, Estimate]:
    found = {}
    for metric in FRONT:
        if _value(s, metric) is not None:
            e, sign = _estimate(s.figures[metric]), _sign(s, metric)
            if metric == "accuracy":
                e = _with_drop_interval(e, s)
            low, high = sorted((sign * e.low, sign * e.high))
            found[metric] = Estimate(sign * e.value, low, high, e.n)
    return found


def _with_drop_interval(accuracy: Estimate, s: Subject) -> Estimate:
    """An accuracy with the paired interval of its drop, which is that of a difference."""
    drop = s.figures.get(ACCURACY_REFERENCE)
    if drop is None or drop.value is None or drop.ci_low is None or drop.ci_high is None:
        return accuracy
    more, less = drop.ci_high - drop.value, drop.value - drop.ci_low
    if s.accuracy_higher_is_better is False:
        more, less = less, more
    return Estimate(accuracy.value, accuracy.value - more, accuracy.value + less, accuracy.n)


def _estimate(figure: Figure) -> Estimate:
    assert figure.value is not None
    low = figure.value if figure.ci_low is None else figure.ci_low
    high = figure.value if figure.ci_high is None else figure.ci_high
    return Estimate(figure.value, low, high, figure.n)
