"""A running agent behind adb: deployed, leased, forwarded, reached again after a broken cable."""

from __future__ import annotations

import contextlib
import secrets
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from host import config, first_contact, install, lease
from host.adb import AdbDevice, AdbServer
from host.attached import identify, list_devices
from host.client import CALL_TIMEOUT_S, AgentClient, SegmentSpec
from host.devices import DeviceInfo, Target, describe, no_device
from host.errors import DeviceError, FailureClass
from host.layers import Layer
from quant.artifact import Artifact

# A phone that reboots is back on USB in a minute or two; one that was only unplugged at once.
RETURN_TIMEOUT_S = 60.0
# Once it stayed away that long, nothing waits for it again for more than this.
LOST_TIMEOUT_S = 5.0
OPEN_ATTEMPTS = 3


class AgentEndpoint:
    """A forwarded agent: where it is and the token it takes."""

    def __init__(self, device: AdbDevice, agent: install.RunningAgent) -> None:
        self.device = device
        self.serial = device.serial
        self.agent = agent
        self.token = device.check(f"cat {install.TOKEN}").strip()
        self._port = device.forward(f"localabstract:{agent.socket}")

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def close(self) -> None:
        """Remove the forward; the agent runs on."""
        with contextlib.suppress(DeviceError):
            self.device.remove_forward(self._port)


def _first_contact(device: AdbDevice) -> None:
    """Keep the capability report of a device, or of a build of it, that was never seen."""
    cache = config.cache_dir(config.resolve()["cache_dir"].value)
    known = first_contact.known_build(device.serial, cache)
    if known != device.build:
        # A device that answers no script has no report; whatever keeps it from working shows next.
        with contextlib.suppress(DeviceError):
            first_contact.keep(first_contact.ask(device), cache)


@contextlib.contextmanager
def _layers(device: AdbDevice) -> Iterator[tuple[Layer, ...]]:
    with tempfile.TemporaryDirectory(prefix="qhost-layers-") as folder:
        yield install.layers_for(device, Path(folder))


def deploy(device: AdbDevice) -> install.Installed:
    """Install what is missing; the agent is neither started nor stopped."""
    device.require_ready()
    install.require_supported(device)
    with _layers(device) as layers:
        return install.install(device, layers)


def ensure_agent(device: AdbDevice, *, clean: bool = False) -> AgentEndpoint:
    """Deploy what is missing, start the agent unless this very version runs, forward its socket.

    `clean` stops one that runs, and starts a new one that knows nothing of earlier runs.
    """
    installed = deploy(device)
    agent = install.running_agent(device)
    if agent and (clean or agent.layers != install.identity(installed.layers)):
        install.stop_agent(device, agent)
        agent = None
    if agent is None:
        agent = install.start_agent(device, installed.layers, clean=clean)
    return AgentEndpoint(device, agent)


class AdbAgentClient(AgentClient):
    """Calls that outlive the forward they were made on.

    `adb disconnect`, `adb kill-server` and a pulled cable drop every forward, also when the agent
    runs on. A call that finds nobody asks `reach` for the new address and is made once more.
    """

    def __init__(self, endpoint: AgentEndpoint, reach: Callable[[], AgentEndpoint]) -> None:
        super().__init__(endpoint.address, endpoint.token)
        self._reach = reach

    def move(self, endpoint: AgentEndpoint) -> None:
        """Talk to the agent through another forward from now on."""
        self.close()
        super().__init__(endpoint.address, endpoint.token)

    def _call(self, method: str, request: object, timeout: float = CALL_TIMEOUT_S) -> Any:
        try:
            return super()._call(method, request, timeout)
        except DeviceError as error:
            # Start is not idempotent: see there. A stream of requests is used up.
            if not error.transient or method in ("Start", "PutArtifact"):
                raise
        self._reach()
        return super()._call(method, request, timeout)

    def fetch(self, name: str, size: int = 0) -> bytes:
        """As ever; once more from the beginning when the connection breaks."""
        try:
            return super().fetch(name, size)
        except DeviceError as error:
            if not error.transient:
                raise
        self._reach()
        return super().fetch(name, size)

    def start(self, session_id: str, segments: Sequence[SegmentSpec]) -> int:
        """As ever; when the reply is lost, the agent's state tells whether it had the request."""
        first = int(self.status().next_seq)
        try:
            return super().start(session_id, segments)
        except DeviceError as error:
            if not error.transient:
                raise
        now = self.status()
        if now.busy or now.queued_segments or now.next_seq != first:
            return first
        return super().start(session_id, segments)


class AdbSession:
    """DeviceSession on an adb device: holds its lease; stops the agent if it had to start it."""

    client: AdbAgentClient
    info: DeviceInfo
    stream_id: str

    def __init__(self, device: AdbDevice, held: lease.HeldLease) -> None:
        self._device = device
        self._lease = held
        self._endpoint: AgentEndpoint | None = None
        self._needed: set[str] = set()  # artifacts of this session
        self._lost = False
        self._started = install.running_agent(device) is None
        try:
            _first_contact(device)
            self._attach(ensure_agent(device))
            self._require_clean()
        except BaseException as error:
            self._detach()
            if isinstance(error, DeviceError) and error.transient:
                held.abandon()  # the device is away: it would only be asked in vain
            else:
                held.release()
            raise

    def _attach(self, endpoint: AgentEndpoint) -> None:
        self._detach()
        self._endpoint = endpoint
        self.client = AdbAgentClient(endpoint, self._reach)
        self.info = describe(self.client)
        self.stream_id = endpoint.agent.stream
        if self._device.emulated and not self.info.emulated:
            raise DeviceError(f"The agent on the emulated device {self._device.serial} denies it.")

    def _detach(self) -> None:
        if self._endpoint:
            self.client.close()
            self._endpoint.close()
            self._endpoint = None

    def _require_clean(self) -> None:
        """Refuse what another session left behind; begin a new spool, numbered from 1."""
        status = self.client.status()
        if status.busy or status.queued_segments or status.next_seq - 1 > status.acked_seq:
            raise DeviceError(
                f"{self._device.serial} holds results of a session that lost its host.",
                f"Fetch them: qhost collect --device {self._device.serial} "
                "(with --discard to drop them).",
            )
        if status.next_seq > 1:
            self._attach(ensure_agent(self._device, clean=True))

    def put(self, artifact: Artifact) -> None:
        with tempfile.TemporaryDirectory(prefix="qhost-artifact-") as folder:
            self.put_files(artifact.extract(Path(folder), self.info.soc), artifact.sha256)

    def put_files(self, folder: Path, sha256: str) -> None:
        """What lies below `folder`, under the name `sha256`; nothing where it is there already."""
        self._needed.add(sha256)
        try:
            install.put_artifact(self._device, folder, sha256, self._needed)
        except DeviceError as error:
            if not error.transient:
                raise
            self._reach()
            install.put_artifact(self._device, folder, sha256, self._needed)

    def _wait(self) -> None:
        try:
            self._device.wait_ready(LOST_TIMEOUT_S if self._lost else RETURN_TIMEOUT_S)
            if self._lease.read() is None:
                raise DeviceError(
                    f"{self._device.serial} was leased to somebody else while it was away.",
                    "Go on with --resume when it is free.",
                )
            self._lost = False
        except DeviceError:
            self._lost = True
            raise

    def _reach(self) -> AgentEndpoint:
        """Find the agent again and forward anew. DeviceError when it, or the device, is gone."""
        assert self._endpoint
        self._wait()
        agent = install.running_agent(self._device)
        if agent is None or agent.pid != self._endpoint.agent.pid:
            raise DeviceError(
                f"The agent on {self._device.serial} was killed or the device rebooted.",
                "See 'qhost agent logs'.",
                failure_class=FailureClass.KILLED,
            )
        before, self._endpoint = self._endpoint, AgentEndpoint(self._device, agent)
        before.close()
        self.client.move(self._endpoint)
        return self._endpoint

    def death(self) -> str:
        """Why the agent cannot go on, in words; empty when it runs and is connected again."""
        try:
            self._reach()
        except DeviceError as error:
            return error.message
        return ""

    def restart(self) -> None:
        """A new agent with an empty spool, in place of whatever is there."""
        self._wait()
        self._attach(ensure_agent(self._device, clean=True))

    def close(self) -> None:
        """Leave the device as it was found; what cannot be done on a lost device is left undone."""
        self._detach()
        if self._lost:
            self._lease.abandon()
            return
        with contextlib.suppress(DeviceError):
            agent = install.running_agent(self._device)
            if agent and self._started:
                install.stop_agent(self._device, agent, clean=True)
        self._lease.release()


def open_adb_device(serial: str, soc: str) -> AdbSession:
    """A session on the device `serial`, on an idle one of `soc`, or on the only one there is.

    UserError when no device fits; DeviceError when the one that does cannot be used.
    """
    devices = list_devices(AdbServer())
    fitting = [d for d in devices if serial in ("", d.serial) and soc in ("", d.soc)]
    if not fitting and len(devices) == 1 and not devices[0].ready and not serial:
        devices[0].require_ready()  # its SoC is unknown because it cannot be asked
    if not fitting:
        raise no_device(
            Target(serial=serial, soc=soc), [f"{d.serial} ({d.soc or d.state})" for d in devices]
        )
    problems: list[DeviceError] = []
    for device in fitting:
        try:
            device.require_ready()
            return _open(device)
        except DeviceError as error:
            problems.append(error)
    raise problems[0]


def _open(device: AdbDevice) -> AdbSession:
    """A session, tried again when the connection breaks in the middle of opening it."""
    nonce = secrets.token_hex(6)  # one for all attempts: a lease taken by a lost reply is ours
    attempt = 0
    while True:
        attempt += 1
        try:
            # What it is may not be known yet: it may have been away when it was listed.
            device = identify(device)
            return AdbSession(device, lease.acquire(device, nonce=nonce))
        except lease.LeaseTaken:
            raise
        except DeviceError as error:
            if not error.transient or attempt == OPEN_ATTEMPTS:
                raise
            device.wait_ready(RETURN_TIMEOUT_S)
