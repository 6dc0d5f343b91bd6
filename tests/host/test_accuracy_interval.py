"""Intervals of accuracy figures."""

from __future__ import annotations

import numpy as np
import pytest

from host.stats.accuracy import accuracy_interval


def test_wilson_for_a_proportion():
    scores = np.array([1.0] * 90 + [0.0] * 10)
    got = accuracy_interval(scores, lambda s: float(s.mean()), seed=0)
    # Wilson (1927) for 90 of 100: (0.8256, 0.9448)
    assert (got.value, got.n) == (0.9, 100)
    assert got.low == pytest.approx(0.8256, abs=2e-4)
    assert got.high == pytest.approx(0.9448, abs=2e-4)


def test_all_right_is_not_certain():
    got = accuracy_interval(np.ones(20), lambda s: float(s.mean()), seed=0)
    assert got.high == 1.0
    assert 0.8 < got.low < 0.9


def test_bootstrap_covers_a_mean_and_is_seeded():
    values = np.random.default_rng(5).normal(3.0, 1.0, (400, 1))
    got = accuracy_interval(values, lambda s: float(s.mean()), seed=1)
    half = 1.96 / np.sqrt(400)
    assert got.low == pytest.approx(got.value - half, abs=0.02)
    assert got.high == pytest.approx(got.value + half, abs=0.02)
    assert accuracy_interval(values, lambda s: float(s.mean()), seed=1) == got


def test_too_few_samples_have_no_interval():
    got = accuracy_interval(np.array([0.4, 0.6]), lambda s: float(s.mean()), seed=0)
    assert (got.low, got.high) == (-np.inf, np.inf)
