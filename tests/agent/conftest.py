"""A real artifact (compiled for SM8650, executed in the HTP emulator) and a real agent process."""

from __future__ import annotations

import hashlib
import json
import secrets
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from protos import agent_pb2 as pb
from protos import agent_pb2_grpc

SOC = "sm8650"
DEVICE_MODEL = {
    "basis": "test",
    "latency_us": {
        "fixed": 40,
        "hmx": 300,
        "hvx": 200,
        "weights_ddr": 150,
        "io": 110,
        "total": 800,
    },
    "activity": {"macs": 3e8, "hmx_share": 0.4, "hvx_share": 0.3, "ddr_bytes": 4e6},
    "memory_bytes": 60_000_000,
    "load_s": {"cold": 0.2, "warm": 0.08},
}
_COMPILE = """
import sys, onnxruntime as ort, onnxruntime_qnn as qnn
model, out = sys.argv[1:]
ort.register_execution_provider_library("QNNExecutionProvider", qnn.get_library_path())
devices = [d for d in ort.get_ep_devices() if d.ep_name == "QNNExecutionProvider"]
so = ort.SessionOptions()
so.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
so.add_session_config_entry("ep.context_enable", "1")
so.add_session_config_entry("ep.context_embed_mode", "0")
so.add_session_config_entry("ep.context_file_path", out)
so.add_provider_for_devices(devices, {"backend_path": qnn.get_qnn_htp_path(), "soc_model": "57"})
ort.InferenceSession(model, so)
"""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="session")
def artifact_files(tmp_path_factory) -> dict[str, bytes]:
    """The files of an artifact: MatMul + Relu, two goldens from the HTP emulator."""
    from agent.runtime import Context
    from agent.runtime.ort_qnn import OrtQnnRuntime

    work = tmp_path_factory.mktemp("artifact")
    rng = np.random.default_rng(1)
    weight = (rng.standard_normal((16, 8)) * 0.3).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["m"], name="matmul"),
            helper.make_node("Relu", ["m"], ["y"], name="relu"),
        ],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 8])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, work / "model.onnx")
    subprocess.run(
        [sys.executable, "-c", _COMPILE, work / "model.onnx", work / "context.onnx"],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=work,
    )  # fmt: skip
    binary = next(work.glob("*.bin")).rename(work / "context.bin")
    wrapper = onnx.load(work / "context.onnx")
    for attribute in wrapper.graph.node[0].attribute:
        if attribute.name == "ep_cache_context":
            attribute.s = b"context.bin"
    onnx.save(wrapper, work / "context.onnx")
    context = Context(work / "context.onnx", binary, "", 57, "burst")
    runtime = OrtQnnRuntime(work / "log")
    files = {
        "manifest.json": json.dumps({"device_model": {SOC: DEVICE_MODEL}}).encode(),
        f"contexts/{SOC}/context.onnx": (work / "context.onnx").read_bytes(),
        f"contexts/{SOC}/{binary.name}": binary.read_bytes(),
    }
    try:
        runtime.load(context)
        for i in range(2):
            x = rng.standard_normal((4, 16)).astype(np.float32)
            outputs = runtime.outputs({"x": x})
            path = work / f"{i}.npz"
            np.savez(path, **{"input/x": x}, **{f"output/{k}": v for k, v in outputs.items()})
            files[f"golden/{SOC}/{i}.npz"] = path.read_bytes()
    finally:
        runtime.close()
    return files


class AgentProcess:
    """`python -P -m agent` on loopback and a stub for it."""

    def __init__(self, root: Path, *flags: str, soc: str = SOC) -> None:
        self.root = root
        self.token = secrets.token_urlsafe(24)
        root.mkdir(parents=True, exist_ok=True)
        token_file = root / "token"
        token_file.unlink(missing_ok=True)
        token_file.touch(mode=0o600)
        token_file.write_text(self.token)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "agent", "--emulate", soc, "--listen", "127.0.0.1:0",
             "--root", str(root), "--token-file", str(token_file), "--die-with-parent", *flags],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.ready = json.loads(self.process.stdout.readline())
        self.channel = grpc.insecure_channel(
            self.ready["address"], [("grpc.max_receive_message_length", 32 << 20)]
        )
        self.stub = agent_pb2_grpc.AgentStub(self.channel)

    @property
    def metadata(self):
        return (("authorization", f"Bearer {self.token}"), ("x-qhost-protocol", "1"))

    def call(self, method, request, timeout=30.0):
        return getattr(self.stub, method)(request, timeout=timeout, metadata=self.metadata)

    def put(self, files: dict[str, bytes], sha: str = "") -> str:
        sha = sha or sha256(repr(sorted(files)).encode() + b"".join(files.values()))
        self.call("PutArtifact", artifact_chunks(files, sha))
        return sha

    def follow(self, from_seq: int, ends: int):
        """Batches from from_seq on until `ends` segments have ended."""
        stream = self.call("Subscribe", pb.SubscribeRequest(from_seq=from_seq), timeout=30.0)
        batches = []
        for batch in stream:
            batches.append(batch)
            ends -= batch.HasField("end")
            if ends == 0:
                stream.cancel()
                break
        return batches

    def close(self) -> None:
        self.channel.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise
        for pipe in (self.process.stdin, self.process.stdout):
            pipe.close()


def artifact_chunks(files: dict[str, bytes], sha: str):
    total = sum(len(data) for data in files.values())
    yield pb.ArtifactChunk(header=pb.ArtifactHeader(sha256=sha, total_bytes=total))
    for name, data in files.items():
        yield pb.ArtifactChunk(file=pb.FileHeader(name=name, size=len(data), sha256=sha256(data)))
        for i in range(0, len(data), 1 << 20):
            yield pb.ArtifactChunk(data=data[i : i + (1 << 20)])


def children_of(pid: int) -> list[int]:
    """Process ids whose parent is `pid`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parts = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(parts[1]) == pid and parts[0] != "Z":
            found.append(int(path.parent.name))
    return found


def _check_segment(artifact: str, run_id: str = "run", **fields) -> pb.Segment:
    return pb.Segment(run_id=run_id, artifact=artifact, soc=SOC, kind=pb.CHECK, **fields)


def _block_segment(artifact: str, run_id: str = "run", **fields) -> pb.Segment:
    values = {
        "min_inferences": 64, "min_duration_ns": 1_000_000_000, "max_duration_ns": 60_000_000_000,
        "warmup_ns": 200_000_000, "idle_ns": 500_000_000, "sample_rate_hz": 100.0,
    } | fields  # fmt: skip
    return pb.Segment(run_id=run_id, artifact=artifact, soc=SOC, kind=pb.BLOCK, **values)


@pytest.fixture
def start_agent(tmp_path):
    """Starts agents in (by default) one root; all are closed at the end."""
    started: list[AgentProcess] = []

    def start(*flags: str, root: Path | None = None) -> AgentProcess:
        agent = AgentProcess(root or tmp_path / "agent", *flags)
        started.append(agent)
        return agent

    yield start
    for agent in started:
        agent.close()


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    """One agent for the tests of a module that leave it as they found it."""
    process = AgentProcess(tmp_path_factory.mktemp("shared") / "agent")
    yield process
    process.close()


@pytest.fixture(scope="module")
def artifact(agent, artifact_files) -> str:
    return agent.put(artifact_files)


@pytest.fixture
def check_segment():
    return _check_segment


@pytest.fixture
def block_segment():
    return _block_segment


@pytest.fixture
def chunks():
    return artifact_chunks


@pytest.fixture
def children():
    return children_of


@pytest.fixture
def device_model() -> dict:
    return DEVICE_MODEL
