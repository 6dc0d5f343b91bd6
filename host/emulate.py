"""Emulated devices behind adb, as processes of this host.

Each is `python -P -m agent.emulator.adbd`: the agent package is started, never imported.
"""

from __future__ import annotations

import json
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from host.errors import UserError

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0


class EmulatedPhone:
    """One emulated device: it listens on loopback from construction to `close`.

    Its file system is a temporary directory, removed by `close`, unless `root` names one to keep.
    It ends by itself when this process does. UserError when it cannot start (port taken, ...).
    """

    def __init__(
        self,
        soc: str,
        *,
        port: int = 0,
        time_factor: float = 1.0,
        personality: str = "board",
        faults: Sequence[str] = (),
        data_mb: float | None = None,
        root: Path | None = None,
        sandbox: bool = True,
        isa: str = "native",
    ) -> None:
        self._own = None if root else Path(tempfile.mkdtemp(prefix="qhost-phone-"))
        self.root = root or (self._own or Path()) / "root"
        self.log = self.root.parent / f"{self.root.name}.adbd.log"
        command = [sys.executable, "-P", "-m", "agent.emulator.adbd"]
        command += ["--soc", soc, "--port", str(port), "--root", str(self.root)]
        command += ["--time-factor", f"{time_factor:g}", "--log", str(self.log)]
        command += ["--personality", personality, "--isa", isa]
        command += [word for fault in faults for word in ("--fault", fault)]
        command += ["--data-mb", f"{data_mb:g}"] if data_mb else []
        command += [] if sandbox else ["--no-sandbox"]
        self.root.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,  # its end tells the device that nobody needs it
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the one who waits for it
            )
        try:
            ready = json.loads(self._ready_line())
        except BaseException:
            self.close()
            raise
        self.port = int(ready["port"])
        self.sandboxed = bool(ready["sandbox"])
        self.soc = soc

    @property
    def serial(self) -> str:
        """What adb calls it once connected."""
        return f"127.0.0.1:{self.port}"

    def fault(self, text: str) -> None:
        """Let a fault strike, in the words of --fault."""
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()

    def close(self) -> None:
        """End it and everything that runs on it."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        if self._own:
            shutil.rmtree(self._own, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ready_line(self) -> bytes:
        assert self.process.stdout is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if select.select([self.process.stdout], [], [], 0.1)[0]:
                if line := self.process.stdout.readline():
                    return line
                break
        lines = self.log.read_text(errors="replace").strip().splitlines()
        reason = lines[-1].rpartition("error: ")[2] if lines else "it gave no reason"
        raise UserError(
            f"The emulated device did not start: {reason}.",
            "Choose another --port, or 0 for any." if "in use" in reason else "",
        )
