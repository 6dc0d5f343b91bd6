"""The timed loop of runtimes that run in this process: nothing in it but the call and the clock."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from agent.runtime import MAX_ITERATIONS, Block, BlockLimits, Stop

T = TypeVar("T")


def timed_loop(
    run: Callable[[T], object], feeds: Sequence[T], limits: BlockLimits, stop: Stop
) -> Block:
    """Call `run` back to back, cycling through `feeds`, until the limits or `stop`.

    A latency is the time between two stamps, so the loop's own cost is part of it: well below
    1 us per inference (tools/bench_sampler.py measures it).
    """
    clock = time.monotonic_ns
    least, enough_ns, most_ns = limits.min_inferences, limits.min_ns, limits.max_ns
    count = len(feeds)
    stamps = array("q", [clock()])
    keep = stamps.append
    first = stamps[0]
    n = 0
    while n < MAX_ITERATIONS and not stop():
        run(feeds[n % count])
        now = clock()
        keep(now)
        n += 1
        elapsed = now - first
        if elapsed >= most_ns or (elapsed >= enough_ns and n >= least):
            break
    latencies = np.diff(np.frombuffer(stamps, np.int64)) / 1e3
    return Block(
        inferences=n,
        t_first_ns=first,
        t_last_ns=stamps[-1],
        per_iteration_us=latencies.astype(np.float32),
        window_method="per_iteration",
    )
