"""One segment: what each kind does, step by step, and what it writes down."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.artifacts import ArtifactStore, Golden
from agent.errors import BadRequest, Cancelled, DeviceFailure, TimedOut
from agent.evaluation import OutputFiles, read_inputs
from agent.gates import CeilingWatch, cool_down, steady
from agent.memory import MemoryWatch
from agent.platform import Column, Platform
from agent.runtime import MAX_ITERATIONS, Array, Block, BlockLimits, Context, Feed, Runtime, Stop
from agent.runtime.profile import parse_profile
from protos import agent_pb2 as pb

DEFAULT_RATE_HZ = 100.0
# While it cools a device is watched, not measured.
_COOLDOWN_RATE_HZ = 2.0
_SETTLE_NS = 200_000_000
# How often an evaluation says that it goes on: a host gives up on a device that is silent for long.
_PROGRESS_SAMPLES = 16


@dataclass
class Station:
    """What segments share: the device, its runtime, and what is loaded into it."""

    platform: Platform
    artifacts: ArtifactStore
    runtime: Runtime
    outputs: Path  # files for Fetch
    loaded: Context | None = None
    session_id: str = ""
    # Zone name -> C when the session's first segment began: what a cooldown gate compares with.
    start_c: dict[str, float] = field(default_factory=dict)

    def begin(self, session_id: str) -> None:
        if session_id != self.session_id:
            self.session_id = session_id
            self.start_c = {spec.name: value for spec, value in self.platform.temperatures()}

    def load(self, context: Context) -> None:
        """Load unless it is loaded already."""
        if self.loaded != context:
            self.unload()
            self.runtime.load(context)
            self.loaded = context

    def unload(self) -> None:
        self.loaded = None
        self.runtime.close()


class SegmentRun:
    """One segment under way. `append` stores a batch; `stop` is true when the host cancelled."""

    def __init__(
        self, station: Station, segment: pb.Segment, append: Callable[[pb.Batch], None], stop: Stop
    ) -> None:
        self._station = station
        self._segment = segment
        self._append = append
        self._cancelled = stop
        self._platform = station.platform
        self._runtime = station.runtime
        self._rate_hz = segment.sample_rate_hz or DEFAULT_RATE_HZ
        self._ceilings = CeilingWatch(station.platform, segment.ceilings)
        self._throttled = False

    def run(self) -> None:
        """Raises what ends the segment otherwise than OK."""
        self._charging()
        {
            pb.CHECK: self._check,
            pb.BLOCK: self._block,
            pb.PROFILE: self._profile,
            pb.EVALUATE: self._evaluate,
            pb.FOOTPRINT: self._footprint,
        }[self._segment.kind]()

    def _check(self) -> None:
        """Cold load, first inference, warm load, goldens."""
        goldens = self._goldens()
        context = self._context()
        runtime = self._runtime
        with self._sampling():
            self._station.unload()
            start = self._platform.now_ns()
            cold = runtime.load(context)
            start = self._mark(pb.COLD_LOAD, start)
            first_s = runtime.first_inference(goldens[0].inputs)
            start = self._mark(pb.FIRST_INFERENCE, start)
            warm = runtime.load(context)
            self._mark(pb.WARM_LOAD, start)
        self._station.loaded = context
        self._put(
            load=pb.LoadResult(
                cold_s=cold.seconds,
                warm_s=warm.seconds,
                first_inference_s=first_s,
                peak_memory_bytes=max(cold.peak_memory_bytes, warm.peak_memory_bytes),
            )
        )
        start = self._platform.now_ns()
        self._put(golden=self._compare(goldens))
        self._mark(pb.GOLDEN, start)

    def _footprint(self) -> None:
        """A fresh process loads and infers while its memory is read."""
        feeds = [golden.inputs for golden in self._goldens()]
        context = self._context()
        self._station.unload()
        loaded = self._runtime.load(context)
        limits = BlockLimits(1, self._segment.min_duration_ns, self._segment.min_duration_ns)
        with MemoryWatch(self._platform) as watch:
            self._runtime.run_block(feeds, limits, self._stop)
        self._station.loaded = context
        self._raise_if_stopped()
        self._put(memory=watch.result(loaded.peak_memory_bytes))

    def _block(self) -> None:
        """Cooldown gate; idle baseline, warm-up, timed block, idle baseline without a break."""
        segment, platform = self._segment, self._platform
        feeds = [golden.inputs for golden in self._goldens()]
        self._station.load(self._context())
        if segment.HasField("cooldown"):
            self._cool_down()
        with self._sampling():
            start = platform.now_ns()
            platform.idle(segment.idle_ns, self._stop)
            start = self._mark(pb.IDLE_BEFORE, start)
            if segment.warmup_ns:
                self._warm_up(feeds)
                self._mark(pb.WARMUP, start)
            limits = BlockLimits(
                segment.min_inferences, segment.min_duration_ns, segment.max_duration_ns
            )
            self._throttled = self._platform.throttling()
            block = self._runtime.run_block(feeds, limits, self._stop_or_throttle)
            self._mark(pb.TIMED, block.t_first_ns, block.t_last_ns)
            start = platform.now_ns()
            after = segment.idle_after_ns if segment.HasField("idle_after_ns") else segment.idle_ns
            platform.idle(after, self._stop)
            self._mark(pb.IDLE_AFTER, start)
        self._check_length(block)
        latencies = block.per_iteration_us
        self._put(
            block=pb.BlockResult(
                block_index=segment.block_index,
                inferences=block.inferences,
                t_first_ns=block.t_first_ns,
                t_last_ns=block.t_last_ns,
                per_iteration_us=latencies.tolist() if latencies is not None else [],
                window_method=block.window_method,
                throttled=self._throttled,
            )
        )

    def _profile(self) -> None:
        """Per-operator cycles; QNN's file is kept for Fetch."""
        self._station.unload()
        feeds = [golden.inputs for golden in self._goldens()]
        raw = self._runtime.profile(self._context(), feeds, self._segment.min_inferences)
        result = pb.ProfileResult()
        if raw.kind == "csv":
            try:
                profile = parse_profile(raw.data.decode())
            except ValueError as error:
                raise DeviceFailure(str(error)) from error
            result.execute_us.extend(profile.execute_us)
            result.ops.extend(
                pb.OpProfile(name=op.name, op_id=op.op_id, cycles=op.cycles)
                for op in profile.operators
            )
        file = self._station.outputs / f"profile-{self._run_name()}.{raw.kind}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(raw.data)
        result.file = f"outputs/{file.name}"
        self._put(profile=result)

    def _evaluate(self) -> None:
        """The outputs of every sample of the input set, as files for Fetch."""
        inputs = read_inputs(self._station.artifacts, self._segment.inputs)
        self._station.load(self._context())
        folder = self._station.outputs / f"evaluation-{self._run_name()}"
        with OutputFiles(folder, inputs.samples) as files:
            for done, sample in enumerate(self._outputs(inputs.feeds())):
                if done and done % _PROGRESS_SAMPLES == 0:
                    self._put(evaluation=pb.EvaluationResult(samples=done))
                files.append(sample)
            outputs = files.finish(self._station.outputs.parent)
        self._put(evaluation=pb.EvaluationResult(samples=inputs.samples, outputs=outputs))

    def _outputs(self, feeds: Iterable[Feed]) -> Iterator[dict[str, Array]]:
        """Of each feed, as many at once as the runtime does best."""
        waiting = iter(feeds)
        while some := list(itertools.islice(waiting, self._runtime.batch)):
            self._raise_if_stopped()
            yield from self._runtime.outputs_of(some)

    def _run_name(self) -> str:
        """The run's id as the name of a file: a host may choose ids with any characters."""
        return hashlib.sha256(self._segment.run_id.encode()).hexdigest()[:16]

    def _warm_up(self, feeds: list[Feed]) -> None:
        """Pieces of warmup_ns until two in a row are alike, or warmup_max_ns is over."""
        segment = self._segment
        end = self._platform.now_ns() + segment.warmup_max_ns
        limits = BlockLimits(1, segment.warmup_ns, segment.warmup_ns)
        before = self._runtime.run_block(feeds, limits, self._stop)
        while self._platform.now_ns() < end and not self._stop():
            after = self._runtime.run_block(feeds, limits, self._stop)
            if steady(before, after):
                return
            before = after

    def _cool_down(self) -> None:
        start = self._platform.now_ns()
        with self._platform.sampling(_COOLDOWN_RATE_HZ, self._on_samples, lambda report: None):
            result = cool_down(
                self._platform, self._segment.cooldown, self._station.start_c, self._stop
            )
        result.block_index = self._segment.block_index
        self._put(cooldown=result)
        self._mark(pb.COOLDOWN, start)

    def _charging(self) -> None:
        charger = self._platform.charger
        if self._segment.charging == pb.STOP_CHARGING:
            charger.stop(lambda: self._platform.idle(_SETTLE_NS, self._cancelled))
        if self._segment.charging != pb.CHARGING_UNSPECIFIED:
            charger.require_discharging()

    def _context(self) -> Context:
        return self._station.artifacts.context(
            self._segment.artifact,
            self._segment.soc,
            self._platform.soc_model,
            self._segment.perf_profile,
        )

    def _goldens(self) -> list[Golden]:
        return self._station.artifacts.goldens(self._segment.artifact, self._segment.soc)

    def _compare(self, goldens: list[Golden]) -> pb.GoldenResult:
        equal, signal, noise = True, 0.0, 0.0
        computed = self._outputs(golden.inputs for golden in goldens)
        for golden, outputs in zip(goldens, computed, strict=True):
            for name, want in golden.outputs.items():
                got = outputs.get(name)
                if got is None or got.shape != want.shape:
                    raise DeviceFailure(f"output {name!r} is missing or has another shape")
                equal = equal and got.tobytes() == want.tobytes()
                exact = want.astype(np.float64)
                signal += _energy(exact)
                noise += _energy(got.astype(np.float64) - exact)
        return pb.GoldenResult(
            samples=len(goldens), bit_equal=equal, sqnr_db=_sqnr_db(signal, noise)
        )

    def _check_length(self, block: Block) -> None:
        segment = self._segment
        if block.inferences == MAX_ITERATIONS:
            raise BadRequest(f"the block reached {MAX_ITERATIONS} inferences: make it shorter")
        if block.inferences < segment.min_inferences:
            raise TimedOut(
                f"{block.inferences} of {segment.min_inferences} inferences within "
                f"{segment.max_duration_ns / 1e9:.1f} s"
            )

    def _sampling(self) -> AbstractContextManager[None]:
        return self._platform.sampling(self._rate_hz, self._on_samples, self._on_report)

    def _on_samples(self, columns: Sequence[Column]) -> None:
        self._put(
            samples=[pb.Samples(channel=c.channel, t_ns=c.t_ns, value=c.values) for c in columns]
        )

    def _on_report(self, report: pb.SamplerReport) -> None:
        self._put(sampler=report)

    def _mark(self, phase: pb.Phase, start_ns: int, end_ns: int | None = None) -> int:
        """Append a mark that ends now (or at end_ns) and return its end; stops here if it must."""
        end = self._platform.now_ns() if end_ns is None else end_ns
        index = self._segment.block_index
        mark = pb.Mark(phase=phase, t_start_ns=start_ns, t_end_ns=end, block_index=index)
        self._put(marks=[mark])
        self._raise_if_stopped()
        return end

    def _put(self, **parts: Any) -> None:
        self._append(pb.Batch(**parts))

    def _stop_or_throttle(self) -> bool:
        self._throttled = self._throttled or self._platform.throttling()
        return self._stop()

    def _stop(self) -> bool:
        return self._cancelled() or self._ceilings.reached()

    def _raise_if_stopped(self) -> None:
        if self._ceilings.message:
            raise DeviceFailure(self._ceilings.message)
        if self._cancelled():
            raise Cancelled("cancelled by the host")


def _energy(values: NDArray[np.float64]) -> float:
    return float(np.vdot(values, values))


def _sqnr_db(signal: float, noise: float) -> float:
    """10 log10(signal / noise); +inf when there is no noise, -inf for noise alone."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
