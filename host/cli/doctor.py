"""`qhost doctor`: what this machine has, and what is missing for what."""

from __future__ import annotations

import dataclasses
import json

import typer
from rich.table import Table

from host.cli import terminal
from host.doctor import run_checks
from host.errors import ExitCode


def register(app: typer.Typer) -> None:
    @app.command("doctor")
    def doctor(
        json_output: bool = typer.Option(False, "--json", help="Print JSON on stdout."),
    ) -> None:
        """Check this machine: glibc, toolchain, SDK, adb, udev, free space; exit 1 if one fails."""
        checks = run_checks()
        if json_output:
            print(json.dumps([dataclasses.asdict(c) for c in checks], indent=2))
        else:
            table = Table(box=None, pad_edge=False, header_style="bold")
            for column in ("check", "", "found", "what to do"):
                table.add_column(column, overflow="fold")
            for c in checks:
                word = {True: "ok", False: "MISSING", None: "optional"}[c.ok]
                table.add_row(c.name, word, c.found, "" if c.ok else c.fix)
            terminal.stdout().print(table)
        if any(c.ok is False for c in checks):
            raise typer.Exit(ExitCode.USER_ERROR)
