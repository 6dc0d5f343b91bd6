"""The exported QDQ graph: what it contains, and that it equals the simulated graph bit for bit."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quant import rules
from quant.evaluate import run_model
from quant.execute import simulate
from quant.methods.grammar import export, parse_methods, quantize
from quant.model import load, save
from quant.task import load_task

from .conftest import GraphBuilder


def _ops(model):
    return [n.op_type for n in model.ir.graph if "Linear" not in n.op_type]


def _quantized(path, text, task=None):
    model = load(path)
    task = task or load_task(None, model)
    return quantize(model, task, parse_methods(text)[0]), task


def test_relu_and_clip_fold_into_the_quantizer(cnn_path):
    state, _ = _quantized(cnn_path, "int8")
    exported = export(state)
    assert "Relu" not in _ops(exported)
    assert "Clip" not in _ops(exported)
    assert [o.name for o in exported.outputs] == ["y"]
    assert exported.inputs == state.model.inputs


def test_interface_stays_float_and_everything_between_is_encoded(encoder_path):
    state, _ = _quantized(encoder_path, "int8")
    exported = export(state)
    assert [s.dtype for s in exported.outputs] == ["float32"]
    assert rules.fully_quantized(exported)
    assert not [f for f in rules.check(exported) if f.severity == "error"]


def test_export_is_deterministic(encoder_path, tmp_path):
    files = []
    for k in range(2):
        state, _ = _quantized(encoder_path, "int8")
        save(export(state), tmp_path / f"{k}.onnx")
        files.append((tmp_path / f"{k}.onnx").read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize(
    "text", ["int8", "int8[activation-bits=16]", "int4", "int4[block-size=16]"]
)
@pytest.mark.parametrize("which", ["cnn", "encoder"])
def test_export_equals_the_simulation(which, text, cnn_path, encoder_path):
    state, task = _quantized({"cnn": cnn_path, "encoder": encoder_path}[which], text)
    simulated = simulate(state.model, state.plan, [task.feed(state.model, i) for i in range(2)])
    exported = run_model(export(state), task, 2)
    for ours, theirs in zip(simulated, exported, strict=True):
        for name in theirs:
            np.testing.assert_array_equal(ours[name], theirs[name])


# One entry: (operator, attributes, shape change); inputs are (1, C, H, W).
_UNARY = ["Relu", "Sigmoid", "Tanh", "Clip", "MaxPool", "AveragePool", "HardSwish", "LeakyRelu"]


@st.composite
def small_graphs(draw):
    """A random chain of convolutions, pools, activations and additions, ending in a Gemm."""
    steps = draw(
        st.lists(st.sampled_from(["conv", "depthwise", "add", *_UNARY]), min_size=1, max_size=4)
    )
    return draw(st.integers(0, 1000)), steps


def build_random(path, seed, steps):
    b = GraphBuilder(seed)
    b.constant("lo", np.float32(0))
    b.constant("hi", np.float32(2))
    x, channels, size, previous = "x", 4, 8, None
    for k, step in enumerate(steps):
        name = f"v{k}"
        if step == "conv":
            width = 8
            weight = b.weight(f"w{k}", width, channels, 1, 1, scale=0.5)
            b.node("Conv", [x, weight, b.weight(f"b{k}", width)], name)
            previous, channels = None, width
        elif step == "depthwise":
            weight = b.weight(f"w{k}", channels, 1, 3, 3, scale=0.3)
            b.node("Conv", [x, weight], name, group=channels, pads=[1, 1, 1, 1])
            previous = x
        elif step == "add":
            b.node("Add", [x, previous or x], name)
        elif step == "Clip":
            b.node("Clip", [x, "lo", "hi"], name)
        elif step in {"MaxPool", "AveragePool"}:
            if size < 2:
                continue
            b.node(step, [x], name, kernel_shape=[2, 2], strides=[2, 2])
            size, previous = size // 2, None
        else:
            b.node(step, [x], name)
        x = name
    b.node("GlobalAveragePool", [x], "pool")
    b.node("Flatten", ["pool"], "flat")
    b.node("Gemm", ["flat", b.weight("wf", 3, channels), b.weight("bf", 3)], "y", transB=1)
    return b.save(path, [("x", [1, 4, 8, 8])], [("y", [1, 3])], opset=21)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(small_graphs(), st.sampled_from(["int8", "int8[activation-bits=16]", "per-channel"]))
def test_random_graphs_export_what_is_simulated(tmp_path, graph, text):
    path = build_random(tmp_path / "g.onnx", *graph)
    state, task = _quantized(path, text)
    (simulated,) = simulate(state.model, state.plan, [task.feed(state.model, 0)])
    (exported,) = run_model(export(state), task, 1)
    np.testing.assert_array_equal(simulated["y"], exported["y"])


def test_plan_with_an_unknown_name_is_a_bug(cnn_path):
    from quant.encoding import asymmetric
    from quant.rewrite import insert_qdq

    state, _ = _quantized(cnn_path, "int8")
    with pytest.raises(KeyError, match="nothing_here"):
        insert_qdq(state.model, state.plan.updated({"nothing_here": asymmetric(0, 1, 8)}))
