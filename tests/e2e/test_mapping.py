"""Each command of docs/mapping.md runs, in order, and leaves what it says."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from host.cli import main
from quant.artifact import open_artifact

PAGE = Path(__file__).resolve().parents[2] / "docs" / "mapping.md"
COMMANDS = re.findall(r"^\| `[^`]+` \| `(qhost [^`]+)` \|$", PAGE.read_text("utf-8"), re.MULTILINE)


def write_bert(path: Path, hidden: int = 768, heads: int = 12, tokens: int = 16) -> None:
    """One encoder layer of BERT-base's shape (and a vocabulary cut to 500), random weights."""
    rng = np.random.default_rng(0)
    inits: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def weight(name: str, *shape: int, scale: float = 0.02) -> str:
        inits.append(numpy_helper.from_array((rng.normal(size=shape) * scale).astype("f4"), name))
        return name

    def constant(name: str, value: np.ndarray) -> str:
        inits.append(numpy_helper.from_array(value, name))
        return name

    def node(op: str, inputs: list[str], out: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op, inputs, [out], name=out, **attributes))
        return out

    def linear(x: str, name: str, rows: int, columns: int) -> str:
        product = node("MatMul", [x, weight(f"{name}.weight", rows, columns)], f"{name}.matmul")
        return node("Add", [product, weight(f"{name}.bias", columns)], name)

    def norm(x: str, name: str) -> str:
        gamma = constant(f"{name}.gamma", np.ones(hidden, "f4"))
        beta = constant(f"{name}.beta", np.zeros(hidden, "f4"))
        return node("LayerNormalization", [x, gamma, beta], name, axis=-1)

    words = node("Gather", [weight("words", 500, hidden), "input_ids"], "embedded")
    x = norm(node("Add", [words, weight("positions", 1, tokens, hidden)], "summed"), "embeddings")
    split = constant("split", np.array([1, tokens, heads, hidden // heads], np.int64))
    merge = constant("merge", np.array([1, tokens, hidden], np.int64))

    def head(name: str, perm: list[int]) -> str:
        parts = node("Reshape", [linear(x, name, hidden, hidden), split], f"{name}.split")
        return node("Transpose", [parts], f"{name}.heads", perm=perm)

    q, k, v = head("query", [0, 2, 1, 3]), head("key", [0, 2, 3, 1]), head("value", [0, 2, 1, 3])
    scale = constant("scale", np.array((hidden / heads) ** -0.5, "f4"))
    scores = node("Mul", [node("MatMul", [q, k], "scores"), scale], "scaled")
    context = node("MatMul", [node("Softmax", [scores], "attention", axis=-1), v], "context")
    joined = node("Transpose", [context], "joined", perm=[0, 2, 1, 3])
    flat = node("Reshape", [joined, merge], "flat")
    x = norm(node("Add", [linear(flat, "output", hidden, hidden), x], "residual1"), "norm1")
    inner = node("Gelu", [linear(x, "up", hidden, 4 * hidden)], "gelu")
    norm(node("Add", [linear(inner, "down", 4 * hidden, hidden), x], "residual2"), "last_hidden")
    graph = helper.make_graph(
        nodes,
        "bert",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, tokens])],
        [helper.make_tensor_value_info("last_hidden", TensorProto.FLOAT, [1, tokens, hidden])],
        inits,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)


@pytest.fixture(scope="module")
def folder(finished_lab, tmp_path_factory):
    lab, _ = finished_lab
    folder = tmp_path_factory.mktemp("mapping")
    shutil.copyfile(lab.model, folder / "net.onnx")
    shutil.copyfile(lab.task, folder / "task.npz")
    write_bert(folder / "bert-base-uncased.onnx")
    return folder


def expected(args: list[str]) -> list[str]:
    """The files a command promises by its own options."""
    named = [args[i + 1] for i, a in enumerate(args) if a in {"--output-path", "--output"}]
    if args[0] in {"compare-all", "example"}:
        named.append("qhost-out/net_comparison.json")
    if "--visualize" in args:
        named += ["qhost-out/net_report.html", "qhost-out/net_pareto.png"]
    if "--store-in-db" in args or args[0] == "bench":
        named.append("qhost-mock.duckdb")
    return named


def test_the_page_maps_every_command_of_the_guide():
    verbs = {shlex.split(c)[1] for c in COMMANDS}
    assert len(COMMANDS) == 14
    assert verbs == {
        "quantize", "compare-all", "visualize", "optimize", "memory-optimize", "power-optimize",
        "bench", "query", "report", "example",
    }  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: " ".join(c.split()[1:3]))
def test_the_command_runs_and_leaves_its_files(command, folder, finished_lab, monkeypatch, capsys):
    lab, _ = finished_lab
    monkeypatch.chdir(folder)
    monkeypatch.setenv("QHOST_CACHE_DIR", str(lab.folder / "cache"))
    monkeypatch.setenv("QHOST_EMULATOR_SAMPLES", "8")
    args = shlex.split(command)[1:]
    code = main(args)
    captured = capsys.readouterr()
    assert code == 0, captured.err
    for name in expected(args):
        path = folder / name
        assert path.stat().st_size > 0, name
        if path.suffix == ".qnn":
            assert open_artifact(path).socs == ("sm8650",)
    if args[0] == "query":
        assert "bert-base-uncased" in captured.out
