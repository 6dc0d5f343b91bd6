"""What a bench shows on stderr while it runs.

On a terminal a live table of jobs and stages. Elsewhere, in a file or a CI log, a line for each
built variant and each round of timed blocks, and the table at the end.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from host.cli import terminal
from host.errors import RunStatus

if TYPE_CHECKING:
    from host.bench.device import SegmentDone
    from host.bench.plan import Job, Profile
    from host.cli.live import LiveLine
    from host.devices import DeviceInfo
    from host.store.rows import RawBatch

# Stage of a build -> what it is called here. Accuracy is computed twice, in two engines.
STAGES = {
    "load": "load",
    "quantize": "quantize",
    "compile": "compile",
    "evaluate_ort": "accuracy ORT",
    "evaluate_htp": "accuracy HTP",
    "package": "package",
}
PASSES = {
    "check": "checked",
    "footprint": "memory read",
    "profile": "operators profiled",
    "evaluate": "evaluated",
}
_LAST_STAGE = "package"


class Progress:
    """Called from the build thread and from the main one."""

    def __init__(self) -> None:
        self.console = terminal.stderr()
        self._lock = threading.Lock()
        self._names: dict[str, str] = {}
        self._seconds: dict[str, dict[str, float]] = {}  # run -> stage -> seconds
        self._states: dict[str, str] = {}
        self._lookups: dict[str, float] = {}  # runs whose artifact was cached -> seconds
        self._blocks = 0
        self._round = -1  # index of the round of blocks that is being run
        self._in_round = 0
        self._live: Live | None = None
        self._now: LiveLine | None = None

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=4, transient=False)
            self._live.start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
        elif error is None:
            self.console.print(self.table())

    def planned(
        self, session_id: str, info: DeviceInfo, jobs: Sequence[Job], profile: Profile
    ) -> None:
        what = "EMULATED, its time, power, heat and memory are a model's" if info.emulated else ""
        self._blocks = profile.blocks
        if self._live is not None:
            from host.cli.live import LiveLine

            self._now = LiveLine(info.channels, emulated=info.emulated)
        several = len({job.model_name for job in jobs}) > 1
        for job in jobs:
            model = f"{job.model_name} " if several else ""
            self._names[job.run_id] = model + job.variant.canonical
            self._states[job.run_id] = "waiting"
        names = ", ".join(self._names.values())
        for line in (
            f"Session {session_id} on {info.label}" + (f" ({what})" if what else ""),
            f"{_count(len(jobs), 'variant')}: {names}",
            f"Profile {profile.name}: {profile.blocks} timed blocks of each, "
            + ("one variant after the other" if profile.contiguous else "in a random order"),
        ):
            self.console.print(line, soft_wrap=True)
        self._update()

    def stage(self, run_id: str, stage: str, seconds: float) -> None:
        """A stage of a build begins (0 s) or ended."""
        line = ""
        with self._lock:
            if stage == "cached":
                self._lookups[run_id] = seconds
                self._states[run_id] = "cached"
                line = "artifact taken from the cache"
            elif seconds == 0.0:
                self._states[run_id] = f"{STAGES.get(stage, stage)} ..."
            else:
                took = self._seconds.setdefault(run_id, {})
                took[stage] = seconds
                self._states[run_id] = "built"
                if stage == _LAST_STAGE:
                    parts = ", ".join(f"{STAGES.get(s, s)} {t:.1f} s" for s, t in took.items())
                    line = f"built in {sum(took.values()):.1f} s: {parts}"
        self._show(run_id, line)

    def segment(self, done: SegmentDone) -> None:
        run_id, line = done.spec.run_id, ""
        if done.failure:
            self._states[run_id] = "failed"
            line = f"failed: {done.failure}"
        elif done.spec.kind in PASSES:
            self._states[run_id] = PASSES[done.spec.kind]
        else:
            index = done.spec.block_index
            if index != self._round:
                self._end_round()
                self._round = index
            self._in_round += 1
            self._states[run_id] = f"block {index + 1}/{self._blocks}"
        self._show(run_id, line)

    def batch(self, raw: RawBatch) -> None:
        """What the device measures, as it comes: only a terminal shows it."""
        if self._live is not None and self._now is not None:
            with self._lock:
                self._now.update(raw)
            self._update()

    def finished(self, run_id: str, status: RunStatus, message: str) -> None:
        self._end_round()
        told = self._states.get(run_id) == "failed"  # by segment() already
        self._states[run_id] = status.value
        line = "" if status is RunStatus.OK or told else f"{status.value}: {message}"
        self._show(run_id, line)

    def table(self) -> RenderableType:
        """Jobs, seconds per stage, and what a cache saved."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("variant", overflow="fold")
        for name in STAGES.values():
            table.add_column(name.replace(" ", "\n"), justify="right", no_wrap=True)
        table.add_column("state", no_wrap=True)
        for run_id, name in self._names.items():
            took = self._seconds.get(run_id, {})
            cells = [f"{took[s]:.1f} s" if s in took else "" for s in STAGES]
            if run_id in self._lookups:
                cells = ["cached" if s == "quantize" else "" for s in STAGES]
            table.add_row(name, *cells, self._states[run_id])
        totals = [sum(took.get(s, 0.0) for took in self._seconds.values()) for s in STAGES]
        table.add_row("total", *(f"{t:.1f} s" for t in totals), "", style="bold")
        if not self._lookups:
            return table
        saved = _count(len(self._lookups), "artifact")
        seconds = sum(self._lookups.values())
        return Group(table, Text(f"{saved} taken from the cache in {seconds:.2f} s."))

    def _end_round(self) -> None:
        if self._in_round and self._live is None:
            variants = _count(self._in_round, "variant")
            self.console.print(f"block {self._round + 1} of {self._blocks} measured: {variants}")
        self._in_round = 0

    def _update(self) -> None:
        if self._live is not None:
            now = self._now.text(self._names) if self._now is not None else ""
            self._live.update(Group(self.table(), now))

    def _show(self, run_id: str, line: str) -> None:
        if self._live is not None:
            self._update()
        elif line:
            name = self._names.get(run_id, run_id)
            self.console.print(f"{name}: {line}", soft_wrap=True)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
