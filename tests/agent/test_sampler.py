"""The sampler on files: its grid, its threads, its report. No test looks at how fast it is."""

from __future__ import annotations

import os
import signal
import threading
import time
from multiprocessing import Pipe

import numpy as np
import pytest

from agent.errors import DeviceFailure
from agent.sampler import Sampler, SamplerProcess
from agent.sensors import discover
from agent.sensors.channel import FileChannel
from agent.sensors.power import rails
from protos import agent_pb2 as pb


@pytest.fixture
def root(tmp_path):
    for i in range(3):
        base = tmp_path / f"sys/class/hwmon/hwmon{i}"
        base.mkdir(parents=True)
        (base / "power1_label").write_text(f"rail{i}\n")
        (base / "power1_input").write_text(f"{(i + 1) * 1000}\n")
    zone = tmp_path / "sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "type").write_text("nsphmx-0\n")
    (zone / "temp").write_text("40000\n")
    return tmp_path


def sample(channels, rate_hz, seconds, during=None):
    """{channel: (times, values)} and the report."""
    parts: dict[int, list] = {}

    def sink(columns):
        for column in columns:
            parts.setdefault(column.channel, []).append((column.t_ns, column.values))

    sampler = SamplerProcess(channels, rate_hz, sink)
    (during or time.sleep)(seconds)
    report = sampler.stop()
    data = {
        channel: (np.concatenate([t for t, _ in p]), np.concatenate([v for _, v in p]))
        for channel, p in parts.items()
    }
    return data, report


def test_every_tick_has_a_reading_of_every_fast_channel(root):
    data, report = sample(discover(root).channels, 200.0, 0.5)
    assert report.ticks > 50
    for channel in (1, 2, 3):
        times, values = data[channel]
        assert len(times) == report.ticks
        assert (np.diff(times) > 0).all()
        assert set(values) == {float(channel)}
    assert {c.channel: c.reads for c in report.channels if c.channel <= 3} == dict.fromkeys(
        (1, 2, 3), report.ticks
    )
    assert 0 < report.cpu_s < report.duration_s


def test_a_device_without_any_readable_sensor_is_sampled_all_the_same():
    data, report = sample([], 100.0, 0.2)
    assert data == {}
    assert report.ticks > 5


def test_every_channel_has_a_reading_before_the_work_begins(root):
    """Also one whose first read takes its time."""
    channels = list(discover(root).channels)
    at = next(i for i, c in enumerate(channels) if c.spec.kind == pb.TEMPERATURE)
    zone = channels[at]
    channels[at] = FileChannel(zone.spec, zone.path, zone._parse, pread=Stalls(1, 0.4))
    times, _ = in_thread(channels, 100.0, 0.8)
    assert times[at + 1][0] <= times[1][0]


def test_slow_channels_keep_their_own_rate_and_reach_the_end(root):
    before = time.monotonic_ns()
    data, report = sample(discover(root).channels, 100.0, 0.6)
    times, values = data[4]
    assert set(values) == {40.0}
    assert len(times) < report.ticks / 4  # a zone is polled at 10 Hz
    assert before < times[0] < times[-1]
    assert times[-1] >= before + 0.6e9  # the last reading is taken at the stop


def test_updates_are_counted_and_their_rate_is_measured(root):
    node = root / "sys/class/hwmon/hwmon0/power1_input"
    writes = 10

    def change(seconds):
        with node.open("r+b", buffering=0) as file:
            for i in range(writes):
                time.sleep(seconds / writes)
                os.pwrite(file.fileno(), b"%-8d\n" % (5000 + i), 0)
            time.sleep(0.1)

    data, report = sample(rails(root), 500.0, 0.8, during=change)
    times, values = data[1]
    changes = times[1:][np.diff(values) != 0]
    assert 2 < report.channels[0].updates == len(changes) <= writes
    assert report.channels[1].updates == 0
    assert report.channels[1].update_rate_hz == 0
    measured = (len(changes) - 1) * 1e9 / (changes[-1] - changes[0])
    assert report.channels[0].update_rate_hz == pytest.approx(measured)


class Stalls:
    """pread of a node that stalls once, `at` reads after it was opened."""

    def __init__(self, at: int, seconds: float) -> None:
        self.at, self.seconds, self.calls = at, seconds, 0

    def __call__(self, fd, size, offset):
        self.calls += 1
        if self.calls == self.at:
            time.sleep(self.seconds)
        return os.pread(fd, size, offset)


def in_thread(channels, rate_hz, seconds):
    """The sampler's own loop in a thread, for channels that cannot travel to a process."""
    ours, theirs = Pipe()
    worker = threading.Thread(target=lambda: Sampler(channels, rate_hz, theirs).run())
    worker.start()
    parts: dict[int, list[int]] = {}
    end = time.monotonic() + seconds
    asked = False
    while True:
        if not asked and time.monotonic() > end:
            ours.send("stop")
            asked = True
        if not ours.poll(0.05):
            continue
        message = ours.recv()
        if isinstance(message, bytes):
            worker.join(5)
            return parts, pb.SamplerReport.FromString(message)
        for column in message:
            parts.setdefault(column.channel, []).extend(column.t_ns)


def test_a_gauge_that_stalls_for_a_second_delays_nobody(root):
    """A fuel gauge's read can block for 1 s in its firmware call."""
    base = root / "sys/class/power_supply/battery"
    base.mkdir(parents=True)
    for name, text in (("current_now", "-400000"), ("voltage_now", "4000000")):
        (base / name).write_text(text + "\n")
    channels = list(discover(root).channels)
    at = next(i for i, c in enumerate(channels) if c.spec.name == "battery_current")
    slow = channels[at]
    channels[at] = FileChannel(slow.spec, slow.path, slow._parse, pread=Stalls(2, 1.0))
    times, report = in_thread(channels, 100.0, 1.4)
    rail = np.diff(times[1])
    assert rail.max() < 0.5e9
    assert len(times[1]) == report.ticks
    assert report.channels[at].slowest_read_ns >= 1e9
    gauge = np.array(times[at + 1])
    assert np.diff(gauge).max() > 0.5e9  # itself it has nothing to say meanwhile
    zone = next(i for i, c in enumerate(channels) if c.spec.kind == pb.TEMPERATURE)
    assert np.diff(times[zone + 1]).max() < 0.5e9


def test_a_rail_that_begins_to_stall_gets_its_own_thread(root):
    channels = rails(root)
    bad = channels[1]
    stalls = Stalls(10, 0.3)
    channels[1] = FileChannel(bad.spec, bad.path, bad._parse, pread=stalls)
    times, report = in_thread(channels, 100.0, 1.0)
    assert len(times[1]) == report.ticks == report.channels[0].reads  # made up for, none lost
    assert report.late_ticks > 5
    stalled = stalls.calls
    assert stalled > 30  # it is read on, by its thread
    assert report.channels[1].slowest_read_ns >= 0.3e9


def test_a_busy_channel_counts_failures_and_gives_no_samples(root):
    channel = rails(root)[0]

    def busy(fd, size, offset):
        raise BlockingIOError

    channels = [FileChannel(channel.spec, channel.path, channel._parse, pread=busy), rails(root)[1]]
    times, report = in_thread(channels, 100.0, 0.3)
    assert 1 not in times
    assert report.channels[0].failures == report.channels[0].reads > 10


def test_a_lost_process_is_an_error_and_leaves_nothing_behind(root, children):
    sampler = SamplerProcess(rails(root), 100.0, lambda columns: None)
    (pid,) = [p for p in children(os.getpid()) if p == sampler._process.pid]
    os.kill(pid, 9)
    with pytest.raises(DeviceFailure, match="sampler"):
        sampler.stop()


def test_a_process_that_does_not_answer_is_an_error_and_no_empty_report(root, monkeypatch):
    monkeypatch.setattr("agent.sampler._STOP_LIMIT_S", 0.3)
    sampler = SamplerProcess(rails(root), 100.0, lambda columns: None)
    os.kill(sampler._process.pid, signal.SIGSTOP)
    with pytest.raises(DeviceFailure, match="sampler"):
        sampler.stop()


def test_an_error_of_the_sink_reaches_whoever_stops(root):
    def full(columns):
        raise ValueError("full")

    sampler = SamplerProcess(rails(root), 100.0, full)
    with pytest.raises(ValueError, match="full"):
        sampler.stop()


def test_a_spec_says_where_and_how_it_is_read(root):
    spec = rails(root)[0].spec
    assert spec.to_proto(7) == pb.Channel(
        id=7, name="rail0", site="other", kind=pb.POWER, unit="mW",
        method="hwmon power1_input, uW", nominal_rate_hz=1000.0,
        source="/sys/class/hwmon/hwmon0/power1_input",
    )  # fmt: skip
