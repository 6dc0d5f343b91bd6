"""compile, inspect and optimize as the command line offers them."""

import importlib.util
import json
import signal
import stat
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import typer
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from host.cli import compile as compile_verb
from host.cli import inspect as inspect_verb
from host.cli import main, normalised
from host.cli import optimize as optimize_verb
from host.errors import UserError
from quant.artifact import open_artifact

ROOT = Path(__file__).parents[2]


def build_app():
    app = typer.Typer()
    for module in (compile_verb, inspect_verb, optimize_verb):
        module.register(app)
    return app


def qhost(*args, code=0):
    """The output of a verb. Errors of the user come out as UserError, as main sees them."""
    result = CliRunner().invoke(build_app(), normalised([str(a) for a in args]))
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.stdout


def save(path, nodes, init, shape_out):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape_out)],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in init.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path
    )
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def conv(folder):
    w = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], "conv", pads=[1, 1, 1, 1])
    return save(folder / "conv.onnx", [node], {"w": w}, [1, 8, 16, 16])


@pytest.fixture(scope="module")
def refused(folder):
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "relu"),
        helper.make_node("Det", ["r"], ["y"], "determinant"),
    ]
    return save(folder / "refused.onnx", nodes, {}, [1, 3])


@pytest.fixture(scope="module")
def artifact(conv, folder):
    out = folder / "conv.qnn"
    text = qhost(
        "compile", "--model-path", conv, "--output-path", out, "--device", "sm8350,sm8550,sm8650",
        code=3,
    )  # fmt: skip
    # One SoC is refused by name and reason, the others go on.
    assert "sm8350 skipped: model.onnx is a float model, and the HTP of sm8350 has no fp16" in text
    return out


def test_compile_for_several_socs(artifact):
    opened = open_artifact(artifact)
    assert opened.socs == ("sm8550", "sm8650")
    assert [opened.soc(s)["soc_model"] for s in opened.socs] == [43, 57]
    assert any("sm8350 skipped" in note for note in opened.manifest["notes"])
    for soc in opened.socs:
        assert len(opened.goldens(soc)) == 2
        assert opened.manifest["device_model"][soc]["soc"]["id"] == soc
        quality = opened.manifest["quality"][f"htp_emulator:{soc}"]
        assert quality["provenance"] == "htp_emulator"
        assert quality["sqnr_db"] > 40


def test_compile_twice_is_identical(artifact, conv, tmp_path):
    again = tmp_path / "again.qnn"
    qhost("compile", "--model-path", conv, "--output-path", again,
          "--device", "sm8350,sm8550,sm8650", code=3)  # fmt: skip
    assert again.read_bytes() == artifact.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "sm8250"], "sm8250 is too old"),
        (["--device", "sm8655"], "Did you mean sm8650"),
        (["--device", " , "], "No SoC"),
        (["--option", "vtcm=2"], "vtcm_mb"),
        (["--option", "htp_arch=70"], "htp_arch 70 does not exist"),
        (["--option", "soc_model=9999"], "soc_model 9999 does not exist"),
        (["--option", "bf16=1"], "bf16 is not possible on sm8650"),
        (["--device", "qcs6490"], "qcs6490 has no fp16"),
        (["--perf-profile", "turbo"], "performance profile 'turbo'"),
        (["--backend", "sdk"], "Unknown back end"),
        (["--input-shape", "x"], "not an input shape"),
        (["--input-shape", "x:0,3"], "not an input shape"),
        (["--htp-sparse-compression"], "does not help|default compile options|int8"),
    ],
)
def test_compile_refuses(conv, tmp_path, arguments, message):
    out = tmp_path / "o.qnn"
    with pytest.raises(UserError, match=message):
        qhost("compile", "--model-path", conv, "--output-path", out, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_compile_of_a_refused_graph(refused, tmp_path):
    with pytest.raises(UserError, match=r"refuses .*'determinant' \(Det\)"):
        qhost("compile", "--model-path", refused, "--output-path", tmp_path / "o.qnn")
    assert list(tmp_path.iterdir()) == []


def test_a_compiler_that_dies_for_one_soc(conv, tmp_path, monkeypatch):
    """A stand-in interpreter kills itself once; the second SoC finds the real one again."""
    fake = tmp_path / "python"
    fake.write_text(
        f'#!/bin/sh\n[ -e {tmp_path}/died ] && exec {sys.executable} "$@"\n'
        f"touch {tmp_path}/died\nkill -{signal.SIGSEGV.value} $$\n"
    )
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(fake))
    out = tmp_path / "o.qnn"
    text = qhost(
        "compile", "--model-path", conv, "--output-path", out, "--device", "sm8550,sm8650", code=3
    )
    assert "sm8550 failed: The HTP compiler was killed by SIGSEGV" in text
    assert open_artifact(out).socs == ("sm8650",)


def test_a_compiler_that_dies_for_the_only_soc(conv, tmp_path, monkeypatch, capsys):
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\nkill -{signal.SIGABRT.value} $$\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(fake))
    out = tmp_path / "o.qnn"
    assert main(["compile", "--model-path", str(conv), "--output-path", str(out)]) == 5
    assert "error: The HTP compiler was killed by SIGABRT while" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    "verb",
    [["compile"], ["optimize"], ["memory-optimize"], ["power-optimize"], ["quantize", "int8"]],
)
def test_no_verb_writes_over_its_input_or_under_a_name_that_misleads(verb, conv, capsys, tmp_path):
    """All of it is asked before the work."""
    model = tmp_path / "m.onnx"
    model.write_bytes(conv.read_bytes())
    artifact = tmp_path / "m.qnn"
    artifact.symlink_to(model)
    (tmp_path / "f.qnn").mkdir()
    for output, says in (
        (artifact, "is the input itself"),
        (tmp_path / "m.txt", "does not end in .qnn"),
        (tmp_path / "f.qnn", "is a directory"),
        (Path("/proc/m.qnn"), "Nothing can be written into /proc"),
    ):
        assert main([*verb, "--model-path", str(model), "--output-path", str(output)]) == 1
        assert says in capsys.readouterr().err
    assert model.read_bytes() == conv.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.qnn", "m.onnx", "m.qnn"]


def test_inspect_shows_what_is_in_it(artifact, tmp_path):
    text = qhost("inspect", artifact, "--nodes")
    for expected in ("sm8550 (soc_model 43)", "v75", "sm8650", "DDR read", "spill", "Conv2d",
                     "predicted", open_artifact(artifact).sha256[:16]):  # fmt: skip
        assert expected in text
    report = json.loads(qhost("inspect", artifact, "--json"))
    assert report["checksums"] == "ok"
    assert report["socs"]["sm8650"]["context"]["soc"] == "sm8650"
    assert report["socs"]["sm8650"]["figures"]["ddr_read_bytes"] > 0
    (graph,) = report["socs"]["sm8650"]["context"]["graphs"]
    assert graph["inputs"][0]["shape"] == [1, 3, 16, 16]
    binary = tmp_path / "c.bin"
    binary.write_bytes(open_artifact(artifact).read("contexts/sm8550/context.bin"))
    assert json.loads(qhost("inspect", binary, "--json"))["soc"] == "sm8550"
    assert "v73" in qhost("inspect", binary)
    for option in ("--nodes", "--tensors", "--schedule"):
        with pytest.raises(UserError, match="is a bare context"):
            qhost("inspect", binary, option)
    with pytest.raises(UserError, match="Add one of them"):
        qhost("inspect", artifact, "--device", "sm8550")
    with pytest.raises(UserError, match="is a directory"):
        qhost("inspect", tmp_path)


def test_inspect_shows_the_encodings_of_an_artifact_too(artifact, small_stack, tmp_path):
    """They are those of the graph that it was compiled from."""
    out = tmp_path / "stack.qnn"
    qhost("compile", "--model-path", small_stack, "--output-path", out, "--device", "sm8650")
    report = json.loads(qhost("inspect", out, "--tensors", "--json"))
    assert report["checksums"] == "ok"
    assert report["tensors"] == json.loads(qhost("inspect", small_stack, "--tensors", "--json"))
    assert "tensors" not in json.loads(qhost("inspect", out, "--json"))
    assert "w1" in qhost("inspect", out, "--tensors").partition("quantized tensors")[2]
    assert "it is a float model" in qhost("inspect", artifact, "--tensors")


def test_inspect_tensors_shows_what_the_graph_says(small_stack, tmp_path):
    """The encodings are those that the file of the graph was written with."""
    rows = {r["name"]: r for r in json.loads(qhost("inspect", small_stack, "--tensors", "--json"))}
    assert rows["x"]["role"] == "activation"
    assert (rows["x"]["dtype"], rows["x"]["zero_point_min"]) == ("uint16", 32768)
    assert rows["x"]["scale_min"] == pytest.approx(8.0 / 65535)
    assert rows["x"]["shape"] == [1, 3, *rows["x"]["shape"][2:]]
    assert (rows["w1"]["role"], rows["w1"]["dtype"], rows["w1"]["scales"]) == (
        "constant", "uint8", 1,
    )  # fmt: skip
    text = qhost("inspect", small_stack, "--tensors")
    assert "w1" in text and "0.00012207" in text and "32768" in text
    with pytest.raises(UserError, match="is a model, not a compiled context"):
        qhost("inspect", small_stack)


def test_inspect_refuses_damage_and_swapped_contexts(artifact, tmp_path):
    data = bytearray(artifact.read_bytes())
    data[len(data) // 2] ^= 4
    bad = tmp_path / "bad.qnn"
    bad.write_bytes(data)
    with pytest.raises(UserError, match="not a valid artifact"):
        qhost("inspect", bad)
    with pytest.raises(UserError, match="does not exist"):
        qhost("inspect", tmp_path / "none.qnn")
    with pytest.raises(UserError, match="Nothing to inspect"):
        qhost("inspect")


def test_fallback_names_every_refused_node(refused, conv):
    text = qhost("inspect", "--fallback", refused)
    assert "determinant" in text
    assert "Det" in text
    rows = json.loads(qhost("inspect", "--fallback", refused, "--json"))
    assert [(r["node"], r["op_type"]) for r in rows] == [("determinant", "Det")]
    assert "takes every node" in qhost("inspect", "--fallback", conv, "--device", "sm8550")


def test_schedule_agrees_with_the_compilers_summary(artifact):
    schedules = json.loads(qhost("inspect", artifact, "--schedule", "--json"))
    opened = open_artifact(artifact)
    assert set(schedules) == {"sm8550", "sm8650"}
    for soc, schedule in schedules.items():
        figures = opened.soc(soc)["figures"]
        assert schedule["dram_read_bytes"] == figures["ddr_read_bytes"]
        assert schedule["dram_write_bytes"] == figures["ddr_write_bytes"]
        assert 0 < schedule["vtcm_peak_bytes"] <= 8 << 20
        assert max(schedule["vtcm_over_time"]) == schedule["vtcm_peak_bytes"]
        assert schedule["hmx"] >= 1
        assert sum(count for _, count in schedule["kinds"]) == schedule["operations"]
    assert "HMX" in qhost("inspect", artifact, "--schedule", "--device", "sm8650")


@pytest.fixture(scope="module")
def small_stack(folder):
    spec = importlib.util.spec_from_file_location("spill_graphs", ROOT / "tools/spill_graphs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.conv_stack(folder / "stack.onnx", 32, 4, layers=2)


def optimized(verb, model, out, *arguments):
    return qhost(verb, "--model-path", model, "--output-path", out, *arguments)


def test_optimize_keeps_what_it_cannot_better(small_stack, tmp_path):
    text = optimized("optimize", small_stack, tmp_path / "o.qnn", "--optimize", "memory,latency")
    assert "The input was kept" in text
    assert "as given" in text
    manifest = open_artifact(tmp_path / "o.qnn").manifest
    assert set(manifest["optimization"]["objectives"]) == {"memory", "latency"}


@pytest.mark.parametrize(
    ("arguments", "profile", "dcvs", "polling"),
    [
        (["--battery-mode", "efficient", "--dynamic-scaling"], "power_saver", True, 0),
        (["--dynamic-scaling", "enabled", "--battery-mode", "balanced"], "balanced", True, 0),
        (["--battery-mode", "performance", "--dynamic-scaling", "disabled"], "burst", False, 9999),
        (["--battery-mode", "performance", "--dynamic-scaling"], "balanced", True, 9999),
        (["--dynamic-scaling", "disabled"], "sustained_high_performance", False, 0),
        ([], "balanced", True, 0),
    ],
)
def test_run_settings_of_power_optimize(
    artifact, tmp_path, monkeypatch, arguments, profile, dcvs, polling
):
    """As far as the search, which they do not change."""
    given = []
    monkeypatch.setattr(optimize_verb, "_run", lambda *rest: given.append(rest[-1]))
    optimized("power-optimize", artifact, tmp_path / "o.qnn", "--device", "sm8650", *arguments)
    (settings,) = given
    assert (settings.perf_profile, settings.dcvs) == (profile, dcvs)
    assert settings.rpc_polling_us == polling


def test_power_optimize_stores_run_settings(artifact, tmp_path):
    out = tmp_path / "o.qnn"
    text = optimized(
        "power-optimize", artifact, out, "--device", "sm8650",
        "--battery-mode", "performance", "--dynamic-scaling", "disabled",
    )  # fmt: skip
    settings = open_artifact(out).manifest["run_settings"]
    assert (settings["perf_profile"], settings["dcvs"]) == ("burst", False)
    assert settings["rpc_polling_us"] == 9999
    assert "not predicted by any figure" in text


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["--dynamic-scaling"], ["--dynamic-scaling", "enabled"]),
        (["--dynamic-scaling", "--device", "x"], ["--dynamic-scaling", "enabled", "--device", "x"]),
        (["--dynamic-scaling", "disabled"], ["--dynamic-scaling", "disabled"]),
        (["--dynamic-scaling=disabled"], ["--dynamic-scaling=disabled"]),
    ],
)
def test_an_option_that_may_stand_bare(given, read):
    assert normalised(["power-optimize", *given]) == ["power-optimize", *read]


def test_a_power_saver_cannot_hold_its_clock(small_stack, tmp_path):
    with pytest.raises(UserError, match="No profile of battery mode efficient holds"):
        optimized(
            "power-optimize", small_stack, tmp_path / "o.qnn",
            "--battery-mode", "efficient", "--dynamic-scaling", "disabled",
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["enabled"], ["--dynamic-scaling", "maybe"]])
def test_stray_words_are_no_scaling(small_stack, tmp_path, words, capsys):
    out = tmp_path / "o.qnn"
    code = main(
        ["power-optimize", "--model-path", str(small_stack), "--output-path", str(out), *words]
    )
    assert code == 2
    assert "qhost: error: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_memory_optimize_searches_what_it_was_told_to(artifact, tmp_path):
    text = optimized(
        "memory-optimize", artifact, tmp_path / "o.qnn",
        "--cache-config", "balanced", "--tiling-strategy", "default", "--device", "sm8650",
    )  # fmt: skip
    assert "vtcm_mb=4" in text
    assert "finalization_mode" not in text
    opened = open_artifact(tmp_path / "o.qnn")
    assert opened.socs == ("sm8650",)
    assert open_artifact(artifact).manifest["model"] == opened.manifest["model"]
