"""The agent bundle on emulated Android: aarch64 programs under qemu-user, the real adb, net_run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import grpc
import numpy as np
import pytest

from host import bundle
from host.adb import AdbDevice, AdbServer
from host.attached import identify
from host.bench import plan
from host.bench.plan import Profile
from host.bench.prepare import ModelInput
from host.bench.run import run_bench
from host.cli.bench import resolve_bench
from host.deploy import deploy
from host.emulate import EmulatedPhone
from host.errors import RunStatus
from host.layers import LAYERS
from host.samples.fetch import debian_package
from protos import PROTOCOL_VERSION, agent_pb2_grpc
from protos import agent_pb2 as pb
from quant.artifact import open_artifact
from quant.htp.emulator import HtpEmulator

pytestmark = pytest.mark.qemu
ROOT = Path(__file__).parents[2]
BUILD = "2.51.0.260929181845"


class Quiet:
    """BenchEvents of nobody."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *what: None


@pytest.fixture(scope="module")
def environment(bundle_cache: Path) -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as free:
        patch.setenv("ANDROID_ADB_SERVER_PORT", str(free.getsockname()[1]))
        patch.setenv("ADB_USB", "0")  # emulated devices alone, and no wait for USB
        patch.setenv("QHOST_CACHE_DIR", str(bundle_cache))
        free.close()
        yield patch


@pytest.fixture(scope="module")
def device(
    environment: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
    make_sdk: Callable[..., Path],
) -> Iterator[AdbDevice]:
    """An emulated phone without any Python of this machine, and an SDK of stand-ins."""
    sdk = make_sdk(tmp_path_factory.mktemp("qairt") / "sdk")
    environment.setenv("QAIRT_SDK_ROOT", str(sdk))
    server = AdbServer()
    with EmulatedPhone("sm8650", isa="aarch64") as phone:
        server.connect(phone.serial)
        found = AdbDevice(phone.serial, "device", server=server)
        found.wait_ready(10)
        yield identify(found)
    server.kill()


def test_a_bench_end_to_end_by_the_bundle_and_the_sdks_tools(
    device: AdbDevice,
    lab: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Real time under an emulated processor: as short as a bench can be.
    monkeypatch.setitem(plan.PROFILES, "rapid", Profile("rapid", 16, 0.5, 20, 0.05, 0.2, blocks=2))
    flags = {
        "device": device.serial, "methods": "int8", "profile": "rapid", "emulator_samples": 8,
        "db_path": tmp_path / "db.duckdb", "output_dir": tmp_path / "out", "sample_rate_hz": 25.0,
        "cooldown_timeout": 0.0,
    }  # fmt: skip
    config = resolve_bench(flags, (ModelInput(lab.model, lab.task),), resume=False, input_shapes=[])
    outcome = run_bench(config, Quiet())
    (artifact_path,) = outcome.artifacts.values()
    artifact = open_artifact(artifact_path)

    with duckdb.connect(str(tmp_path / "db.duckdb"), read_only=True) as db:
        goldens = db.execute("SELECT samples, bit_equal FROM goldens").fetchall()
        blocks = db.execute("SELECT window_method, inferences FROM blocks").fetchall()
        figures = {
            metric: (value, source, reason)
            for metric, value, source, reason in db.execute(
                "SELECT metric, value, provenance, reason FROM figures"
            ).fetchall()
        }
        (facts,) = db.execute("SELECT fingerprint_json FROM runs").fetchone() or ("",)
    # 16 inferences in 2 blocks rest on too little for a valid run; everything is there.
    assert set(outcome.statuses.values()) <= {RunStatus.OK, RunStatus.INVALID}
    assert goldens == [(4, True)]
    assert [method for method, _ in blocks] == ["two_lengths", "two_lengths"]
    assert all(inferences >= 8 for _, inferences in blocks)
    assert "measured" not in {source for _, source, _ in figures.values()}
    for metric in ("latency_ms", "startup_ms", "power_mw", "memory_mb"):
        value, source, _ = figures[metric]
        assert value and value > 0 and source == "emulated_device", metric
    assert figures["first_inference_ms"][::2] == (None, "the runtime cannot tell it from the load")
    assert f'"qairt": "{BUILD}"' in facts and '"python": "3.11' in facts

    # What the tool wrote on the device, against a native run of the same context.
    artifact.extract_members(tmp_path, artifact.device_members("sm8650"))
    goldens = artifact.goldens("sm8650")
    with HtpEmulator(tmp_path / "contexts/sm8650/context.onnx") as emulator:
        native = emulator.run([feed for feed, _ in goldens])
    written = device.check("cat /data/local/tmp/qnn-outputs").split()
    assert len(native) == 4
    for outputs in native:
        for array in outputs.values():
            assert hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest() in written

    calls = device.check("cat /data/local/tmp/qnn-calls").splitlines()
    assert {call.split()[0] for call in calls} == {"qnn-net-run", "qnn-throughput-net-run"}
    assert all("--config_file extensions.json" in call for call in calls if "retrieve" in call)
    # Only this device's Hexagon, and nothing that was there is pushed again.
    layers = {name.rpartition("-")[0]: name for name in device.check(f"ls {LAYERS}").split()}
    assert set(layers) == {"base", "grpc", "numpy", "qnn-v75", "agent"}
    assert sorted(device.check(f"ls {LAYERS}/{layers['qnn-v75']}").split()) == [
        "libQnnHtp.so", "libQnnHtpNetRunExtensions.so", "libQnnHtpV75Skel.so",
        "libQnnHtpV75Stub.so", "libQnnSystem.so", "qairt.json", "qnn-net-run",
        "qnn-throughput-net-run",
    ]  # fmt: skip
    again = deploy(device)
    assert again.pushed == ()
    assert again.layers[-1].name == "agent"
    assert again.layers[-1].archive.name.startswith("agent-")


# A root shaped like Android -------------------------------------------------------------------

# Tools that need nothing but a shell: the stand-ins of an emulated device need Python.
THROUGHPUT = """#!/system/bin/sh
n=$(grep '"loop":' "$2" | tr -dc 0-9)
sleep "$(awk "BEGIN { print 0.02 + $n / 2000 }")"
echo '{"emulated": true}' > "$4"
"""
NET_RUN = """#!/system/bin/sh
mkdir -p out/Result_0
echo 'emulated: true' > out/execution_metadata.yaml
cp /system/y.raw out/Result_0/y.raw
"""
# Enters the root as the emulated device does, but with no program of this machine in it.
ENTER = """
import os, sys
from pathlib import Path
from agent.emulator.adb import sandbox

def main():
    os.environ.clear()
    os.environ.update(PATH="/system/bin", QHOST_EMULATOR="/vendor/emulated/qemu",
                      PYTHONPATH="{packages}", HOME="/data/local/tmp", TMPDIR="/data/local/tmp")
    os.execv("/system/bin/sh", ["sh", "-c", "id -u; ls / /dev; exec sh {command}"])

sandbox.enter(Path(sys.argv[1]), [])
sys.exit(sandbox.boot(main, lambda: None))
"""


@pytest.fixture
def android_root(
    bundle_cache: Path, qemu: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """/system, /vendor, /data and nothing else; busybox for a shell."""
    from agent.emulator import android
    from agent.emulator.adb import sandbox

    if refused := sandbox.supported():
        pytest.skip(f"this kernel allows no sandbox: {refused}")
    root = tmp_path / "root"
    props = android.properties("sm8650", "SHAPED", 1.0, "board", native=False)
    android.build_root(root, "sm8650", props)
    busybox = debian_package("busybox-static", "bin/busybox", bundle_cache / "downloads")
    shutil.copy(busybox / "bin/busybox", root / "vendor/emulated/busybox")
    shutil.copy(qemu, root / "vendor/emulated/qemu")
    shutil.rmtree(root / "system/bin")
    shutil.rmtree(root / "system/lib")
    (root / "system/bin").mkdir()
    for name in ("sh", "id", "ls", "grep", "tr", "sleep", "awk", "mkdir", "cp", "echo", "cat"):
        (root / "system/bin" / name).symlink_to("/vendor/emulated/busybox")
    for name, text in (("qnn-net-run", NET_RUN), ("qnn-throughput-net-run", THROUGHPUT)):
        (root / "system/bin" / name).write_text(text)
        (root / "system/bin" / name).chmod(0o755)
    built = bundle.open_bundle(bundle.default_folder(bundle_cache, "android-aarch64"))
    for layer in built.layers:
        folder = root / "data/local/tmp/layers" / layer.name
        folder.mkdir(parents=True)
        subprocess.run(["tar", "-xzf", layer.archive, "-C", folder], check=True)
    for package in ("agent", "protos"):
        shutil.copytree(
            ROOT / package, root / "data/local/tmp/layers/agent" / package,
            ignore=shutil.ignore_patterns("__pycache__"),
        )  # fmt: skip
    return root


def shaped_artifact(root: Path) -> str:
    """An artifact in the agent's own folder: x (4 float32) -> y (2 float32), all ones."""
    folder = root / "data/local/tmp/agent/artifacts" / ("b" * 64)
    (folder / "contexts/sm8650").mkdir(parents=True)
    (folder / "golden/sm8650").mkdir(parents=True)
    for name in ("context.onnx", "context.bin"):
        (folder / "contexts/sm8650" / name).write_bytes(b"x")
    ones = np.ones(2, np.float32)
    np.savez(folder / "golden/sm8650/0.npz", **{"input/x": np.zeros(4, "f4"), "output/y": ones})
    (root / "system/y.raw").write_bytes(ones.tobytes())
    graph = {
        "inputs": [{"name": "x", "dtype": "float32", "shape": [4]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": [2]}],
    }
    manifest = {"socs": {"sm8650": {"context": {"graphs": [graph]}}}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder.name


def test_in_a_root_shaped_like_android_the_agent_samples_streams_and_stops(
    android_root: Path,
) -> None:
    artifact = shaped_artifact(android_root)
    home = "/data/local/tmp"
    token = android_root / "data/local/tmp/token"
    token.touch(mode=0o600)
    token.write_text("t" * 32)
    layers = f"{home}/layers"
    command = (
        f"{layers}/base/run -P -m agent --net-run /system/bin --listen unix:{home}/socket "
        f"--root {home}/agent --token-file {home}/token --die-with-parent"
    )
    packages = ":".join(f"{layers}/{name}" for name in ("agent", "grpc", "numpy"))
    script = ENTER.replace("{packages}", packages).replace("{command}", command)
    process = subprocess.Popen(
        [sys.executable, "-c", script, android_root],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    seen = []
    for line in process.stdout:
        if line.startswith("{"):
            break
        seen.append(line.strip())
    ready = json.loads(line)
    assert ready["protocol_version"] == PROTOCOL_VERSION
    assert seen[0] == "2000"
    top, _, dev = "\n".join(seen[1:]).partition("/dev:")
    assert not {"etc", "bin", "lib", "lib64", "tmp", "usr", "home"} & set(top.split())
    assert "shm" not in dev.split()

    metadata = (("authorization", "Bearer " + "t" * 32), ("x-qhost-protocol", "1"))
    os.chdir(android_root / "data/local/tmp")  # a socket's path has room for 107 characters
    try:
        with grpc.insecure_channel("unix:socket") as channel:
            stub = agent_pb2_grpc.AgentStub(channel)
            said = stub.Describe(
                pb.DescribeRequest(protocol_version=1), timeout=60, metadata=metadata
            )
            assert said.substrate == pb.EMULATED and list(said.runtimes) == ["net_run"]
            segment = {
                "run_id": "r", "artifact": artifact, "soc": "sm8650", "sample_rate_hz": 50.0,
                "idle_ns": 300_000_000,
            }  # fmt: skip
            block = pb.Segment(
                kind=pb.BLOCK, min_inferences=8, max_duration_ns=2_000_000_000, **segment
            )
            start = pb.StartRequest(
                session_id="s", segments=[pb.Segment(kind=pb.CHECK, **segment), block]
            )
            stub.Start(start, timeout=30, metadata=metadata)
            batches, ends = [], 0
            for batch in stub.Subscribe(
                pb.SubscribeRequest(from_seq=1), timeout=240, metadata=metadata
            ):
                batches.append(batch)
                ends += batch.HasField("end")
                if ends == 2:
                    break
    finally:
        os.chdir(ROOT)
    outcomes = [(b.end.outcome, b.end.message) for b in batches if b.HasField("end")]
    assert outcomes == [(pb.OK, ""), (pb.OK, "")]
    assert [b.seq for b in batches] == list(range(1, len(batches) + 1))
    (golden,) = [b.golden for b in batches if b.HasField("golden")]
    assert golden.bit_equal
    (measured,) = [b.block for b in batches if b.HasField("block")]
    assert measured.inferences >= 8 and measured.window_method == "two_lengths"
    sampled = {s.channel for b in batches for s in b.samples if s.value}
    assert sampled == {channel.id for channel in said.channels}
    process.stdin.close()
    assert process.wait(30) == 0
    process.stdout.close()
    assert not (android_root / "data/local/tmp/socket").exists()
