"""External meters: times of numbered samples, the wire of the example, and what a run gets."""

from __future__ import annotations

import json
import socket
import threading
import time

import numpy as np
import pytest

from host.clock import ClockLine
from host.errors import UserError
from host.meters import MeterChannel, Readings, open_meter, stand_in
from host.meters.recorder import FIRST_CHANNEL, MeterRecorder, open_recorder
from host.meters.sample_clock import SampleClock
from host.meters.stream import HEADER
from host.stats.power import choose_power
from host.store.rows import Block, Channel, Samples

SECOND = 1_000_000_000
HOST = 10**8 * SECOND  # later than any clock of a machine that runs these tests


@pytest.mark.parametrize("ppm", [-60.0, 0.0, 60.0])
def test_samples_get_their_times_through_late_packets_and_a_crystal_that_is_off(ppm):
    """5 kHz in packets of 100, each 0.2 ms late and up to 30 ms more."""
    rng = np.random.default_rng(5)
    start, period = 77 * SECOND, SECOND / (5000 * (1 + ppm * 1e-6))
    clock = SampleClock(5000)
    worst, last = 0.0, 0
    for packet in range(3000):
        first = packet * 100
        taken = start + np.arange(first, first + 100) * period
        late = 200_000 + rng.exponential(5e6) * (rng.random() < 0.5) + rng.uniform(0, 30e6) ** 0.9
        clock.arrived(first + 99, int(taken[-1] + late))
        times = clock.times(first, 100)
        assert (np.diff(times) > 0).all() and times[0] > last
        last = int(times[-1])
        if packet > 500:  # ten seconds
            worst = max(worst, float(np.abs(times - taken).max()))
    assert worst < 1_500_000


class FakeMeter:
    """Hands out what a test puts in; every value is its time in seconds after HOST, and 100."""

    name, channels, rate_hz, stand_in = "fake", (MeterChannel("p", "power", "mW"),), 100.0, True

    def __init__(self):
        self.queue: list[Readings] = []
        self.broken = False
        self.closed = False

    def put(self, *seconds):
        t = np.array(seconds, np.float64)
        host_ns = ((t - 100) * SECOND).astype(np.int64) + HOST
        self.queue.append(Readings(host_ns, {"p": t}))

    def read(self):
        if self.broken:
            raise OSError("unplugged")
        if self.queue:
            return self.queue.pop(0)
        time.sleep(0.005)
        return Readings(np.empty(0, np.int64), {"p": np.empty(0)})

    def close(self):
        self.closed = True


def line(rate=1.0, uncertainty_ns=100_000):
    """HOST (100 s in the values) is device 5,000 s."""
    return ClockLine(HOST, 5_000 * SECOND, rate, None, uncertainty_ns, 9)


@pytest.fixture
def meter():
    return FakeMeter()


@pytest.fixture
def recorder(meter):
    recorder = MeterRecorder(meter)
    yield recorder
    recorder.close()
    assert meter.closed


def test_a_run_gets_its_window_on_the_devices_clock_and_each_sample_once(meter, recorder):
    with recorder.recording():
        meter.put(*np.arange(100, 104, 0.5))
        meter.put(*np.arange(104, 110, 0.5))
        first, why = recorder.take("r", line(), 5_001 * SECOND, 5_003 * SECOND)
        assert not why
        (samples,) = first
        assert samples.channel == FIRST_CHANNEL
        # The margin of 0.2 s takes no further sample of these in.
        assert samples.value.tolist() == [101.0, 101.5, 102.0, 102.5, 103.0]
        assert samples.t_ns.tolist() == [int((4900 + v) * SECOND) for v in samples.value]
        (rest,), _ = recorder.take("r", line(), 5_003 * SECOND, 5_004 * SECOND)
        assert rest.value.tolist() == [103.5, 104.0]
        (other,), _ = recorder.take("another", line(), 5_003 * SECOND, 5_004 * SECOND)
        assert other.value.tolist() == [103.0, 103.5, 104.0]


def test_a_device_that_lives_twice_as_fast(meter, recorder):
    with recorder.recording():
        meter.put(*np.arange(100, 110, 0.5))
        (samples,), _ = recorder.take("r", line(rate=2.0), 5_004 * SECOND, 5_008 * SECOND)
    assert samples.value.tolist() == [102.0, 102.5, 103.0, 103.5, 104.0]
    assert samples.t_ns.tolist() == [(5_004 + i) * SECOND for i in range(5)]


def test_clocks_that_are_not_known_well_enough_give_a_reason_and_nothing_else(meter, recorder):
    with recorder.recording():
        meter.put(101.0)
        samples, why = recorder.take(
            "r", line(uncertainty_ns=50_000_000), 5_000 * SECOND, 5_001 * SECOND
        )
    assert samples == [] and "known only to 50 ms" in why and "--time-factor 1" in why


def test_a_lost_meter_is_said_and_ends_nothing(meter, recorder):
    with recorder.recording():
        meter.broken = True
        samples, why = recorder.take("r", line(), 5_000 * SECOND, 5_001 * SECOND)
    assert samples == [] and why == "The meter fake was lost: unplugged."


def test_the_meter_is_preferred_to_the_boards_own_rail():
    t = np.arange(4, dtype=np.int64)
    channels = (
        Channel(1, "vph", "board", "power", "mW", "hwmon"),
        Channel(1001, "supply_power", "meter", "power", "mW", "external meter X"),
    )
    trace = choose_power(channels, {1: Samples(1, t, t * 1.0), 1001: Samples(1001, t, t * 2.0)})
    assert trace.mw[1] == 2.0 and trace.method.startswith("external meter")
    assert not trace.battery and not trace.partial
    # A meter that was lost before the last block: the board's rail has all of them.
    halves = {1: Samples(1, t * 10, t * 1.0), 1001: Samples(1001, t, t * 2.0)}
    blocks = [Block(i, 1, a, a + 2, np.ones(1, np.float32)) for i, a in enumerate((0, 20))]
    assert choose_power(channels, halves, blocks).method.startswith("board rail")
    assert choose_power(channels, {1001: halves[1001]}, blocks).method.startswith("external meter")


@pytest.fixture
def served(tmp_path):
    """The stand-in of the example, showing a file of 1.5 W."""
    node = tmp_path / "power1_input"
    node.write_text("1500000\n")
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(
        target=stand_in.serve, args=(listener, node, 2000.0, 0.0), daemon=True
    )
    thread.start()
    return listener.getsockname()[1]


def test_the_example_reads_its_stand_in(served):
    port = served
    meter = open_meter(f"stream:port={port}")
    try:
        assert (meter.stand_in, meter.rate_hz) == (True, 2000.0)
        parts = [meter.read() for _ in range(12)]
    finally:
        meter.close()
    t = np.concatenate([p.host_ns for p in parts])
    power = np.concatenate([p.values["supply_power"] for p in parts])
    assert len(t) > 100 and (np.diff(t) > 0).all()
    assert power == pytest.approx(1500.0, rel=0.012)
    assert power.mean() == pytest.approx(1500.0, rel=1e-3)
    assert abs(t[-1] - time.monotonic_ns()) < 5 * SECOND


def test_a_stand_in_is_refused_at_a_real_device(served):
    port = served
    with pytest.raises(UserError, match="stand-in in software, and ABC123 is a real device"):
        open_recorder(f"stream:port={port}", "ABC123", emulated=False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steam", "Unknown meter 'steam'"),
        ("stream", "takes host"),
        ("stream:port=x", "takes host"),
        ("stream:port=7,colour=red", "takes host"),
        ("stream:port", "is no option"),
        ("stream:port=1", "does not answer"),
    ],
)
def test_bad_meters_are_one_clear_line(text, words):
    with pytest.raises(UserError, match=words):
        open_meter(text)


def test_a_gap_in_the_numbers_is_a_loss():
    listener = socket.create_server(("127.0.0.1", 0))

    def packet(index):
        return HEADER.pack(index, 2) + np.ones(4, "<f4").tobytes()

    def serve():
        connection, _ = listener.accept()
        hello = json.dumps({"name": "m", "rate_hz": 10, "stand_in": True}).encode()
        connection.sendall(hello + b"\n" + packet(0) + packet(2) + packet(5))

    threading.Thread(target=serve, daemon=True).start()
    meter = open_meter(f"stream:port={listener.getsockname()[1]}")
    with pytest.raises(OSError, match="lost samples after number 3"):
        for _ in range(5):
            meter.read()
    meter.close()
    listener.close()
