"""Streaming statistics and the ranges taken from them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.calibrate import BINS, RangeOptions, Statistics, collect, merge, value_range
from quant.errors import UserError
from quant.model import load
from quant.task import load_task

_VALUES = st.one_of(st.just(0.0), st.floats(1e-6, 1e6), st.floats(-1e6, -1e-6))


def _statistics(*parts):
    s = Statistics()
    for part in parts:
        s.update(np.asarray(part, np.float32), histogram=True)
    return s


@settings(max_examples=30, deadline=None)
@given(st.lists(_VALUES, min_size=1, max_size=60), st.randoms())
def test_histogram_does_not_depend_on_the_order(values, random):
    shuffled = list(values)
    random.shuffle(shuffled)
    a, b = _statistics(*([v] for v in values)), _statistics(*([v] for v in shuffled))
    assert (a.low, a.high, a.n, a.exponent) == (b.low, b.high, b.n, b.exponent)
    np.testing.assert_array_equal(a.counts, b.counts)
    assert a.counts.sum() == len(values)
    assert a.counts.size == BINS


def test_min_max_is_exact():
    s = _statistics([-1.5, 2.0], [7.25])
    assert value_range(s, RangeOptions()) == (-1.5, 7.25)


def test_percentile_drops_an_outlier():
    x = np.linspace(0, 1, 100_000)
    s = _statistics(x, [1000.0])
    low, high = value_range(s, RangeOptions("percentile", 99.9))
    assert low == 0.0
    assert high <= 1.5


def test_mse_clips_heavy_tails_and_keeps_uniform_ranges():
    rng = np.random.default_rng(0)
    gauss = _statistics(rng.standard_normal(200_000), [60.0])
    low, high = value_range(gauss, RangeOptions("mse", bits=4))
    assert 2.0 < high < 5.0  # 16 levels on a normal distribution: clipping near 2.5 sigma is best
    assert -5.0 < low < -2.0
    uniform = _statistics(rng.random(100_000))
    assert value_range(uniform, RangeOptions("mse"))[1] == pytest.approx(1.0, abs=0.02)


def test_mse_is_no_worse_than_min_max():
    rng = np.random.default_rng(1)
    x = (rng.standard_normal(50_000) ** 3).astype(np.float32)
    from quant.encoding import asymmetric

    s = _statistics(x)
    errors = [
        np.square(asymmetric(*value_range(s, RangeOptions(m)), 8).fake(x) - x).mean()
        for m in ("min-max", "mse")
    ]
    assert errors[1] < 0.97 * errors[0]


def test_entropy_stays_within_the_observed_range():
    s = _statistics(np.random.default_rng(2).standard_normal(50_000), [40.0])
    low, high = value_range(s, RangeOptions("entropy"))
    assert s.low <= low < 0 < high < 40.0


def test_entropy_is_not_led_by_the_zeros_of_a_relu():
    # Six of ten values are exact zeros; cutting the tail at a sixth of its range looked free.
    rng = np.random.default_rng(3)
    x = np.where(rng.random(50_000) < 0.6, 0.0, rng.exponential(0.3, 50_000))
    _, high = value_range(_statistics(x), RangeOptions("entropy"))
    assert high > 0.6 * x.max()


def test_constant_and_zero_activations():
    assert value_range(_statistics([3.0, 3.0]), RangeOptions("mse")) == (3.0, 3.0)
    assert value_range(_statistics([0.0]), RangeOptions("percentile")) == (0.0, 0.0)


def test_merge_equals_one_pass():
    a, b = [0.1, -0.3, 0.2], [50.0, -7.0]
    merged, whole = merge([_statistics(a), _statistics(b)]), _statistics(a, b)
    np.testing.assert_array_equal(merged.counts, whole.counts)
    assert (merged.low, merged.high, merged.n) == (whole.low, whole.high, whole.n)


def test_padded_tokens_are_left_out(encoder_path, tmp_path):
    model = load(encoder_path)
    ids = np.zeros((4, 1, 16), np.int64)
    mask = np.ones((4, 1, 16), np.int64)
    ids[:, :, 8:] = 49  # the padding token
    mask[:, :, 8:] = 0
    np.savez(tmp_path / "t.npz", input_ids=ids, attention_mask=mask)
    task = load_task(tmp_path / "t.npz", model)
    statistics = collect(model, task, ["words"])["words"]
    table = model.ir.graph.initializers["table"].const_value.numpy()
    assert statistics.high == pytest.approx(float(table[0].max()))
    assert statistics.n == 8 * 32 * task.n_calibration


def test_unknown_method_names_the_nearest():
    with pytest.raises(UserError, match="percentile"):
        RangeOptions("percentil")
