"""qat as a method: options, missing torch, compositions, the compiled result."""

import importlib.util

import numpy as np
import pytest

from quant.errors import UserError
from quant.htp.compile import compile_context
from quant.htp.options import HtpOptions
from quant.htp.soc import get_soc
from quant.methods import METHODS
from quant.methods.grammar import export, parse_methods, quantize
from quant.methods.qat import QatOptions
from quant.model import load, save
from quant.task import load_task
from quant.train import session

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed"
)


@pytest.fixture(autouse=True)
def quiet(tmp_path):
    with session.use(session.Session(tmp_path / "checkpoints", lambda *_: None)):
        yield


def quantized(path, variant, task_path=None):
    model = load(path)
    (parsed,) = parse_methods(variant)
    return quantize(model, load_task(task_path, model), parsed)


@needs_torch
def test_it_trains_at_the_asked_width_and_compiles(cnn_path, tmp_path):
    state = quantized(cnn_path, "qat[weight-bits=4,epochs=2]")
    assert {e.bits for n, e in state.plan.tensors.items() if n.startswith("w")} == {4}
    assert "held-out loss" in state.notes[-1]
    save(export(state), tmp_path / "q.onnx")
    out = compile_context(tmp_path / "q.onnx", get_soc("sm8650"), HtpOptions(), tmp_path / "c")
    assert out.context_bin.stat().st_size > 0


@needs_torch
def test_it_takes_the_plan_of_the_step_before(cnn_path):
    state = quantized(cnn_path, "int8[activation-bits=16]+qat[epochs=1]")
    assert state.plan.tensors["r1"].bits == 16


@needs_torch
def test_a_pattern_survives_it(cnn_path):
    state = quantized(cnn_path, "sparse[structured-pattern=2:4]+qat[epochs=2,learning-rate=0.01]")
    assert ((state.plan.codes["w2"].reshape(16, 4, 4) != 0).sum(2) <= 2).all()


@needs_torch
@pytest.mark.parametrize(
    ("given", "message"),
    [("labels", "taught by labels"), ("distill", "taught by the float model's outputs")],
)
def test_labels_teach_only_when_asked_or_there(cnn_path, tmp_path, given, message):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 1, 28, 28)).astype(np.float32)
    labels = rng.integers(0, 10, 40)
    np.savez(tmp_path / "task.npz", x=x, labels=labels)
    np.savez(tmp_path / "train.npz", x=x, labels=labels)
    variant = f"qat[train-dataset={tmp_path}/train.npz,epochs=1,loss={given}]"
    state = quantized(cnn_path, variant, tmp_path / "task.npz")
    assert message in state.notes[-1]


@needs_torch
def test_unlabelled_data_for_labels_is_refused(cnn_path):
    with pytest.raises(UserError, match="has no labels"):
        quantized(cnn_path, "qat[loss=labels]")


def test_without_torch_it_names_the_command(cnn_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "torch" else real(name, *a)
    )
    assert "pip install 'qhost[train]'" in METHODS["qat"].missing()
    assert METHODS["int8"].missing() == "" and METHODS["cluster"].missing() == ""
    for variant in ("qat", "cluster[fine-tune=true]", "sparse[fine-tune=true]"):
        with pytest.raises(UserError, match=r"pip install 'qhost\[train\]'"):
            quantized(cnn_path, variant)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"epochs": 0}, "epochs"),
        ({"learning_rate": 0.0}, "learning-rate"),
        ({"weight_bits": 6}, "weight-bits"),
        ({"activation_bits": 4}, "activation-bits"),
        ({"fold_bn": False}, "fold-bn"),
        ({"target_hardware": "hexagn"}, "hexagon"),
        ({"target_hardware": "sm9999"}, "sm9999"),
    ],
)
def test_bad_options(options, part):
    with pytest.raises(UserError, match=part):
        QatOptions(**options)


def test_a_soc_is_a_target():
    assert QatOptions(target_hardware="sm8650").target_hardware == "sm8650"
