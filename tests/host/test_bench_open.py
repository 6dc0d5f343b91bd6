"""A device that is there but cannot be used leaves failed rows; none at all leaves nothing."""

from __future__ import annotations

import duckdb
import pytest

from host.bench import run as bench_run
from host.cli import main
from host.errors import DeviceError, FailureClass, UserError
from host.store import Store, new_session_id
from host.store.rows import DeviceRow, SessionRow


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QHOST_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def refuse(monkeypatch, error: Exception) -> None:
    def open_device(*_args: object, **_named: object) -> None:
        raise error

    monkeypatch.setattr(bench_run, "open_device", open_device)


def test_every_job_is_a_failed_row_with_class_and_reason(here, monkeypatch, capsys):
    error = DeviceError("it went away", failure_class=FailureClass.TIMEOUT)
    refuse(monkeypatch, error)
    assert main(["bench", "--device", "R5CX", "--methods", "fp16,int8"]) == 5
    assert "it went away" in capsys.readouterr().err
    with duckdb.connect(str(here / "qhost.duckdb"), read_only=True) as db:
        rows = db.execute(
            "SELECT variant, device, status, failure_class, message "
            "FROM all_results ORDER BY run_id"
        ).fetchall()
    why = "The device could not be opened: it went away"
    assert rows == [(v, "R5CX", "failed", "TIMEOUT", why) for v in ("fp16", "int8")]


def test_it_does_not_make_the_database_one_of_real_devices(here, monkeypatch):
    """An emulated device that is offline cannot say that it is emulated."""
    refuse(monkeypatch, DeviceError("offline"))
    assert main(["bench", "--device", "127.0.0.1:6561", "--methods", "int8"]) == 5
    with Store.open(here / "qhost.duckdb") as store:
        session = SessionRow(new_session_id(), "f", True, "rapid", 0)
        store.new_session(session)
        device = DeviceRow(session.session_id, "s", "emulated:sm8650", "sm8650", True, "{}")
        store.add_device(device)
        with pytest.raises(UserError, match=r"holds 1 session\(s\) of emulated devices"):
            store.new_session(SessionRow(new_session_id(), "f", False, "rapid", 0))


def test_no_device_at_all_leaves_no_database(here, monkeypatch):
    refuse(monkeypatch, UserError("No device: nothing is attached."))
    assert main(["bench", "--methods", "int8"]) == 1
    assert not list(here.glob("*.duckdb"))


def test_a_defect_in_a_build_is_a_failed_row_and_no_endless_wait(here, monkeypatch):
    def broken(*_args: object, **_named: object) -> None:
        raise TypeError("takes 4 arguments")

    monkeypatch.setattr(bench_run, "cached_artifact", broken)
    args = ["bench", "--mock", "--device", "sm8650", "--methods", "int8", "--db-path", "q.duckdb"]
    assert main(args) == 3
    with duckdb.connect(str(here / "q.duckdb"), read_only=True) as db:
        ((status, kind, message),) = db.execute(
            "SELECT status, failure_class, message FROM all_results"
        ).fetchall()
    assert (status, kind) == ("failed", "HARNESS_ERROR")
    assert message == "The build failed inside qhost: TypeError: takes 4 arguments"
