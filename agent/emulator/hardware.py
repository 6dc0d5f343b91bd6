"""The hardware of an emulated device whose agent is the one of real devices.

The device model lives beside adbd, on the wall clock: it keeps the sensors' files up to date, and
the stand-ins of the QNN tools tell it over a socket what they would have the HTP do. A request is
one JSON line, answered when the work is done:

    {"binary": PATH, "model": {...}, "perf_profile": "burst", "inferences": 64}
    {"inferences": 64, "seconds": 0.0512}        or {"error": "..."}

`model` is the manifest's `device_model` block of the context. Work is done in the order in which
it comes; a client that goes away ends its own.
"""

from __future__ import annotations

import json
import queue
import select
import socket
import threading
import time
from pathlib import Path
from typing import Any

from agent.emulator.device import Device
from agent.emulator.personalities import Personality
from agent.emulator.sysfs import SysfsTree
from agent.errors import AgentError
from agent.runtime import BlockLimits, Context
from agent.runtime.emulated import EmulatedRuntime
from agent.runtime.ort_qnn import OrtQnnRuntime

SOCKET = "htp"  # below the tree
_REFRESH_NS = 10_000_000
_REST_NS = 20_000_000
_LONGEST_NS = 24 * 3600 * 1_000_000_000
# Behind the wall by more than this, device time waits for the machine.
_LATE_S = 0.25


class Hardware:
    """Start once per boot. Its thread owns the device; another takes the calls."""

    def __init__(self, tree: Path, soc: str, personality: Personality) -> None:
        self._device = Device(soc, personality=personality)
        self._tree = SysfsTree(tree, self._device)
        unused = OrtQnnRuntime(tree / "unused.log")  # the tools compute, not the hardware
        self._htp = EmulatedRuntime(self._device, unused, tree, seed=0)
        self._work: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
        path = tree / SOCKET
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(16)

    def start(self) -> None:
        self._rebase()
        self._device.pace = self._pace
        self._device.on_tick(_REFRESH_NS, lambda now_ns: self._tree.publish())
        for name, target in (("hardware", self._run), ("htp-calls", self._accept)):
            threading.Thread(target=target, name=name, daemon=True).start()

    def _accept(self) -> None:
        while True:
            self._work.put(self._listener.accept()[0])

    def _run(self) -> None:
        while True:
            try:
                caller = self._work.get_nowait()
            except queue.Empty:
                self._device.advance(_REST_NS)
                continue
            with caller:
                try:
                    answer = self._serve(caller)
                except (AgentError, ValueError, KeyError, TypeError) as error:
                    answer = {"error": str(error) or type(error).__name__}
                except OSError:
                    continue  # it is gone
                self._reply(caller, answer)

    def _serve(self, caller: socket.socket) -> dict[str, Any]:
        with caller.makefile("rb") as lines:
            request = json.loads(lines.readline())
        binary, count = Path(request["binary"]), int(request["inferences"])
        context = Context(
            wrapper=binary,
            binary=binary,
            binary_sha256="",
            soc_model=self._device.spec.soc_model,
            perf_profile=request["perf_profile"],
            device_model=request["model"],
        )
        began = self._device.now_ns
        try:
            self._htp.load(context)
            limits = BlockLimits(count, 0, _LONGEST_NS)
            block = self._htp.run_block([], limits, lambda: _gone(caller))
        finally:
            self._htp.close()
        seconds = (self._device.now_ns - began) / 1e9
        return {"inferences": block.inferences, "seconds": seconds}

    @staticmethod
    def _reply(caller: socket.socket, answer: dict[str, Any]) -> None:
        try:
            caller.sendall(json.dumps(answer).encode() + b"\n")
        except OSError:
            return

    def _pace(self, now_ns: int) -> None:
        """Sleep until the wall reaches device time `now_ns`."""
        ahead_s = (now_ns - self._base_ns) / 1e9 - (time.monotonic() - self._wall_s)
        if ahead_s > 0.001:
            time.sleep(ahead_s)
        elif ahead_s < -_LATE_S:
            self._rebase()

    def _rebase(self) -> None:
        self._wall_s, self._base_ns = time.monotonic(), self._device.now_ns


def _gone(caller: socket.socket) -> bool:
    """Whether the other side has hung up."""
    readable = bool(select.select([caller], [], [], 0)[0])
    return readable and caller.recv(1, socket.MSG_PEEK) == b""


def run_on_hardware(tree: Path, request: dict[str, Any]) -> dict[str, Any]:
    """A tool's call. OSError where there is no hardware; RuntimeError with its complaint."""
    with socket.socket(socket.AF_UNIX) as call:
        call.connect(str(tree / SOCKET))
        call.sendall(json.dumps(request).encode() + b"\n")
        with call.makefile("rb") as lines:
            answer: dict[str, Any] = json.loads(lines.readline() or b'{"error": "it is gone"}')
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return answer
