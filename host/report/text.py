"""How a figure, its interval, its unit and its provenance are written, everywhere alike."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from host.report.data import RunReport, SessionReport
from quant.figures import METRICS, Figure, Provenance


@dataclass(frozen=True)
class ProvenanceText:
    mark: str  # one letter, beside a figure where a column mixes provenances
    short: str  # under a column's name
    long: str  # in legends and for screen readers


PROVENANCE_TEXT: dict[Provenance, ProvenanceText] = {
    Provenance.MEASURED: ProvenanceText("M", "measured", "measured on the device"),
    Provenance.HTP_EMULATOR: ProvenanceText(
        "H", "HTP emulator", "executed in Qualcomm's HTP emulator (numerics only)"
    ),
    Provenance.ORT_CPU: ProvenanceText("C", "ORT CPU", "executed in onnxruntime on the host CPU"),
    Provenance.COMPILER: ProvenanceText("K", "compiler", "reported by the HTP compiler"),
    Provenance.PREDICTED: ProvenanceText("P", "predicted", "predicted by a fitted model"),
    Provenance.EMULATED_DEVICE: ProvenanceText(
        "E", "emulated", "emulated by the device model, not measured"
    ),
    Provenance.FILE: ProvenanceText("F", "file size", "size of a file"),
}

SHORT_LABELS = {
    "accuracy": "Accuracy",
    "accuracy_drop": "Drop vs float",
    "accuracy_drop_fp16": "Drop vs fp16",
    "agreement": "Agreement",
    "latency_ms": "Latency",
    "latency_min_ms": "Lat. min",
    "latency_p90_ms": "Lat. p90",
    "latency_p99_ms": "Lat. p99",
    "throughput_items_per_sec": "Throughput",
    "power_mw": "Power",
    "energy_mj": "Energy",
    "energy_gross_mj": "Energy, gross",
    "model_size_bytes": "Size",
    "memory_mb": "Memory",
    "startup_ms": "Cold load",
}

ABSENT = "–"
EMULATED_NOTE = "No time, power, energy, heat or memory figure here was measured."


@dataclass(frozen=True)
class Scale:
    """The unit a metric is shown in: shown value = stored value * factor."""

    unit: str
    factor: float


def scale_of(unit: str, metric: str = "") -> Scale:
    """Fractions are shown as percent (their drops in points), bytes as MB (1e6 bytes)."""
    if unit == "fraction":
        return Scale("pt" if metric.startswith("accuracy_drop") else "%", 100.0)
    if unit == "bytes":
        return Scale("MB", 1e-6)
    if unit == "C":
        return Scale("°C", 1.0)
    return Scale(unit, 1.0)


def metric_unit(session: SessionReport, metric: str) -> str:
    """The stored unit of a metric; an accuracy in the task's own unit overrides the table's."""
    for run in session.runs:
        if (figure := run.figures.get(metric)) is not None:
            return figure.unit
    return METRICS[metric].unit if metric in METRICS else ""


def metric_label(session: SessionReport, metric: str, *, short: bool = False) -> str:
    """The name of a metric, with the task's metric where the name alone would not say it."""
    if short:
        return SHORT_LABELS.get(metric, METRICS[metric].label if metric in METRICS else metric)
    label = METRICS[metric].label if metric in METRICS else metric
    if metric == "accuracy" and (name := accuracy_name(session)):
        return f"{label}, {name}"
    return label


def accuracy_name(session: SessionReport) -> str:
    return next((run.accuracy_metric for run in session.runs if run.accuracy_metric), "")


def higher_is_better(session: SessionReport, metric: str) -> bool | None:
    """The direction of a metric in this session; None where nobody said."""
    for run in session.runs:
        if metric in run.figures and (known := run.higher_is_better(metric)) is not None:
            return known
    return None


def direction(better: bool | None) -> str:
    """The words of an axis."""
    return {True: "higher is better", False: "lower is better", None: ""}[better]


def arrow(better: bool | None) -> str:
    return {True: "↑", False: "↓", None: ""}[better]


def decimals_for(value: float, half_width: float | None) -> int:
    """Decimals that show two digits of the interval, or four significant digits without one."""
    if half_width is not None and half_width > 0:
        return min(max(1 - math.floor(math.log10(half_width)), 0), 6)
    if value == 0:
        return 0
    return min(max(3 - math.floor(math.log10(abs(value))), 0), 6)


def _decimals(figure: Figure, factor: float) -> int:
    assert figure.value is not None
    half = None
    if figure.ci_low is not None and figure.ci_high is not None:
        half = (figure.ci_high - figure.ci_low) / 2 * factor
    return decimals_for(figure.value * factor, half)


def column_decimals(session: SessionReport, metric: str) -> int:
    """Decimals for a whole column: the coarsest run's, but two digits of the smallest value."""
    figures = [f for run in session.runs if (f := run.figure(metric)) is not None]
    if not figures:
        return 0
    needed = 0
    for figure in figures:
        assert figure.value is not None
        if shown := abs(figure.value) * scale_of(figure.unit, figure.metric).factor:
            needed = max(needed, min(max(1 - math.floor(math.log10(shown)), 0), 6))
    return max(needed, min(_decimals(f, scale_of(f.unit, f.metric).factor) for f in figures))


def value_text(figure: Figure, *, unit: bool = False, decimals: int | None = None) -> str:
    """The value in its shown unit: "76.1", or "76.1 %" with the unit."""
    if figure.value is None:
        return ABSENT
    scale = scale_of(figure.unit, figure.metric)
    digits = _decimals(figure, scale.factor) if decimals is None else decimals
    text = f"{figure.value * scale.factor:.{digits}f}"
    return f"{text} {scale.unit}".strip() if unit else text


def interval_text(figure: Figure, *, decimals: int | None = None) -> str:
    """The 95 % interval in the shown unit: "74.0–78.1"; empty without one."""
    if figure.value is None or figure.ci_low is None or figure.ci_high is None:
        return ""
    factor = scale_of(figure.unit, figure.metric).factor
    digits = _decimals(figure, factor) if decimals is None else decimals
    low, high = figure.ci_low * factor, figure.ci_high * factor
    between = " to " if low < 0 else "–"
    return f"{low:.{digits}f}{between}{high:.{digits}f}"


def wrap_variant(name: str, width: int) -> list[str]:
    """A variant's name in lines of at most `width`.

    It is broken after `,`, `+` or `]` if that will do, else after `[`, `=` or `-`, else anywhere.
    """
    parts: list[str] = []
    for part in re.split(r"(?<=[,+\]])", name):
        parts += [part] if len(part) <= width else re.split(r"(?<=[\[=-])", part)
    lines = [""]
    for part in parts:
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return [line[i : i + width] for line in lines for i in range(0, len(line), width)]


def provenance_line(session: SessionReport, metric: str) -> str:
    """One provenance in words, or "mixed" where runs differ; empty where there is no value."""
    found = session.provenances(metric)
    if not found:
        return ""
    return PROVENANCE_TEXT[found[0]].short if len(found) == 1 else "mixed"


def provenance_sentence(session: SessionReport, metrics: tuple[str, ...]) -> str:
    """ "Accuracy: HTP emulator. Latency, energy: emulated." for captions under plots."""
    by_source: dict[str, list[str]] = {}
    for metric in metrics:
        sources = session.provenances(metric)
        if sources:
            text = " + ".join(PROVENANCE_TEXT[p].short for p in sources)
            text = f"MIXED, {text}" if len(sources) > 1 else text
            by_source.setdefault(text, []).append(metric_label(session, metric, short=True))
    return " · ".join(f"{', '.join(names)}: {source}" for source, names in by_source.items())


def baseline_text(session: SessionReport, run: RunReport, metric: str) -> str:
    """The change against fp16: "3.1× faster"-like factors, points for accuracy; "" if none.

    Figures of different provenance are not compared: the text is empty then.
    """
    base = session.baseline
    if base is None or run is base:
        return ""
    ours, theirs = run.figure(metric), base.figure(metric)
    if ours is None or theirs is None or ours.provenance is not theirs.provenance:
        return ""
    assert ours.value is not None and theirs.value is not None
    if metric.startswith("accuracy_drop"):
        return ""
    if ours.unit == "fraction":
        return f"{(ours.value - theirs.value) * 100:+.2f} pt"
    if metric == "accuracy" or not theirs.value:
        return f"{ours.value - theirs.value:+.3g}"
    return f"×{ours.value / theirs.value:.2f}"
