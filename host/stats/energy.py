"""Power and energy of the timed windows: gross, and net of the idle baseline around them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from host.stats.intervals import Estimate, median_interval
from host.stats.power import PowerTrace
from host.store.rows import Block, Floats, Mark

_NS = 1e-9
TWO_SIDED_95 = 1.959964
GUARD_UPDATES = 2


@dataclass(frozen=True)
class Baseline:
    """Idle power at the middle of a window.

    `inverse_seconds`: root of the sum over the m idle windows of (1 / (m length))^2, which turns
    an uncertainty of energy at one end of each into one of their mean power.
    """

    mw: float
    inverse_seconds: float


@dataclass(frozen=True)
class WindowEnergy:
    """Of one timed block."""

    block_index: int
    inferences: int
    seconds: float
    gross_mj: float
    baseline: Baseline | None
    end_mj: float  # standard uncertainty at one end of the window, from the sensor's rate
    open_ends: int  # 2; 1 where a warm-up under the same load lets the sensor catch up
    updates: int

    @property
    def net_mj(self) -> float | None:
        return None if self.baseline is None else self.gross_mj - self.baseline.mw * self.seconds

    @property
    def gross_edge_mj(self) -> float:
        """Standard uncertainty from the sensor's rate: the open ends of the window."""
        return self.end_mj * math.sqrt(self.open_ends)

    @property
    def net_edge_mj(self) -> float:
        """As for gross, and the one end of each idle window that touches the load."""
        if self.baseline is None:
            return self.gross_edge_mj
        return math.hypot(
            self.gross_edge_mj, self.end_mj * self.seconds * self.baseline.inverse_seconds
        )


@dataclass(frozen=True)
class Energy:
    """Of a run. Intervals: order statistics over blocks, widened by what the sensor's rate costs.

    `rate_share`: that widening relative to the net (or gross) energy.
    """

    power_mw: Estimate
    gross_mj: Estimate  # per inference
    net_mj: Estimate | None  # per inference; None without an idle baseline
    rate_share: float
    updates: int


def window_energies(
    trace: PowerTrace, blocks: Sequence[Block], marks: Sequence[Mark]
) -> list[WindowEnergy]:
    """One entry per block whose window the trace covers."""
    found = []
    for block in blocks:
        gross = trace.energy_mj(block.t_first_ns, block.t_last_ns)
        if gross is None or block.duration_ns <= 0:
            continue
        seconds = block.duration_ns * _NS
        baseline = _baseline(trace, marks, block)
        warmed = any(
            mark.phase == "warmup"
            and mark.block_index == block.block_index
            and mark.t_end_ns - mark.t_start_ns >= _lag_ns(trace)
            for mark in marks
        )
        step = gross / seconds - (baseline.mw if baseline else 0.0)
        found.append(
            WindowEnergy(
                block.block_index,
                block.inferences,
                seconds,
                gross,
                baseline,
                trace.end_uncertainty_mj(step),
                1 if warmed else 2,
                trace.updates_in(block.t_first_ns, block.t_last_ns),
            )
        )
    return found


def summarize(windows: Sequence[WindowEnergy]) -> Energy:
    """The run's power and energy from its windows (at least one).

    What the rate costs is not divided by the root of the number of windows: a sensor in step with
    the blocks errs the same way in each of them.
    """
    inferences = np.array([w.inferences for w in windows], np.float64)
    seconds = np.array([w.seconds for w in windows])
    gross = np.array([w.gross_mj for w in windows])
    gross_edges = np.array([w.gross_edge_mj for w in windows])
    net_edges = np.array([w.net_edge_mj for w in windows])
    net = [w.net_mj for w in windows]
    gross_estimate = _widened(gross / inferences, gross_edges / inferences)
    net_estimate = None
    widening = TWO_SIDED_95 * float(np.median(gross_edges / inferences))
    if all(value is not None for value in net):
        net_estimate = _widened(np.array(net, np.float64) / inferences, net_edges / inferences)
        widening = TWO_SIDED_95 * float(np.median(net_edges / inferences))
    base = abs((net_estimate or gross_estimate).value)
    return Energy(
        power_mw=_widened(gross / seconds, gross_edges / seconds),
        gross_mj=gross_estimate,
        net_mj=net_estimate,
        rate_share=widening / base if base > 0 else float("inf"),
        updates=sum(w.updates for w in windows),
    )


def _widened(values: Floats, edges: Floats) -> Estimate:
    inner = median_interval(values)
    by = TWO_SIDED_95 * float(np.median(edges))
    return Estimate(inner.value, inner.low - by, inner.high + by, inner.n)


def _lag_ns(trace: PowerTrace) -> int:
    """How long a sensor that averages and holds may still show what was before."""
    return round(GUARD_UPDATES * trace.update_s / _NS) if trace.update_hz > 0 else 0


def _baseline(trace: PowerTrace, marks: Sequence[Mark], block: Block) -> Baseline | None:
    """Idle power at the middle of the window, on the line from the baseline before to the one
    after, so that a drift (a screen that dims, leakage that grows with heat) cancels.

    The nearest ones count: the blocks of a sustained run share those at its two ends. A sensor
    that averages and holds still shows the load for up to two updates after its end, so the
    baseline after starts that much later; one that is too short for it is not used.
    """
    idle = [m for m in marks if m.t_end_ns > m.t_start_ns]
    before = [m for m in idle if m.phase == "idle_before" and m.t_end_ns <= block.t_first_ns]
    after = [m for m in idle if m.phase == "idle_after" and m.t_start_ns >= block.t_last_ns]
    windows = []
    if before:
        last = max(before, key=lambda m: m.t_end_ns)
        windows.append((last.t_start_ns, last.t_end_ns))
    if after:
        first = min(after, key=lambda m: m.t_start_ns)
        windows.append((first.t_start_ns + _lag_ns(trace), first.t_end_ns))
    ends: list[tuple[int, float, float]] = []
    for start, end in windows:
        mean = trace.mean_mw(start, end) if start < end else None
        if mean is not None:
            ends.append(((start + end) // 2, mean, (end - start) * _NS))
    if not ends:
        return None
    start = ends[0][0]
    middle = (block.t_first_ns + block.t_last_ns) // 2 - start
    mw = float(np.interp(middle, [t - start for t, _, _ in ends], [mean for _, mean, _ in ends]))
    return Baseline(mw, sum((1 / (len(ends) * length)) ** 2 for _, _, length in ends) ** 0.5)
