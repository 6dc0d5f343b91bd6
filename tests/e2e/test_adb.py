"""The main job through the real adb: as --mock, but for serial and timing; two devices; faults."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import duckdb
import pytest

from host import deploy
from host.adb import AdbServer
from host.emulate import EmulatedPhone

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server() -> Iterator[AdbServer]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    before = os.environ.get("ANDROID_ADB_SERVER_PORT")
    os.environ["ANDROID_ADB_SERVER_PORT"] = str(port)
    os.environ["ADB_USB"] = "0"  # emulated devices alone, and no wait for USB
    server = AdbServer(port)
    server.ensure()
    yield server
    server.kill()
    os.environ.pop("ANDROID_ADB_SERVER_PORT")
    if before:
        os.environ["ANDROID_ADB_SERVER_PORT"] = before


def bench(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable, "-m", "host", "bench", "--methods", "int8", "--profile", "rapid",
            "--emulator-samples", "8", "--device-accuracy", "12", "--json", *arguments,
            "--db-path", str(folder / "db.duckdb"), "--output-dir", str(folder / "out"),
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


Figures = dict[tuple[str, str], tuple[float, str]]


def rows(folder: Path) -> tuple[dict[str, object], Figures]:
    """The one run of a database, and its (value, unit) by metric and provenance."""
    with duckdb.connect(str(folder / "db.duckdb"), read_only=True) as db:
        runs = db.execute("SELECT * FROM all_results")
        names = [column[0] for column in runs.description or ()]
        run = runs.fetchall()
        figures = db.execute("SELECT metric, provenance, value, unit FROM figures").fetchall()
    assert len(run) == 1
    by_metric = {(metric, source): (value, unit) for metric, source, value, unit in figures}
    return dict(zip(names, run[0], strict=True)), by_metric


def test_two_devices_at_once_give_what_mock_gives(server: AdbServer, tmp_path: Path) -> None:
    """Acceptance 1 and 4: same rows as --mock, everything emulated; each gets its own context."""
    with (
        EmulatedPhone("sm8650", time_factor=50) as one,
        EmulatedPhone("sm8550", time_factor=50) as two,
    ):
        for phone in (one, two):
            server.connect(phone.serial)
        folders = {name: tmp_path / name for name in ("sm8650", "sm8550", "mock")}
        for folder in folders.values():
            folder.mkdir()
        benches = [bench(folders[soc], "--device", soc) for soc in ("sm8650", "sm8550")]
        benches.append(bench(folders["mock"], "--device", "sm8650", "--mock"))
        for process in benches:
            out, err = process.communicate(timeout=240)
            assert process.returncode == 0, err
            assert json.loads(out)["session"]["emulated"] is True
        for phone in (one, two):
            contexts = phone.root.glob("data/local/tmp/qhost/agent/artifacts/*/contexts/*")
            assert [path.name for path in contexts] == [phone.soc]
            assert not (phone.root / "data/local/tmp/qhost/lease").is_symlink()
            server.disconnect(phone.serial)
    run, figures = rows(folders["sm8650"])
    mock, expected = rows(folders["mock"])
    assert run["status"] == "ok" and run["device_serial"] != mock["device_serial"]
    sources = {provenance for _, provenance in figures}
    assert "measured" not in sources and "emulated_device" in sources
    assert figures.keys() == expected.keys()
    timed = [key for key in figures if key[1] == "emulated_device"]
    for key in figures.keys() - set(timed):
        assert figures[key] == expected[key], key
    assert ("accuracy", "htp_emulator") in figures and ("latency_ms", "emulated_device") in timed
    with duckdb.connect(str(folders["sm8650"] / "db.duckdb"), read_only=True) as db:
        (notes,) = db.execute("SELECT notes_json FROM runs").fetchone() or ("",)
        passed = db.execute("SELECT n FROM figures WHERE metric = 'accuracy'").fetchall()
    assert "device: 12 samples" in notes and "scores 8 of 8 the same" in notes
    assert (12,) in passed
    for column in ("model_name", "quantization_method", "variant", "device", "accuracy_metric"):
        assert run[column] == mock[column]
    assert rows(folders["sm8550"])[0]["device"] == "emulated:sm8550"


@pytest.fixture(scope="module")
def fault_runs() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("fault_runs", ROOT / "tools/fault_runs.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["fault_runs"] = module
    spec.loader.exec_module(module)
    before = deploy.RETURN_TIMEOUT_S
    deploy.RETURN_TIMEOUT_S = module.RETURN_TIMEOUT_S
    yield module
    deploy.RETURN_TIMEOUT_S = before
    del sys.modules["fault_runs"]


@pytest.mark.parametrize("kind", ["drop", "reboot", "full-disk", "kill-agent", "kill-server"])
def test_a_faulted_bench_loses_nothing_unsaid(
    fault_runs: ModuleType, server: AdbServer, tmp_path: Path, kind: str
) -> None:
    seed = fault_runs.KINDS.index(kind)
    outcome = fault_runs.faulted_run(seed, server, tmp_path)
    assert outcome.problems == ()
    assert outcome.status == "ok" or outcome.message
