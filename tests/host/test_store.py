from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import duckdb
import numpy as np
import pytest

from host.errors import FailureClass, RunStatus, UserError
from host.store import (
    Block,
    Channel,
    DeviceRow,
    Golden,
    Load,
    Mark,
    RawBatch,
    RunRow,
    Samples,
    SessionRow,
    Stage,
    Store,
    new_session_id,
)
from host.store.migrations import known_migrations
from quant.figures import Figure, Provenance

SESSION = SessionRow("s1", "print", emulated=False, profile="normal", seed=7)
RUN = RunRow(
    run_id="r1", session_id="s1", model_name="tiny", model_type="vision",
    model_fingerprint="aa", task_fingerprint="bb", soc="sm8650", device="Phone",
    device_serial="SER1", method="int8", variant="int8", profile="normal",
)  # fmt: skip


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "q.duckdb", create=True) as opened:
        yield opened


def batch(seq: int, run_id: str = "r1", n: int = 4) -> RawBatch:
    t = np.arange(n, dtype=np.int64) + seq * 1000
    return RawBatch(
        seq,
        run_id,
        samples=(Samples(1, t, t * 0.5), Samples(2, t, -t.astype(float))),
        marks=(Mark("timed", seq * 1000, seq * 1000 + n, seq),),
        block=Block(seq, 3, seq * 1000, seq * 1000 + n, np.array([1.5, 2.5, 3.5], np.float32)),
    )


def count(store: Store, table: str) -> int:
    return store.table(f"SELECT count(*) AS n FROM {table}")["n"][0].as_py()


def test_raw_values_come_back_as_they_went_in(store):
    store.new_session(SESSION)
    store.add_run(
        RUN,
        [Channel(1, "vdd_nsp", "npu", "power", "mW"), Channel(2, "t", "npu", "temperature", "C")],
    )
    load, golden = Load(0.5, 0.1, 0.02, 123), Golden(4, True, float("inf"))
    assert store.append("s1", "s1/SER1", [replace(batch(1), load=load, golden=golden)]) == 1
    assert store.append("s1", "s1/SER1", [batch(3), batch(2)]) == 3
    data = store.run_data("r1")
    assert [c.name for c in data.channels] == ["vdd_nsp", "t"]
    assert data.samples[1].t_ns.tolist() == [
        1000,
        1001,
        1002,
        1003,
        2000,
        2001,
        2002,
        2003,
        3000,
        3001,
        3002,
        3003,
    ]
    assert data.samples[2].value[0] == -1000
    assert [b.block_index for b in data.blocks] == [1, 2, 3]
    assert data.blocks[0].per_iteration_us.tolist() == [1.5, 2.5, 3.5]
    assert data.marks[2] == Mark("timed", 3000, 3004, 3)
    assert data.load == load and data.golden == golden


def test_a_batch_that_comes_twice_counts_once(store):
    store.new_session(SESSION)
    store.add_run(RUN)
    store.append("s1", "a", [batch(1), batch(2)])
    assert store.append("s1", "a", [batch(1), batch(2), batch(3)]) == 3
    assert store.append("s1", "a", [batch(2)]) == 3
    assert count(store, "samples") == 3 * 8 and count(store, "blocks") == 3
    assert store.last_seq("a") == 3 and store.last_seq("b") == 0
    with pytest.raises(ValueError, match="missing after 3"):
        store.append("s1", "a", [batch(5)])
    assert count(store, "samples") == 3 * 8


def test_a_failing_append_leaves_nothing(store):
    store.new_session(SESSION)
    bad = replace(batch(1), marks=(Mark("timed", 2**70, 0),))
    with pytest.raises((OverflowError, ValueError, duckdb.Error)):
        store.append("s1", "a", [bad])
    assert count(store, "samples") == 0 and store.last_seq("a") == 0


def test_a_run_is_killed_until_it_is_finished(store):
    store.new_session(SESSION)
    store.add_run(replace(RUN, notes_json='["synthetic inputs"]'))
    assert store.run("r1").status is RunStatus.FAILED
    assert store.run("r1").failure_class is FailureClass.KILLED
    assert count(store, "quantization_results") == 0
    figure = Figure("latency_ms", 2.0, "ms", Provenance.MEASURED, 6, 1.9, 2.1)
    store.finish_run(
        "r1",
        RunStatus.OK,
        figures=[figure],
        power_method="hwmon",
        power_update_hz=10.0,
        notes=["Latency settles late."],
    )
    run = store.run("r1")
    assert (run.status, run.failure_class, run.message) == (RunStatus.OK, None, "")
    assert (run.power_method, run.power_update_hz) == ("hwmon", 10.0)
    assert json.loads(run.notes_json) == ["synthetic inputs", "Latency settles late."]
    assert store.figures_of("r1") == [figure]
    with pytest.raises(ValueError, match="finished and ok"):
        store.add_run(RUN)


def test_doing_a_failed_run_again_drops_its_raw_data(store):
    store.new_session(SESSION)
    store.add_run(RUN)
    store.append("s1", "a", [batch(1)])
    store.add_stages("r1", [Stage("compile", 3.0)])
    store.add_run(RUN)
    assert count(store, "runs") == 1
    assert count(store, "samples") == count(store, "blocks") == count(store, "stages") == 0
    assert store.last_seq("a") == 1


def test_views_take_the_figure_closest_to_the_device_and_hide_invalid_ones(store):
    store.new_session(SESSION)
    store.add_run(replace(RUN, accuracy_metric="top1", accuracy_higher_is_better=True))
    store.finish_run("r1", RunStatus.OK, figures=[
        Figure("accuracy", 0.81, "fraction", Provenance.ORT_CPU, 100),
        Figure("accuracy", 0.80, "fraction", Provenance.HTP_EMULATOR, 100),
        Figure("latency_ms", 5.0, "ms", Provenance.PREDICTED, 1),
        Figure("latency_ms", 2.0, "ms", Provenance.MEASURED, 6),
        Figure("power_mw", 1500.0, "mW", Provenance.MEASURED, 6),
        Figure("energy_mj", 9.0, "mJ", Provenance.MEASURED, 6, valid=False, reason="charging"),
        Figure("model_size_bytes", 2.5e6, "bytes", Provenance.FILE, 1),
    ])  # fmt: skip
    row = store.table("SELECT * FROM quantization_results").to_pylist()[0]
    assert (row["accuracy"], row["accuracy_provenance"]) == (0.80, "htp_emulator")
    assert (row["latency"], row["latency_ms"], row["latency_provenance"]) == (2.0, 2.0, "measured")
    assert (row["power_consumption"], row["power_watts"]) == (1500.0, 1.5)
    assert (row["model_size"], row["model_size_mb"], row["hardware_type"]) == (2.5, 2.5, "qualcomm")
    assert row["energy_mj"] is None and row["energy_provenance"] is None
    whole = store.table("SELECT * FROM all_results").to_pylist()[0]
    assert whole["energy_mj"] == 9.0 and whole["figures_valid"] is False
    assert whole["invalid_reasons"] == "energy_mj: charging"


def test_view_columns_are_those_of_the_contract(store):
    names = store.table("SELECT * FROM quantization_results").column_names
    expected = """
        run_id session_id created_at model_name model_type hardware_type device device_serial
        quantization_method variant options_json accuracy accuracy_metric
        accuracy_higher_is_better latency latency_ms latency_min_ms latency_p90_ms
        throughput_items_per_sec power_consumption power_watts energy_mj model_size
        model_size_mb memory_mb startup_ms accuracy_provenance latency_provenance
        power_provenance energy_provenance memory_provenance
    """
    assert names == expected.split()


def test_resume_finds_what_is_done(store):
    store.new_session(SESSION)
    for n, (variant, status) in enumerate(
        [("int8", RunStatus.OK), ("int4", RunStatus.FAILED), ("qat", RunStatus.SKIPPED)]
    ):
        store.add_run(replace(RUN, run_id=f"r{n}", variant=variant))
        store.finish_run(f"r{n}", status)
    store.new_session(
        replace(SESSION, session_id="s2", fingerprint="other", created_at=datetime(2030, 1, 1))
    )
    found = store.resumable("print")
    assert found is not None and found.session_id == "s1"
    assert store.finished_variants("s1") == {("int8", "SER1"): "r0", ("qat", "SER1"): "r2"}
    assert store.resumable("nothing") is None
    assert [run.variant for run in store.runs_of("s1")] == ["int8", "int4", "qat"]


def test_real_and_emulated_sessions_do_not_mix_unasked(store):
    mock = replace(SESSION, session_id="s2", emulated=True)
    store.new_session(SESSION)
    store.new_session(replace(mock, session_id="s0"))  # s1 never had a device: it is of no kind
    store.add_device(DeviceRow("s1", "SER1", "SER1", "sm8650", False, "{}"))
    with pytest.raises(UserError, match=r"holds 1 session\(s\) of real devices"):
        store.new_session(mock)
    store.new_session(mock, allow_mixed=True)
    assert {s.session_id for s in store.sessions()} == {"s0", "s1", "s2"}


def test_names_resolve_by_beginning_and_latest(store):
    with pytest.raises(UserError, match="no session"):
        store.session("x")
    first = replace(SESSION, session_id="20260101-aa", created_at=datetime(2026, 1, 1))
    second = replace(SESSION, session_id="20260102-bb", created_at=datetime(2026, 1, 2))
    store.new_session(first)
    store.new_session(second)
    assert store.session("latest") == second
    assert store.session("20260101") == first
    with pytest.raises(UserError, match="ambiguous"):
        store.session("2026")
    with pytest.raises(UserError, match="Did you mean 20260102-bb"):
        store.session("20260102-cc")
    assert len({new_session_id() for _ in range(20)}) > 15


def test_scores_keep_their_shape_and_provenance_is_counted(store):
    store.new_session(SESSION)
    store.add_run(RUN)
    scores = np.arange(6.0).reshape(3, 2)
    store.add_scores("r1", Provenance.ORT_CPU, "f1", scores)
    assert np.array_equal(store.scores_of("r1", Provenance.ORT_CPU), scores)
    assert store.scores_of("r1", Provenance.MEASURED) is None
    store.add_figures("r1", [Figure("sqnr_db", 40.0, "dB", Provenance.ORT_CPU, 3)])
    assert store.provenance_counts() == {Provenance.ORT_CPU: 1}
    assert store.provenance_counts("other") == {}


def test_migrations_are_recorded_once(tmp_path):
    path = tmp_path / "q.duckdb"
    Store.open(path, create=True).close()
    with Store.open(path) as store:
        rows = store.table("SELECT version, sha256 FROM schema_migrations ORDER BY 1").to_pylist()
        store.add_device(DeviceRow("s", "x", "d", "sm8650", emulated=True))
        store.add_device(DeviceRow("s", "x", "e", "sm8650", emulated=True))
        assert store.table("SELECT device FROM devices")["device"].to_pylist() == ["e"]
    assert [(r["version"], r["sha256"]) for r in rows] == [
        (m.version, m.sha256) for m in known_migrations()
    ]
    assert [m.version for m in known_migrations()] == list(range(1, len(known_migrations()) + 1))


def refused(path: Path, **options) -> str:
    with pytest.raises(UserError) as caught:
        Store.open(path, wait_s=0.2, **options).close()
    assert "\n" not in caught.value.message
    return str(caught.value)


def test_files_that_are_not_ours_are_refused(tmp_path):
    assert "no database" in refused(tmp_path / "none.duckdb")
    assert "is a directory" in refused(tmp_path)
    assert "does not exist" in refused(tmp_path / "no" / "x.duckdb", create=True)
    (tmp_path / "sqlite").write_bytes(b"SQLite format 3\0" + bytes(5000))
    assert "not a DuckDB database" in refused(tmp_path / "sqlite", create=True)
    (tmp_path / "empty").write_bytes(b"")
    assert "is empty" in refused(tmp_path / "empty", create=True)
    other = tmp_path / "other.duckdb"
    with duckdb.connect(str(other)) as connection:
        connection.execute("CREATE TABLE cats (name VARCHAR)")
    before = other.read_bytes()
    assert "not one of qhost" in refused(other)
    assert other.read_bytes() == before


def test_newer_damaged_and_truncated_databases_are_refused(tmp_path):
    path = tmp_path / "q.duckdb"
    Store.open(path, create=True).close()
    whole = path.read_bytes()
    damaged = tmp_path / "damaged.duckdb"
    damaged.write_bytes(whole[:4096] + bytes(b ^ 0x5A for b in whole[4096:]))
    assert "is damaged" in refused(damaged)
    (tmp_path / "short.duckdb").write_bytes(whole[:5000])
    assert "is damaged" in refused(tmp_path / "short.duckdb")
    with duckdb.connect(str(path)) as connection:
        connection.execute("INSERT INTO schema_migrations VALUES (999, 'x', 'y', now(), '9')")
    assert "newer qhost: its schema is 999" in refused(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_read_only_file_is_refused_for_writing(tmp_path):
    path = tmp_path / "q.duckdb"
    Store.open(path, create=True).close()
    path.chmod(0o444)
    assert "read-only" in refused(path)


def test_a_second_writer_is_told_who_holds_the_file(tmp_path):
    path = tmp_path / "q.duckdb"
    holder = subprocess.Popen(
        [sys.executable, "-c",
         "import sys; from pathlib import Path; from host.store import Store\n"
         "store = Store.open(Path(sys.argv[1]), create=True); print('ready', flush=True)\n"
         "sys.stdin.readline(); store.close()", str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == "ready\n"
        message = refused(path)
        assert f"in use by process {holder.pid}" in message and "waited 0.2 s" in message
        assert f"{holder.pid}" in refused(path, read_only=True)
        holder.stdin.write("\n")
        holder.stdin.flush()
        Store.open(path, wait_s=20).close()
    finally:
        holder.kill()
        holder.wait()


def test_a_disk_that_refuses_a_write_is_one_clear_line(tmp_path):
    """A full disk, by the limit on the size of a file that a process may write."""
    code = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from host.errors import UserError
from host.store import RawBatch, Samples, Store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Store.open(Path(sys.argv[1]), create=True) as store:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
    seq, t = 0, np.arange(20_000, dtype=np.int64)
    try:
        while seq < 1000:
            value = np.random.default_rng(seq).standard_normal(20_000)
            batch = RawBatch(seq + 1, "r", (Samples(1, t, value),))
            seq = store.append("s", "stream", [batch])
    except UserError as error:
        print(seq, error.message)
"""
    path = tmp_path / "q.duckdb"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    acknowledged, _, message = done.stdout.partition(" ")
    assert message.startswith(f"{path} cannot be written: "), done.stderr
    with Store.open(path) as store:
        assert store.last_seq("stream") == int(acknowledged) > 0
        assert count(store, "samples") == 20_000 * int(acknowledged)
