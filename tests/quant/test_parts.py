"""Parts by structure: the names in these graphs say nothing."""

import numpy as np
import onnx
from onnx import helper as h
from onnx import numpy_helper

from quant.model import load
from quant.parts import find_parts


class Graph:
    def __init__(self):
        self.nodes, self.constants, self.count = [], [], 0
        self.rng = np.random.default_rng(5)

    def constant(self, data):
        self.count += 1
        name = f"c{self.count}"
        self.constants.append(numpy_helper.from_array(np.asarray(data), name))
        return name

    def weight(self, *shape):
        return self.constant((self.rng.standard_normal(shape) * 0.2).astype(np.float32))

    def node(self, op, *inputs, **attributes):
        self.count += 1
        output = f"v{self.count}"
        self.nodes.append(
            h.make_node(op, list(inputs), [output], name=f"n{self.count}", **attributes)
        )
        return output

    def linear(self, x, depth, width):
        product = self.node("MatMul", x, self.weight(depth, width))
        return self.node("Add", product, self.weight(width))

    def norm(self, x, width):
        ones = self.constant(np.ones(width, np.float32))
        zeros = self.constant(np.zeros(width, np.float32))
        return self.node("LayerNormalization", x, ones, zeros, axis=-1)

    def save(self, path, inputs, output, shape):
        made = h.make_graph(
            self.nodes,
            "g",
            [h.make_tensor_value_info(*i) for i in inputs],
            [h.make_tensor_value_info(output, 1, shape)],
            self.constants,
        )
        model = h.make_model(made, opset_imports=[h.make_opsetid("", 21)], ir_version=10)
        onnx.save(model, path)
        return load(path)


def transformer(path, *, width=16, tokens=8, heads=2):
    g = Graph()
    x = g.node("Gather", g.weight(32, width), "ids")
    embedded = g.node("Add", x, g.weight(1, tokens, width))
    x = g.norm(embedded, width)
    split = g.constant(np.array([1, tokens, heads, width // heads]))
    joined = g.constant(np.array([1, tokens, width]))
    q, k, v = (
        g.node("Transpose", g.node("Reshape", g.linear(x, width, width), split), perm=perm)
        for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
    )
    scores = g.node("Div", g.node("MatMul", q, k), g.constant(np.array([2.0], np.float32)))
    softmax = g.node("Softmax", scores, axis=-1)
    context = g.node("Transpose", g.node("MatMul", softmax, v), perm=[0, 2, 1, 3])
    projected = g.linear(g.node("Reshape", context, joined), width, width)
    residual = g.node("Add", x, projected)
    x = g.norm(residual, width)
    gelu = g.node("Gelu", g.linear(x, width, 4 * width))
    down = g.linear(gelu, 4 * width, width)
    x = g.norm(g.node("Add", x, down), width)
    pooled = g.node("ReduceMean", x, g.constant(np.array([1])), keepdims=0)
    logits = g.linear(pooled, width, 3)
    names = {
        "embedded": embedded, "q": q, "scores": scores, "softmax": softmax,
        "projected": projected, "residual": residual, "gelu": gelu, "down": down,
        "pooled": pooled, "logits": logits,
    }  # fmt: skip
    model = g.save(path, [("ids", 7, [1, tokens])], logits, [1, 3])
    return model, names


def test_parts_of_a_transformer(tmp_path):
    model, names = transformer(tmp_path / "m.onnx")
    parts = find_parts(model.ir.graph)
    found = {key: parts[value] for key, value in names.items()}
    assert found == {
        "embedded": "embedding",
        "q": "attention",
        "scores": "attention",
        "softmax": "attention",
        "projected": "attention",
        "residual": "attention",
        "gelu": "feedforward",
        "down": "feedforward",
        "pooled": "feedforward",  # before the last layer
        "logits": "output",
    }


def test_parts_of_a_cnn_with_a_residual_and_a_hidden_layer(tmp_path):
    g = Graph()
    a = g.node("Conv", "image", g.weight(4, 3, 3, 3), pads=[1, 1, 1, 1])
    b = g.node("Conv", g.node("Relu", a), g.weight(4, 4, 3, 3), pads=[1, 1, 1, 1])
    total = g.node("Add", a, b)
    pooled = g.node("Flatten", g.node("GlobalAveragePool", total))
    hidden = g.node("Relu", g.linear(pooled, 4, 8))
    logits = g.linear(hidden, 8, 5)
    model = g.save(tmp_path / "m.onnx", [("image", 1, [1, 3, 8, 8])], logits, [1, 5])
    parts = find_parts(model.ir.graph)
    assert [parts[v] for v in (a, total, pooled, hidden, logits)] == [
        "conv", "conv", "conv", "feedforward", "output",
    ]  # fmt: skip


def test_a_softmax_at_the_end_is_output_not_attention(tmp_path):
    g = Graph()
    a = g.node("Conv", "image", g.weight(4, 3, 8, 8))
    scores = g.node("Softmax", g.linear(g.node("Flatten", a), 4, 3), axis=-1)
    model = g.save(tmp_path / "m.onnx", [("image", 1, [1, 3, 8, 8])], scores, [1, 3])
    parts = find_parts(model.ir.graph)
    assert parts[scores] == "output"
    assert "attention" not in parts.values()
