"""`qhost config`: every setting, its value and where it comes from."""

from __future__ import annotations

import json

import typer
from rich.console import Console
from rich.table import Table

from host.config import SETTINGS, resolve


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
        table = Table(box=None, pad_edge=False)
        for column in ("setting", "value", "source", "environment", "meaning"):
            table.add_column(column, overflow="fold")
        for name, r in resolved.items():
            value = "(decided later)" if r.value is None else str(r.value)
            table.add_row(name, value, r.source, SETTINGS[name].env, SETTINGS[name].help)
        Console().print(table)
