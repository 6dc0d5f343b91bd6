"""`qhost recommend` prints lines that `qhost bench --methods` takes."""

import json
from pathlib import Path

from host.cli import main
from quant.methods.grammar import parse_methods

SAMPLE = Path(__file__).parents[2] / "host" / "samples" / "data" / "fashion_cnn" / "model.onnx"


def test_the_row_for_the_model_comes_first_on_one_line_each(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["recommend", "--model-type", "vision", "--model-path", str(SAMPLE)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "for this model: vision, mobile CNN (depthwise convolutions)"
    methods = [line.split("'")[1] for line in lines if line.startswith("  --methods ")]
    assert len(methods) == 4
    assert all(parse_methods(text) for text in methods)


def test_json_has_the_same_rows(capsys):
    assert main(["recommend", "--model-type", "text", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [r["title"].split()[0] for r in rows] == ["small", "medium", "large"]
    assert not any(r["fits"] for r in rows)


def test_an_unknown_type_is_a_user_error(capsys):
    assert main(["recommend", "--model-type", "txet"]) == 1
    assert "Did you mean text" in capsys.readouterr().err
