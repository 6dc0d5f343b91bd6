"""Accuracy on the device itself: the labelled set goes there, the outputs come back.

The agent knows no task: it runs the context on every sample and keeps the outputs as files. What
they are worth is computed here, by the code that judges onnxruntime and the HTP emulator.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from host.bench.device import DeviceRunner
from host.bench.figures import SCORES, Scores, drop_figure, quality_figures
from host.bench.plan import Conditions, evaluate_segment
from host.bench.prepare import BenchConfig, PreparedModel
from quant.artifact import Artifact
from quant.build import float_outputs
from quant.evaluate import Evaluation, evaluate_outputs, quality_json
from quant.figures import Figure, Provenance
from quant.inputset import write_input_set
from quant.metrics import METRICS as TASK_METRICS


def accuracy_pass(
    prepared: PreparedModel,
    runs: Mapping[str, Artifact],
    config: BenchConfig,
    conditions: Conditions,
    runner: DeviceRunner,
    provenance: Provenance,
    on_stage: Callable[[str, str, float], None],
) -> dict[str, Evaluation]:
    """Every run's variant on the first config.device_accuracy samples of its model's task.

    provenance: of outputs that this device computes. A run that fails is in runner.failures and
    has no evaluation.
    """
    task, model = prepared.task, prepared.model
    samples = min(config.device_accuracy, len(task))
    reference = float_outputs(config.cache_dir, model, task)[:samples]
    done: dict[str, Evaluation] = {}
    with tempfile.TemporaryDirectory(prefix="qhost-inputs-") as temp:
        folder = Path(temp)
        inputs = write_input_set(folder, model, task, samples)
        runner.put_inputs(folder, inputs)
        for run_id, artifact in runs.items():
            on_stage(run_id, "evaluate_device", 0.0)
            runner.run([evaluate_segment(run_id, artifact.sha256, inputs, conditions)])
            if stacked := runner.outputs(run_id):
                outputs = [_sample(stacked, i) for i in range(samples)]
                done[run_id] = evaluate_outputs(task, reference, outputs, provenance)
    return done


def evaluation_figures(
    evaluation: Evaluation, artifact: Artifact, fp16: Evaluation | None, seed: int
) -> list[Figure]:
    """Accuracy, SQNR, agreement and paired drops of what the device computed.

    Drops: against the float model in onnxruntime, and against the fp16 variant where the same
    device evaluated that, too.
    """
    scores = _scores(evaluation)
    figures = quality_figures(quality_json(evaluation), scores, seed)
    metric = TASK_METRICS.get(evaluation.metric)
    references = {
        "accuracy_drop": _stored(artifact).get("float"),
        "accuracy_drop_fp16": _scores(fp16) if fp16 else None,
    }
    for name, reference in references.items():
        if metric is not None and reference is not None and scores is not None:
            figures.append(drop_figure(name, reference, scores, metric, seed, evaluation.engine))
    return figures


def beside_the_emulator(evaluation: Evaluation, artifact: Artifact) -> str:
    """One line: what the device computed beside what the HTP emulator did on the same samples."""
    theirs, ours = _stored(artifact).get("htp_emulator"), _scores(evaluation)
    metric = TASK_METRICS.get(evaluation.metric)
    line = f"accuracy pass on the device: {evaluation.n} samples"
    if metric is None or theirs is None or ours is None:
        return f"{line}, agreement with float {evaluation.agreement:.4f}"
    n = min(len(theirs), len(ours))
    alike = np.isclose(theirs[:n], ours[:n], rtol=1e-6, atol=1e-9, equal_nan=True)
    same = int(alike.reshape(n, -1).all(axis=1).sum())
    return (
        f"{line}, {evaluation.metric} {metric.aggregate(ours):.4f}; the HTP emulator scores "
        f"{same} of {n} the same"
    )


def _sample(stacked: Mapping[str, NDArray[Any]], i: int) -> dict[str, NDArray[Any]]:
    return {name: array[i] for name, array in stacked.items()}


def _scores(evaluation: Evaluation) -> Scores | None:
    return np.asarray(evaluation.scores, np.float64) if len(evaluation.scores) else None


def _stored(artifact: Artifact) -> dict[str, NDArray[Any]]:
    return artifact.arrays(SCORES) if SCORES in artifact.members else {}
