"""Opening a database file: one writer at a time, and one clear line for everything in the way."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import duckdb

from host.errors import UserError

ConfigValue = str | bool | int | float | list[str]

# Extensions are never fetched: what a query needs is built in, and a lab has no internet.
CONFIG: dict[str, ConfigValue] = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "threads": str(min(4, os.cpu_count() or 1)),
}
# Reading for a user's SQL: no files, no attached databases, no way to switch that off again.
LOCKED: dict[str, ConfigValue] = {"enable_external_access": "false", "lock_configuration": "true"}

DUCKDB_MAGIC = b"DUCK"
MAGIC_OFFSET = 8
POLL_S = 0.1


def connect(
    path: Path, *, read_only: bool, create: bool = False, wait_s: float = 10.0, locked: bool = False
) -> duckdb.DuckDBPyConnection:
    """A connection to `path`.

    While another process writes, waits up to `wait_s` seconds and then says who holds the file.
    Raises UserError for a missing, foreign, damaged or unwritable file.
    """
    _check_file(path, read_only=read_only, create=create)
    config = CONFIG | (LOCKED if locked else {})
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return duckdb.connect(str(path), read_only=read_only, config=config)
        except duckdb.ConnectionException as error:
            raise UserError(
                f"{path} is already open in this process.", "Close it before opening it again."
            ) from error
        except duckdb.IOException as error:
            if not path.exists():
                raise UserError(
                    f"The database {path} cannot be created.", "Change --db-path."
                ) from error
            if "lock" not in str(error).lower():
                raise damaged(path, error) from error
            if time.monotonic() >= deadline:
                raise _held(path, error, wait_s) from error
        except duckdb.Error as error:
            raise damaged(path, error) from error
        time.sleep(POLL_S)


def damaged(path: Path, error: Exception) -> UserError:
    """The error for a database whose content cannot be read."""
    reason = str(error).strip().splitlines()[0][:200]
    return UserError(
        f"{path} is damaged: {reason}",
        f"Save what is whole with: qhost db export --db-path {path} --output DIR.",
    )


def _check_file(path: Path, *, read_only: bool, create: bool) -> None:
    if path.is_dir():
        raise UserError(f"{path} is a directory, not a database.", "Give a file with --db-path.")
    if not path.exists():
        if not create:
            raise UserError(
                f"There is no database {path}.",
                "`qhost bench` writes one; give another with --db-path.",
            )
        if not path.parent.is_dir():
            raise UserError(
                f"The directory {path.parent} does not exist.", "Create it, or change --db-path."
            )
        if not os.access(path.parent, os.W_OK):
            raise UserError(f"The directory {path.parent} is read-only.", "Change --db-path.")
        return
    try:
        with path.open("rb") as file:
            head = file.read(MAGIC_OFFSET + len(DUCKDB_MAGIC))
    except PermissionError as error:
        raise UserError(f"{path} may not be read by this user.", "Change --db-path.") from error
    # Looked at here because DuckDB would take an SQLite file for a reason to fetch an extension.
    if head[MAGIC_OFFSET:] != DUCKDB_MAGIC:
        what = "is empty" if not head else "is not a DuckDB database"
        raise UserError(f"{path} {what}.", "Give another file with --db-path.")
    if not read_only and not os.access(path, os.W_OK):
        raise UserError(f"{path} is read-only.", "Make it writable, or change --db-path.")
    if not read_only and not os.access(path.parent, os.W_OK):
        raise UserError(
            f"The directory {path.parent} is read-only, and the log of the database goes there.",
            "Change --db-path.",
        )


def _held(path: Path, error: Exception, wait_s: float) -> UserError:
    match = re.search(r"held in (\S+).*?PID (\d+)", str(error))
    holder = f"process {match[2]} ({Path(match[1]).name})" if match else "another process"
    return UserError(
        f"{path} is in use by {holder}; waited {wait_s:g} s.",
        "Try again when it has finished, or write elsewhere with --db-path.",
    )
