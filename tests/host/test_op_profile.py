"""A log of the SDK's tools becomes times per operator by the SDK's own viewer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from host import op_profile
from host.bench import passes
from host.bench.plan import PROFILES, Conditions
from host.errors import ToolchainError
from host.store import Store
from host.store.rows import OpProfile, RunRow, SessionRow

LOG = b"\x00binary log"


@pytest.fixture
def sdk(make_sdk, tmp_path, monkeypatch):
    root = make_sdk(tmp_path / "sdk")
    monkeypatch.setenv("QAIRT_SDK_ROOT", str(root))
    return root


def test_the_viewers_csv_is_read(sdk, tmp_path):
    log = tmp_path / "run-profile.log"
    log.write_bytes(LOG)
    assert op_profile.can_read()
    profile, ops = op_profile.read_log(log)
    assert (profile.execute_us, profile.file) == ((1500, 1400), "run-profile.log")
    assert ops == (OpProfile(2, "conv", (900, 880)),)


def test_what_the_viewer_refuses_is_one_line(sdk, tmp_path):
    log = tmp_path / "other.log"
    log.write_bytes(b"text")
    with pytest.raises(ToolchainError, match="qnn-profile-viewer refuses the profile: ERROR: not"):
        op_profile.read_log(log)
    (sdk / "bin/x86_64-linux-clang/qnn-profile-viewer").write_text("#!/bin/sh\nexit 0\n")
    with pytest.raises(ToolchainError, match=r"wrote nothing about other\.log"):
        op_profile.read_log(log)
    (sdk / "bin/x86_64-linux-clang/qnn-profile-viewer").write_text("#!/bin/sh\necho a,b > $4\n")
    with pytest.raises(ToolchainError, match="this is no QNN profile"):
        op_profile.read_log(log)


class Runner:
    """What run_passes needs of a DeviceRunner whose device kept a log."""

    def __init__(self, store: Store) -> None:
        self.profile_files = {"run": "outputs/profile-abc.log"}
        self.notes: list[str] = []
        self.store_profile = store.set_profile

    def run(self, segments: object) -> None: ...

    def note(self, run_id: str, text: str) -> None:
        self.notes.append(text)


def pass_of(store: Store, folder, log: bytes = LOG) -> Runner:
    runner = Runner(store)
    device = SimpleNamespace(client=SimpleNamespace(fetch=lambda name: log))
    under = Conditions("sm8650", PROFILES["rapid"])
    passes.run_passes(runner, device, "run", "0" * 64, under, folder, per_op=True)
    return runner


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "db", create=True) as store:
        store.new_session(SessionRow("s", "f", False, "rapid", 0))
        store.add_run(
            RunRow("run", "s", "m", "vision", "f", "t", "sm8650", "d", "1", "int8", "int8", "rapid")
        )
        yield store


def test_a_bench_stores_them_where_the_sdk_is_at_hand(sdk, store, tmp_path):
    runner = pass_of(store, tmp_path / "out")
    assert runner.notes == []
    assert store.run_data("run").ops == (OpProfile(2, "conv", (900, 880)),)
    assert (tmp_path / "out/run-profile.log").read_bytes() == LOG
    pass_of(store, tmp_path / "out")  # once more: the same rows, not twice
    assert len(store.run_data("run").ops) == 1


def test_without_the_sdk_the_log_is_kept_and_named(store, tmp_path, monkeypatch):
    monkeypatch.delenv("QAIRT_SDK_ROOT", raising=False)
    (note,) = pass_of(store, tmp_path / "out").notes
    assert "run-profile.log beside the report, for qnn-profile-viewer" in note
    assert store.run_data("run").ops == ()


def test_a_log_that_cannot_be_read_fails_no_run(sdk, store, tmp_path):
    (note,) = pass_of(store, tmp_path / "out", b"text").notes
    assert note.startswith("No times per operator: qnn-profile-viewer refuses")
    assert note.endswith("The log is run-profile.log.")
