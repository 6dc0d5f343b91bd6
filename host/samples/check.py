"""The float figure of a finished sample, from its files as a user would load them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from quant.model import load
from quant.task import load_task

Array = NDArray[Any]


def session(model: Path | bytes) -> Any:
    """onnxruntime on one CPU thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    source = str(model) if isinstance(model, Path) else model
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def float_figure(model_path: Path, task_path: Path, metric: str) -> str:
    """E.g. "top1 0.8650 on 1000 samples (onnxruntime, float)"."""
    model = load(model_path)
    task = load_task(task_path, model, metric=metric)
    assert task.metric is not None and task.labels is not None
    run = session(model_path)
    first = model.outputs[0].name
    outputs = np.stack([run.run([first], task.feed(model, i))[0] for i in range(len(task))])
    scores = task.metric.per_sample({first: outputs}, task.labels)
    value = task.metric.aggregate(scores)
    return f"{metric} {value:.4f} on {len(task)} samples (onnxruntime, float)"
