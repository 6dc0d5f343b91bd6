"""Does the charger come back? A bench that has cut it is killed, loses its agent, or its cable.

    python tools/charging_runs.py

`qhost bench --stop-charging` runs on an emulated phone on its charger, behind adb. When the input
is cut: SIGKILL of the host, SIGKILL of the agent, or the connection is cut for good. Printed is how
long it takes until the phone charges again. The agent works its queue off first where it lives, and
waits 30 s for another Start; `--profile rapid` has 6 blocks.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from host.adb import AdbDevice, AdbServer
from host.emulate import EmulatedPhone

NODE = "vendor/emulated/sys/class/power_supply/battery/input_suspend"
SOC = "sm8650"
TIME_FACTOR = 4.0
PORT = 15038  # of the adb server used here
CUT_WITHIN_S, BACK_WITHIN_S = 120.0, 180.0


def until(is_so: Callable[[], bool], limit_s: float) -> float | None:
    """Seconds until it is so; None when it is not within the limit."""
    start = time.monotonic()
    while time.monotonic() - start < limit_s:
        if is_so():
            return time.monotonic() - start
        time.sleep(0.05)
    return None


def one(name: str, server: AdbServer, folder: Path) -> str:
    """Empty when the charger came back; prints how long it took."""
    root = folder / "root"
    with EmulatedPhone(SOC, time_factor=TIME_FACTOR, personality="phone-plugged", root=root) as dev:
        server.connect(dev.serial)
        AdbDevice(dev.serial, "device", emulated=True, server=server).wait_ready(10)

        def is_cut() -> bool:
            return (root / NODE).read_bytes().startswith(b"1")

        command = [
            sys.executable, "-m", "host", "bench", "--device", dev.serial, "--methods", "int8",
            "--profile", "rapid", "--stop-charging", "--emulator-samples", "8",
            "--db-path", str(folder / "q.duckdb"), "--output-dir", str(folder / "out"),
        ]  # fmt: skip
        log = (folder / "log").open("wb")
        host = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            if until(is_cut, CUT_WITHIN_S) is None:
                return f"{name}: the input was never cut: {(folder / 'log').read_text()[-500:]}"
            time.sleep(1.0)
            if not is_cut():
                return f"{name}: it charges again although nothing happened"
            if name == "SIGKILL of the host":
                host.kill()
            elif name == "SIGKILL of the agent":
                host.kill()  # it would start another one, which cuts again
                dev.fault("kill-agent")
            else:
                dev.fault("offline")
            took = until(lambda: not is_cut(), BACK_WITHIN_S)
        finally:
            host.kill()
            host.wait()
            server.disconnect(dev.serial)
    if took is None:
        return f"{name}: the phone does not charge after {BACK_WITHIN_S:.0f} s"
    print(f"{name}: charges again after {took:.1f} s", flush=True)
    return ""


def main() -> int:
    bad = []
    os.environ["ANDROID_ADB_SERVER_PORT"] = str(PORT)
    os.environ["ADB_USB"] = "0"  # emulated devices alone, and no wait for USB
    server = AdbServer(PORT)
    try:
        for name in ("SIGKILL of the host", "SIGKILL of the agent", "a connection cut for good"):
            with tempfile.TemporaryDirectory() as folder:
                if problem := one(name, server, Path(folder)):
                    bad.append(problem)
    finally:
        server.kill()
    print("\n".join(f"NOT MET: {line}" for line in bad) or "every acceptance is met")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
