"""The line between two clocks: what round trips of known clocks give back."""

from __future__ import annotations

import numpy as np
import pytest

from host.clock import fit_clock
from host.store import ClockOffset

SECOND = 1_000_000_000
HOST0, DEVICE0 = 9_000 * SECOND + 17, 1_763_000_000 * SECOND + 5


def observed(times_s, drift_ppm=0.0, seed=3, slow_every=0):
    """Round trips of 0.2-1 ms, the reading anywhere inside; every n-th takes 40 ms one way."""
    rng = np.random.default_rng(seed)
    rows = []
    for i, t in enumerate(times_s):
        trip = int(rng.uniform(0.2e6, 1e6))
        share = rng.uniform(0.2, 0.8)
        if slow_every and i % slow_every == 0:
            trip, share = 40_000_000, 0.99
        host = HOST0 + int(t * SECOND)
        read_at = host + round((share - 0.5) * trip)
        device = DEVICE0 + round((read_at - HOST0) * (1 + drift_ppm * 1e-6))
        rows.append(ClockOffset("s", "d", host, device, trip))
    return rows


@pytest.mark.parametrize("drift", [-80.0, 0.0, 35.0])
def test_offset_and_drift_come_back_within_what_the_line_says(drift):
    times = np.arange(0, 600, 10.0)
    line = fit_clock(observed(times, drift, slow_every=7))
    assert line.drift_ppm == pytest.approx(drift, abs=2.0)
    assert line.observations == 60
    asked = HOST0 + np.array([0, 123 * SECOND, 590 * SECOND])
    true = DEVICE0 + np.round((asked - HOST0) * (1 + drift * 1e-6)).astype(np.int64)
    assert np.abs(line.to_device(asked) - true).max() <= line.uncertainty_ns
    assert line.uncertainty_ns < 500_000, "slow round trips must not spoil it"
    assert line.to_host(int(line.to_device(asked)[1])) == pytest.approx(asked[1], abs=2)


def test_a_short_look_says_nothing_of_drift():
    line = fit_clock(observed([0.0, 1.0, 2.0], 50.0))
    assert line.drift_ppm is None
    assert line.rate == pytest.approx(1.0, abs=60e-6)
    one = fit_clock(observed([4.0]))
    assert (one.observations, one.rate, one.drift_ppm) == (1, 1.0, None)


def test_a_few_slow_round_trips_make_no_drift():
    """One of 0.3 ms and the others of 40 ms: what they scatter is not the clock's."""
    rows = [
        ClockOffset("s", "d", HOST0 + i * 3 * SECOND, DEVICE0 + i * 3 * SECOND + late, 40_000_000)
        for i, late in enumerate([0, 15, -12, 18, -15, 9])
        for late in [late * 1_000_000]
    ]
    rows.append(ClockOffset("s", "d", HOST0 - SECOND, DEVICE0 - SECOND, 300_000))
    line = fit_clock(rows)
    assert line.drift_ppm is None
    at_best = int(line.to_device(np.array([HOST0 - SECOND]))[0])
    assert abs(at_best - (DEVICE0 - SECOND)) < 150_000


def test_an_emulated_device_may_live_ten_times_as_fast():
    rows = [
        ClockOffset("s", "d", HOST0 + t * SECOND, DEVICE0 + 10 * t * SECOND, 600_000)
        for t in range(5)
    ]
    line = fit_clock(rows)
    assert line.rate == pytest.approx(10.0)
    assert line.uncertainty_ns < 1_000_000


def test_a_device_that_was_held_up_shows_in_the_uncertainty():
    rows = observed(np.arange(0, 60, 10.0))
    late = [
        ClockOffset("s", "d", o.host_ns, o.device_ns - 300_000_000, o.round_trip_ns)
        for o in rows[3:]
    ]
    assert fit_clock(rows).uncertainty_ns < 1_000_000
    assert fit_clock([*rows[:3], *late]).uncertainty_ns > 30_000_000
