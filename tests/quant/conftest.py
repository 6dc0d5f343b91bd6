"""Small graphs that several tests quantize. Random weights, fixed seeds."""

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from quant import search
from quant.methods import hybrid


class GraphBuilder:
    """Collects nodes and initializers; `save` writes a checked ONNX file."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name, array):
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weight(self, name, *shape, scale=1.0):
        return self.constant(name, (self.rng.standard_normal(shape) * scale).astype(np.float32))

    def node(self, op, inputs, output, **attributes):
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def linear(self, x, name, inputs, outputs):
        product = self.node(
            "MatMul",
            [x, self.weight(f"{name}_w", inputs, outputs, scale=inputs**-0.5)],
            f"{name}_m",
        )
        return self.node("Add", [product, self.weight(f"{name}_b", outputs, scale=0.1)], name)

    def save(self, path: Path, inputs, outputs, opset=17) -> Path:
        def info(entry):
            name, shape, *kind = entry
            return helper.make_tensor_value_info(
                name, kind[0] if kind else TensorProto.FLOAT, shape
            )

        graph = helper.make_graph(
            self.nodes,
            "g",
            [info(i) for i in inputs],
            [info(o) for o in outputs],
            self.initializers,
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10
        )
        onnx.checker.check_model(model)
        onnx.save(model, path)
        return path


def build_cnn(path: Path) -> Path:
    b = GraphBuilder(0)
    b.node("Conv", ["x", b.weight("w0", 16, 1, 3, 3, scale=0.4), b.weight("b0", 16)], "c0",
           pads=[1, 1, 1, 1], strides=[2, 2])  # fmt: skip
    b.node("Relu", ["c0"], "r0")
    b.node("Conv", ["r0", b.weight("w1", 16, 1, 3, 3, scale=0.4), b.weight("b1", 16)], "c1",
           pads=[1, 1, 1, 1], group=16)  # fmt: skip
    b.constant("lo", np.float32(0))
    b.constant("hi", np.float32(6))
    b.node("Clip", ["c1", "lo", "hi"], "r1")
    b.node("Conv", ["r1", b.weight("w2", 16, 16, 1, 1, scale=0.25), b.weight("b2", 16)], "c2")
    b.node("Add", ["r0", "c2"], "a")
    b.node("GlobalAveragePool", ["a"], "g")
    b.node("Flatten", ["g"], "f", axis=1)
    b.node("Gemm", ["f", b.weight("wf", 10, 16, scale=0.5), b.weight("bf", 10)], "y", transB=1)
    return b.save(path, [("x", [1, 1, 28, 28])], [("y", [1, 10])], opset=21)


def build_encoder(path: Path, *, mask: float = -3.4e38, size=32, heads=2, length=16) -> Path:
    """A post-norm transformer encoder of two layers, with a mask and an outlier channel."""
    b = GraphBuilder(1)
    table = (b.rng.standard_normal((50, size)) * 0.1).astype(np.float32)
    b.constant("table", table)
    b.constant("one", np.float32(1))
    b.constant("far", np.float32(mask))
    b.constant("axes", np.array([1, 2], np.int64))
    b.constant("split", np.array([1, length, heads, size // heads], np.int64))
    b.constant("join", np.array([1, length, size], np.int64))
    b.constant("root", np.float32((size // heads) ** 0.5))
    b.node("Cast", ["attention_mask"], "mask_float", to=TensorProto.FLOAT)
    b.node("Unsqueeze", ["mask_float", "axes"], "mask_4d")
    b.node("Sub", ["one", "mask_4d"], "mask_inverted")
    b.node("Mul", ["mask_inverted", "far"], "mask_bias")
    b.node("Gather", ["table", "input_ids"], "words")
    b.node("Add", ["words", b.weight("positions", 1, length, size, scale=0.1)], "sum")

    def norm(x, name):
        gamma = (1 + b.rng.standard_normal(size) * 0.2).astype(np.float32)
        return b.node("LayerNormalization",
                      [x, b.constant(f"{name}_g", gamma), b.weight(f"{name}_be", size, scale=0.1)],
                      name, axis=-1, epsilon=1e-5)  # fmt: skip

    x = norm("sum", "n0")
    for i in range(2):
        q, k, v = (b.linear(x, f"{c}{i}", size, size) for c in "qkv")
        q, v = (
            b.node("Transpose", [b.node("Reshape", [s, "split"], f"{s}_s")], f"{s}_t",
                   perm=[0, 2, 1, 3])
            for s in (q, v)
        )  # fmt: skip
        k = b.node("Transpose", [b.node("Reshape", [k, "split"], f"{k}_s")], f"{k}_t",
                   perm=[0, 2, 3, 1])  # fmt: skip
        scores = b.node("Div", [b.node("MatMul", [q, k], f"qk{i}"), "root"], f"scores{i}")
        scores = b.node("Add", [scores, "mask_bias"], f"masked{i}")
        weights = b.node("Softmax", [scores], f"p{i}", axis=-1)
        context = b.node("MatMul", [weights, v], f"ctx{i}")
        context = b.node("Transpose", [context], f"ctx{i}_t", perm=[0, 2, 1, 3])
        context = b.node("Reshape", [context, "join"], f"ctx{i}_j")
        x = norm(b.node("Add", [x, b.linear(context, f"o{i}", size, size)], f"r{i}"), f"n{i}a")
        up = b.linear(x, f"u{i}", size, 4 * size)
        act = b.node("Gelu", [up], f"gelu{i}")
        down = b.linear(act, f"d{i}", 4 * size, size)
        for t in b.initializers:  # one channel of the residual stream far above the others
            if t.name == f"d{i}_w":
                w = numpy_helper.to_array(t).copy()
                w[:, 5] *= 60.0
                t.CopyFrom(numpy_helper.from_array(w, t.name))
        x = norm(b.node("Add", [x, down], f"s{i}"), f"n{i}b")
    b.node("Identity", [x], "y")
    kind = TensorProto.INT64
    return b.save(
        path,
        [("input_ids", [1, length], kind), ("attention_mask", [1, length], kind)],
        [("y", [1, length, size])],
        opset=20,
    )


@pytest.fixture
def cnn_path(tmp_path):
    return build_cnn(tmp_path / "cnn.onnx")


@pytest.fixture
def encoder_path(tmp_path):
    return build_encoder(tmp_path / "encoder.onnx")


@pytest.fixture
def builder():
    return GraphBuilder(7)


@pytest.fixture(scope="module")
def shared_roundings():
    """hybrid rounds the weights of a model once per width and module: most of its time."""
    models = {}

    @functools.cache
    def refined(model, task, bits):
        return search.roundings(*models[model, task], {bits: None}).by_bits[bits]

    def roundings(model, task, wanted):
        key = (model.fingerprint, task.fingerprint)
        models[key] = model, task
        by_bits = {}
        for bits, names in wanted.items():
            whole = refined(*key, bits)
            chosen = whole.encodings.keys() if names is None else names & whole.encodings.keys()
            by_bits[bits] = replace(
                whole,
                encodings={n: whole.encodings[n] for n in chosen},
                codes={n: q for n, q in whole.codes.items() if n in chosen},
            )
        return search.Roundings(model, by_bits)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hybrid, "roundings", roundings)
        yield
