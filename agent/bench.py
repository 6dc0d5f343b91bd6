"""Works through the queued segments and writes all that happens into the spool.

Everything is raw: samples, marks, latencies. The host computes; no statistic is made here.
"""

from __future__ import annotations

import collections
import logging
import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.artifacts import ArtifactStore, Golden, checked_sha256
from agent.errors import (
    AgentError,
    BadRequest,
    Cancelled,
    DeviceFailure,
    FailureClass,
    TimedOut,
)
from agent.platform import Column, Platform
from agent.runtime import MAX_ITERATIONS, BlockLimits, Context, Runtime
from agent.spool import Spool
from protos import agent_pb2 as pb

MAX_QUEUED = 10_000
MAX_DURATION_NS = 24 * 3600 * 1_000_000_000
MAX_RATE_HZ = 1000.0
DEFAULT_RATE_HZ = 100.0
_ID_LIMIT = 200
_log = logging.getLogger(__name__)


class Bench:
    """One worker thread over a queue that survives the agent.

    The queue is kept in `queue_file`: segments that were unfinished when the agent was killed are
    reported as KILLED by the next one, so that a host always sees an end for what it started.
    """

    def __init__(
        self, platform: Platform, artifacts: ArtifactStore, spool: Spool, queue_file: Path
    ) -> None:
        self._platform = platform
        self._artifacts = artifacts
        self._spool = spool
        self._queue_file = queue_file
        self._queue: collections.deque[tuple[str, pb.Segment]] = collections.deque()
        self._running: tuple[str, pb.Segment] | None = None
        self._changed = threading.Condition()
        self._cancel = threading.Event()
        self._stopping = False
        self._runtime: Runtime = platform.runtime()
        self._loaded: Context | None = None
        self._report_killed()
        self._thread = threading.Thread(target=self._work, name="bench", daemon=True)
        self._thread.start()

    @property
    def running(self) -> str:
        """The run whose segment is under way, or ""."""
        with self._changed:
            return self._running[1].run_id if self._running else ""

    @property
    def queued(self) -> int:
        with self._changed:
            return len(self._queue)

    def start(self, session_id: str, segments: Sequence[pb.Segment]) -> int:
        """Queue all segments or none. Returns the first sequence number they can produce.

        Raises BadRequest and NotFound, naming the segment.
        """
        if not 0 < len(session_id) <= _ID_LIMIT or not segments:
            raise BadRequest("Start needs a session_id and at least one segment")
        for index, segment in enumerate(segments):
            try:
                self._check(segment)
            except AgentError as error:
                raise type(error)(f"segment {index}: {error}") from None
        with self._changed:
            if len(self._queue) + len(segments) > MAX_QUEUED:
                raise BadRequest(f"the queue holds at most {MAX_QUEUED} segments")
            first = self._spool.next_seq
            self._queue.extend((session_id, segment) for segment in segments)
            self._save_queue()
            self._changed.notify_all()
        return first

    def cancel(self, run_id: str) -> int:
        """End the running segment and drop the queued ones of a run ("" = of all).

        Every one of them gets a SegmentEnd with outcome CANCELLED. Returns how many.
        """
        with self._changed:
            dropped = [job for job in self._queue if run_id in ("", job[1].run_id)]
            for job in dropped:
                self._queue.remove(job)
            current = self._running is not None and run_id in ("", self._running[1].run_id)
            if current:
                self._cancel.set()
            self._save_queue()
        for session_id, segment in dropped:
            self._end(session_id, segment, Cancelled("cancelled before it began"))
        return len(dropped) + current

    def close(self, timeout_s: float = 5.0) -> None:
        """Stop: the running segment ends as KILLED, the queued ones wait for the next agent."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._platform.kill_children()
        self._thread.join(timeout_s)

    def _check(self, segment: pb.Segment) -> None:
        if not 0 < len(segment.run_id) <= _ID_LIMIT:
            raise BadRequest("run_id is empty or too long")
        self._artifacts.path(checked_sha256(segment.artifact))
        if segment.soc != self._platform.soc:
            raise BadRequest(f"made for {segment.soc!r}, this device is {self._platform.soc}")
        if segment.kind not in (pb.CHECK, pb.BLOCK):
            raise BadRequest("kind is neither CHECK nor BLOCK")
        times = (segment.min_duration_ns, segment.warmup_ns, segment.idle_ns)
        if any(not 0 <= t <= MAX_DURATION_NS for t in (*times, segment.max_duration_ns)):
            raise BadRequest("a duration is negative or longer than a day")
        if not 0 <= segment.sample_rate_hz <= MAX_RATE_HZ:
            raise BadRequest(f"sample_rate_hz is not within 0 to {MAX_RATE_HZ:.0f}")
        if segment.kind == pb.BLOCK:
            if not 0 < segment.min_inferences < MAX_ITERATIONS:
                raise BadRequest(f"min_inferences is not within 1 to {MAX_ITERATIONS - 1}")
            if segment.max_duration_ns < max(segment.min_duration_ns, 1):
                raise BadRequest("max_duration_ns is below min_duration_ns")

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._stopping:
                    self._changed.wait()
                if self._stopping:
                    self._runtime.close()
                    return
                job = self._running = self._queue.popleft()
                self._cancel.clear()
            error: AgentError | None = None
            try:
                with self._platform.active():
                    self._run(*job)
            except AgentError as raised:
                error = raised
            except Exception as raised:  # noqa: BLE001 - one segment's failure is not the agent's
                _log.exception("segment failed")
                error = AgentError(f"{type(raised).__name__}: {raised}")
            if error is not None:
                self._unload()
            with self._changed:
                if self._stopping:
                    return  # the queue file still names this segment: the next agent reports it
                self._end(*job, error)
                self._running = None
                self._save_queue()

    def _run(self, session_id: str, segment: pb.Segment) -> None:
        work = _Segment(session_id, segment, self)
        if segment.kind == pb.CHECK:
            work.check()
        else:
            work.block()

    def _stopped(self) -> bool:
        return self._cancel.is_set() or self._stopping

    def _context(self, segment: pb.Segment) -> Context:
        return self._artifacts.context(
            segment.artifact,
            segment.soc,
            self._platform.soc_model,
            segment.perf_profile or "burst",
        )

    def _unload(self) -> None:
        self._loaded = None
        self._runtime.close()

    def _end(self, session_id: str, segment: pb.Segment, error: AgentError | None) -> None:
        end = pb.SegmentEnd(kind=segment.kind, block_index=segment.block_index, outcome=pb.OK)
        if isinstance(error, Cancelled):
            end.outcome = pb.CANCELLED
            end.message = str(error)
        elif error is not None:
            end.outcome = pb.FAILED
            end.failure_class = error.failure_class
            end.message = str(error)[:2000]
        self._append(pb.Batch(session_id=session_id, run_id=segment.run_id, end=end), True)

    def _append(self, batch: pb.Batch, reserved: bool = False) -> None:
        def encode(seq: int) -> bytes:
            batch.seq = seq
            return batch.SerializeToString()

        self._spool.append(encode, reserved=reserved)

    def _save_queue(self) -> None:
        jobs = ([self._running] if self._running else []) + list(self._queue)
        stored = pb.StoredQueue(
            jobs=[pb.StoredQueue.Job(session_id=s, segment=segment) for s, segment in jobs]
        )
        tmp = self._queue_file.with_suffix(".tmp")
        tmp.write_bytes(stored.SerializeToString())
        tmp.replace(self._queue_file)

    def _report_killed(self) -> None:
        try:
            stored = pb.StoredQueue.FromString(self._queue_file.read_bytes())
        except FileNotFoundError:
            return
        for job in stored.jobs:
            error = AgentError("the agent ended before this segment did")
            error.failure_class = FailureClass.KILLED
            self._end(job.session_id, job.segment, error)
        self._queue_file.unlink()


class _Segment:
    """One segment under way."""

    def __init__(self, session_id: str, segment: pb.Segment, bench: Bench) -> None:
        self._session_id = session_id
        self._segment = segment
        self._bench = bench
        self._platform = bench._platform
        self._runtime = bench._runtime
        self._context = bench._context(segment)
        self._rate_hz = segment.sample_rate_hz or DEFAULT_RATE_HZ

    def check(self) -> None:
        """Cold load, first inference, warm load, goldens."""
        goldens = self._goldens()
        runtime = self._runtime
        with self._sampling():
            self._bench._unload()
            start = self._platform.now_ns()
            cold = runtime.load(self._context)
            start = self._mark(pb.COLD_LOAD, start)
            first_s = runtime.first_inference(goldens[0].inputs)
            start = self._mark(pb.FIRST_INFERENCE, start)
            warm = runtime.load(self._context)
            self._mark(pb.WARM_LOAD, start)
        self._bench._loaded = self._context
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

    def block(self) -> None:
        """Idle baseline, warm-up, the timed block, idle baseline: sampled without a break."""
        segment, runtime, platform = self._segment, self._runtime, self._platform
        feeds = [golden.inputs for golden in self._goldens()]
        stop = self._bench._stopped
        if self._bench._loaded != self._context:
            self._bench._unload()
            runtime.load(self._context)
            self._bench._loaded = self._context
        with self._sampling():
            start = platform.now_ns()
            platform.idle(segment.idle_ns, stop)
            start = self._mark(pb.IDLE_BEFORE, start)
            if segment.warmup_ns:
                runtime.run_block(feeds, BlockLimits(1, segment.warmup_ns, segment.warmup_ns), stop)
                self._mark(pb.WARMUP, start)
            self._raise_if_stopped()
            block = runtime.run_block(
                feeds,
                BlockLimits(
                    segment.min_inferences, segment.min_duration_ns, segment.max_duration_ns
                ),
                stop,
            )
            self._raise_if_stopped()
            self._mark(pb.TIMED, block.t_first_ns, block.t_last_ns)
            start = platform.now_ns()
            platform.idle(segment.idle_ns, stop)
            self._mark(pb.IDLE_AFTER, start)
        self._raise_if_stopped()
        if block.inferences == MAX_ITERATIONS:
            raise BadRequest(f"the block reached {MAX_ITERATIONS} inferences: make it shorter")
        if block.inferences < segment.min_inferences:
            raise TimedOut(
                f"{block.inferences} of {segment.min_inferences} inferences within "
                f"{segment.max_duration_ns / 1e9:.1f} s"
            )
        self._put(
            block=pb.BlockResult(
                block_index=segment.block_index,
                inferences=block.inferences,
                t_first_ns=block.t_first_ns,
                t_last_ns=block.t_last_ns,
                per_iteration_us=(
                    block.per_iteration_us.tolist() if block.per_iteration_us is not None else []
                ),
                window_method=block.window_method,
                throttled=block.throttled,
            )
        )

    def _goldens(self) -> list[Golden]:
        return self._bench._artifacts.goldens(self._segment.artifact, self._segment.soc)

    def _compare(self, goldens: list[Golden]) -> pb.GoldenResult:
        equal, signal, noise = True, 0.0, 0.0
        for golden in goldens:
            self._raise_if_stopped()
            outputs = self._runtime.outputs(golden.inputs)
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

    def _sampling(self) -> Any:
        return self._platform.sampling(self._rate_hz, self._on_samples)

    def _on_samples(self, columns: Sequence[Column]) -> None:
        self._put(
            samples=[pb.Samples(channel=c.channel, t_ns=c.t_ns, value=c.values) for c in columns]
        )

    def _mark(self, phase: pb.Phase, start_ns: int, end_ns: int | None = None) -> int:
        """Append a mark that ends now (or at end_ns) and return its end."""
        end = self._platform.now_ns() if end_ns is None else end_ns
        index = self._segment.block_index
        self._put(
            marks=[pb.Mark(phase=phase, t_start_ns=start_ns, t_end_ns=end, block_index=index)]
        )
        self._raise_if_stopped()
        return end

    def _put(self, **parts: Any) -> None:
        self._bench._append(
            pb.Batch(session_id=self._session_id, run_id=self._segment.run_id, **parts)
        )

    def _raise_if_stopped(self) -> None:
        if self._bench._stopped():
            raise Cancelled("cancelled by the host")


def _energy(values: NDArray[np.float64]) -> float:
    return float(np.vdot(values, values))


def _sqnr_db(signal: float, noise: float) -> float:
    """10 log10(signal / noise); +inf when there is no noise, -inf for noise alone."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
