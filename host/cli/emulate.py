"""`qhost emulate`: emulated Snapdragons behind the real adb, until they are told to stop."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path
from typing import Annotated

import typer

from host.errors import UserError

# adb's server looks for emulators on these ports by itself and would list the device twice.
_ADB_SCANS = range(5555, 5586)


def register(app: typer.Typer) -> None:
    @app.command("emulate")
    def emulate(
        soc: Annotated[str, typer.Option(help="SoC id of the device, e.g. sm8650.")] = "sm8650",
        port: Annotated[
            int, typer.Option(help="Port on 127.0.0.1; 0 picks a free one.", min=0, max=65535)
        ] = 0,
        count: Annotated[
            int, typer.Option(help="How many devices, on --port, --port + 2, ...", min=1, max=64)
        ] = 1,
        time_factor: Annotated[
            float, typer.Option(help="Device seconds per wall second.", min=1e-3)
        ] = 1.0,
        personality: Annotated[
            str, typer.Option(help="Whose quirks the sensors have; see docs/power.md.")
        ] = "board",
        fault: Annotated[
            list[str] | None,
            typer.Option(
                help="KIND[:key=value,...], repeatable: drop, freeze, reboot, refuse-push, "
                "full-disk, slow-usb, kill-agent, unauthorized, offline; at=SECONDS or "
                "after=BYTES says when. See docs/emulated-device.md."
            ),
        ] = None,
        data_mb: Annotated[
            float | None, typer.Option(help="Size of /data in MB; default: unbounded.", min=1)
        ] = None,
        root: Annotated[
            Path | None, typer.Option(help="Keep the device's file system in this directory.")
        ] = None,
        isa: Annotated[
            str,
            typer.Option(
                help="native: the agent runs on this machine's Python. aarch64: as on a phone, "
                "from the agent bundle and with the QNN tools, through qemu-user, in real time."
            ),
        ] = "native",
        sandbox: Annotated[
            bool, typer.Option(help="Run commands in namespaces; else from a closed table.")
        ] = True,
    ) -> None:
        """Run emulated devices for adb until Ctrl-C: everything they report is EMULATED."""
        from host.emulate import EmulatedPhone
        from host.report.files import check_writable
        from quant.htp.soc import get_soc

        soc_id = get_soc(soc).id
        ports = [port + 2 * i if port else 0 for i in range(count)]
        if any(p in _ADB_SCANS and p % 2 for p in ports):
            raise UserError(
                f"Port {port} is one that adb scans for emulators of its own.",
                "Choose one outside 5555-5585, e.g. --port 6561.",
            )
        if root:
            check_writable(root, "--root")
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
            for index, number in enumerate(ports):
                phone = stack.enter_context(
                    EmulatedPhone(
                        soc_id,
                        port=number,
                        time_factor=time_factor,
                        personality=personality,
                        faults=fault or (),
                        data_mb=data_mb,
                        root=root / str(index) if root and count > 1 else root,
                        sandbox=sandbox,
                        isa=isa,
                    )
                )
                how = "" if phone.sandboxed else ", commands from a closed table"
                print(f"EMULATED {soc_id}{how}: adb connect {phone.serial}", flush=True)
            while True:
                signal.pause()
