"""onnxruntime with the QNN provider: in-process on Linux Snapdragon, the HTP emulator on x86.

The session lives in a child process: its stdout belongs to vendor libraries, a crash of theirs
must not end the agent, a cold load needs a fresh process, and the timed loop must not share an
interpreter with the server. `OrtQnnRuntime` is the agent's side; `python -P -m
agent.runtime.ort_qnn FD` is the child. They exchange (command, arguments) over a socket pair.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from agent.errors import (
    AgentError,
    BadArtifact,
    BadRequest,
    Cancelled,
    DeviceFailure,
    Killed,
    TimedOut,
)
from agent.runtime import (
    Array,
    Block,
    BlockLimits,
    Context,
    Feed,
    Loaded,
    RawProfile,
    Stop,
)
from agent.runtime.loop import timed_loop
from agent.sensors.system import dma_buffer_bytes

PERF_PROFILES = (
    "burst", "high_performance", "sustained_high_performance", "default", "balanced",
    "low_balanced", "high_power_saver", "power_saver", "low_power_saver", "extreme_power_saver",
)  # fmt: skip

_PR_SET_PDEATHSIG = 1
_ERRORS: Mapping[str, type[AgentError]] = {
    "BadArtifact": BadArtifact,
    "DeviceFailure": DeviceFailure,
    "Cancelled": Cancelled,
}


class OrtQnnRuntime:
    """Runtime protocol over a child process.

    `timeout_s` bounds every answer of the child; `cpus` are the cores it may use (None: any).
    """

    name = "ort_qnn"
    batch = 1

    def __init__(
        self,
        log: Path,
        *,
        timeout_s: float = 900.0,
        device_root: Path = Path("/"),
        cpus: frozenset[int] | None = None,
    ) -> None:
        self._cpus = cpus
        self._device_root = device_root
        self._log = log
        self._timeout_s = timeout_s
        self._child: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id, for the memory channels."""
        return self._child.pid if self._child is not None else None

    def load(self, context: Context) -> Loaded:
        options = _provider_options(context)
        if self._child is None:
            self._start()
        seconds, peak = self._call("load", str(context.wrapper), options)
        # Weights and tensors of the HTP are DMA buffers, which the resident set leaves out.
        assert self._child is not None
        buffers = dma_buffer_bytes(self._device_root, self._child.pid)
        return Loaded(seconds, peak + buffers)

    def outputs(self, feed: Feed) -> dict[str, Array]:
        result: dict[str, Array] = self._call("outputs", dict(feed))
        return result

    def outputs_of(self, feeds: Sequence[Feed]) -> list[dict[str, Array]]:
        return [self.outputs(feed) for feed in feeds]

    def inputs(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name -> onnxruntime's type name and shape, of the context that is loaded."""
        found: dict[str, tuple[str, tuple[int, ...]]] = self._call("inputs")
        return found

    def first_inference(self, feed: Feed) -> float:
        return float(self._call("first_inference", dict(feed)))

    def run_block(self, feeds: list[Feed], limits: BlockLimits, stop: Stop) -> Block:
        block: Block = self._call("run_block", [dict(f) for f in feeds], limits, stop=stop)
        return block

    def profile(self, context: Context, feeds: list[Feed], count: int) -> RawProfile:
        self.close()
        self._start()
        try:
            text: str = self._call(
                "profile", str(context.wrapper), _provider_options(context),
                [dict(feed) for feed in feeds], count,
            )  # fmt: skip
        finally:
            self.close()
        return RawProfile(text.encode(), "csv")

    def close(self) -> None:
        child, self._child = self._child, None
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.close()  # the child ends at end-of-file
        if child is not None:
            try:
                child.wait(2.0 if child.poll() is None else 0)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def kill(self) -> None:
        """End the child now (from any thread); the call under way raises Killed."""
        child = self._child
        if child is not None:
            child.kill()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with theirs, self._log.open("ab") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "agent.runtime.ort_qnn",
                 str(theirs.fileno()), str(os.getpid())],
                pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
            )  # fmt: skip
        if self._cpus:
            # Before it has other threads: all of them inherit it.
            os.sched_setaffinity(self._child.pid, self._cpus)
        self._pipe = Connection(ours.detach())

    def _call(self, command: str, *args: object, stop: Stop | None = None) -> Any:
        pipe, child = self._pipe, self._child
        if pipe is None or child is None:
            raise DeviceFailure("no context is loaded")
        deadline = time.monotonic() + self._timeout_s
        try:
            pipe.send((command, args))
            while not pipe.poll(0.1):
                if stop is not None and stop():
                    os.kill(child.pid, signal.SIGUSR1)  # ends the timed loop, see _Session
                    stop = None
                if time.monotonic() > deadline:
                    self.kill()
                    self.close()
                    raise TimedOut(f"{command} took longer than {self._timeout_s:.0f} s")
            kind, value = pipe.recv()
        except (EOFError, OSError) as error:
            self.close()
            code = child.returncode
            raise Killed(
                f"the process that ran the model ended with status {code} during {command}; "
                f"its log is {self._log.name}"
            ) from error
        if kind == "ok":
            return value
        raise _ERRORS.get(kind, DeviceFailure)(value)


def _provider_options(context: Context) -> dict[str, str]:
    if context.perf_profile not in PERF_PROFILES:  # QNN would only warn, and run as it likes
        raise BadRequest(
            f"unknown perf_profile {context.perf_profile!r}; known: {', '.join(PERF_PROFILES)}"
        )
    options = {
        "soc_model": str(context.soc_model),
        "htp_performance_mode": context.perf_profile,
    }
    if context.rpc_control_latency_us:
        options["rpc_control_latency"] = str(context.rpc_control_latency_us)
    return options


class _Session:
    """The child's side: one strict QNN session. No fallback to the CPU, ever."""

    def __init__(self) -> None:
        self._ort: Any = importlib.import_module("onnxruntime")
        self._qnn: Any = importlib.import_module("onnxruntime_qnn")
        self._ort.register_execution_provider_library(
            "QNNExecutionProvider", self._qnn.get_library_path()
        )
        self._session: Any = None
        self._stop = False
        signal.signal(signal.SIGUSR1, self._on_stop)

    def load(self, wrapper: str, provider_options: dict[str, str]) -> tuple[float, int]:
        self._session = None
        started = time.perf_counter()
        options = self._ort.SessionOptions()
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        devices = [d for d in self._ort.get_ep_devices() if d.ep_name == "QNNExecutionProvider"]
        if not devices:
            raise DeviceFailure("the QNN provider finds no device")
        options.add_provider_for_devices(
            devices, {"backend_path": self._qnn.get_qnn_htp_path(), **provider_options}
        )
        try:
            self._session = self._ort.InferenceSession(wrapper, options)
        except Exception as error:
            raise BadArtifact(f"the context does not load: {_first_line(error)}") from error
        # After an error inside QNN the session would rebuild itself on the CPU and hide it.
        self._session.disable_fallback()
        return time.perf_counter() - started, _peak_memory_bytes()

    def profile(
        self,
        wrapper: str,
        provider_options: dict[str, str],
        feeds: list[dict[str, Array]],
        count: int,
    ) -> str:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "profile.csv"
            more = {"profiling_level": "detailed", "profiling_file_path": str(path)}
            self.load(wrapper, {**provider_options, **more})
            for i in range(count):
                self._run(feeds[i % len(feeds)])
            self._session = None  # its end completes the file
            return path.read_text()

    def outputs(self, feed: dict[str, Array]) -> dict[str, Array]:
        names = [o.name for o in self._session.get_outputs()]
        return dict(zip(names, self._run(feed), strict=True))

    def inputs(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {i.name: (i.type, tuple(i.shape)) for i in self._session.get_inputs()}

    def first_inference(self, feed: dict[str, Array]) -> float:
        started = time.perf_counter()
        self._run(feed)
        return time.perf_counter() - started

    def run_block(self, feeds: list[dict[str, Array]], limits: BlockLimits) -> Block:
        self._stop = False
        run = self._session.run
        try:
            return timed_loop(lambda feed: run(None, feed), feeds, limits, lambda: self._stop)
        except Exception as error:
            raise DeviceFailure(f"an inference failed: {_first_line(error)}") from error

    def _run(self, feed: dict[str, Array]) -> list[Array]:
        try:
            return list(self._session.run(None, feed))
        except Exception as error:
            raise DeviceFailure(f"inference failed: {_first_line(error)}") from error

    def _on_stop(self, signum: int, frame: object) -> None:
        self._stop = True


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:500]


def _peak_memory_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _serve(pipe: Connection) -> None:
    session: _Session | None = None
    while True:
        try:
            command, args = pipe.recv()
        except EOFError:
            return
        try:
            if session is None:
                session = _Session()
            reply: tuple[str, object] = ("ok", getattr(session, command)(*args))
        except (AgentError, ImportError) as error:
            reply = (type(error).__name__, _first_line(error))
        except Exception as error:  # noqa: BLE001 - the boundary of the process: all goes to the agent
            reply = ("DeviceFailure", f"{type(error).__name__}: {_first_line(error)}")
        pipe.send(reply)


def _main(fd: int, parent: int) -> None:
    # The agent's death ends this process even inside a long inference of the emulator.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _serve(Connection(fd))


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]))
