"""Rows for the report tests: a session of any size, with every awkward case in it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np

from host.errors import FailureClass, RunStatus
from host.report.data import LayerRow, Phase, RunReport, SessionReport, Stage, Trace
from host.store import Store
from host.store.rows import (
    Block,
    Channel,
    DeviceRow,
    Golden,
    Load,
    Mark,
    RawBatch,
    RunRow,
    Samples,
    SessionRow,
)
from host.store.rows import Stage as HostStage
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
            # Against the float model, whose accuracy is that of fp16.
            "accuracy_drop": Figure(
                "accuracy_drop",
                ACCURACY[0] - ACCURACY[index],
                "fraction",
                numerics,
                256,
                ACCURACY[0] - ACCURACY[index] - 0.004,
                ACCURACY[0] - ACCURACY[index] + 0.004,
            ),
            "latency_ms": figure("latency_ms", latency, source, 0.01),
            "energy_mj": figure("energy_mj", latency * 2.1, source, 0.04),
            "power_mw": figure("power_mw", 2100.0 + 10 * index, source, 0.02),
            "model_size_bytes": figure("model_size_bytes", size, Provenance.FILE),
            "memory_mb": figure("memory_mb", size * 2.2e-6, source),
            "startup_ms": figure("startup_ms", 40 + 8 * latency, source, 0.05),
        },
        others=(replace(figure("accuracy", ACCURACY[index], Provenance.ORT_CPU, 1e-6), n=141_104),),
        accuracy_metric="top1",
        accuracy_higher_is_better=True,
        options_json='{"bits": 8}',
        layers=tuple(
            LayerRow(f"/features/{k}/Conv", "Conv", "w8a16" if k % 4 == 0 else "w8a8", 20.0 + k % 7)
            for k in range(40)
        ),
        fingerprint={"model": "9f2c" * 16, "toolchain": "onnxruntime-qnn 2.7.0"},
        traces=(
            Trace("board rail: vph_pwr", "mW", source, t_s, power),
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


def database(path, *, sessions: int = 1, count: int = 3, slower: float = 1.0, awkward: bool = True):
    """A database as the bench leaves it; the last session is `slower` times the others."""
    with Store.open(path, create=True) as store:
        for number in range(sessions):
            factor = slower if number == sessions - 1 else 1.0
            _fill(store, f"2026112{number}-120000-aaa{number}", number, count, factor, awkward)
    return path


def _fill(store, session_id, number, count, factor, awkward):
    random = np.random.default_rng(number)
    created = datetime(2026, 11, 20 + number, 12, 0)
    store.new_session(
        SessionRow(
            session_id, "f", True, "rapid", 0, "qhost bench --mock", "0.1.0", created_at=created
        )
    )
    about = {"build": f"build-{number}", "emulation_basis": "published latencies"}
    store.add_device(
        DeviceRow(session_id, "emu-1", "emulated:sm8650", "sm8650", True, json.dumps(about))
    )
    channels = (
        Channel(0, "battery_power", "battery", "power", "mW"),
        Channel(1, "nsphmx-0", "npu", "temperature", "C"),
        Channel(2, "skin-0", "skin", "temperature", "C"),
    )
    clock = 10**12
    for index in range(count):
        run_id = f"{session_id}-{index:02d}"
        store.add_run(
            RunRow(
                run_id,
                session_id,
                "mobilenet_v2",
                "vision",
                "9f2c" * 16,
                "11aa" * 16,
                "sm8650",
                "emulated:sm8650",
                "emu-1",
                NAMES[index].split("[")[0],
                NAMES[index],
                "rapid",
                accuracy_metric="top1",
                accuracy_higher_is_better=True,
                artifact_sha256=f"{index:064x}",
                notes_json=json.dumps(["shared note"] + (["own note"] if index else [])),
                fingerprint_json=json.dumps({"governor": "performance"}),
                created_at=created + timedelta(seconds=index),
            ),
            channels,
        )
    for block in range(8):
        for index in range(count):
            run_id = f"{session_id}-{index:02d}"
            seq = block * count + index + 1
            store.append(
                session_id,
                f"{session_id}/emu-1",
                [_batch(seq, run_id, block, clock, LATENCY[index] * factor, random)],
            )
            clock += 8 * 10**9
    for index in range(count):
        run_id = f"{session_id}-{index:02d}"
        if awkward and index == count - 1:
            store.finish_run(
                run_id,
                RunStatus.FAILED,
                failure_class=FailureClass.DEVICE_ERROR,
                message="adb: device offline",
            )
            continue
        figures = [
            scaled(f, factor if f.metric == "latency_ms" else 1.0)
            for f in run(index, Provenance.EMULATED_DEVICE).figures.values()
            if f.value is not None
        ]
        figures.append(figure("accuracy", 0.76, Provenance.ORT_CPU))
        store.add_stages(run_id, [HostStage("quantize", 2.0), HostStage("compile", 3.0)])
        store.finish_run(run_id, RunStatus.OK, figures=figures, power_method="battery power")
    store.finish_session(session_id)


def scaled(f, factor):
    low = None if f.ci_low is None else f.ci_low * factor
    high = None if f.ci_high is None else f.ci_high * factor
    return replace(f, value=f.value * factor, ci_low=low, ci_high=high)


def _batch(seq, run_id, block, clock, latency_ms, random):
    """A block of 4 s with 1 s of idle before it; power at 20 Hz; every third block throttled."""
    t_ns = clock + np.arange(0, 5 * 10**9, 5 * 10**7, dtype=np.int64)
    power = 650.0 + 1500.0 * (t_ns - clock > 10**9) + random.normal(0, 20, t_ns.size)
    hot = 35.0 + np.linspace(0, 5, t_ns.size)
    micros = (latency_ms * 1e3 * random.normal(1, 0.01, 50)).astype(np.float32)
    return RawBatch(
        seq,
        run_id,
        samples=(
            Samples(0, t_ns, power),
            Samples(1, t_ns, hot),
            Samples(2, t_ns, hot - 10),
        ),
        marks=(
            Mark("idle_before", clock, clock + 10**9, block),
            Mark("timed", clock + 10**9, clock + 5 * 10**9, block),
        ),
        block=Block(block, 50, clock + 10**9, clock + 5 * 10**9, micros, throttled=block % 3 == 2),
        golden=Golden(4, block != 0, 51.0) if block == 0 else None,
        load=Load(0.05, 0.01, 0.004, 10**7) if block == 0 else None,
    )
