"""Cross-layer equalisation: same function, flatter channels."""

import numpy as np
import pytest

from quant.calibrate import stream
from quant.equalize import equalize
from quant.evaluate import run_model
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


def test_clip_pins_its_channels(cnn_path):
    model = simplify(load(cnn_path))
    task = load_task(None, model)
    equal = equalize(model, task)
    same = {n: v.const_value for n, v in model.ir.graph.initializers.items()}
    assert equal.ir.graph.initializers["w1"].const_value is same["w1"]
    assert equal.ir.graph.initializers["w2"].const_value is same["w2"]
