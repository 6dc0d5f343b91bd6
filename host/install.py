"""Install the agent on a device behind adb, start and stop it there.

On the device, all under BASE:

    layers/<name>-<sha256>/   unpacked layers, named by the sha256 of their archive
    pycache/                  byte code of the agent's own layer, written there by its Python
    installed.json            which layers make up the agent; written last
    run/                      token (0600), agent.json (pid, socket), log of the start
    agent/                    the agent's own directory (artifacts, spool, logs)

A layer is pushed only when its directory is missing, checked by sha256 on the device before it is
unpacked, and unpacked beside its final name. The agent listens on a unix-abstract socket, so no
TCP port is open on the device; the token travels in a file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import shlex
import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from host import bundle, config, qairt
from host.adb import AdbDevice, explain
from host.errors import DeviceError, FailureClass, UserError
from host.layers import LAYERS, Layer, agent_layer
from host.lease import BASE
from quant.htp.soc import get_soc

PYCACHE = BASE / "pycache"
INCOMING = BASE / "incoming"
MANIFEST = BASE / "installed.json"
RUN = BASE / "run"
TOKEN = RUN / "token"
STATE = RUN / "agent.json"
START_LOG = RUN / "log"
AGENT_ROOT = BASE / "agent"
ARTIFACTS = AGENT_ROOT / "artifacts"
ABI = "arm64-v8a"
DSP_FOLDERS = "/usr/lib/rfsa/adsp;/dsp/cdsp;/dsp"  # of Linux boards
START_TIMEOUT_S = 60.0
UNPACK_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 12.0  # the agent gives itself 8 s to end its children
_POLL_S = 0.1
_SPARE_BYTES = 4 << 20
_LEFTOVERS = " ".join(
    str(AGENT_ROOT / name) for name in ("spool", "queue.pb", "spool.id", "outputs")
)


@dataclass(frozen=True)
class RunningAgent:
    """An agent on the device. `stream` names its spool: a new one whenever the spool is new.
    `layers`: the identity of what it was started from."""

    pid: int
    socket: str
    stream: str
    layers: str


@dataclass(frozen=True)
class Installed:
    """What `install` did: the layers that were there and those it pushed, with their bytes."""

    layers: tuple[Layer, ...]
    pushed: tuple[Layer, ...]
    pushed_bytes: int


def install(device: AdbDevice, layers: Sequence[Layer]) -> Installed:
    """Install the layers that the device lacks. DeviceError when it cannot hold or verify them."""
    listing = device.check(f"mkdir -p {LAYERS} {INCOMING} {RUN} {AGENT_ROOT}; ls {LAYERS}")
    there = set(listing.split())
    missing = [layer for layer in layers if layer.directory.name not in there]
    size = sum(layer.archive.stat().st_size for layer in missing)
    if missing:
        # Unpacked, a layer takes about three times its archive, which is there as well.
        _require_space(device, 4 * size + _SPARE_BYTES)
    for layer in missing:
        _install_layer(device, layer)
    names = [layer.directory.name for layer in layers]
    text = json.dumps({"format": 1, "layers": names}) + "\n"
    if missing or device.shell(f"cat {MANIFEST}").stdout != text:
        _write(device, MANIFEST, text)
    return Installed(tuple(layers), tuple(missing), size)


def _free_bytes(device: AdbDevice) -> int | None:
    """Room where qhost lives; None where df does not tell."""
    fields = device.check(f"df -k {BASE}").splitlines()[-1].split()
    return int(fields[3]) * 1024 if len(fields) > 3 and fields[3].isdecimal() else None


def _require_space(device: AdbDevice, needed: int) -> None:
    free = _free_bytes(device)
    if free is not None and free < needed:
        error = explain(device.serial, "no space left on device")
        error.args = (
            f"{error.message[:-1]}: {free / 1e6:.1f} MB free, {needed / 1e6:.1f} needed.",
        )
        error.message = str(error.args[0])
        raise error


def _install_layer(device: AdbDevice, layer: Layer) -> None:
    incoming = INCOMING / f"{layer.sha256}.tar.gz"
    unpacking = f"{layer.directory}.tmp"
    try:
        device.push(layer.archive, incoming)
        found = device.check(f"sha256sum {incoming}", UNPACK_TIMEOUT_S).split()[0]
        if found != layer.sha256:
            raise DeviceError(
                f"The layer {layer.name} arrived damaged on {device.serial}.",
                "Try again; if it happens again, check the cable and the device's storage.",
                transient=True,
            )
        device.check(
            f"rm -rf {unpacking} && mkdir -p {unpacking} && tar -xzf {incoming} -C {unpacking}"
            f" && mv {unpacking} {layer.directory}",
            UNPACK_TIMEOUT_S,
        )
    finally:
        with contextlib.suppress(DeviceError):
            device.shell(f"rm -rf {incoming} {unpacking}")


def _write(device: AdbDevice, target: PurePosixPath, text: str) -> None:
    """A small file that only the shell user can read, in place as a whole or not at all."""
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / target.name
        local.touch(mode=0o600)
        local.write_text(text)
        device.push(local, PurePosixPath(f"{target}.tmp"))
    device.check(f"chmod 600 {target}.tmp && mv {target}.tmp {target}")


def layers_for(device: AdbDevice, folder: Path) -> tuple[Layer, ...]:
    """The layers this device needs; those made now become archives in `folder`. The last one is
    the agent's own code. UserError where one is not at hand.

    An emulated device may bring this host's own Python (`ro.qhost.python`). Every other one gets
    the interpreter from a bundle and the QNN libraries of its Hexagon architecture: on Android
    those of the user's QAIRT SDK, on a Linux board those of onnxruntime-qnn. An emulated Android
    device without an SDK has stand-ins of the tools.
    """
    code = agent_layer(folder)
    if device.emulated and device.getprop("ro.qhost.python"):
        return (code,)
    arch = get_soc(device.soc).arch
    built = _bundle(device)
    layers = [layer for layer in built.layers if not layer.name.startswith("qnn-")]
    if not device.android:
        layers.append(built.layer(f"qnn-v{arch}"))
    elif not device.emulated or qairt.is_set():
        root = qairt.sdk_root()
        layers.append(qairt.runtime_layer(root, arch, folder, emulated=device.emulated))
    return (*layers, code)


def _bundle(device: AdbDevice) -> bundle.Bundle:
    target = "android-aarch64" if device.android else "linux-aarch64"
    cache = config.cache_dir(config.resolve()["cache_dir"].value)
    folder = bundle.default_folder(cache, target)
    if not (folder / bundle.MANIFEST).exists():
        raise UserError(
            f"{device.serial} needs an agent bundle, and none is built.",
            f"Build one: qhost agent bundle --target {target}.",
        )
    return bundle.open_bundle(folder)


def require_supported(device: AdbDevice) -> None:
    """DeviceError for a device that the agent cannot run on."""
    if device.android:
        abi, need = device.getprop("ro.product.cpu.abi"), ABI
    else:
        abi, need = device.check("uname -m").strip(), "aarch64"
    if abi != need:
        raise DeviceError(
            f"{device.serial} is built for {abi or 'nothing known'}, the agent for {need}.",
            "Use a 64-bit Snapdragon with a Hexagon v68 or later.",
        )


def running_agent(device: AdbDevice) -> RunningAgent | None:
    """The agent that runs on the device, if one does."""
    done = device.shell(f"cat {STATE}")
    if done.code:
        return None
    try:
        state = json.loads(done.stdout)
        agent = RunningAgent(
            int(state["pid"]), str(state["socket"]), str(state["stream"]), str(state["layers"])
        )
    except (ValueError, KeyError, TypeError):
        return None
    # The pid may have been given to another process since, or the device have rebooted.
    command = device.shell(f"kill -0 {agent.pid} && cat /proc/{agent.pid}/cmdline")
    return agent if command.code == 0 and agent.socket in command.stdout else None


def identity(layers: Sequence[Layer]) -> str:
    """One name for all that an agent is started from: of any other, a running one is not it."""
    return hashlib.sha256(" ".join(layer.sha256 for layer in layers).encode()).hexdigest()


def start_agent(device: AdbDevice, layers: Sequence[Layer], *, clean: bool) -> RunningAgent:
    """Start the agent detached, as the shell user. `clean` forgets what an earlier one left."""
    socket_name = f"qhost-{secrets.token_hex(8)}"
    leftovers = _LEFTOVERS if clean else ""
    device.check(f"chmod 700 {RUN}; rm -rf {STATE} {START_LOG} {leftovers}")
    _write(device, TOKEN, secrets.token_urlsafe(32))
    environment, python, options = how_to_start(device, layers)
    started = device.check(
        f"cd {AGENT_ROOT}; HOME={AGENT_ROOT} TMPDIR={AGENT_ROOT} LC_ALL=C.UTF-8 {environment} "
        f"setsid {python} -P -m agent --listen unix-abstract:{socket_name} --root {AGENT_ROOT} "
        f"--token-file {TOKEN} {options} < /dev/null > {START_LOG} 2>&1 & echo $!"
    ).strip()
    pid = _wait_started(device, started)
    stream = _stream_id(device, clean=clean)
    agent = RunningAgent(pid, socket_name, stream, identity(layers))
    _write(device, STATE, json.dumps(agent.__dict__))
    _drop_other_layers(device, layers)
    return agent


def _drop_other_layers(device: AdbDevice, layers: Sequence[Layer]) -> None:
    """Of earlier versions: nothing runs from them once this agent does."""
    kept = {layer.directory.name for layer in layers}
    others = [name for name in device.shell(f"ls {LAYERS}").stdout.split() if name not in kept]
    if others:
        names = " ".join(shlex.quote(f"{LAYERS}/{name}") for name in others)
        device.shell(f"rm -rf {names} {PYCACHE}", UNPACK_TIMEOUT_S)


def how_to_start(device: AdbDevice, layers: Sequence[Layer]) -> tuple[str, str, str]:
    """(environment, interpreter, the agent's options), each as words for the device's shell."""
    folders = {layer.name.partition("-")[0]: layer.directory for layer in layers}
    packages = [str(path) for name, path in folders.items() if name not in ("base", "qnn")]
    environment = f"PYTHONPATH={':'.join(packages)} PYTHONPYCACHEPREFIX={PYCACHE}"
    if "base" not in folders:
        return environment, shlex.quote(device.getprop("ro.qhost.python")), ""
    python = f"sh {folders['base']}/{bundle.LAUNCHER}"
    if device.android:
        return environment, python, f"--net-run {folders.get('qnn', '/system/bin')}"
    skels = shlex.quote(f"{folders['qnn']};{DSP_FOLDERS}")
    environment += f" QHOST_LIBRARY_PATH={folders['qnn']}:{folders['ort']}/onnxruntime_qnn"
    environment += f" ADSP_LIBRARY_PATH={skels}"
    return environment, python, ""


def _stream_id(device: AdbDevice, *, clean: bool) -> str:
    """The name of the spool in the agent's directory; a new spool gets a new one."""
    path = AGENT_ROOT / "spool.id"
    known = "" if clean else device.shell(f"cat {path}").stdout.strip()
    if known:
        return known
    stream = f"{device.serial}-{secrets.token_hex(8)}"
    _write(device, path, stream)
    return stream


def _wait_started(device: AdbDevice, pid: str) -> int:
    """Wait for the agent's ready line; the pid it gives."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        alive = device.shell(f"kill -0 {pid}").code == 0
        log = device.shell(f"cat {START_LOG}").stdout
        for line in log.splitlines():
            if line.startswith("{") and '"protocol_version"' in line:
                return int(json.loads(line)["pid"])
        if not alive:
            lines = log.strip().splitlines()
            raise DeviceError(
                f"The agent on {device.serial} ended while starting: "
                f"{lines[-1] if lines else 'it left no message'}.",
                "See 'qhost agent logs'.",
                transient=not lines,  # killed from outside: it may live the next time
            )
        if time.monotonic() > deadline:
            device.shell(f"kill -9 {pid}")
            raise DeviceError(
                f"The agent on {device.serial} was not ready within {START_TIMEOUT_S:.0f} s.",
                "See 'qhost agent logs'.",
                failure_class=FailureClass.TIMEOUT,
            )
        time.sleep(_POLL_S)


def stop_agent(device: AdbDevice, agent: RunningAgent, *, clean: bool = False) -> None:
    """End the agent and wait until it is gone; killed when it does not go.

    `clean` drops what it has not handed over.
    """
    device.shell(f"kill -TERM {agent.pid}")
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while device.shell(f"kill -0 {agent.pid}").code == 0:
        if time.monotonic() > deadline:
            device.shell(f"kill -9 {agent.pid}")
            break
        time.sleep(_POLL_S)
    leftovers = _LEFTOVERS if clean else ""
    device.shell(f"rm -rf {STATE} {TOKEN} {leftovers}")


def remove(device: AdbDevice) -> None:
    """Take everything of qhost off the device."""
    if agent := running_agent(device):
        stop_agent(device, agent)
    device.check(f"rm -rf {BASE}", UNPACK_TIMEOUT_S)


def put_artifact(device: AdbDevice, folder: Path, sha256: str, keep: Collection[str] = ()) -> bool:
    """Push the files of one artifact; False when the device has it. Verified by sha256 there.

    Where room is short, artifacts that are not among `keep` go, the longest unused first.
    """
    target = ARTIFACTS / sha256
    if device.shell(f"test -d {target} && touch {target}").code == 0:
        return False
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    _make_room(device, sum(path.stat().st_size for path in files) + _SPARE_BYTES, keep)
    incoming = INCOMING / sha256
    try:
        device.check(f"rm -rf {incoming}; mkdir -p {incoming} {target.parent}")
        device.push(folder, incoming)
        names = [path.relative_to(folder).as_posix() for path in files]
        quoted = " ".join(shlex.quote(name) for name in names)
        sums = device.check(f"cd {incoming} && sha256sum {quoted}", UNPACK_TIMEOUT_S)
        found = [line.split()[0] for line in sums.splitlines()]
        if found != [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]:
            raise DeviceError(f"An artifact arrived damaged on {device.serial}.", transient=True)
        device.check(f"mv {incoming} {target}")
    finally:
        with contextlib.suppress(DeviceError):
            device.shell(f"rm -rf {incoming}")
    return True


def _make_room(device: AdbDevice, needed: int, keep: Collection[str]) -> None:
    """Without it a device that is benched every night is full one night."""
    for name in device.shell(f"ls -tr {ARTIFACTS}").stdout.split():
        free = _free_bytes(device)
        if free is None or free >= needed:
            return
        if name not in keep:
            device.check(f"rm -rf {shlex.quote(f'{ARTIFACTS}/{name}')}", UNPACK_TIMEOUT_S)
    _require_space(device, needed)
