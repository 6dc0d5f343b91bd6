"""Pareto fronts of figures with intervals: what is beaten for certain, and what only seems so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from host.stats.intervals import Estimate

# Cost of one candidate per metric, as lower-is-better estimates.
Costs = Mapping[str, Estimate]


@dataclass(frozen=True)
class Dominated:
    """`by` is at least as good in everything. `certain`: and better in something beyond chance."""

    name: str
    by: str
    certain: bool


def dominance(candidates: Mapping[str, Costs], metrics: Sequence[str]) -> dict[str, Dominated]:
    """Who is beaten, by whom; candidates that lack a metric take no part.

    `a` beats `b` when its estimates are nowhere worse and somewhere better. That is certain when
    somewhere the two intervals do not even touch. A certain one is named first.
    """
    complete = {n: c for n, c in candidates.items() if all(metric in c for metric in metrics)}
    found: dict[str, Dominated] = {}
    for name, costs in complete.items():
        for other, theirs in complete.items():
            if other == name or not _beats(theirs, costs, metrics):
                continue
            certain = any(theirs[metric].high < costs[metric].low for metric in metrics)
            if name not in found or (certain and not found[name].certain):
                found[name] = Dominated(name, other, certain)
    return found


def pareto_front(candidates: Mapping[str, Costs], metrics: Sequence[str]) -> list[str]:
    """Those that no other beats, by the first metric; ties by estimate within noise stay on it."""
    beaten = dominance(candidates, metrics)
    front = [
        name
        for name, costs in candidates.items()
        if all(metric in costs for metric in metrics)
        and not (name in beaten and beaten[name].certain)
    ]
    return sorted(front, key=lambda name: candidates[name][metrics[0]].value)


def _beats(a: Costs, b: Costs, metrics: Sequence[str]) -> bool:
    return all(a[m].value <= b[m].value for m in metrics) and any(
        a[m].value < b[m].value for m in metrics
    )
