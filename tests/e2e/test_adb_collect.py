"""A host that is killed in the middle of a bench: the agent finishes alone, `collect` fetches."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from host.adb import AdbServer
from host.cli import main
from host.emulate import EmulatedPhone
from host.errors import ExitCode


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[AdbServer]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(port))
    os.environ["ADB_USB"] = "0"  # emulated devices alone, and no wait for USB
    server = AdbServer(port)
    server.ensure()
    yield server
    server.kill()


def test_a_killed_host_loses_nothing(
    server: AdbServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    db_path = tmp_path / "db.duckdb"
    with EmulatedPhone("sm8650", time_factor=10) as phone:
        server.connect(phone.serial)
        command = [
            sys.executable, "-m", "host", "bench", "--device", phone.serial, "--methods", "int8",
            "--profile", "rapid", "--emulator-samples", "8", "--db-path", str(db_path),
            "--output-dir", str(tmp_path / "out"),
        ]  # fmt: skip
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        assert process.stderr is not None
        watchdog = threading.Timer(120, process.kill)
        watchdog.start()
        seen = next((line for line in process.stderr if "block 1 of" in line), None)
        assert seen, "the bench did not come to its first block"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        watchdog.cancel()
        process.stderr.close()
        assert main(["bench", "--device", phone.serial, "--db-path", str(tmp_path / "n")]) != 0
        assert "qhost collect --device" in capsys.readouterr().err
        assert main(["collect", "--db-path", str(tmp_path / "other")]) == ExitCode.USER_ERROR
        capsys.readouterr()
        assert main(["collect", "--db-path", str(db_path)]) == ExitCode.OK
        out = capsys.readouterr().out
        assert "EMULATED" in out and "-01: ok" in out
        # Nothing is left to fetch, and nothing is fetched twice.
        assert main(["collect", "--db-path", str(db_path)]) == ExitCode.OK
        assert ": 0 batches" in capsys.readouterr().out
        server.disconnect(phone.serial)
    with duckdb.connect(str(db_path), read_only=True) as db:
        assert db.execute("SELECT status FROM runs").fetchall() == [("ok",)]
        blocks = db.execute("SELECT block_index FROM blocks ORDER BY 1").fetchall()
        assert [index for (index,) in blocks] == list(range(6))
        provenances = {
            row[0] for row in db.execute("SELECT DISTINCT provenance FROM figures").fetchall()
        }
    assert "emulated_device" in provenances and "measured" not in provenances
