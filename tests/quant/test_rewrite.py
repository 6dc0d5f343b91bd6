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

from .random_graphs import METHODS, build, recipes


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


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(recipes(), st.sampled_from(METHODS))
def test_random_graphs_export_what_is_simulated(tmp_path, recipe, text):
    state, task = _quantized(build(tmp_path / "g.onnx", *recipe), text)
    (simulated,) = simulate(state.model, state.plan, [task.feed(state.model, 0)])
    (exported,) = run_model(export(state), task, 1)
    np.testing.assert_array_equal(simulated["y"], exported["y"])


def test_plan_with_an_unknown_name_is_a_bug(cnn_path):
    from quant.encoding import asymmetric
    from quant.rewrite import insert_qdq

    state, _ = _quantized(cnn_path, "int8")
    with pytest.raises(KeyError, match="nothing_here"):
        insert_qdq(state.model, state.plan.updated({"nothing_here": asymmetric(0, 1, 8)}))
