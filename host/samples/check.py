"""Write a sample's task file; judge the finished files as a user would load them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from host.samples import MODEL_FILE, TASK_FILE, Recipe
from quant.model import load
from quant.task import load_task

Array = NDArray[Any]


def write_task(
    folder: Path,
    recipe: Recipe,
    inputs: Mapping[str, Array],
    labels: Array,
    calibration: Mapping[str, Array],
    **meta: Array,
) -> None:
    """task.npz in `folder`; `meta` arrays are carried along for tools that know them."""
    arrays: dict[str, Any] = {
        **inputs,
        "labels": labels,
        **{f"calibration_{name}": array for name, array in calibration.items()},
        **{f"meta_{name}": array for name, array in meta.items()},
        "meta_metric": np.array(recipe.metric),
        "meta_model_type": np.array(recipe.model_type),
    }
    np.savez_compressed(folder / TASK_FILE, **arrays)


def session(model: Path | bytes) -> Any:
    """onnxruntime on one CPU thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    source = str(model) if isinstance(model, Path) else model
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def float_figure(folder: Path) -> str:
    """E.g. "top1 0.8650 on 1000 samples (onnxruntime, float)", by the task file's own metric."""
    model = load(folder / MODEL_FILE)
    task = load_task(folder / TASK_FILE, model)
    assert task.metric is not None and task.labels is not None
    run = session(folder / MODEL_FILE)
    first = model.outputs[0].name  # the metric's output
    outputs = np.stack([run.run([first], task.feed(model, i))[0] for i in range(len(task))])
    value = task.metric.aggregate(task.metric.per_sample({first: outputs}, task.labels))
    return f"{task.metric.name} {value:.4f} on {len(task)} samples (onnxruntime, float)"
