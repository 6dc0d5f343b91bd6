"""`python -P -m agent`: start the agent; one JSON line on stdout says that it is ready."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import stat
import sys
import threading
from pathlib import Path

import grpc

from agent import fingerprint
from agent.artifacts import ArtifactStore
from agent.bench import CHARGER_GRACE_S, Bench
from agent.emulator.constants import BASIS
from agent.emulator.personalities import PERSONALITIES
from agent.emulator.phone import emulated_phone
from agent.emulator.platform import EmulatedPlatform
from agent.emulator.signals import Signal, parse_signal
from agent.errors import DeviceFailure
from agent.platform import Platform, log_path
from agent.runtime.net_run import NetRunRuntime
from agent.runtime.ort_qnn import OrtQnnRuntime
from agent.server import OPTIONS, AgentService, Gate
from agent.silicon import SiliconPlatform, android_properties, identify, inference_cpus
from agent.socs import SOCS
from agent.spool import CAPACITY_BYTES, Spool
from protos import PROTOCOL_VERSION, agent_pb2_grpc

_GRACE_S = 0.5
_EXIT_LIMIT_S = 8.0


def main(argv: list[str] | None = None) -> int:
    options = _parse(argv)
    root = options.root.resolve()
    log = log_path(root, "agent")
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        logging.basicConfig(
            filename=log,
            level=logging.INFO,
            format="%(asctime)s %(levelname)s %(name)s %(message)s",
        )
        token = _read_token(options.token_file)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"qhost agent: {error}\n")
        return 2
    return asyncio.run(_serve(options, root, token))


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -P -m agent", description=__doc__)
    parser.add_argument(
        "--emulate", metavar="SOC", choices=sorted(SOCS), help="default: what the device says"
    )
    parser.add_argument(
        "--net-run", type=Path, metavar="DIR",
        help="run contexts by the QAIRT SDK's tools in DIR, as on Android",
    )  # fmt: skip
    parser.add_argument(
        "--device-root", type=Path, default=Path("/"), help="where the device's files lie"
    )
    parser.add_argument(
        "--listen", default="127.0.0.1:0", help="HOST:PORT, or unix:PATH, or unix-abstract:NAME"
    )
    parser.add_argument("--root", type=Path, required=True, help="the agent's own directory")
    parser.add_argument("--token-file", type=Path, required=True, help="mode 0600")
    parser.add_argument("--time-factor", type=_positive, help="emulated: device time / wall time")
    parser.add_argument("--seed", type=int, default=0, help="emulated: seed of the noise")
    parser.add_argument(
        "--personality", choices=sorted(PERSONALITIES), default="board",
        help="emulated: the quirks of its files",
    )  # fmt: skip
    parser.add_argument(
        "--signal", type=_signal, metavar="NAME[:key=value,...]",
        help="emulated: a synthetic power signal in place of the model's",
    )  # fmt: skip
    parser.add_argument(
        "--charger-grace-s", type=_positive, default=CHARGER_GRACE_S,
        help="a charger that was cut comes back when nothing was queued for so long",
    )  # fmt: skip
    parser.add_argument("--spool-bytes", type=int, default=CAPACITY_BYTES)
    parser.add_argument(
        "--die-with-parent", action="store_true", help="end when standard input closes"
    )
    return parser.parse_args(argv)


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError("must be above 0")
    return value


def _signal(text: str) -> Signal:
    try:
        return parse_signal(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _read_token(path: Path) -> str:
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise ValueError(f"the token file {path} can be read by others: chmod 600 it")
    token = path.read_text().strip()
    if len(token) < 16:
        raise ValueError(f"the token in {path} is shorter than 16 characters")
    return token


async def _serve(options: argparse.Namespace, root: Path, token: str) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    if options.die_with_parent:
        threading.Thread(target=_watch_stdin, args=(loop, stop), daemon=True).start()
    try:
        platform = _platform(options, root)
    except DeviceFailure as error:
        sys.stderr.write(f"qhost agent: {error}; --emulate SOC starts an emulated device\n")
        return 2
    artifacts = ArtifactStore(root / "artifacts")
    spool = Spool(root / "spool", capacity_bytes=options.spool_bytes)
    bench = Bench(
        platform, artifacts, spool, root / "queue.pb", charger_grace_s=options.charger_grace_s
    )
    server = grpc.aio.server(interceptors=(Gate(token),), options=OPTIONS)
    agent_pb2_grpc.add_AgentServicer_to_server(
        AgentService(platform, artifacts, spool, bench, root), server
    )
    try:
        port = server.add_insecure_port(options.listen)
    except RuntimeError:
        sys.stderr.write(f"qhost agent: cannot listen on {options.listen}\n")
        return 2
    await server.start()
    address = options.listen
    if not address.startswith(("unix:", "unix-abstract:")):
        address = f"{address.rpartition(':')[0]}:{port}"
    ready = {"address": address, "protocol_version": PROTOCOL_VERSION, "pid": os.getpid()}
    sys.stdout.write(json.dumps(ready) + "\n")
    sys.stdout.flush()
    await stop.wait()
    # Whatever hangs from here on, the process and its child end.
    watchdog = threading.Timer(_EXIT_LIMIT_S, _give_up, (platform,))
    watchdog.daemon = True
    watchdog.start()
    await server.stop(_GRACE_S)
    await asyncio.to_thread(bench.close)
    spool.close()
    return 0


def _platform(options: argparse.Namespace, root: Path) -> Platform:
    """What --emulate or the device's own files ask for. DeviceFailure: nothing to run on, why."""
    phone = None if options.emulate else emulated_phone(options.device_root)
    if soc := phone.soc if phone and phone.native else options.emulate:
        return EmulatedPlatform(
            soc,
            root,
            time_factor=phone.time_factor if phone else options.time_factor,
            seed=options.seed,
            phone=phone,
            personality=PERSONALITIES[phone.personality if phone else options.personality],
            signal=options.signal,
        )
    identity = identify(options.device_root, getprop=android_properties())
    if identity is None:
        raise DeviceFailure("this is no Snapdragon that qhost knows: its soc_id is in no table")
    if identity.problem and phone is None:
        raise DeviceFailure(f"no inference on this {identity.soc}: {identity.problem}")
    if options.net_run is None:
        if identity.os == "android":
            raise DeviceFailure("on Android the HTP is reached by the QNN tools: give --net-run")
        ort_qnn = OrtQnnRuntime(
            log_path(root, "ort_qnn"), device_root=options.device_root, cpus=inference_cpus()
        )
        facts = fingerprint.of_package()
        return SiliconPlatform(identity, root, options.device_root, ort_qnn, facts)
    tools = NetRunRuntime(
        options.net_run,
        root / "net_run",
        log_path(root, "net_run"),
        SOCS[identity.soc].htp_arch,
        emulated=not identity.silicon,
        device_root=options.device_root,
    )
    facts = fingerprint.of_folder(options.net_run)
    basis = BASIS if phone else ""
    return SiliconPlatform(identity, root, options.device_root, tools, facts, basis)


def _watch_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    with contextlib.suppress(OSError):  # closed from the beginning: the same end
        while os.read(0, 4096):
            pass
    loop.call_soon_threadsafe(stop.set)


def _give_up(platform: Platform) -> None:
    platform.kill_children()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
