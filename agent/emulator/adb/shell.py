"""The `shell:` and `exec:` services: one command, its streams and its return code.

Shell protocol v2 frames are (id: u8, length: u32 little-endian, data).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import signal
import struct
import termios
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.emulator.adb.protocol import Stream

STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN, WINDOW_SIZE = range(6)
FRAME = struct.Struct("<BI")
BLOCK = 64 * 1024
MAX_FRAME = 1 << 20


@dataclass(frozen=True)
class Request:
    """What the service name asks for: `shell,v2,raw:ls -l`."""

    command: str
    framed: bool
    terminal: bool

    @classmethod
    def parse(cls, service: str) -> Request:
        head, _, command = service.partition(":")
        options = head.split(",")[1:]
        terminal = "pty" in options or (not command and "raw" not in options)
        return cls(command, "v2" in options, terminal and head != "exec")


class Runner(Protocol):
    """How a command line runs on this device."""

    async def run(self, request: Request, output: Output) -> int:
        """Run it to its end; its exit code, 128 + N when signal N killed it."""
        ...

    def processes(self) -> list[int]:
        """The ids of the device's processes other than adbd and init."""
        ...

    def abstract(self, name: str) -> str:
        """The real name of the device's abstract socket `name`."""
        ...


class Output:
    """The host's end of a running command."""

    def __init__(self, stream: Stream, framed: bool) -> None:
        self._stream = stream
        self._framed = framed
        self.hung_up = asyncio.Event()

    async def write(self, data: bytes, kind: int = STDOUT) -> None:
        if self._framed:
            data = FRAME.pack(kind, len(data)) + data
        await self._stream.write(data)

    async def input(self) -> tuple[int, bytes] | None:
        """The next (id, data) the host sends; None when it hung up."""
        try:
            if not self._framed:
                data = await self._stream.read_some()
                return (STDIN, data) if data else None
            kind, size = FRAME.unpack(await self._stream.read_exactly(FRAME.size))
            if size > MAX_FRAME:
                return None
            return kind, await self._stream.read_exactly(size)
        except EOFError:
            return None


async def serve(stream: Stream, service: str, runner: Runner) -> None:
    request = Request.parse(service)
    await stream.accept()
    output = Output(stream, request.framed)
    code = await runner.run(request, output)
    if request.framed:
        await output.write(bytes([code & 0xFF]), EXIT)


class ProcessRunner:
    """Real processes, for a device whose whole adbd lives in the sandbox."""

    def __init__(self, environment: dict[str, str], cwd: str = "/") -> None:
        self._environment = environment
        self._cwd = cwd

    async def run(self, request: Request, output: Output) -> int:
        argv = ["/system/bin/sh"] + (["-c", request.command] if request.command else [])
        return await (self._terminal if request.terminal else self._pipes)(argv, request, output)

    def processes(self) -> list[int]:
        mine = (1, os.getpid())
        return [int(p.name) for p in Path("/proc").glob("[0-9]*") if int(p.name) not in mine]

    def abstract(self, name: str) -> str:
        return name

    async def _pipes(self, argv: list[str], request: Request, output: Output) -> int:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe if request.framed else asyncio.subprocess.STDOUT,
            env=self._environment,
            cwd=self._cwd,
            start_new_session=True,
        )

        async def copy(source: asyncio.StreamReader | None, kind: int) -> None:
            while source and (data := await source.read(BLOCK)):
                await output.write(data, kind)

        async def feed() -> None:
            stdin = process.stdin
            while stdin and (item := await output.input()):
                kind, data = item
                with contextlib.suppress(ConnectionError):
                    if kind == STDIN and not stdin.is_closing():
                        stdin.write(data)
                        await stdin.drain()
                    elif kind == CLOSE_STDIN:
                        stdin.close()
            hang_up(process.pid)

        feeder = asyncio.create_task(feed())
        try:
            await asyncio.gather(copy(process.stdout, STDOUT), copy(process.stderr, STDERR))
            return _code(await process.wait())
        finally:
            feeder.cancel()
            if process.returncode is None:
                hang_up(process.pid)

    async def _terminal(self, argv: list[str], request: Request, output: Output) -> int:
        master, slave = pty.openpty()
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=slave,
                stdout=slave,
                stderr=slave,
                env=self._environment | {"TERM": "dumb"},
                cwd=self._cwd,
                start_new_session=True,
            )
        finally:
            os.close(slave)
        loop = asyncio.get_running_loop()
        screen: asyncio.Queue[bytes] = asyncio.Queue()

        def readable() -> None:
            try:
                data = os.read(master, BLOCK)
            except OSError:  # EIO: the last process on the terminal is gone
                data = b""
            screen.put_nowait(data)
            if not data:
                loop.remove_reader(master)

        async def feed() -> None:
            while item := await output.input():
                kind, data = item
                if kind == STDIN:
                    os.write(master, data)
                elif kind == WINDOW_SIZE:
                    rows, columns = (int(n) for n in data.split(b",")[0].split(b"x"))
                    size = struct.pack("4H", rows, columns, 0, 0)
                    fcntl.ioctl(master, termios.TIOCSWINSZ, size)
            hang_up(process.pid)

        loop.add_reader(master, readable)
        feeder = asyncio.create_task(feed())
        try:
            while data := await screen.get():
                await output.write(data)
            return _code(await process.wait())
        finally:
            feeder.cancel()
            loop.remove_reader(master)
            if process.returncode is None:
                hang_up(process.pid)
            os.close(master)


def hang_up(pid: int) -> None:
    """What adbd does when the client goes: the command's process group gets SIGHUP.

    What left the group (`setsid`) lives on.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGHUP)


def _code(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode
