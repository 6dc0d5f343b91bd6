"""How a device's clock relates to the host's: offset and drift, from round trips. Pure.

A round trip brackets the device's clock: it was read somewhere between the host's two readings,
so its offset is known within half the round trip (Cristian 1989). Many of them bracket a line.
The line is the most likely one, with the reading evenly likely anywhere within its bracket and
with what is known of quartz: two clocks differ by tens of ppm. So slow round trips count for
little, and a few of them do not make a drift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from host.store.rows import ClockOffset, Floats, Ints

# Standard deviation of the drift between two quartz clocks, before anything is observed.
QUARTZ = 50e-6
# A drift is only said where the observations know it better than that.
SAID_BELOW = 10e-6
_FLOOR_NS = 1_000.0


@dataclass(frozen=True)
class ClockLine:
    """device = device_ns + (host - host_ns) * rate.

    `drift_ppm`: rate - 1, None where the observations are too short or too slow to tell it from
    none. `uncertainty_ns`: how far the line may be off within the time observed: two standard
    deviations, and what it misses any bracket by.
    """

    host_ns: int
    device_ns: int
    rate: float
    drift_ppm: float | None
    uncertainty_ns: int
    observations: int

    def to_device(self, host_ns: Ints) -> Ints:
        """(n,) times of the host's monotonic clock on the device's clock."""
        # Relative to the reference: absolute nanoseconds do not fit a float's 53 bits.
        since = host_ns - self.host_ns
        return np.round(since * self.rate).astype(np.int64) + self.device_ns

    def to_host(self, device_ns: int) -> int:
        """A device time on the host's monotonic clock."""
        return round((device_ns - self.device_ns) / self.rate) + self.host_ns


@dataclass(frozen=True)
class _Line:
    level: float
    slope: float
    slope_sd: float
    worst_sd: float
    missed: float  # by how much it passes outside of a bracket, at worst


def fit_clock(observed: Sequence[ClockOffset]) -> ClockLine:
    """The line through round trips of one epoch (at least one), in any order."""
    if not observed:
        raise ValueError("no observation of the clock")
    rows = sorted(observed, key=lambda o: o.host_ns)
    middle = rows[len(rows) // 2].host_ns
    reference = rows[0].device_ns - rows[0].host_ns
    x = np.array([o.host_ns - middle for o in rows], np.float64)
    y = np.array([o.device_ns - o.host_ns - reference for o in rows], np.float64)
    half = np.array([o.round_trip_ns / 2 for o in rows], np.float64)
    line = _fit(x, y, half, 1 / QUARTZ**2)
    if line.missed > _FLOOR_NS and len(rows) > 2:
        # No quartz: an emulated device that lives faster, or one that was held up.
        free = _fit(x, y, half, 0.0)
        if free.missed < line.missed / 2:
            line = free
    said = line.slope_sd < SAID_BELOW or abs(line.slope) > 10 * QUARTZ
    return ClockLine(
        host_ns=middle,
        device_ns=middle + reference + round(line.level),
        rate=1.0 + line.slope,
        drift_ppm=line.slope * 1e6 if said else None,
        uncertainty_ns=round(2 * line.worst_sd + line.missed),
        observations=len(rows),
    )


def _fit(x: Floats, y: Floats, half: Floats, slope_precision: float) -> _Line:
    """Weighted least squares; the slope has this precision (1 / variance) around 0 beforehand.

    The level at the weighted centre and the slope are independent of each other.
    """
    weight = 1.0 / (half**2 / 3 + _FLOOR_NS**2)  # variance of a reading within its bracket
    total = float(weight.sum())
    centre = float(weight @ x) / total
    level = float(weight @ y) / total
    precision = float(weight @ (x - centre) ** 2) + slope_precision
    slope = float(weight @ ((x - centre) * (y - level))) / precision
    at_zero = level - slope * centre
    worst = 1 / total + float(np.abs(x - centre).max()) ** 2 / precision
    missed = np.maximum(np.abs(y - at_zero - slope * x) - half, 0.0)
    return _Line(at_zero, slope, precision**-0.5, worst**0.5, float(missed.max()))
