"""An emulated Android Snapdragon on a TCP port, for the real adb.

    python -P -m agent.emulator.adbd --soc sm8650 --port 6561 --root DIR

Prints one JSON line when the device is up: {"serial", "port", "soc", "sandbox"}. Reads commands
as lines from standard input (a fault's text), and ends when standard input does.
DIR is the device's file system; /data in it outlives the process.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from agent.emulator import android
from agent.emulator.adb import files, sandbox, shell
from agent.emulator.adb.faults import Fault, FaultSyntaxError, Wire
from agent.emulator.adb.protocol import MAX_PAYLOAD, Connection, Identity, State
from agent.emulator.adb.services import Services
from agent.emulator.adb.table import TableRunner
from agent.emulator.hardware import Hardware
from agent.emulator.personalities import PERSONALITIES
from agent.emulator.phone import TREE

log = logging.getLogger("adbd")

QEMU = "qemu-aarch64-static"
REBOOT = 42  # adbd's exit code that asks for another boot
FILLER = Path("data/.full")
DEFAULT_DISK_BYTES = 256 << 20
ENVIRONMENT = {
    "PATH": "/system/bin",
    "ANDROID_ROOT": "/system",
    "ANDROID_DATA": "/data",
    "HOME": "/data/local/tmp",
    "TMPDIR": "/data/local/tmp",
    "LC_ALL": "C.UTF-8",
}


@dataclass
class Device:
    """One boot of the device: what it is, and how the faults reach it."""

    identity: Identity
    services: Services
    root: Path
    state: State = State.DEVICE
    wire: Wire = field(default_factory=Wire)
    connections: set[Connection] = field(default_factory=set)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    exit_code: int = 0

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(
            reader,
            writer,
            wire=self.wire,
            identity=self.identity,
            state=self.state,
            service=self.services.serve,
        )
        self.connections.add(connection)
        try:
            with contextlib.suppress(asyncio.CancelledError):  # the device goes down
                await connection.run()
        finally:
            self.connections.discard(connection)

    def plan(self, fault: Fault) -> None:
        """Let the fault strike when its trigger says."""
        if fault.after is not None:
            self.wire.after(self.wire.moved + fault.after, lambda: self.strike(fault))
        elif fault.at:
            asyncio.get_running_loop().call_later(fault.at, self.strike, fault)
        else:
            self.strike(fault)

    def strike(self, fault: Fault) -> None:
        log.warning("fault %s", fault.kind)
        value = fault.options
        match fault.kind:
            case "drop":
                self._cut()
            case "freeze":
                self._freeze(value["for"])
            case "reboot":
                self.reboot(value["for"])
            case "refuse-push":
                self.services.push_limit.byte = int(value["byte"])
            case "full-disk":
                _fill(self.root / FILLER, int(value["free"]))
            case "slow-usb":
                self.wire.rate = max(1.0, value["rate"])
            case "kill-agent":
                self._signal(signal.SIGKILL, agent_only=True)
            case "unauthorized" | "offline":
                self.state = State(fault.kind)
                self._cut()

    def reboot(self, down_s: float = 1.0) -> None:
        (self.root / "system/.down_s").write_text(f"{down_s:g}")
        self.exit_code = REBOOT
        self.ended.set()

    def _cut(self) -> None:
        for connection in list(self.connections):
            connection.abort()

    def _freeze(self, seconds: float) -> None:
        self.wire.hold()
        self._signal(signal.SIGSTOP)
        if seconds:
            asyncio.get_running_loop().call_later(seconds, self._thaw)

    def _thaw(self) -> None:
        self._signal(signal.SIGCONT)
        self.wire.release()

    def _signal(self, number: signal.Signals, *, agent_only: bool = False) -> None:
        for pid in self.services.runner.processes():
            if not agent_only or _is_agent(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)


def _is_agent(pid: int) -> bool:
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"agent" in arguments and b"--listen" in arguments


def _fill(filler: Path, free: int) -> None:
    """Take all of /data but `free` bytes."""
    room = os.statvfs(filler.parent)
    size = room.f_bavail * room.f_frsize - free
    step = room.f_frsize
    with filler.open("wb") as file:
        while size > 0:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
                return
            except OSError:  # the file's own bookkeeping takes room, too
                size -= step


def _fault(text: str) -> Fault:
    try:
        return Fault.parse(text)
    except FaultSyntaxError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="agent.emulator.adbd", description=__doc__)
    parser.add_argument("--soc", required=True, choices=sorted(android.BOARDS))
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--serial", default="")
    parser.add_argument("--time-factor", type=float, default=1.0)
    parser.add_argument("--personality", choices=sorted(PERSONALITIES), default="board")
    parser.add_argument(
        "--isa", choices=("native", "aarch64"), default="native",
        help="aarch64: no Python of this machine; aarch64 programs run through qemu-user",
    )  # fmt: skip
    parser.add_argument("--fault", type=_fault, action="append", default=[])
    parser.add_argument("--data-mb", type=float, help="size of /data; default: unbounded")
    parser.add_argument("--no-sandbox", action="store_true", help="use the closed command table")
    parser.add_argument("--log", type=Path, help="where the device writes its log")
    options = parser.parse_args(argv)
    if options.isa == "aarch64":
        if options.time_factor != 1.0:
            parser.error("--time-factor: a device with programs of its own lives in real time")
        if options.no_sandbox or (refused := sandbox.supported()):
            why = "it was asked not to" if options.no_sandbox else refused
            parser.error(f"--isa aarch64 needs the sandbox, which this kernel refuses: {why}")
        if shutil.which(QEMU) is None:
            parser.error(f"--isa aarch64 needs {QEMU}: apt-get install qemu-user-static")
    return options


def main(argv: list[str] | None = None) -> int:
    options = _options(argv)
    logging.basicConfig(
        filename=options.log,
        level=logging.INFO,
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
    )
    listener = socket.create_server(("127.0.0.1", options.port), backlog=16)
    port = listener.getsockname()[1]
    soc: str = options.soc
    root = options.root.resolve()
    root.mkdir(parents=True, exist_ok=True)
    serial = options.serial or f"qhost-{soc}-{port}"
    native = options.isa == "native"
    props = android.properties(soc, serial, options.time_factor, options.personality, native=native)
    android.build_root(root, soc, props)
    environment = dict(ENVIRONMENT)
    programs = sandbox.host_programs()
    if not native:
        qemu = Path(shutil.which(QEMU) or QEMU).resolve()
        environment["QHOST_EMULATOR"] = str(qemu)  # the bundle's launcher starts Python with it
        if not any(qemu.is_relative_to(folder) for folder in programs):
            programs.append(qemu.parent)
    refused = "it was asked not to" if options.no_sandbox else sandbox.supported()
    ready = {"port": port, "soc": soc, "serial": serial, "sandbox": not refused}
    if refused:
        log.warning("no sandbox (%s): commands come from a closed table", refused)
    else:
        sandbox.enter(root, programs, _data_bytes(options))
        root = Path("/")
    faults: list[Fault] = options.fault
    while True:
        os.environ.clear()
        os.environ.update(environment)

        def serve(faults: list[Fault] = faults, ready: dict[str, object] = ready) -> int:
            if not native:
                Hardware(root / TREE, soc, PERSONALITIES[options.personality]).start()
            return asyncio.run(
                _serve(listener, root, soc, faults, ready, environment if not refused else None)
            )

        if refused:
            code = sandbox.boot_unconfined(serve)
        else:
            code = sandbox.boot(serve, lambda: _overlay(root))
        if code != REBOOT:
            return code
        down = root / "system/.down_s"
        time.sleep(float(down.read_text()))
        faults, ready = [], {}


def _data_bytes(options: argparse.Namespace) -> int | None:
    if options.data_mb:
        return int(options.data_mb * 1e6)
    full = any(fault.kind == "full-disk" for fault in options.fault)
    return DEFAULT_DISK_BYTES if full else None


def _overlay(root: Path) -> None:
    """Show the emulated /proc files over the kernel's."""
    sandbox.bind(root / TREE / "proc/meminfo", root / "proc/meminfo")


async def _serve(
    listener: socket.socket,
    root: Path,
    soc: str,
    faults: list[Fault],
    ready: dict[str, object],
    environment: dict[str, str] | None,
) -> NoReturn:
    """One boot: ends the process, with REBOOT when another is due. `environment` of its commands;
    None where there is no sandbox to run them in."""
    device: Device
    resolve: files.Resolve
    runner: shell.Runner
    if environment is not None:
        runner = shell.ProcessRunner(environment)
        resolve = files.direct
    else:
        runner = TableRunner(root)
        resolve = files.confined(root)
    services = Services(resolve, runner, lambda: device.reboot())
    identity = Identity(f"{soc}_emulated", f"{soc.upper()}_emulated", f"{soc}_emulated")
    device = Device(identity, services, root)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, device.ended.set)
    for fault in faults:
        device.plan(fault)
    server = await asyncio.start_server(
        device.connected, sock=listener.dup(), limit=4 * MAX_PAYLOAD
    )
    control = asyncio.create_task(_control(device))
    if ready:
        sys.stdout.write(json.dumps(ready) + "\n")
        sys.stdout.flush()
    await device.ended.wait()
    control.cancel()
    server.close()
    for connection in list(device.connections):
        connection.abort()
    for pid in runner.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    logging.shutdown()
    # As a power cut: no task that still runs is asked, or waited for.
    os._exit(device.exit_code)


async def _control(device: Device) -> None:
    """Faults by name from standard input, until it ends."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while line := (await reader.readline()).decode().strip():
        try:
            device.plan(Fault.parse(line))
        except (FaultSyntaxError, OSError) as error:
            log.error("%s", error)
    device.ended.set()


if __name__ == "__main__":
    sys.exit(main())
