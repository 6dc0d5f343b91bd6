"""The sampler of a real device: a process of its own that reads every channel on the wall clock.

Fast nodes (power rails) are read in one loop on a fixed grid of the monotonic clock; a tick that
comes late is made up for, never dropped. Every other node has a thread of its own, because a
fuel gauge answers by a call to its firmware that can take a second, and no node may delay another.
A fast node that turns out slow is given a thread too.

`SamplerProcess` is the agent's side; `python -P -m agent.sampler FD PARENT` is the process. They
exchange over a pipe: the channels and the rate once, then batches of columns, then the report.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from agent.errors import DeviceFailure
from agent.platform import Column, Sink
from agent.sensors.channel import Channel
from protos import agent_pb2 as pb

FLUSH_NS = 100_000_000
# A node whose read takes longer than this is not read in the fast loop.
FAST_READ_NS = 200_000
FAST_HZ = 100.0  # channels that can be polled this often are tried in the fast loop
_STOP_LIMIT_S = 5.0
_START_LIMIT_S = 30.0  # an interpreter on a small core, with a cold disk
# Slow nodes get this long for their first reading before a segment begins: a fuel gauge's read
# can take a second.
_FIRST_READ_S = 1.5
_LAST_READ_S = 1.5
_PR_SET_PDEATHSIG = 1
_PR_SET_TIMERSLACK = 29


@dataclass
class ChannelStats:
    """Counts of one channel; `seen` keeps what is needed for the measured update rate."""

    channel: int
    reads: int = 0
    failures: int = 0
    updates: int = 0
    slowest_read_ns: int = 0
    first_update_ns: int = 0
    last_update_ns: int = 0
    last_value: float | None = None

    def add(self, t_ns: int, value: float | None, took_ns: int) -> None:
        self.reads += 1
        if took_ns > self.slowest_read_ns:
            self.slowest_read_ns = took_ns
        if value is None:
            self.failures += 1
        elif value != self.last_value:
            if self.last_value is not None:
                self.updates += 1
                if self.updates == 1:
                    self.first_update_ns = t_ns
                self.last_update_ns = t_ns
            self.last_value = value

    def to_proto(self) -> pb.ChannelReport:
        span = self.last_update_ns - self.first_update_ns
        return pb.ChannelReport(
            channel=self.channel,
            reads=self.reads,
            failures=self.failures,
            updates=self.updates,
            update_rate_hz=(self.updates - 1) * 1e9 / span if span > 0 else 0.0,
            slowest_read_ns=self.slowest_read_ns,
        )


class SamplerProcess:
    """Start with the channels (their ids are their places, from 1); `stop` gives the report.

    `sink` is called from a thread of this object. Use as: start, work, stop.
    """

    def __init__(self, channels: Sequence[Channel], rate_hz: float, sink: Sink) -> None:
        self._sink = sink
        self._report = pb.SamplerReport()
        self._error: BaseException | None = None
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "agent.sampler",
                 str(theirs.fileno()), str(os.getpid())],
                pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )  # fmt: skip
        self._pipe = Connection(ours.detach())
        self._pipe.send((list(channels), rate_hz))
        self._first = threading.Event()
        self._thread = threading.Thread(target=self._receive, name="sampler", daemon=True)
        self._thread.start()
        # No phase begins before the first readings: a window must lie inside its samples.
        if not self._first.wait(_START_LIMIT_S):
            self.kill()
            raise DeviceFailure("the sampler's process does not start")

    def stop(self) -> pb.SamplerReport:
        """Read every channel once more, end the process, and return what it reports.

        Raises whatever the sink raised, and DeviceFailure when the process was lost.
        """
        with contextlib.suppress(OSError):
            self._pipe.send("stop")
        self._thread.join(_STOP_LIMIT_S)
        self.kill()
        self._thread.join(_STOP_LIMIT_S)  # it sees the end of a process that had to be killed
        self._pipe.close()
        if self._error is not None:
            raise self._error
        return self._report

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def _receive(self) -> None:
        try:
            while True:
                message = self._pipe.recv()
                if isinstance(message, bytes):
                    self._report = pb.SamplerReport.FromString(message)
                    return
                if message:  # nothing readable at all is no error: latency needs no sensor
                    self._sink(message)
                self._first.set()
        except (EOFError, OSError):
            self._error = DeviceFailure("the sampler's process ended before its time")
        except Exception as error:  # noqa: BLE001 - handed to whoever stops the sampler
            self._error = error
        finally:
            self._first.set()


class _Slow(threading.Thread):
    """Reads one node at its own pace. The sample's time is the middle of the read."""

    def __init__(self, channel: Channel, stats: ChannelStats, rate_hz: float) -> None:
        super().__init__(daemon=True, name=channel.spec.name)
        self._channel = channel
        self._stats = stats
        self._period_s = 1 / min(rate_hz, channel.spec.poll_hz)
        self._lock = threading.Lock()
        self._column = Column(stats.channel, [], [])
        self._end = threading.Event()
        self.first = threading.Event()  # a read has come back, with or without a value

    def run(self) -> None:
        while True:
            started = time.monotonic()
            self._read()
            self.first.set()
            if self._end.wait(max(0.0, self._period_s - (time.monotonic() - started))):
                self._read()
                return

    def end(self) -> None:
        self._end.set()

    def take(self) -> Column:
        """What was read since the last call."""
        with self._lock:
            column, self._column = self._column, Column(self._stats.channel, [], [])
        return column

    def _read(self) -> None:
        before = time.monotonic_ns()
        value = self._channel.read()
        after = time.monotonic_ns()
        middle = (before + after) // 2
        with self._lock:
            self._stats.add(middle, value, after - before)
            if value is not None:
                self._column.t_ns.append(middle)
                self._column.values.append(value)


class Sampler:
    """The process's side: the grid, the threads, the batches."""

    def __init__(self, channels: Sequence[Channel], rate_hz: float, pipe: Connection) -> None:
        self._pipe = pipe
        self._period_ns = round(1e9 / rate_hz)
        self._rate_hz = rate_hz
        self._fast: list[tuple[Channel, ChannelStats, Column]] = []
        self._slow: list[_Slow] = []
        self._stats = [ChannelStats(i) for i in range(1, len(channels) + 1)]
        self._ticks = self._late = self._worst_ns = 0
        for channel, stats in zip(channels, self._stats, strict=True):
            channel.open()
            if channel.spec.poll_hz >= FAST_HZ and _read_time_ns(channel) <= FAST_READ_NS:
                self._fast.append((channel, stats, Column(stats.channel, [], [])))
            else:
                self._own_thread(channel, stats)

    def run(self) -> None:
        """Until the other side says stop or is gone."""
        patience = time.monotonic() + _FIRST_READ_S
        for slow in self._slow:
            slow.first.wait(max(0.0, patience - time.monotonic()))
        started = time.monotonic_ns()
        cpu = time.process_time()
        period = self._period_ns
        next_flush = started + FLUSH_NS
        self._tick(started)
        self._pipe.send([])  # ready, whatever there is to read
        due = started + period
        while True:
            self._tick(due)
            now = time.monotonic_ns()
            if now >= next_flush:
                if self._pipe.poll():
                    break
                self._flush()
                next_flush = now + FLUSH_NS
                now = time.monotonic_ns()
            due += period
            if due > now:
                time.sleep((due - now) / 1e9)
        for slow in self._slow:
            slow.end()
        patience = time.monotonic() + _LAST_READ_S  # for all of them together
        for slow in self._slow:
            slow.join(max(0.0, patience - time.monotonic()))
        self._tick(due)
        self._flush()
        report = pb.SamplerReport(
            ticks=self._ticks,
            late_ticks=self._late,
            worst_late_ns=self._worst_ns,
            cpu_s=time.process_time() - cpu,
            duration_s=(time.monotonic_ns() - started) / 1e9,
            channels=[stats.to_proto() for stats in self._stats],
        )
        self._pipe.send(report.SerializeToString())

    def _tick(self, due: int) -> None:
        clock = time.monotonic_ns
        before = now = clock()
        lateness = now - due
        if lateness > self._worst_ns:
            self._worst_ns = lateness
        if lateness > self._period_ns:
            self._late += 1
        self._ticks += 1
        demoted = False
        for channel, stats, column in self._fast:
            value = channel.read()
            after = clock()
            took = after - before
            stats.add(before, value, took)
            if value is not None:
                column.t_ns.append(before)
                column.values.append(value)
            demoted |= took > FAST_READ_NS * 50
            before = after
        if demoted:
            self._demote()

    def _demote(self) -> None:
        """Give a thread to nodes that have stalled: another stall of theirs delays nobody."""
        keep = []
        for channel, stats, column in self._fast:
            if stats.slowest_read_ns > FAST_READ_NS * 50:
                self._send([column])
                self._own_thread(channel, stats)
            else:
                keep.append((channel, stats, column))
        self._fast = keep

    def _own_thread(self, channel: Channel, stats: ChannelStats) -> None:
        thread = _Slow(channel, stats, self._rate_hz)
        self._slow.append(thread)
        thread.start()

    def _flush(self) -> None:
        columns = [column for _, _, column in self._fast]
        self._fast = [(ch, st, Column(st.channel, [], [])) for ch, st, _ in self._fast]
        self._send(columns + [slow.take() for slow in self._slow])

    def _send(self, columns: list[Column]) -> None:
        if full := [column for column in columns if column.t_ns]:
            self._pipe.send(full)


def _read_time_ns(channel: Channel) -> int:
    """The shortest of three reads: what the node costs when nothing interferes."""
    times = []
    for _ in range(3):
        before = time.monotonic_ns()
        channel.read()
        times.append(time.monotonic_ns() - before)
    return min(times)


def _prepare(cpu: int | None) -> None:
    """Punctuality, as far as this user may: no collector pauses, exact timers, early scheduling."""
    gc.disable()
    # A slow node's thread must hand the interpreter over at once when a tick is due.
    sys.setswitchinterval(1e-4)
    libc: Any = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    if cpu is not None:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, {cpu})


def quiet_cpu() -> int | None:
    """The core to sample on: the first this process may use. Snapdragon numbers its small cores
    first, and the runtime's threads go to the big ones. None where there is only one."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[0] if len(allowed) > 1 else None


def _main(fd: int, parent: int) -> None:
    _prepare(quiet_cpu())
    if os.getppid() != parent:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = Connection(fd)
    channels, rate_hz = pipe.recv()
    with contextlib.suppress(BrokenPipeError, EOFError):
        Sampler(channels, rate_hz, pipe).run()


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]))
