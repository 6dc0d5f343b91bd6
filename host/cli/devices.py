"""`qhost devices`: what adb sees, and what each device says about itself."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    @app.command("devices")
    def devices(
        json_output: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
    ) -> None:
        """List devices behind adb: SoC, charge, heat, who uses them, agent, sensors."""
        from host.attached import at_once, list_devices
        from host.device_status import status_of

        rows = at_once(status_of, list_devices())
        if json_output:
            print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
            return
        if not rows:
            print("No device is attached. 'qhost emulate' makes an emulated one.")
            return
        for row in rows:
            print(f"{row.serial}  {'EMULATED ' if row.emulated else ''}{row.model}".rstrip())
            if row.problem:
                print(f"  {row.problem} {row.hint}")
                continue
            charge = "unknown" if row.charge_percent is None else f"{row.charge_percent} %"
            facts = (
                f"SoC {row.soc or 'unknown'}, HTP {row.htp_arch or 'unknown'}, build {row.build}",
                f"charge {charge}, {row.charging or 'unknown'}, "
                f"thermal status {row.thermal_status or 'unknown'}",
                f"leased by {row.lease_holder}" if row.lease_holder else "free",
                f"agent {row.agent_version}" if row.agent_version else "no agent runs",
                f"{'unknown' if row.sensors is None else row.sensors} readable sensors",
            )
            print("".join(f"  {fact}\n" for fact in facts), end="")
