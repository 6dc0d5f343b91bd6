"""Cutting the charger, with the promise that it comes back.

The guard is a process of its own, in a session of its own: it writes down how to restore, cuts,
and restores when it is told to, when the agent ends in whatever way (its pipe closes), and after
`LIMIT_S` at the latest. If the guard itself is killed the agent restores; if both are, the next
agent finds the note and does. `dumpsys battery unplug` is not among the ways: it only fakes the
state.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from agent.errors import DeviceFailure
from agent.sensors.channel import read_text
from agent.sensors.dumpsys import Run, run_command

LIMIT_S = 6 * 3600.0
# Below this a phone must charge, not measure: near empty its power management changes.
MIN_CHARGE_PERCENT = 15
SETTLE_S = 5.0  # a gauge may report the change only with its next update
_ANSWER_S = 10.0
_SUSPEND = ("dumpsys", "battery", "suspend_input")
_RESET = ("dumpsys", "battery", "reset")


@dataclass(frozen=True)
class Way:
    """How to cut and restore: a node with two values, or (node empty) dumpsys."""

    node: str = ""
    cut: str = ""
    restore: str = ""

    def apply(self, value: str) -> bool:
        """Write the node or run the command; false when the device refuses."""
        if not self.node:
            return run_command(_SUSPEND if value == self.cut else _RESET) is not None
        try:
            # A node, not a file: opened as it is, written once.
            fd = os.open(self.node, os.O_WRONLY)
        except OSError:
            return False
        try:
            os.pwrite(fd, value.encode() + b"\n", 0)
        except OSError:
            return False
        finally:
            os.close(fd)
        return True


def ways(root: Path, run: Run | None) -> list[Way]:
    """What this device offers, the surest first. A node's present value is what is restored."""
    found = []
    for supply in sorted((root / "sys/class/power_supply").glob("*")):
        for name, cut in (("input_suspend", "1"), ("charging_enabled", "0")):
            value = read_text(supply / name)
            if value and value != cut and os.access(supply / name, os.W_OK):
                found.append(Way(str(supply / name), cut, value))
    if run is not None and run(("dumpsys", "battery")) is not None:
        found.append(Way(cut="suspend", restore="reset"))
    return found


class Charger:
    """The battery's state, and the switch.

    `note`: where a cut that is not restored is written down. `settle_s`: how long the battery
    may take to discharge after a cut.
    """

    def __init__(
        self, root: Path, note: Path, *, run: Run | None = None, settle_s: float = SETTLE_S
    ) -> None:
        self._settle_s = settle_s
        self._root = root
        self._note = note
        self._run = run
        self._guard: subprocess.Popen[bytes] | None = None
        restore_from(note)  # what an agent before this one left behind

    def status(self) -> str:
        """The kernel's word: Discharging, Charging, Full, Not charging; "" without a battery."""
        for name in ("battery", "bms"):
            if status := read_text(self._root / f"sys/class/power_supply/{name}/status"):
                return status
        return ""

    def require_discharging(self) -> None:
        """Raises DeviceFailure, naming the state, when a battery is there and not discharging."""
        status = self.status()
        if status not in ("", "Discharging"):
            raise DeviceFailure(
                f"the battery's state is {status!r}: unplug the charger or let the run stop it"
            )

    def stop(self, settle: Callable[[], None]) -> None:
        """Cut the input and wait until the battery discharges. `settle` lets some time pass.

        Raises DeviceFailure when nothing that the device offers has that effect.
        """
        if self._guard is not None and self._guard.poll() is None:
            return
        if self.status() in ("", "Discharging"):
            return
        charge = read_text(self._root / "sys/class/power_supply/battery/capacity")
        if charge and charge.isdigit() and int(charge) < MIN_CHARGE_PERCENT:
            raise DeviceFailure(f"the battery is at {charge} %: charge it first")
        tried = []
        for way in ways(self._root, self._run):
            tried.append(Path(way.node).name or " ".join(_SUSPEND))
            self._start_guard(way)
            deadline = time.monotonic() + self._settle_s
            while time.monotonic() < deadline:
                if self.status() == "Discharging":
                    return
                settle()
            self.restore()
        raise DeviceFailure(
            "charging cannot be stopped on this device: "
            + (f"{', '.join(tried)} had no effect" if tried else "it offers no switch to this user")
        )

    def restore(self) -> None:
        """Let it charge again; harmless when nothing was cut."""
        guard, self._guard = self._guard, None
        if guard is None:
            return
        assert guard.stdin is not None
        guard.stdin.close()
        try:
            guard.wait(_ANSWER_S)
        except subprocess.TimeoutExpired:
            guard.kill()
            guard.wait()
        if guard.stdout is not None:
            guard.stdout.close()
        restore_from(self._note)  # empty-handed unless the guard was killed

    def _start_guard(self, way: Way) -> None:
        self._guard = subprocess.Popen(
            [sys.executable, "-P", "-m", "agent.charging", str(self._note)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert self._guard.stdin is not None
        assert self._guard.stdout is not None
        self._guard.stdin.write(json.dumps(asdict(way)).encode() + b"\n")
        self._guard.stdin.flush()
        if not select.select([self._guard.stdout], [], [], _ANSWER_S)[0]:
            self.restore()
            raise DeviceFailure("the guard of the charger did not answer")
        self._guard.stdout.readline()


def restore_from(note: Path) -> None:
    """Undo the cut that `note` describes, if there is one, and remove the note."""
    try:
        way = Way(**json.loads(note.read_text()))
    except FileNotFoundError:
        return
    except (ValueError, TypeError):
        note.unlink()
        return
    if way.apply(way.restore):
        note.unlink(missing_ok=True)


def _guard(note: Path) -> None:
    """The guard: note, cut, answer, wait for the end of the agent, restore."""
    for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(signum, signal.SIG_IGN)
    way = Way(**json.loads(sys.stdin.buffer.readline()))
    tmp = note.with_suffix(".tmp")
    with tmp.open("w") as out:
        json.dump(asdict(way), out)
        out.flush()
        os.fsync(out.fileno())
    tmp.replace(note)
    way.apply(way.cut)
    with contextlib.suppress(OSError):
        os.write(1, b"cut\n")
    select.select([0], [], [], LIMIT_S)
    while not way.apply(way.restore):
        time.sleep(1.0)
    note.unlink(missing_ok=True)


if __name__ == "__main__":
    _guard(Path(sys.argv[1]))
