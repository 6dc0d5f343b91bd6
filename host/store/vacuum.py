"""Compacting a database: the space of deleted rows, and the samples of old runs."""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from host.errors import UserError
from host.store.database import Store
from host.store.maintenance import check, quoted
from host.store.rows import utc_now


@dataclass(frozen=True)
class Vacuumed:
    """File sizes in bytes; runs whose samples were removed, and how many samples those were."""

    before: int
    after: int
    runs: int = 0
    samples: int = 0


def parse_age(text: str) -> timedelta:
    """`30d`, `12h` or `4w`. Raises UserError for anything else."""
    match = re.fullmatch(r"\s*(\d{1,5})\s*([hdw])\s*", text)
    if match is None:
        raise UserError(f"{text!r} is no age.", "Write hours, days or weeks: 12h, 30d, 4w.")
    return timedelta(hours=int(match[1]) * {"h": 1, "d": 24, "w": 168}[match[2]])


def vacuum(path: Path, keep_raw: timedelta | None = None, wait_s: float = 10.0) -> Vacuumed:
    """Rewrites a database without the space of deleted rows.

    `keep_raw`: the sensors' samples of runs older than that are removed first. Figures, blocks
    with their latencies and marks stay, so comparisons of latency stay what they were.

    The copy replaces the file only when it is complete and passes `check`.
    """
    with Store.open(path, wait_s=wait_s) as store:
        if problems := check(store):
            raise UserError(
                f"{path} is not sound: {problems[0]}.",
                f"Save what is whole with: qhost db export --db-path {path} --output DIR.",
            )
        before = path.stat().st_size
        runs, samples = (0, 0) if keep_raw is None else _drop_samples(store, utc_now() - keep_raw)
        # The log must be empty before the file changes under it: DuckDB would play an old log
        # into the new file.
        store.connection.execute("CHECKPOINT")
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        try:
            copy = folder / path.name
            store.connection.execute(f"ATTACH '{quoted(copy)}' AS qhost_copy")
            name = store.table("SELECT current_database() AS name")["name"][0].as_py()
            store.connection.execute(f'COPY FROM DATABASE "{name}" TO qhost_copy')
            store.connection.execute("DETACH qhost_copy")
            copy.replace(path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return Vacuumed(before, path.stat().st_size, runs, samples)


def _drop_samples(store: Store, before: datetime) -> tuple[int, int]:
    """Runs that lost their samples, and how many; a run that is not finished keeps them."""
    old = "run_id IN (SELECT run_id FROM runs WHERE finished_at < ?)"
    (found,) = store.connection.execute(
        f"SELECT count(DISTINCT run_id), count(*) FROM samples WHERE {old}", [before]
    ).fetchall()
    if found[1]:
        with store.transaction():
            store.connection.execute(f"DELETE FROM samples WHERE {old}", [before])
    return int(found[0]), int(found[1])
