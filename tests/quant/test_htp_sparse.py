"""Sparse weight compression on the real compiler, and its refusals."""

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from quant.errors import UserError
from quant.htp import sparse
from quant.htp.compile import compile_context
from quant.htp.emulator import HtpEmulator
from quant.htp.options import HtpOptions
from quant.htp.soc import get_soc


def pointwise_stack(path, pruned):
    """Two 1x1 convolutions of 256 channels, int8 weights, 2:4 along the input channels or dense."""
    rng = np.random.default_rng(0)
    init = {"s": np.float32(0.05), "z": np.uint8(128)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["x0q"]),
        helper.make_node("DequantizeLinear", ["x0q", "s", "z"], ["x0"]),
    ]
    for i in range(2):
        w = rng.integers(-127, 128, (256, 64, 4)).astype(np.int8)
        w[w == 0] = 1
        if pruned:
            w[:, :, :2] = 0
        init |= {
            f"w{i}": w.reshape(256, 256, 1, 1),
            f"ws{i}": np.full(256, 0.0005, np.float32),
            f"wz{i}": np.zeros(256, np.int8),
        }
        nodes += [
            helper.make_node("DequantizeLinear", [f"w{i}", f"ws{i}", f"wz{i}"], [f"wd{i}"], axis=0),
            helper.make_node("Conv", [f"x{i}", f"wd{i}"], [f"c{i}"], f"conv{i}"),
            helper.make_node("QuantizeLinear", [f"c{i}", "s", "z"], [f"x{i + 1}q"]),
            helper.make_node("DequantizeLinear", [f"x{i + 1}q", "s", "z"], [f"x{i + 1}"]),
        ]
    nodes[-1].output[0] = "y"
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 256, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 256, 4, 4])],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in init.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path
    )
    return path


FEEDS = [{"x": np.random.default_rng(1).normal(size=(1, 256, 4, 4)).astype(np.float32)}]
SOC = get_soc("sm8650")
DEFAULTS = HtpOptions()


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruned")
    model = pointwise_stack(folder / "m.onnx", pruned=True)
    return model, compile_context(model, SOC, HtpOptions(), folder / "dense")


def test_pruned_weights_shrink_and_outputs_stay(pruned, tmp_path):
    model, dense = pruned
    small = sparse.compress_weights(model, SOC, dense, HtpOptions(), FEEDS, tmp_path / "out")
    weights = 2 * 256 * 256
    saved = dense.context_bin.stat().st_size - small.context_bin.stat().st_size
    assert saved >= 0.3 * weights  # 2:4 costs 5/8 of dense
    assert dense.figures.ddr_read_bytes - small.figures.ddr_read_bytes >= 0.3 * weights
    assert small.info.soc_model == dense.info.soc_model
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["context.bin", "context.onnx"]
    with HtpEmulator(dense.context_onnx) as one, HtpEmulator(small.context_onnx) as two:
        np.testing.assert_array_equal(one.run(FEEDS)[0]["y"], two.run(FEEDS)[0]["y"])


def test_dense_weights_are_refused_without_output(tmp_path):
    model = pointwise_stack(tmp_path / "m.onnx", pruned=False)
    dense = compile_context(model, SOC, HtpOptions(), tmp_path / "dense")
    with pytest.raises(UserError, match="does not help"):
        sparse.compress_weights(model, SOC, dense, HtpOptions(), FEEDS, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_refused_before_anything_runs(pruned, tmp_path):
    model, dense = pruned

    def attempt(soc=SOC, options=DEFAULTS, context=dense):
        sparse.compress_weights(model, soc, context, options, FEEDS, tmp_path / "out")

    with pytest.raises(UserError, match=r"needs v73 or later; sm8450 has v69"):
        attempt(soc=get_soc("sm8450"))
    with pytest.raises(UserError, match="default compile options only"):
        attempt(options=HtpOptions(priority="high"))
    other = dataclasses.replace(dense, info=dataclasses.replace(dense.info, build_id="v2.60.0"))
    with pytest.raises(UserError, match=r"proved with qairt .* only; this is v2\.60\.0"):
        attempt(context=other)
    assert not (tmp_path / "out").exists()


def test_outputs_that_differ_are_refused(pruned, tmp_path):
    """The dense context given is that of another weight, so the comparison must fail."""
    model, _ = pruned
    other = onnx.load(model)
    for tensor in other.graph.initializer:
        if tensor.name == "ws1":
            tensor.CopyFrom(numpy_helper.from_array(np.full(256, 0.0007, np.float32), "ws1"))
    onnx.save(other, tmp_path / "other.onnx")
    dense = compile_context(tmp_path / "other.onnx", SOC, HtpOptions(), tmp_path / "dense")
    with pytest.raises(UserError, match="outputs differ"):
        sparse.compress_weights(model, SOC, dense, HtpOptions(), FEEDS, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
