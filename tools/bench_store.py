"""What the database bears: size and speed, and a writer that is killed at random moments.

    python tools/bench_store.py            # both, in a temporary directory
    python tools/bench_store.py --kills 50 --samples 0

Speed: 10 million samples of 1,000 runs, stored as the agent's stream brings them (a commit before
every Ack), then the views, all that a report needs of one run, and all samples of one run.
Kills: a child writes runs and prints what it may acknowledge; SIGKILL comes at a random moment;
the next child goes on in the same file. After each: the file opens, nothing acknowledged is lost,
no batch and no run is half there.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from host.errors import RunStatus
from host.store import (
    Block,
    Channel,
    Mark,
    RawBatch,
    RunRow,
    Samples,
    SessionRow,
    Store,
)
from host.store.maintenance import check
from quant.figures import METRICS, Figure, Provenance

SESSION = SessionRow("bench", "print", emulated=True, profile="normal", seed=0)
RUNS_PER_SESSION = 10
CHANNELS = tuple(Channel(i, f"channel{i}", "board", "power", "mW") for i in range(1, 11))
BATCH_ROWS = 100_000
BLOCKS = 6

# The writer that gets killed: small batches, so that a kill meets every stage of one.
KILL_ROWS = 2_000
KILL_BATCHES = 5


@dataclass(frozen=True)
class Speed:
    """`commands`: wall and processor seconds of whole commands, each in a new process, Python's
    own start included. On a busy machine only the latter says something about qhost."""

    samples: int
    append_per_s: float
    view_s: float
    all_results_s: float
    run_data_s: float
    commands: dict[str, tuple[float, float]]
    bytes_on_disk: int


def run_row(number: int, session_id: str = SESSION.session_id) -> RunRow:
    return RunRow(
        run_id=f"{session_id}-{number:06d}", session_id=session_id, model_name="model",
        model_type="vision", model_fingerprint="m", task_fingerprint="t", soc="sm8650",
        device="emulated", device_serial="emulated:sm8650", method="int8",
        variant=f"int8[seed={number}]", profile="normal",
    )  # fmt: skip


def figures(number: int) -> list[Figure]:
    return [
        Figure(m.name, float(number + i), m.unit, Provenance.EMULATED_DEVICE, 6)
        for i, m in enumerate(METRICS.values())
    ]


def speed(path: Path, samples: int, runs: int, *, commands: bool = True) -> Speed:
    """Fill a new database and time it."""
    per_run = samples // runs
    spent = 0.0
    stored = 0
    session_id = ""
    with Store.open(path, create=True) as store:
        pending: list[RawBatch] = []
        rows = 0

        def flush() -> None:
            nonlocal spent, rows
            start = time.perf_counter()
            store.append(session_id, "stream", pending)
            spent += time.perf_counter() - start
            pending.clear()
            rows = 0

        for number in range(runs):
            if number % RUNS_PER_SESSION == 0:
                session_id = f"session{number // RUNS_PER_SESSION:05d}"
                store.new_session(replace(SESSION, session_id=session_id))
            run = run_row(number, session_id)
            store.add_run(run, CHANNELS)
            batch = raw_batch(run.run_id, number + 1, per_run)
            pending.append(batch)
            rows += per_run
            stored += per_run
            if rows >= BATCH_ROWS:
                flush()
            store.finish_run(batch.run_id, RunStatus.OK, figures=figures(number))
        if pending:
            flush()
    number = runs // 2
    session_id = f"session{number // RUNS_PER_SESSION:05d}"
    middle = run_row(number, session_id).run_id
    with Store.open(path, read_only=True) as store:
        view = _timed(lambda: store.table("SELECT * FROM quantization_results"))
        everything = _timed(lambda: store.table("SELECT * FROM all_results"))
        raw = _timed(lambda: store.run_data(middle))
    page = path.with_suffix(".html")
    lines = {
        "qhost query, the whole view": ["query", "--sql", "SELECT * FROM quantization_results",
                                        "--format", "csv"],
        "qhost report of one session": ["report", "--session", session_id, "--output", str(page)],
        "qhost trace show of one run": ["trace", "show", middle],
    }  # fmt: skip
    spent_on = {
        name: _command([*line, "--db-path", str(path)])
        for name, line in (lines.items() if commands else ())
    }
    return Speed(stored, stored / spent, view, everything, raw, spent_on, path.stat().st_size)


def _command(line: list[str]) -> tuple[float, float]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall = _timed(
        lambda: subprocess.run(
            [sys.executable, "-m", "host", *line], check=True, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def raw_batch(run_id: str, seq: int, rows: int) -> RawBatch:
    """`rows` samples over all channels, and the blocks of a whole run."""
    rng = np.random.default_rng(seq)
    each = rows // len(CHANNELS)
    t = np.arange(each, dtype=np.int64) * 10_000_000 + seq * 10**9
    return RawBatch(
        seq,
        run_id,
        tuple(Samples(c.channel, t, rng.standard_normal(each)) for c in CHANNELS),
        tuple(Mark("timed", i * 10**9, (i + 1) * 10**9, i) for i in range(BLOCKS)),
        Block(seq % BLOCKS, 100, 0, 10**9, rng.uniform(900, 1100, 100).astype(np.float32)),
    )


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def write_until_killed(path: Path) -> None:
    """Goes on where the file ends; prints every number it may acknowledge, and every run done."""
    with Store.open(path, create=True, wait_s=30) as store:
        if not store.sessions():
            store.new_session(SESSION)
        seq = store.last_seq("stream")
        number = len(store.runs_of(SESSION.session_id))
        while True:
            run = run_row(number)
            store.add_run(run, CHANNELS)
            for _ in range(KILL_BATCHES):
                seq = store.append(
                    SESSION.session_id, "stream", [raw_batch(run.run_id, seq + 1, KILL_ROWS)]
                )
                print("ack", seq, flush=True)
            store.finish_run(run.run_id, RunStatus.OK, figures=figures(number))
            print("run", run.run_id, flush=True)
            number += 1


def kill_once(path: Path, rng: random.Random, longest_s: float = 1.0) -> int:
    """One writer killed at a random moment of its writing; how many batches it had acknowledged.

    Raises AssertionError when anything acknowledged is lost or anything is half there.
    """
    child = subprocess.Popen(
        [sys.executable, __file__, "--write-to", str(path)],
        stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert child.stdout is not None
    said = [child.stdout.readline()]  # it writes by now
    time.sleep(rng.uniform(0, longest_s))
    child.send_signal(signal.SIGKILL)
    said += child.stdout.read().splitlines()
    child.wait()
    # The last line can be cut by the kill.
    acknowledged = [int(w[1]) for w in map(bytes.split, said) if len(w) == 2 and w[0] == b"ack"]
    finished = [w[1].decode() for w in map(bytes.split, said) if len(w) == 2 and w[0] == b"run"]
    verify(path, max(acknowledged, default=0), finished)
    return len(acknowledged)


def verify(path: Path, acknowledged: int, finished: list[str]) -> None:
    """The file opens, holds whole batches up to the acknowledged one, and whole runs."""
    with Store.open(path) as store:
        assert not check(store), check(store)
        last = store.last_seq("stream")
        assert last >= acknowledged, f"acknowledged {acknowledged}, found {last}"
        rows = store.table("SELECT count(*) AS n FROM samples")["n"][0].as_py()
        assert rows == last * KILL_ROWS, f"{rows} samples of {last} batches"
        blocks = store.table("SELECT count(*) AS n FROM blocks")["n"][0].as_py()
        assert blocks == last, f"{blocks} blocks of {last} batches"
        runs = store.runs_of(SESSION.session_id)
        complete = {run.run_id for run in runs if run.status is RunStatus.OK}
        assert complete >= set(finished), set(finished) - complete
        counts = store.table("SELECT run_id, count(*) AS n FROM figures GROUP BY 1").to_pylist()
        assert {row["run_id"]: row["n"] for row in counts} == dict.fromkeys(complete, len(METRICS))


def kills(path: Path, times: int, seed: int) -> int:
    rng = random.Random(seed)
    return sum(kill_once(path, rng) for _ in range(times))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--runs", type=int, default=1_000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write-to", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write_to:
        write_until_killed(options.write_to)
    bad = []
    with tempfile.TemporaryDirectory() as folder:
        if options.samples:
            found = speed(Path(folder) / "speed.duckdb", options.samples, options.runs)
            print(
                f"{found.samples:,} samples of {options.runs:,} runs, {found.bytes_on_disk:,} bytes"
            )
            rate = found.append_per_s
            rows = [("append, samples/s (>= 500,000)", rate, rate >= 5e5)]
            times = {
                "view quantization_results": found.view_s,
                "view all_results": found.all_results_s,
                "all raw data of one run": found.run_data_s,
            }
            rows += [(f"{name}, s (< 2)", value, value < 2) for name, value in times.items()]
            rows += [
                (f"{name} ({cpu:.2f} s of processor), s (< 2)", wall, wall < 2)
                for name, (wall, cpu) in found.commands.items()
            ]
            for name, value, good in rows:
                print(f"{name}: {value:,.3f}")
                bad += [] if good else [name]
        if options.kills:
            done = kills(Path(folder) / "kills.duckdb", options.kills, options.seed)
            print(f"{options.kills} writers killed, {done:,} batches acknowledged, none lost")
    print("\n".join(f"NOT MET: {name}" for name in bad) or "every acceptance is met")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
