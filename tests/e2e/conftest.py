"""A small model with labels, and qhost as its user runs it: a process of its own."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

SAMPLES = 48


def write_model(path: Path, seed: int = 0) -> None:
    """Conv 3x3 - Relu - depthwise Conv - Relu - GlobalAveragePool - Gemm over 1x1x12x12."""
    rng = np.random.default_rng(seed)

    def init(name: str, *shape: int) -> onnx.TensorProto:
        scale = 1.0 / np.sqrt(max(1, int(np.prod(shape[1:]))))
        return numpy_helper.from_array((rng.normal(size=shape) * scale).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["image", "w0", "b0"], ["c0"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c0"], ["r0"], name="relu0"),
        helper.make_node(
            "Conv", ["r0", "w1", "b1"], ["c1"], name="dw", pads=[1, 1, 1, 1], group=16
        ),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("GlobalAveragePool", ["r1"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w2", "b2"], ["logits"], name="fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 12, 12])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 5])],
        [
            init("w0", 16, 1, 3, 3),
            init("b0", 16),
            init("w1", 16, 1, 3, 3),
            init("b1", 16),
            init("w2", 5, 16),
            init("b2", 5),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def write_task(model: Path, path: Path, seed: int = 1) -> None:
    """Images whose labels are the float model's own answers: float accuracy is 1."""
    import onnxruntime as ort

    rng = np.random.default_rng(seed)
    images = rng.normal(size=(SAMPLES, 1, 12, 12)).astype(np.float32)
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    labels = [int(session.run(None, {"image": x[None]})[0].argmax()) for x in images]
    calibration = rng.normal(size=(32, 1, 12, 12)).astype(np.float32)
    np.savez(path, image=images, labels=np.array(labels), calibration_image=calibration)


@dataclass
class Lab:
    """A folder with a model, a task and a cache, and a mark that its processes carry."""

    folder: Path
    model: Path
    task: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def environment(self) -> dict[str, str]:
        return {
            **{k: v for k, v in os.environ.items() if not k.startswith("QHOST_")},
            "QHOST_CACHE_DIR": str(self.folder / "cache"),
            "QHOST_TEST_MARK": self.mark,
            "COLUMNS": "100",
        }

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "host", *args]

    def bench_args(self, *args: str) -> list[str]:
        return [
            "bench", "--mock", "--device", "sm8650", "--model-path", str(self.model),
            "--task", str(self.task), "--emulator-samples", "16", *args,
        ]  # fmt: skip

    def run(self, *args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*args),
            cwd=cwd or self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def start(self, *args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*args),
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def processes(self) -> dict[int, str]:
        """pid -> command line of every living process that carries this lab's mark."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                if self.mark.encode() not in (entry / "environ").read_bytes():
                    continue
                if (entry / "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                    continue
                found[int(entry.name)] = (
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                )
            except OSError:
                continue
        return found


def make_lab(folder: Path) -> Lab:
    model, task = folder / "tiny.onnx", folder / "tiny.npz"
    write_model(model)
    write_task(model, task)
    return Lab(folder, model, task)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return make_lab(tmp_path)


@pytest.fixture(scope="session")
def finished_lab(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lab, dict[str, object]]:
    """A lab in which one bench of fp16, int8 and int4 went well, and its JSON.

    The bench runs once for all the workers of a test run; each has a copy of the lab.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    whole, said = base / "finished-lab", base / "finished-lab.json"
    with (base / "finished-lab.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            shutil.rmtree(whole, ignore_errors=True)
            whole.mkdir()
            lab = make_lab(whole)
            done = lab.run(*lab.bench_args("--methods", "fp16,int8,int4", "--json"))
            assert done.returncode == 0, done.stderr
            said.write_text(done.stdout)
    folder = tmp_path_factory.mktemp("lab") / "lab"
    shutil.copytree(whole, folder)
    lab = Lab(folder, folder / "tiny.onnx", folder / "tiny.npz")
    return lab, json.loads(said.read_text())


@pytest.fixture
def built_lab(lab: Lab, finished_lab: tuple[Lab, object]) -> Lab:
    """A lab whose cache holds its artifacts: for what comes after building."""
    finished, _ = finished_lab
    shutil.copytree(finished.folder / "cache", lab.folder / "cache")
    return lab
