"""Numbered SQL files, applied in order, each in one transaction together with its record."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import duckdb

from host import __version__
from host.errors import UserError
from host.store.rows import utc_now

RECORD = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    version INTEGER PRIMARY KEY,
    name VARCHAR NOT NULL,
    sha256 VARCHAR NOT NULL,
    applied_at TIMESTAMP NOT NULL,
    host_version VARCHAR NOT NULL
)"""


@dataclass(frozen=True)
class Migration:
    version: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


@cache
def known_migrations() -> tuple[Migration, ...]:
    """Every migration of this version of qhost, in order."""
    found = []
    for file in files("host.store").joinpath("schema").iterdir():
        stem, dot, extension = file.name.rpartition(".")
        if dot and extension == "sql":
            number, _, name = stem.partition("_")
            found.append(Migration(int(number), name, file.read_text(encoding="utf-8")))
    found.sort(key=lambda migration: migration.version)
    return tuple(found)


def newest_version() -> int:
    return known_migrations()[-1].version


def current_version(connection: duckdb.DuckDBPyConnection, where: str) -> int:
    """Schema version of a database: 0 when it is empty.

    Raises UserError for somebody else's database, and for one of a newer qhost.
    """
    tables = {
        name
        for (name,) in connection.execute(
            "SELECT table_name FROM duckdb_tables() WHERE NOT internal AND database_name = "
            "current_database()"
        ).fetchall()
    }
    if "schema_migrations" not in tables:
        if tables:
            raise UserError(
                f"{where} is a DuckDB database, but not one of qhost.",
                "Give another file with --db-path.",
            )
        return 0
    rows = connection.execute("SELECT max(version) FROM schema_migrations").fetchall()
    version = int(rows[0][0] or 0)
    if version > newest_version():
        raise UserError(
            f"{where} was written by a newer qhost: its schema is {version}, this one knows "
            f"{newest_version()}.",
            "Update qhost, or give another file with --db-path.",
        )
    return version


def migrate(connection: duckdb.DuckDBPyConnection, version: int) -> list[Migration]:
    """Brings a database from `version` to the newest; returns what was applied."""
    connection.execute(RECORD)
    applied = []
    for migration in known_migrations():
        if migration.version <= version:
            continue
        connection.begin()
        try:
            connection.execute(migration.sql)
            connection.execute(
                "INSERT INTO schema_migrations VALUES (?, ?, ?, ?, ?)",
                [migration.version, migration.name, migration.sha256, utc_now(), __version__],
            )
        except BaseException:
            connection.rollback()
            raise
        connection.commit()
        applied.append(migration)
    return applied
