"""The real compiler and emulator on graphs of a few nodes."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from quant.errors import ToolchainError, UserError
from quant.htp import compile as htp_compile
from quant.htp import emulator
from quant.htp.compile import compile_context, unsupported_nodes
from quant.htp.device_model import count_work, device_model_block
from quant.htp.emulator import HtpEmulator
from quant.htp.inspect import read_context
from quant.htp.options import HtpOptions
from quant.htp.soc import get_soc

FLOAT, UINT8 = TensorProto.FLOAT, TensorProto.UINT8


def save_graph(path, nodes, initializers, shape_out, external=False):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("y", FLOAT, shape_out)],
        [numpy_helper.from_array(a, n) for n, a in initializers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, path, save_as_external_data=external, location="w.data", size_threshold=0)
    return path


def weights():
    return np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32)


def float_conv(path, external=False):
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1, 1, 1, 1])]
    return save_graph(path, nodes, {"w": weights()}, [1, 8, 16, 16], external)


def qdq_conv(path):
    """Conv with 8-bit activations and per-tensor weights, input 0.02 and output 0.1 per step."""
    w = weights()
    init = {
        "xs": np.float32(0.02),
        "xz": np.uint8(128),
        "ys": np.float32(0.1),
        "yz": np.uint8(120),
        "wq": np.clip(np.round(w / 0.03), -127, 127).astype(np.int8),
        "ws": np.float32(0.03),
        "wz": np.int8(0),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"], name="q"),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"], name="dq"),
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], name="wdq"),
        helper.make_node("Conv", ["xd", "wd"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("QuantizeLinear", ["c", "ys", "yz"], ["cq"], name="cq"),
        helper.make_node("DequantizeLinear", ["cq", "ys", "yz"], ["y"], name="cdq"),
    ]
    return save_graph(path, nodes, init, [1, 8, 16, 16])


def refused_graph(path):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Det", ["c"], ["y"], name="determinant"),
    ]
    return save_graph(path, nodes, {"w": weights()}, [1, 8])


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qdq")
    return compile_context(
        qdq_conv(folder / "m.onnx"), get_soc("sm8650"), HtpOptions(), folder / "out"
    )


def feeds(count):
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(size=(1, 3, 16, 16)).astype(np.float32)} for _ in range(count)]


def test_metadata_names_the_target(compiled):
    info = read_context(compiled.context_bin)
    assert info == compiled.info
    assert (info.soc_model, info.arch) == (57, 75)
    assert info.build_id.startswith("v2.")
    (graph,) = info.graphs
    assert [(t.name, t.dtype, t.shape) for t in graph.inputs] == [("x", "float32", (1, 3, 16, 16))]
    assert [(t.name, t.shape) for t in graph.outputs] == [("y", (1, 8, 16, 16))]
    assert sorted(p.name for p in compiled.context_bin.parent.iterdir()) == [
        "context.bin",
        "context.onnx",
    ]


def test_compiler_figures_and_node_map(compiled):
    # At least the float input in and the float output out, however it pads them.
    assert compiled.figures.ddr_read_bytes >= 3 * 16 * 16 * 4
    assert compiled.figures.ddr_write_bytes >= 8 * 16 * 16 * 4
    assert (compiled.figures.spill_bytes, compiled.figures.fill_bytes) == (0, 0)
    assert any("Conv2d" in ops for ops in compiled.node_map.values())
    assert "VTCM Allocation" in compiled.stage_us


def test_two_builds_from_different_places_are_byte_identical(tmp_path):
    soc = get_soc("sm8650")
    one = compile_context(float_conv(tmp_path / "a.onnx"), soc, HtpOptions(), tmp_path / "1")
    (tmp_path / "elsewhere").mkdir()
    other = float_conv(tmp_path / "elsewhere" / "b.onnx", external=True)
    two = compile_context(other, soc, HtpOptions(), tmp_path / "2")
    assert one.context_bin.read_bytes() == two.context_bin.read_bytes()
    assert one.context_onnx.read_bytes() == two.context_onnx.read_bytes()
    assert str(tmp_path).encode() not in one.context_bin.read_bytes()


def test_options_and_soc_change_the_context(compiled, tmp_path):
    model = qdq_conv(tmp_path / "m.onnx")
    base = compiled.context_bin.read_bytes()
    high = compile_context(model, get_soc("sm8650"), HtpOptions(priority="high"), tmp_path / "p")
    other = compile_context(model, get_soc("sm8350"), HtpOptions(), tmp_path / "s")
    assert len({base, high.context_bin.read_bytes(), other.context_bin.read_bytes()}) == 3
    assert (other.info.soc_model, other.info.arch) == (30, 68)


def test_refusal_names_node_operator_and_reason(tmp_path):
    model = refused_graph(tmp_path / "m.onnx")
    with pytest.raises(UserError, match=r"'determinant' \(Det\): .*not supported"):
        compile_context(model, get_soc("sm8650"), HtpOptions(), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    (only,) = unsupported_nodes(model, get_soc("sm8650"), HtpOptions())
    assert (only.node, only.op_type) == ("determinant", "Det")


def test_float_model_on_a_part_without_fp16(tmp_path):
    soc = get_soc("qcs6490")
    with pytest.raises(UserError, match="qcs6490 has no fp16"):
        compile_context(float_conv(tmp_path / "m.onnx"), soc, HtpOptions(), tmp_path / "out")
    with pytest.raises(UserError, match="qcs6490 has no fp16"):
        unsupported_nodes(tmp_path / "m.onnx", soc, HtpOptions())
    done = compile_context(qdq_conv(tmp_path / "q.onnx"), soc, HtpOptions(), tmp_path / "out")
    assert done.info.soc_model == 93


def test_not_a_model(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"\x00garbage")
    with pytest.raises(UserError, match="not an ONNX model"):
        compile_context(tmp_path / "m.onnx", get_soc("sm8650"), HtpOptions(), tmp_path / "out")
    with pytest.raises(UserError, match="does not exist"):
        compile_context(tmp_path / "no.onnx", get_soc("sm8650"), HtpOptions(), tmp_path / "out")


def test_a_compiler_that_dies_is_reported_as_that(tmp_path, monkeypatch):
    """The stand-in is an executable: it takes the interpreter's place and kills itself."""
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\nkill -{signal.SIGSEGV.value} $$\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    model = float_conv(tmp_path / "m.onnx")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(fake))
        with pytest.raises(ToolchainError, match=r"killed by SIGSEGV while compiling m\.onnx"):
            compile_context(model, get_soc("sm8650"), HtpOptions(), tmp_path / "out")
    compile_context(model, get_soc("sm8650"), HtpOptions(), tmp_path / "out")


def test_a_compiler_that_hangs_is_stopped(tmp_path, monkeypatch):
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nexec sleep 600\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(fake))
    with pytest.raises(ToolchainError, match="did not finish"):
        compile_context(
            float_conv(tmp_path / "m.onnx"),
            get_soc("sm8650"),
            HtpOptions(),
            tmp_path / "out",
            timeout_s=0.2,
        )


def test_a_compiler_ends_with_its_parent(tmp_path):
    """A parent that is killed outright cannot stop its compiler; the kernel does."""
    code = (
        "import subprocess, sys, time\n"
        "from quant.htp.compile import worker_command\n"
        "child = subprocess.Popen(worker_command('compile'))\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    # The compiler waits on the parent's stdin, which stays open here: its end is not the cause.
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    child = int(parent.stdout.readline())
    try:
        deadline = time.monotonic() + 60
        # Blocked in reading its request: then it has asked for the signal.
        while "numpy" not in Path(f"/proc/{child}/maps").read_text() or state(child) != "S":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(1.0)
        parent.kill()
        parent.wait()
        while Path(f"/proc/{child}").exists() and state(child) != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        parent.stdin.close()
        parent.stdout.close()


def state(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_exit_code_in_words():
    assert htp_compile.died(-9) == "was killed by SIGKILL"
    assert htp_compile.died(3) == "ended with exit code 3"


def test_emulator_matches_the_arithmetic(compiled):
    batch = feeds(5)
    with HtpEmulator(compiled.context_onnx) as emulator:
        assert emulator.soc.id == "sm8650"
        outputs = emulator.run(batch)
    w = np.clip(np.round(weights() / 0.03), -127, 127) * np.float32(0.03)
    for feed, output in zip(batch, outputs, strict=True):
        x = (np.clip(np.round(feed["x"] / 0.02) + 128, 0, 255) - 128) * 0.02
        padded = np.pad(x[0], ((0, 0), (1, 1), (1, 1)))
        patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
        y = np.einsum("chwij,ocij->ohw", patches, w)
        want = (np.clip(np.round(y / 0.1) + 120, 0, 255) - 120) * 0.1
        # One quantization step of the output, where a sum falls between two steps.
        assert np.abs(output["y"][0] - want).max() <= 0.1001
        assert np.mean(np.abs(output["y"][0] - want) < 1e-4) > 0.9


def test_emulator_is_deterministic_whatever_the_number_of_processes(compiled):
    batch = feeds(4)
    with HtpEmulator(compiled.context_onnx, workers=1) as one:
        first = one.run(batch)
        again = one.run(batch)
    with HtpEmulator(compiled.context_onnx, workers=2) as two:
        second = two.run(batch)
    for a, b, c in zip(first, again, second, strict=True):
        np.testing.assert_array_equal(a["y"], b["y"])
        np.testing.assert_array_equal(a["y"], c["y"])


def test_emulator_refuses_another_soc_and_other_files(compiled, tmp_path):
    with pytest.raises(UserError, match="for sm8650, not for sm8550"):
        HtpEmulator(compiled.context_onnx, soc=get_soc("sm8550"))
    with pytest.raises(UserError, match="no compiled context"):
        HtpEmulator(float_conv(tmp_path / "m.onnx"))
    (tmp_path / "context.bin").write_bytes(compiled.context_bin.read_bytes()[:1000])
    wrapper = tmp_path / "context.onnx"
    wrapper.write_bytes(compiled.context_onnx.read_bytes())
    with pytest.raises(UserError, match="not a QNN context binary"):
        HtpEmulator(wrapper)


def test_emulator_failure_is_not_hidden_by_the_cpu(compiled):
    with HtpEmulator(compiled.context_onnx) as emulator:
        with pytest.raises(ToolchainError, match="emulator ended"):
            emulator.run([{"x": np.zeros((1, 3, 8, 8), np.float32)}])
        # A new process takes the place of the one that failed.
        (again,) = emulator.run(feeds(1))
    assert again["y"].shape == (1, 8, 16, 16)


def test_an_answer_that_cannot_be_had_leaves_no_gap_among_the_others(compiled, monkeypatch):
    """Whatever goes wrong: outputs must not move up to the place of another feed."""
    feeds = [{"x": np.zeros((1, 3, 32, 32), np.float32)} for _ in range(3)]

    def no_memory(self, feed):
        if feed is feeds[1]:
            raise MemoryError
        return {}

    monkeypatch.setattr(emulator._Worker, "run", no_memory)
    with HtpEmulator(compiled.context_onnx) as htp, pytest.raises(MemoryError):
        htp.run(feeds)


def test_reading_what_is_no_context(tmp_path):
    for content in (b"", b"\0" * 4096, os.urandom(4096)):
        (tmp_path / "c.bin").write_bytes(content)
        with pytest.raises(UserError, match="not a QNN context binary"):
            read_context(tmp_path / "c.bin")
    with pytest.raises(UserError, match="Cannot read"):
        read_context(tmp_path / "missing.bin")


def test_work_of_a_graph(tmp_path):
    macs = 16 * 16 * 8 * 3 * 3 * 3
    work = count_work(qdq_conv(tmp_path / "q.onnx"))
    assert work.dense_macs == {8: macs}
    assert work.io_bytes == (3 + 8) * 16 * 16 * 4
    assert work.vector_bytes == 0
    assert count_work(float_conv(tmp_path / "f.onnx")).dense_macs == {32: macs}


def test_depthwise_runs_on_the_vector_unit(tmp_path):
    w = np.ones((3, 1, 3, 3), np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="dw", pads=[1] * 4, group=3)
    work = count_work(save_graph(tmp_path / "d.onnx", [node], {"w": w}, [1, 3, 16, 16]))
    assert work.dense_macs == {}
    assert work.depthwise_macs == 16 * 16 * 3 * 9
    assert work.vector_bytes == 16 * 16 * 3 * 2  # fp16


def test_device_model_block(compiled, tmp_path):
    model = qdq_conv(tmp_path / "m.onnx")
    block = device_model_block(model, get_soc("sm8650"), compiled)
    parts = {k: v for k, v in block["latency_us"].items() if k != "total"}
    assert block["latency_us"]["total"] == pytest.approx(sum(parts.values()), abs=0.01)
    assert parts["fixed"] == 38.0
    assert parts["hmx"] == pytest.approx(30 * 55296 / 1e9, abs=6e-4)
    assert parts["io"] == pytest.approx(150 * 11264 / 1e6, abs=0.001)
    assert block["activity"]["ddr_bytes"] == compiled.figures.ddr_total_bytes
    assert "predicted" in block["basis"]
    assert "not measured" in block["basis"]
    slower = device_model_block(model, get_soc("sm8450"), compiled)
    assert slower["latency_us"]["total"] == pytest.approx(1.99 * block["latency_us"]["total"], 1e-3)


def test_compile_leaves_no_trace_of_the_vendor_on_stdout(tmp_path, capfd):
    compile_context(
        float_conv(tmp_path / "m.onnx"), get_soc("sm8650"), HtpOptions(), tmp_path / "o"
    )
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_missing_external_data(tmp_path):
    model = float_conv(tmp_path / "m.onnx", external=True)
    Path(tmp_path / "w.data").unlink()
    with pytest.raises(UserError, match=r"w\.data does not exist"):
        compile_context(model, get_soc("sm8650"), HtpOptions(), tmp_path / "out")
