"""The HTP through the QAIRT SDK's tools, as on Android: a glibc Python cannot load the libraries
of the device, but it can start programs that do.

Every call is a process of its own, so each load is cold, and "load" means from the start of the
process to its end with one inference; a first inference of its own cannot be told.

A process gives no clean window by its start and end. A timed block is therefore two runs that
differ in length: their difference is inferences alone. With run times T1 (one inference) and Tn,
    latency l = (Tn - T1) / (n - 1)        overhead a = T1 - l
and the window of the block is the middle of the long run. Whatever the share of a that lies before
the inferences, they fill the run from a after its start to a before its end, so that power samples
inside see nothing else. `window_method` is `two_lengths` with qnn-throughput-net-run, which keeps
its inputs in memory, and `two_lengths_io` with qnn-net-run, which reads files for each inference.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.errors import BadRequest, DeviceFailure, Killed, TimedOut
from agent.runtime import (
    MAX_ITERATIONS,
    Array,
    Block,
    BlockLimits,
    Context,
    Feed,
    Loaded,
    RawProfile,
    Stop,
    qnn_tools,
)
from agent.runtime.ort_qnn import PERF_PROFILES
from agent.sensors.channel import read_text
from agent.sensors.system import dma_buffer_bytes

_LOOK_S = 0.02
_PILOT = 64  # inferences of the first guess at the latency
_NOISE_NS = 50_000_000  # how much two starts of a tool may differ beside their own length
_SLACK_NS = 2_000_000_000
_LOG_BYTES = 4 << 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Run:
    """One finished process. `stopped`, `overdue`: we ended it, because the caller wanted to stop,
    or because it took longer than it may."""

    start_ns: int
    end_ns: int
    peak_memory_bytes: int
    stopped: bool
    overdue: bool

    @property
    def ns(self) -> int:
        return self.end_ns - self.start_ns


class NetRunRuntime:
    """Runtime protocol over child processes.

    `tools`: where the SDK's files lie; `work`: a folder of our own. `emulated`: the tools may be
    stand-ins; on anything else a stand-in's output is refused, for its figures would pass as
    measured.
    """

    name = "net_run"
    batch = 32  # a process for each sample would spend its time starting

    def __init__(
        self,
        tools: Path,
        work: Path,
        log: Path,
        htp_arch: int,
        *,
        emulated: bool,
        device_root: Path = Path("/"),
        timeout_s: float = 900.0,
    ) -> None:
        self._tools = tools
        self._work = work
        self._log = log
        self._htp_arch = htp_arch
        self._emulated = emulated
        self._device_root = device_root
        self._timeout_s = timeout_s
        self._context: Context | None = None
        self._timer = ""  # the tool that times this context; chosen when first needed
        self._latency_ns = 0.0  # of the context, as last measured
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        child = self._child
        return None if child is None else child.pid

    def load(self, context: Context) -> Loaded:
        if self._context != context:
            self._prepare(context)
        run = self._net_run(context, 1, "load")
        return Loaded(run.ns / 1e9, run.peak_memory_bytes)

    def _prepare(self, context: Context) -> None:
        """The job's folder and the files that do not change between its runs."""
        if context.perf_profile not in PERF_PROFILES:
            raise BadRequest(
                f"unknown perf_profile {context.perf_profile!r}; known: {', '.join(PERF_PROFILES)}"
            )
        self._context = None
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir(parents=True)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        if self._log.exists() and self._log.stat().st_size > _LOG_BYTES:
            self._log.unlink()
        self._write(qnn_tools.EXTENSIONS, qnn_tools.extensions(self._tools, self._work))
        self._write(qnn_tools.HTP, qnn_tools.htp_config(context, self._htp_arch))
        zeros = {t.name: np.zeros(t.shape, qnn_tools.dtype_of(t)) for t in context.inputs}
        self._write_inputs(context, [zeros])
        self._context, self._latency_ns, self._timer = context, 0.0, ""

    def _choose_timer(self, context: Context) -> str:
        """The throughput tool unless it is not there, fails, or lacks a setting we have to make."""
        if context.rpc_control_latency_us or context.rpc_polling_us:
            return qnn_tools.NET_RUN
        if not (self._tools / qnn_tools.THROUGHPUT).is_file():
            return qnn_tools.NET_RUN
        try:
            self._throughput(context, 1, lambda: False)
        except DeviceFailure as error:
            # If the fault is not the tool's, qnn-net-run says so in a moment.
            _log.warning("%s; timing with %s", error, qnn_tools.NET_RUN)
            return qnn_tools.NET_RUN
        return qnn_tools.THROUGHPUT

    def outputs(self, feed: Feed) -> dict[str, Array]:
        return self.outputs_of([feed])[0]

    def outputs_of(self, feeds: Sequence[Feed]) -> list[dict[str, Array]]:
        context = self._loaded()
        self._write_inputs(context, feeds)
        self._net_run(context, len(feeds), "an inference", keep=len(feeds))
        results = [self._work / f"out/Result_{i}" for i in range(len(feeds))]
        return [qnn_tools.read_outputs(context, result) for result in results]

    def first_inference(self, feed: Feed) -> float:
        return math.nan

    def run_block(self, feeds: list[Feed], limits: BlockLimits, stop: Stop) -> Block:
        context = self._loaded()
        self._write_inputs(context, feeds)
        self._timer = self._timer or self._choose_timer(context)
        run = short = self._timed(context, 1, stop)
        count = _PILOT
        while not run.stopped:
            if self._latency_ns:
                count = self._count(limits, short.ns, count)
            # An estimate that was far too low must not keep the device busy for minutes.
            limit_ns = 2 * limits.max_ns + short.ns + _SLACK_NS
            run = self._timed(context, count, stop, limit_ns)
            if run.overdue:
                self._latency_ns, count = run.ns / count, max(2, count // 4)
                continue
            worked_ns = run.ns - short.ns
            if worked_ns < short.ns + _NOISE_NS and run.ns < limits.max_ns:
                self._latency_ns, count = 0.0, min(count * 8, MAX_ITERATIONS)
                continue  # the overhead's own noise would show in so short a difference
            self._latency_ns = max(1.0, worked_ns / (count - 1))
            block = two_lengths(short.ns, (run.start_ns, run.end_ns), count, self._timer)
            length_ns = block.t_last_ns - block.t_first_ns
            enough = block.inferences >= limits.min_inferences and length_ns >= limits.min_ns
            if enough or run.ns - short.ns >= limits.max_ns or count >= MAX_ITERATIONS:
                return block
        return Block(0, run.start_ns, run.end_ns, None, _method(self._timer))

    def _count(self, limits: BlockLimits, overhead_ns: int, before: int) -> int:
        """How many inferences fill the block and the overhead at both of its ends, as far as the
        longest block has room."""
        latency_ns = self._latency_ns
        need_ns = max(limits.min_ns, limits.min_inferences * latency_ns) + overhead_ns
        need_ns = max(need_ns, overhead_ns + 2 * _NOISE_NS)
        count = math.ceil(need_ns * 1.05 / latency_ns) + 2
        most = math.ceil((limits.max_ns + overhead_ns) / latency_ns) + 1
        return max(2, min(count, most, MAX_ITERATIONS))

    def profile(self, context: Context, feeds: list[Feed], count: int) -> RawProfile:
        self._prepare(context)
        try:
            self._write_inputs(context, feeds)
            self._net_run(context, count, "profiling", profile="detailed")
            return RawProfile((self._work / "out" / qnn_tools.PROFILE_LOG).read_bytes(), "log")
        except FileNotFoundError as error:
            raise DeviceFailure(f"{qnn_tools.NET_RUN} wrote no {qnn_tools.PROFILE_LOG}") from error
        finally:
            self.close()

    def close(self) -> None:
        self._context = None

    def kill(self) -> None:
        child = self._child
        if child is not None:
            _kill(child)

    def _loaded(self) -> Context:
        if self._context is None:
            raise DeviceFailure("no context is loaded")
        return self._context

    # Running -----------------------------------------------------------------------------

    def _timed(self, context: Context, count: int, stop: Stop, limit_ns: int = 0) -> _Run:
        if self._timer == qnn_tools.THROUGHPUT:
            return self._throughput(context, count, stop, limit_ns)
        return self._net_run(context, count, "a timed run", stop, limit_ns)

    def _net_run(
        self,
        context: Context,
        count: int,
        what: str,
        stop: Stop = lambda: False,
        limit_ns: int = 0,
        profile: str = "",
        keep: int = 1,
    ) -> _Run:
        out = self._work / "out"
        shutil.rmtree(out, ignore_errors=True)
        command = qnn_tools.net_run(
            self._tools, context, "inputs.txt", "out", (count, keep), profile
        )
        run = self._run(command, what, stop, limit_ns)
        self._refuse_stand_in(out / qnn_tools.METADATA)
        return run

    def _throughput(self, context: Context, count: int, stop: Stop, limit_ns: int = 0) -> _Run:
        config = qnn_tools.throughput_config(self._tools, context, "inputs.txt", count)
        self._write("throughput.json", config)
        (self._work / "throughput-out.json").unlink(missing_ok=True)
        command = qnn_tools.throughput(self._tools, "throughput.json", "throughput-out.json")
        run = self._run(command, "a timed run", stop, limit_ns)
        self._refuse_stand_in(self._work / "throughput-out.json")
        return run

    def _refuse_stand_in(self, path: Path) -> None:
        said = read_text(path) or ""
        if not self._emulated and qnn_tools.STAMP in said.replace('"', "")[:200]:
            raise DeviceFailure(
                f"the QNN tools on this device are stand-ins of an emulated one ({path.name}): "
                "no figure of theirs is measured"
            )

    def _run(self, command: list[str], what: str, stop: Stop, limit_ns: int) -> _Run:
        """Run a tool to its end, or for `limit_ns` (0: without a limit of the caller's).

        Raises DeviceFailure with the tool's complaint, Killed, TimedOut.
        """
        tool = Path(command[0]).name
        with self._log.open("ab") as log:
            log.write(f"\n$ {' '.join(command)}\n".encode())
            log.flush()
            offset = log.tell()
            start_ns = time.monotonic_ns()
            try:
                child = subprocess.Popen(
                    command,
                    cwd=self._work,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=qnn_tools.environment(self._tools, os.environ),
                    start_new_session=True,
                )
            except OSError as error:
                raise DeviceFailure(f"{tool} cannot be started: {error.strerror}") from error
            self._child = child
            try:
                end_ns, peak, why = self._wait(child, start_ns, stop, limit_ns)
            finally:
                self._child = None
        if why == "timeout":
            raise TimedOut(f"{tool} took longer than {self._timeout_s:.0f} s for {what}")
        if child.returncode and not why:
            with self._log.open("rb") as written:
                written.seek(offset)
                said = written.read().decode(errors="replace")
            message = qnn_tools.explain(tool, child.returncode, said)
            raise (Killed if child.returncode == -9 else DeviceFailure)(f"{message} ({what})")
        return _Run(start_ns, end_ns, peak, why == "stop", why == "overdue")

    def _wait(
        self, child: subprocess.Popen[bytes], start_ns: int, stop: Stop, limit_ns: int
    ) -> tuple[int, int, str]:
        """(when it ended, its peak memory, why we ended it). A thread waits, for the exact time."""
        ended: list[int] = []
        done = threading.Event()

        def reap() -> None:
            child.wait()
            ended.append(time.monotonic_ns())
            done.set()

        threading.Thread(target=reap, daemon=True, name="net-run-wait").start()
        peak, why = 0, ""
        while not done.wait(_LOOK_S):
            elapsed_ns = time.monotonic_ns() - start_ns
            if not why and stop():
                why = "stop"
            elif not why and elapsed_ns > self._timeout_s * 1e9:
                why = "timeout"
            elif not why and limit_ns and elapsed_ns > limit_ns:
                why = "overdue"
            if why:
                _kill(child)
            peak = max(peak, _resident(child.pid) + dma_buffer_bytes(self._device_root, child.pid))
        return ended[0], peak, why

    # Files -------------------------------------------------------------------------------

    def _write(self, name: str, content: object) -> None:
        (self._work / name).write_text(json.dumps(content, indent=1) + "\n")

    def _write_inputs(self, context: Context, feeds: Sequence[Feed]) -> None:
        lines = []
        for k, feed in enumerate(feeds):
            raw = qnn_tools.raw_inputs(context, feed)
            for i, data in enumerate(raw.values()):
                (self._work / f"x{k}-{i}.raw").write_bytes(data)
            lines.append(qnn_tools.input_line(list(raw), f"x{k}-") + "\n")
        (self._work / "inputs.txt").write_text("".join(lines))


def two_lengths(short_ns: int, long: tuple[int, int], count: int, timer: str) -> Block:
    """The block that a run of one inference and one of `count` make (see the module's top).

    `short_ns`: length of the first; `long`: start and end of the second.
    """
    start_ns, end_ns = long
    latency_ns = max(1.0, (end_ns - start_ns - short_ns) / (count - 1))
    overhead_ns = max(0.0, short_ns - latency_ns)
    inside = max(1, min(math.floor(count - overhead_ns / latency_ns), count, MAX_ITERATIONS))
    length_ns = inside * latency_ns
    first = round((start_ns + end_ns - length_ns) / 2)
    return Block(inside, first, round(first + length_ns), None, _method(timer))


def _kill(child: subprocess.Popen[bytes]) -> None:
    """The tool and whatever it has started: its session is its own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


def _method(timer: str) -> str:
    return "two_lengths" if timer == qnn_tools.THROUGHPUT else "two_lengths_io"


def _resident(pid: int) -> int:
    """The most bytes that the process has had resident."""
    for line in (read_text(Path(f"/proc/{pid}/status")) or "").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
