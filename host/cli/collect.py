"""`qhost collect`: fetch what a device measured while its host was away."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    @app.command("collect")
    def collect(
        device: Annotated[
            str, typer.Option(help="Serial or SoC id; not needed when one device is attached.")
        ] = "",
        db_path: Annotated[
            Path, typer.Option(help="The database of the bench that was interrupted.")
        ] = Path("qhost.duckdb"),
        discard: Annotated[
            bool, typer.Option("--discard", help="Drop the results instead of fetching them.")
        ] = False,
    ) -> int:
        """Fetch results that a device kept when its host or cable went away."""
        from host import collect as collecting
        from host.attached import find_device
        from host.errors import ExitCode, RunStatus, UserError

        target = find_device(device)
        if discard:
            collecting.discard(target)
            print(f"{target.serial}: results dropped")
            return ExitCode.OK
        if not db_path.exists():
            raise UserError(f"There is no database {db_path}.", "Name it with --db-path.")
        done = collecting.collect(target, db_path)
        label = "EMULATED " if target.emulated else ""
        print(f"{label}{target.serial}: {done.batches} batches fetched into {db_path}")
        for run_id, status in done.runs.items():
            print(f"  {run_id}: {status.value}")
        for run_id, why in done.unfinished.items():
            print(f"  {run_id}: {why}; 'qhost bench --resume' runs what is missing")
        bad = done.unfinished or any(s is not RunStatus.OK for s in done.runs.values())
        return ExitCode.JOBS_FAILED if bad else ExitCode.OK
