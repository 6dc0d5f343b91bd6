"""What decides an artifact is in its cache key."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from quant.build import BuildRequest, artifact_path, float_outputs
from quant.model import load
from quant.task import load_task


@pytest.fixture
def request_(tmp_path):
    weight = numpy_helper.from_array(np.eye(8, dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8])],
        [weight],
    )
    path = tmp_path / "m.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path
    )
    return BuildRequest(path, "int8", "sm8650", tmp_path / "cache")


def key(request) -> str:
    model = load(request.model_path)
    return artifact_path(request, model, load_task(None, model)).name


@pytest.mark.parametrize(
    "change",
    [{"variant": "int4"}, {"variant": "int8[activation-bits=16]"}, {"soc": "sm8750"},
     {"emulator_samples": 7}],
)  # fmt: skip
def test_every_choice_has_an_artifact_of_its_own(request_, change):
    assert key(dataclasses.replace(request_, **change)) != key(request_)


def test_a_file_that_an_option_names_counts_by_its_content(request_, tmp_path):
    shares = tmp_path / "shares.json"
    variant = f"sparse[layer-wise-sparsity={shares}]"
    sparse = dataclasses.replace(request_, variant=variant)
    shares.write_text('{"w": 0.5}')
    before = key(sparse)
    assert key(sparse) == before
    shares.write_text('{"w": 0.6}')
    assert key(sparse) != before


def test_requests_survive_the_pipe_to_the_worker(request_):
    whole = dataclasses.replace(request_, input_shapes={"x": (1, 8)}, metric="top1")
    assert BuildRequest.from_json(whole.to_json()) == whole


def test_damaged_outputs_of_the_float_model_are_computed_again(request_, tmp_path):
    model = load(request_.model_path)
    task = load_task(None, model)
    whole = float_outputs(tmp_path, model, task)
    (kept,) = (tmp_path / "float").iterdir()
    data = kept.read_bytes()
    for damaged in (b"", data[: len(data) // 2], data[:-1]):
        kept.write_bytes(damaged)
        again = float_outputs(tmp_path, model, task)
        assert all(np.array_equal(a["y"], b["y"]) for a, b in zip(again, whole, strict=True))
        assert kept.read_bytes() == data
