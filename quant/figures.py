"""A figure and where it came from: the provenance enum, the table of metrics, the Figure row.

The names here are binding: they are the `metric` and `provenance` columns of the database and
the keys of every JSON output.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Provenance(StrEnum):
    """How a figure was obtained. Figures of different provenance are never mixed unsaid."""

    MEASURED = "measured"  # real silicon
    HTP_EMULATOR = "htp_emulator"  # Qualcomm's HTP emulator: numerics only
    ORT_CPU = "ort_cpu"  # onnxruntime on the host CPU
    COMPILER = "compiler"  # static figures of the HTP compiler
    PREDICTED = "predicted"  # fitted predictor
    EMULATED_DEVICE = "emulated_device"  # the device model's time, power, heat, memory
    FILE = "file"  # size of a file


@dataclass(frozen=True)
class Metric:
    """One row of METRICS. `higher_is_better` is None where the task or the reader decides."""

    name: str
    unit: str
    label: str
    higher_is_better: bool | None
    decimals: int = 2


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("accuracy", "fraction", "Accuracy", None, 4),
        # Paired on the same samples; positive = worse. Reference: the float model in onnxruntime.
        Metric("accuracy_drop", "fraction", "Accuracy drop vs float", False, 4),
        Metric("accuracy_drop_fp16", "fraction", "Accuracy drop vs fp16 variant", False, 4),
        Metric("sqnr_db", "dB", "SQNR", True, 1),
        # Device against HTP emulator, on the inferences that the artifact stores.
        Metric("device_sqnr_db", "dB", "SQNR, device vs HTP emulator", True, 1),
        Metric("agreement", "fraction", "Agreement with float", True, 4),
        Metric("latency_ms", "ms", "Latency, median", False, 3),
        # Median distance of a block from the median of the blocks.
        Metric("latency_mad_ms", "ms", "Latency, deviation of blocks", False, 4),
        # Of the first 30 s of a sustained run, whose other figures are of its last five minutes.
        Metric("latency_burst_ms", "ms", "Latency, burst", False, 3),
        Metric("latency_min_ms", "ms", "Latency, minimum", False, 3),
        Metric("latency_p90_ms", "ms", "Latency, p90", False, 3),
        Metric("latency_p99_ms", "ms", "Latency, p99", False, 3),
        Metric("throughput_items_per_sec", "1/s", "Throughput", True, 1),
        Metric("power_mw", "mW", "Power, gross", False, 0),
        Metric("energy_mj", "mJ", "Energy per inference, net", False, 3),
        Metric("energy_gross_mj", "mJ", "Energy per inference, gross", False, 3),
        Metric("model_size_bytes", "bytes", "Context binary", False, 0),
        Metric("artifact_bytes", "bytes", "Artifact", False, 0),
        Metric("download_bytes", "bytes", "Download (compressed)", False, 0),
        Metric("memory_mb", "MB", "Memory, peak", False, 1),
        Metric("memory_steady_mb", "MB", "Memory, while inferring", False, 1),
        Metric("startup_ms", "ms", "Cold load", False, 1),
        Metric("startup_warm_ms", "ms", "Warm load", False, 1),
        Metric("first_inference_ms", "ms", "First inference", False, 2),
        Metric("ddr_read_bytes", "bytes", "DDR read per inference", False, 0),
        Metric("ddr_write_bytes", "bytes", "DDR write per inference", False, 0),
        Metric("spill_bytes", "bytes", "VTCM spill per inference", False, 0),
        Metric("fill_bytes", "bytes", "VTCM fill per inference", False, 0),
        Metric("max_temperature_c", "C", "Hottest zone", False, 1),
    )
}


@dataclass(frozen=True)
class Figure:
    """One figure of one run. ci_low/ci_high: 95 % interval, or None where none is defined."""

    metric: str
    value: float | None  # None: the figure is absent and `reason` says why
    unit: str
    provenance: Provenance
    n: int
    ci_low: float | None = None
    ci_high: float | None = None
    valid: bool = True
    reason: str = ""
