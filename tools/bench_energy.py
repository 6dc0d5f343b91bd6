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
import json
import sys
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from agent.emulator.signals import SIGNALS
from host.bench.device import DeviceRunner
from host.bench.plan import Conditions, Profile, block_segment
from host.config import cache_dir
from host.devices import LocalEmulator
from host.measure import Limits, assess
from host.samples import default_sample
from host.store import RunRow, SessionRow, Store
from quant.artifact import Artifact, open_artifact
from quant.build import BuildRequest, build
from quant.figures import Provenance

SOC = "sm8650"
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


class SignalDevice(LocalEmulator):
    """An emulated device that shows a signal in place of its own power."""

    def __init__(self, signal: str, personality: str, seed: int, latency_us: float) -> None:
        self._more = ["--signal", signal, "--personality", personality, "--seed", str(seed)]
        self._latency_us = latency_us
        super().__init__(SOC)

    def _command(self, root: Path, token_file: Path) -> list[str]:
        return [*super()._command(root, token_file), *self._more]

    def put(self, artifact: Artifact) -> None:
        """The artifact, timed as the case wants it."""
        with tempfile.TemporaryDirectory() as tmp:
            folder = artifact.extract(Path(tmp), SOC)
            path = folder / "manifest.json"
            manifest = json.loads(path.read_text())
            manifest["device_model"][SOC]["latency_us"] = {"total": self._latency_us}
            path.write_text(json.dumps(manifest))
            self.client.put_artifact(folder, artifact.sha256)


def sample_artifact() -> Artifact:
    sample = default_sample()
    request = BuildRequest(
        model_path=sample.model_path, variant="int8", soc=SOC, cache_dir=cache_dir(None),
        task_path=sample.task_path, model_type=sample.model_type, metric=sample.metric,
        emulator_samples=16,
    )  # fmt: skip
    return open_artifact(build(request, lambda stage, seconds: None).artifact)


def measured(
    artifact: Artifact, signal: str, rail: Rail, latency_us: float, seed: int, folder: Path
) -> Outcome:
    """One run through the whole chain."""
    under = Conditions(SOC, rail.profile, "", rail.poll_hz, cooldown_timeout_s=0)
    with closing(SignalDevice(signal, rail.personality, seed, latency_us)) as device:
        with Store.open(folder / "q.duckdb", create=True) as store:
            store.new_session(SessionRow("s", "f", True, rail.profile.name, seed))
            run = RunRow(
                "r", "s", "m", "vision", "f", "t", SOC, "emulated", "EMU", "int8", "int8", "normal"
            )
            store.add_run(run, device.info.channels)
            runner = DeviceRunner(device, store, "s", lambda done: None)
            runner.put(artifact)
            runner.run(
                [block_segment("r", artifact.sha256, i, under) for i in range(rail.profile.blocks)]
            )
            assert not runner.failures, runner.failures
            data = store.run_data("r")
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
                    with tempfile.TemporaryDirectory() as folder:
                        got = measured(artifact, signal, rail, latency_us, seed, Path(folder))
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
