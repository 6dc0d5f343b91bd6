"""Encodings files: exact round trips, files as AIMET writes them, and what is refused."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from quant.encoding import symmetric
from quant.encodings_io import VERSIONS, encodings_document, read_encodings
from quant.errors import UserError
from quant.methods.grammar import make_variant, quantize
from quant.task import load_task

_spec = importlib.util.spec_from_file_location(
    "hybrid_graphs", Path(__file__).with_name("hybrid_graphs.py")
)
graphs = sys.modules.setdefault("hybrid_graphs", importlib.util.module_from_spec(_spec))
_spec.loader.exec_module(graphs)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    model, _ = graphs.transformer(tmp_path_factory.mktemp("m") / "m.onnx")
    task = load_task(None, model, model_type="text")
    return quantize(model, task, make_variant("hybrid", output_precision="int8"))


@pytest.mark.parametrize("version", VERSIONS)
def test_round_trip_is_exact(quantized, tmp_path, version):
    graph = quantized.model.ir.graph
    path = tmp_path / "e.json"
    path.write_text(json.dumps(encodings_document(quantized.plan, graph, version)))
    read = read_encodings(path, graph).tensors
    assert set(read) == set(quantized.plan.tensors)
    assert {e.bits for e in read.values()} == {4, 8, 16, 32}
    for name, encoding in quantized.plan.tensors.items():
        assert read[name].same_as(encoding), name
        assert read[name].zero_point.dtype == encoding.zero_point.dtype
        assert read[name].signed == encoding.signed
    again = encodings_document(quantized.plan.updated(read), graph, version)
    assert json.dumps(again) == path.read_text()


def test_block_wise_encodings_need_version_2(quantized, tmp_path):
    graph = quantized.model.ir.graph
    name = next(n for n, e in quantized.plan.tensors.items() if e.bits == 4)
    limits = np.abs(np.random.default_rng(0).standard_normal((4, 64)))
    block = symmetric(limits, 4, axis=0, block_size=4)
    plan = quantized.plan.updated({name: block})
    path = tmp_path / "e.json"
    path.write_text(json.dumps(encodings_document(plan, graph, "2.0.0")))
    assert read_encodings(path, graph).tensors[name].same_as(block)
    with pytest.raises(UserError, match=r"Write version 2\.0\.0"):
        encodings_document(plan, graph, "1.0.0")


def _cnn(tmp_path):
    g = graphs.Graph()
    a = g.node("Conv", "image", g.weight(2, 3, 3, 3))
    pooled = g.node("Flatten", g.node("GlobalAveragePool", g.node("Relu", a)))
    logits = g.linear(pooled, 2, 5)
    model = g.save(tmp_path / "m.onnx", [("image", 1, [1, 3, 8, 8])], logits, [1, 5])
    return model, g.constants[0].name


def _tensor(bits, offset, scale, symmetric_):
    top = 2**bits - 1
    return {
        "bitwidth": bits, "dtype": "int", "is_symmetric": symmetric_, "max": (top + offset) * scale,
        "min": offset * scale, "offset": offset, "scale": scale,
    }  # fmt: skip


def test_a_file_as_aimet_writes_it_decides_the_plan(tmp_path):
    model, weight = _cnn(tmp_path)
    task = load_task(None, model, model_type="vision")
    relu = next(n.outputs[0].name for n in model.ir.graph if n.op_type == "Relu")
    (tmp_path / "e.json").write_text(
        json.dumps(
            {
                "version": "0.6.1",
                "activation_encodings": {
                    "image": [_tensor(8, -117, 0.03125, "False")],
                    relu: [_tensor(16, 0, 0.0001, "False")],
                    "gone_by_fusion": [_tensor(8, 0, 1.0, "False")],
                },
                "param_encodings": {
                    weight: [_tensor(4, -8, 0.11, "True"), _tensor(4, -8, 0.07, "True")]
                },
                "quantizer_args": {"activation_bitwidth": 8, "param_bitwidth": 4},
            }
        )
    )
    done = quantize(model, task, make_variant("hybrid", encodings=str(tmp_path / "e.json")))
    image, kernel, output = (done.plan.tensors[n] for n in ("image", weight, relu))
    assert (image.bits, float(image.scale), int(image.zero_point)) == (8, 0.03125, 117)
    assert (kernel.bits, kernel.signed, kernel.axis) == (4, True, 0)
    np.testing.assert_array_equal(kernel.scale, np.array([0.11, 0.07], np.float32))
    assert (output.bits, float(output.scale)) == (16, float(np.float32(0.0001)))
    assert done.plan.converted["image"].bits == 16  # the layer computes in 16 bits
    assert any("gone_by_fusion" in note for note in done.notes)


def test_float_entries_keep_a_layer_in_fp16(tmp_path):
    model, _ = _cnn(tmp_path)
    task = load_task(None, model, model_type="vision")
    conv = next(n.outputs[0].name for n in model.ir.graph if n.op_type == "Conv")
    row = {"name": conv, "dtype": "FLOAT", "bw": 16, "enc_type": "PER_TENSOR"}
    document = {"version": "1.0.0", "activation_encodings": [row], "param_encodings": []}
    (tmp_path / "e.json").write_text(json.dumps(document))
    done = quantize(model, task, make_variant("hybrid", encodings=str(tmp_path / "e.json")))
    assert {r.op_type: r.bits for r in done.layers}["Conv"] == 16


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"version": "3.0.0"}, "0.6.1|2.0.0"),
        ({"version": "1.0.0", "activation_encodings": 3}, "activation_encodings"),
        ({"version": "0.6.1"}, "no encodings"),
        ({"activation_encodings": {"image": [{"bitwidth": 8, "offset": 0}]}}, "lacks 'scale'"),
        ({"activation_encodings": {"image": [_tensor(7, 0, 1.0, "False")]}}, "7 bits"),
        ({"activation_encodings": {"image": [_tensor(8, 5, 1.0, "False")]}}, "zero point"),
        ({"activation_encodings": {"image": [_tensor(8, 0, -1.0, "False")]}}, "positive"),
        ({"activation_encodings": {"imgae": [_tensor(8, 0, 1.0, "False")]}}, "Did you mean"),
        ({"param_encodings": {"c1": [_tensor(8, -128, 1.0, "True")] * 3}}, "3 channels"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path, document, said):
    model, _ = _cnn(tmp_path)
    task = load_task(None, model, model_type="vision")
    (tmp_path / "e.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=said):
        quantize(model, task, make_variant("hybrid", encodings=str(tmp_path / "e.json")))
