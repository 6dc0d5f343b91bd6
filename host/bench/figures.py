"""Figures that do not come from the device: quality, the compiler's, sizes, paired drops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from host.stats.accuracy import accuracy_interval
from host.stats.paired import accuracy_drop
from quant.artifact import Artifact
from quant.evaluate import FLOAT
from quant.figures import METRICS, Figure, Provenance
from quant.metrics import METRICS as TASK_METRICS
from quant.metrics import Metric

Scores = NDArray[np.float64]
SCORES = "quality/scores.npz"
COMPILER_METRICS = ("ddr_read_bytes", "ddr_write_bytes", "spill_bytes", "fill_bytes")


def static_figures(artifact: Artifact, soc: str, seed: int) -> list[Figure]:
    """Accuracy in onnxruntime and in the HTP emulator, the compiler's figures, file sizes."""
    quality: Mapping[str, Mapping[str, Any]] = artifact.manifest["quality"]
    scores = score_arrays(artifact)
    figures: list[Figure] = []
    for engine in (Provenance.ORT_CPU, Provenance.HTP_EMULATOR):
        if engine.value in quality:
            _, own = scores.get(engine, ("", None))
            figures += quality_figures(quality[engine.value], own, seed)
    compiled = artifact.soc(soc)
    for name in COMPILER_METRICS:
        if name in compiled["figures"]:  # a bare context does not carry them
            figures.append(_exact(name, compiled["figures"][name], Provenance.COMPILER))
    for name, value in (
        ("model_size_bytes", compiled["context_bytes"]),
        ("download_bytes", compiled["download_bytes"]),
        ("artifact_bytes", artifact.size_bytes),
    ):
        figures.append(_exact(name, value, Provenance.FILE))
    return figures


def quality_figures(quality: Mapping[str, Any], scores: Scores | None, seed: int) -> list[Figure]:
    """Of one engine. Without labels the accuracy is the agreement with the reference, which is
    the float model, or the same graph in onnxruntime where that is not known."""
    provenance, n = Provenance(quality["provenance"]), int(quality["n"])
    reference = quality.get("reference", FLOAT)
    metric = TASK_METRICS.get(str(quality["metric"]))
    if metric is None or scores is None:
        accuracy = Figure(
            "accuracy",
            quality["agreement"],
            METRICS["accuracy"].unit,
            provenance,
            n,
            reason=f"agreement with {reference}: no labels",
        )
    else:
        estimate = accuracy_interval(scores, metric.aggregate, seed=seed)
        accuracy = Figure(
            "accuracy",
            estimate.value,
            metric.unit,
            provenance,
            n,
            estimate.low if np.isfinite(estimate.low) else None,
            estimate.high if np.isfinite(estimate.high) else None,
        )
    figures = [accuracy]
    for name in ("sqnr_db", "agreement"):
        absent = quality[name] is None
        against = "" if reference == FLOAT else f"against {reference}"
        figures.append(
            Figure(
                name,
                quality[name],
                METRICS[name].unit,
                provenance,
                n,
                reason=f"outputs are equal to those of {reference}" if absent else against,
            )
        )
    return figures


def score_arrays(artifact: Artifact) -> dict[Provenance, tuple[str, Scores]]:
    """Per-sample scores by engine, with the metric's name; empty without labels."""
    quality = artifact.manifest["quality"]
    arrays = artifact.arrays(SCORES) if SCORES in artifact.members else {}
    out = {}
    for engine in (Provenance.ORT_CPU, Provenance.HTP_EMULATOR):
        scores = arrays.get(engine.value)
        if scores is not None and len(scores):
            out[engine] = (str(quality[engine.value]["metric"]), np.asarray(scores, np.float64))
    return out


def drop_figures(artifact: Artifact, baseline: Artifact | None, seed: int) -> list[Figure]:
    """Paired accuracy drops, positive = worse, with 95 % intervals.

    Against the float model in onnxruntime (on the samples the HTP emulator ran), and against the
    fp16 variant in the same engine where there is one.
    """
    quality = artifact.manifest["quality"].get("htp_emulator", {})
    metric = TASK_METRICS.get(str(quality.get("metric")))
    ours = artifact.arrays(SCORES) if SCORES in artifact.members else {}
    if metric is None or "htp_emulator" not in ours or "float" not in ours:
        return []
    references: list[tuple[str, Scores]] = [("accuracy_drop", ours["float"])]
    if baseline is not None:
        scores = baseline.arrays(SCORES)["htp_emulator"]
        references.append(("accuracy_drop_fp16", scores))
    return [
        drop_figure(name, reference, ours["htp_emulator"], metric, seed, Provenance.HTP_EMULATOR)
        for name, reference in references
    ]


def drop_figure(
    name: str,
    reference: Scores,
    scores: Scores,
    metric: Metric,
    seed: int,
    provenance: Provenance,
) -> Figure:
    """The paired drop of `scores`, of this provenance, on the samples that both have."""
    n = min(len(reference), len(scores))
    estimate = accuracy_drop(
        reference[:n],
        scores[:n],
        metric.aggregate,
        higher_is_better=metric.higher_is_better,
        seed=seed,
    ).drop
    return Figure(
        name,
        estimate.value,
        metric.unit,
        provenance,
        n,
        estimate.low,
        estimate.high,
    )


def _exact(name: str, value: float, provenance: Provenance) -> Figure:
    return Figure(name, float(value), METRICS[name].unit, provenance, 1)
