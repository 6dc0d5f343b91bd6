"""The adb server and the devices behind it: a typed layer over adbutils and the adb binary.

The binary pushes (three times faster than adbutils) and starts the server; everything else talks
to the server directly, which tells a command's own exit code from a failure of adb. Each call has
a deadline for the whole of it. Whatever goes wrong is a DeviceError with one line of cause and one
of cure.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath

import adbutils
from adbutils.errors import AdbError

from host.errors import DeviceError, FailureClass

DEFAULT_PORT = 5037
SHELL_TIMEOUT_S = 30.0
LIST_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 15.0
# A push gets this long and the slowest link we support on top: USB 2 with a hub, or Wi-Fi.
PUSH_BASE_S = 30.0
PUSH_MIN_BYTES_PER_S = 1e6
RECONNECT_POLL_S = 0.2
PROBE_TIMEOUT_S = 5.0
_FRAME = struct.Struct("<BI")
_STDOUT, _STDERR, _EXIT = 1, 2, 3
NETWORK_SERIAL = re.compile(r"^[^\s:]+:\d+$")

# What adb says -> what is wrong and what to do. First match wins; {serial} is filled in.
_EXPLANATIONS: tuple[tuple[str, str, str, bool], ...] = (
    (
        r"no space left",
        "No space is left on {serial}.",
        "Free some: 'qhost agent remove --device {serial}', or delete files under /data/local/tmp.",
        False,
    ),
    (
        r"unauthorized",
        "{serial} does not trust this computer.",
        "Unlock it and accept 'Allow USB debugging'; if nothing shows, revoke USB debugging "
        "authorizations in its developer options and plug it in again.",
        False,
    ),
    (
        r"no permissions|insufficient permissions|access denied",
        "This user may not open the USB node of {serial}.",
        "Install the udev rules (apt-get install android-sdk-platform-tools-common), add the user "
        "to the group plugdev, and plug the device in again.",
        False,
    ),
    (
        r"offline",
        "{serial} is offline: adb sees it, but it does not answer.",
        "Plug it in again or restart USB debugging on it; over the network: "
        "'adb disconnect {serial}' and 'adb connect {serial}'.",
        True,
    ),
    (
        r"not found|no devices|unknown host service|no such device|unable to connect"
        r"|failed to connect|cannot resolve",
        "{serial} is not connected.",
        "Check the cable and that USB debugging is on; 'qhost devices' lists what adb sees.",
        True,
    ),
    (
        r"read-only file system|permission denied|operation not permitted",
        "{serial} does not allow it: {text}.",
        "qhost needs /data/local/tmp to be writable for the adb shell user.",
        False,
    ),
)


def explain(serial: str, text: str) -> DeviceError:
    """The DeviceError for what adb said about `serial`."""
    text = " ".join(text.split())
    for pattern, message, hint, transient in _EXPLANATIONS:
        if re.search(pattern, text, re.IGNORECASE):
            fill: dict[str, str] = {"serial": serial, "text": text}
            return DeviceError(message.format(**fill), hint.format(**fill), transient=transient)
    return DeviceError(
        f"adb lost {serial}: {text or 'the connection was closed'}.",
        "The cable or the device dropped out; try again when 'qhost devices' shows it.",
        transient=True,
    )


def _timed_out(serial: str, doing: str, seconds: float) -> DeviceError:
    return DeviceError(
        f"{serial} did not finish {doing} within {seconds:.0f} s.",
        "It may be frozen or on a bad cable; plug it in again or reboot it.",
        transient=True,
        failure_class=FailureClass.TIMEOUT,
    )


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else ""


@dataclass(frozen=True)
class ShellResult:
    code: int
    stdout: str
    stderr: str


@cache
def binary() -> str:
    """The adb binary: $ADBUTILS_ADB_PATH, the one in PATH, or the one of the adbutils wheel."""
    try:
        return str(adbutils.adb_path())
    except AdbError as error:
        raise DeviceError(
            "There is no adb binary.", "Install one (apt-get install adb) or set ADBUTILS_ADB_PATH."
        ) from error


@cache
def _binary_version() -> int:
    """41 of 'Android Debug Bridge version 1.0.41': what client and server must agree on."""
    text = subprocess.run([binary(), "version"], capture_output=True, text=True, timeout=20).stdout
    found = re.search(r"version 1\.0\.(\d+)", text)
    if not found:
        raise DeviceError(f"{binary()} is no adb that qhost knows.", "Set ADBUTILS_ADB_PATH.")
    return int(found[1])


def _server_port() -> int:
    return int(os.environ.get("ANDROID_ADB_SERVER_PORT") or DEFAULT_PORT)


@dataclass(frozen=True)
class AdbServer:
    """One adb server on loopback. Building it does no I/O."""

    port: int = field(default_factory=_server_port)

    def ensure(self) -> None:
        """Start the server unless it runs; DeviceError when it speaks another version.

        An adb client of another version would kill the server and with it every forward of
        whoever uses it: qhost says so instead.
        """
        try:
            running = int(self.query("host:version"), 16)
        except ConnectionError:
            code, text = self.run("start-server")
            if code:
                raise DeviceError(
                    f"adb cannot start a server on port {self.port}: {_last_line(text)}.",
                    "Choose a free port in ANDROID_ADB_SERVER_PORT.",
                ) from None
            running = int(self.query("host:version"), 16)
        except (AdbFailure, ValueError) as error:
            raise DeviceError(
                f"What listens on port {self.port} is no adb server: {error}.",
                "Choose a free port in ANDROID_ADB_SERVER_PORT.",
            ) from error
        if running != _binary_version():
            raise DeviceError(
                f"The adb server on port {self.port} has version {running}, "
                f"qhost's adb ({binary()}) has version {_binary_version()}.",
                "Stop the other one ('adb kill-server' with its own adb), point ADBUTILS_ADB_PATH "
                "at the adb it came from, or choose a free port in ANDROID_ADB_SERVER_PORT.",
            )

    def run(
        self, *arguments: str, serial: str = "", timeout: float = SHELL_TIMEOUT_S
    ) -> tuple[int, str]:
        """The adb binary against this server: exit code and everything it printed."""
        command = [binary(), "-P", str(self.port)] + (["-s", serial] if serial else [])
        try:
            done = subprocess.run(
                [*command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=timeout,
            )
        except subprocess.TimeoutExpired as error:
            raise _timed_out(serial or "adb", f"'adb {arguments[0]}'", timeout) from error
        return done.returncode, done.stdout

    def kill(self) -> None:
        """End the server, if it runs."""
        try:
            self.query("host:kill")
        except (ConnectionError, AdbFailure):
            return

    def connect(self, address: str) -> None:
        """`adb connect HOST:PORT`; nothing happens when it is connected already."""
        self.ensure()
        answer = self.query(f"host:connect:{address}", serial=address, timeout=CONNECT_TIMEOUT_S)
        if not re.match(r"(already )?connected to", answer):
            raise explain(address, answer)

    def disconnect(self, address: str) -> None:
        try:
            self.query(f"host:disconnect:{address}")
        except AdbFailure:
            return  # it was not connected

    def states(self) -> list[tuple[str, str, dict[str, str]]]:
        """(serial, state, attributes) of every device that adb sees."""
        found = []
        for line in self.query("host:devices-l", timeout=LIST_TIMEOUT_S).splitlines():
            match = re.match(r"(\S+)\s+(no permissions.*?|\S+)(?=\s+\S+:\S|;|$)(.*)", line)
            if match:
                pairs = (item.partition(":") for item in match[3].split() if ":" in item)
                found.append((match[1], match[2], {key: value for key, _, value in pairs}))
        return found

    @contextmanager
    def _conversation(self, timeout: float) -> Iterator[_Conversation]:
        """ConnectionError when no server runs."""
        deadline = time.monotonic() + timeout
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as connection:
            yield _Conversation(connection, deadline)

    def query(self, request: str, *, serial: str = "", timeout: float = SHELL_TIMEOUT_S) -> str:
        """One request to the server that runs and its counted answer. AdbFailure: it refused."""
        try:
            with self._conversation(timeout) as talk:
                talk.request(request)
                return talk.counted()
        except TimeoutError as error:
            raise _timed_out(serial or "The adb server", request, timeout) from error

    def shell(self, serial: str, command: str, timeout: float) -> ShellResult:
        """Run `command` by the device's sh with no input (shell protocol v2)."""
        outputs = {_STDOUT: bytearray(), _STDERR: bytearray()}
        try:
            with self._conversation(timeout) as talk:
                talk.request(f"host:transport:{serial}")
                talk.request(f"shell,v2,raw:{command}")
                while True:
                    kind, size = _FRAME.unpack(talk.exactly(_FRAME.size))
                    data = talk.exactly(size)
                    if kind == _EXIT:
                        break
                    outputs[kind] += data
        except TimeoutError as error:
            raise _timed_out(serial, "a shell command", timeout) from error
        except AdbFailure as error:
            raise explain(serial, str(error)) from error
        except ConnectionError as error:
            raise explain(serial, "") from error
        text = {kind: data.decode(errors="replace") for kind, data in outputs.items()}
        return ShellResult(data[0], text[_STDOUT], text[_STDERR])


class AdbFailure(Exception):
    """The server answered FAIL; the text is its own."""


class _Conversation:
    """One connection to the adb server. TimeoutError at the deadline, however slow the bytes."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline

    def request(self, text: str) -> None:
        data = text.encode()
        self._connection.sendall(b"%04x" % len(data) + data)
        answer = self.exactly(4)
        if answer == b"FAIL":
            raise AdbFailure(self.counted())
        if answer != b"OKAY":
            raise AdbFailure(f"not an adb server: {answer!r}")

    def counted(self) -> str:
        return self.exactly(int(self.exactly(4), 16)).decode(errors="replace")

    def exactly(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._connection.settimeout(left)
            part = self._connection.recv(min(size - len(parts), 1 << 20))
            if not part:
                raise ConnectionResetError("the adb server closed the connection")
            parts += part
        return bytes(parts)


@dataclass(frozen=True)
class AdbDevice:
    """A device as adb and its properties describe it. Fields are empty where it cannot answer."""

    serial: str
    state: str  # device, offline, unauthorized, no permissions, ...
    model: str = ""
    soc: str = ""  # sm8650
    build: str = ""
    emulated: bool = False
    android: bool = True  # False: a Linux board with an adbd
    server: AdbServer = field(default_factory=AdbServer, repr=False)

    @property
    def ready(self) -> bool:
        return self.state == "device"

    def require_ready(self) -> None:
        """DeviceError that says why the device cannot be used, if it cannot."""
        if not self.ready:
            raise explain(self.serial, self.state)

    def shell(self, command: str, timeout: float = SHELL_TIMEOUT_S) -> ShellResult:
        """Run a command line; DeviceError when adb fails, never for the command's own code."""
        return self.server.shell(self.serial, command, timeout)

    def check(self, command: str, timeout: float = SHELL_TIMEOUT_S) -> str:
        """The standard output of a command that must succeed."""
        done = self.shell(command, timeout)
        if done.code:
            raise explain(self.serial, done.stderr or f"'{command}' gave {done.code}")
        return done.stdout

    def getprop(self, name: str) -> str:
        return self.check(f"getprop {name}").strip()

    def push(self, local: Path, remote: PurePosixPath, timeout: float | None = None) -> None:
        """Push a file, or what a directory holds."""
        files = [local] if local.is_file() else [p for p in local.rglob("*") if p.is_file()]
        size = sum(file.stat().st_size for file in files)
        source = str(local) if local.is_file() else f"{local}/."
        self._transfer("push", source, str(remote), size, timeout)

    def pull(self, remote: PurePosixPath, local: Path, timeout: float | None = None) -> None:
        self._transfer("pull", str(remote), str(local), 0, timeout)

    def _transfer(
        self, verb: str, source: str, target: str, size: int, timeout: float | None
    ) -> None:
        limit = timeout or PUSH_BASE_S + size / PUSH_MIN_BYTES_PER_S
        code, text = self.server.run(verb, source, target, serial=self.serial, timeout=limit)
        if code:
            # The summary ("1 file pushed") may come after the error.
            errors = [line for line in text.splitlines() if "error" in line]
            raise explain(self.serial, _last_line("\n".join(errors) or text))

    def forward(self, remote: str) -> int:
        """Forward a free loopback port of the host to `remote`; the port that adb chose."""
        code, text = self.server.run("forward", "tcp:0", remote, serial=self.serial)
        if code or not text.strip().isdecimal():
            raise explain(self.serial, text)
        return int(text)

    def remove_forward(self, port: int) -> None:
        """Undo `forward`; a forward that is gone already is fine."""
        self.server.run("forward", "--remove", f"tcp:{port}", serial=self.serial)

    def wait_ready(self, timeout: float) -> None:
        """Wait for the device to come back, connecting again where it is reached by network."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.server.ensure()
                states = {serial: state for serial, state, _ in self.server.states()}
                if states.get(self.serial) == "device":
                    # The server does not notice a device that froze: only an answer counts.
                    self.shell("true", PROBE_TIMEOUT_S)
                    return
                why = explain(self.serial, states.get(self.serial, "device not found"))
                if not why.transient:
                    raise why
                if NETWORK_SERIAL.match(self.serial) and self.serial not in states:
                    self.server.connect(self.serial)
            except (ConnectionError, AdbFailure):
                why = explain(self.serial, "")
            except DeviceError as error:
                if not error.transient:
                    raise
                why = error
            if time.monotonic() > deadline:
                raise why
            time.sleep(RECONNECT_POLL_S)
