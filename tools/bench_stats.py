"""How good the statistics are, by simulation with committed seeds.

    python tools/bench_stats.py                              # every table on stdout
    python tools/bench_stats.py --write docs/measuring.md    # and into the marked places there

Each table is a pure function of its number of sessions and its seed, so the same numbers come out
again. The simulated quantity is the latency of a block; CV is the spread between blocks.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm

from host.gate import GATE_LEVEL, Outcome, judge_blocks
from host.stats.changepoint import warm_up_blocks
from host.stats.energy import summarize, window_energies
from host.stats.intervals import (
    LEVEL,
    median_interval,
    shift_interval,
    signed_rank_interval,
)
from host.stats.paired import CLAIM_LEVEL, ratio_paired
from host.stats.power import choose_power
from host.stats.validity import RULES, Scope
from host.store.rows import Block, Channel, Mark, RunData, Samples

Array = NDArray[np.float64]
CV = 0.03


@dataclass(frozen=True)
class Table:
    """`failures`: what an acceptance asks for and the numbers do not give."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    failures: tuple[str, ...] = ()
    align: str = "---:"

    def markdown(self) -> str:
        lines = [
            "| " + " | ".join(self.columns) + " |",
            "|" + "|".join(["---"] + [self.align] * (len(self.columns) - 1)) + "|",
        ]
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        return "\n".join(lines)


# 1. Do intervals cover the true median? ----------------------------------------------------


def normal_sessions(rng: np.random.Generator, count: int, n: int) -> tuple[Array, float]:
    return 1 + CV * rng.standard_normal((count, n)), 1.0


def skewed_sessions(rng: np.random.Generator, count: int, n: int) -> tuple[Array, float]:
    """A floor plus an exponential tail: what preemption and DDR refresh look like."""
    return 0.9 + 0.1 * rng.exponential(size=(count, n)), 0.9 + 0.1 * float(np.log(2))


def drifting_sessions(rng: np.random.Generator, count: int, n: int) -> tuple[Array, float]:
    """Heat: an exponential rise of 10 % over the session. The truth is the median over the
    session, that of the equal mixture of its blocks' distributions."""
    drift = 0.10 * (1 - np.exp(-3 * np.arange(n) / n))

    def excess(m: float) -> float:
        return float(np.mean(norm.cdf((m - 1 - drift) / CV))) - 0.5

    return 1 + drift + CV * rng.standard_normal((count, n)), float(brentq(excess, 0.5, 1.5))


def correlated_sessions(rng: np.random.Generator, count: int, n: int) -> tuple[Array, float]:
    """Neighbouring blocks alike (first-order autoregression, 0.5): what no interval here knows."""
    step = rng.standard_normal((count, n)) * CV
    for i in range(1, n):
        step[:, i] = 0.5 * step[:, i - 1] + 0.75**0.5 * step[:, i]
    return 1 + step, 1.0


SHAPES = {
    "normal": normal_sessions,
    "skewed": skewed_sessions,
    "drifting": drifting_sessions,
    "correlated": correlated_sessions,
}
INDEPENDENT = ("normal", "skewed", "drifting")


def coverage(sessions: int, seed: int = 1) -> Table:
    rows, failures = [], []
    for name, shape in SHAPES.items():
        row = [name]
        for n in (6, 10, 20):
            blocks, truth = shape(np.random.default_rng([seed, n]), sessions, n)
            inside = [e.low <= truth <= e.high for e in map(median_interval, blocks)]
            share = float(np.mean(inside))
            row.append(f"{share:.1%}")
            if name in INDEPENDENT and share < 0.93:
                failures.append(f"coverage {name} n={n}: {share:.1%}")
        rows.append(tuple(row))
    return Table("coverage", ("blocks", "n = 6", "n = 10", "n = 20"), tuple(rows), tuple(failures))


# 2. Does interleaving keep the order of variants under heat? ---------------------------------

HEATING = {"mild (5 %)": 0.05, "moderate (15 %)": 0.15, "strong (30 %)": 0.30}
GAPS = (0.02, 0.05, 0.10)
VARIANTS = 4


def heated_session(
    rng: np.random.Generator, heating: float, gap: float, n: int, *, interleaved: bool
) -> Array:
    """Block latencies (variants, n); variant i is truly `gap` faster than variant i - 1.

    The device slows by `heating` x (1 - exp(-t / tau)) with t the time it has worked and tau a
    third of the session. Interleaved: every block holds every variant in a random order. Fixed:
    all blocks of one variant, then the next, the slowest (fp16) first.
    """
    true = (1 - gap) ** np.arange(VARIANTS)
    if interleaved:
        order = [(v, b) for b in range(n) for v in rng.permutation(VARIANTS)]
    else:
        order = [(v, b) for v in range(VARIANTS) for b in range(n)]
    slots = np.arange(len(order))
    slow = 1 + heating * (1 - np.exp(-3 * slots / len(order)))
    found = np.empty((VARIANTS, n))
    for (variant, block), factor in zip(order, slow, strict=True):
        found[variant, block] = true[variant] * factor
    return found * (1 + CV * rng.standard_normal(found.shape))


def ordered_right(blocks: Array) -> bool:
    """The variants' ratios to the first, estimated per block, fall in the true order."""
    ratios = [1.0] + [ratio_paired(row, blocks[0]).value for row in blocks[1:]]
    return bool(np.all(np.diff(ratios) < 0))


def interleaving(sessions: int, seed: int = 2, n: int = 10) -> Table:
    rows, failures = [], []
    for name, heating in HEATING.items():
        row = [name]
        for gap in GAPS:
            for interleaved in (True, False):
                rng = np.random.default_rng([seed, round(heating * 100), round(gap * 100)])
                right = sum(
                    ordered_right(heated_session(rng, heating, gap, n, interleaved=interleaved))
                    for _ in range(sessions)
                )
                row.append(f"{100 * right / sessions:.0f}")
                if interleaved and gap == GAPS[-1] and right < 0.95 * sessions:
                    failures.append(f"interleaving {name} gap {gap:.0%}: {right}/{sessions}")
        rows.append(tuple(row))
    columns = [f"{gap:.0%} gap, {how}" for gap in GAPS for how in ("interleaved", "fixed order")]
    return Table("interleaving", ("heating", *columns), tuple(rows), tuple(failures))


# 3. How often is one of two identical variants called faster? --------------------------------


def false_claims(pairs: int, seed: int = 3) -> Table:
    rows, failures = [], []
    for n in (6, 10, 20):
        rng = np.random.default_rng([seed, n])
        share_of = rng.uniform(0.9, 1.1, (pairs, n))  # what a block does to both
        a, b = share_of * (1 + CV * rng.standard_normal((2, pairs, n)))
        share = float(np.mean([ratio_paired(x, y).excludes(1) for x, y in zip(a, b, strict=True)]))
        power = [
            float(
                np.mean([ratio_paired(x, y).high < 1 for x, y in zip((1 - g) * a, b, strict=True)])
            )
            for g in GAPS
        ]
        rows.append((str(n), f"{share:.1%}", *(f"{p:.0%}" for p in power)))
        if share > 0.05:
            failures.append(f"false claims n={n}: {share:.1%}")
    found = tuple(f"{gap:.0%} faster: found" for gap in GAPS)
    return Table(
        "false_claims", ("blocks", "identical: false claims", *found), tuple(rows), tuple(failures)
    )


# 4. Is the end of the warm-up found? ---------------------------------------------------------

WARM_UP_CV = 0.01
TEMPERATURE_NOISE_C = 0.3


def warm_up_case(
    rng: np.random.Generator, kind: str, blocks: int | None = None
) -> tuple[Array, Array, int]:
    """(latency, temperature, true place): 20 to 40 blocks of which the first 2 to 8 differ.

    Latency is 5 to 15 % off at the start, either way; temperature rises by 8 to 20 C. The true
    place of an exponential approach is where it falls within the spread of a block.
    """
    n, k = blocks or int(rng.integers(20, 41)), int(rng.integers(2, 9))
    amplitude = rng.uniform(0.05, 0.15) * rng.choice([-1, 1])
    i = np.arange(n)
    if kind == "step":
        shape = (i < k).astype(np.float64)
    elif kind == "ramp":
        shape = np.clip(1 - i / k, 0, None)
    elif kind == "exponential":
        shape = np.exp(-i / (k / np.log(abs(amplitude) / WARM_UP_CV)))
    else:
        shape, k = np.zeros(n), 0
    latency = (1 + amplitude * shape) * (1 + WARM_UP_CV * rng.standard_normal(n))
    temperature = 60 - rng.uniform(8, 20) * shape + TEMPERATURE_NOISE_C * rng.standard_normal(n)
    return latency, temperature, k


def warm_up(cases: int, seed: int = 4) -> Table:
    rows, failures = [], []
    quiet = [("none", n) for n in (6, 10, None)]
    for kind, blocks in [("step", None), ("ramp", None), ("exponential", None), *quiet]:
        rng = np.random.default_rng([seed, len(kind), blocks or 0])
        near, near_both = 0, 0
        for _ in range(cases):
            latency, temperature, place = warm_up_case(rng, kind, blocks)
            tolerance = 2 if place else 0
            near += abs(warm_up_blocks(latency) - place) <= tolerance
            near_both += abs(warm_up_blocks(latency, temperature) - place) <= tolerance
        name = f"{kind}, {blocks or '20 to 40'} blocks"
        rows.append((name, f"{near / cases:.1%}", f"{near_both / cases:.1%}"))
        for what, count in (("latency", near), ("latency and temperature", near_both)):
            if kind != "none" and count < 0.9 * cases:
                failures.append(f"warm-up {name} by {what}: {count / cases:.1%}")
    columns = ("warm-up", "by latency", "by latency and temperature")
    return Table("warm_up", columns, tuple(rows), tuple(failures))


# 5. The gate -------------------------------------------------------------------------------


def gate(pairs: int, seed: int = 5, limit: float = 0.05) -> Table:
    rows, failures = [], []
    for n in (6, 10, 20):
        rng = np.random.default_rng([seed, n])
        old, new = 1 + CV * rng.standard_normal((2, pairs, n))
        shares = []
        for true in (0.0, limit / 2, limit, 2 * limit):
            outcomes = [
                judge_blocks(b * (1 + true), a, limit)[0] for a, b in zip(old, new, strict=True)
            ]
            shares.append(outcomes.count(Outcome.REGRESSION) / pairs)
        rows.append((str(n), *(f"{share:.1%}" for share in shares)))
        if shares[0] > 0.05:
            failures.append(f"gate n={n}: false alarms {shares[0]:.1%}")
        if n == 10 and shares[2] < 0.9:
            failures.append(f"gate n={n}: {limit:.0%} found in {shares[2]:.1%}")
    columns = ("blocks", "no change", "+2.5 %", "+5 %", "+10 %")
    return Table("gate", columns, tuple(rows), tuple(failures))


# 6. Does the energy's interval cover what a slow sensor hides? -------------------------------

IDLE_MW, LOAD_MW = 500.0, 2500.0
IDLE_S, WARM_S, TIMED_S, INFERENCES = 0.5, 0.5, 1.0, 20
POLL_HZ = 100.0


def sensed_session(rng: np.random.Generator, period_s: float, blocks: int = 6) -> RunData:
    """Blocks of idle, warm-up, timed, idle; the load differs by 2 % between blocks.

    The sensor is a register with the mean over its last whole period, in no step with the
    blocks, polled at 100 Hz with 0.4 % of noise.
    """
    length = 2 * IDLE_S + WARM_S + TIMED_S
    # Switches of power as a piecewise constant function, integrated exactly.
    edges, levels_mw = [0.0], []
    made, marks = [], []
    for i in range(blocks):
        t = i * length
        load = LOAD_MW * (1 + 0.02 * rng.standard_normal())
        edges += [t + IDLE_S, t + length - IDLE_S, t + length]
        levels_mw += [IDLE_MW, load, IDLE_MW]
        first, last = t + IDLE_S + WARM_S, t + length - IDLE_S
        made.append(Block(i, INFERENCES, _ns(first), _ns(last), np.empty(0, np.float32)))
        marks += [
            Mark("idle_before", _ns(t), _ns(t + IDLE_S), i),
            Mark("warmup", _ns(t + IDLE_S), _ns(first), i),
            Mark("idle_after", _ns(last), _ns(t + length), i),
        ]
    energy = np.concatenate([[0.0], np.cumsum(np.diff(edges) * levels_mw)])
    polls = np.arange(0, blocks * length + 1 / POLL_HZ, 1 / POLL_HZ)
    # The register changes at multiples of its period, shifted by a random phase.
    ends = np.floor((polls - (phase := rng.uniform(0, period_s))) / period_s) * period_s + phase
    whole = np.interp(ends, edges, energy) - np.interp(ends - period_s, edges, energy)
    noise = np.random.default_rng(rng.integers(2**32))
    jitter = {end: 1 + 0.004 * noise.standard_normal() for end in np.unique(ends)}
    value = np.maximum(whole / period_s, 1.0) * np.array([jitter[end] for end in ends])
    channel = Channel(1, "vph_pwr", "board", "power", "mW")
    samples = Samples(1, (polls * 1e9).astype(np.int64), value)
    return RunData("r", tuple(made), (channel,), {1: samples}, tuple(marks))


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def energy(sessions: int, seed: int = 6) -> Table:
    """True net energy per inference: the median load over the baseline, for a block."""
    truth = (LOAD_MW - IDLE_MW) * TIMED_S / INFERENCES
    rows, failures = [], []
    for period_ms in (1, 20, 50, 100, 250):
        rng = np.random.default_rng([seed, period_ms])
        inside, halves, errors = 0, [], []
        for _ in range(sessions):
            data = sensed_session(rng, period_ms / 1e3)
            trace = choose_power(data.channels, data.samples)
            assert trace is not None
            net = summarize(window_energies(trace, data.blocks, data.marks)).net_mj
            assert net is not None
            inside += net.low <= truth <= net.high
            halves.append((net.high - net.low) / 2 / truth)
            errors.append(net.value / truth - 1)
        share = inside / sessions
        rows.append(
            (
                f"{period_ms} ms",
                f"{share:.1%}",
                f"±{float(np.median(halves)):.1%}",
                f"{float(np.median(errors)):+.1%}",
            )
        )
        if share < 0.93:
            failures.append(f"energy at {period_ms} ms: {share:.1%}")
    columns = ("sensor's period", "covers the truth", "half width, median", "error, median")
    return Table("energy", columns, tuple(rows), tuple(failures))


# 7. Exact levels, from counting alone --------------------------------------------------------


def levels() -> Table:
    """The least number of blocks for each interval, and the coverage it really has there."""
    rows = []
    for what, level, interval in (
        ("median", LEVEL, median_interval),
        ("paired ratio (claims)", CLAIM_LEVEL, signed_rank_interval),
        ("two sessions (gate)", GATE_LEVEL, lambda x, level: shift_interval(x, x, level)),
    ):
        least = next(n for n in range(2, 50) if np.isfinite(interval(np.arange(n), level).low))
        rows.append((what, f"{level:.1%}", str(least)))
    return Table("levels", ("interval", "level, at least", "blocks it needs"), tuple(rows))


def rules() -> Table:
    """The validity rules, as `host.stats.validity` has them."""
    effect = {
        Scope.RUN: "run invalid",
        Scope.TIME: "time and power invalid",
        Scope.POWER: "power invalid",
        Scope.WARNING: "warning",
    }
    rows = [(f"`{r.name}`", r.wants, effect[r.scope], r.advice) for r in RULES]
    return Table("rules", ("rule", "wants", "otherwise", "what to do"), tuple(rows), align="---")


def tables(sessions: int, pairs: int, orders: int, cases: int) -> list[Table]:
    return [
        levels(),
        rules(),
        coverage(sessions),
        interleaving(orders),
        false_claims(pairs),
        warm_up(cases),
        gate(pairs),
        energy(cases),
    ]


def filled(text: str, found: Sequence[Table]) -> str:
    """`text` with every table put between its marks `<!-- table: name -->`, `<!-- end -->`."""
    for table in found:
        start, end = f"<!-- table: {table.name} -->\n", "<!-- end -->"
        head, mark, rest = text.partition(start)
        if not mark or end not in rest:
            raise SystemExit(f"no place for the table {table.name}")
        text = head + mark + table.markdown() + "\n" + end + rest.partition(end)[2]
    return text


def main(make: Callable[..., list[Table]] = tables) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sessions", type=int, default=5000, help="of the coverage table")
    parser.add_argument("--pairs", type=int, default=1000, help="of the claims and the gate")
    parser.add_argument("--orders", type=int, default=100, help="of the interleaving table")
    parser.add_argument("--cases", type=int, default=500, help="of the warm-up and energy tables")
    parser.add_argument("--write", type=Path, help="a document with places for the tables")
    options = parser.parse_args()
    found = make(options.sessions, options.pairs, options.orders, options.cases)
    for table in found:
        print(f"\n## {table.name}\n\n{table.markdown()}")
    if options.write:
        options.write.write_text(filled(options.write.read_text("utf-8"), found), "utf-8")
    failures = [line for table in found for line in table.failures]
    print("\n" + ("\n".join(f"NOT MET: {line}" for line in failures) or "every acceptance is met"))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
