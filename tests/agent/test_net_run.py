"""net_run against stand-ins of the SDK's tools that record what they are given."""

from __future__ import annotations

import json
import math
import signal
import stat
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agent.errors import BadArtifact, BadRequest, DeviceFailure, Killed
from agent.runtime import BlockLimits, Context, Tensor, qnn_tools
from agent.runtime.net_run import NetRunRuntime, two_lengths

MS = 1_000_000

# Both tools: append what they see to `calls`, then do as behave.json in their folder says.
TOOL = """
import json, os, sys, time
from pathlib import Path
here, name = Path(sys.argv[0]).parent, Path(sys.argv[0]).name
args = dict(zip(sys.argv[1::2], sys.argv[2::2]))
files = {p.name: p.read_text() for p in Path(".").iterdir() if p.suffix in (".json", ".txt")}
raws = {p.name: list(p.read_bytes()) for p in Path(".").glob("*.raw")}
with (here / "calls").open("a") as calls:
    calls.write(json.dumps({"tool": name, "argv": sys.argv[1:], "env": dict(os.environ),
                            "cwd": os.getcwd(), "files": files, "raws": raws}) + "\\n")
behave = json.loads((here / "behave.json").read_text())
mine = behave.get(name, {})
if "say" in mine:
    print(mine["say"], file=sys.stderr)
if "signal" in mine:
    os.kill(os.getpid(), mine["signal"])
if mine.get("code"):
    sys.exit(mine["code"])
if name == "qnn-net-run":
    count = int(sys.argv[sys.argv.index("--num_inferences") + 1])
else:
    count = json.loads(Path(args["--config"]).read_text())["testCase"]["threads"][0]["loop"]
time.sleep(behave["overhead_s"] + count * behave["latency_s"])
if name == "qnn-net-run":
    kept = int(sys.argv[sys.argv.index("--keep_num_outputs") + 1])
    for index in range(kept):
        result = Path(f"out/Result_{index}")
        result.mkdir(parents=True)
        for output, data in behave["outputs"].items():
            (result / output).write_bytes(bytes(data))
    stamp = "emulated: true  # no\\n" if behave["stamped"] else ""
    (result.parent / "execution_metadata.yaml").write_text(stamp + "inferences_completed: 1\\n")
    if "--profiling_level" in sys.argv and behave["profile"]:
        (result.parent / "qnn-profiling-data_0.log").write_bytes(b"\\x00binary log")
else:
    said = {"emulated": True} if behave["stamped"] else {"result": []}
    Path(args["--output"]).write_text(json.dumps(said))
"""
INPUTS = (Tensor("image", "ufixed8", (1, 4)), Tensor("a/b:0", "float32", (1,)))
OUTPUTS = (Tensor("class", "ufixed16", (1, 2)), Tensor("box", "float32", (1,)))
FEED = {"image": np.array([[1, 2, 3, 4]], np.uint8), "a/b:0": np.array([0.5], np.float32)}
WRITTEN = {"class_native.raw": [1, 0, 2, 1], "box.raw": [0, 0, 0, 64]}
QUICK = BlockLimits(8, 0, 300 * MS)


class Tools:
    """The folder that a device has the SDK's files in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for name in (qnn_tools.NET_RUN, qnn_tools.THROUGHPUT):
            (folder / name).write_text(f"#!{sys.executable} -IS\n{TOOL}")
            (folder / name).chmod(stat.S_IRWXU)
        self.behave()

    def behave(self, **changes: object) -> None:
        """A tool's name with code, say or signal; outputs, stamped, profile."""
        usual = {
            "overhead_s": 0.0, "latency_s": 3e-3, "outputs": WRITTEN, "stamped": False,
            "profile": True,
        }  # fmt: skip
        spoken = {name.replace("_", "-"): v for name, v in changes.items() if isinstance(v, dict)}
        rest = {name: v for name, v in changes.items() if name in usual}
        (self.folder / "behave.json").write_text(json.dumps({**usual, **spoken, **rest}))

    @property
    def calls(self) -> list[dict]:
        lines = (self.folder / "calls").read_text().splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture
def tools(tmp_path):
    return Tools(tmp_path / "qnn")


@pytest.fixture
def context(tmp_path):
    binary = tmp_path / "context.bin"
    binary.write_bytes(b"context")
    return Context(
        tmp_path / "context.onnx", binary, "", 57, "burst", inputs=INPUTS, outputs=OUTPUTS
    )


@pytest.fixture
def runtime(tools, tmp_path):
    return NetRunRuntime(
        tools.folder, tmp_path / "work", tmp_path / "logs/net_run.log", 75, emulated=False
    )


def test_every_argument_variable_and_key_of_a_load(runtime, tools, context, tmp_path):
    with_rpc = replace(context, rpc_control_latency_us=100, rpc_polling_us=9999)
    loaded = runtime.load(with_rpc)
    assert loaded.seconds > 0 and loaded.peak_memory_bytes >= 0
    (call,) = tools.calls
    folder, work = str(tools.folder), str(tmp_path / "work")
    assert (call["tool"], call["cwd"]) == ("qnn-net-run", work)
    assert call["argv"] == [
        "--retrieve_context", str(context.binary), "--backend", f"{folder}/libQnnHtp.so",
        "--input_list", "inputs.txt", "--output_dir", "out", "--use_native_input_files",
        "--use_native_output_files", "--num_inferences", "1", "--keep_num_outputs", "1",
        "--perf_profile", "burst", "--config_file", "extensions.json", "--log_level", "error",
    ]  # fmt: skip
    env = call["env"]
    assert env["LD_LIBRARY_PATH"] == folder
    assert env["ADSP_LIBRARY_PATH"] == f"{folder};/vendor/dsp/cdsp;/vendor/lib/rfsa/adsp;/dsp"
    assert not [name for name in env if name.startswith(("PYTHON", "QHOST"))]
    files = call["files"]
    assert files["inputs.txt"] == "image:=x0-0.raw a/b:0:=x0-1.raw\n"
    assert call["raws"] == {"x0-0.raw": [0] * 4, "x0-1.raw": [0] * 4}
    assert json.loads(files["extensions.json"]) == {
        "backend_extensions": {
            "shared_library_path": f"{folder}/libQnnHtpNetRunExtensions.so",
            "config_file_path": f"{work}/htp.json",
        }
    }
    core = {"perf_profile": "burst", "rpc_control_latency": 100, "rpc_polling_time": 9999}
    assert json.loads(files["htp.json"]) == {
        "devices": [{"soc_model": 57, "dsp_arch": "v75", "pd_session": "unsigned", "cores": [core]}]
    }


def test_a_v68_gets_no_polling_and_unset_settings_stay_the_tools_own(context):
    polling = replace(context, rpc_polling_us=9999)
    (device,) = qnn_tools.htp_config(polling, 68)["devices"]
    assert device["cores"] == [{"perf_profile": "burst"}]


def test_inputs_go_in_and_outputs_come_back_in_native_types(runtime, tools, context):
    runtime.load(context)
    outputs = runtime.outputs(FEED)
    assert tools.calls[-1]["raws"] == {"x0-0.raw": [1, 2, 3, 4], "x0-1.raw": [0, 0, 0, 63]}
    assert outputs["class"].dtype == np.uint16 and outputs["class"].tolist() == [[1, 258]]
    assert outputs["box"].dtype == np.float32 and outputs["box"].tolist() == [2.0]
    assert math.isnan(runtime.first_inference(FEED))


def test_many_samples_are_one_process(runtime, tools, context):
    runtime.load(context)
    before = len(tools.calls)
    outputs = runtime.outputs_of([FEED] * 3)
    assert [o["box"].tolist() for o in outputs] == [[2.0]] * 3
    (call,) = tools.calls[before:]
    assert call["files"]["inputs.txt"].count("\n") == 3
    numbers = dict(zip(call["argv"], call["argv"][1:], strict=False))
    assert (numbers["--num_inferences"], numbers["--keep_num_outputs"]) == ("3", "3")


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ({"box.raw": [0] * 4}, "wrote no output 'class'"),
        ({"class_native.raw": [0], "box.raw": [0] * 4}, r"wrote 1 bytes of output 'class', \(1, 2"),
    ],
)
def test_output_of_another_shape_is_refused(runtime, tools, context, outputs, words):
    tools.behave(outputs=outputs)
    runtime.load(context)
    with pytest.raises(BadArtifact, match=words):
        runtime.outputs(FEED)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image": np.full((1, 4), 1.5, np.float32)}, "'image' is float32, the context takes uf"),
        ({"image": np.zeros((1, 5), np.uint8)}, r"'image' is \(1, 5\)"),
        ({"image": None}, "no input 'image'"),
    ],
)
def test_an_input_that_would_be_changed_is_refused(runtime, context, change, words):
    runtime.load(context)
    feed = {k: v for k, v in {**FEED, **change}.items() if v is not None}
    with pytest.raises(BadArtifact, match=words):
        runtime.outputs(feed)
    whole = {"image": FEED["image"].astype(np.int64)}  # the same values in a wider type are fine
    assert runtime.outputs({**FEED, **whole})["box"].tolist() == [2.0]


def test_without_the_manifests_tensor_list_nothing_runs(runtime, context):
    with pytest.raises(BadArtifact, match="does not list the context's inputs"):
        runtime.load(replace(context, inputs=()))


def test_a_block_is_two_runs_of_the_throughput_tool(runtime, tools, context, tmp_path):
    runtime.load(context)
    block = runtime.run_block([FEED, FEED], QUICK, lambda: False)
    assert block.window_method == "two_lengths" and block.per_iteration_us is None
    assert block.inferences >= 8
    timed = [c for c in tools.calls if c["tool"] == "qnn-throughput-net-run"]
    assert timed[0]["argv"] == ["--config", "throughput.json", "--output", "throughput-out.json"]
    configs = [json.loads(call["files"]["throughput.json"]) for call in timed]
    loops = [config["testCase"]["threads"][0].pop("loop") for config in configs]
    # A trial, the short run, and longer ones until the difference is more than noise.
    assert loops[:3] == [1, 1, 64] and loops[-1] >= block.inferences
    folder = str(tools.folder)
    assert configs[-1] == {
        "backends": [
            {
                "backendName": "htp",
                "backendPath": f"{folder}/libQnnHtp.so",
                "profilingLevel": "OFF",
                "backendExtensions": f"{folder}/libQnnHtpNetRunExtensions.so",
                "perfProfile": "burst",
            }
        ],
        "models": [
            {
                "modelName": "model",
                "modelPath": str(context.binary),
                "loadFromCachedBinary": True,
                "inputPath": "inputs.txt",
                "inputDataType": "NATIVE",
                "outputPath": "throughput",
                "outputDataType": "NATIVE_ONLY",
                "saveOutput": "NONE",
            }
        ],
        "contexts": [{"contextName": "context"}],
        "testCase": {
            "iteration": 1,
            "logLevel": "error",
            "threads": [
                {
                    "threadName": "thread",
                    "backend": "htp",
                    "context": "context",
                    "model": "model",
                    "interval": 0,
                    "loopUnit": "count",
                }
            ],
        },
    }
    assert timed[-1]["files"]["inputs.txt"].splitlines() == [
        "image:=x0-0.raw a/b:0:=x0-1.raw", "image:=x1-0.raw a/b:0:=x1-1.raw",
    ]  # fmt: skip
    # What was learnt is kept: the next block needs no guesses.
    before = len(tools.calls)
    runtime.run_block([FEED], QUICK, lambda: False)
    assert len(tools.calls) - before <= 4


def test_settings_that_only_net_run_knows_are_timed_by_it(runtime, tools, context):
    runtime.load(replace(context, rpc_control_latency_us=50))
    block = runtime.run_block([FEED], QUICK, lambda: False)
    assert block.window_method == "two_lengths_io"
    assert {call["tool"] for call in tools.calls} == {"qnn-net-run"}


def test_a_throughput_tool_that_fails_leaves_the_timing_to_net_run(runtime, tools, context):
    tools.behave(qnn_throughput_net_run={"code": 1, "say": "unknown key saveOutput"})
    runtime.load(context)
    assert runtime.run_block([FEED], QUICK, lambda: False).window_method == "two_lengths_io"


def test_the_window_holds_inferences_alone_wherever_the_overhead_lies():
    latency, overhead, count, start = 2 * MS, 70 * MS, 500, 1_000 * MS
    short = overhead + latency
    long = (start, start + overhead + count * latency)
    block = two_lengths(short, long, count, qnn_tools.THROUGHPUT)
    assert block.inferences == count - overhead // latency
    assert (block.t_last_ns - block.t_first_ns) / block.inferences == pytest.approx(latency)
    for before in (0, overhead // 3, overhead):  # the share of the overhead that comes first
        assert block.t_first_ns >= start + before
        assert block.t_last_ns <= long[1] - (overhead - before)


def test_noise_that_eats_the_difference_gives_no_negative_time():
    block = two_lengths(100 * MS, (0, 90 * MS), 64, qnn_tools.NET_RUN)
    assert block.inferences == 1 and block.t_last_ns >= block.t_first_ns


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("[ERROR] Failed to create device: 14001", "14001: the DSP does not find its half"),
        ("Error in dspCreate err 1002", "1002: the DSP refuses these libraries"),
        ("ERROR: transport 1008\ncleaning up", "1008: the DSP refuses these libraries"),
        ("[ ERROR ] QnnBackend_create failed, error 4000", "4000: the HTP cannot be initialised"),
        ("[INFO] a\nERROR: no such context", "ended with status 3: ERROR: no such context"),
        ("", "it said nothing"),
    ],
)
def test_known_errors_are_explained(runtime, tools, context, said, words):
    tools.behave(qnn_net_run={"code": 3, "say": said})
    with pytest.raises(DeviceFailure) as caught:
        runtime.load(context)
    text = str(caught.value)
    assert words in text and "\n" not in text and text.startswith("qnn-net-run ended with")


def test_a_killed_tool_is_named_as_such(runtime, tools, context):
    tools.behave(qnn_net_run={"signal": int(signal.SIGKILL)})
    with pytest.raises(Killed, match="qnn-net-run was killed by signal 9"):
        runtime.load(context)


def test_a_missing_tool_is_one_line(runtime, tools, context):
    (tools.folder / "qnn-net-run").unlink()
    with pytest.raises(DeviceFailure, match="qnn-net-run cannot be started: No such file"):
        runtime.load(context)


@pytest.mark.parametrize("emulated", [True, False])
def test_a_stand_ins_output_never_passes_on_silicon(tools, context, tmp_path, emulated):
    tools.behave(stamped=True)
    runtime = NetRunRuntime(
        tools.folder, tmp_path / "work", tmp_path / "log", 75, emulated=emulated
    )
    if emulated:
        runtime.load(context)
        assert runtime.run_block([FEED], QUICK, lambda: False).window_method == "two_lengths"
        return
    with pytest.raises(DeviceFailure, match="stand-ins of an emulated one"):
        runtime.load(context)


def test_stopping_ends_the_tool_and_what_it_has_started(runtime, tools, context, tmp_path):
    runtime.load(context)
    mark = tmp_path / "pid"
    script = f"#!/bin/sh\nsleep 600 &\necho $! > {mark}\nwait\n"
    runtime.run_block([FEED], QUICK, lambda: False)  # the throughput tool has been chosen
    (tools.folder / "qnn-throughput-net-run").write_text(script)
    block = runtime.run_block([FEED], QUICK, lambda: mark.exists() and bool(mark.read_text()))
    assert block.inferences == 0
    command = Path(f"/proc/{mark.read_text().strip()}/cmdline")
    for _ in range(500):  # the kernel takes its moment
        if not command.exists() or not command.read_bytes():
            break
        time.sleep(0.01)
    else:
        pytest.fail("what the tool has started lives on")


def test_a_profile_is_the_tools_own_log(runtime, tools, context):
    profile = runtime.profile(context, [FEED], 7)
    assert (profile.kind, profile.data) == ("log", b"\x00binary log")
    (call,) = tools.calls
    assert call["argv"][-2:] == ["--profiling_level", "detailed"]
    assert call["argv"][call["argv"].index("--num_inferences") + 1] == "7"
    tools.behave(profile=False)
    with pytest.raises(DeviceFailure, match=r"wrote no qnn-profiling-data_0\.log"):
        runtime.profile(context, [FEED], 7)


def test_an_unknown_performance_profile_is_refused_before_anything_runs(runtime, tools, context):
    with pytest.raises(BadRequest, match="unknown perf_profile 'warp'"):
        runtime.load(replace(context, perf_profile="warp"))
    assert not (tools.folder / "calls").exists()
