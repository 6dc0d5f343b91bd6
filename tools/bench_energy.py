"""Does net energy come out right? Known power signals, seen through every kind of rail.

    python tools/bench_energy.py [--seeds 3]

The emulated device shows a synthetic signal on its rail; the agent's sensors read the rail's
files, its stream goes into a database, and `host.measure` makes figures of it: the way of every
bench. The truth is the signal's exact integral (`agent/emulator/signals.py`). At 100 Hz and 1 kHz
the error must be at most 2 %; at 1 Hz and 0.1 Hz the truth must lie within the interval that the
figure states; and what a rail cannot support must be marked invalid with the reason.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

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


RAPID = Profile("rapid", 64, 6, 60, 0.25, 0.5)
RAILS = {
    "1 kHz": Rail("board-1khz", 1000.0, RAPID, 0.02),
    "100 Hz": Rail("board", 100.0, RAPID, 0.02),
    "1 Hz": Rail("board-1hz", 20.0, Profile("normal", 64, 120, 600, 2.0, 10.0), None),
    "0.1 Hz": Rail("board-0.1hz", 5.0, Profile("long", 64, 1200, 6000, 20.0, 60.0), None),
    # What no figure can be made of: blocks of 1 s under a rail that changes every 10 s.
    "0.1 Hz, blocks of 1 s": Rail("board-0.1hz", 20.0, RAPID, None),
}


@dataclass(frozen=True)
class Outcome:
    error: float  # relative, of the median block
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
        return Outcome(float("nan"), float("nan"), False, False, figure.reason)
    low, high = figure.ci_low, figure.ci_high
    inside = low is not None and high is not None and low <= truth <= high
    half = (high - low) / 2 / truth if low is not None and high is not None else float("inf")
    return Outcome(figure.value / truth - 1, half, inside, figure.valid, figure.reason)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=1, help="runs of each case")
    parser.add_argument("--only", choices=list(RAILS), help="one rail alone")
    options = parser.parse_args()
    artifact = sample_artifact()
    bad = []
    print("rail                   signal    latency  seed   error    +-  inside  valid")
    for name, rail in RAILS.items():
        if options.only not in (None, name):
            continue
        unsupported = "blocks of" in name
        for signal in SIGNALS:
            for latency_us in LATENCIES_US:
                for seed in range(options.seeds):
                    got = measured(artifact, signal, rail, latency_us, seed)
                    print(
                        f"{name:22s} {signal:9s} {latency_us / 1e3:5.2f} ms {seed:4d} "
                        f"{got.error:+8.2%} {got.half_width:6.1%} {got.inside!s:>6s} "
                        f"{got.valid!s:>6s}  {got.reason}",
                        flush=True,
                    )
                    case = f"{name}, {signal}, {latency_us:g} us, seed {seed}"
                    if unsupported:
                        if got.valid or not got.reason:
                            bad.append(f"{case}: a figure without support")
                    elif rail.within is not None and not abs(got.error) <= rail.within:
                        bad.append(f"{case}: {got.error:+.2%}")
                    elif rail.within is not None and not got.valid:
                        bad.append(f"{case}: invalid: {got.reason}")
                    elif rail.within is None and not got.inside:
                        bad.append(f"{case}: the truth is outside of the stated interval")
    print("\n".join(f"NOT MET: {line}" for line in bad) or "every acceptance is met")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
