"""The HTP rule checker, against graphs built to break one rule each and against the compiler."""

import os

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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

from .random_graphs import METHODS, build, recipes


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


# More examples by hand: QHOST_EXAMPLES=100 pytest tests/quant/test_rules.py -k compile.
@settings(
    max_examples=int(os.environ.get("QHOST_EXAMPLES", "2")),
    derandomize="QHOST_EXAMPLES" not in os.environ,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(recipes(), st.sampled_from(METHODS))
def test_checker_legal_graphs_compile_strictly(tmp_path_factory, recipe, text):
    """What the checker calls legal, v73, v75 and v79 compile without a float operator."""
    tmp_path = tmp_path_factory.mktemp("graph")
    model = load(build(tmp_path / "g.onnx", *recipe))
    exported = export(quantize(model, load_task(None, model), parse_methods(text)[0]))
    save(exported, tmp_path / "q.onnx")
    for soc in ("sm8550", "sm8650", "sm8750"):
        if _errors(rules.check(exported, arch=SOCS[soc].arch)):
            continue
        compiled = compile_context(
            tmp_path / "q.onnx", SOCS[soc], HtpOptions(), tmp_path / soc, timeout_s=120.0
        )
        assert compiled.context_bin.stat().st_size > 0


@pytest.mark.parametrize("rows", [1, 4])
def test_product_of_one_number_is_refused_before_the_compiler_hangs(builder, tmp_path, rows):
    b = builder
    b.node("Gemm", ["x", b.weight("w", 3, 1), b.weight("b", 3)], "y", transB=1)
    model = load(b.save(tmp_path / "m.onnx", [("x", [rows, 1])], [("y", [rows, 3])]))
    rule = {"product of one number"}
    assert _errors(rules.unsupported(model)) == (rule if rows == 1 else set())


@pytest.mark.parametrize("bits", [8, 16])
def test_operators_with_narrow_activations_only(builder, tmp_path, bits):
    b = builder
    b.node("PRelu", ["x", b.constant("slope", np.full((4, 1, 1), 0.1, np.float32))], "y")
    model = load(b.save(tmp_path / "m.onnx", [("x", [1, 4, 2, 2])], [("y", [1, 4, 2, 2])]))
    (variant,) = parse_methods(f"int8[activation-bits={bits}]")
    state = quantize(model, load_task(None, model), variant)
    assert _errors(rules.check(export(state))) == (set() if bits == 8 else {"wide activation"})
    assert any("PRelu 'y'" in note for note in state.notes) == (bits == 16)


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
