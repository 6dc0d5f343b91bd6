"""Find and open a device: an adb serial, any idle device of a SoC, or emulated:<soc>.

A DeviceSession is one running agent and the connection to it. The bench knows nothing of how the
agent came to run: LocalEmulator starts it as a process here, host.deploy starts it over adb.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from host import qairt
from host.client import AgentClient, protocol_mismatch
from host.errors import DeviceError, FailureClass, UserError
from host.provenance import device_provenance, numerics_provenance
from host.store.rows import Channel
from protos import PROTOCOL_VERSION
from quant.artifact import Artifact
from quant.figures import Provenance
from quant.htp.soc import SOCS, get_soc

DEFAULT_SOC = "sm8650"
START_TIMEOUT_S = 60.0
EMULATED_PREFIX = "emulated:"


@dataclass(frozen=True)
class Target:
    """What --device and --mock mean together. Exactly one of `emulated_soc`, `serial`, `soc`."""

    emulated_soc: str = ""
    serial: str = ""
    soc: str = ""

    @property
    def emulated(self) -> bool:
        return bool(self.emulated_soc)


def parse_target(device: str | None, *, mock: bool) -> Target:
    """`--device` is a serial, a SoC id or emulated:<soc>; `--mock` = emulated:<its soc>."""
    if device is not None and device.startswith(EMULATED_PREFIX):
        return Target(emulated_soc=get_soc(device.removeprefix(EMULATED_PREFIX)).id)
    if mock:
        return Target(emulated_soc=get_soc(device or DEFAULT_SOC).id)
    if device is None:
        return Target(soc="")
    looks_like_soc = device.lower().startswith(("sm", "qcs", "sa")) and device[2:3].isdigit()
    if device in SOCS or looks_like_soc:
        return Target(soc=get_soc(device).id)
    return Target(serial=device)


@dataclass(frozen=True)
class DeviceInfo:
    """What Describe said, as plain data."""

    serial: str
    model: str
    soc: str
    soc_model: int
    htp_arch: int
    build: str
    os: str
    agent_version: str
    provenance: Provenance  # of time, power, heat and memory
    numerics: Provenance  # of outputs computed on the device
    emulation_basis: str
    channels: tuple[Channel, ...]
    fingerprint: dict[str, str]

    @property
    def emulated(self) -> bool:
        return self.provenance is not Provenance.MEASURED

    @property
    def compiler(self) -> str:
        """Which `--backend` makes this device's contexts: an Android device runs the libraries of
        the user's SDK, everything else those of onnxruntime-qnn or its emulator."""
        return "qairt" if self.os == "android" and not self.emulated else "ort"

    @property
    def label(self) -> str:
        return f"{EMULATED_PREFIX}{self.soc}" if self.emulated else self.serial


class DeviceSession(Protocol):
    """A running agent. `restart` brings a dead one back, with an empty spool."""

    @property
    def client(self) -> AgentClient: ...

    info: DeviceInfo
    stream_id: str  # of the agent's spool; a new one after a restart that lost it

    def put(self, artifact: Artifact) -> None: ...
    def put_files(self, folder: Path, sha256: str) -> None: ...
    def death(self) -> str: ...
    def restart(self) -> None: ...
    def close(self) -> None: ...


def describe(client: AgentClient) -> DeviceInfo:
    d = client.describe()
    return DeviceInfo(
        serial=d.device.serial,
        model=d.device.model,
        soc=d.device.soc,
        soc_model=d.device.soc_model,
        htp_arch=d.device.htp_arch,
        build=d.device.build,
        os=d.device.os,
        agent_version=d.agent_version,
        provenance=device_provenance(d),
        numerics=numerics_provenance(d),
        emulation_basis=d.emulation_basis,
        channels=client.channels(d),
        fingerprint=dict(d.fingerprint),
    )


def require_runnable(artifact: Artifact, info: DeviceInfo) -> None:
    """UserError where the context was compiled by a newer QAIRT than the one on the device."""
    build = str(artifact.soc(info.soc).get("context", {}).get("build_id", ""))
    qairt.require_runnable(build, info.fingerprint.get("qairt", ""), info.label)


class LocalEmulator:
    """The emulated device of --mock: the real agent as a child process, gRPC on loopback."""

    def __init__(self, soc: str, *, time_factor: float | None = None) -> None:
        self.soc = soc
        self.time_factor = time_factor
        self._folder = Path(tempfile.mkdtemp(prefix="qhost-emulated-"))
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _command(self, root: Path, token_file: Path) -> list[str]:
        command = [
            sys.executable, "-P", "-m", "agent", "--emulate", self.soc,
            "--listen", "127.0.0.1:0", "--root", str(root),
            "--token-file", str(token_file), "--die-with-parent",
        ]  # fmt: skip
        if self.time_factor is not None:
            command += ["--time-factor", str(self.time_factor)]
        return command

    def _start(self) -> None:
        # A fresh root each time: a restarted agent must not replay the dead one's spool. What is
        # expensive (outputs of the HTP emulator) is cached beside the roots.
        root = Path(tempfile.mkdtemp(prefix="root-", dir=self._folder))
        token = secrets.token_urlsafe(32)
        token_file = root / "token"
        fd = os.open(token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w") as f:
            f.write(token)
        self._log = self._folder / "agent.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(root, token_file),
                stdin=subprocess.PIPE,  # its end tells the agent that this host is gone
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the host; it then stops the agent
            )
        ready = self._ready_line(self._process)
        if ready.get("protocol_version") != PROTOCOL_VERSION:
            raise protocol_mismatch(ready.get("protocol_version"))
        self.client = AgentClient(str(ready["address"]), token)
        self.token = token
        self.stream_id = f"{self.soc}-{secrets.token_hex(8)}"
        self.info = describe(self.client)
        if not self.info.emulated:
            raise DeviceError("The agent started as an emulator says it runs on silicon.")

    def _ready_line(self, process: subprocess.Popen[bytes]) -> dict[str, object]:
        assert process.stdout is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        line = b""
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                raise DeviceError(
                    f"The emulated agent was not ready within {START_TIMEOUT_S:.0f} s.",
                    self._log_tail(),
                    failure_class=FailureClass.TIMEOUT,
                )
            piece = os.read(process.stdout.fileno(), 4096)
            if not piece:
                raise DeviceError("The emulated agent ended while starting.", self._log_tail())
            line += piece
        reply = json.loads(line)
        if not isinstance(reply, dict):
            raise DeviceError("The emulated agent's first line makes no sense.", repr(line))
        return reply

    def _log_tail(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def put(self, artifact: Artifact) -> None:
        with tempfile.TemporaryDirectory(dir=self._folder) as tmp:
            self.put_files(artifact.extract(Path(tmp), self.soc), artifact.sha256)

    def put_files(self, folder: Path, sha256: str) -> None:
        """What lies below `folder`, under the name `sha256`; nothing where it is there already."""
        self.client.put_artifact(folder, sha256)

    def death(self) -> str:
        """How the agent ended, in words; empty while it runs."""
        assert self._process is not None
        try:
            code = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return ""
        if code < 0:
            return f"the agent was killed by signal {-code}"
        return f"the agent ended with status {code}: {self._log_tail()}"

    def restart(self) -> None:
        self._stop()
        self._start()

    def _stop(self) -> None:
        if hasattr(self, "client"):
            self.client.close()
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def close(self) -> None:
        self._stop()
        shutil.rmtree(self._folder, ignore_errors=True)


def open_device(target: Target, *, time_factor: float | None = None) -> DeviceSession:
    """A session on the target. UserError when nothing fits, listing what is attached."""
    if target.emulated:
        return LocalEmulator(target.emulated_soc, time_factor=time_factor)
    from host.deploy import open_adb_device

    return open_adb_device(target.serial, target.soc)


def no_device(target: Target, attached: Sequence[str]) -> UserError:
    """The error for a target that no attached device meets."""
    from host.attached import attach_hint  # adbutils takes a while; --mock goes without

    wanted = " for " + (target.serial or target.soc) if target.serial or target.soc else ""
    listing = "attached: " + "; ".join(attached) if attached else "nothing is attached"
    soc = target.soc or DEFAULT_SOC
    return UserError(
        f"No device{wanted}: {listing}.",
        f"{attach_hint(target.serial)} (qhost doctor tells what is missing), or run on an emulated "
        f"one: --device {soc} --mock.",
    )
