"""`qhost db`: migrate, check, export, import, merge and vacuum a database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from host.cli.report import database_path
from host.errors import ExitCode, UserError

if TYPE_CHECKING:
    from host.store import Store

DbPath = Annotated[Path | None, typer.Option("--db-path", help="Database to work on.")]
Mock = Annotated[bool, typer.Option("--mock", help="Use the database of emulated devices.")]


def migrate(db_path: DbPath = None, mock: Mock = False) -> None:
    """Bring a database to the schema of this qhost."""
    from host.store import Store
    from host.store.migrations import newest_version

    path = database_path(db_path, mock=mock)
    with Store.open(path) as store:
        for migration in store.migrated:
            print(f"applied {migration.version:04d} {migration.name}")
    print(f"{path} has schema {newest_version()}")


def check(db_path: DbPath = None, mock: Mock = False) -> None:
    """Read every row and look for what cannot be; exit 1 when something is wrong."""
    from host.store import Store
    from host.store.maintenance import check as problems_of

    path = database_path(db_path, mock=mock)
    with Store.open(path, read_only=True) as store:
        problems = problems_of(store)
        counts = {
            name: store.count(f"SELECT count(*) FROM {name}") for name in ("sessions", "runs")
        }
    for problem in problems:
        print(problem)
    if problems:
        raise UserError(
            f"{path} has {len(problems)} problem(s).",
            f"Save what is whole with: qhost db export --db-path {path} --output DIR.",
        )
    print(f"{path} is sound: {counts['sessions']} sessions, {counts['runs']} runs")


def export(
    output: Annotated[Path, typer.Option(help="New directory for the Parquet files.")],
    db_path: DbPath = None,
    mock: Mock = False,
) -> int:
    """Every table as Parquet; of a damaged database what can still be read."""
    from host.store.maintenance import export as export_database

    done = export_database(database_path(db_path, mock=mock), output)
    for table, rows in done.rows.items():
        print(f"{table}: {rows} rows")
    print(output.resolve())
    if done.lost:
        for line in done.lost:
            typer.echo(f"lost {line}", err=True)
        typer.echo(f"qhost: {len(done.lost)} piece(s) could not be read", err=True)
        return ExitCode.JOBS_FAILED
    return ExitCode.OK


def import_(
    source: Annotated[Path, typer.Argument(help="Directory that `qhost db export` wrote.")],
    db_path: DbPath = None,
    mock: Mock = False,
) -> None:
    """Sessions and runs of an export into a database; what is there already stays."""
    from host.store.maintenance import import_export

    with _filled(_target(db_path, mock)) as store:
        found = import_export(store, source, allow_mixed=db_path is not None)
    _print_merged(source, found.sessions, found.runs, found.already_there, found.conflicts)


def merge(
    sources: Annotated[list[Path], typer.Argument(help="Databases to take runs from.")],
    db_path: DbPath = None,
    mock: Mock = False,
) -> None:
    """Sessions and runs of other hosts' databases into one, without duplicates."""
    from host.store.maintenance import merge as merge_database

    with _filled(_target(db_path, mock)) as store:
        for source in sources:
            found = merge_database(store, source, allow_mixed=db_path is not None)
            _print_merged(source, found.sessions, found.runs, found.already_there, found.conflicts)


def vacuum(
    keep_raw: Annotated[
        str | None,
        typer.Option(help="Remove the sensors' samples of runs older than this: 30d, 12h, 4w."),
    ] = None,
    db_path: DbPath = None,
    mock: Mock = False,
) -> None:
    """Give the space of deleted rows back; with --keep-raw, that of old samples too."""
    from host.store.vacuum import parse_age
    from host.store.vacuum import vacuum as vacuum_database

    age = parse_age(keep_raw) if keep_raw is not None else None
    path = database_path(db_path, mock=mock)
    done = vacuum_database(path, age)
    if age is not None:
        print(f"removed {done.samples:,} samples of {done.runs} run(s); their figures stay")
    print(f"{path}: {done.before / 1e6:.1f} MB before, {done.after / 1e6:.1f} MB after")


def register(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, help="Look after the databases of results.")
    for name, verb in (
        ("migrate", migrate),
        ("check", check),
        ("export", export),
        ("import", import_),
        ("merge", merge),
        ("vacuum", vacuum),
    ):
        group.command(name)(verb)
    app.add_typer(group, name="db")


@contextmanager
def _filled(path: Path) -> Iterator[Store]:
    """The database that rows go into; one made for them is removed again when they are refused."""
    from host.store import Store

    new = not path.exists()
    try:
        with Store.open(path, create=True) as store:
            yield store
    except BaseException:
        if new:
            path.unlink(missing_ok=True)
            path.with_name(f"{path.name}.wal").unlink(missing_ok=True)
        raise


def _target(db_path: Path | None, mock: bool) -> Path:
    """Where rows go: a file that may not exist yet, when it is named."""
    return db_path if db_path is not None else database_path(None, mock=mock)


def _print_merged(
    source: Path, sessions: int, runs: int, already: int, conflicts: tuple[str, ...]
) -> None:
    print(f"{source}: {sessions} new sessions, {runs} new runs, {already} runs were here already")
    for run_id in conflicts:
        typer.echo(f"qhost: run {run_id} differs from the one here, which stays", err=True)
