"""When was sample k taken? From the times at which packets arrived. Pure.

An instrument numbers its samples by a clock of its own and sends them in packets; every packet
arrives late, some much later than others. The packets that were late the least lie on the line
that is looked for: one of them per second is kept, and the line goes through the last minute's.
"""

from __future__ import annotations

import numpy as np

from host.store.rows import Ints

_BUCKET_NS = 1_000_000_000
_KEPT = 60


class SampleClock:
    """Host times of numbered samples. `rate_hz`: what the instrument says; its crystal differs."""

    def __init__(self, rate_hz: float) -> None:
        self._period_ns = 1e9 / rate_hz
        self._start_ns = 0
        self._best: dict[int, tuple[int, float]] = {}  # second -> (sample, lateness in ns)
        self._last_ns = 0

    def arrived(self, index: int, host_ns: int) -> None:
        """The packet that ended with sample `index` came at this time."""
        self._start_ns = self._start_ns or host_ns
        since = host_ns - self._start_ns
        late = since - index * self._period_ns
        bucket = since // _BUCKET_NS
        if bucket not in self._best or late < self._best[bucket][1]:
            self._best[bucket] = (index, late)
        while len(self._best) > _KEPT:
            del self._best[next(iter(self._best))]

    def times(self, first: int, count: int) -> Ints:
        """(count,) host times of samples `first` and on; never before those given last."""
        level, slope, centre = self._line()
        index = np.arange(first, first + count)
        since = index * self._period_ns + level + slope * (index - centre)
        times = np.round(since).astype(np.int64) + self._start_ns
        if count:
            times = np.maximum(times, np.arange(self._last_ns + 1, self._last_ns + 1 + count))
            self._last_ns = int(times[-1])
        return times

    def _line(self) -> tuple[float, float, float]:
        """Lateness of sample k: level + slope (k - centre)."""
        points = np.array(list(self._best.values()), np.float64).reshape(-1, 2)
        if len(points) < 6:  # a second's best is not good enough for a slope of a few of them
            return float(points[:, 1].min(initial=np.inf)), 0.0, 0.0
        points = points[:-1]  # the present second has not seen its best yet
        k, late = points[:, 0], points[:, 1]
        centre = float(k.mean())
        slope = float(np.sum((k - centre) * (late - late.mean())) / np.sum((k - centre) ** 2))
        return float(late.mean()), slope, centre
