"""Every recommendation runs: the table speaks the grammar, and a model finds its row."""

import importlib.util
import sys
from pathlib import Path

import pytest

from quant.errors import UserError
from quant.methods.grammar import parse_methods
from quant.model import load
from quant.recommend import Structure, kind_of, recommend, structure, table
from quant.task import MODEL_TYPES

_spec = importlib.util.spec_from_file_location(
    "hybrid_graphs", Path(__file__).with_name("hybrid_graphs.py")
)
graphs = sys.modules.setdefault("hybrid_graphs", importlib.util.module_from_spec(_spec))
_spec.loader.exec_module(graphs)

SAMPLE = Path(__file__).parents[2] / "host" / "samples" / "data" / "fashion_cnn"


@pytest.mark.parametrize("row", table(), ids=lambda r: f"{r.model_type}: {r.title}")
def test_methods_of_every_row_parse(row):
    assert len(parse_methods(row.methods)) >= 2
    assert row.reason.endswith(".")


def test_every_model_type_and_every_kind_has_a_row():
    rows = table()
    assert {r.model_type for r in rows} == set(MODEL_TYPES)
    kinds = {(r.model_type, r.kind) for r in rows if r.kind}
    assert kinds == {
        ("vision", "detection"), ("vision", "transformer"), ("vision", "depthwise"),
        ("vision", "cnn"), ("audio", "speech"), ("audio", "classification"),
        ("audio", "features"), ("multimodal", "cross-attention"), ("multimodal", "towers"),
        ("multimodal", "text"),
    }  # fmt: skip


def test_a_mobile_cnn_finds_its_row_with_its_own_figures():
    first, *others = recommend("vision", load(SAMPLE / "model.onnx"))
    assert first.fits and first.kind == "depthwise"
    assert "13 convolutions (6 in groups)" in first.reason
    assert not any(row.fits for row in others)


def test_a_text_model_is_judged_by_its_parameters(tmp_path):
    model, _ = graphs.transformer(tmp_path / "m.onnx")
    found = structure(model)
    assert found.attention_blocks == 1 and not found.cross_attention
    assert found.shares["feedforward"] > found.shares["embedding"] > 0
    assert recommend("text", model)[0].title.startswith("small")


def _structure(**changes):
    plain = {
        "parameters": 10, "shares": {}, "attention_blocks": 0, "convolutions": 0, "depthwise": 0,
        "recurrent": False, "cross_attention": False, "outputs": 1, "output_rank": 1,
    }  # fmt: skip
    return Structure(**{**plain, **changes})


@pytest.mark.parametrize(
    ("model_type", "changes", "kind"),
    [
        ("vision", {"outputs": 2, "convolutions": 5}, "detection"),
        ("vision", {"attention_blocks": 4, "convolutions": 1}, "transformer"),
        ("vision", {"convolutions": 8}, "cnn"),
        ("audio", {"recurrent": True}, "speech"),
        ("audio", {"output_rank": 2, "convolutions": 3}, "features"),
        ("audio", {"convolutions": 3}, "classification"),
        ("multimodal", {"cross_attention": True, "attention_blocks": 2}, "cross-attention"),
        ("multimodal", {"convolutions": 5, "attention_blocks": 2}, "towers"),
    ],
)
def test_kind_of_network(model_type, changes, kind):
    assert kind_of(model_type, _structure(**changes)) == kind


def test_unknown_model_type_names_the_nearest():
    with pytest.raises(UserError, match="vision"):
        recommend("visoin")
