"""The shipped sample is what its README says; the readers refuse damaged data."""

from __future__ import annotations

import gzip
import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from host import samples
from host.errors import UserError
from host.samples import fashion


def session(path):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def test_shipped_sample_reaches_its_accuracy():
    sample = samples.default_sample()
    task = np.load(sample.task_path)
    run = session(sample.model_path)
    logits = [run.run(None, {"image": x[None]})[0][0] for x in task["image"]]
    accuracy = float(np.mean(np.argmax(logits, axis=1) == task["labels"]))
    assert accuracy == pytest.approx(0.917, abs=0.002)


def test_shipped_task_file():
    sample = samples.default_sample()
    task = np.load(sample.task_path)
    assert task["image"].shape == (1000, 1, 28, 28)
    assert task["image"].dtype == np.float32
    assert task["labels"].dtype == np.int64
    assert np.bincount(task["labels"]).tolist() == [100] * 10
    assert task["calibration_image"].shape == (256, 1, 28, 28)
    assert (str(task["meta_metric"]), str(task["meta_model_type"])) == (
        sample.metric,
        sample.model_type,
    )
    indices = json.loads((sample.task_path.parent / "indices.json").read_text())
    assert len(set(indices["evaluation"])) == 1000
    assert max(indices["evaluation"]) < 10_000  # the test split
    assert len(set(indices["calibration"])) == 256
    # The pixels are whole grey levels: the documented normalisation can be undone exactly.
    grey = (task["image"] * fashion.STD + fashion.MEAN) * 255
    assert np.abs(grey - grey.round()).max() < 1e-3


@pytest.mark.skipif(not fashion.DATASET_DIR.is_dir(), reason="dataset-fashion-mnist missing")
def test_committed_indices_name_the_committed_images():
    sample = samples.default_sample()
    task = np.load(sample.task_path)
    indices = json.loads((sample.task_path.parent / "indices.json").read_text())
    test = fashion.load_split("test")
    assert np.array_equal(fashion.normalise(test.images[indices["evaluation"]]), task["image"])
    assert np.array_equal(test.labels[indices["evaluation"]], task["labels"])
    training = fashion.load_split("train")
    chosen = fashion.normalise(training.images[indices["calibration"]])
    assert np.array_equal(chosen, task["calibration_image"])


def test_shipped_model_is_static_and_small():
    path = samples.default_sample().model_path
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == 21
    operators = {node.op_type for node in model.graph.node}
    assert operators == {"Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"}
    assert path.stat().st_size < 1_000_000


def test_balanced_indices():
    labels = np.repeat(np.arange(4), 50)
    chosen = fashion.balanced_indices(labels, 42, seed=3)
    assert np.bincount(labels[chosen]).tolist() == [11, 11, 10, 10]
    assert len(set(chosen.tolist())) == 42
    assert np.array_equal(chosen, fashion.balanced_indices(labels, 42, seed=3))
    assert not np.array_equal(chosen, fashion.balanced_indices(labels, 42, seed=4))


def idx(shape, data):
    header = bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)
    return gzip.compress(header + data, mtime=0)  # the same on every worker


def test_read_idx(tmp_path):
    path = tmp_path / "x.gz"
    path.write_bytes(idx((2, 3), bytes(range(6))))
    assert fashion.read_idx(path).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not installed"),
        (idx((2, 3), bytes(5)), "truncated"),
        (idx((2, 3), bytes(6))[:-9], "not a complete gzip"),
        (gzip.compress(b"PNG", mtime=0), "not an IDX file"),
        (b"plain", "not a complete gzip"),
    ],
)
def test_read_idx_refuses(tmp_path, content, message):
    path = tmp_path / "x.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        fashion.read_idx(path)


def test_unknown_and_unbuilt_samples(tmp_path):
    with pytest.raises(UserError, match="fashion-cnn"):
        samples.sample_path("fashion_cnn")
    with pytest.raises(UserError, match="ships with qhost"):
        samples.build("fashion-cnn", tmp_path / "out", tmp_path / "work")
    assert not (tmp_path / "out").exists()
