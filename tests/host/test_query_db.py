"""`qhost query` and `qhost db` through their commands, on a database like the guide's."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from host.cli import db as db_verb
from host.cli import query as query_verb
from host.errors import RunStatus, UserError
from host.query import run_query
from host.store import RunRow, SessionRow, Store
from quant.figures import Figure, Provenance

# The guide's three queries, word for word.
GUIDE_A = (
    "SELECT model_name, quantization_method, accuracy, latency, power_consumption, model_size "
    "FROM quantization_results WHERE hardware_type='qualcomm' ORDER BY power_consumption ASC"
)
GUIDE_B = (
    "SELECT model_name, quantization_method, accuracy, latency_ms, power_watts, model_size_mb "
    "FROM quantization_results WHERE model_type = 'text' AND hardware_type = 'qualcomm' "
    "ORDER BY latency_ms ASC"
)
GUIDE_C = (
    "SELECT quantization_method, AVG(power_watts) as avg_power, "
    "AVG(throughput_items_per_sec / power_watts) as efficiency FROM quantization_results "
    "WHERE model_type = 'vision' GROUP BY quantization_method ORDER BY efficiency DESC"
)
RUN = RunRow(
    run_id="", session_id="s1", model_name="net", model_type="vision", model_fingerprint="f",
    task_fingerprint="t", soc="sm8650", device="Phone", device_serial="SER", method="",
    variant="", profile="rapid", created_at=datetime(2026, 1, 2),
)  # fmt: skip


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "q.duckdb"
    with Store.open(file, create=True) as store:
        store.new_session(SessionRow("s1", "p", emulated=True, profile="rapid", seed=0))
        for i, (method, model_type) in enumerate(
            [("fp16", "vision"), ("int8", "vision"), ("int4", "text"), ("qat", "text")]
        ):
            run_id = f"r{i}"
            store.add_run(
                replace(RUN, run_id=run_id, model_type=model_type, method=method, variant=method)
            )
            if method == "qat":
                continue  # never finished
            values = {
                "accuracy": (0.9 - i / 100, Provenance.HTP_EMULATOR),
                "latency_ms": (8.0 / 2**i, Provenance.EMULATED_DEVICE),
                "throughput_items_per_sec": (100.0 * 2**i, Provenance.EMULATED_DEVICE),
                "power_mw": (2000.0 - 100 * i, Provenance.EMULATED_DEVICE),
                "model_size_bytes": (4e6 / 2**i, Provenance.FILE),
            }
            store.finish_run(
                run_id,
                RunStatus.OK,
                figures=[Figure(m, v, "", p, 6) for m, (v, p) in values.items()],
            )
    return file


@pytest.fixture
def cli(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    app = typer.Typer()
    query_verb.register(app)
    db_verb.register(app)
    runner = CliRunner()

    def call(*args: str):
        result = runner.invoke(app, [*args, "--db-path", str(path)])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


def test_the_guides_queries_run_word_for_word(path):
    a = run_query(path, GUIDE_A).table.to_pylist()
    assert [(r["quantization_method"], r["power_consumption"], r["model_size"]) for r in a] == [
        ("int4", 1800, 1.0), ("int8", 1900, 2.0), ("fp16", 2000, 4.0),
    ]  # fmt: skip
    b = run_query(path, GUIDE_B).table.to_pylist()
    assert b == [
        {
            "model_name": "net", "quantization_method": "int4", "accuracy": 0.88,
            "latency_ms": 2.0, "power_watts": 1.8, "model_size_mb": 1.0,
        }
    ]  # fmt: skip
    c = run_query(path, GUIDE_C).table.to_pylist()
    assert [r["quantization_method"] for r in c] == ["int8", "fp16"]
    assert c[0]["efficiency"] == pytest.approx(200 / 1.9) and c[1]["avg_power"] == 2.0


def test_provenance_is_counted_over_what_was_read(path):
    everything = run_query(path, GUIDE_C).provenance
    assert everything == {
        Provenance.EMULATED_DEVICE: 9, Provenance.FILE: 3, Provenance.HTP_EMULATOR: 3,
    }  # fmt: skip
    one = run_query(path, "SELECT run_id FROM quantization_results WHERE latency_ms < 3")
    assert one.provenance[Provenance.EMULATED_DEVICE] == 3
    assert run_query(path, "SELECT 1 AS x").provenance == {}


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("DELETE FROM runs", "DELETE statement"),
        ("INSERT INTO properties VALUES ('a', 'b')", "INSERT statement"),
        ("COPY runs TO 'x.csv'", "COPY statement"),
        ("ATTACH 'other.duckdb'", "ATTACH statement"),
        ("SET enable_external_access = true", "SET statement"),
        ("CREATE TEMP TABLE x AS SELECT 1", "CREATE statement"),
        ("WITH x AS (DELETE FROM runs RETURNING *) SELECT * FROM x", "only reads"),
        ("SELECT 1; DROP TABLE runs", "2 statements"),
        ("  -- nothing", "no statement"),
        ("SELEC 1", "syntax error"),
        ("SELECT latencyms FROM quantization_results", "Candidate bindings.*latency_ms"),
        ("SELECT * FROM quantisation_results", 'Did you mean "quantization_results"'),
        ("SELECT * FROM read_csv('/etc/passwd')", "file system operations are disabled"),
        ("SELECT 'a'::INTEGER", "Could not convert"),
    ],
)
def test_sql_that_writes_or_fails_gets_one_clear_line(path, sql, message):
    before = path.read_bytes()
    with pytest.raises(UserError, match=message) as caught:
        run_query(path, sql)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


def test_formats(cli, path, tmp_path):
    sql = "SELECT variant, latency_ms, energy_mj FROM quantization_results ORDER BY 1"
    table = cli("query", "--sql", sql)
    assert table.exit_code == 0
    assert [line.split() for line in table.stdout.splitlines()] == [
        ["variant", "latency_ms", "energy_mj"], ["fp16", "8"], ["int4", "2"], ["int8", "4"],
    ]  # fmt: skip
    assert table.stderr == "qhost: figures read: 9 emulated_device, 3 file, 3 htp_emulator\n"
    text = cli("query", "--sql", sql, "--format", "csv").stdout
    assert list(csv.reader(io.StringIO(text)))[1] == ["fp16", "8.0", ""]
    rows = json.loads(cli("query", "--sql", sql, "--format", "json").stdout)
    assert rows[1] == {"variant": "int4", "latency_ms": 2.0, "energy_mj": None}
    text = cli("query", "--sql", sql, "--format", "markdown").stdout
    assert text.splitlines()[:3] == [
        "| variant | latency_ms | energy_mj |", "| --- | --- | --- |", "| fp16 | 8 |  |",
    ]  # fmt: skip
    page = cli("query", "--sql", "SELECT '<b>&' AS \"a|b\"", "--format", "html").stdout
    assert "<td>&lt;b&gt;&amp;</td>" in page
    cli("query", "--sql", sql, "--output", str(tmp_path / "out.parquet"))
    assert pq.read_table(tmp_path / "out.parquet")["latency_ms"].to_pylist() == [8.0, 2.0, 4.0]
    cli("query", "--sql", sql, "--output", str(tmp_path / "out.csv"))
    assert (tmp_path / "out.csv").read_text().splitlines()[0] == "variant,latency_ms,energy_mj"
    with pytest.raises(UserError, match="binary"):
        cli("query", "--sql", sql, "--format", "parquet")
    with pytest.raises(UserError, match="Did you mean csv"):
        cli("query", "--sql", sql, "--format", "cvs")


def test_values_that_json_lacks_and_equal_names(cli):
    sql = (
        "SELECT 'nan'::DOUBLE AS a, 'inf'::DOUBLE AS b, [1.5, NULL] AS c, "
        "TIMESTAMP '2026-01-02' AS d, 12::DECIMAL(5, 2) AS e, {'k': 1} AS f"
    )
    row = json.loads(cli("query", "--sql", sql, "--format", "json").stdout)[0]
    assert row == {
        "a": None, "b": None, "c": [1.5, None], "d": "2026-01-02T00:00:00", "e": 12.0,
        "f": {"k": 1},
    }  # fmt: skip
    assert cli("query", "--sql", "SELECT 1 AS a, 2 AS a", "--format", "csv").stdout == "a,a\n1,2\n"
    text = cli("query", "--sql", "SELECT range AS n FROM range(1500)").stdout
    assert "... and 500 more rows" in text


def test_a_missing_database_is_named(cli, path):
    path.unlink()
    with pytest.raises(UserError, match="There is no database"):
        cli("query", "--sql", "SELECT 1")


def test_db_verbs(cli, path, tmp_path):
    assert cli("db", "migrate").stdout.startswith(f"{path} has schema")
    assert cli("db", "check").stdout == f"{path} is sound: 1 sessions, 4 runs\n"
    out = tmp_path / "out"
    assert "runs: 4 rows" in cli("db", "export", "--output", str(out)).stdout
    other = tmp_path / "other.duckdb"
    runner = CliRunner()
    app = typer.Typer()
    db_verb.register(app)
    imported = runner.invoke(app, ["db", "import", str(out), "--db-path", str(other)])
    assert "1 new sessions, 4 new runs, 0 runs were here already" in imported.stdout
    merged = runner.invoke(app, ["db", "merge", str(path), "--db-path", str(other)])
    assert "0 new sessions, 0 new runs, 4 runs were here already" in merged.stdout
    assert "MB after" in cli("db", "vacuum").stdout
    with duckdb.connect(str(path)) as connection:
        connection.execute("DELETE FROM sessions")
    with pytest.raises(UserError, match=r"1 problem\(s\)"):
        cli("db", "check")


def test_migrating_an_older_database(tmp_path, monkeypatch):
    from host.store import migrations

    path = tmp_path / "old.duckdb"
    with monkeypatch.context() as patch, duckdb.connect(str(path)) as connection:
        first = migrations.known_migrations()[:1]
        patch.setattr(migrations, "known_migrations", lambda: first)
        migrations.migrate(connection, 0)
    with pytest.raises(UserError, match="qhost db migrate"):
        run_query(path, "SELECT 1")
    app = typer.Typer()
    db_verb.register(app)
    done = CliRunner().invoke(app, ["db", "migrate", "--db-path", str(path)])
    assert "applied 0002 views" in done.stdout
    with Store.open(path, read_only=True) as store:
        assert store.count("SELECT max(version) FROM schema_migrations") == (
            migrations.newest_version()
        )
        assert store.table("SELECT * FROM quantization_results").num_rows == 0


def test_a_migration_that_fails_leaves_the_database_as_it_was(tmp_path, monkeypatch):
    from host.store import migrations

    path = tmp_path / "q.duckdb"
    Store.open(path, create=True).close()
    bad = migrations.Migration(
        migrations.newest_version() + 1, "bad", "CREATE TABLE half (a INTEGER); SELECT no_such;"
    )
    known = (*migrations.known_migrations(), bad)
    monkeypatch.setattr(migrations, "known_migrations", lambda: known)
    with pytest.raises(UserError, match="cannot be brought to schema"):
        Store.open(path)
    monkeypatch.undo()
    with Store.open(path) as store:
        assert store.migrated == ()
        assert store.count("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'half'") == 0


def test_the_sql_of_the_user_guide_runs(path):
    text = (Path(__file__).resolve().parents[2] / "docs/results.md").read_text("utf-8")
    blocks = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    assert [" ".join(block.split()) for block in blocks] == [GUIDE_A, GUIDE_B, GUIDE_C]
    for block in blocks:
        assert run_query(path, block).table.num_rows > 0


def test_a_refused_import_or_merge_leaves_no_new_database(tmp_path):
    target = tmp_path / "all.duckdb"
    with pytest.raises(UserError, match="is no export of qhost"):
        db_verb.import_(tmp_path, target)
    with pytest.raises(UserError, match="There is no database"):
        db_verb.merge([tmp_path / "none.duckdb"], target)
    assert not list(tmp_path.iterdir())
