"""How punctual the agent's sampler is on this machine, and what it and the timed loop cost.

    python tools/bench_sampler.py [--seconds 60] [--runs 5] [--channels 16] [--rate 1000]

Sixteen hwmon-like files, rewritten all the time, read by the agent's sampler process as on a
device. Prints one JSON object; the limits are those of docs/power.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from agent.platform import Column
from agent.runtime import BlockLimits
from agent.runtime.loop import timed_loop
from agent.sampler import SamplerProcess
from agent.sensors.power import rails


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1000.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        files = _make_rails(root, options.channels)
        done = threading.Event()
        writer = threading.Thread(target=_rewrite, args=(files, done), daemon=True)
        writer.start()
        runs = [_run(root, options.rate, options.seconds) for _ in range(options.runs)]
        done.set()
        writer.join()
    median = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    result = {
        "channels": options.channels,
        "rate_hz": options.rate,
        "seconds": options.seconds,
        "runs": runs,
        "median": median,
        "timed_loop_overhead_us": _loop_overhead_us(),
    }
    print(json.dumps(result, indent=1))


def _make_rails(root: Path, count: int) -> list[int]:
    files = []
    for i in range(count):
        base = root / f"sys/class/hwmon/hwmon{i}"
        base.mkdir(parents=True)
        (base / "power1_label").write_text(f"rail{i}\n")
        (base / "power1_input").write_text(f"{1_000_000 + i:<12}\n")
        files.append(os.open(base / "power1_input", os.O_WRONLY))
    return files


def _rewrite(files: Sequence[int], done: threading.Event) -> None:
    value = 0
    while not done.wait(0.01):
        value += 1
        for fd in files:
            os.pwrite(fd, b"%-12d\n" % (1_000_000 + value % 1000), 0)


def _run(root: Path, rate_hz: float, seconds: float) -> dict[str, float]:
    times: list[list[int]] = []
    counts: dict[int, int] = {}

    def sink(columns: Sequence[Column]) -> None:
        for column in columns:
            counts[column.channel] = counts.get(column.channel, 0) + len(column.t_ns)
            if column.channel == 1:
                times.append(column.t_ns)

    sampler = SamplerProcess(rails(root), rate_hz, sink)
    time.sleep(seconds)
    report = sampler.stop()
    t = np.concatenate([np.array(part) for part in times])[:-1]  # the last is read at the stop
    period = 1e9 / rate_hz
    # Against the best-fitting fixed grid: a constant start-up offset is no jitter.
    offsets = t - t[0] - np.arange(len(t)) * period
    jitter_ms = np.abs(offsets - np.median(offsets)) / 1e6
    return {
        "ticks": float(report.ticks),
        "lost": float(sum(report.ticks - counts.get(c, 0) for c in counts)),
        "late_ticks": float(report.late_ticks),
        "worst_late_ms": report.worst_late_ns / 1e6,
        "jitter_p50_ms": float(np.percentile(jitter_ms, 50)),
        "jitter_p99_ms": float(np.percentile(jitter_ms, 99)),
        "jitter_max_ms": float(jitter_ms.max()),
        "core_percent": 100 * report.cpu_s / report.duration_s,
    }


def _loop_overhead_us() -> float:
    """Median over 5 of the mean time per inference of a run that does nothing."""
    limits = BlockLimits(200_000, 0, 60_000_000_000)
    blocks = [timed_loop(lambda feed: None, [0, 1], limits, lambda: False) for _ in range(5)]
    return statistics.median(
        (block.t_last_ns - block.t_first_ns) / 1e3 / block.inferences for block in blocks
    )


if __name__ == "__main__":
    main()
