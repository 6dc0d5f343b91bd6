"""Works through the queued segments and writes all that happens into the spool.

Everything is raw: samples, marks, latencies. The host computes; no statistic is made here.
"""

from __future__ import annotations

import collections
import logging
import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

from agent.artifacts import ArtifactStore, checked_sha256
from agent.errors import AgentError, BadRequest, Cancelled, Killed, SpoolFull
from agent.platform import Platform
from agent.runtime import MAX_ITERATIONS
from agent.segment import SegmentRun, Station
from agent.spool import Spool
from protos import agent_pb2 as pb

MAX_QUEUED = 10_000
MAX_PROFILED = 100
MAX_DURATION_NS = 24 * 3600 * 1_000_000_000
MAX_RATE_HZ = 1000.0
# How long the charger stays cut when nothing is queued: between two Starts of one session.
CHARGER_GRACE_S = 30.0
_ID_LIMIT = 200
_log = logging.getLogger(__name__)

# What a host knows a segment by: session, run, kind, block.
Key = tuple[str, str, int, int]


class Bench:
    """One worker thread over a queue that survives the agent.

    The queue is kept in `queue_file`: segments that were unfinished when the agent was killed are
    reported as KILLED by the next one, so that a host always sees an end for what it started.
    """

    def __init__(
        self,
        platform: Platform,
        artifacts: ArtifactStore,
        spool: Spool,
        queue_file: Path,
        *,
        charger_grace_s: float = CHARGER_GRACE_S,
    ) -> None:
        self._charger_grace_s = charger_grace_s
        self._platform = platform
        self._artifacts = artifacts
        self._spool = spool
        self._queue_file = queue_file
        self._queue: collections.deque[tuple[str, pb.Segment]] = collections.deque()
        self._ended: dict[Key, int] = {}  # -> number of the end's record
        self._running: tuple[str, pb.Segment] | None = None
        self._changed = threading.Condition()
        self._cancel = threading.Event()
        self._stopping = False
        self._let_charge = False  # at once, not after the grace
        self._station = Station(
            platform, artifacts, platform.runtime(), queue_file.parent / "outputs"
        )
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

        A host whose call got no answer may repeat it: segments of the same session, run, kind and
        block that are queued, under way, or ended but not acknowledged yet are not queued again.
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
            self._spool.require_room()
            if len(self._queue) + len(segments) > MAX_QUEUED:
                raise BadRequest(f"the queue holds at most {MAX_QUEUED} segments")
            first = self._spool.next_seq
            known = self._known()
            self._let_charge = False
            self._queue.extend(
                (session_id, segment)
                for segment in segments
                if _key(session_id, segment) not in known
            )
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
            # Where nothing is left the charger comes back. A notice alone could come before the
            # worker waits for one.
            self._let_charge = not self._queue and (current or self._running is None)
            self._changed.notify_all()
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
        if segment.kind not in (pb.CHECK, pb.BLOCK, pb.PROFILE, pb.EVALUATE, pb.FOOTPRINT):
            raise BadRequest("kind is none of CHECK, BLOCK, PROFILE, EVALUATE, FOOTPRINT")
        if segment.kind == pb.EVALUATE:
            self._artifacts.path(checked_sha256(segment.inputs))
        if segment.kind == pb.PROFILE and not 0 < segment.min_inferences <= MAX_PROFILED:
            raise BadRequest(f"min_inferences of a PROFILE is not within 1 to {MAX_PROFILED}")
        times = (
            segment.min_duration_ns, segment.max_duration_ns, segment.warmup_ns,
            segment.warmup_max_ns, segment.idle_ns, segment.idle_after_ns,
            segment.cooldown.timeout_ns,
        )  # fmt: skip
        if any(not 0 <= t <= MAX_DURATION_NS for t in times):
            raise BadRequest("a duration is negative or longer than a day")
        if not 0 <= segment.sample_rate_hz <= MAX_RATE_HZ:
            raise BadRequest(f"sample_rate_hz is not within 0 to {MAX_RATE_HZ:.0f}")
        if segment.HasField("cooldown") and not (
            segment.cooldown.sites and segment.cooldown.above_start_c >= 0
        ):
            raise BadRequest("a cooldown gate needs sites and above_start_c >= 0")
        if segment.charging not in pb.Charging.values():
            raise BadRequest("charging is none of the known demands")
        if segment.kind == pb.BLOCK:
            if not 0 < segment.min_inferences < MAX_ITERATIONS:
                raise BadRequest(f"min_inferences is not within 1 to {MAX_ITERATIONS - 1}")
            if segment.max_duration_ns < max(segment.min_duration_ns, 1):
                raise BadRequest("max_duration_ns is below min_duration_ns")

    def _known(self) -> set[Key]:
        acked = self._spool.acked_seq
        self._ended = {key: seq for key, seq in self._ended.items() if seq > acked}
        jobs = [*self._queue, *([self._running] if self._running else [])]
        return {_key(*job) for job in jobs} | set(self._ended)

    def _next(self) -> tuple[str, pb.Segment] | None:
        """The next job, waiting for it; None when the agent stops."""
        while True:
            with self._changed:
                if not self._queue and not self._stopping and not self._let_charge:
                    self._changed.wait(self._charger_grace_s)
                if self._stopping:
                    return None
                if self._queue:
                    self._running = self._queue.popleft()
                    self._cancel.clear()
                    return self._running
                self._let_charge = False
            self._platform.charger.restore()

    def _work(self) -> None:
        while (job := self._next()) is not None:
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
                self._station.unload()
            with self._changed:
                if self._stopping:
                    break  # the queue file still names this segment: the next agent reports it
                try:
                    self._end(*job, error)
                    self._running = None
                    self._save_queue()
                except (SpoolFull, OSError):
                    # Disk and ballast are full: an agent that cannot say how a segment ended
                    # must not look alive. Dead, it tells the host, and the next one reports it.
                    _log.exception("cannot write the end of a segment; ending")
                    os.kill(os.getpid(), signal.SIGTERM)
                    break
        self._platform.charger.restore()
        self._station.unload()

    def _run(self, session_id: str, segment: pb.Segment) -> None:
        def append(batch: pb.Batch) -> None:
            batch.session_id, batch.run_id = session_id, segment.run_id
            self._append(batch)

        self._station.begin(session_id)
        SegmentRun(self._station, segment, append, self._stopped).run()

    def _stopped(self) -> bool:
        return self._cancel.is_set() or self._stopping

    def _end(self, session_id: str, segment: pb.Segment, error: AgentError | None) -> None:
        end = pb.SegmentEnd(kind=segment.kind, block_index=segment.block_index, outcome=pb.OK)
        if isinstance(error, Cancelled):
            end.outcome = pb.CANCELLED
            end.message = str(error)
        elif error is not None:
            end.outcome = pb.FAILED
            end.failure_class = error.failure_class
            end.message = str(error)[:2000]
        batch = pb.Batch(session_id=session_id, run_id=segment.run_id, end=end)
        self._append(batch, True)
        self._ended[_key(session_id, segment)] = batch.seq

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
        """Ends for what an agent before this one left unfinished, and the ends it did write."""
        for seq in range(self._spool.first_seq, self._spool.next_seq):
            batch = pb.Batch.FromString(self._spool.read(seq) or b"")
            if batch.HasField("end"):
                key = (batch.session_id, batch.run_id, batch.end.kind, batch.end.block_index)
                self._ended[key] = seq
        try:
            stored = pb.StoredQueue.FromString(self._queue_file.read_bytes())
        except FileNotFoundError:
            return
        for job in stored.jobs:
            # An agent killed between an end and the queue's file has reported it already.
            if _key(job.session_id, job.segment) not in self._ended:
                error = Killed("the agent ended before this segment did")
                self._end(job.session_id, job.segment, error)
        self._queue_file.unlink()


def _key(session_id: str, segment: pb.Segment) -> Key:
    return (session_id, segment.run_id, segment.kind, segment.block_index)
