"""The questions the host asks of a database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import numpy as np
import pyarrow as pa

from host.errors import FailureClass, RunStatus, UserError, unknown_name
from host.store.rows import (
    Block,
    Channel,
    ClockEstimate,
    Cooldown,
    Floats,
    Golden,
    Load,
    Mark,
    Memory,
    OpProfile,
    RunData,
    RunRow,
    SamplerReport,
    Samples,
    SessionRow,
)
from quant.figures import Figure, Provenance

Row = TypeVar("Row")


class Queries:
    """Reading a database through an open connection."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, path: Path, read_only: bool) -> None:
        self.path = path
        self.read_only = read_only
        self.connection = connection

    def table(self, sql: str, parameters: Sequence[object] = ()) -> pa.Table:
        """The result of one SELECT."""
        return self.connection.sql(sql, params=list(parameters)).to_arrow_table()

    def count(self, sql: str) -> int:
        """The one number that a SELECT gives."""
        return int(self._value(sql))

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
            for (run_id,) in self.connection.execute(
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
        rows = self.connection.execute(
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

    def clock_epochs(self, session_id: str, serial: str) -> int:
        """How many epochs of a device's clock a session has: the number of the next one."""
        value = self._value(
            "SELECT max(epoch) + 1 FROM clock_estimates WHERE session_id = ? AND device_serial = ?",
            [session_id, serial],
        )
        return int(value or 0)

    def sampler_reports(self, run_id: str) -> list[SamplerReport]:
        """One per segment of a run."""
        return self._rows(
            SamplerReport,
            "SELECT * EXCLUDE (run_id) FROM sampler_reports WHERE run_id = ?",
            [run_id],
        )

    def clock_estimates(self, session_id: str) -> list[ClockEstimate]:
        return self._rows(
            ClockEstimate,
            "SELECT * FROM clock_estimates WHERE session_id = ? ORDER BY device_serial, epoch",
            [session_id],
        )

    def figures_of(self, run_id: str) -> list[Figure]:
        return self._rows(
            Figure,
            "SELECT * EXCLUDE (run_id) FROM figures WHERE run_id = ? ORDER BY metric, provenance",
            [run_id],
        )

    def best_figures_of(self, run_id: str) -> list[Figure]:
        """One figure per metric: the one closest to the device."""
        return self._rows(
            Figure,
            "SELECT * EXCLUDE (run_id) FROM best_figures WHERE run_id = ? ORDER BY metric",
            [run_id],
        )

    def scores_of(self, run_id: str, engine: Provenance) -> Floats | None:
        """Per-sample scores in their shape, or None."""
        found = self.connection.execute(
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
        memory = self._rows(
            Memory, f"SELECT * EXCLUDE (run_id) FROM memory_passes {where}", [run_id]
        )
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
            cooldowns=tuple(
                self._rows(Cooldown, f"SELECT * EXCLUDE (run_id) FROM cooldowns {where}", [run_id])
            ),
            memory=memory[-1] if memory else None,
            profile=str(self._value(f"SELECT profile FROM runs {where}", [run_id]) or ""),
            ops=tuple(
                self._rows(
                    OpProfile,
                    f"SELECT * EXCLUDE (run_id) FROM op_profiles {where} ORDER BY op_id",
                    [run_id],
                )
            ),
        )

    def provenance_counts(self, session_id: str | None = None) -> dict[Provenance, int]:
        """How many figures there are of each provenance, in all or of one session."""
        where = "" if session_id is None else "JOIN runs USING (run_id) WHERE session_id = ?"
        rows = self.connection.execute(
            f"SELECT provenance, count(*) FROM figures {where} GROUP BY provenance ORDER BY 1",
            [] if session_id is None else [session_id],
        ).fetchall()
        return {Provenance(name): int(count) for name, count in rows}

    def _value(self, sql: str, parameters: Sequence[object] = ()) -> Any:
        # fetchall: a result that is not read to its end blocks the connection.
        rows = self.connection.execute(sql, list(parameters)).fetchall()
        return rows[0][0] if rows else None

    def _runs(self, where: str, parameters: Sequence[object]) -> list[RunRow]:
        return self._rows(
            RunRow, f"SELECT * FROM runs {where} ORDER BY created_at, run_id", parameters
        )

    def _rows(self, kind: type[Row], sql: str, parameters: Sequence[object] = ()) -> list[Row]:
        cursor = self.connection.execute(sql, list(parameters))
        names = [column[0] for column in cursor.description or ()]
        wanted = {field.name for field in fields(kind)}  # type: ignore[arg-type]
        return [
            kind(**{n: _typed(n, v) for n, v in zip(names, row, strict=True) if n in wanted})
            for row in cursor.fetchall()
        ]


def _typed(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name == "status":
        return RunStatus(value)
    if name == "failure_class":
        return FailureClass(value)
    if name == "provenance":
        return Provenance(value)
    if name == "cycles":
        return tuple(value)
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
