"""Strips compute what the whole graph computes, exactly, in onnxruntime."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from quant.htp.strips import split_into_strips


def graph_of(nodes, initializers, shape_in, outputs):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape_in)],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in initializers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def run(model, shape):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    onnx.checker.check_model(model)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return ort.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})


def weight(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def mixed():
    """Strides, dilation, pooling, a skip over them, channel concat, two region outputs."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "a", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "b"),
        helper.make_node("Conv", ["b", "w2"], ["c"], "c", pads=[2, 2, 2, 2], dilations=[2, 2]),
        helper.make_node("Add", ["c", "b"], ["d"], "d"),
        helper.make_node("Conv", ["d", "w3"], ["e"], "e", pads=[1, 1, 0, 0], strides=[2, 2]),
        helper.make_node("MaxPool", ["d"], ["f"], "f", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Concat", ["e", "f"], ["g"], "g", axis=1),
        helper.make_node("Mul", ["g", "gain"], ["h"], "h"),
        helper.make_node("GlobalAveragePool", ["h"], ["y"], "y"),
        helper.make_node("Sigmoid", ["d"], ["z"], "z"),
    ]
    init = {
        "w1": weight(4, 3, 3, 3),
        "w2": weight(4, 4, 3, 3),
        "w3": weight(5, 4, 3, 3),
        "gain": weight(1, 9, 1, 1),
    }
    return graph_of(nodes, init, [1, 3, 22, 14], ["y", "z"]), (1, 3, 22, 14)


@pytest.mark.parametrize("strips", [2, 3, 7, 11])
def test_same_values_through_strides_pools_and_skips(strips):
    model, shape = mixed()
    split = split_into_strips(model, strips)
    for whole, parts in zip(run(model, shape), run(split, shape), strict=True):
        np.testing.assert_allclose(parts, whole, rtol=1e-6, atol=1e-6)
    assert sum(n.op_type == "Conv" for n in split.graph.node) == 3 * strips
    # What is not row-local stays, once, behind the joined rows.
    assert [n.op_type for n in split.graph.node].count("GlobalAveragePool") == 1
    assert {i.name for i in model.graph.initializer} <= {i.name for i in split.graph.initializer}


def test_quantized_strips_are_bit_equal():
    init = {
        "s": np.float32(0.05),
        "z": np.uint8(100),
        "wq": np.arange(108, dtype=np.uint8).reshape(4, 3, 3, 3),
        "ws": np.float32(0.01),
        "wz": np.uint8(50),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"]),
        helper.make_node("Conv", ["xd", "wd"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("QuantizeLinear", ["c", "s", "z"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "s", "z"], ["y"]),
    ]
    model = graph_of(nodes, init, [1, 3, 9, 8], ["y"])
    split = split_into_strips(model, 4)
    np.testing.assert_array_equal(run(split, (1, 3, 9, 8))[0], run(model, (1, 3, 9, 8))[0])
    # The rows are joined as integers, with the encoding of the output they replace.
    join = next(n for n in split.graph.node if n.op_type == "Concat")
    behind = next(n for n in split.graph.node if join.output[0] in n.input)
    assert (behind.op_type, list(behind.input[1:])) == ("QuantizeLinear", ["s", "z"])


def test_nothing_to_split():
    model, _ = mixed()
    assert split_into_strips(model, 23) is None  # 22 rows
    matmul = helper.make_node("MatMul", ["x", "w"], ["y"])
    assert split_into_strips(graph_of([matmul], {"w": weight(6, 6)}, [1, 6], ["y"]), 2) is None
    # A sum over rows is not row-local, and behind it nothing is.
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["a"]),
        helper.make_node("Conv", ["a", "w"], ["y"]),
    ]
    assert (
        split_into_strips(graph_of(nodes, {"w": weight(2, 3, 1, 1)}, [1, 3, 8, 8], ["y"]), 2)
        is None
    )


def test_constant_with_rows_is_left_alone():
    """Adding a constant that differs by row would need the constant cut as well."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["a", "rows"], ["y"]),
    ]
    init = {"w": weight(2, 3, 3, 3), "rows": weight(1, 1, 8, 1)}
    model = graph_of(nodes, init, [1, 3, 8, 8], ["y"])
    split = split_into_strips(model, 2)
    np.testing.assert_allclose(run(split, (1, 3, 8, 8))[0], run(model, (1, 3, 8, 8))[0], atol=1e-6)
    assert [n.op_type for n in split.graph.node][-1] == "Add"
