"""The adb transport as a device speaks it: packets, the handshake, multiplexed streams.

A packet is a 24-byte little-endian header (command, arg0, arg1, length, checksum, command xor
0xffffffff) and its payload. Each stream has one unacknowledged WRTE at a time in each direction.
Source: packages/modules/adb/protocol.txt of the Android Open Source Project.
"""

from __future__ import annotations

import asyncio
import logging
import os
import struct
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from agent.emulator.adb.faults import Wire

log = logging.getLogger(__name__)

HEADER = struct.Struct("<6I")
VERSION = 0x01000001  # from this version on the checksum is not checked
MAX_PAYLOAD = 1 << 20
FEATURES = (
    "shell_v2",
    "cmd",
    "stat_v2",
    "ls_v2",
    "fixed_push_mkdir",
    "fixed_push_symlink_timestamp",
    "sendrecv_v2",
)


def _command(name: bytes) -> int:
    return int.from_bytes(name, "little")


CNXN, AUTH, OPEN, OKAY, CLSE, WRTE = (
    _command(name) for name in (b"CNXN", b"AUTH", b"OPEN", b"OKAY", b"CLSE", b"WRTE")
)
AUTH_TOKEN = 1
AUTH_SIGNATURE = 2


class State(StrEnum):
    """How the device answers the handshake, in the words of `adb devices`."""

    DEVICE = "device"
    UNAUTHORIZED = "unauthorized"
    OFFLINE = "offline"


@dataclass(frozen=True)
class Identity:
    """What the CNXN banner says."""

    name: str
    model: str
    device: str

    def banner(self) -> bytes:
        return (
            f"device::ro.product.name={self.name};ro.product.model={self.model};"
            f"ro.product.device={self.device};features={','.join(FEATURES)}"
        ).encode()


class ProtocolError(Exception):
    """The other side broke the protocol; the connection is dropped."""


class StreamClosed(ConnectionError):
    """The other side closed the stream while we wanted to write to it."""


class Stream:
    """One multiplexed byte stream. `write` waits until the host has taken the data."""

    def __init__(self, connection: Connection, local_id: int, remote_id: int) -> None:
        self._connection = connection
        self.local_id = local_id
        self.remote_id = remote_id
        self.closed = False
        self.opened = asyncio.Event()
        self._inbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._credit = asyncio.Event()
        self._chunk = b""
        self._position = 0  # of the first byte of _chunk that nobody has read
        self._ended = False

    async def accept(self) -> None:
        """Tell the host that the service it asked for is there."""
        self.opened.set()
        await self._connection.send(OKAY, self.local_id, self.remote_id)

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send everything; StreamClosed when the host hung up."""
        view = memoryview(data)
        size = self._connection.max_payload
        for start in range(0, len(view), size):
            if self.closed:
                raise StreamClosed
            self._credit.clear()
            await self._connection.send(
                WRTE, self.local_id, self.remote_id, view[start : start + size]
            )
            await self._credit.wait()
        if self.closed:
            raise StreamClosed

    async def read_some(self) -> bytes:
        """The next bytes, acknowledged; b"" once the host has closed the stream."""
        if self._position < len(self._chunk):
            data = self._chunk[self._position :]
            self._position = len(self._chunk)
            return data
        if self._ended:
            return b""
        received = await self._inbox.get()
        if received is None:
            self._ended = True
            return b""
        await self._connection.send(OKAY, self.local_id, self.remote_id)
        return received

    async def read_exactly(self, size: int) -> bytes:
        """`size` bytes; EOFError when the stream ends first."""
        parts: list[bytes] = []
        missing = size
        while missing:
            if self._position == len(self._chunk):
                self._chunk, self._position = await self.read_some(), 0
                if not self._chunk:
                    raise EOFError
            part = self._chunk[self._position : self._position + missing]
            self._position += len(part)
            missing -= len(part)
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def close(self) -> None:
        self._connection.forget(self)
        if not self.closed:
            self.closed = True
            self._credit.set()
            await self._connection.send(CLSE, self.local_id, self.remote_id)

    # Called by the connection's packet loop.

    def on_data(self, data: bytes) -> None:
        self._inbox.put_nowait(data)

    def on_okay(self, remote_id: int) -> None:
        if not self.opened.is_set():
            self.remote_id = remote_id
            self.opened.set()
        self._credit.set()

    def on_close(self) -> None:
        self.closed = True
        self._inbox.put_nowait(None)
        self._credit.set()
        self.opened.set()


Service = Callable[["Connection", Stream, str], Awaitable[None]]


class Connection:
    """One host. Runs until the host goes away or breaks the protocol."""

    MAX_STREAMS = 256

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        wire: Wire,
        identity: Identity,
        state: State,
        service: Service,
    ) -> None:
        self.max_payload = 4096  # until the host says what it takes
        self._reader = reader
        self._writer = writer
        self._wire = wire
        self._identity = identity
        self._state = state
        self._service = service
        self._checksums = True
        self._streams: dict[int, Stream] = {}
        self._next_id = 1
        self._sending = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._cleanups: list[Callable[[], None]] = []

    async def run(self) -> None:
        try:
            while True:
                await self._packet()
        except (asyncio.IncompleteReadError, ConnectionError):
            log.info("host went away")
        except ProtocolError as error:
            log.warning("connection dropped: %s", error)
        finally:
            for stream in list(self._streams.values()):
                stream.on_close()
            for task in list(self._tasks):
                task.cancel()
            for cleanup in self._cleanups:
                cleanup()
            self._writer.close()

    def abort(self) -> None:
        """Cut the wire, as a pulled cable does."""
        self._writer.transport.abort()

    def on_end(self, cleanup: Callable[[], None]) -> None:
        self._cleanups.append(cleanup)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def send(
        self, command: int, arg0: int, arg1: int, data: bytes | memoryview = b""
    ) -> None:
        checksum = sum(data) & 0xFFFFFFFF if self._checksums else 0
        async with self._sending:
            await self._wire.passed(HEADER.size + len(data))
            self._writer.write(
                HEADER.pack(command, arg0, arg1, len(data), checksum, command ^ 0xFFFFFFFF)
            )
            if len(data):
                self._writer.write(data)
            await self._writer.drain()

    async def open(self, destination: str) -> Stream | None:
        """Open a stream to a host address (`adb reverse`); None when the host refuses."""
        stream = self._new_stream(remote_id=0)
        await self.send(OPEN, stream.local_id, 0, destination.encode() + b"\0")
        await stream.opened.wait()
        return None if stream.closed else stream

    def forget(self, stream: Stream) -> None:
        self._streams.pop(stream.local_id, None)

    def _new_stream(self, remote_id: int) -> Stream:
        stream = Stream(self, self._next_id, remote_id)
        self._next_id += 1
        self._streams[stream.local_id] = stream
        return stream

    async def _packet(self) -> None:
        header = await self._reader.readexactly(HEADER.size)
        command, arg0, arg1, length, _checksum, magic = HEADER.unpack(header)
        if command ^ 0xFFFFFFFF != magic:
            raise ProtocolError("bad magic")
        if length > MAX_PAYLOAD:
            raise ProtocolError(f"payload of {length} bytes")
        data = await self._reader.readexactly(length) if length else b""
        await self._wire.passed(HEADER.size + length)
        if command == CNXN:
            await self._on_connect(arg0, arg1)
        elif command == AUTH:
            # No key is ever good enough for an unauthorized device: it asks again for each
            # signature, and after the public key it waits for a tap that never comes.
            if self._state is State.UNAUTHORIZED and arg0 == AUTH_SIGNATURE:
                await self.send(AUTH, AUTH_TOKEN, 0, os.urandom(20))
        elif self._state is not State.DEVICE:
            raise ProtocolError("traffic before the handshake")
        elif command == OPEN:
            await self._on_open(arg0, data)
        elif command == OKAY:
            if stream := self._streams.get(arg1):
                stream.on_okay(arg0)
        elif command == WRTE:
            if stream := self._streams.get(arg1):
                stream.on_data(data)
            else:
                await self.send(CLSE, 0, arg0)
        elif command == CLSE:
            if stream := self._streams.pop(arg1, None):
                was_closed = stream.closed
                stream.on_close()
                if not was_closed:
                    await self.send(CLSE, stream.local_id, stream.remote_id)
        else:
            raise ProtocolError(f"unknown command {command:#x}")

    async def _on_connect(self, version: int, max_payload: int) -> None:
        if self._state is State.OFFLINE:
            return
        if self._state is State.UNAUTHORIZED:
            await self.send(AUTH, AUTH_TOKEN, 0, os.urandom(20))
            return
        self.max_payload = max(4096, min(max_payload, MAX_PAYLOAD))
        self._checksums = version < VERSION
        await self.send(CNXN, VERSION, MAX_PAYLOAD, self._identity.banner())

    async def _on_open(self, remote_id: int, data: bytes) -> None:
        if len(self._streams) >= self.MAX_STREAMS:
            await self.send(CLSE, 0, remote_id)
            return
        stream = self._new_stream(remote_id)
        self.spawn(self._serve(stream, data.rstrip(b"\0").decode(errors="replace")))

    async def _serve(self, stream: Stream, name: str) -> None:
        try:
            await self._service(self, stream, name)
        except (EOFError, ConnectionError):
            pass  # the host hung up in the middle: nothing is owed to it
        except Exception:
            log.exception("service %s failed", name.partition(":")[0])
        if not stream.opened.is_set():
            # Refused: a closed stream that was never accepted has local id 0.
            self.forget(stream)
            await self.send(CLSE, 0, stream.remote_id)
        else:
            await stream.close()
