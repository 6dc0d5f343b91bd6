"""Cross-layer equalisation: same function, flatter channels."""

import numpy as np
import pytest

from quant.calibrate import stream
from quant.equalize import CLIP_MARGIN, equalize
from quant.evaluate import run_model
from quant.graph import array_of
from quant.methods.grammar import export, parse_methods, quantize
from quant.model import load
from quant.simplify import simplify
from quant.task import load_task


@pytest.fixture
def uneven(builder, tmp_path):
    """Conv -> Relu -> (depthwise, pointwise -> Add) with channels 100 times apart."""
    b = builder
    spread = np.geomspace(0.1, 10.0, 8).astype(np.float32).reshape(8, 1, 1, 1)
    b.constant("w0", b.rng.standard_normal((8, 2, 1, 1)).astype(np.float32) * spread)
    b.node("Conv", ["x", "w0", b.weight("b0", 8, scale=0.1)], "c0")
    b.node("Relu", ["c0"], "r0")
    b.node("Conv", ["r0", b.weight("w1", 8, 1, 3, 3, scale=0.1)], "d", group=8, pads=[1, 1, 1, 1])
    b.node("Conv", ["d", b.weight("w2", 8, 8, 1, 1), b.weight("b2", 8)], "p")
    b.node("Add", ["r0", "p"], "s")
    b.node("Conv", ["s", b.weight("w3", 4, 8, 1, 1)], "y")
    path = b.save(tmp_path / "m.onnx", [("x", [1, 2, 8, 8])], [("y", [1, 4, 8, 8])], opset=21)
    model = simplify(load(path))
    return model, load_task(None, model)


def _spread(model, task, name):
    peaks = [np.abs(v[name]).max(axis=(0, 2, 3)) for v in stream(model, task, [name])]
    peak = np.max(peaks, axis=0)
    live = peak[peak > 0]
    return live.max() / live.min()


def test_function_is_kept_and_channels_get_closer(uneven):
    model, task = uneven
    equal = equalize(model, task)
    for a, b in zip(run_model(model, task, 4), run_model(equal, task, 4), strict=True):
        np.testing.assert_allclose(a["y"], b["y"], rtol=1e-4, atol=1e-4)
    assert _spread(equal, task, "r0") < 0.95 * _spread(model, task, "r0")


@pytest.fixture
def clipped(builder, tmp_path):
    """Conv -> ReLU6 -> pool -> Gemm: channel 0 reaches 6, channel 7 never fires on these samples
    but is read by a weight 500 times the others."""
    b = builder
    gain = np.array([40, 1, 1, 0.5, 0.1, 0.1, 0.02, 1], np.float32).reshape(8, 1, 1, 1)
    bias = np.zeros(8, np.float32)
    bias[7] = -50.0
    b.constant("w0", b.rng.standard_normal((8, 2, 1, 1)).astype(np.float32) * gain)
    b.node("Conv", ["x", "w0", b.constant("b0", bias)], "c0")
    b.constant("lo", np.float32(0))
    b.constant("hi", np.float32(6))
    b.node("Clip", ["c0", "lo", "hi"], "r0")
    b.node("GlobalAveragePool", ["r0"], "g")
    b.node("Flatten", ["g"], "f", axis=1)
    head = b.rng.standard_normal((3, 8)).astype(np.float32)
    head[:, 7] = 500.0
    b.node("Gemm", ["f", b.constant("wf", head)], "y", transB=1)
    path = b.save(tmp_path / "m.onnx", [("x", [1, 2, 8, 8])], [("y", [1, 3])], opset=21)
    model = simplify(load(path))
    return model, load_task(None, model)


def _factors(model, equal, name):
    before = array_of(model.ir.graph.initializers[name]).reshape(8, -1)
    return array_of(equal.ir.graph.initializers[name]).reshape(8, -1)[:, 0] / before[:, 0]


def test_clipped_channels_keep_their_scale_and_quiet_ones_grow_up_to_the_clip(clipped):
    model, task = clipped
    equal = equalize(model, task)
    for a, b in zip(run_model(model, task, 8), run_model(equal, task, 8), strict=True):
        np.testing.assert_allclose(a["y"], b["y"], rtol=1e-4, atol=1e-4)
    factor = _factors(model, equal, "w0")
    assert factor[0] == 1.0
    peaks = np.max(
        [v["r0"].max(axis=(0, 2, 3)) for v in stream(equal, task, ["r0"])], axis=0
    )  # fmt: skip
    assert (peaks[1:7] <= 6.0 / CLIP_MARGIN * 1.001).all()
    assert factor[7] > 10.0  # its weight of 500 must not set the Gemm's scale


def test_a_silent_channel_no_longer_sets_the_weight_scale(clipped):
    model, task = clipped
    results = {}
    for level in (1, 2):
        (variant,) = parse_methods(f"per-channel[optimization-level={level}]")
        state = quantize(model, task, variant)
        reference, outputs = run_model(model, task, 16), run_model(export(state), task, 16)
        error = sum(float(np.square(a["y"] - b["y"]).sum()) for a, b in zip(reference, outputs, strict=True))  # fmt: skip  # noqa: E501
        results[level] = error
    assert results[2] < results[1] / 20


def test_graph_without_groups_is_returned_as_it_is(encoder_path):
    model = simplify(load(encoder_path))
    assert equalize(model, load_task(None, model)) is model
