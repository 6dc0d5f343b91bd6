"""Do the figures make sense together? Checks within a run, between methods, and on their outputs.

A broken rule is a remark, never a verdict: it names what to look at before the figures are used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from host.errors import RunStatus
from host.gate import Subject

ENERGY_TOLERANCE = 0.20  # power x time against energy: blocks and medians differ a little
SQNR_MARGIN_DB = 3.0
MIN_AGREEMENT = 0.5  # with the float model; below it the graph computes something else
ODD_ONE_OUT = 0.15  # less often like the others than these are like each other
MIN_ALIKE = 0.8  # of two methods; below it they do not differ by rounding
BY_PRECISION = ("fp16", "int8", "int4")


@dataclass(frozen=True)
class Remark:
    rule: str
    text: str


def cross_check(subjects: Sequence[Subject]) -> list[Remark]:
    """Remarks on the variants of one model on one device."""
    usable = [s for s in subjects if s.status is RunStatus.OK]
    found = [
        Remark(name, f"{_name(subject)}: {text}")
        for subject in usable
        for name, rule in WITHIN.items()
        if (text := rule(subject))
    ]
    by_name = {_name(s): s for s in usable}
    for name, between in BETWEEN.items():
        found += [Remark(name, text) for text in between(by_name)]
    return found


def _order_of_latencies(s: Subject) -> str:
    names = ("latency_min_ms", "latency_ms", "latency_p90_ms", "latency_p99_ms")
    present = [(name, value) for name in names if (value := _value(s, name)) is not None]
    for (a, x), (b, y) in pairwise(present):
        if x > y:
            return f"{a} {x:.4g} is above {b} {y:.4g}"
    return ""


def _throughput(s: Subject) -> str:
    fastest, rate = _value(s, "latency_min_ms"), _value(s, "throughput_items_per_sec")
    if fastest is None or rate is None or rate * fastest <= 1000 * 1.01:
        return ""
    return f"{rate:.4g} inferences per second need less than the fastest one, {fastest:.4g} ms"


def _energy(s: Subject) -> str:
    power, rate, gross = (
        _value(s, name) for name in ("power_mw", "throughput_items_per_sec", "energy_gross_mj")
    )
    if power is None or not rate or not gross:
        return ""
    expected = power / rate
    if abs(expected / gross - 1) <= ENERGY_TOLERANCE:
        return ""
    return f"power over throughput gives {expected:.4g} mJ, energy is {gross:.4g} mJ"


def _net_energy(s: Subject) -> str:
    net, gross = _value(s, "energy_mj"), _value(s, "energy_gross_mj")
    if net is None or gross is None or 0 < net <= gross:
        return ""
    return f"net energy {net:.4g} mJ is not between 0 and the gross {gross:.4g} mJ"


def _loads(s: Subject) -> str:
    cold, warm = _value(s, "startup_ms"), _value(s, "startup_warm_ms")
    if cold is None or warm is None or warm <= cold:
        return ""
    return f"the warm load took longer ({warm:.4g} ms) than the cold one ({cold:.4g} ms)"


def _agreement(s: Subject) -> str:
    agreement = _value(s, "agreement")
    if agreement is None or agreement >= MIN_AGREEMENT:
        return ""
    return f"agrees with the float model in {agreement:.0%} of samples only"


def _sizes(runs: Mapping[str, Subject]) -> list[str]:
    sizes = [(n, v) for n in BY_PRECISION if n in runs
             and (v := _value(runs[n], "model_size_bytes")) is not None]  # fmt: skip
    return [
        f"{b} is not smaller than {a} ({y / 1e6:.3g} and {x / 1e6:.3g} MB): are its weights packed?"
        for (a, x), (b, y) in pairwise(sizes)
        if y >= x
    ]


def _precision(runs: Mapping[str, Subject]) -> list[str]:
    found = [(n, v) for n in BY_PRECISION if n in runs
             and (v := _value(runs[n], "sqnr_db")) is not None]  # fmt: skip
    return [
        f"{b} is nearer to the float model than {a} ({y:.1f} and {x:.1f} dB): was it quantized?"
        for (a, x), (b, y) in pairwise(found)
        if y > x + SQNR_MARGIN_DB
    ]


def _outputs(runs: Mapping[str, Subject]) -> list[str]:
    """Variants whose right and wrong samples are unlike those of the others (0/1 scores)."""
    scores = {name: s.scores for name, s in runs.items() if s.scores is not None}
    n = min((len(one) for one in scores.values()), default=0)
    # The same evaluation order everywhere; a lower --emulator-samples takes the first of it.
    usable = {k: v[:n] for k, v in scores.items() if v.ndim == 1 and np.isin(v, (0, 1)).all()}
    if len(usable) < 2 or n == 0:
        return []
    names = list(usable)
    table = np.array([usable[name] for name in names])
    alike = (table[:, None, :] == table[None, :, :]).mean(axis=2)
    if len(names) == 2:
        if alike[0, 1] >= MIN_ALIKE:
            return []
        return [
            f"{names[0]} and {names[1]} are right and wrong on the same samples in "
            f"{alike[0, 1]:.0%} of {n} only"
        ]
    lines = []
    for i, name in enumerate(names):
        others = [j for j in range(len(names)) if j != i]
        ours = float(np.median(alike[i, others]))
        theirs = float(np.median([alike[j, k] for j in others for k in others if j < k]))
        if ours < theirs - ODD_ONE_OUT:
            lines.append(
                f"{name} is right and wrong on other samples than the rest: alike in {ours:.0%}, "
                f"they among themselves in {theirs:.0%}"
            )
    return lines


WITHIN: dict[str, Callable[[Subject], str]] = {
    "latency_order": _order_of_latencies,
    "throughput": _throughput,
    "energy": _energy,
    "net_energy": _net_energy,
    "loads": _loads,
    "agreement": _agreement,
}
BETWEEN: dict[str, Callable[[Mapping[str, Subject]], list[str]]] = {
    "sizes": _sizes,
    "precision": _precision,
    "outputs": _outputs,
}


def _name(s: Subject) -> str:
    return s.variant or s.name


def _value(s: Subject, metric: str) -> float | None:
    figure = s.figures.get(metric)
    return figure.value if figure is not None and figure.valid else None
