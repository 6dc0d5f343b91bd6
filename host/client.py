"""The only code that speaks protobuf: gRPC calls to one agent, and its batches as plain data."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from host import __version__
from host.errors import DeviceError, FailureClass
from host.store.rows import (
    Block,
    Channel,
    ChannelReport,
    Cooldown,
    Golden,
    Load,
    Mark,
    Memory,
    OpProfile,
    Profile,
    RawBatch,
    SamplerReport,
    Samples,
)
from protos import PROTOCOL_VERSION
from protos import agent_pb2 as pb
from protos import agent_pb2_grpc as rpc

CALL_TIMEOUT_S = 20.0
CHUNK_BYTES = 1 << 20
MAX_MESSAGE_BYTES = 32 << 20

PHASES = {v: k.lower() for k, v in pb.Phase.items()}
SEGMENT_KINDS = {v: k.lower() for k, v in pb.SegmentKind.items()}
OUTCOMES = {v: k.lower() for k, v in pb.Outcome.items()}
CHANNEL_KINDS = {v: k.lower() for k, v in pb.ChannelKind.items()}


@dataclass(frozen=True)
class SegmentEnd:
    kind: str
    block_index: int
    outcome: str  # ok, failed, cancelled
    failure_class: str
    message: str


@dataclass(frozen=True)
class OutputFile:
    """One output tensor of an evaluation: a .npy on the device, samples on its first axis."""

    tensor: str
    file: str
    size: int
    sha256: str


@dataclass(frozen=True)
class AgentBatch:
    """One message of the stream: raw rows for the store, and the end of a segment if it is one.

    `outputs`: the files of an evaluation that is complete.
    """

    session_id: str
    raw: RawBatch
    end: SegmentEnd | None
    outputs: tuple[OutputFile, ...] = ()


@dataclass(frozen=True)
class Cooling:
    """Wait until all zones of `sites` are within `above_start_c` of the session's start."""

    sites: tuple[str, ...]
    above_start_c: float
    timeout_ns: int


@dataclass(frozen=True)
class SegmentSpec:
    """One uninterrupted piece of one run (see agent.proto)."""

    run_id: str
    artifact_sha256: str
    soc: str
    kind: str  # check, footprint, profile, block or evaluate
    block_index: int = 0
    min_inferences: int = 1
    min_duration_ns: int = 0
    max_duration_ns: int = 0
    warmup_ns: int = 0
    idle_ns: int = 0
    idle_after_ns: int | None = None  # None: as before the block
    warmup_max_ns: int = 0  # 0: one piece of warmup_ns; else until the latency is steady
    perf_profile: str = ""  # empty: as the artifact's run settings say
    sample_rate_hz: float = 100.0
    cooldown: Cooling | None = None
    ceilings: tuple[tuple[str, float], ...] = ()  # (site, degrees C) at which the segment fails
    stop_charging: bool = False
    inputs_sha256: str = ""  # of the input set of an evaluation


@dataclass(frozen=True)
class RoundTrip:
    """Device clock minus host monotonic clock, and half the round trip, which bounds its error."""

    offset_ns: int
    uncertainty_ns: int


class Subscription:
    """An open stream of batches; `cancel` ends it from any thread."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def cancel(self) -> None:
        self._stream.cancel()

    def __iter__(self) -> Iterator[AgentBatch]:
        try:
            for batch in self._stream:
                yield decode(batch)
        except grpc.RpcError as e:
            raise translate(e, "Subscribe") from e


class AgentClient:
    """Calls to one agent. Every error is a DeviceError; UNAVAILABLE and DEADLINE are transient."""

    def __init__(self, address: str, token: str) -> None:
        self.address = address
        self._metadata = (
            ("authorization", f"Bearer {token}"),
            ("x-qhost-protocol", str(PROTOCOL_VERSION)),
        )
        self._channel = grpc.insecure_channel(
            address,
            options=[
                ("grpc.keepalive_time_ms", 10_000),
                ("grpc.keepalive_timeout_ms", 5_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.enable_http_proxy", 0),
            ],
        )
        self._stub: Any = rpc.AgentStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def _call(self, method: str, request: object, timeout: float = CALL_TIMEOUT_S) -> Any:
        try:
            return getattr(self._stub, method)(request, timeout=timeout, metadata=self._metadata)
        except grpc.RpcError as e:
            raise translate(e, method) from e

    def describe(self) -> pb.Description:
        """What the agent is; refuses an agent of another protocol version, naming both."""
        reply: pb.Description = self._call(
            "Describe",
            pb.DescribeRequest(protocol_version=PROTOCOL_VERSION, host_version=__version__),
        )
        if reply.protocol_version != PROTOCOL_VERSION:
            raise protocol_mismatch(reply.protocol_version)
        return reply

    def channels(self, description: pb.Description) -> tuple[Channel, ...]:
        return tuple(
            Channel(
                c.id, c.name, c.site, CHANNEL_KINDS.get(c.kind, "unknown"), c.unit, c.method,
                c.nominal_rate_hz, c.source,
            )
            for c in description.channels
        )  # fmt: skip

    def status(self) -> pb.AgentStatus:
        reply: pb.AgentStatus = self._call("Status", pb.StatusRequest())
        return reply

    def clock(self, rounds: int = 10, enough_ns: int = 1_000_000) -> tuple[int, RoundTrip]:
        """(host time, offset) of the round trip with the least delay (Cristian's algorithm), of
        at most `rounds`; one of less than `enough_ns` is taken at once."""
        best: tuple[int, RoundTrip] | None = None
        for _ in range(rounds):
            if best is not None and 2 * best[1].uncertainty_ns < enough_ns:
                break
            before = time.monotonic_ns()
            device = self.status().clock_ns
            after = time.monotonic_ns()
            half = (after - before) // 2
            if best is None or half < best[1].uncertainty_ns:
                best = before + half, RoundTrip(device - (before + half), half)
        assert best is not None
        return best

    def put_artifact(self, folder: Path, sha256: str) -> bool:
        """Send every file below `folder` as artifact `sha256`. True if it was there already."""
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        total = sum(p.stat().st_size for p in files)

        def chunks() -> Iterator[pb.ArtifactChunk]:
            yield pb.ArtifactChunk(header=pb.ArtifactHeader(sha256=sha256, total_bytes=total))
            for path in files:
                data = path.read_bytes()
                yield pb.ArtifactChunk(
                    file=pb.FileHeader(
                        name=path.relative_to(folder).as_posix(),
                        size=len(data),
                        sha256=hashlib.sha256(data).hexdigest(),
                    )
                )
                for at in range(0, len(data), CHUNK_BYTES):
                    yield pb.ArtifactChunk(data=data[at : at + CHUNK_BYTES])

        reply = self._call("PutArtifact", chunks(), timeout=CALL_TIMEOUT_S + total / 1e6)
        return bool(reply.already_present)

    def start(self, session_id: str, segments: Sequence[SegmentSpec]) -> int:
        """Queue segments; the sequence number of the first batch they can produce."""
        request = pb.StartRequest(session_id=session_id, segments=[encode(s) for s in segments])
        return int(self._call("Start", request).first_seq)

    def subscribe(self, from_seq: int) -> Subscription:
        """Batches from `from_seq` on, for as long as the connection holds."""
        return Subscription(
            self._stub.Subscribe(pb.SubscribeRequest(from_seq=from_seq), metadata=self._metadata)
        )

    def ack(self, seq: int) -> None:
        self._call("Ack", pb.AckRequest(seq=seq))

    def cancel(self, run_id: str = "") -> int:
        return int(self._call("Cancel", pb.CancelRequest(run_id=run_id)).cancelled)

    def fetch(self, name: str, size: int = 0) -> bytes:
        """One file of the agent's directory; a `size` that is known lets it take longer."""
        try:
            stream = self._stub.Fetch(
                pb.FetchRequest(name=name),
                timeout=CALL_TIMEOUT_S + size / 1e6,
                metadata=self._metadata,
            )
            return b"".join(chunk.data for chunk in stream)
        except grpc.RpcError as e:
            raise translate(e, "Fetch") from e


def encode(s: SegmentSpec) -> pb.Segment:
    """A segment as the protocol has it."""
    cooling = s.cooldown
    return pb.Segment(
        run_id=s.run_id,
        artifact=s.artifact_sha256,
        soc=s.soc,
        kind=s.kind.upper(),
        block_index=s.block_index,
        min_inferences=s.min_inferences,
        min_duration_ns=s.min_duration_ns,
        max_duration_ns=s.max_duration_ns,
        warmup_ns=s.warmup_ns,
        warmup_max_ns=s.warmup_max_ns,
        idle_ns=s.idle_ns,
        idle_after_ns=s.idle_after_ns,
        perf_profile=s.perf_profile,
        sample_rate_hz=s.sample_rate_hz,
        cooldown=pb.CooldownGate(
            sites=cooling.sites,
            above_start_c=cooling.above_start_c,
            timeout_ns=cooling.timeout_ns,
        )
        if cooling
        else None,
        ceilings=[pb.Ceiling(site=site, celsius=celsius) for site, celsius in s.ceilings],
        charging=pb.STOP_CHARGING if s.stop_charging else pb.CHARGING_UNSPECIFIED,
        inputs=s.inputs_sha256,
    )


def protocol_mismatch(agent_version: object) -> DeviceError:
    return DeviceError(
        f"The agent speaks protocol version {agent_version}, this host version {PROTOCOL_VERSION}.",
        "Redeploy the agent that belongs to this qhost: qhost agent deploy.",
    )


def translate(error: grpc.RpcError, method: str) -> DeviceError:
    """A DeviceError for a failed call: what it means, and whether trying again may help."""
    code = error.code() if hasattr(error, "code") else grpc.StatusCode.UNKNOWN
    detail = (error.details() if hasattr(error, "details") else None) or str(code)
    if code is grpc.StatusCode.UNAVAILABLE:
        return DeviceError("The agent does not answer.", detail, transient=True)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeviceError(
            f"The agent did not answer {method} in time.",
            transient=True,
            failure_class=FailureClass.TIMEOUT,
        )
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return DeviceError(
            "The agent refused the session token.", "Redeploy the agent: qhost agent deploy."
        )
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        return DeviceError(detail)
    if code is grpc.StatusCode.CANCELLED:
        return DeviceError("The call was cancelled.", detail, transient=True)
    return DeviceError(f"The agent failed in {method}: {detail}.")


def decode(batch: pb.Batch) -> AgentBatch:
    """A protobuf batch as the store's rows (numpy columns)."""
    load, golden, block, end = batch.load, batch.golden, batch.block, batch.end
    sampler = batch.sampler
    raw = RawBatch(
        seq=batch.seq,
        run_id=batch.run_id,
        samples=tuple(
            Samples(s.channel, np.asarray(s.t_ns, np.int64), np.asarray(s.value, np.float64))
            for s in batch.samples
        ),
        marks=tuple(
            Mark(PHASES.get(m.phase, "unknown"), m.t_start_ns, m.t_end_ns, m.block_index)
            for m in batch.marks
        ),
        load=Load(load.cold_s, load.warm_s, load.first_inference_s, load.peak_memory_bytes)
        if batch.HasField("load")
        else None,
        golden=Golden(golden.samples, golden.bit_equal, golden.sqnr_db)
        if batch.HasField("golden")
        else None,
        block=Block(
            block.block_index,
            block.inferences,
            block.t_first_ns,
            block.t_last_ns,
            np.asarray(block.per_iteration_us, np.float32),
            block.window_method,
            block.throttled,
        )
        if batch.HasField("block")
        else None,
        cooldown=Cooldown(
            batch.cooldown.block_index,
            batch.cooldown.waited_ns,
            batch.cooldown.timed_out,
            batch.cooldown.message,
        )
        if batch.HasField("cooldown")
        else None,
        sampler=SamplerReport(
            sampler.ticks,
            sampler.late_ticks,
            sampler.worst_late_ns,
            sampler.cpu_s,
            sampler.duration_s,
        )
        if batch.HasField("sampler")
        else None,
        memory=Memory(
            batch.memory.peak_bytes,
            batch.memory.steady_bytes,
            batch.memory.dma_buffer_bytes,
            batch.memory.readings,
        )
        if batch.HasField("memory")
        else None,
        profile=Profile(tuple(batch.profile.execute_us), batch.profile.file)
        if batch.HasField("profile")
        else None,
        ops=tuple(OpProfile(op.op_id, op.name, tuple(op.cycles)) for op in batch.profile.ops),
        channel_reports=tuple(
            ChannelReport(
                c.channel, c.reads, c.failures, c.updates, c.update_rate_hz, c.slowest_read_ns
            )
            for c in sampler.channels
        ),
    )
    return AgentBatch(
        batch.session_id,
        raw,
        SegmentEnd(
            SEGMENT_KINDS.get(end.kind, "unknown"),
            end.block_index,
            OUTCOMES.get(end.outcome, "failed"),
            end.failure_class,
            end.message,
        )
        if batch.HasField("end")
        else None,
        tuple(OutputFile(o.tensor, o.file, o.size, o.sha256) for o in batch.evaluation.outputs),
    )
