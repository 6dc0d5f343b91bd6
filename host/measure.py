"""From the raw data of a run to its figures. Pure: no database, no clock, no device.

The block is the unit of every statistic: iterations within a block share its temperature, clocks
and neighbours, so they are not independent of each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from host.errors import RunStatus
from host.stats.energy import Energy, summarize, window_energies
from host.stats.intervals import Estimate, median_absolute_deviation, median_interval
from host.stats.phases import BLOCK_S, BURST_BLOCKS, STEADY_BLOCKS, SUSTAINED, burst, steady
from host.stats.power import PowerTrace, choose_power
from host.stats.validity import (
    MIN_UPDATES,
    Evidence,
    Finding,
    Limits,
    Scope,
    broken_rules,
    few_readings,
)
from host.store.rows import Block, Floats, RunData
from quant.figures import METRICS, Figure, Provenance

__all__ = ["Assessment", "Limits", "assess", "block_latency_us", "block_values", "measure"]

BYTES_PER_MB = 1e6
POWER_METRICS = ("power_mw", "energy_mj", "energy_gross_mj")
TEMPERATURE_SITES = ("npu", "cpu", "gpu", "ddr", "skin")


@dataclass(frozen=True)
class Assessment:
    """The figures of a run, whether they may be used, and what the user should know."""

    figures: tuple[Figure, ...]
    status: RunStatus  # ok or invalid
    message: str  # why it is invalid
    findings: tuple[Finding, ...]
    power_method: str | None
    power_update_hz: float | None

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.scope is not Scope.RUN)


def measure(data: RunData, provenance: Provenance, limits: Limits) -> list[Figure]:
    """The figures of a run; `provenance` is what the host derived from the device's description."""
    return list(assess(data, provenance, limits).figures)


def assess(data: RunData, provenance: Provenance, limits: Limits) -> Assessment:
    """Figures, validity and advice of a run with at least its load or one block.

    A sustained run is judged by its steady phase: `host.stats.phases`.
    """
    whole, data = data, replace(data, blocks=steady(data.profile, data.blocks))
    if whole.profile == SUSTAINED:
        limits = replace(limits, min_duration_s=STEADY_BLOCKS * BLOCK_S)
    block_us = np.array([block_latency_us(block) for block in data.blocks])
    latency = median_interval(block_us) if len(block_us) else None
    trace = choose_power(data.channels, data.samples, data.blocks)
    windows = window_energies(trace, data.blocks, data.marks) if trace else []
    energy = summarize(windows) if windows else None
    findings = broken_rules(Evidence(data, limits, block_us, latency, trace, energy))
    run_reasons = [f.reason for f in findings if f.scope is Scope.RUN]
    time_reasons = [f.reason for f in findings if f.scope is Scope.TIME]
    power_reasons = [f.reason for f in findings if f.scope is Scope.POWER]
    figures = [
        *_latency_figures(data, latency, provenance),
        *_burst_figures(whole, provenance),
        *_power_figures(energy, trace, len(data.blocks), provenance),
        *_load_figures(data, provenance),
        *_golden_figures(data, provenance),
        *_temperature_figures(data, provenance),
    ]
    # What the load took is true even of a run whose blocks are not.
    of_blocks = {"throughput_items_per_sec", "max_temperature_c", *POWER_METRICS}
    checked = []
    for figure in figures:
        reasons = (
            list(run_reasons) if figure.metric in of_blocks or "latency" in figure.metric else []
        )
        if figure.metric in of_blocks or "latency" in figure.metric:
            reasons += time_reasons
        if figure.metric in POWER_METRICS:
            reasons += power_reasons
        if reasons and figure.valid:
            figure = replace(figure, valid=False, reason="; ".join(reasons))
        checked.append(figure)
    return Assessment(
        tuple(checked),
        RunStatus.INVALID if run_reasons else RunStatus.OK,
        "; ".join(run_reasons),
        tuple(findings),
        trace.method if trace else None,
        trace.update_hz if trace else None,
    )


def block_values(data: RunData) -> dict[str, Floats]:
    """Metric -> its value in each block (n,): what comparisons of runs are made of.

    Metrics in which not every block has a value are left out.
    """
    data = replace(data, blocks=steady(data.profile, data.blocks))
    if not data.blocks:
        return {}
    values = {
        "latency_ms": np.array([block_latency_us(block) / 1e3 for block in data.blocks]),
        "throughput_items_per_sec": np.array(
            [block.inferences / (block.duration_ns * 1e-9) for block in data.blocks]
        ),
    }
    trace = choose_power(data.channels, data.samples, data.blocks)
    windows = window_energies(trace, data.blocks, data.marks) if trace else []
    if len(windows) != len(data.blocks):
        return values
    values["power_mw"] = np.array([w.gross_mj / w.seconds for w in windows])
    values["energy_gross_mj"] = np.array([w.gross_mj / w.inferences for w in windows])
    net = [w.net_mj for w in windows]
    if all(value is not None for value in net):
        inferences = np.array([w.inferences for w in windows])
        values["energy_mj"] = np.array(net, np.float64) / inferences
    return values


def block_latency_us(block: Block) -> float:
    """Median iteration of a block; its mean where the runtime gives no single iterations."""
    if len(block.per_iteration_us):
        return float(np.median(block.per_iteration_us))
    return block.duration_ns / 1e3 / block.inferences


def _latency_figures(
    data: RunData, latency: Estimate | None, provenance: Provenance
) -> list[Figure]:
    if latency is None:
        return [
            _absent(name, provenance, "no timed block")
            for name in ("latency_ms", "throughput_items_per_sec")
        ]
    rates = [block.inferences / (block.duration_ns * 1e-9) for block in data.blocks]
    figures = [
        _figure("latency_ms", latency.scaled(1e-3), provenance),
        Figure(
            "latency_mad_ms",
            median_absolute_deviation([block_latency_us(block) for block in data.blocks]) / 1e3,
            METRICS["latency_mad_ms"].unit,
            provenance,
            latency.n,
        ),
        _figure("throughput_items_per_sec", median_interval(rates), provenance),
    ]
    parts = [block.per_iteration_us for block in data.blocks]
    if not all(len(part) for part in parts):
        reason = f"single iterations are unknown ({data.blocks[0].window_method})"
        names = ("latency_min_ms", "latency_p90_ms", "latency_p99_ms")
        return figures + [_absent(name, provenance, reason) for name in names]
    everything = np.concatenate(parts).astype(np.float64)
    figures.append(
        Figure("latency_min_ms", float(everything.min()) / 1e3, "ms", provenance, len(everything))
    )
    quantiles = {"latency_p90_ms": 0.9, "latency_p99_ms": 0.99}
    return figures + [
        _quantile_figure(name, quantile, parts, everything, provenance)
        for name, quantile in quantiles.items()
    ]


def _burst_figures(data: RunData, provenance: Provenance) -> list[Figure]:
    if data.profile != SUSTAINED or not data.blocks:
        return []
    blocks = burst(data.profile, data.blocks)
    if len(blocks) < BURST_BLOCKS:
        return [_absent("latency_burst_ms", provenance, "the first blocks are missing")]
    estimate = median_interval([block_latency_us(block) for block in blocks])
    return [_figure("latency_burst_ms", estimate.scaled(1e-3), provenance)]


def _quantile_figure(
    name: str,
    quantile: float,
    parts: list[NDArray[np.float32]],
    everything: Floats,
    provenance: Provenance,
) -> Figure:
    """Median of the blocks' quantiles; of all iterations together where blocks are too short.

    A quantile needs 10 values beyond it to be more than the maximum by another name.
    """
    needed = round(10 / (1 - quantile))
    if min(len(part) for part in parts) >= needed:
        return _figure(
            name, median_interval([np.quantile(part, quantile) for part in parts]).scaled(1e-3),
            provenance,
        )  # fmt: skip
    if len(everything) >= needed:
        value = float(np.quantile(everything, quantile)) / 1e3
        return Figure(name, value, "ms", provenance, len(everything))
    return _absent(name, provenance, f"{len(everything)} iterations, {needed} are needed")


def _power_figures(
    energy: Energy | None, trace: PowerTrace | None, blocks: int, provenance: Provenance
) -> list[Figure]:
    if energy is None:
        reason = "no power channel" if trace is None else "power was not sampled in the windows"
        return [_absent(name, provenance, reason) for name in POWER_METRICS] if blocks else []
    if energy.updates < MIN_UPDATES and trace is not None:
        # Not even an interval could be stated: the sensor may have missed the load altogether.
        reason = few_readings(energy.updates, trace.update_hz)
        return [_absent(name, provenance, reason) for name in POWER_METRICS]
    figures = [
        _figure("power_mw", energy.power_mw, provenance),
        _figure("energy_gross_mj", energy.gross_mj, provenance),
    ]
    if energy.net_mj is None:
        return [*figures, _absent("energy_mj", provenance, "no idle baseline")]
    return [*figures, _figure("energy_mj", energy.net_mj, provenance)]


def _load_figures(data: RunData, provenance: Provenance) -> list[Figure]:
    figures = []
    if data.load is not None:
        times = {
            "startup_ms": data.load.cold_s,
            "startup_warm_ms": data.load.warm_s,
            "first_inference_ms": data.load.first_inference_s,
        }
        figures = [
            Figure(name, s * 1e3, "ms", provenance, 1)
            if math.isfinite(s)
            else _absent(name, provenance, "the runtime cannot tell it from the load")
            for name, s in times.items()
        ]
    memory = data.memory
    if memory is not None and memory.readings:
        values = {"memory_mb": memory.peak_bytes, "memory_steady_mb": memory.steady_bytes}
        figures += [
            Figure(name, value / BYTES_PER_MB, "MB", provenance, memory.readings)
            for name, value in values.items()
        ]
    elif data.load is not None and data.load.peak_memory_bytes:
        peak = data.load.peak_memory_bytes / BYTES_PER_MB
        figures.append(Figure("memory_mb", peak, "MB", provenance, 1))
    return figures


def _golden_figures(data: RunData, provenance: Provenance) -> list[Figure]:
    """How far the device's outputs are from the HTP emulator's on the stored inferences."""
    golden = data.golden
    if golden is None:
        return []
    exact = golden.bit_equal or not np.isfinite(golden.sqnr_db)
    value = None if exact else golden.sqnr_db
    reason = "outputs are bit-equal to the HTP emulator's" if golden.bit_equal else ""
    if exact and not golden.bit_equal:
        reason = "outputs have nothing in common with the HTP emulator's"
        if golden.sqnr_db > 0:
            reason = "outputs equal the HTP emulator's in value"  # -0.0 for 0.0
    return [Figure("device_sqnr_db", value, "dB", provenance, golden.samples, reason=reason)]


def _temperature_figures(data: RunData, provenance: Provenance) -> list[Figure]:
    """The hottest of the zones known by name, while a block was timed; `reason` names it."""
    best: tuple[float, str] | None = None
    for channel in data.channels:
        samples = data.samples.get(channel.channel)
        if channel.kind != "temperature" or channel.site not in TEMPERATURE_SITES or not samples:
            continue
        for block in data.blocks:
            span = slice(*np.searchsorted(samples.t_ns, [block.t_first_ns, block.t_last_ns + 1]))
            inside = samples.value[span]
            if len(inside) and (best is None or inside.max() > best[0]):
                best = (float(inside.max()), channel.name)
    if best is None:
        return []
    return [Figure("max_temperature_c", best[0], "C", provenance, len(data.blocks), reason=best[1])]


def _figure(name: str, estimate: Estimate, provenance: Provenance) -> Figure:
    bounded = bool(np.isfinite(estimate.low) and np.isfinite(estimate.high))
    return Figure(
        name,
        estimate.value,
        METRICS[name].unit,
        provenance,
        estimate.n,
        estimate.low if bounded else None,
        estimate.high if bounded else None,
    )


def _absent(name: str, provenance: Provenance, reason: str) -> Figure:
    return Figure(name, None, METRICS[name].unit, provenance, 0, valid=False, reason=reason)
