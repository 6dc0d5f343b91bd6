"""The HTP rule checker, against graphs built to break one rule each and against the compiler."""

import onnx_ir as ir
import pytest

from quant import rules
from quant.encoding import asymmetric, symmetric
from quant.errors import UserError
from quant.graph import array_of
from quant.htp.compile import compile_context
from quant.htp.options import HtpOptions
from quant.htp.soc import SOCS
from quant.methods.grammar import export, parse_methods, quantize
from quant.model import load, save
from quant.rewrite import insert_qdq
from quant.task import load_task

from .test_rewrite import build_random


@pytest.fixture
def state(cnn_path):
    model = load(cnn_path)
    return quantize(model, load_task(None, model), parse_methods("int8")[0])


def _broken(state, **tensors):
    return rules.check(insert_qdq(state.model, state.plan.updated(tensors)))


def _errors(findings):
    return {f.rule for f in findings if f.severity == "error"}


def test_methods_emit_legal_graphs(state):
    assert rules.check(export(state)) == []


def test_missing_encoding_is_named(state):
    tensors = {k: v for k, v in state.plan.tensors.items() if k != "a"}
    exported = insert_qdq(state.model, type(state.plan)(tensors))
    findings = rules.check(exported)
    assert {f.rule for f in findings} == {"float operand", "float result"}
    assert "'a'" in next(f.reason for f in findings if f.rule == "float result")
    assert not rules.fully_quantized(exported)


def _weight(state, name):
    return array_of(state.model.ir.graph.initializers[name])


def test_weight_rules(state):
    w = _weight(state, "w2")
    assert "per-tensor int4" in _errors(_broken(state, w2=symmetric(abs(w).max(), 4)))
    along_inputs = symmetric(abs(w).max(axis=(0, 2, 3)), 8, axis=1)
    assert "channel axis" in _errors(_broken(state, w2=along_inputs))
    per_tensor = _broken(state, w2=symmetric(abs(w).max(), 8))
    assert "per-tensor weights" in {f.rule for f in per_tensor if f.severity == "warning"}


def test_bias_scale_rule(state):
    assert "bias scale" in _errors(_broken(state, b2=symmetric(4.0, 32)))


def test_activation_rules(state):
    assert "activation type" in _errors(_broken(state, a=symmetric(4.0, 8)))


def test_block_weights_need_wide_activations(state):
    w = _weight(state, "wf")
    block = symmetric(abs(w).reshape(10, 1, 16).max(2), 4, axis=1, block_size=16)
    assert "block weights" in _errors(_broken(state, wf=block))


def test_targets(cnn_path):
    model = load(cnn_path)
    task = load_task(None, model)
    wide = export(quantize(model, task, parse_methods("int8[activation-bits=16]")[0]))
    assert rules.check(wide) == []
    assert "activation type" in _errors(rules.check(wide, target="mobile"))
    narrow = export(quantize(model, task, parse_methods("int8[optimize-for=mobile]")[0]))
    assert rules.check(narrow, target="mobile") == []


def test_operator_that_htp_lacks_is_reported_per_node(builder, tmp_path):
    b = builder
    b.node("Conv", ["x", b.weight("w", 4, 2, 1, 1)], "c")
    b.node("Erf", ["c"], "e")
    b.node("Relu", ["e"], "y")
    path = b.save(tmp_path / "m.onnx", [("x", [1, 2, 4, 4])], [("y", [1, 4, 4, 4])], opset=21)
    model = load(path)
    state = quantize(model, load_task(None, model), parse_methods("int8")[0])
    assert any("Erf 'e'" in note for note in state.notes)
    with pytest.raises(UserError, match="Erf 'e'"):
        rules.require(export(state))
    assert not _errors(rules.check(export(state), target="general"))


def test_dynamic_product_of_wide_activations_is_a_warning(encoder_path):
    model = load(encoder_path)
    state = quantize(model, load_task(None, model), parse_methods("int8[activation-bits=16]")[0])
    findings = rules.check(export(state))
    assert {f.rule for f in findings} == {"demoted product"}
    assert len(findings) == 4


_GRAPHS = {
    "cnn": (11, ["conv", "Relu", "depthwise", "Sigmoid"]),
    "sum": (12, ["depthwise", "add", "MaxPool", "HardSwish"]),
}


@pytest.mark.parametrize("soc", ["sm8550", "sm8650", "sm8750"])
@pytest.mark.parametrize("text", ["int8", "int4"])
def test_checked_graphs_compile_strictly(tmp_path, soc, text):
    """v73, v75 and v79 accept what the checker accepts: random small graphs, two methods."""
    seed, steps = _GRAPHS["cnn" if text == "int8" else "sum"]
    model = load(build_random(tmp_path / "g.onnx", seed, steps))
    state = quantize(model, load_task(None, model), parse_methods(text)[0])
    exported = export(state)
    assert not _errors(rules.check(exported, arch=SOCS[soc].arch))
    save(exported, tmp_path / "q.onnx")
    compiled = compile_context(tmp_path / "q.onnx", SOCS[soc], HtpOptions(), tmp_path / "out")
    assert compiled.context_bin.stat().st_size > 0


def test_transformer_compiles_strictly(encoder_path, tmp_path):
    model = load(encoder_path)
    state = quantize(model, load_task(None, model), parse_methods("int8")[0])
    save(export(state), tmp_path / "q.onnx")
    compiled = compile_context(tmp_path / "q.onnx", SOCS["sm8650"], HtpOptions(), tmp_path / "out")
    assert compiled.context_bin.stat().st_size > 0


def test_wrong_gamma_type(encoder_path):
    model = load(encoder_path)
    state = quantize(
        model, load_task(None, model), parse_methods("per-channel[optimization-level=1]")[0]
    )
    gamma = next(
        n.inputs[1].name for n in state.model.ir.graph if n.op_type == "LayerNormalization"
    )
    assert state.plan.tensors[gamma].data_type == ir.DataType.UINT8
    assert "gamma type" in _errors(_broken(state, **{gamma: symmetric(2.0, 8)}))
    assert not _errors(_broken(state, **{gamma: asymmetric(0.0, 2.0, 8)}))
