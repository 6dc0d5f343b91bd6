"""`qhost doctor`: what this machine, or a device, has, and what is missing for what."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from host.cli import terminal
from host.doctor import Check, run_checks
from host.errors import ExitCode

if TYPE_CHECKING:
    from host.first_contact import CapabilityReport


def register(app: typer.Typer) -> None:
    @app.command("doctor")
    def doctor(
        device: Annotated[
            str | None,
            typer.Option(help="Serial or SoC id: check that device instead, and keep its report."),
        ] = None,
        json_output: bool = typer.Option(False, "--json", help="Print JSON on stdout."),
    ) -> None:
        """Check this machine: glibc, toolchain, SDK, adb, udev, free space; exit 1 if one fails.

        With --device: what the device can do for measurements, asked of its shell before any
        agent runs there; exit 5 if something that is needed is missing.
        """
        if device is not None:
            _device(device, json_output)
            return
        checks = run_checks()
        if json_output:
            print(json.dumps([dataclasses.asdict(c) for c in checks], indent=2))
        else:
            terminal.stdout().print(_table(checks, "optional"))
        if any(c.ok is False for c in checks):
            raise typer.Exit(ExitCode.USER_ERROR)


def _device(wanted: str, json_output: bool) -> None:
    from host import config, first_contact
    from host.attached import find_device

    report = first_contact.ask(find_device(wanted))
    cache = config.cache_dir(config.resolve()["cache_dir"].value)
    path = first_contact.keep(report, cache)
    if json_output:
        print(json.dumps(report.to_json(), indent=2))
    else:
        _show(report)
        terminal.stdout().print(f"Report:   {path}", soft_wrap=True, highlight=False)
    if any(c.ok is False for c in report.checks):
        raise typer.Exit(ExitCode.DEVICE_ERROR)


def _show(report: CapabilityReport) -> None:
    console = terminal.stdout()
    kind = "EMULATED " if report.emulated else ""
    console.print(f"{report.serial}  {kind}{report.model}, {report.os}, {report.build}")
    console.print(_table(report.checks, "note"))
    readable = [s for s in report.sensors if s.readable]
    refused = [s.node for s in report.sensors if not s.readable]
    console.print(f"{len(readable)} sensor nodes can be read, {len(refused)} cannot")
    for sensor in readable:
        name = f"{sensor.node} ({sensor.kind})" if sensor.kind else sensor.node
        console.print(f"  {name}: {sensor.value}", soft_wrap=True, highlight=False)
    for node in refused:
        console.print(f"  {node}: refused", soft_wrap=True, highlight=False)


def _table(checks: Iterable[Check], unsure: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("check", "", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for c in checks:
        word = {True: "ok", False: "MISSING", None: unsure}[c.ok]
        table.add_row(c.name, word, c.found, "" if c.ok else c.fix)
    return table
