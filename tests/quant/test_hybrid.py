"""hybrid: parts, layers and budgets on small graphs; the HTP takes the mix."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from quant.errors import UserError
from quant.evaluate import run_model
from quant.htp.compile import compile_context
from quant.htp.options import HtpOptions
from quant.htp.soc import get_soc
from quant.methods.grammar import export, make_variant, parse_methods, quantize
from quant.model import load, save
from quant.report import sqnr_db
from quant.task import load_task

SAMPLE = Path(__file__).parents[2] / "host" / "samples" / "data" / "fashion_cnn"


@pytest.fixture(scope="module")
def cnn():
    model = load(SAMPLE / "model.onnx")
    return model, load_task(SAMPLE / "task.npz", model)


def _sqnr(model, task, quantized, n=24):
    reference, ours = run_model(model, task, n), run_model(export(quantized), task, n)
    name = model.outputs[0].name
    return sqnr_db(np.stack([r[name] for r in reference]), np.stack([r[name] for r in ours]))


def test_a_part_in_fp16_has_no_encodings_and_the_rest_is_integer(cnn):
    model, task = cnn
    done = quantize(model, task, make_variant("hybrid"))
    plan = done.plan
    assert "logits.weight" not in plan.tensors and "logits.bias" not in plan.tensors
    assert plan.tensors["stem.weight"].bits == 8
    layers = {row.name: (row.bits, row.granularity) for row in done.layers}
    assert layers["logits.weight"] == (16, "float")
    assert layers["block3_pointwise.weight"] == (8, "per-channel")
    assert _sqnr(model, task, done) > 30


def test_precision_of_a_part_decides_bits_and_loss(cnn):
    model, task = cnn
    results = {}
    for precision in ("int4", "int8", "fp16"):
        done = quantize(model, task, make_variant("hybrid", conv_precision=precision))
        results[precision] = _sqnr(model, task, done)
        bits = {r.bits for r in done.layers if r.op_type == "Conv"}
        assert bits == {{"int4": 4, "int8": 8, "fp16": 16}[precision]}
    assert results["int4"] + 5 < results["int8"] < results["fp16"]


def test_everything_in_fp16_is_the_float_model(cnn):
    model, task = cnn
    done = quantize(model, task, make_variant("hybrid", conv_precision="fp16"))
    assert not done.plan.tensors
    assert export(done).fingerprint == done.model.fingerprint


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hybrid[conv-precision=int5]", "int5"),
        ("hybrid[embedding-precision=int4]", "8-bit, 16-bit or fp16 tables"),
        ("hybrid[activation-bits=12]", "12"),
        ("hybrid[calibration-method=minmax]", "min-max"),
    ],
)
def test_a_wrong_option_is_refused(text, said):
    with pytest.raises(UserError, match=said):
        parse_methods(text)


@pytest.mark.parametrize("soc", ["sm8450", "sm8650"])
def test_fp16_int8_and_int4_in_one_graph_compile_strictly(cnn, tmp_path, soc):
    model, task = cnn
    done = quantize(model, task, make_variant("hybrid", conv_precision="int4"))
    save(export(done), tmp_path / "m.onnx")
    compiled = compile_context(tmp_path / "m.onnx", get_soc(soc), HtpOptions(), tmp_path / "out")
    assert compiled.context_bin.stat().st_size > 50_000
    names = {n.op_type for n in onnx.load(tmp_path / "m.onnx").graph.node}
    assert {"Conv", "Gemm", "QuantizeLinear"} <= names
