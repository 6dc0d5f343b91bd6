"""Graphs with names that say nothing, for the tests of parts, hybrid and encodings."""

import numpy as np
import onnx
from onnx import helper as h
from onnx import numpy_helper

from quant.model import load


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
