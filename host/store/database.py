"""`Store`: a database file, and the one writer of it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import duckdb
import numpy as np
import pyarrow as pa

from host.errors import FailureClass, RunStatus, UserError
from host.store import columns
from host.store.connection import connect, damaged
from host.store.migrations import Migration, current_version, migrate, newest_version
from host.store.queries import Queries
from host.store.rows import (
    Channel,
    ClockEstimate,
    ClockOffset,
    DeviceRow,
    Floats,
    OpProfile,
    Profile,
    RawBatch,
    RunRow,
    Samples,
    SessionRow,
    Stage,
    utc_now,
)
from quant.figures import Figure, Provenance

# Everything that belongs to a run and goes when the run is done again.
RUN_TABLES = (
    "channels", "samples", "marks", "blocks", "loads", "goldens", "scores", "figures", "stages",
    "cooldowns", "sampler_reports", "channel_reports", "memory_passes", "op_profiles", "profiles",
)  # fmt: skip


class Store(Queries):
    """A database file. Open with `Store.open`, use as a context manager.

    One process writes; every public method that writes is one transaction, so that whoever opens
    the file after a crash finds all of a call or nothing of it.
    """

    migrated: tuple[Migration, ...] = ()  # what opening it applied

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
            migrated = [] if read_only else _migrated(connection, version, path)
        except duckdb.Error as error:
            connection.close()
            raise damaged(path, error) from error
        except BaseException:
            connection.close()
            raise
        store = cls(connection, path, read_only)
        store.migrated = tuple(migrated)
        return store

    def close(self) -> None:
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def new_session(self, session: SessionRow, *, allow_mixed: bool = False) -> None:
        """Records a session.

        A database holds sessions of real devices or of emulated ones; `allow_mixed` (the user
        named the file with --db-path) lifts that. Raises UserError otherwise. Sessions that
        never had a device, because it could not be opened, count for neither.
        """
        if not allow_mixed:
            other = self._value(
                "SELECT count(*) FROM sessions SEMI JOIN devices USING (session_id) "
                "WHERE emulated <> ?",
                [session.emulated],
            )
            if other:
                here, new = ("real", "emulated") if session.emulated else ("emulated", "real")
                raise UserError(
                    f"{self.path} holds {other} session(s) of {here} devices; this one is of an "
                    f"{new} device.",
                    "Name the file with --db-path to mix both on purpose.",
                )
        with self.transaction():
            self._insert("sessions", [session])

    def finish_session(self, session_id: str) -> None:
        with self.transaction():
            self.connection.execute(
                "UPDATE sessions SET finished_at = ? WHERE session_id = ?", [utc_now(), session_id]
            )

    def add_device(self, device: DeviceRow) -> None:
        with self.transaction():
            self._insert("devices", [device], replace=True)

    def add_clock(self, offset: ClockOffset, estimate: ClockEstimate) -> None:
        """One more observation of a device's clock, and the line that follows from all."""
        with self.transaction():
            self._insert("clock_offsets", [offset])
            self._insert("clock_estimates", [estimate], replace=True)

    def add_run(self, run: RunRow, channels: Sequence[Channel] = ()) -> None:
        """Records a run. One that is there already is replaced with all it has, unless it is ok."""
        with self.transaction():
            found = self._value("SELECT status FROM runs WHERE run_id = ?", [run.run_id])
            if found == RunStatus.OK:
                raise ValueError(f"run {run.run_id} is finished and ok")
            if found:
                for table in RUN_TABLES:
                    self.connection.execute(f"DELETE FROM {table} WHERE run_id = ?", [run.run_id])
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
        with self.transaction():
            if samples is not None:
                self._insert_table("samples", samples)
            for table, name in (
                ("loads", "load"), ("goldens", "golden"), ("cooldowns", "cooldown"),
                ("sampler_reports", "sampler"), ("memory_passes", "memory"),
                ("profiles", "profile"),
            ):  # fmt: skip
                for batch in fresh:
                    value = getattr(batch, name)
                    if value is not None:
                        self._insert(table, [value], run_id=batch.run_id)
            for batch in fresh:
                if batch.channel_reports:
                    self._insert("channel_reports", batch.channel_reports, run_id=batch.run_id)
                if batch.ops:
                    # A resumed run is profiled again.
                    self.connection.execute(
                        "DELETE FROM op_profiles WHERE run_id = ?", [batch.run_id]
                    )
                    self._insert("op_profiles", batch.ops, run_id=batch.run_id)
            blocks = [(b.run_id, b.block) for b in fresh if b.block is not None]
            if blocks:
                self._insert_table("blocks", columns.blocks_table(blocks))
            marked = [batch for batch in fresh if batch.marks]
            if marked:
                tables = [columns.rows_table(batch.marks, run_id=batch.run_id) for batch in marked]
                self._insert_table("marks", pa.concat_tables(tables))
            self.connection.execute(
                "INSERT OR REPLACE INTO streams VALUES (?, ?, ?)",
                [stream_id, session_id, fresh[-1].seq],
            )
        return fresh[-1].seq

    def add_samples(self, run_id: str, samples: Sequence[Samples]) -> None:
        """Samples that the host took itself, of an external meter."""
        table = columns.samples_table([RawBatch(0, run_id, tuple(samples))])
        if table is not None:
            with self.transaction():
                self._insert_table("samples", table)

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
        notes: Sequence[str] = (),
    ) -> None:
        """The end of a run: its status and its figures appear together; `notes` join its notes."""
        with self.transaction():
            if notes:
                before = self._value("SELECT notes_json FROM runs WHERE run_id = ?", [run_id])
                self.connection.execute(
                    "UPDATE runs SET notes_json = ? WHERE run_id = ?",
                    [json.dumps([*json.loads(before), *notes]), run_id],
                )
            if figures:
                self._insert("figures", figures, replace=True, run_id=run_id)
            self.connection.execute(
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
        with self.transaction():
            self.connection.execute(
                "UPDATE runs SET artifact_sha256 = ? WHERE run_id = ?", [sha256, run_id]
            )

    def add_figures(self, run_id: str, figures: Sequence[Figure]) -> None:
        """Figures of a run; one of the same metric and provenance replaces the older."""
        if figures:
            with self.transaction():
                self._insert("figures", figures, replace=True, run_id=run_id)

    def set_profile(self, run_id: str, profile: Profile, ops: Sequence[OpProfile]) -> None:
        """The pass per operator of a run, in place of what there is of it."""
        with self.transaction():
            for table in ("profiles", "op_profiles"):
                self.connection.execute(f"DELETE FROM {table} WHERE run_id = ?", [run_id])
            self._insert("profiles", [profile], run_id=run_id)
            if ops:
                self._insert("op_profiles", ops, run_id=run_id)

    def add_scores(self, run_id: str, engine: Provenance, metric: str, scores: Floats) -> None:
        """Per-sample scores (N, ...) of one engine, for paired comparisons."""
        with self.transaction():
            self.connection.execute(
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
            with self.transaction():
                self._insert("stages", stages, run_id=run_id)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of a block of writes or nothing. Raises UserError when the disk refuses them."""
        self.connection.begin()
        try:
            yield
            self.connection.commit()
        except BaseException as error:
            # A commit that failed, or a database that DuckDB gave up, has nothing to roll back.
            with suppress(duckdb.Error):
                self.connection.rollback()
            if isinstance(error, duckdb.IOException | duckdb.TransactionException):
                reason = str(error).strip().splitlines()[0][:200].rstrip(".")
                raise UserError(
                    f"{self.path} cannot be written: {reason}.",
                    "Nothing of it was stored. Free some disk space, and run it again.",
                ) from error
            raise

    def _insert(
        self, table: str, rows: Sequence[Any], *, replace: bool = False, **extra: object
    ) -> None:
        self._insert_table(table, columns.rows_table(rows, **extra), replace=replace)

    def _insert_table(self, table: str, rows: pa.Table, *, replace: bool = False) -> None:
        verb = "INSERT OR REPLACE" if replace else "INSERT"
        self.connection.register("arriving", rows)
        try:
            self.connection.execute(f"{verb} INTO {table} BY NAME SELECT * FROM arriving")
        finally:
            self.connection.unregister("arriving")


def _migrated(connection: duckdb.DuckDBPyConnection, version: int, path: Path) -> list[Migration]:
    try:
        return migrate(connection, version)
    except duckdb.Error as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(
            f"{path} cannot be brought to schema {newest_version()}: {reason}",
            f"It is unchanged. Save it with: qhost db export --db-path {path} --output DIR.",
        ) from error


def new_session_id() -> str:
    """Sorts by time, and is short enough to type: 20260131-142501-3fa9."""
    return f"{utc_now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
