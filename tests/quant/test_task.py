"""Task files: what they may hold, what is refused, how the metric is chosen."""

import numpy as np
import pytest

from quant.errors import UserError
from quant.metrics import METRICS, choose_metric
from quant.model import load
from quant.task import load_task


@pytest.fixture
def model(cnn_path):
    return load(cnn_path)


def _task(tmp_path, model, **arrays):
    path = tmp_path / "task.npz"
    np.savez(path, **arrays)
    return load_task(path, model)


def _images(n):
    return np.random.default_rng(0).random((n, 1, 28, 28), np.float32)


def test_full_task(tmp_path, model):
    labels = np.arange(8) % 10
    task = _task(tmp_path, model, x=_images(8), labels=labels, calibration_x=_images(3))
    assert (len(task), task.n_calibration, task.metric.name) == (8, 3, "top1")
    assert task.model_type == "vision"
    assert not task.synthetic
    assert task.feed(model, 2)["x"].shape == (1, 1, 28, 28)
    np.testing.assert_array_equal(task.feed(model, 2)["x"][0], _images(8)[2])


def test_split_is_disjoint_seeded_and_noted(tmp_path, model):
    images = np.arange(50, dtype=np.float32).reshape(50, 1, 1, 1) * np.ones((1, 1, 28, 28), "f4")
    task = _task(tmp_path, model, x=images, labels=np.arange(50) % 10)
    again = _task(tmp_path, model, x=images, labels=np.arange(50) % 10)
    seen = set(task.inputs["x"][:, 0, 0, 0]), set(task.calibration["x"][:, 0, 0, 0])
    assert seen[0] | seen[1] == set(range(50))
    assert not seen[0] & seen[1]
    assert len(seen[1]) == 10
    np.testing.assert_array_equal(task.calibration["x"], again.calibration["x"])
    np.testing.assert_array_equal(task.labels, task.inputs["x"][:, 0, 0, 0] % 10)
    assert "split" in task.notes[0]


def test_synthetic_task_is_labelled_and_stays_in_the_vocabulary(encoder_path):
    model = load(encoder_path)
    task = load_task(None, model)
    assert task.synthetic
    assert task.metric is None
    assert "synthetic" in task.notes[0]
    ids = task.inputs["input_ids"]
    assert ids.min() >= 0
    assert 2 < ids.max() < 50
    assert (task.inputs["attention_mask"] == 1).all()
    assert task.fingerprint == load_task(None, model).fingerprint


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": _images(4), "labels": np.zeros(3, int)}, "4 samples but 3 labels"),
        ({"x": np.zeros((4, 3, 28, 28), "f4")}, r"shape \[3, 28, 28\]"),
        ({"x": np.zeros((4, 1, 28, 28), "i8")}, "int64"),
        ({"y": _images(4)}, "no array 'x'"),
        ({"x": _images(4), "calibration_x": _images(0)}, "calibration set .* is empty"),
        ({"x": _images(0)}, "empty"),
        ({"x": np.full((4, 1, 28, 28), np.nan, "f4")}, "NaN"),
        ({"x": _images(4), "calibration_x": np.full((2, 1, 28, 28), np.inf, "f4")}, "sample 0"),
        ({"x": _images(4), "labels": np.array([0, 1, 2, 10])}, "label 10"),
        ({"x": _images(4), "label": np.zeros(4, int)}, "labels"),
        ({"x": _images(1)}, "one sample"),
    ],
)
def test_bad_tasks(tmp_path, model, arrays, message):
    with pytest.raises(UserError, match=message):
        _task(tmp_path, model, **arrays)


def test_unreadable_files(tmp_path, model):
    with pytest.raises(UserError, match="does not exist"):
        load_task(tmp_path / "no.npz", model)
    (tmp_path / "bad.npz").write_bytes(b"hello")
    with pytest.raises(UserError, match="not a readable"):
        load_task(tmp_path / "bad.npz", model)
    with pytest.raises(UserError, match="vision"):
        load_task(None, model, model_type="visio")


@pytest.mark.parametrize(
    ("labels", "output", "name"),
    [
        (np.zeros(5, int), (1, 10), "top1"),
        (np.array([0, 1, 0]), (1, 1), "auc"),
        (np.zeros((5, 8), int), (1, 8, 100), "perplexity"),
        (np.array([0.1, 0.7, 2.0]), (1, 1), "pearson"),
        (np.zeros((5, 12)), (1, 12), "cosine"),
    ],
)
def test_metric_follows_the_labels(labels, output, name):
    assert choose_metric(labels, output).name == name


def test_metric_values():
    logits = {"y": np.array([[[0.0, 2.0]], [[3.0, 1.0]], [[0.0, 1.0]]])}
    labels = np.array([1, 1, 1])
    top1 = METRICS["top1"]
    assert top1.per_sample(logits, labels).tolist() == [1.0, 0.0, 1.0]
    scores = {"y": np.array([[[0.1]], [[0.4]], [[0.35]], [[0.8]]])}
    auc = METRICS["auc"]
    assert auc.aggregate(auc.per_sample(scores, np.array([0, 0, 1, 1]))) == pytest.approx(0.75)
    ppl = METRICS["perplexity"]
    flat = {"y": np.zeros((2, 1, 3, 7))}
    tokens = np.array([[1, 2, -100], [0, 0, 0]])
    assert ppl.aggregate(ppl.per_sample(flat, tokens)) == pytest.approx(7.0)
    assert ppl.per_sample(flat, tokens)[:, 1].tolist() == [2.0, 3.0]
