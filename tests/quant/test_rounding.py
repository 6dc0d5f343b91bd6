"""Second-order rounding and its helpers, on problems with a known answer."""

import itertools

import numpy as np
import pytest

from quant.graph import array_of
from quant.layers import input_rows, linear_layers, to_matrix
from quant.methods.grammar import make_variant, quantize
from quant.model import load
from quant.refine import RefineOptions, refine_weights
from quant.rounding import (
    Moments,
    bias_shift,
    search_scale,
    second_order,
    second_order_batched,
    weighted_error,
)
from quant.simplify import simplify
from quant.task import load_task


def _problem(seed, n=4, k=6, rows=200):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((1, rows, k)) @ rng.standard_normal((k, k)) + 2.0
    moments = Moments(1, k)
    moments.update(x[:, :90].astype(np.float32))
    moments.update(x[:, 90:].astype(np.float32))
    return rng.standard_normal((1, n, k)), x, moments


def test_moments_are_those_of_the_rows():
    _, x, moments = _problem(0)
    np.testing.assert_allclose(moments.mean[0], x[0].mean(0), rtol=1e-5)
    covariance = np.cov(x[0].T, bias=True)
    h = moments.hessian(centred=True, damping=0.0)[0]
    np.testing.assert_allclose(h, covariance, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_second_order_is_near_the_best_of_all_roundings(seed):
    weight, _, moments = _problem(seed, n=1, k=6)
    hessian = moments.hessian(centred=True)
    scale = np.full((1, 1, 1), np.abs(weight).max() / 7)
    nearest = np.clip(np.rint(weight / scale), -7, 7)
    found = second_order(weight, hessian, scale, 4)
    floor = np.floor(weight / scale)
    best = min(
        float(weighted_error(weight - np.clip(floor + np.array(up), -7, 7) * scale, hessian)[0, 0])
        for up in itertools.product((0, 1), repeat=6)
    )
    error = float(weighted_error(weight - found * scale, hessian)[0, 0])
    plain = float(weighted_error(weight - nearest * scale, hessian)[0, 0])
    assert error <= plain
    assert error <= 2.0 * best


def test_batched_rounding_never_loses_to_nearest():
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((12, 1, 9))
    moments = Moments(12, 9)
    moments.update((rng.standard_normal((12, 300, 9)) + 1.5).astype(np.float32))
    hessian = moments.hessian(centred=False)
    scale, q = second_order_batched(weight, hessian, 4)
    searched = search_scale(weight, hessian, 4)
    nearest = np.clip(np.rint(weight / searched), -7, 7)
    ours = weighted_error(weight - q * scale, hessian)
    theirs = weighted_error(weight - nearest * searched, hessian)
    assert (ours <= theirs * 1.001).all()
    assert ours.sum() < 0.9 * theirs.sum()
    assert np.abs(q).max() <= 7


def test_scale_search_never_loses_to_the_full_range():
    weight, _, moments = _problem(1, n=8, k=16)
    hessian = moments.hessian(centred=True)
    full = np.abs(weight).max(-1, keepdims=True) / 7
    for block in (0, 8):
        scale = search_scale(weight, hessian, 4, block_size=block)
        assert scale.shape == ((1, 8, 2) if block else (1, 8, 1))
    scale = search_scale(weight, hessian, 4)

    def cost(s):
        e = weight - np.clip(np.rint(weight / s), -7, 7) * s
        return weighted_error(e, hessian)

    assert (cost(scale) <= cost(full) * (1 + 1e-4)).all()


def test_bias_shift_restores_the_mean_output():
    weight, x, moments = _problem(2)
    restored = np.round(weight * 2) / 2
    shift = bias_shift(weight, restored, moments.mean)
    before = (x[0] @ weight[0].T).mean(0)
    after = (x[0] @ restored[0].T).mean(0) + shift
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)


def test_rows_reproduce_the_layers(cnn_path):
    """rows @ weight.T + bias is the layer's output: strides, padding and groups included."""
    from quant.calibrate import stream

    model = simplify(load(cnn_path))
    task = load_task(None, model)
    layers = linear_layers(model)
    assert [layer.groups for layer in layers] == [1, 16, 1, 1]
    names = [n for layer in layers for n in (layer.source, layer.output)]
    (values,) = list(stream(model, task, list(dict.fromkeys(names)), samples=1))
    for layer in layers:
        data = array_of(model.ir.graph.initializers[layer.weight])
        bias = array_of(model.ir.graph.initializers[layer.bias])
        rows = input_rows(layer, values[layer.source], data.shape)
        out = rows @ to_matrix(layer, data).transpose(0, 2, 1)  # (groups, rows, outputs)
        out = out.transpose(0, 2, 1).reshape(data.shape[0], -1) + bias[:, None]
        expected = values[layer.output].reshape(data.shape[0], -1)
        np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)


def test_second_order_beats_nearest_on_the_output(cnn_path):
    model = simplify(load(cnn_path))
    task = load_task(None, model)
    from quant.evaluate import run_model
    from quant.report import sqnr_db
    from quant.rewrite import replace_weights

    quality = []
    for options in (
        RefineOptions(bits=4, search=False, correct_bias=False),
        RefineOptions(bits=4, second_order=True),
    ):
        refined = refine_weights(model, task, options)
        weights = {
            name: e.dequantize(refined.codes[name])
            if name in refined.codes
            else e.fake(array_of(model.ir.graph.initializers[name]))
            for name, e in refined.encodings.items()
        }
        rounded = replace_weights(refined.model, weights)
        pairs = zip(run_model(model, task, 8), run_model(rounded, task, 8), strict=True)
        quality.append(np.median([sqnr_db(a["y"], b["y"]) for a, b in pairs]))
    assert quality[1] > quality[0] + 4.0


def test_layer_report_counts_bits_and_bytes(cnn_path):
    model = load(cnn_path)
    state = quantize(model, load_task(None, model), make_variant("int4"))
    rows = {r.name: r for r in state.layers}
    assert rows["w2"].bits == 4
    assert rows["w2"].granularity == "per-channel"
    assert rows["w2"].size_bytes == 16 * 16 // 2 + 16 * 4 + 16 // 2
    assert 5 < rows["w2"].sqnr_db < 30
