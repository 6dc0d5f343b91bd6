"""`qhost config`: every setting, its value and where it comes from."""

from __future__ import annotations

import json

import typer
from rich.table import Table

from host.cli import terminal
from host.config import CONFIG_FILE, SETTINGS, resolve


def register(app: typer.Typer) -> None:
    @app.command("config")
    def config(
        json_output: bool = typer.Option(False, "--json", help="Print JSON on stdout."),
    ) -> None:
        """Show every setting with its value and source (flag > QHOST_* > qhost.toml > default)."""
        resolved = resolve()
        if json_output:
            rows = {
                name: {"value": None if r.value is None else str(r.value), "source": r.source}
                for name, r in resolved.items()
            }
            print(json.dumps(rows, indent=2))
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("setting", "value", "from", "meaning"):
            table.add_column(column, overflow="fold")
        for name, r in resolved.items():
            value = "" if r.value is None or r.value == "" else str(r.value)
            table.add_row(name, value, r.source, SETTINGS[name].help)
        console = terminal.stdout()
        console.print(table)
        console.print(
            f"\nA flag (--db-path) comes before the environment (QHOST_DB_PATH), that before "
            f"{CONFIG_FILE} (db_path = ...), that before the default.",
        )
