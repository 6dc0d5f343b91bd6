"""What a host can ask a device for: shell, sync, sockets (forward), listeners (reverse), reboot."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from agent.emulator.adb import shell
from agent.emulator.adb.files import Resolve
from agent.emulator.adb.protocol import Connection, Stream
from agent.emulator.adb.sync import PushLimit, SyncService

BLOCK = 256 * 1024
MESSAGES = {
    "root": b"adbd cannot run as root in production builds\n",
    "remount": b"remount failed: not running as root\n",
    "unroot": b"adbd not running as root\n",
}


@dataclass
class Services:
    """The services of one device."""

    resolve: Resolve
    runner: shell.Runner
    reboot: Callable[[], None]
    push_limit: PushLimit = field(default_factory=PushLimit)
    _reverse: WeakKeyDictionary[Connection, Reverse] = field(default_factory=WeakKeyDictionary)

    async def serve(self, connection: Connection, stream: Stream, name: str) -> None:
        """Dispatch one OPEN; a stream that is never accepted is refused by the caller."""
        kind, _, rest = name.partition(":")
        if kind.split(",")[0] == "shell" or kind == "exec":
            await shell.serve(stream, name, self.runner)
        elif kind == "sync":
            await stream.accept()
            await SyncService(stream, self.resolve, self.push_limit).run()
        elif kind in ("tcp", "localabstract"):
            with contextlib.suppress(OSError, ValueError):
                reader, writer = await self._connect(kind, rest)
                await stream.accept()
                await _pipe(stream, reader, writer)
        elif kind == "reverse":
            await stream.accept()
            reverse = self._reverse.get(connection)
            if reverse is None:
                reverse = self._reverse[connection] = Reverse(connection)
            await reverse.run(stream, rest)
        elif kind == "reboot":
            await stream.accept()
            await stream.close()
            self.reboot()
        elif kind in MESSAGES:
            await stream.accept()
            await stream.write(MESSAGES[kind])

    async def _connect(
        self, kind: str, address: str
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if kind == "tcp":
            # tcp:PORT or tcp:PORT:HOST; only the device's own loopback is offered.
            return await asyncio.open_connection("127.0.0.1", int(address.split(":")[0]))
        return await asyncio.open_unix_connection("\0" + self.runner.abstract(address))


async def _pipe(stream: Stream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy both ways until one side ends."""

    async def outwards() -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(BLOCK):
                await stream.write(data)
        await stream.close()

    copying = asyncio.create_task(outwards())
    try:
        with contextlib.suppress(ConnectionError):
            while data := await stream.read_some():
                writer.write(data)
                await writer.drain()
    finally:
        writer.close()
        copying.cancel()


class Reverse:
    """`adb reverse`: the device listens, the host connects. Lives as long as the connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._listeners: dict[int, tuple[asyncio.Server, str]] = {}
        connection.on_end(self._close_all)

    async def run(self, stream: Stream, request: str) -> None:
        verb, _, rest = request.partition(":")
        try:
            match verb:
                case "forward":
                    reply = await self._forward(rest)
                case "list-forward":
                    lines = (
                        f"host tcp:{port} {remote}\n"
                        for port, (_, remote) in self._listeners.items()
                    )
                    reply = _counted("".join(lines))
                case "killforward":
                    server, _ = self._listeners.pop(_tcp_port(rest))
                    server.close()
                    reply = b"OKAY"
                case "killforward-all":
                    self._close_all()
                    reply = b"OKAY"
                case _:
                    reply = b"FAIL" + _counted(f"unknown reverse request {verb}")
        except (OSError, ValueError, KeyError) as error:
            reply = b"FAIL" + _counted(f"cannot {verb}: {error}")
        await stream.write(reply)

    async def _forward(self, spec: str) -> bytes:
        norebind = spec.startswith("norebind:")
        local, _, remote = spec.removeprefix("norebind:").partition(";")
        port = _tcp_port(local)
        if port in self._listeners:
            if norebind:
                raise ValueError(f"cannot rebind {local}")
            self._listeners.pop(port)[0].close()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                if stream := await self._connection.open(remote):
                    await _pipe(stream, reader, writer)
            writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", port)
        chosen = server.sockets[0].getsockname()[1]
        self._listeners[chosen] = (server, remote)
        return b"OKAY" if port else b"OKAY" + _counted(str(chosen))

    def _close_all(self) -> None:
        for server, _ in self._listeners.values():
            server.close()
        self._listeners.clear()


def _tcp_port(address: str) -> int:
    kind, _, port = address.partition(":")
    if kind != "tcp":
        raise ValueError(f"{address} is no tcp address")
    return int(port)


def _counted(text: str) -> bytes:
    return b"%04x" % len(text.encode()) + text.encode()
