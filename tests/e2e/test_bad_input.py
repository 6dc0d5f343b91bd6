"""Bad input: one clear line, exit 1, no traceback, nothing half-written."""

from __future__ import annotations

import duckdb
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from host.cli import main


def save(path, nodes, inputs, outputs, weights):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(w, n) for n, w in weights.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path
    )


WEIGHT = np.eye(8, dtype=np.float32)
MATMUL = helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")


@pytest.fixture
def qhost(lab, monkeypatch, capsys):
    """qhost in this process (starting one costs seconds), in the lab's folder."""
    monkeypatch.chdir(lab.folder)
    monkeypatch.setenv("QHOST_CACHE_DIR", str(lab.folder / "cache"))

    def run(*args: str) -> tuple[int, str]:
        code = main(list(args))
        return code, capsys.readouterr().err

    return run


@pytest.fixture
def refused(qhost):
    """Runs qhost and asserts exit 1 with one error line that says all of `says`."""

    def run(args: list[str], *says: str) -> None:
        code, err = qhost(*args)
        assert code == 1, err
        errors = [line for line in err.splitlines() if line.startswith("qhost: error:")]
        assert len(errors) == 1, err
        assert "Traceback" not in err
        for text in says:
            assert text in errors[0]

    return run


MOCK = ["bench", "--mock", "--device", "sm8650"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--device", "sm8651", "--mock"], ["Unknown SoC 'sm8651'", "sm8650"]),
        (["--device", "sm8250", "--mock"], ["sm8250", "v66"]),
        (["--mock", "--methods", "int9"], ["Unknown method 'int9'", "int8"]),
        (["--mock", "--methods", "int8[bits=3]"], ["Unknown option of int8", "activation-bits"]),
        (["--mock", "--methods", ""], ["--methods"]),
        (["--mock", "--profile", "fast"], ["Unknown profile 'fast'"]),
        (["--mock", "--perf-profile", "fast"], ["Unknown HTP performance profile 'fast'"]),
        (["--mock", "--output-dir", "/proc/x"], ["Nothing can be written into /proc/x"]),
        (["--mock", "--resume"], ["Nothing to resume: qhost-mock.duckdb does not exist"]),
        (["--mock", "--model-path", "missing.onnx"], ["missing.onnx does not exist"]),
        (["--mock", "--task", "x.npz"], ["--task without --model-path"]),
        (["--mock", "--input-shape", "x"], ["is not name:d1,d2"]),
        (["--mock", "--model-type", "pictures"], ["pictures"]),
        (["--mock", "--metric", "top3"], ["top3"]),
        (["--mock", "--time-factor", "0"], ["time_factor", "is not above 0"]),
    ],
)
def test_words_that_make_no_sense(lab, refused, args, says):
    before = sorted(lab.folder.iterdir())
    refused(["bench", *args], *says)
    assert sorted(lab.folder.iterdir()) == before


def test_a_truncated_model(lab, refused):
    data = lab.model.read_bytes()
    (lab.folder / "cut.onnx").write_bytes(data[: len(data) // 2])
    refused([*MOCK, "--model-path", "cut.onnx"], "cut.onnx", "truncated")


def test_a_file_that_is_no_model(lab, refused):
    (lab.folder / "notes.onnx").write_text("buy milk")
    refused([*MOCK, "--model-path", "notes.onnx"], "notes.onnx is not an ONNX model")


def test_files_of_another_kind_are_called_what_they_are(lab, refused):
    (lab.folder / "done.qnn").write_bytes(b"PK")
    (lab.folder / "notes.txt").write_text("buy milk")
    quantize = ["quantize", "int8", "--output-path", "out.onnx"]
    refused([*quantize, "--model-path", "done.qnn"], "done.qnn is an artifact, already quantized")
    refused(["inspect", "notes.txt"], "notes.txt is none of .qnn, .onnx and .bin")


def test_a_file_that_is_no_pytorch_model(lab, refused):
    pytest.importorskip("torch")
    (lab.folder / "words.pt").write_text("hi\n")
    refused([*MOCK, "--model-path", "words.pt"], "words.pt is neither TorchScript nor")


def test_dynamic_shapes_name_the_input_and_the_fix(lab, refused):
    path = lab.folder / "dynamic.onnx"
    save(path, [MATMUL], {"x": ["batch", 8]}, {"y": ["batch", 8]}, {"w": WEIGHT})
    refused([*MOCK, "--model-path", str(path)], "Input 'x'", "--input-shape x:1,8")


def test_a_nan_weight_is_named(lab, refused):
    path = lab.folder / "nan.onnx"
    bad = WEIGHT.copy()
    bad[2, 3] = np.nan
    save(path, [MATMUL], {"x": [1, 8]}, {"y": [1, 8]}, {"w": bad})
    refused([*MOCK, "--model-path", str(path)], "'w'", "NaN")


def test_an_operator_that_the_htp_cannot_run(lab, refused):
    path = lab.folder / "det.onnx"
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["z"], name="mm"),
        helper.make_node("Det", ["z"], ["y"], name="the_det"),
    ]
    save(path, nodes, {"x": [8, 8]}, {"y": []}, {"w": WEIGHT})
    refused([*MOCK, "--model-path", str(path), "--methods", "fp16,int8"], "'the_det'", "Det")


def test_a_foreign_database_is_left_alone(lab, refused):
    path = lab.folder / "foreign.duckdb"
    with duckdb.connect(str(path)) as db:
        db.execute("CREATE TABLE mine (x INTEGER)")
    before = path.read_bytes()
    refused([*MOCK, "--db-path", "foreign.duckdb"], "foreign.duckdb", "not one of qhost")
    assert path.read_bytes() == before


def test_a_file_that_is_no_database(lab, refused):
    (lab.folder / "text.duckdb").write_text("hello, this is no database at all")
    refused([*MOCK, "--db-path", "text.duckdb"], "text.duckdb is not a DuckDB database")


def test_wrong_usage_is_exit_2(qhost):
    code, err = qhost("bench", "--no-such-option")
    assert code == 2
    assert "No such option" in err
    assert qhost("no-such-verb")[0] == 2


QUANTIZE = ["--model-path", "tiny.onnx", "--task", "tiny.npz", "--output-path", "out.onnx"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["cluster", "--clusters", "1"], ["clusters 1 is not in 8 to 256"]),
        (["sparse", "--sparsity", "1.0"], ["sparsity 1 is not between 0 and 1"]),
        (["sparse", "--sparsity", "-0.1"], ["sparsity -0.1 is not between 0 and 1"]),
        (["sparse", "--structured-pattern", "5:4"], ["'5:4' needs 0 < n < m"]),
        (["qat", "--learning-rate", "0"], ["learning-rate 0 is not above 0"]),
        (["qat", "--epochs", "0"], ["epochs 0 is not 1 or more"]),
        (["qat", "--loss", "labels"], ["has no labels", "loss=distill"]),
        (["qat", "--loss", "labels", "--train-dataset", "plain.npz"], ["plain.npz has no labels"]),
        (["qat", "--train-dataset", "empty.npz"], ["empty.npz is empty", "at least one sample"]),
        (["qat", "--train-dataset", "none.npz"], ["none.npz does not exist"]),
        (["qat", "--model-path", "deep.onnx"], ["operator DepthToSpace (node 'shuffle')"]),
        (["int8+sparse[sparsity=1]"], ["sparsity 1 is not between 0 and 1"]),
        (["int8+spars"], ["Unknown method 'spars'", "sparse"]),
        (["int8,int4[activation-bits=8]"], ["2 variants"]),
    ],
)
def test_what_cannot_be_trained_or_pruned(lab, refused, args, says):
    image = np.zeros((8, 1, 12, 12), np.float32)
    np.savez(lab.folder / "plain.npz", image=image)
    np.savez(lab.folder / "empty.npz", image=image[:0])
    shuffle = [
        helper.make_node("DepthToSpace", ["x"], ["d"], name="shuffle", blocksize=2),
        helper.make_node("Flatten", ["d"], ["f"], name="flat"),
        helper.make_node("MatMul", ["f", "w"], ["y"], name="mm"),
    ]
    save(lab.folder / "deep.onnx", shuffle, {"x": [1, 4, 1, 2]}, {"y": [1, 8]}, {"w": WEIGHT})
    given = [a for a in QUANTIZE if "deep.onnx" not in args or a not in {"--task", "tiny.npz"}]
    before = sorted(p for p in lab.folder.rglob("*") if p.is_file())
    refused(["quantize", args[0], *given, *args[1:]], *says)
    assert sorted(p for p in lab.folder.rglob("*") if p.is_file()) == before


def test_a_composition_is_quantized_as_the_grammar_says(lab, qhost):
    into = ["--output-path", "made/on/the/way.onnx"]
    composition = "cluster[clusters=8]+sparse[sparsity=0.25]"
    code, err = qhost("quantize", composition, *QUANTIZE, *into, "--json")
    assert code == 0, err
    codes = {
        t.name.removesuffix("_quantized"): numpy_helper.to_array(t)
        for t in onnx.load(lab.folder / "made/on/the/way.onnx").graph.initializer
    }
    assert np.unique(codes["w2"]).size <= 8
    assert 0.2 < (codes["w2"] == 0).mean() < 0.4
