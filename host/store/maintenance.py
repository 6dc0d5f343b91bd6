"""Checking, exporting, importing and merging databases."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from host.errors import UserError
from host.store.connection import connect, damaged
from host.store.database import RUN_TABLES, Store
from host.store.migrations import current_version, newest_version
from quant.figures import METRICS, Provenance

# Key columns decide what is the same row in two databases; child rows come with their parent.
SESSION_TABLES = ("devices", "clock_offsets", "clock_estimates", "streams")
TABLES = ("sessions", *SESSION_TABLES, "runs", *RUN_TABLES)
MANIFEST = "export.json"
FORMAT = "qhost.export"
# DuckDB's row group: the piece that a damaged block takes with it.
ROW_GROUP = 122_880


@dataclass(frozen=True)
class Exported:
    """Rows written by table, and what could not be read."""

    rows: dict[str, int]
    lost: tuple[str, ...]


@dataclass(frozen=True)
class Merged:
    """What came from one source. `conflicts`: finished runs that differ under one id."""

    sessions: int
    runs: int
    already_there: int
    conflicts: tuple[str, ...]


def check(store: Store) -> list[str]:
    """What is wrong in a database that opens; empty when nothing is. Reads every row."""
    found: list[str] = []
    for table in TABLES:
        # A checksum over all columns makes DuckDB read and verify every block of the table.
        try:
            store.table(f"SELECT bit_xor(hash(t)) FROM {table} AS t")
        except duckdb.Error as error:
            found.append(f"{table}: unreadable: {_line(error)}")
            return found
    for table in RUN_TABLES:
        found += _listed(
            store,
            f"SELECT DISTINCT run_id FROM {table} WHERE run_id NOT IN (SELECT run_id FROM runs)",
            f"{table}: rows of runs that do not exist",
        )
    for table in ("runs", *SESSION_TABLES):
        found += _listed(
            store,
            f"SELECT DISTINCT session_id FROM {table} "
            "WHERE session_id NOT IN (SELECT session_id FROM sessions)",
            f"{table}: rows of sessions that do not exist",
        )
    found += _listed(
        store,
        "SELECT DISTINCT run_id FROM samples ANTI JOIN channels USING (run_id, channel)",
        "samples: of channels that are not described",
    )
    found += _listed(
        store,
        "SELECT DISTINCT run_id FROM blocks WHERE len(per_iteration_us) NOT IN (0, inferences) "
        "OR t_last_ns < t_first_ns OR inferences <= 0",
        "blocks: counts or times that cannot be",
    )
    found += _listed(
        store,
        "SELECT run_id FROM runs WHERE status = 'ok' "
        "AND run_id NOT IN (SELECT run_id FROM figures)",
        "runs: ok, but without a figure",
    )
    for column, known in (("metric", list(METRICS)), ("provenance", [p.value for p in Provenance])):
        found += _listed(
            store,
            f"SELECT DISTINCT {column} FROM figures WHERE {column} NOT IN "
            f"({', '.join(repr(name) for name in known)})",
            f"figures: unknown {column}",
        )
    return found


def export(path: Path, target: Path) -> Exported:
    """Every table of a database as Parquet in the new directory `target`.

    Of a damaged database what can be read is exported, piece by piece. Raises UserError when not
    even its catalogue can be read, or `target` exists.
    """
    if target.exists():
        raise UserError(f"{target} exists.", "Give a directory that does not.")
    rows: dict[str, int] = {}
    lost: list[str] = []
    with _new_directory(target) as folder:
        reader = _Reader(path)
        version = reader.version()
        for table in TABLES:
            data, missing = reader.table(table)
            if data is not None:
                pq.write_table(data, folder / f"{table}.parquet", compression="zstd")
                rows[table] = data.num_rows
            lost += missing
        reader.close()
        manifest = {"format": FORMAT, "schema_version": version, "rows": rows, "lost": lost}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    return Exported(rows, tuple(lost))


def import_export(store: Store, source: Path, *, allow_mixed: bool = False) -> Merged:
    """An exported directory into a database; what is there already stays as it is.

    `allow_mixed`: as for `Store.new_session`.
    """
    manifest = _manifest(source)
    version = manifest["schema_version"]
    if version != newest_version():
        raise UserError(
            f"{source} is of schema {version}, this qhost of {newest_version()}.",
            "Export it again with this qhost, after `qhost db migrate`.",
        )
    with tempfile.TemporaryDirectory(dir=store.path.parent) as folder:
        copy = Path(folder) / "import.duckdb"
        with Store.open(copy, create=True) as other:
            for table in manifest["rows"]:
                if table in TABLES:
                    _load_parquet(other, table, source / f"{table}.parquet")
        return merge(store, copy, allow_mixed=allow_mixed)


def merge(store: Store, source: Path, *, allow_mixed: bool = False) -> Merged:
    """The sessions and runs of another database that this one lacks, in one transaction.

    A run that was not finished here and is there is replaced. A finished run that differs stays
    as it is here and is reported. `allow_mixed`: as for `Store.new_session`.
    """
    if source.resolve() == store.path.resolve():
        raise UserError(f"{source} is the database itself.", "Name another one.")
    # Opened by itself first, for the clear errors of a file that is missing, foreign or too old.
    Store.open(source, read_only=True).close()
    database = store.connection
    database.execute(f"ATTACH '{quoted(source)}' AS qhost_source (READ_ONLY)")
    try:
        if not allow_mixed:
            _refuse_mixing(store, source)
        with store.transaction():
            return _take(store)
    except duckdb.Error as error:
        raise damaged(source, error) from error
    finally:
        database.execute("DETACH qhost_source")


def _refuse_mixing(store: Store, source: Path) -> None:
    kinds = [
        set(store.table(f"SELECT DISTINCT emulated FROM {table}")["emulated"].to_pylist())
        for table in ("sessions", "qhost_source.sessions")
    ]
    here, there = kinds
    if here and there - here:
        names = {True: "emulated", False: "real"}
        raise UserError(
            f"{store.path} holds sessions of {names[here.pop()]} devices, {source} also others.",
            "Name the file with --db-path to mix both on purpose.",
        )


def _take(store: Store) -> Merged:
    """The SQL of `merge`, with the source attached as `qhost_source`."""
    run = store.connection.execute
    known = "SELECT session_id FROM sessions"
    sessions = store.count(
        f"SELECT count(*) FROM qhost_source.sessions WHERE session_id NOT IN ({known})"
    )
    run(
        f"INSERT INTO sessions BY NAME SELECT * FROM qhost_source.sessions "
        f"WHERE session_id NOT IN ({known})"
    )
    for table in ("devices", "clock_estimates", "streams"):
        run(f"INSERT OR IGNORE INTO {table} BY NAME SELECT * FROM qhost_source.{table}")
    run(
        "INSERT INTO clock_offsets BY NAME "
        "SELECT * FROM (SELECT * FROM qhost_source.clock_offsets "
        "EXCEPT SELECT * FROM clock_offsets)"
    )
    run(
        "CREATE OR REPLACE TEMP TABLE taken AS "
        "SELECT theirs.run_id FROM qhost_source.runs AS theirs "
        "LEFT JOIN runs AS ours USING (run_id) WHERE ours.run_id IS NULL "
        "OR (ours.finished_at IS NULL AND theirs.finished_at IS NOT NULL)"
    )
    conflicts = store.table(
        "SELECT run_id FROM qhost_source.runs AS theirs JOIN runs AS ours USING (run_id) "
        "WHERE ours.finished_at IS NOT NULL AND theirs.finished_at IS NOT NULL "
        "AND hash(ours) <> hash(theirs) ORDER BY run_id"
    )
    total = store.count("SELECT count(*) FROM qhost_source.runs")
    taken = store.count("SELECT count(*) FROM taken")
    for table in ("runs", *RUN_TABLES):
        chosen = "WHERE run_id IN (SELECT run_id FROM taken)"
        run(f"DELETE FROM {table} {chosen}")
        run(f"INSERT INTO {table} BY NAME SELECT * FROM qhost_source.{table} {chosen}")
    run("DROP TABLE taken")
    return Merged(sessions, taken, total - taken, tuple(conflicts["run_id"].to_pylist()))


def _load_parquet(store: Store, table: str, path: Path) -> None:
    try:
        with store.transaction():
            store.connection.execute(
                f"INSERT INTO {table} BY NAME SELECT * FROM read_parquet('{quoted(path)}')"
            )
    except duckdb.Error as error:
        raise UserError(
            f"{path} cannot be read: {_line(error)}", "Export the database again."
        ) from error


def quoted(path: Path) -> str:
    return str(path).replace("'", "''")


class _Reader:
    """Reads tables of a database that may be damaged.

    An unreadable block invalidates the whole connection, so each piece may need a new one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection = connect(path, read_only=True)

    def close(self) -> None:
        self._connection.close()

    def version(self) -> int:
        try:
            return current_version(self._connection, str(self._path))
        except duckdb.Error as error:
            raise UserError(
                f"{self._path} is damaged beyond reading: {_line(error)}",
                "Restore it from a copy.",
            ) from error

    def table(self, name: str) -> tuple[pa.Table | None, list[str]]:
        """All rows, or those of the pieces that can be read and a line for each that cannot."""
        try:
            return self._read(name, ""), []
        except duckdb.Error as error:
            first = _line(error)
        try:
            total = int(self._read(name, "", "max(rowid) AS n")["n"][0].as_py() or 0) + 1
        except duckdb.Error:
            return None, [f"{name}: {first}"]
        parts: list[pa.Table] = []
        lost: list[str] = []
        for start in range(0, total, ROW_GROUP):
            end = min(start + ROW_GROUP, total)
            try:
                parts.append(self._read(name, f"WHERE rowid >= {start} AND rowid < {end}"))
            except duckdb.Error as error:
                lost.append(f"{name}: rows {start} to {end - 1}: {_line(error)}")
        return (pa.concat_tables(parts) if parts else None), lost

    def _read(self, name: str, where: str, what: str = "*") -> pa.Table:
        try:
            return self._connection.sql(f"SELECT {what} FROM {name} {where}").to_arrow_table()
        except duckdb.Error:
            self._connection.close()
            self._connection = connect(self._path, read_only=True)
            raise


def _manifest(source: Path) -> dict[str, Any]:
    path = source / MANIFEST
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{source} is no export of qhost: {MANIFEST} cannot be read.",
            "Give the directory that `qhost db export` wrote.",
        ) from error
    if manifest.get("format") != FORMAT:
        raise UserError(f"{path} is not of `qhost db export`.", "Give another directory.")
    return dict(manifest)


@contextmanager
def _new_directory(target: Path) -> Iterator[Path]:
    """A directory that appears under its name only when it is complete."""
    if not target.parent.is_dir():
        raise UserError(f"The directory {target.parent} does not exist.", "Create it first.")
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield folder
        folder.chmod(0o755)
        folder.rename(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _listed(store: Store, sql: str, what: str) -> list[str]:
    names = [str(value) for value in store.table(sql).column(0).to_pylist()]
    return [f"{what}: {_some(names)}"] if names else []


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(sorted(names)[:3]) + more


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200]
