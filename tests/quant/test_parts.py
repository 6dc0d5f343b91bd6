"""Parts by structure: the names in these graphs say nothing."""

import importlib.util
import sys
from pathlib import Path

from quant.parts import find_parts

_spec = importlib.util.spec_from_file_location(
    "hybrid_graphs", Path(__file__).with_name("hybrid_graphs.py")
)
graphs = sys.modules.setdefault("hybrid_graphs", importlib.util.module_from_spec(_spec))
_spec.loader.exec_module(graphs)


def test_parts_of_a_transformer(tmp_path):
    model, names = graphs.transformer(tmp_path / "m.onnx")
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
    g = graphs.Graph()
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
    g = graphs.Graph()
    a = g.node("Conv", "image", g.weight(4, 3, 8, 8))
    scores = g.node("Softmax", g.linear(g.node("Flatten", a), 4, 3), axis=-1)
    model = g.save(tmp_path / "m.onnx", [("image", 1, [1, 3, 8, 8])], scores, [1, 3])
    parts = find_parts(model.ir.graph)
    assert parts[scores] == "output"
    assert "attention" not in parts.values()
