"""`qhost devices`: what adb sees, and what each device says about itself."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


def register(app: typer.Typer) -> None:
    @app.command("devices")
    def devices(
        json_output: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
    ) -> None:
        """List devices behind adb: SoC, charge, heat, who uses them, agent, sensors."""
        from host.adb import list_devices
        from host.device_status import status_of

        rows = [status_of(device) for device in list_devices()]
        if json_output:
            print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
            return
        if not rows:
            print("No device is attached. 'qhost emulate' makes an emulated one.")
            return
        table = Table(box=None, pad_edge=False)
        for column in (
            "serial", "model", "SoC", "build", "HTP", "charge", "charging", "thermal", "leased by",
            "agent", "sensors",
        ):  # fmt: skip
            table.add_column(column, overflow="fold")
        for row in rows:
            label = f"{row.serial} EMULATED" if row.emulated else row.serial
            if row.problem:
                table.add_row(label, f"{row.problem} {row.hint}")
                continue
            table.add_row(
                label,
                row.model,
                row.soc,
                row.build,
                row.htp_arch,
                "" if row.charge_percent is None else f"{row.charge_percent} %",
                row.charging,
                row.thermal_status,
                row.lease_holder or "free",
                row.agent_version or "not running",
                "" if row.sensors is None else str(row.sensors),
            )
        Console().print(table)
