"""Loading, saving and refusing models."""

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from quant.errors import UserError
from quant.model import load, save


def _edit(path, change):
    proto = onnx.load(path)
    change(proto)
    onnx.save(proto, path)
    return path


def test_interface_and_opset(encoder_path):
    model = load(encoder_path)
    assert [(s.name, s.dtype, s.shape) for s in model.inputs] == [
        ("input_ids", "int64", (1, 16)),
        ("attention_mask", "int64", (1, 16)),
    ]
    assert model.outputs[0].shape == (1, 16, 32)
    assert model.ir.opset_imports[""] == 21


def test_fingerprint_is_of_the_content(cnn_path, tmp_path):
    first = load(cnn_path)
    other = tmp_path / "elsewhere" / "renamed.onnx"
    other.parent.mkdir()
    proto = onnx.load(cnn_path)
    onnx.save(proto, other, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert load(other).fingerprint == first.fingerprint

    def change(p):
        w = numpy_helper.to_array(p.graph.initializer[0]).copy()
        w.flat[0] += 1e-6
        p.graph.initializer[0].CopyFrom(numpy_helper.from_array(w, p.graph.initializer[0].name))

    assert load(_edit(cnn_path, change)).fingerprint != first.fingerprint


def test_save_round_trips_and_leaves_no_partial_file(cnn_path, tmp_path):
    model = load(cnn_path)
    save(model, tmp_path / "out" / "copy.onnx")
    assert load(tmp_path / "out" / "copy.onnx").fingerprint == model.fingerprint
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["copy.onnx"]


def test_dynamic_input_names_the_input_and_the_flag(cnn_path):
    def change(p):
        p.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
        p.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"

    path = _edit(cnn_path, change)
    with pytest.raises(UserError, match=r"--input-shape x:1,1,28,28"):
        load(path)
    assert load(path, input_shapes={"x": (1, 1, 28, 28)}).outputs[0].shape == (1, 10)
    with pytest.raises(UserError, match="no input 'z'"):
        load(path, input_shapes={"z": (1,)})
    with pytest.raises(UserError, match="Only dynamic dimensions"):
        load(path, input_shapes={"x": (1, 3, 28, 28)})


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (np.inf, "Inf")])
def test_bad_weight_is_named(cnn_path, value, kind):
    def change(p):
        tensor = next(t for t in p.graph.initializer if t.name == "w2")
        w = numpy_helper.to_array(tensor).copy()
        w.flat[3] = value
        tensor.CopyFrom(numpy_helper.from_array(w, "w2"))

    with pytest.raises(UserError, match=f"'w2'.*1 {kind}"):
        load(_edit(cnn_path, change))


def test_old_opset_and_quantized_models_are_refused(cnn_path):
    with pytest.raises(UserError, match="opset 8"):
        load(_edit(cnn_path, lambda p: setattr(p.opset_import[0], "version", 8)))

    def quantized(p):
        p.opset_import[0].version = 21
        p.graph.initializer.append(numpy_helper.from_array(np.float32(0.1), "s"))
        p.graph.initializer.append(numpy_helper.from_array(np.uint8(3), "z"))
        p.graph.node.insert(0, helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]))
        p.graph.node.insert(1, helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]))
        p.graph.node[2].input[0] = "xd"

    with pytest.raises(UserError, match="already quantized"):
        load(_edit(cnn_path, quantized))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a model", b"\x08\x07"])
def test_foreign_files_are_refused(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(UserError):
        load(path)


def test_truncated_and_missing_files(cnn_path, tmp_path):
    data = cnn_path.read_bytes()
    (tmp_path / "cut.onnx").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="truncated"):
        load(tmp_path / "cut.onnx")
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "none.onnx")
    proto = onnx.load(cnn_path)
    onnx.save(
        proto, tmp_path / "ext.onnx", save_as_external_data=True, location="w.bin",
        size_threshold=0,
    )  # fmt: skip
    (tmp_path / "w.bin").unlink()
    with pytest.raises(UserError, match="external data"):
        load(tmp_path / "ext.onnx")


def test_minus_infinity_in_a_mask_is_allowed(builder, tmp_path):
    b = builder
    mask = np.triu(np.full((4, 4), -np.inf, np.float32), 1)
    b.node("MatMul", ["x", b.weight("w", 4, 4)], "s")
    b.node("Add", ["s", b.constant("mask", mask)], "m")
    b.node("Softmax", ["m"], "y", axis=-1)
    path = b.save(tmp_path / "m.onnx", [("x", [1, 4, 4])], [("y", [1, 4, 4])])
    assert load(path).outputs[0].shape == (1, 4, 4)


def test_state_dict_is_explained(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.zeros(2)}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"bare state_dict \(1 tensors\)"):
        load(tmp_path / "weights.pt")


def test_torchscript_comes_in(tmp_path):
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
    traced = torch.jit.trace(module, torch.zeros(1, 4))
    traced.save(str(tmp_path / "m.pt"))
    with pytest.raises(UserError, match="--input-shape"):
        load(tmp_path / "m.pt")


def test_model_is_frozen(cnn_path):
    with pytest.raises(dataclasses.FrozenInstanceError):
        load(cnn_path).name = "other"


def test_empty_graph(tmp_path):
    graph = helper.make_graph(
        [], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
    )  # fmt: skip
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), tmp_path / "e.onnx"
    )
    with pytest.raises(UserError, match="no nodes"):
        load(tmp_path / "e.onnx")
