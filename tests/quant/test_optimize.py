"""The search, on the real compiler and emulator."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from quant.artifact import open_artifact
from quant.errors import UserError
from quant.htp.options import HtpOptions, RunSettings
from quant.htp.package import PackageRequest, package
from quant.htp.search import OBJECTIVES, Candidate, Search, Space, parse_objectives
from quant.htp.soc import get_soc
from quant.optimize import optimize_artifact

spec = importlib.util.spec_from_file_location(
    "spill_graphs", Path(__file__).parents[2] / "tools" / "spill_graphs.py"
)
spill_graphs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(spill_graphs)

ONLY_STRIPS = Space(modes=False, rewrites=False, vtcm="off")


@pytest.fixture(scope="module")
def spilling(tmp_path_factory):
    """A graph whose tensors (0.5 MB each) do not fit into the 1 MB of VTCM it was given."""
    folder = tmp_path_factory.mktemp("spilling")
    model = spill_graphs.conv_stack(folder / "stack.onnx", 256, 4, layers=3)
    request = PackageRequest(
        model,
        folder / "stack.qnn",
        (get_soc("sm8650"),),
        options=HtpOptions(vtcm_mb=1),
        golden_samples=1,
    )
    artifact, (result,) = package(request, lambda r: None)
    assert result.compiled.figures.spill_bytes > 0
    return artifact


def test_strips_end_the_spilling(spilling, tmp_path):
    seen = []
    done = optimize_artifact(
        spilling,
        tmp_path / "o.qnn",
        parse_objectives("memory"),
        space=ONLY_STRIPS,
        on_trial=lambda t: seen.append(t.name),
    )
    assert seen[0] == "as given"
    assert "2 strips" in seen
    before = spilling.soc("sm8650")["figures"]
    after = done.artifact.soc("sm8650")["figures"]
    total = [f["ddr_read_bytes"] + f["ddr_write_bytes"] for f in (before, after)]
    assert total[1] < 0.9 * total[0]
    assert after["spill_bytes"] < before["spill_bytes"]
    assert "strips" in done.why
    assert f"{total[0]:,}" in done.why
    assert f"{total[1]:,}" in done.why
    # The artifact says what was tried, and its goldens are those of the new context.
    stored = open_artifact(tmp_path / "o.qnn")
    assert stored.manifest["optimization"]["why"] == done.why
    assert stored.manifest["notes"][-1] == "quality was evaluated before the graph was rewritten"
    verdicts = [t["verdict"] for t in stored.manifest["optimization"]["trials"]]
    assert sum(v.startswith("chosen") for v in verdicts) == 1
    ((feed, old),) = spilling.goldens("sm8650")
    ((same_feed, new),) = stored.goldens("sm8650")
    np.testing.assert_array_equal(feed["x"], same_feed["x"])
    assert old["y"].shape == new["y"].shape
    assert old["y"].dtype == new["y"].dtype
    noise = np.sum((old["y"].astype(float) - new["y"]) ** 2)
    assert noise <= 1e-6 * np.sum(old["y"].astype(float) ** 2)  # 60 dB


def test_never_worse_and_kept_when_nothing_helps(spilling, tmp_path):
    settings = RunSettings(perf_profile="power_saver")
    done = optimize_artifact(
        spilling,
        tmp_path / "o.qnn",
        parse_objectives("power"),
        space=Space(modes=False, rewrites=False, strips=False, vtcm="off"),
        run_settings=settings,
    )
    assert done.chosen is done.baseline
    assert "kept" in done.why
    name = "contexts/sm8650/context.bin"
    assert done.artifact.members[name].sha256 == spilling.members[name].sha256
    assert done.artifact.manifest["run_settings"]["perf_profile"] == "power_saver"
    assert done.artifact.manifest["model"] == spilling.manifest["model"]
    assert done.artifact.read("encodings.json") == spilling.read("encodings.json")


def test_more_vtcm_is_found(spilling, tmp_path):
    done = optimize_artifact(
        spilling,
        tmp_path / "o.qnn",
        parse_objectives("memory,latency"),
        space=Space(modes=False, rewrites=False, strips=False),
    )
    assert done.chosen.candidate.options.vtcm_mb in (0, 8)
    assert done.chosen.verdict == "chosen: outputs bit-equal to the input's"
    assert done.artifact.soc("sm8650")["figures"]["spill_bytes"] == 0
    for key, value in done.chosen.values.items():
        assert value <= done.baseline.values[key]
    json.dumps(done.artifact.manifest["optimization"])


def test_integer_io_only_when_asked(tmp_path):
    model = spill_graphs.conv_stack(tmp_path / "stack.onnx", 32, 4, layers=2)
    request = PackageRequest(model, tmp_path / "in.qnn", (get_soc("sm8650"),), golden_samples=1)
    given, _ = package(request, lambda r: None)
    done = optimize_artifact(
        given,
        tmp_path / "o.qnn",
        parse_objectives("memory"),
        space=Space(modes=False, rewrites=False, strips=False, vtcm="off", integer_io=True),
    )
    assert [t.name for t in done.trials] == ["as given", "integer I/O"]
    assert done.chosen.verdict.startswith("chosen")
    stored = open_artifact(tmp_path / "o.qnn")
    ((feed, out),) = stored.goldens("sm8650")
    assert (feed["x"].dtype, out["y"].dtype) == (np.uint16, np.uint16)
    assert stored.manifest["model"]["inputs"][0]["dtype"] == "uint16"
    encoding = stored.manifest["io_encodings"]["y"]
    ((_, before),) = given.goldens("sm8650")
    real = (out["y"].astype(float) - encoding["zero_point"]) * encoding["scale"]
    assert np.abs(real - before["y"]).max() <= 1.01 * encoding["scale"]
    figures = [a.soc("sm8650")["figures"] for a in (given, stored)]
    assert figures[1]["ddr_write_bytes"] == figures[0]["ddr_write_bytes"] / 2


def test_names():
    assert [o.name for o in parse_objectives("latency, memory,latency")] == ["latency", "memory"]
    assert set(OBJECTIVES) == {"memory", "power", "latency"}
    with pytest.raises(UserError, match="Did you mean memory"):
        parse_objectives("memori")
    with pytest.raises(UserError, match="No objective"):
        parse_objectives(" ,")
    with pytest.raises(UserError, match="cache config"):
        Space(vtcm="huge")


def tanh_gelu_model(path: Path) -> Path:
    """MatMul and a GELU spelled with Tanh in eight operators, float."""
    rng = np.random.default_rng(0)
    constants = {
        "w": (rng.normal(size=(64, 64)) / 8).astype(np.float32),
        **{k: np.float32(v) for k, v in {"a": 0.044715, "b": 0.7978845608, "c": 3, "d": 1}.items()},
        "e": np.float32(0.5),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Pow", ["h", "c"], ["p"]),
        helper.make_node("Mul", ["p", "a"], ["ap"]),
        helper.make_node("Add", ["h", "ap"], ["s"]),
        helper.make_node("Mul", ["s", "b"], ["bs"]),
        helper.make_node("Tanh", ["bs"], ["t"]),
        helper.make_node("Add", ["t", "d"], ["t1"]),
        helper.make_node("Mul", ["h", "e"], ["h2"]),
        helper.make_node("Mul", ["h2", "t1"], ["y"]),
    ]
    shape = [1, 32, 64]
    graph = helper.make_graph(
        nodes,
        "gelu",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, path)
    return path


def test_a_rewrite_counts_where_the_compiler_makes_less_of_it(tmp_path):
    request = PackageRequest(
        tanh_gelu_model(tmp_path / "gelu.onnx"),
        tmp_path / "in.qnn",
        (get_soc("sm8650"),),
        golden_samples=1,
    )
    given, _ = package(request, lambda r: None)
    done = optimize_artifact(
        given,
        tmp_path / "o.qnn",
        parse_objectives("latency"),
        space=Space(modes=False, strips=False, vtcm="off"),
    )
    by_name = {t.name: t for t in done.trials}
    assert done.chosen is by_name["fuse"], [(t.name, t.verdict) for t in done.trials]
    operators = [t.compiled["sm8650"].operators for t in (done.baseline, done.chosen)]
    assert operators[1] < operators[0]
    assert "dB from the input's" in done.chosen.verdict or "bit-equal" in done.chosen.verdict
    onnx_ops = [
        n.op_type for n in onnx.load_from_string(done.artifact.read("model.onnx")).graph.node
    ]
    assert onnx_ops == ["MatMul", "Gelu"]


def test_another_spelling_of_the_same_work_is_not_faster(tmp_path):
    """onnxruntime folds the pair of transposes before the compiler sees it."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
        helper.make_node("Transpose", ["t"], ["u"], perm=[0, 2, 1]),
        helper.make_node("Softmax", ["u"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 32, 64]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "pair", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "pair.onnx")
    request = PackageRequest(
        tmp_path / "pair.onnx", tmp_path / "in.qnn", (get_soc("sm8650"),), golden_samples=1
    )
    given, _ = package(request, lambda r: None)
    done = optimize_artifact(
        given,
        tmp_path / "o.qnn",
        parse_objectives("latency"),
        space=Space(modes=False, strips=False, vtcm="off"),
    )
    (fold,) = [t for t in done.trials if t.name == "fold"]
    assert fold.verdict in ("no better", "no better: the compiler makes the same of it")
    assert done.chosen is done.baseline


def test_options_that_are_searched(tmp_path):
    given = HtpOptions(finalization_mode=3)
    search = Search(tmp_path, (get_soc("sm8650"),), parse_objectives("memory"), given, print)

    def names(space: Space) -> set[str]:
        return {Candidate(o).describe(given) for o in search._options(space)}

    assert names(Space()) == {
        "finalization_mode=0", "finalization_mode=1", "finalization_mode=2", "vtcm_mb=8",
        "finalization_mode=0, vtcm_mb=8", "spill_fill_buffer=True", "priority=high",
    }  # fmt: skip
    assert names(Space(modes=False, vtcm="balanced")) == {"vtcm_mb=4"}
    assert names(Space(modes=False, vtcm="off")) == set()
