"""`Store`: the one writer of a database, and the questions the host asks of it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import duckdb
import numpy as np
import pyarrow as pa

from host.errors import FailureClass, RunStatus, UserError, unknown_name
from host.store import columns
from host.store.connection import connect, damaged
from host.store.migrations import current_version, migrate, newest_version
from host.store.rows import (
    Block,
    Channel,
    ClockOffset,
    DeviceRow,
    Floats,
    Golden,
    Load,
    Mark,
    RawBatch,
    RunData,
    RunRow,
    Samples,
    SessionRow,
    Stage,
    utc_now,
)
from quant.figures import Figure, Provenance

Row = TypeVar("Row")

# Everything that belongs to a run and goes when the run is done again.
RUN_TABLES = (
    "channels", "samples", "marks", "blocks", "loads", "goldens", "scores", "figures", "stages",
)  # fmt: skip


class Store:
    """A database file. Open with `Store.open`, use as a context manager.

    One process writes; every public method that writes is one transaction, so that whoever opens
    the file after a crash finds all of a call or nothing of it.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, path: Path, read_only: bool) -> None:
        self.path = path
        self.read_only = read_only
        self._connection = connection

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        create: bool = False,
        read_only: bool = False,
        wait_s: float = 10.0,
        locked: bool = False,
    ) -> Self:
        """Opens `path`; a writer brings an older schema up to date.

        `locked`: for SQL of the user; no other file can be reached through it.
        Raises UserError: missing, foreign, damaged, read-only, in use, or of a newer qhost.
        """
        connection = connect(path, read_only=read_only, create=create, wait_s=wait_s, locked=locked)
        try:
            version = current_version(connection, str(path))
            if read_only and version < newest_version():
                raise UserError(
                    f"{path} has schema {version}, this qhost reads {newest_version()}.",
                    f"Bring it up to date with: qhost db migrate --db-path {path}.",
                )
            if not read_only:
                migrate(connection, version)
        except duckdb.Error as error:
            connection.close()
            raise damaged(path, error) from error
        except BaseException:
            connection.close()
            raise
        return cls(connection, path, read_only)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # Writing -------------------------------------------------------------------------------

    def new_session(self, session: SessionRow, *, allow_mixed: bool = False) -> None:
        """Records a session.

        A database holds sessions of real devices or of emulated ones; `allow_mixed` (the user
        named the file with --db-path) lifts that. Raises UserError otherwise.
        """
        if not allow_mixed:
            other = self._value(
                "SELECT count(*) FROM sessions WHERE emulated <> ?", [session.emulated]
            )
            if other:
                here, new = ("real", "emulated") if session.emulated else ("emulated", "real")
                raise UserError(
                    f"{self.path} holds {other} session(s) of {here} devices; this one is of an "
                    f"{new} device.",
                    "Name the file with --db-path to mix both on purpose.",
                )
        with self._transaction():
            self._insert("sessions", [session])

    def finish_session(self, session_id: str) -> None:
        with self._transaction():
            self._connection.execute(
                "UPDATE sessions SET finished_at = ? WHERE session_id = ?", [utc_now(), session_id]
            )

    def add_device(self, device: DeviceRow) -> None:
        with self._transaction():
            self._insert("devices", [device], replace=True)

    def add_clock_offset(self, offset: ClockOffset) -> None:
        with self._transaction():
            self._insert("clock_offsets", [offset])

    def add_run(self, run: RunRow, channels: Sequence[Channel] = ()) -> None:
        """Records a run. One that is there already is replaced with all it has, unless it is ok."""
        with self._transaction():
            found = self._value("SELECT status FROM runs WHERE run_id = ?", [run.run_id])
            if found == RunStatus.OK:
                raise ValueError(f"run {run.run_id} is finished and ok")
            if found:
                for table in RUN_TABLES:
                    self._connection.execute(f"DELETE FROM {table} WHERE run_id = ?", [run.run_id])
            self._insert("runs", [run], replace=True)
            if channels:
                self._insert("channels", channels, run_id=run.run_id)

    def append(self, session_id: str, stream_id: str, batches: Sequence[RawBatch]) -> int:
        """Stores batches of one agent's stream; when it returns, they are on disk.

        `stream_id`: one per numbering of an agent, e.g. session and serial. Batches that are
        there already count once. Returns the number to acknowledge. Raises ValueError on a gap.
        """
        last = self.last_seq(stream_id)
        fresh = sorted((b for b in batches if b.seq > last), key=lambda batch: batch.seq)
        if not fresh:
            return last
        expected = range(last + 1, last + 1 + len(fresh))
        if [batch.seq for batch in fresh] != list(expected):
            raise ValueError(f"stream {stream_id}: batches missing after {last}")
        samples = columns.samples_table(fresh)
        with self._transaction():
            if samples is not None:
                self._insert_table("samples", samples)
            for table, name in (("loads", "load"), ("goldens", "golden")):
                for batch in fresh:
                    value = getattr(batch, name)
                    if value is not None:
                        self._insert(table, [value], run_id=batch.run_id)
            blocks = [(b.run_id, b.block) for b in fresh if b.block is not None]
            if blocks:
                self._insert_table("blocks", columns.blocks_table(blocks))
            marked = [batch for batch in fresh if batch.marks]
            if marked:
                tables = [columns.rows_table(batch.marks, run_id=batch.run_id) for batch in marked]
                self._insert_table("marks", pa.concat_tables(tables))
            self._connection.execute(
                "INSERT OR REPLACE INTO streams VALUES (?, ?, ?)",
                [stream_id, session_id, fresh[-1].seq],
            )
        return fresh[-1].seq

    def last_seq(self, stream_id: str) -> int:
        """Highest number of a stream that is on disk; 0 when nothing is."""
        value = self._value("SELECT last_seq FROM streams WHERE stream_id = ?", [stream_id])
        return int(value) if value is not None else 0

    def finish_run(
        self,
        run_id: str,
        status: RunStatus,
        *,
        failure_class: FailureClass | None = None,
        message: str = "",
        figures: Sequence[Figure] = (),
        power_method: str | None = None,
        power_update_hz: float | None = None,
    ) -> None:
        """The end of a run: its status and its figures appear together."""
        with self._transaction():
            if figures:
                self._insert("figures", figures, replace=True, run_id=run_id)
            self._connection.execute(
                "UPDATE runs SET status = ?, failure_class = ?, message = ?, finished_at = ?, "
                "power_method = coalesce(?, power_method), "
                "power_update_hz = coalesce(?, power_update_hz) WHERE run_id = ?",
                [
                    status.value,
                    failure_class.value if failure_class else None,
                    message,
                    utc_now(),
                    power_method,
                    power_update_hz,
                    run_id,
                ],
            )

    def set_artifact(self, run_id: str, sha256: str) -> None:
        """Which .qnn a run is of, known once it is built."""
        with self._transaction():
            self._connection.execute(
                "UPDATE runs SET artifact_sha256 = ? WHERE run_id = ?", [sha256, run_id]
            )

    def add_figures(self, run_id: str, figures: Sequence[Figure]) -> None:
        """Figures of a run; one of the same metric and provenance replaces the older."""
        if figures:
            with self._transaction():
                self._insert("figures", figures, replace=True, run_id=run_id)

    def add_scores(self, run_id: str, engine: Provenance, metric: str, scores: Floats) -> None:
        """Per-sample scores (N, ...) of one engine, for paired comparisons."""
        with self._transaction():
            self._connection.execute(
                "INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?, ?)",
                [
                    run_id,
                    engine.value,
                    metric,
                    list(scores.shape),
                    np.asarray(scores, np.float64).ravel().tolist(),
                ],
            )

    def add_stages(self, run_id: str, stages: Sequence[Stage]) -> None:
        if stages:
            with self._transaction():
                self._insert("stages", stages, run_id=run_id)

    # Reading -------------------------------------------------------------------------------

    def table(self, sql: str, parameters: Sequence[object] = ()) -> pa.Table:
        """The result of one SELECT."""
        return self._connection.sql(sql, params=list(parameters)).to_arrow_table()

    def sessions(self) -> list[SessionRow]:
        """Every session, newest first."""
        return self._rows(SessionRow, "SELECT * FROM sessions ORDER BY created_at DESC, session_id")

    def session(self, name: str) -> SessionRow:
        """A session by its id, by the beginning of it, or `latest`. UserError: nearest ids."""
        found = self.sessions()
        if name == "latest" and found:
            return found[0]
        chosen = _resolve("session", name, [s.session_id for s in found])
        return next(s for s in found if s.session_id == chosen)

    def run(self, name: str) -> RunRow:
        """A run by its id, by the beginning of it, or `latest`. UserError: nearest ids."""
        ids = [
            str(run_id)
            for (run_id,) in self._connection.execute(
                "SELECT run_id FROM runs ORDER BY created_at DESC, run_id"
            ).fetchall()
        ]
        chosen = ids[0] if name == "latest" and ids else _resolve("run", name, ids)
        return self._runs("WHERE run_id = ?", [chosen])[0]

    def runs_of(self, session_id: str) -> list[RunRow]:
        """The runs of a session, in the order in which they were planned."""
        return self._runs("WHERE session_id = ?", [session_id])

    def resumable(self, fingerprint: str) -> SessionRow | None:
        """The latest session with this fingerprint: the one --resume continues."""
        found = self._rows(
            SessionRow,
            "SELECT * FROM sessions WHERE fingerprint = ? ORDER BY created_at DESC LIMIT 1",
            [fingerprint],
        )
        return found[0] if found else None

    def finished_variants(self, session_id: str) -> dict[tuple[str, str], str]:
        """(variant, device_serial) -> run_id of the runs --resume need not do again."""
        rows = self._connection.execute(
            "SELECT variant, device_serial, run_id FROM runs WHERE session_id = ? "
            "AND status IN ('ok', 'skipped')",
            [session_id],
        ).fetchall()
        return {(variant, serial): run_id for variant, serial, run_id in rows}

    def last_time_ns(self, session_id: str) -> int:
        """The latest device time stored for a session; 0 when there is none."""
        value = self._value(
            "SELECT max(t) FROM (SELECT max(t_end_ns) AS t FROM marks JOIN runs USING (run_id) "
            "WHERE session_id = $1 UNION ALL SELECT max(t_ns) FROM samples JOIN runs "
            "USING (run_id) WHERE session_id = $1)",
            [session_id],
        )
        return int(value) if value is not None else 0

    def figures_of(self, run_id: str) -> list[Figure]:
        return self._rows(
            Figure,
            "SELECT * EXCLUDE (run_id) FROM figures WHERE run_id = ? ORDER BY metric, provenance",
            [run_id],
        )

    def scores_of(self, run_id: str, engine: Provenance) -> Floats | None:
        """Per-sample scores in their shape, or None."""
        found = self._connection.execute(
            "SELECT shape, score FROM scores WHERE run_id = ? AND engine = ?",
            [run_id, engine.value],
        ).fetchall()
        return np.asarray(found[0][1], np.float64).reshape(found[0][0]) if found else None

    def run_data(self, run_id: str) -> RunData:
        """Everything raw of one run."""
        where = "WHERE run_id = ?"
        table = self.table(
            f"SELECT channel, t_ns, value FROM samples {where} ORDER BY channel, t_ns", [run_id]
        )
        channel = table["channel"].to_numpy()
        t_ns = table["t_ns"].to_numpy().astype(np.int64)
        value = table["value"].to_numpy()
        ids, starts = np.unique(channel, return_index=True)
        ends = np.append(starts, len(channel))[1:]  # also right for no samples at all
        samples = {
            int(i): Samples(int(i), t_ns[a:b], value[a:b])
            for i, a, b in zip(ids, starts, ends, strict=True)
        }
        blocks = self._rows(
            Block, f"SELECT * EXCLUDE (run_id) FROM blocks {where} ORDER BY block_index", [run_id]
        )
        loads = self._rows(Load, f"SELECT * EXCLUDE (run_id) FROM loads {where}", [run_id])
        goldens = self._rows(Golden, f"SELECT * EXCLUDE (run_id) FROM goldens {where}", [run_id])
        return RunData(
            run_id=run_id,
            blocks=tuple(blocks),
            channels=tuple(
                self._rows(
                    Channel,
                    f"SELECT * EXCLUDE (run_id) FROM channels {where} ORDER BY channel",
                    [run_id],
                )
            ),
            samples=samples,
            marks=tuple(
                self._rows(
                    Mark,
                    f"SELECT * EXCLUDE (run_id) FROM marks {where} ORDER BY t_start_ns",
                    [run_id],
                )
            ),
            load=loads[-1] if loads else None,
            golden=goldens[-1] if goldens else None,
        )

    def provenance_counts(self, session_id: str | None = None) -> dict[Provenance, int]:
        """How many figures there are of each provenance, in all or of one session."""
        where = "" if session_id is None else "JOIN runs USING (run_id) WHERE session_id = ?"
        rows = self._connection.execute(
            f"SELECT provenance, count(*) FROM figures {where} GROUP BY provenance ORDER BY 1",
            [] if session_id is None else [session_id],
        ).fetchall()
        return {Provenance(name): int(count) for name, count in rows}

    # Inside --------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.begin()
        try:
            yield
        except BaseException:
            self._connection.rollback()
            raise
        self._connection.commit()

    def _insert(
        self, table: str, rows: Sequence[Any], *, replace: bool = False, **extra: object
    ) -> None:
        self._insert_table(table, columns.rows_table(rows, **extra), replace=replace)

    def _insert_table(self, table: str, rows: pa.Table, *, replace: bool = False) -> None:
        verb = "INSERT OR REPLACE" if replace else "INSERT"
        self._connection.register("arriving", rows)
        try:
            self._connection.execute(f"{verb} INTO {table} BY NAME SELECT * FROM arriving")
        finally:
            self._connection.unregister("arriving")

    def _value(self, sql: str, parameters: Sequence[object] = ()) -> Any:
        # fetchall: a result that is not read to its end blocks the connection.
        rows = self._connection.execute(sql, list(parameters)).fetchall()
        return rows[0][0] if rows else None

    def _runs(self, where: str, parameters: Sequence[object]) -> list[RunRow]:
        return self._rows(
            RunRow, f"SELECT * FROM runs {where} ORDER BY created_at, run_id", parameters
        )

    def _rows(self, kind: type[Row], sql: str, parameters: Sequence[object] = ()) -> list[Row]:
        cursor = self._connection.execute(sql, list(parameters))
        names = [column[0] for column in cursor.description or ()]
        wanted = {field.name for field in fields(kind)}  # type: ignore[arg-type]
        return [
            kind(**{n: _typed(n, v) for n, v in zip(names, row, strict=True) if n in wanted})
            for row in cursor.fetchall()
        ]


def new_session_id() -> str:
    """Sorts by time, and is short enough to type: 20260131-142501-3fa9."""
    return f"{utc_now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def _typed(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name == "status":
        return RunStatus(value)
    if name == "failure_class":
        return FailureClass(value)
    if name == "provenance":
        return Provenance(value)
    if name == "per_iteration_us":
        return np.asarray(value, np.float32)
    return value


def _resolve(what: str, name: str, ids: Sequence[str]) -> str:
    if name in ids:
        return name
    starting = [known for known in ids if name and known.startswith(name)]
    if len(starting) == 1:
        return starting[0]
    if starting:
        raise UserError(
            f"{what.capitalize()} {name!r} is ambiguous: {len(starting)} begin so.",
            f"For example {', '.join(starting[:3])}.",
        )
    if not ids:
        raise UserError(f"There is no {what} in the database.", "`qhost bench` makes one.")
    error = unknown_name(what, name, ids)
    if error.hint.startswith("Known:") and len(ids) > 5:
        error = UserError(error.message, f"The latest are {', '.join(ids[:5])}.")
    raise error
