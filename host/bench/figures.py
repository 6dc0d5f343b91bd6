"""Figures that do not come from the device: quality, the compiler's, sizes, paired drops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from host.stats.paired import accuracy_drop
from quant.artifact import Artifact
from quant.figures import METRICS, Figure, Provenance
from quant.metrics import METRICS as TASK_METRICS

Scores = NDArray[np.float64]
COMPILER_METRICS = ("ddr_read_bytes", "ddr_write_bytes", "spill_bytes", "fill_bytes")


def static_figures(artifact: Artifact, soc: str) -> list[Figure]:
    """Accuracy in onnxruntime and in the HTP emulator, the compiler's figures, file sizes."""
    quality: Mapping[str, Mapping[str, Any]] = artifact.manifest["quality"]
    figures: list[Figure] = []
    for engine in ("ort_cpu", "htp_emulator"):
        if engine in quality:
            figures += quality_figures(quality[engine])
    compiled = artifact.soc(soc)
    for name in COMPILER_METRICS:
        figures.append(_exact(name, compiled["figures"][name], Provenance.COMPILER))
    for name, value in (
        ("model_size_bytes", compiled["context_bytes"]),
        ("download_bytes", compiled["download_bytes"]),
        ("artifact_bytes", artifact.size_bytes),
    ):
        figures.append(_exact(name, value, Provenance.FILE))
    return figures


def quality_figures(quality: Mapping[str, Any]) -> list[Figure]:
    """Of one engine. Without labels the accuracy is the agreement with the float model."""
    provenance, n = Provenance(quality["provenance"]), int(quality["n"])
    value = quality["value"]
    figures = [
        Figure(
            "accuracy",
            quality["agreement"] if value is None else value,
            METRICS["accuracy"].unit,
            provenance,
            n,
            reason="agreement with the float model: no labels" if value is None else "",
        )
    ]
    for name in ("sqnr_db", "agreement"):
        absent = quality[name] is None
        figures.append(
            Figure(
                name,
                quality[name],
                METRICS[name].unit,
                provenance,
                n,
                reason="outputs are equal to the float model's" if absent else "",
            )
        )
    return figures


def score_arrays(artifact: Artifact) -> dict[Provenance, tuple[str, Scores]]:
    """Per-sample scores by engine, with the metric's name; empty without labels."""
    quality = artifact.manifest["quality"]
    arrays = artifact.arrays("quality/scores.npz")
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
    quality = artifact.manifest["quality"]["htp_emulator"]
    metric = TASK_METRICS.get(str(quality["metric"]))
    ours = artifact.arrays("quality/scores.npz")
    if metric is None or "htp_emulator" not in ours:
        return []
    references: list[tuple[str, Scores]] = [("accuracy_drop", ours["float"])]
    if baseline is not None:
        scores = baseline.arrays("quality/scores.npz")["htp_emulator"]
        references.append(("accuracy_drop_fp16", scores))
    return [
        _drop(
            name,
            reference,
            ours["htp_emulator"],
            metric.aggregate,
            metric.higher_is_better,
            seed,
        )
        for name, reference in references
    ]


def _drop(
    name: str,
    reference: Scores,
    scores: Scores,
    aggregate: Callable[[Scores], float],
    higher_is_better: bool,
    seed: int,
) -> Figure:
    n = min(len(reference), len(scores))
    estimate = accuracy_drop(
        reference[:n], scores[:n], aggregate, higher_is_better=higher_is_better, seed=seed
    ).drop
    return Figure(
        name,
        estimate.value,
        METRICS[name].unit,
        Provenance.HTP_EMULATOR,
        n,
        estimate.low,
        estimate.high,
    )


def _exact(name: str, value: float, provenance: Provenance) -> Figure:
    return Figure(name, float(value), METRICS[name].unit, provenance, 1)
