"""Run a graph over a task and say how good it is: metric, SQNR and agreement with float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from quant.calibrate import session as open_session
from quant.figures import Provenance
from quant.metrics import cosine_rows, first_output
from quant.model import Interface, Model, TensorSpec
from quant.report import sqnr_db
from quant.task import Task

Array = np.ndarray[Any, Any]
Outputs = dict[str, Array]

# What SQNR and agreement compare with, in words.
FLOAT = "the float model"
SAME_GRAPH = "onnxruntime on the same graph"

_NUMPY_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int16)": "int16",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(bool)": "bool",
}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Quality of one variant on n samples.

    engine: where the outputs were computed. metric, value, scores: the task's metric, None and
    empty without labels. sqnr_db: over all float outputs, median over samples. agreement: share
    of samples with the same top class as float (classifiers), else the mean cosine with float.
    """

    engine: Provenance
    n: int
    metric: str
    higher_is_better: bool | None
    value: float | None
    scores: Array
    sqnr_db: float
    agreement: float


def evaluate_outputs(
    task: Task,
    reference: Sequence[Mapping[str, Array]],
    outputs: Sequence[Mapping[str, Array]],
    engine: Provenance,
) -> Evaluation:
    """Judge `outputs` (one dict per sample, the first n samples of the task) against float."""
    n = min(len(outputs), len(reference))
    stacked, float_stacked = stack(outputs[:n]), stack(reference[:n])
    scores, value = np.zeros((0,)), None
    if task.metric is not None and task.labels is not None:
        scores = task.metric.per_sample(stacked, task.labels[:n])
        value = task.metric.aggregate(scores)
    ours, theirs = first_output(stacked), first_output(float_stacked)
    if _is_classifier(task, theirs):
        agreement = float(np.mean(ours.argmax(-1) == theirs.argmax(-1)))
    else:
        agreement = float(np.mean(cosine_rows(ours, theirs)))
    return Evaluation(
        engine,
        n,
        "" if task.metric is None else task.metric.name,
        None if task.metric is None else task.metric.higher_is_better,
        value,
        scores,
        _median_sqnr(float_stacked, stacked),
        agreement,
    )


def stack(outputs: Sequence[Mapping[str, Array]]) -> Outputs:
    """Per-sample outputs -> arrays with the samples on a new first axis."""
    return {k: np.stack([np.asarray(o[k]) for o in outputs]) for k in outputs[0]}


def _is_classifier(task: Task, values: Array) -> bool:
    if task.metric is not None:
        return task.metric.name in {"top1", "top5", "perplexity", "token_top1"}
    return task.model_type in {"vision", "text_generation"} and values.shape[-1] > 1


def _median_sqnr(reference: Outputs, outputs: Outputs) -> float:
    floats = [k for k, v in reference.items() if v.dtype.kind == "f"]
    if not floats:
        return float("nan")
    n = len(reference[floats[0]])
    rows = [
        sqnr_db(
            np.concatenate([reference[k][i].reshape(-1) for k in floats]),
            np.concatenate([outputs[k][i].reshape(-1) for k in floats]),
        )
        for i in range(n)
    ]
    return float(np.median(rows))


def run_ort(model_path: Path, task: Task, n: int | None = None) -> list[Outputs]:
    """Outputs of the first n samples in onnxruntime on the CPU, ORT_DISABLE_ALL.

    The model's inputs must be those of the task.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(str(model_path), options, providers=["CPUExecutionProvider"])
    specs = tuple(
        TensorSpec(i.name, _NUMPY_TYPES[i.type], tuple(i.shape)) for i in session.get_inputs()
    )
    return _run(session, Interface(specs), task, n)


def run_model(model: Model, task: Task, n: int | None = None) -> list[Outputs]:
    """As run_ort, for a model in memory."""
    return _run(open_session(model.ir, [o.name for o in model.outputs]), model, task, n)


def _run(
    session: ort.InferenceSession, model: Model | Interface, task: Task, n: int | None
) -> list[Outputs]:
    names = [o.name for o in session.get_outputs()]
    count = len(task) if n is None else min(n, len(task))
    return [
        dict(zip(names, session.run(names, task.feed(model, i)), strict=True)) for i in range(count)
    ]


def quality_json(e: Evaluation, reference: str = FLOAT) -> dict[str, Any]:
    """An evaluation as the manifest keeps it (its scores are in quality/scores.npz).

    `reference`: what SQNR and agreement compare with, in words.
    """
    return {
        "reference": reference,
        "provenance": e.engine.value,
        "n": e.n,
        "metric": e.metric,
        "higher_is_better": e.higher_is_better,
        "value": e.value,
        "sqnr_db": e.sqnr_db if np.isfinite(e.sqnr_db) else None,
        "agreement": e.agreement,
    }
