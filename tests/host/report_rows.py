"""Rows for the report tests: a session of any size, with every awkward case in it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np

from host.errors import RunStatus
from host.report.data import LayerRow, Phase, RunReport, SessionReport, Stage, Trace
from quant.figures import METRICS, Figure, Provenance

NAMES = (
    "fp16",
    "int8",
    "int8[calibration=mse]",
    "per-channel",
    "int4",
    "int4[group=64]",
    "hybrid",
    "hybrid[budget=0.5pt]",
    "cluster",
    "sparse[sparsity=0.5,pattern=2:4]",
    "int8,sparse[sparsity=0.5]+hybrid",
    "qat",
)
# Latency in ms and top-1 per variant: 1.0 and 0.760 (int8) is the fastest within a point of fp16.
LATENCY = (4.0, 1.0, 0.9, 2.0, 2.1, 1.1, 1.5, 1.2, 1.3, 2.4, 1.4, 2.8)
ACCURACY = (0.765, 0.760, 0.740, 0.745, 0.754, 0.744, 0.750, 0.743, 0.75, 0.756, 0.74, 0.741)


def figure(metric: str, value: float | None, source: Provenance, spread: float = 0.0) -> Figure:
    ends = (value * (1 - spread), value * (1 + spread)) if value and spread else (None, None)
    return Figure(metric, value, METRICS[metric].unit, source, 10, *ends)


def run(index: int, source: Provenance, *, samples: int = 400) -> RunReport:
    latency, size = LATENCY[index], 9.4e6 if index == 0 else 4.5e6 - 1e5 * index
    numerics = Provenance.MEASURED if source is Provenance.MEASURED else Provenance.HTP_EMULATOR
    t_s = np.linspace(0.0, 60.0, samples)
    power = 650 + (t_s > 10) * 1500 + 50 * np.sin(t_s * 9)
    temperature = 34 + 14 * np.clip(t_s - 10, 0, 50) / 50
    return RunReport(
        run_id=f"r{index}",
        method=NAMES[index].split("[")[0],
        variant=NAMES[index],
        status=RunStatus.OK,
        figures={
            "accuracy": replace(
                figure("accuracy", ACCURACY[index], numerics),
                ci_low=ACCURACY[index] - 0.02,
                ci_high=ACCURACY[index] + 0.02,
                n=256,
            ),
            "latency_ms": figure("latency_ms", latency, source, 0.01),
            "energy_mj": figure("energy_mj", latency * 2.1, source, 0.04),
            "power_mw": figure("power_mw", 2100.0 + 10 * index, source, 0.02),
            "model_size_bytes": figure("model_size_bytes", size, Provenance.FILE),
            "memory_mb": figure("memory_mb", size * 2.2e-6, source),
            "startup_ms": figure("startup_ms", 40 + 8 * latency, source, 0.05),
        },
        accuracy_metric="top1",
        accuracy_higher_is_better=True,
        options_json='{"bits": 8}',
        layers=tuple(
            LayerRow(f"/features/{k}/Conv", "Conv", "w8a16" if k % 4 == 0 else "w8a8", 20.0 + k % 7)
            for k in range(40)
        ),
        fingerprint={"model": "9f2c" * 16, "toolchain": "onnxruntime-qnn 2.7.0"},
        traces=(
            Trace("battery power", "mW", source, t_s, power),
            Trace("soc zone", "C", source, t_s[::10], temperature[::10]),
        ),
        phases=(
            Phase("idle_before", 0.0, 9.5),
            Phase("cold_load", 9.5, 10.2),
            Phase("warmup", 10.2, 14.0),
            *(Phase("timed", 14.0 + 7 * k, 20.5 + 7 * k) for k in range(6)),
        ),
    )


def session(
    count: int = 12,
    source: Provenance = Provenance.EMULATED_DEVICE,
    *,
    awkward: bool = False,
    samples: int = 400,
) -> SessionReport:
    """`awkward` makes one run fail, one skipped, one figure absent and one not valid."""
    runs = [run(index, source, samples=samples) for index in range(count)]
    if awkward:
        runs[8] = RunReport(
            "r8", "cluster", "cluster", RunStatus.FAILED, "TIMEOUT", "no answer within 60 s"
        )
        runs[10] = RunReport(
            "r10", "int8", NAMES[10], RunStatus.SKIPPED, "USER_ERROR", "<b>needs torch</b>"
        )
        absent = Figure(
            "energy_mj",
            None,
            "mJ",
            runs[3].figures["energy_mj"].provenance,
            0,
            reason="it was charging",
        )
        runs[3] = with_figure(runs[3], absent)
        runs[5] = with_figure(
            runs[5], replace(runs[5].figures["latency_ms"], valid=False, reason="throttled")
        )
    emulated = source is Provenance.EMULATED_DEVICE
    return SessionReport(
        session_id="20261123-133000-7f3a",
        created_at=datetime(2026, 11, 23, 13, 30, tzinfo=UTC),
        device="emulated:sm8650" if emulated else "R5CT10ABCDE",
        soc="sm8650",
        model_name="mobilenet_v2",
        model_type="vision",
        runs=tuple(runs),
        notes=("Profile rapid.",),
        db_path="qhost-mock.duckdb",
        emulated=emulated,
        emulation_basis="published latencies" if emulated else "",
        stages=(Stage("compile", 12.5),),
        settings={"profile": "rapid"},
    )


def with_figure(row: RunReport, new: Figure) -> RunReport:
    return replace(row, figures={**row.figures, new.metric: new})
