"""Are a run's flags raised when they must be, and only then?

    python tools/bench_flags.py [--seeds 10]

Every case is a whole run on an emulated device that has the trouble: heat, a charger, a gauge that
is too slow, a cooldown that never comes, a clock that moves, blocks that are missing. The clean
cases have none of it. Each runs with so many seeds of the noise. The flags are the rules of
`host/stats/validity.py` by their names.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from emulated_runs import RUN, SOC, run_segments, sample_artifact

from host.bench.plan import Conditions, Profile, block_segment
from host.client import Cooling, SegmentSpec
from host.measure import Limits, assess
from quant.artifact import Artifact
from quant.figures import Provenance

SECOND_NS = 1_000_000_000
FLAGS = (
    "throttled", "charging", "clock_changed", "sensor_too_slow", "cooldown", "blocks", "min_count",
    "min_duration",
)  # fmt: skip
RAPID = Profile("rapid", 64, 6, 60, 0.25, 0.5)
LONG = Profile("long", 64, 360, 600, 2.0, 20.0)
# An inference that keeps the NPU at the limit of its rail: 7.5 W warm a phone in a minute.
HOT = {
    "latency_us": {"total": 5000.0},
    "activity": {"macs": 100e9, "hvx_share": 1.0, "ddr_bytes": 100e6},
}
WARM = {**HOT, "activity": {"macs": 10e9, "hvx_share": 0.2, "ddr_bytes": 10e6}}


@dataclass(frozen=True)
class Case:
    """`wants`: the flags that must be raised, and no others of FLAGS."""

    name: str
    wants: frozenset[str]
    personality: str = "board"
    profile: Profile = RAPID
    model: Mapping[str, Any] = field(default_factory=dict)
    charging: bool = False  # stop it
    cooldown_s: float = 0.0
    perf_profiles: Sequence[str] = ("burst",)  # of the blocks in turn
    blocks: int | None = None  # fewer than the profile's
    sample_hz: float = 100.0


CASES = (
    Case("throttled by heat", frozenset({"throttled"}), "hot", LONG, HOT, sample_hz=10),
    Case("on the charger", frozenset({"charging"}), "phone-plugged", LONG, sample_hz=10),
    Case("a gauge of 0.1 Hz, blocks of 1 s", frozenset({"sensor_too_slow"}), "phone-slow-gauge"),
    Case("a gauge of 1 Hz, blocks of 1 s", frozenset({"sensor_too_slow"}), "phone"),
    Case("a rail of 1 Hz, blocks of 1 s", frozenset({"sensor_too_slow"}), "board-1hz"),
    Case(
        "never cool again", frozenset({"cooldown"}), "board",
        Profile("warm", 64, 120, 600, 0.25, 0.5), HOT, cooldown_s=1.0, sample_hz=20,
    ),
    Case("a clock that moves", frozenset({"clock_changed"}), "board-clocks",
         perf_profiles=("burst", "balanced")),
    Case("four blocks of six", frozenset({"blocks", "min_duration"}), blocks=4),
    Case("clean: board", frozenset(), "board", cooldown_s=300),
    Case("clean: board at 1 kHz", frozenset(), "board-1khz", sample_hz=1000),
    Case("clean: board with a clock", frozenset(), "board-clocks", cooldown_s=300),
    Case("clean: phone, long blocks", frozenset(), "phone", LONG, WARM, sample_hz=10),
    Case("clean: charger cut", frozenset(), "phone-plugged", LONG, WARM, charging=True,
         sample_hz=10),
    Case("clean: inverted gauge", frozenset(), "phone-inverted", LONG, WARM, sample_hz=10),
    Case("clean: gauge in mA", frozenset(), "phone-ma", LONG, WARM, sample_hz=10),
)  # fmt: skip


def segments(case: Case, artifact: str) -> list[SegmentSpec]:
    under = Conditions(SOC, case.profile, "", case.sample_hz, cooldown_timeout_s=0)
    made = []
    for index in range(case.blocks or case.profile.blocks):
        spec = block_segment(RUN, artifact, index, under)
        spec = replace(
            spec,
            perf_profile=case.perf_profiles[index % len(case.perf_profiles)],
            stop_charging=case.charging,
        )
        if case.cooldown_s:
            timeout = round(case.cooldown_s * SECOND_NS)
            spec = replace(spec, cooldown=Cooling(("skin", "npu"), 3.0, timeout))
        made.append(spec)
    return made


def flags(case: Case, artifact: Artifact, seed: int) -> frozenset[str]:
    data, failure = run_segments(
        artifact, segments(case, artifact.sha256), personality=case.personality, seed=seed,
        model=case.model,
    )  # fmt: skip
    assert not failure, failure
    limits = Limits(case.profile.min_inferences, case.profile.min_s)
    result = assess(data, Provenance.EMULATED_DEVICE, limits)
    return frozenset(f.rule for f in result.findings) & frozenset(FLAGS)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", help="cases whose name holds this")
    options = parser.parse_args()
    artifact = sample_artifact()
    bad = 0
    for case in CASES:
        if options.only and options.only not in case.name:
            continue
        found = [flags(case, artifact, seed) for seed in range(options.seeds)]
        right = sum(got == case.wants for got in found)
        bad += right < options.seeds
        others = {flag for got in found for flag in got ^ case.wants}
        print(
            f"{case.name:34s} {right:3d} of {options.seeds} right: "
            f"{', '.join(sorted(case.wants)) or 'no flag'}"
            + (f"; WRONG: {', '.join(sorted(others))}" if others else ""),
            flush=True,
        )
    print("every acceptance is met" if not bad else f"NOT MET in {bad} cases")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
