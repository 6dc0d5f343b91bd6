"""Run segments on a device and store what comes back, through restarts of the agent."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from host.bench.clocks import SessionClock
from host.client import AgentBatch, OutputFile, SegmentEnd, SegmentSpec
from host.devices import DeviceSession
from host.errors import DeviceError, FailureClass
from host.meters.recorder import MeterRecorder
from host.store import Store
from host.store.rows import Mark, OpProfile, Profile, RawBatch, Samples
from quant.artifact import Artifact

# Without a batch for this long the agent is asked whether it still lives.
STALL_S = 20.0
# An agent that answers but sends nothing: a large model's numerics in the HTP emulator take
# minutes, a hung one takes for ever.
SILENT_LIMIT_S = 1800.0
RECONNECTS = 5
MAX_RESTARTS = 3
# Between the last time of a dead agent's clock and the first of the next one's.
BOOT_GAP_NS = 10_000_000_000
_WHERE = {
    "check": "the check",
    "footprint": "the memory pass",
    "profile": "the pass per operator",
    "evaluate": "the accuracy pass",
}


@dataclass(frozen=True)
class RunFailure:
    failure_class: FailureClass
    message: str


@dataclass(frozen=True)
class SegmentDone:
    """Progress: one segment ended; empty `failure` when it went well."""

    spec: SegmentSpec
    failure: str


class DeviceRunner:
    """Owns the order of segments on one device and the stream that comes back.

    A run whose segment fails, or during whose segment the agent dies, is failed and loses its
    other segments; the rest goes on, on a restarted agent where one is needed.
    """

    def __init__(
        self,
        device: DeviceSession,
        store: Store,
        session_id: str,
        on_segment: Callable[[SegmentDone], None],
        *,
        on_batch: Callable[[RawBatch], None] = lambda raw: None,
        last_time_ns: int = 0,
        meter: MeterRecorder | None = None,
    ) -> None:
        self._device = device
        self._meter = meter
        # Device times between which the segment under way has left marks.
        self._span_ns: tuple[int, int] | None = None
        self._store = store
        self._session_id = session_id
        self._on_segment = on_segment
        self._on_batch = on_batch
        self._restarts = 0
        self._last_time_ns = last_time_ns
        self._epoch_ns = 0
        self._next_seq = 1
        self.artifacts: dict[str, Artifact] = {}
        self._inputs: dict[str, Path] = {}
        self._outputs: dict[str, tuple[OutputFile, ...]] = {}
        self.failures: dict[str, RunFailure] = {}
        self.profile_files: dict[str, str] = {}  # run -> a profile that only the SDK can read
        self.notes: dict[str, list[str]] = {}  # of a run, beside what its figures say
        self._pending: list[SegmentSpec] = []
        self.clock = SessionClock(store, session_id, device.info.serial)
        self._connected()

    def _connected(self) -> None:
        """After every (re)start: where the stream stands and how the clock relates to ours.

        The clock of a rebooted device starts again; its times are moved behind the last one
        seen, so that the samples of a run never overlap.
        """
        client = self._device.client
        self._epoch_ns = self.clock.new_epoch(client, self._last_time_ns, BOOT_GAP_NS)
        self._next_seq = int(client.status().acked_seq) + 1

    def put(self, artifact: Artifact) -> None:
        self.artifacts[artifact.sha256] = artifact
        self._device.put(artifact)

    def put_inputs(self, folder: Path, sha256: str) -> None:
        """Bring an input set to the device; `folder` must stay: a new agent gets it again."""
        self._inputs[sha256] = folder
        self._device.put_files(folder, sha256)

    def outputs(self, run_id: str) -> dict[str, NDArray[Any]]:
        """What an evaluation computed, by output, samples on the first axis; {} when it failed,
        or its files cannot be had whole (the run has then failed)."""
        found: dict[str, NDArray[Any]] = {}
        for output in self._outputs.get(run_id, ()):
            try:
                data = self._device.client.fetch(output.file, output.size)
            except DeviceError as error:
                self._fail(run_id, error.failure_class, f"Fetching its outputs: {error.message}")
                return {}
            if hashlib.sha256(data).hexdigest() != output.sha256:
                message = f"Output {output.tensor!r} arrived damaged."
                self._fail(run_id, FailureClass.DEVICE_ERROR, message)
                return {}
            found[output.tensor] = np.load(io.BytesIO(data), allow_pickle=False)
        return found

    def store_profile(self, run_id: str, profile: Profile, ops: Sequence[OpProfile]) -> None:
        """What a profile says that the device itself could not read."""
        self._store.set_profile(run_id, profile, ops)

    def run(self, segments: Sequence[SegmentSpec]) -> None:
        """Run segments in order. Failures are in `failures` afterwards, by run."""
        self._pending = [s for s in segments if s.run_id not in self.failures]
        with self._meter.recording() if self._meter else nullcontext():
            while self._pending:
                try:
                    self._device.client.start(self._session_id, self._pending)
                    self._consume()
                except DeviceError as e:
                    self._recover(e)

    def _consume(self) -> None:
        """Store batches until every pending segment ended; what a failed run leaves is dropped."""
        for batch in self._batches():
            self._commit(batch)
            if batch.outputs:
                self._outputs[batch.raw.run_id] = batch.outputs
            if batch.raw.profile is not None and not batch.raw.ops:
                self.profile_files[batch.raw.run_id] = batch.raw.profile.file
            if batch.end is not None:
                self._take_readings(batch.raw.run_id)
                self._ended(batch.raw.run_id, batch.end)
            if not self._pending:
                return

    def _ended(self, run_id: str, end: SegmentEnd) -> None:
        found = [
            s
            for s in self._pending
            if (s.run_id, s.kind, s.block_index) == (run_id, end.kind, end.block_index)
        ]
        if not found:  # the echo of a segment that was cancelled
            return
        spec = found[0]
        self._pending.remove(spec)
        failure = ""
        if end.outcome != "ok":
            failure = end.message or f"The agent {end.outcome} the {spec.kind}."
        if failure and spec.kind == "profile":
            # What else there is of the run stands without it.
            self.note(run_id, f"No times per operator: {failure}.")
            failure = ""
        elif failure:
            self._fail(run_id, FailureClass(end.failure_class or "DEVICE_ERROR"), failure)
            if any(s.run_id == run_id for s in self._pending):
                self._device.client.cancel(run_id)
                self._pending = [s for s in self._pending if s.run_id != run_id]
        self._on_segment(SegmentDone(spec, failure))

    def _take_readings(self, run_id: str) -> None:
        """What the external meter measured while the segment that has ended was running."""
        span, self._span_ns = self._span_ns, None
        if self._meter is None or span is None:
            return
        self.clock.observe(self._device.client, at_once=True)
        samples, why_not = self._meter.take(run_id, self.clock.line, *span)
        self._store.add_samples(run_id, samples)
        if why_not:
            self.note(run_id, why_not)

    def note(self, run_id: str, text: str) -> None:
        notes = self.notes.setdefault(run_id, [])
        if text not in notes:
            notes.append(text)

    def _fail(self, run_id: str, failure_class: FailureClass, message: str) -> None:
        self.failures.setdefault(run_id, RunFailure(failure_class, message))

    def _recover(self, error: DeviceError) -> None:
        """The agent is gone: its current run has failed; restart it for the others."""
        current = self._pending[0]
        how = self._device.death() or error.message
        where = _WHERE.get(current.kind, f"block {current.block_index + 1}")
        self._fail(current.run_id, error.failure_class, f"During {where}: {how}")
        self._on_segment(SegmentDone(current, how))
        self._pending = [s for s in self._pending if s.run_id not in self.failures]
        self._restart()
        for sha256 in {s.artifact_sha256 for s in self._pending}:
            self._device.put(self.artifacts[sha256])
        for sha256 in {s.inputs_sha256 for s in self._pending if s.inputs_sha256}:
            self._device.put_files(self._inputs[sha256], sha256)

    def _restart(self) -> None:
        self._restarts += 1
        if self._restarts > MAX_RESTARTS:
            raise DeviceError(
                f"The agent died {self._restarts} times in one session; giving up.",
                "See its log: qhost agent logs, or run with --debug.",
            )
        self._device.restart()
        self._connected()

    def _commit(self, batch: AgentBatch) -> None:
        """Store, then acknowledge: only what is committed may be forgotten on the device."""
        raw = shift(batch.raw, self._epoch_ns)
        self._last_time_ns = max(self._last_time_ns, last_time_ns(raw))
        for mark in raw.marks:
            start, end = self._span_ns or (mark.t_start_ns, mark.t_end_ns)
            self._span_ns = min(start, mark.t_start_ns), max(end, mark.t_end_ns)
        self._device.client.ack(self._store.append(self._session_id, self._device.stream_id, [raw]))
        self._next_seq = raw.seq + 1
        self._on_batch(raw)
        self.clock.observe(self._device.client)

    def _batches(self) -> Iterator[AgentBatch]:
        """Batches without gaps or repeats, over broken connections."""
        failures = 0
        while True:
            try:
                for batch in self._stream_once():
                    failures = 0
                    yield batch
                raise DeviceError("The agent closed the stream.", transient=True)
            except DeviceError as e:
                failures += 1
                if not e.transient or failures > RECONNECTS or self._device.death():
                    raise
                time.sleep(min(0.2 * 2**failures, 5.0))

    def _stream_once(self) -> Iterator[AgentBatch]:
        """One subscription, read by a thread so that silence can be noticed."""
        inbox: queue.Queue[AgentBatch | DeviceError | None] = queue.Queue(maxsize=64)
        stop = threading.Event()
        stream = self._device.client.subscribe(self._next_seq)

        def deliver(item: AgentBatch | DeviceError | None) -> None:
            while not stop.is_set():
                try:
                    inbox.put(item, timeout=0.2)
                    return
                except queue.Full:
                    continue

        def read() -> None:
            try:
                for batch in stream:
                    deliver(batch)
                deliver(None)
            except DeviceError as e:
                deliver(e)

        reader = threading.Thread(target=read, name="subscribe", daemon=True)
        reader.start()
        silent_since = time.monotonic()
        try:
            while True:
                try:
                    item = inbox.get(timeout=STALL_S)
                except queue.Empty:
                    self._check_alive(time.monotonic() - silent_since)
                    continue
                silent_since = time.monotonic()
                if isinstance(item, DeviceError):
                    raise item
                if item is None:
                    return
                if item.raw.seq != self._next_seq:
                    raise DeviceError(
                        f"The stream skipped from batch {self._next_seq} to {item.raw.seq}."
                    )
                yield item
        finally:
            stop.set()
            stream.cancel()
            reader.join(timeout=5.0)

    def _check_alive(self, silent_s: float) -> None:
        self._device.client.status()  # raises when the agent is frozen or gone
        if silent_s > SILENT_LIMIT_S:
            raise DeviceError(
                f"The agent is busy but has sent nothing for {silent_s:.0f} s.",
                failure_class=FailureClass.TIMEOUT,
            )


def last_time_ns(raw: RawBatch) -> int:
    """The latest device time in a batch, 0 if it has none."""
    times = [int(s.t_ns[-1]) for s in raw.samples if len(s.t_ns)]
    times += [m.t_end_ns for m in raw.marks]
    if raw.block is not None:
        times.append(raw.block.t_last_ns)
    return max(times, default=0)


def shift(raw: RawBatch, by_ns: int) -> RawBatch:
    """The same batch with all its times moved by `by_ns`."""
    if by_ns == 0:
        return raw
    block = raw.block
    if block is not None:
        block = dataclasses.replace(
            block, t_first_ns=block.t_first_ns + by_ns, t_last_ns=block.t_last_ns + by_ns
        )
    return dataclasses.replace(
        raw,
        samples=tuple(Samples(s.channel, s.t_ns + by_ns, s.value) for s in raw.samples),
        marks=tuple(
            Mark(m.phase, m.t_start_ns + by_ns, m.t_end_ns + by_ns, m.block_index)
            for m in raw.marks
        ),
        block=block,
    )


def missing_blocks(
    order: Sequence[tuple[str, int]], stored: Mapping[str, set[int]]
) -> list[tuple[str, int]]:
    """What of the block order is not in the database yet."""
    return [(run, block) for run, block in order if block not in stored.get(run, set())]
