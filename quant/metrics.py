"""Accuracy metrics with per-sample scores, so that two variants can be compared pairwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from quant.errors import UserError, unknown_name

Array = np.ndarray[Any, Any]
Outputs = Mapping[str, Array]


@dataclass(frozen=True)
class Metric:
    """`per_sample(outputs, labels)` -> scores (N, ...); `aggregate(scores)` -> the figure.

    `outputs` are stacked over samples on a new first axis. Resampling rows of the scores of two
    variants with the same indices gives the paired interval of their difference.
    """

    name: str
    higher_is_better: bool
    unit: str
    per_sample: Callable[[Outputs, Array], Array]
    aggregate: Callable[[Array], float]


def first_output(outputs: Outputs) -> Array:
    """The first output as (N, features...): the batch axis of one inside each call is dropped."""
    values = next(iter(outputs.values()))
    return values[:, 0] if values.ndim > 2 and values.shape[1] == 1 else values


def _mean(scores: Array) -> float:
    return float(np.mean(scores))


def _top1(outputs: Outputs, labels: Array) -> Array:
    logits = first_output(outputs)
    return np.asarray(logits.reshape(len(logits), -1).argmax(-1) == labels.reshape(-1), np.float64)


def _top5(outputs: Outputs, labels: Array) -> Array:
    logits = first_output(outputs).reshape(len(labels), -1)
    best = np.argsort(-logits, axis=-1, kind="stable")[:, :5]
    return np.asarray((best == labels.reshape(-1, 1)).any(-1), np.float64)


def _scored(outputs: Outputs, labels: Array) -> Array:
    """(N, 2): the predicted score and the label."""
    values = first_output(outputs).reshape(len(labels), -1)
    if values.shape[1] == 2:  # two-class logits
        score = values[:, 1] - values[:, 0]
    else:
        score = values[:, 0]
    return np.stack([score.astype(np.float64), labels.reshape(-1).astype(np.float64)], axis=1)


def _auc(scores: Array) -> float:
    """Area under the ROC curve by midranks (Mann-Whitney), ties counted half."""
    predicted, label = scores[:, 0], scores[:, 1] > 0.5
    positives, negatives = int(label.sum()), int((~label).sum())
    if positives == 0 or negatives == 0:
        return float("nan")
    _, inverse, counts = np.unique(predicted, return_inverse=True, return_counts=True)
    midrank = np.cumsum(counts) - (counts - 1) / 2.0
    ranks = midrank[inverse]
    return float((ranks[label].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def _pearson(scores: Array) -> float:
    a, b = scores[:, 0] - scores[:, 0].mean(), scores[:, 1] - scores[:, 1].mean()
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum() / norm) if norm > 0 else float("nan")


def _token_nll(outputs: Outputs, labels: Array) -> Array:
    """(N, 2): sum of negative log likelihoods (nats) and number of tokens; label -100 ignored."""
    logits = first_output(outputs).astype(np.float64)
    target = labels.reshape(len(labels), -1)
    logits = logits.reshape(len(labels), target.shape[1], -1)
    valid = target >= 0
    top = logits.max(-1)
    log_sum = np.log(np.exp(logits - top[..., None]).sum(-1)) + top
    picked = np.take_along_axis(logits, np.where(valid, target, 0)[..., None], -1)[..., 0]
    nll = np.where(valid, log_sum - picked, 0.0)
    return np.stack([nll.sum(-1), valid.sum(-1).astype(np.float64)], axis=1)


def _perplexity(scores: Array) -> float:
    return float(np.exp(scores[:, 0].sum() / max(scores[:, 1].sum(), 1.0)))


def _token_top1(outputs: Outputs, labels: Array) -> Array:
    logits = first_output(outputs)
    target = labels.reshape(len(labels), -1)
    best = logits.reshape(len(labels), target.shape[1], -1).argmax(-1)
    valid = target >= 0
    return np.asarray((valid & (best == target)).sum(-1) / np.maximum(valid.sum(-1), 1))


def _vector_cosine(outputs: Outputs, labels: Array) -> Array:
    return cosine_rows(first_output(outputs), labels)


def _mse(outputs: Outputs, labels: Array) -> Array:
    values = first_output(outputs).reshape(len(labels), -1).astype(np.float64)
    return np.asarray(np.square(values - labels.reshape(len(labels), -1)).mean(-1))


def cosine_rows(a: Array, b: Array) -> Array:
    """Cosine of each pair of rows, (N,); 1.0 where both rows are zero."""
    a = a.reshape(len(a), -1).astype(np.float64)
    b = b.reshape(len(b), -1).astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    dots = (a * b).sum(1)
    return np.asarray(np.where(norms > 0, dots / np.where(norms > 0, norms, 1), (a == b).all(1)))


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("top1", True, "fraction", _top1, _mean),
        Metric("top5", True, "fraction", _top5, _mean),
        Metric("auc", True, "fraction", _scored, _auc),
        Metric("pearson", True, "correlation", _scored, _pearson),
        Metric("perplexity", False, "perplexity", _token_nll, _perplexity),
        Metric("token_top1", True, "fraction", _token_top1, _mean),
        Metric("cosine", True, "cosine", _vector_cosine, _mean),
        Metric("mse", False, "squared error", _mse, _mean),
    )
}


def get_metric(name: str) -> Metric:
    if name not in METRICS:
        raise unknown_name("metric", name, METRICS)
    return METRICS[name]


def choose_metric(labels: Array, output_shape: tuple[int, ...]) -> Metric:
    """The metric that fits labels (N, ...) and one output of the model (with its batch axis).

    One integer per sample against class scores: top1; 0/1 against one score: auc; integers per
    token against vocabulary scores: perplexity; one real per sample: pearson; a vector per sample
    as long as the output: cosine.
    """
    shape = output_shape[1:] if len(output_shape) > 1 and output_shape[0] == 1 else output_shape
    size = int(np.prod(shape)) if shape else 1
    per_label = int(np.prod(labels.shape[1:])) if labels.ndim > 1 else 1
    integral = labels.dtype.kind in "iub"
    if integral and per_label == 1 and size > 1:
        return METRICS["top1"]
    if per_label == 1 and size == 1 and set(np.unique(labels).tolist()) <= {0, 1}:
        return METRICS["auc"]
    if integral and per_label > 1 and size > per_label and size % per_label == 0:
        return METRICS["perplexity"]
    if not integral and per_label == 1 and size == 1:
        return METRICS["pearson"]
    if not integral and per_label == size:
        return METRICS["cosine"]
    raise UserError(
        f"No metric fits labels of shape {list(labels.shape)} ({labels.dtype}) "
        f"and an output of shape {list(output_shape)}.",
        f"Name one with --metric: {', '.join(METRICS)}.",
    )
