"""Seeded benches on an emulated device behind adb, one fault in each; says what became of them.

    python tools/fault_runs.py [--runs 50] [--first-seed 0] [--keep DIR]

Each run is `qhost bench` on a device of its own while a fault strikes at a random moment. Checked:
a run that reports success has every block once, and in every timed window every sample once; any
other run is a row with a failure class and a message, also where the device was gone before there
was a session; nothing hangs past its limit; afterwards neither the host nor the device has a
process left. Exit 1 when one of these does not hold.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from host import deploy, install
from host.adb import AdbDevice, AdbServer
from host.bench.device import SegmentDone
from host.bench.plan import Job, Profile, get_profile
from host.bench.run import BenchEvents, run_bench
from host.cli.bench import model_inputs, resolve_bench
from host.devices import DeviceInfo
from host.emulate import EmulatedPhone
from host.errors import DeviceError, RunStatus
from host.store import RawBatch, Store

SOC = "sm8650"
TIME_FACTOR = 20.0
DATA_MB = 60.0
RUN_LIMIT_S = 180.0
# One fault in four strikes while the session is opened, the others after a drawn segment.
OPENING_SHARE = 0.25
OPENING_S = 4.0
SEGMENTS = 8  # the check, the memory pass and six blocks
MARK = "QHOST_FAULT_RUN"  # in the environment of every process that a run starts
ORPHAN_GRACE_S = 5.0
RETURN_TIMEOUT_S = 8.0  # the devices here come back within 3 s or never
KINDS = (
    "none", "drop", "freeze", "freeze-short", "reboot", "refuse-push", "full-disk", "slow-usb",
    "kill-agent", "unauthorized", "offline", "disconnect", "kill-server",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """One faulted run. `problems` is empty when all that is checked held."""

    seed: int
    fault: str
    moment: str
    status: str  # of the run's row
    message: str
    seconds: float
    problems: tuple[str, ...]


class _Striker:
    """BenchEvents that let the fault strike `delay_s` after segment number `after` (or at once)."""

    def __init__(self, strike: Callable[[], None], after: int, delay_s: float) -> None:
        self._left = after
        self._timer = threading.Timer(delay_s, strike)
        if after == 0:
            self._timer.start()

    def stop(self) -> None:
        self._timer.cancel()
        if self._timer.ident:
            self._timer.join()

    def segment(self, done: SegmentDone) -> None:
        self._left -= 1
        if self._left == 0:
            self._timer.start()

    def planned(
        self, session_id: str, info: DeviceInfo, jobs: Sequence[Job], profile: Profile
    ) -> None: ...
    def stage(self, run_id: str, stage: str, seconds: float) -> None: ...
    def finished(self, run_id: str, status: RunStatus, message: str) -> None: ...
    def batch(self, raw: RawBatch) -> None: ...


def faulted_run(seed: int, server: AdbServer, folder: Path) -> Outcome:
    """One bench with the fault and the moment that `seed` draws."""
    rng = random.Random(seed)
    kind = KINDS[seed % len(KINDS)]
    opening = rng.random() < OPENING_SHARE
    after = 0 if opening else rng.randrange(1, SEGMENTS)
    delay_s = rng.uniform(0, OPENING_S) if opening else rng.uniform(0, 0.4)
    text = {
        "freeze-short": f"freeze:for={rng.uniform(1, 3):.1f}",
        "reboot": f"reboot:for={rng.uniform(0.2, 2):.1f}",
        "refuse-push": f"refuse-push:byte={rng.randrange(50_000)}",
        "slow-usb": f"slow-usb:rate={rng.randrange(40_000, 400_000)}",
    }.get(kind, kind)
    if kind == "refuse-push":
        after, delay_s = 0, 0.0  # what is pushed is pushed in the beginning
    started = time.monotonic()
    os.environ[MARK] = mark = f"{os.getpid()}-{seed}-{time.monotonic_ns()}"
    problems: list[str] = []
    with EmulatedPhone(SOC, time_factor=TIME_FACTOR, data_mb=DATA_MB) as phone:
        server.connect(phone.serial)
        device = AdbDevice(phone.serial, "device", emulated=True, server=server)
        device.wait_ready(10)

        def strike() -> None:
            if kind == "disconnect":
                server.disconnect(phone.serial)
            elif kind == "kill-server":
                server.kill()
            elif kind != "none":
                phone.fault(text)

        striker = _Striker(strike, after, delay_s)
        db_path = folder / f"{seed}.duckdb"
        try:
            _bench(phone.serial, db_path, folder, striker)
        except DeviceError:
            pass  # the device was gone before there was a session; the row says so
        finally:
            striker.stop()
        status, message, found = _check(db_path)
        problems += [*found, *_left_on(device)]
        group = phone.process.pid
        server.disconnect(phone.serial)
    if left := _members(group):
        problems.append(f"processes {left} outlive the emulated device")
    if orphans := _marked(mark):
        problems.append(f"processes {orphans} outlive the bench")
    seconds = time.monotonic() - started
    if kind == "none" and status != "ok":
        problems.append("failed without a fault")
    moment = f"segment {after} + {delay_s:.1f} s"
    return Outcome(seed, text, moment, status, message, seconds, tuple(problems))


def _bench(serial: str, db_path: Path, folder: Path, events: BenchEvents) -> None:
    config = resolve_bench(
        {
            "device": serial,
            "methods": "int8",
            "mock": None,
            "profile": "rapid",
            "perf_profile": None,
            "db_path": db_path,
            "output_dir": folder / "out",
            "emulator_samples": 8,
            "seed": None,
            "time_factor": None,
        },
        model_inputs([], [], None, None),
        resume=False,
        input_shapes=[],
    )
    run_bench(config, events)


def _check(db_path: Path) -> tuple[str, str, list[str]]:
    """Status and message of the one run in the database, and what is wrong with it."""
    problems: list[str] = []
    with Store.open(db_path) as store:
        rows = [run for session in store.sessions() for run in store.runs_of(session.session_id)]
        if len(rows) != 1:
            return "none", "", [f"{len(rows)} rows instead of one"]
        (row,) = rows
        data = store.run_data(row.run_id)
        message = str(row.message or "")
    if row.status is not RunStatus.OK:
        if row.status is not RunStatus.FAILED or not (row.failure_class and message):
            problems.append("neither ok nor a failed row with class and message")
        return f"{row.status.value} {row.failure_class or ''}", message, problems
    indices = sorted(block.block_index for block in data.blocks)
    if indices != list(range(get_profile("rapid", emulated=True).blocks)):
        problems.append(f"blocks {indices}")
    for block in data.blocks:
        if len(block.per_iteration_us) != block.inferences:
            problems.append(f"block {block.block_index}: latencies lost or doubled")
    # Where one phase ends and the next begins both may read at that very time.
    borders = [t for mark in data.marks for t in (mark.t_start_ns, mark.t_end_ns)]
    for channel, samples in data.samples.items():
        twice = samples.t_ns[1:][np.diff(samples.t_ns) <= 0]
        if not np.isin(twice, borders).all():
            problems.append(f"channel {channel}: a sample twice")
    problems += _gaps(data.samples[1].t_ns, [m for m in data.marks if m.phase == "timed"])
    return row.status.value, message, problems


def _gaps(times: np.ndarray, windows: Sequence[object]) -> list[str]:
    """The first channel is read on every tick of the device clock: a longer step is a loss."""
    problems = []
    for window in windows:
        start, end = window.t_start_ns, window.t_end_ns  # type: ignore[attr-defined]
        inside = times[(times >= start) & (times <= end)]
        steps = np.diff(inside)
        if len(steps) == 0 or steps.max() > 1.5 * np.median(steps):
            problems.append(f"samples missing in the timed window at {start}")
    return problems


def _left_on(device: AdbDevice) -> list[str]:
    """An agent that still runs on a device that can be asked."""
    try:
        device.wait_ready(2)
        running = install.running_agent(device)
    except DeviceError:
        return []
    return [f"agent {running.pid} runs on"] if running else []


def _members(session: int) -> list[int]:
    """Processes of the session that an emulated device and all below it run in."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(entry.name))
    return found


def _marked(mark: str) -> list[str]:
    """Processes that the bench started and that are still there a moment after its end.

    adb's server, which a bench starts where none runs, serves the next one, too.
    """
    deadline = time.monotonic() + ORPHAN_GRACE_S
    while True:
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                mine = f"{MARK}={mark}".encode() in (entry / "environ").read_bytes()
                name = (entry / "comm").read_text().strip()
            except OSError:
                continue
            if mine and name != "adb" and int(entry.name) != os.getpid():
                found.append(f"{entry.name} {name}")
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--port", type=int, default=15037, help="of the adb server used here")
    parser.add_argument("--keep", type=Path, help="keep the databases in this directory")
    options = parser.parse_args(argv)
    os.environ["ANDROID_ADB_SERVER_PORT"] = str(options.port)
    deploy.RETURN_TIMEOUT_S = RETURN_TIMEOUT_S
    os.environ["ADB_USB"] = "0"  # emulated devices alone, and no wait for USB
    server = AdbServer(options.port)
    outcomes = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            for seed in range(options.first_seed, options.first_seed + options.runs):
                faulthandler.dump_traceback_later(RUN_LIMIT_S, exit=True)
                outcome = faulted_run(seed, server, folder)
                faulthandler.cancel_dump_traceback_later()
                outcomes.append(outcome)
                print(
                    f"{seed:3d} {outcome.fault:22} {outcome.moment}: {outcome.status:19}"
                    f" {outcome.seconds:5.1f} s {outcome.message} {'; '.join(outcome.problems)}",
                    flush=True,
                )
        finally:
            server.kill()
    bad = [outcome for outcome in outcomes if outcome.problems]
    by_status = {s: sum(o.status == s for o in outcomes) for s in {o.status for o in outcomes}}
    print(f"{len(outcomes)} runs: {by_status}; {len(bad)} with problems")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
