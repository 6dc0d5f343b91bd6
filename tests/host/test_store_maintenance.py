"""Check, export, import, merge, vacuum; and writers that are killed (small tools/bench_store)."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from datetime import datetime, timedelta
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from host.errors import RunStatus, UserError
from host.store import Channel, DeviceRow, RawBatch, RunRow, Samples, SessionRow, Store
from host.store.maintenance import check, export, import_export, merge
from host.store.vacuum import parse_age, vacuum
from quant.figures import Figure, Provenance

ROOT = Path(__file__).resolve().parents[2]
WHEN = datetime(2026, 1, 2, 3, 4, 5)


def load_bench():
    spec = importlib.util.spec_from_file_location("bench_store", ROOT / "tools/bench_store.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_store"] = module
    spec.loader.exec_module(module)
    return module


def fill(path: Path, session_id: str, runs: int = 2, samples: int = 50) -> None:
    with Store.open(path, create=True) as store:
        store.new_session(
            SessionRow(session_id, "p", emulated=False, profile="rapid", seed=0, created_at=WHEN)
        )
        store.add_device(DeviceRow(session_id, "SER", "Phone", "sm8650", emulated=False))
        for i in range(runs):
            run = RunRow(
                run_id=f"{session_id}-{i}", session_id=session_id, model_name="m",
                model_type="vision", model_fingerprint="f", task_fingerprint="t", soc="sm8650",
                device="Phone", device_serial="SER", method="int8", variant=f"int8[a={i}]",
                profile="rapid", created_at=WHEN,
            )  # fmt: skip
            store.add_run(run, [Channel(1, "p", "board", "power", "mW")])
            t = np.arange(samples, dtype=np.int64)
            store.append(
                session_id, f"{session_id}/SER",
                [RawBatch(i + 1, run.run_id, (Samples(1, t, t * 1.5),))],
            )  # fmt: skip
            store.finish_run(
                run.run_id, RunStatus.OK,
                figures=[Figure("latency_ms", 1.0 + i, "ms", Provenance.MEASURED, 6)],
            )  # fmt: skip


def contents(path: Path) -> dict[str, int]:
    with Store.open(path, read_only=True) as store:
        return {
            t: store.count(f"SELECT count(*) FROM {t}")
            for t in ("sessions", "devices", "streams", "runs", "channels", "samples", "figures")
        }


def test_check_finds_nothing_in_a_sound_database_and_names_what_is_wrong(tmp_path):
    path = tmp_path / "q.duckdb"
    fill(path, "s")
    with Store.open(path) as store:
        assert check(store) == []
        store.connection.execute("DELETE FROM runs WHERE run_id = 's-0'")
        store.connection.execute("UPDATE figures SET metric = 'speed' WHERE run_id = 's-1'")
        store.connection.execute("INSERT INTO samples VALUES ('s-1', 9, 0, 0)")
        problems = check(store)
    assert "samples: rows of runs that do not exist: s-0" in problems
    assert "figures: unknown metric: speed" in problems
    assert "samples: of channels that are not described: s-1" in problems


def test_export_and_import_bring_everything_back(tmp_path):
    path = tmp_path / "q.duckdb"
    fill(path, "s")
    done = export(path, tmp_path / "out")
    assert done.lost == () and done.rows["samples"] == 100 and done.rows["runs"] == 2
    assert pq.read_table(tmp_path / "out/samples.parquet").num_rows == 100
    with Store.open(tmp_path / "new.duckdb", create=True) as store:
        found = import_export(store, tmp_path / "out")
        assert (found.sessions, found.runs, found.already_there) == (1, 2, 0)
        assert store.run_data("s-1").samples[1].value[2] == 3.0
        again = import_export(store, tmp_path / "out")
        assert (again.sessions, again.runs, again.already_there) == (0, 0, 2)
    assert contents(tmp_path / "new.duckdb") == contents(path)
    with pytest.raises(UserError, match="exists"):
        export(path, tmp_path / "out")
    with pytest.raises(UserError, match="no export"):
        with Store.open(tmp_path / "new.duckdb") as store:
            import_export(store, tmp_path)


def test_an_import_of_another_schema_or_a_broken_file_is_refused(tmp_path):
    fill(tmp_path / "q.duckdb", "s")
    export(tmp_path / "q.duckdb", tmp_path / "out")
    with Store.open(tmp_path / "new.duckdb", create=True) as store:
        (tmp_path / "out/runs.parquet").write_bytes(b"PAR1 not really")
        with pytest.raises(UserError, match=r"runs\.parquet cannot be read"):
            import_export(store, tmp_path / "out")
        manifest = json.loads((tmp_path / "out/export.json").read_text())
        (tmp_path / "out/export.json").write_text(json.dumps(manifest | {"schema_version": 99}))
        with pytest.raises(UserError, match="is of schema 99"):
            import_export(store, tmp_path / "out")
        assert store.sessions() == []


def test_merge_takes_what_is_missing_once(tmp_path):
    ours, theirs = tmp_path / "a.duckdb", tmp_path / "b.duckdb"
    fill(ours, "s1")
    fill(theirs, "s2", runs=3)
    for expected in ((1, 3, 0), (0, 0, 3)):
        with Store.open(ours) as store:
            found = merge(store, theirs)
            assert (found.sessions, found.runs, found.already_there) == expected
            assert found.conflicts == () and check(store) == []
    assert contents(ours)["samples"] == 250 and contents(ours)["runs"] == 5
    with Store.open(ours) as store, pytest.raises(UserError, match="the database itself"):
        merge(store, ours)
    with Store.open(ours) as store, pytest.raises(UserError, match="no database"):
        merge(store, tmp_path / "none.duckdb")


def test_merge_replaces_an_unfinished_run_and_reports_a_conflict(tmp_path):
    ours, theirs = tmp_path / "a.duckdb", tmp_path / "it's b.duckdb"
    fill(ours, "s")
    fill(theirs, "s")
    with Store.open(ours) as store:
        store.connection.execute("UPDATE runs SET finished_at = NULL WHERE run_id = 's-0'")
        store.connection.execute("DELETE FROM samples WHERE run_id = 's-0' AND t_ns > 10")
        found = merge(store, theirs)
        assert found.runs == 1 and found.already_there == 1
        # The two copies of s-1 finished at different moments.
        assert found.conflicts == ("s-1",)
        assert len(store.run_data("s-0").samples[1].value) == 50
        assert check(store) == []


def test_merging_real_and_emulated_sessions_must_be_asked_for(tmp_path):
    ours, theirs = tmp_path / "a.duckdb", tmp_path / "b.duckdb"
    fill(ours, "s1", runs=1)
    fill(theirs, "s2", runs=1)
    with Store.open(theirs) as store:
        store.connection.execute("UPDATE sessions SET emulated = true")
    with Store.open(ours) as store:
        with pytest.raises(UserError, match="holds sessions of real devices"):
            merge(store, theirs)
        assert len(store.sessions()) == 1
        assert merge(store, theirs, allow_mixed=True).sessions == 1


def test_a_failing_merge_changes_nothing(tmp_path):
    ours, theirs = tmp_path / "a.duckdb", tmp_path / "b.duckdb"
    fill(ours, "s1")
    fill(theirs, "s2")
    with duckdb.connect(str(theirs)) as connection:
        connection.execute("ALTER TABLE figures ADD COLUMN surprise INTEGER")
    before = contents(ours)
    with Store.open(ours) as store:
        with pytest.raises(UserError, match="surprise"):
            merge(store, theirs)
        assert store.count("SELECT count(*) FROM runs") == 2
    assert contents(ours) == before


def test_vacuum_gives_space_back_and_loses_nothing(tmp_path):
    path = tmp_path / "q.duckdb"
    fill(path, "s", samples=200_000)
    with Store.open(path) as store:
        store.connection.execute("DELETE FROM samples WHERE run_id = 's-0'")
    kept = contents(path)
    done = vacuum(path)
    before, after = done.before, done.after
    assert after < before and path.stat().st_size == after
    assert contents(path) == kept
    with Store.open(path) as store:
        assert check(store) == []
        assert store.table("SELECT * FROM quantization_results").num_rows == 2
        with pytest.raises(duckdb.ConstraintException):
            store.connection.execute("INSERT INTO runs SELECT * FROM runs")
    assert [p.name for p in tmp_path.iterdir()] == ["q.duckdb"]


def test_of_a_damaged_database_what_is_whole_is_exported(tmp_path):
    path = tmp_path / "q.duckdb"
    fill(path, "s", runs=3, samples=200_000)
    with Store.open(path) as store:
        store.connection.execute("CHECKPOINT")
    data = bytearray(path.read_bytes())
    # A block in the middle of the file belongs to the samples, by far the largest table.
    middle = len(data) // 2 // 4096 * 4096
    for i in range(middle, middle + 4096):
        data[i] ^= 0xFF
    path.write_bytes(data)
    with Store.open(path, read_only=True) as store:
        assert check(store)[0].startswith("samples: unreadable: ")
    done = export(path, tmp_path / "out")
    assert done.lost and all(line.startswith("samples: rows ") for line in done.lost)
    assert done.rows["runs"] == 3 and done.rows["figures"] == 3
    assert 0 < done.rows["samples"] < 600_000
    with pytest.raises(UserError, match="not sound"):
        vacuum(path)
    with Store.open(tmp_path / "saved.duckdb", create=True) as store:
        assert import_export(store, tmp_path / "out").runs == 3
        assert check(store) == []


def test_vacuum_drops_the_samples_of_old_runs_and_keeps_their_figures(tmp_path):
    path = tmp_path / "q.duckdb"
    fill(path, "old", runs=2, samples=50)
    fill(path, "new", runs=1, samples=30)
    with Store.open(path) as store:
        store.connection.execute(
            "UPDATE runs SET finished_at = finished_at - INTERVAL 31 DAY WHERE session_id = 'old'"
        )
        # One that was never finished may still be resumed: it keeps what it has.
        store.connection.execute("UPDATE runs SET finished_at = NULL WHERE run_id = 'old-1'")
    done = vacuum(path, timedelta(days=30))
    assert (done.runs, done.samples) == (1, 50)
    with Store.open(path, read_only=True) as store:
        assert check(store) == []
        assert not store.run_data("old-0").samples
        assert len(store.run_data("old-1").samples[1].value) == 50
        assert len(store.run_data("new-0").samples[1].value) == 30
        assert [f.metric for f in store.figures_of("old-0")] == ["latency_ms"]
    assert vacuum(path, timedelta(days=30)).samples == 0
    assert vacuum(path).runs == 0


@pytest.mark.parametrize(("text", "hours"), [("30d", 720), ("12h", 12), (" 4w ", 672), ("0d", 0)])
def test_ages(text, hours):
    assert parse_age(text) == timedelta(hours=hours)


@pytest.mark.parametrize("text", ["30", "d", "-1d", "1.5d", "30 months"])
def test_an_age_without_sense_is_one_clear_line(text):
    with pytest.raises(UserError, match="is no age"):
        parse_age(text)


def test_killed_writers_lose_nothing_that_was_acknowledged(tmp_path):
    bench = load_bench()
    rng = random.Random(7)
    counts = [bench.kill_once(tmp_path / "q.duckdb", rng, longest_s=0.4) for _ in range(5)]
    assert len(counts) == 5 and sum(counts) > 0
    with Store.open(tmp_path / "q.duckdb") as store:
        assert store.last_seq("stream") >= sum(counts)


def test_the_check_of_kills_notices_a_lost_batch(tmp_path):
    bench = load_bench()
    path = tmp_path / "q.duckdb"
    with Store.open(path, create=True) as store:
        store.new_session(bench.SESSION)
        run = bench.run_row(0)
        store.add_run(run, bench.CHANNELS)
        store.append("bench", "stream", [bench.raw_batch(run.run_id, 1, bench.KILL_ROWS)])
    bench.verify(path, 1, [])
    with pytest.raises(AssertionError, match="acknowledged 2"):
        bench.verify(path, 2, [])
    with pytest.raises(AssertionError, match="bench-000000"):
        bench.verify(path, 1, [run.run_id])
    with Store.open(path) as store:
        store.connection.execute("DELETE FROM samples WHERE channel = 3")
    with pytest.raises(AssertionError, match="samples of 1"):
        bench.verify(path, 1, [])


def test_speed_is_measured_on_a_database_like_a_labs(tmp_path):
    bench = load_bench()
    found = bench.speed(tmp_path / "q.duckdb", samples=20_000, runs=20, commands=False)
    assert found.samples == 20_000 and found.append_per_s > 0
    with Store.open(tmp_path / "q.duckdb", read_only=True) as store:
        assert store.count("SELECT count(*) FROM samples") == 20_000
        assert store.count("SELECT count(*) FROM quantization_results") == 20
