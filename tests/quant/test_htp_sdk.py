"""The SDK back end against stand-in executables that check what they are given."""

import json
import stat
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from quant.artifact import open_artifact
from quant.build import BuildRequest, build
from quant.errors import ToolchainError, UserError
from quant.htp.compile import compile_context
from quant.htp.emulator import HtpEmulator
from quant.htp.options import HtpOptions
from quant.htp.overrides import float_graph_and_overrides
from quant.htp.package import PackageRequest, package
from quant.htp.sdk import choose_compiler, compile_with_sdk
from quant.htp.search import Space, parse_objectives
from quant.htp.soc import get_soc
from quant.optimize import optimize_artifact

SOC = get_soc("sm8650")

CONVERTER = """
import json, sys
import onnx
order = sys.argv[1:]
assert order[0::2][:3] == ["--input_network", "--output_path", "--target_backend"], order
assert order[5] == "HTP" and order[6] == "--preserve_io_datatype", order
model = onnx.load(order[1])
onnx.checker.check_model(model)
kinds = {n.op_type for n in model.graph.node}
if "Det" in kinds:
    print("INFO converting")
    print("ERROR_OP_NOT_SUPPORTED: Det of node determinant")
    sys.exit(1)
assert not kinds & {"QuantizeLinear", "DequantizeLinear"}, kinds
assert order[7] == "--quantization_overrides", order
overrides = json.load(open(order[8]))
tensors = {t for n in model.graph.node for t in [*n.input, *n.output]}
assert set(overrides["activation_encodings"]) <= tensors, overrides
open(order[3], "w").write(json.dumps(overrides))
"""

GENERATOR = """
import json, os, shutil, sys
args = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert set(args) == {"--dlc_path", "--backend", "--config_file", "--binary_file", "--output_dir",
                     "--log_level"}, args
json.load(open(args["--dlc_path"]))
assert os.path.basename(args["--backend"]) == "libQnnHtp.so"
outer = json.load(open(args["--config_file"]))
extension = outer["backend_extensions"]
assert os.path.basename(extension["shared_library_path"]) == "libQnnHtpNetRunExtensions.so"
htp = json.load(open(extension["config_file_path"]))
shutil.copyfile(extension["config_file_path"], "{root}/htp.json")
shutil.copyfile(args["--config_file"], "{root}/outer.json")
os.makedirs(args["--output_dir"], exist_ok=True)
shutil.copyfile("{root}/prepared.bin", os.path.join(args["--output_dir"], "context.bin"))
for name, value in (("spill", 1), ("fill", 2), ("write_total", 30), ("read_total", 40)):
    print(f"[ VERBOSE ] {{name}}_bytes={{value}}")
"""


def qdq_model(path):
    rng = np.random.default_rng(0)
    init = {
        "s": np.float32(0.05),
        "z": np.uint8(120),
        "wq": rng.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8),
        "ws": np.array([0.01, 0.02, 0.03, 0.04], np.float32),
        "wz": np.zeros(4, np.int8),
        "bq": np.array([5, -5, 7, 0], np.int32),
        "bs": np.array([0.0005, 0.001, 0.0015, 0.002], np.float32),
        "bz": np.zeros(4, np.int32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], axis=0),
        helper.make_node("DequantizeLinear", ["bq", "bs", "bz"], ["bd"], axis=0),
        helper.make_node("Conv", ["xd", "wd", "bd"], ["c"], "conv"),
        helper.make_node("QuantizeLinear", ["c", "s", "z"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "s", "z"], ["y"]),
    ]
    return save(path, nodes, init, [1, 4, 6, 6])


def save(path, nodes, init, shape_out):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape_out)],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in init.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path
    )
    return path


@pytest.fixture
def sdk(tmp_path, monkeypatch):
    """An SDK directory with stand-ins; the context they hand out is a real one."""
    root = tmp_path / "sdk"
    tools = root / "bin" / "x86_64-linux-clang"
    tools.mkdir(parents=True)
    for name, code in (("qairt-converter", CONVERTER), ("qnn-context-binary-generator", GENERATOR)):
        text = code if name == "qairt-converter" else code.replace("{root}", str(root))
        text = text.replace("{{", "{").replace("}}", "}")
        (tools / name).write_text(f"#!{sys.executable}\n{text}")
        (tools / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("QAIRT_SDK_ROOT", str(root))
    return root


def prepare(sdk, tmp_path, soc=SOC):
    model = qdq_model(tmp_path / "m.onnx")
    real = compile_context(model, soc, HtpOptions(), tmp_path / "real")
    (sdk / "prepared.bin").write_bytes(real.context_bin.read_bytes())
    return model, real


def test_command_lines_files_and_figures(sdk, tmp_path):
    model, real = prepare(sdk, tmp_path)
    options = HtpOptions(finalization_mode=3, vtcm_mb=4, priority="high")
    done = compile_with_sdk(model, SOC, options, tmp_path / "out")
    assert (done.figures.spill_bytes, done.figures.fill_bytes) == (1, 2)
    assert (done.figures.ddr_write_bytes, done.figures.ddr_read_bytes) == (30, 40)
    assert done.toolchain["qairt"] == real.info.build_id
    htp = json.loads((sdk / "htp.json").read_text())
    assert htp["devices"] == [{"soc_model": 57, "dsp_arch": "v75", "pd_session": "unsigned"}]
    assert htp["graphs"] == [
        {"graph_names": ["model"], "vtcm_mb": 4, "O": 3, "fp16_relaxed_precision": 1}
    ]
    outer = json.loads((sdk / "outer.json").read_text())
    assert outer["context_configs"] == {"context_priority": "high"}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["context.bin", "context.onnx"]


def test_the_wrapper_made_for_a_foreign_context_runs(sdk, tmp_path):
    model, real = prepare(sdk, tmp_path)
    done = compile_with_sdk(model, SOC, HtpOptions(), tmp_path / "out")
    feeds = [{"x": np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)}]
    with HtpEmulator(real.context_onnx) as one, HtpEmulator(done.context_onnx) as two:
        np.testing.assert_array_equal(one.run(feeds)[0]["y"], two.run(feeds)[0]["y"])


def test_a_build_for_a_device_that_runs_the_sdk_is_compiled_by_it(sdk, tmp_path):
    _, real = prepare(sdk, tmp_path)
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(4, 3, 3, 3)).astype(np.float32) * 0.1}
    conv = [helper.make_node("Conv", ["x", "w"], ["y"], "conv")]
    model = save(tmp_path / "float.onnx", conv, weights, [1, 4, 6, 6])
    request = BuildRequest(
        model, "int8", "sm8650", tmp_path / "cache", emulator_samples=1, backend="qairt"
    )
    artifact = open_artifact(build(request, lambda stage, seconds: None).artifact)
    toolchain = artifact.soc("sm8650")["toolchain"]
    assert toolchain == {"backend": "qairt-sdk", "qairt": real.info.build_id}
    assert artifact.read("contexts/sm8650/context.bin") == real.context_bin.read_bytes()
    assert build(request, lambda stage, seconds: None).cached
    # Another compiler, or another SDK, is another artifact.
    generator = sdk / "bin" / "x86_64-linux-clang" / "qnn-context-binary-generator"
    generator.write_text(generator.read_text() + "# of another version\n")
    again = build(request, lambda stage, seconds: None)
    assert not again.cached and again.artifact != artifact.path


def test_refusal_and_death(sdk, tmp_path):
    nodes = [helper.make_node("Det", ["x"], ["y"], "determinant")]
    model = save(tmp_path / "d.onnx", nodes, {}, [1, 3])
    with pytest.raises(UserError, match=r"qairt-converter refuses d\.onnx: ERROR_OP_NOT_SUPPORTED"):
        compile_with_sdk(model, SOC, HtpOptions(), tmp_path / "out")
    tool = sdk / "bin" / "x86_64-linux-clang" / "qnn-context-binary-generator"
    tool.write_text("#!/bin/sh\necho 'ERROR: about to fail'\nkill -ABRT $$\n")
    model, _ = prepare(sdk, tmp_path)
    with pytest.raises(ToolchainError, match=r"killed by SIGABRT .*about to fail"):
        compile_with_sdk(model, SOC, HtpOptions(), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_context_for_another_part_is_noticed(sdk, tmp_path):
    model, _ = prepare(sdk, tmp_path, get_soc("sm8550"))
    with pytest.raises(ToolchainError, match="asked for soc_model 57, v75 and wrote soc_model 43"):
        compile_with_sdk(model, SOC, HtpOptions(), tmp_path / "out")


def test_choice_of_back_end(sdk, tmp_path, monkeypatch):
    assert choose_compiler("auto") is compile_with_sdk
    assert choose_compiler("ort") is compile_context
    monkeypatch.setenv("QAIRT_SDK_ROOT", str(tmp_path))
    with pytest.raises(UserError, match="not a QAIRT SDK for this host"):
        compile_with_sdk(qdq_model(tmp_path / "m.onnx"), SOC, HtpOptions(), tmp_path / "out")
    monkeypatch.delenv("QAIRT_SDK_ROOT")
    assert choose_compiler("auto") is compile_context
    with pytest.raises(UserError, match="QAIRT_SDK_ROOT is not set"):
        compile_with_sdk(qdq_model(tmp_path / "m.onnx"), SOC, HtpOptions(), tmp_path / "out")
    with pytest.raises(UserError, match="Unknown back end 'sdk'"):
        choose_compiler("sdk")
    monkeypatch.setenv("QAIRT_SDK_ROOT", str(sdk))
    with pytest.raises(UserError, match="monolithic_lstm has no known name"):
        compile_with_sdk(
            qdq_model(tmp_path / "m.onnx"), SOC, HtpOptions(monolithic_lstm=True), tmp_path / "out"
        )


def test_overrides_say_what_the_qdq_graph_said(tmp_path):
    model = onnx.load(qdq_model(tmp_path / "m.onnx"))
    plain, overrides = float_graph_and_overrides(model)
    assert [n.op_type for n in plain.graph.node] == ["Conv"]
    x = overrides["activation_encodings"]["x"]
    assert x == [
        {
            "bitwidth": 8,
            "dtype": "int",
            "is_symmetric": "False",
            "offset": -120,
            "scale": pytest.approx(0.05),
            "min": pytest.approx(-6.0),
            "max": pytest.approx(6.75),
        }
    ]
    assert overrides["activation_encodings"]["y"] == x
    rows = overrides["param_encodings"]["wd"]
    assert [r["scale"] for r in rows] == pytest.approx([0.01, 0.02, 0.03, 0.04])
    assert {(r["offset"], r["is_symmetric"]) for r in rows} == {(-128, "True")}
    assert "bd" not in overrides["param_encodings"]
    # Without its rounding the float graph computes what the QDQ graph rounds.
    feed = {"x": (np.random.default_rng(0).integers(-20, 20, (1, 3, 8, 8)) * 0.05).astype("f4")}
    want = ort.InferenceSession(model.SerializeToString()).run(None, feed)[0]
    got = ort.InferenceSession(plain.SerializeToString()).run(None, feed)[0]
    clipped = np.clip(got, -6.0, 6.75)
    assert np.abs(clipped - want).max() <= 0.0251


def test_block_encodings_cannot_be_expressed(tmp_path):
    init = {
        "w": np.ones((4, 4), np.int8),
        "s": np.ones((2, 4), np.float32),
        "z": np.zeros((2, 4), np.int8),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"], axis=0, block_size=2),
        helper.make_node("MatMul", ["x", "wd"], ["y"]),
    ]
    model = onnx.load(save(tmp_path / "b.onnx", nodes, init, [1, 3, 8, 4]))
    with pytest.raises(UserError, match="block-wise encodings"):
        float_graph_and_overrides(model)


def test_optimize_compiles_with_what_compiled_the_artifact(sdk, tmp_path, monkeypatch):
    """A device that runs the SDK's libraries refuses contexts of a newer toolchain."""
    model, _ = prepare(sdk, tmp_path)
    request = PackageRequest(model, tmp_path / "in.qnn", (SOC,), golden_samples=1)
    artifact, _ = package(request, lambda r: None, compile_with_sdk)
    (sdk / "htp.json").unlink()
    done = optimize_artifact(
        artifact,
        tmp_path / "out.qnn",
        parse_objectives("memory"),
        space=Space(rewrites=False, strips=False),
    )
    toolchains = {c.toolchain["backend"] for t in done.trials for c in t.compiled.values()}
    assert toolchains == {"qairt-sdk"}
    assert (sdk / "htp.json").exists()
    (spill_buffer,) = [t for t in done.trials if t.name == "spill_fill_buffer=True"]
    assert spill_buffer.verdict.startswith("refused: spill_fill_buffer belongs to loading")
    monkeypatch.delenv("QAIRT_SDK_ROOT")
    with pytest.raises(UserError, match="QAIRT_SDK_ROOT is not set"):
        optimize_artifact(artifact, tmp_path / "o2.qnn", parse_objectives("memory"))
    assert not (tmp_path / "o2.qnn").exists()
