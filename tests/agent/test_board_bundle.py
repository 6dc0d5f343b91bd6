"""The bundle of a Linux board under qemu-user: without a DSP nothing is computed, ever."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import textwrap
from pathlib import Path

import pytest

from host import bundle

pytestmark = pytest.mark.qemu
ROOT = Path(__file__).parents[2]
# What onnxruntime asks an ARM processor for when it is imported.
CPUINFO = """processor\t: 0
BogoMIPS\t: 38.40
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: 0xd41
CPU revision\t: 0

"""


class Board:
    """The unpacked layers of a v75 board, and how to run their Python here."""

    def __init__(self, cache: Path, folder: Path, qemu: str) -> None:
        self._layers = folder / "layers"
        for target in ("android-aarch64", "linux-aarch64"):
            built = bundle.open_bundle(bundle.default_folder(cache, target))
            for layer in built.layers:
                (self._layers / layer.name).mkdir(parents=True)
                subprocess.run(
                    ["tar", "-xzf", layer.archive, "-C", self._layers / layer.name], check=True
                )
        run = self._layers / "base/run"  # the one difference between the two base layers
        run.write_text(run.read_text().replace("#!/system/bin/sh", "#!/bin/sh"))
        self.sysroot = folder / "sysroot"
        cpu = "sys/devices/system/cpu"
        files = {
            "proc/cpuinfo": CPUINFO, "dev/fastrpc-cdsp": "",
            f"{cpu}/possible": "0\n", f"{cpu}/present": "0\n",
        }  # fmt: skip
        for name, text in files.items():
            (self.sysroot / name).parent.mkdir(parents=True, exist_ok=True)
            (self.sysroot / name).write_text(text)
        self._qemu = qemu

    def run(self, *arguments: str, dsp: bool) -> subprocess.CompletedProcess[str]:
        """Run Python with these arguments. `dsp`: /dev lists the node of one."""
        if not dsp:
            shutil.rmtree(self.sysroot / "dev", ignore_errors=True)
        packages = [ROOT, *(self._layers / name for name in ("grpc", "numpy", "ort"))]
        qnn, ort = self._layers / "qnn-v75", self._layers / "ort/onnxruntime_qnn"
        return subprocess.run(
            ["sh", self._layers / "base/run", *arguments],
            env={
                "PATH": os.environ["PATH"],
                "QHOST_EMULATOR": f"{self._qemu} -L {self.sysroot}",
                "PYTHONPATH": ":".join(map(str, packages)),
                "PYTHONDONTWRITEBYTECODE": "1",
                "QHOST_LIBRARY_PATH": f"{qnn}:{ort}",
                "ADSP_LIBRARY_PATH": f"{qnn};/dsp",
            },
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip


@pytest.fixture(scope="module")
def board(board_cache: Path, qemu: str, tmp_path_factory: pytest.TempPathFactory) -> Board:
    return Board(board_cache, tmp_path_factory.mktemp("board"), qemu)


def test_the_layers_are_those_of_one_hexagon(board_cache: Path) -> None:
    built = bundle.open_bundle(bundle.default_folder(board_cache, "linux-aarch64"))
    assert [layer.name for layer in built.layers] == ["ort", "qnn-v75"]
    assert {c.name for c in built.components} == {"onnxruntime", "onnxruntime-qnn"}
    assert all(c.licence for c in built.components)


PROBE = """
import json, sys
from pathlib import Path
import numpy as np
from agent.errors import AgentError
from agent.runtime import Context
from agent.runtime.ort_qnn import OrtQnnRuntime

folder = Path(sys.argv[1])
runtime = OrtQnnRuntime(folder / "log")
said = {}
try:
    runtime.load(Context(folder / "context.onnx", folder / "context.bin", "", 57, "burst"))
    said["outputs"] = list(runtime.outputs({"x": np.zeros((4, 16), np.float32)}))
except AgentError as error:
    said["refused"] = f"{type(error).__name__}: {error}"
finally:
    runtime.close()
print(json.dumps(said))
"""


@pytest.mark.parametrize(
    ("dsp", "cause"),
    [
        # The node is there, and nothing behind it: QNN itself refuses.
        (True, "BadArtifact: the context does not load"),
        (False, "DeviceFailure: the QNN provider finds no device"),
    ],
)
def test_without_a_dsp_the_runtime_refuses_and_computes_nothing(
    board: Board, artifact_files: dict[str, bytes], tmp_path: Path, dsp: bool, cause: str
) -> None:
    for name in ("context.onnx", "context.bin"):
        (tmp_path / name).write_bytes(artifact_files[f"contexts/sm8650/{name}"])
    done = board.run("-P", "-c", PROBE, str(tmp_path), dsp=dsp)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert "outputs" not in said
    assert said["refused"].startswith(cause), (said, (tmp_path / "log").read_text())


def test_the_agent_does_not_start_and_says_why(board: Board, tmp_path: Path) -> None:
    device = tmp_path / "device"
    (device / "sys/devices/soc0").mkdir(parents=True)
    (device / "sys/devices/soc0/soc_id").write_text("557\n")
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text("x" * 32)
    arguments = ["-P", "-m", "agent", "--device-root", str(device), "--token-file", str(token)]
    causes = {}
    for dsp in (False, True):
        if dsp:
            (device / "dev").mkdir()
            (device / "dev/fastrpc-cdsp").touch()
        done = board.run(*arguments, "--root", str(tmp_path / "root"), dsp=dsp)
        assert (done.returncode, done.stdout) == (2, "")
        causes[dsp] = done.stderr
    assert "no inference on this sm8650: there is no device node of the DSP" in causes[False]
    assert "no inference on this sm8650: this program runs through qemu" in causes[True]
    assert textwrap.dedent(causes[False]).count("\n") == 1
