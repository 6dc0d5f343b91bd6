"""Does net energy come out right? Known power signals, seen through every kind of rail.

    python tools/bench_energy.py [--seeds 3] [--write docs/measuring.md]

The emulated device shows a synthetic signal on its rail; the agent's sensors read the rail's
files, its stream goes into a database, and `host.measure` makes figures of it: the way of every
bench. The truth is the signal's exact integral (`agent/emulator/signals.py`). At 100 Hz and 1 kHz
the error must be at most 2 %; at 1 Hz and 0.1 Hz the truth must lie within the interval that the
figure states; and what a rail cannot support must be absent with the reason.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from bench_stats import Table, filled
from emulated_runs import RUN, SOC, run_segments, sample_artifact

from agent.emulator.signals import SIGNALS
from host.bench.plan import Conditions, Profile, block_segment
from host.measure import Limits, assess
from quant.artifact import Artifact
from quant.figures import Provenance

# Latencies: one with many inferences in a reading of any rail, one with a few in a 10 ms reading.
LATENCIES_US = (730.0, 7_300.0)


@dataclass(frozen=True)
class Rail:
    """A personality, how often it is polled, and the profile that suits it; `within`: the error
    allowed, None where the stated interval is the measure."""

    personality: str
    poll_hz: float
    profile: Profile
    within: float | None
    supported: bool = True  # whether any figure can be made of it


RAPID = Profile("rapid", 64, 6, 60, 0.25, 0.5)
RAILS = {
    "1 kHz": Rail("board-1khz", 1000.0, RAPID, 0.02),
    "100 Hz": Rail("board", 100.0, RAPID, 0.02),
    "1 Hz": Rail("board-1hz", 20.0, Profile("normal", 64, 120, 600, 2.0, 10.0), None),
    "0.1 Hz": Rail("board-0.1hz", 5.0, Profile("long", 64, 1200, 6000, 20.0, 60.0), None),
    # What no figure can be made of: blocks of 1 s under a rail that changes every 10 s.
    "0.1 Hz, blocks of 1 s": Rail("board-0.1hz", 20.0, RAPID, None, False),
}


@dataclass(frozen=True)
class Outcome:
    error: float | None  # relative; None where there is no figure
    half_width: float
    inside: bool
    valid: bool
    reason: str


def measured(artifact: Artifact, signal: str, rail: Rail, latency_us: float, seed: int) -> Outcome:
    """One run through the whole chain."""
    under = Conditions(SOC, rail.profile, "", rail.poll_hz, cooldown_timeout_s=0)
    blocks = [block_segment(RUN, artifact.sha256, i, under) for i in range(rail.profile.blocks)]
    data, failure = run_segments(
        artifact,
        blocks,
        personality=rail.personality,
        seed=seed,
        signal=signal,
        model={"latency_us": {"total": latency_us}},
    )
    assert not failure, failure
    limits = Limits(rail.profile.min_inferences, rail.profile.min_s)
    result = assess(data, Provenance.EMULATED_DEVICE, limits)
    figure = next(f for f in result.figures if f.metric == "energy_mj")
    # The signal begins anew with each stretch of inferences, so with each timed block.
    exact = SIGNALS[signal]()
    truths = [
        exact.energy_mj(b.duration_ns * 1e-9, latency_us * 1e-6) / b.inferences for b in data.blocks
    ]
    truth = sum(truths) / len(truths)
    if figure.value is None:
        return Outcome(None, 0.0, False, False, figure.reason)
    low, high = figure.ci_low, figure.ci_high
    inside = low is not None and high is not None and low <= truth <= high
    half = (high - low) / 2 / truth if low is not None and high is not None else float("inf")
    return Outcome(figure.value / truth - 1, half, inside, figure.valid, figure.reason)


def judged(name: str, rail: Rail, got: Outcome) -> str:
    """What is wrong with an outcome; empty when it is as it must be."""
    if not rail.supported:
        return "" if got.error is None and got.reason else "a figure without support"
    if got.error is None or not got.valid:
        return f"no valid figure: {got.reason}"
    if rail.within is not None and not abs(got.error) <= rail.within:
        return f"{got.error:+.2%} off"
    if rail.within is None and not got.inside:
        return "the truth is outside of the stated interval"
    return ""


def row(name: str, outcomes: Sequence[Outcome]) -> tuple[str, str, str]:
    errors = [abs(o.error) for o in outcomes if o.error is not None]
    if not errors:
        return (name, "absent", "absent")
    return (name, f"{max(errors):.2%}", f"±{max(o.half_width for o in outcomes):.1%}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=1, help="runs of each case")
    parser.add_argument("--only", choices=list(RAILS), help="one rail alone")
    parser.add_argument("--write", type=Path, help="a document with a place for the table")
    options = parser.parse_args()
    artifact = sample_artifact()
    bad, rows = [], []
    print("rail                   signal    latency  seed   error    +-  inside  valid")
    for name, rail in RAILS.items():
        if options.only not in (None, name):
            continue
        outcomes = []
        for signal, latency_us, seed in product(SIGNALS, LATENCIES_US, range(options.seeds)):
            got = measured(artifact, signal, rail, latency_us, seed)
            outcomes.append(got)
            error = "absent" if got.error is None else f"{got.error:+.2%}"
            print(
                f"{name:22s} {signal:9s} {latency_us / 1e3:5.2f} ms {seed:4d} {error:>8s} "
                f"{got.half_width:6.1%} {got.inside!s:>6s} {got.valid!s:>6s}  {got.reason}",
                flush=True,
            )
            if wrong := judged(name, rail, got):
                bad.append(f"{name}, {signal}, {latency_us:g} us, seed {seed}: {wrong}")
        rows.append(row(name, outcomes))
    table = Table("chain", ("rail", "worst error of net energy", "stated interval"), tuple(rows))
    print(f"\n{table.markdown()}\n")
    if options.write and options.only is None:
        options.write.write_text(filled(options.write.read_text("utf-8"), [table]), "utf-8")
    print("\n".join(f"NOT MET: {line}" for line in bad) or "every acceptance is met")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
