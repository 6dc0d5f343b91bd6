"""The gRPC service, and the one interceptor that every call passes.

The interceptor checks the bearer token first: without it a caller learns nothing, not even which
methods exist. Then the protocol version, then it turns exceptions into status codes.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc

from agent import __version__
from agent.artifacts import MAX_CHUNK_BYTES, ArtifactStore, checked_name
from agent.bench import Bench
from agent.errors import (
    AgentError,
    BadArtifact,
    BadRequest,
    NotFound,
    SpoolFull,
    TimedOut,
    VersionMismatch,
)
from agent.platform import Platform
from agent.spool import Spool
from protos import PROTOCOL_VERSION, agent_pb2_grpc
from protos import agent_pb2 as pb

_log = logging.getLogger(__name__)
_MAX_RECEIVE_BYTES = 4 << 20
OPTIONS = (
    ("grpc.max_receive_message_length", _MAX_RECEIVE_BYTES),
    ("grpc.max_metadata_size", 16 << 10),
    # The host pings every 10 s so that a dead cable is noticed; allow it, calls or not.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
    ("grpc.http2.min_ping_interval_without_data_ms", 1000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.so_reuseport", 0),
)
_STATUS: tuple[tuple[type[AgentError], grpc.StatusCode], ...] = (
    (VersionMismatch, grpc.StatusCode.FAILED_PRECONDITION),
    (NotFound, grpc.StatusCode.NOT_FOUND),
    (BadRequest, grpc.StatusCode.INVALID_ARGUMENT),
    (BadArtifact, grpc.StatusCode.FAILED_PRECONDITION),
    (TimedOut, grpc.StatusCode.DEADLINE_EXCEEDED),
    (SpoolFull, grpc.StatusCode.RESOURCE_EXHAUSTED),
)
Handler = Any  # grpc's handler classes differ between its stubs and its asyncio server
Context = Any


def check_version(theirs: int) -> None:
    if theirs != PROTOCOL_VERSION:
        raise VersionMismatch(
            f"the host speaks protocol {theirs}, this agent speaks {PROTOCOL_VERSION}: "
            "deploy the agent of this host's version"
        )


class Gate(grpc.aio.ServerInterceptor):
    """Token, protocol version, and exceptions to status. Nothing else looks at any of them."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        metadata: dict[str, Any] = dict(handler_call_details.invocation_metadata or ())
        given = metadata.get("authorization", "")
        raw = given if isinstance(given, bytes) else given.encode(errors="replace")
        if not hmac.compare_digest(raw, self._expected):
            return _refusal(grpc.StatusCode.UNAUTHENTICATED, "")
        version = metadata.get("x-qhost-protocol", "")
        try:
            check_version(int(version) if str(version).isascii() and str(version).isdigit() else 0)
        except VersionMismatch as error:
            return _refusal(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        handler = await continuation(handler_call_details)
        return _translating(handler) if handler is not None else handler


def _refusal(code: grpc.StatusCode, details: str) -> Handler:
    async def refuse(requests: Any, context: Context) -> None:
        await context.abort(code, details)

    # On the wire a stream is the general case: this suits every method and reads no message.
    return grpc.stream_stream_rpc_method_handler(refuse)


def _translating(handler: Handler) -> Handler:
    """The same handler, with our exceptions as status codes."""

    async def fail(error: Exception, context: Context) -> None:
        if isinstance(error, AgentError):
            code = next((c for t, c in _STATUS if isinstance(error, t)), grpc.StatusCode.INTERNAL)
            await context.abort(code, str(error))
        _log.error("call failed", exc_info=error)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else None
        what = reason or type(error).__name__  # "No space left on device" tells what to do
        await context.abort(grpc.StatusCode.INTERNAL, f"{what} in the agent")

    if handler.response_streaming:
        inner_stream = handler.unary_stream

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            try:
                async for reply in inner_stream(request, context):
                    yield reply
            except grpc.aio.AbortError:
                raise
            except Exception as error:  # noqa: BLE001 - the boundary of the process
                await fail(error, context)

        return grpc.unary_stream_rpc_method_handler(
            stream, handler.request_deserializer, handler.response_serializer
        )

    inner = handler.stream_unary if handler.request_streaming else handler.unary_unary
    wrap = (
        grpc.stream_unary_rpc_method_handler
        if handler.request_streaming
        else grpc.unary_unary_rpc_method_handler
    )

    async def unary(request: Any, context: Context) -> Any:
        try:
            return await inner(request, context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001 - the boundary of the process
            await fail(error, context)

    return wrap(unary, handler.request_deserializer, handler.response_serializer)


class AgentService(agent_pb2_grpc.AgentServicer):  # type: ignore[misc,unused-ignore]
    """protos/agent.proto over the bench, the spool and the artifacts of one root."""

    def __init__(
        self, platform: Platform, artifacts: ArtifactStore, spool: Spool, bench: Bench, root: Path
    ) -> None:
        self._platform = platform
        self._artifacts = artifacts
        self._spool = spool
        self._bench = bench
        self._root = root

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.Description:
        check_version(request.protocol_version)
        # The first answer hashes libraries of tens of MB.
        description = await asyncio.to_thread(self._platform.description)
        description.protocol_version = PROTOCOL_VERSION
        description.agent_version = __version__
        description.spool_capacity_bytes = self._spool.capacity_bytes
        description.clock_ns = self._platform.clock_ns()
        return description

    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.AgentStatus:
        running, queued = self._bench.running, self._bench.queued
        return pb.AgentStatus(
            busy=bool(running or queued),
            run_id=running,
            next_seq=self._spool.next_seq,
            acked_seq=self._spool.acked_seq,
            spool_bytes=self._spool.size_bytes,
            queued_segments=queued,
            clock_ns=self._platform.clock_ns(),
            artifacts=self._artifacts.names(),
        )

    async def PutArtifact(
        self, request_iterator: AsyncIterator[pb.ArtifactChunk], context: Context
    ) -> pb.ArtifactReceipt:
        return await self._artifacts.receive(request_iterator)

    async def Start(self, request: pb.StartRequest, context: Context) -> pb.StartReply:
        first = self._bench.start(request.session_id, list(request.segments))
        return pb.StartReply(first_seq=first)

    async def Subscribe(
        self, request: pb.SubscribeRequest, context: Context
    ) -> AsyncIterator[pb.Batch]:
        """From max(from_seq, oldest kept) on. A number beyond the next one is refused."""
        if request.from_seq > self._spool.next_seq:
            raise BadRequest(
                f"record {request.from_seq} does not exist: the next is {self._spool.next_seq}"
            )
        loop, more = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(more.set)

        cancel = self._spool.subscribe(wake)
        seq = max(request.from_seq, self._spool.first_seq)
        try:
            while True:
                more.clear()
                while (data := self._spool.read(seq)) is not None:
                    yield pb.Batch.FromString(data)
                    seq += 1
                if seq < (oldest := self._spool.first_seq):
                    seq = oldest  # another call has acknowledged what was next here
                    continue
                await more.wait()
        finally:
            cancel()

    async def Ack(self, request: pb.AckRequest, context: Context) -> pb.AckReply:
        try:
            self._spool.ack(request.seq)
        except ValueError as error:
            raise BadRequest(str(error)) from error
        return pb.AckReply(spool_bytes=self._spool.size_bytes)

    async def Cancel(self, request: pb.CancelRequest, context: Context) -> pb.CancelReply:
        return pb.CancelReply(cancelled=self._bench.cancel(request.run_id))

    async def Fetch(
        self, request: pb.FetchRequest, context: Context
    ) -> AsyncIterator[pb.FileChunk]:
        """A file under logs/ or outputs/ of the root; nothing else can be fetched."""
        name = checked_name(request.name)
        path = (self._root / name).resolve()
        inside = any(path.is_relative_to(self._root / top) for top in ("logs", "outputs"))
        if not inside or not path.is_file():
            raise NotFound(f"no file {request.name!r} under logs/ or outputs/")
        with path.open("rb") as source:
            while data := source.read(MAX_CHUNK_BYTES):
                yield pb.FileChunk(data=data)
