"""Training data from every kind of place, and what is refused."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from quant.datasets import load_dataset, referenced_files
from quant.errors import UserError
from quant.methods.qat import QatOptions
from quant.methods.sparse import SparseOptions
from quant.model import load
from quant.task import load_task

X = np.random.default_rng(0).standard_normal((6, 1, 28, 28)).astype(np.float32)
LABELS = np.arange(6) % 3


@pytest.fixture
def loaded(cnn_path):
    model = load(cnn_path)
    return model, load_task(None, model)


def test_every_place_gives_the_same_samples(loaded, tmp_path):
    np.savez(tmp_path / "d.npz", x=X, labels=LABELS, meta_metric="top1")
    (tmp_path / "d").mkdir()
    np.save(tmp_path / "d" / "x.npy", X)
    np.save(tmp_path / "d" / "labels.npy", LABELS)
    table = pa.table({"x": list(X.reshape(6, -1)), "labels": LABELS, "extra": ["a"] * 6})
    pq.write_table(table, tmp_path / "d.parquet")
    found = [load_dataset(str(tmp_path / n), *loaded) for n in ("d.npz", "d", "d.parquet")]
    for data in found:
        assert len(data) == 6
        assert np.array_equal(data.inputs["x"].reshape(X.shape), X)
        assert np.array_equal(data.labels, LABELS)
    assert found[0].fingerprint == found[1].fingerprint


def test_the_tasks_own_calibration_has_no_labels(loaded):
    data = load_dataset("task", *loaded)
    assert len(data) == loaded[1].n_calibration and data.labels is None


def test_the_fingerprint_is_of_the_content(loaded, tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, x=X)
    first = load_dataset(str(path), *loaded).fingerprint
    np.savez(path, x=X + 1)
    assert load_dataset(str(path), *loaded).fingerprint != first


def write(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


@pytest.mark.parametrize(
    ("arrays", "part"),
    [
        ({"x": X[:0]}, "is empty"),
        ({"z": X}, "nothing for the model's input 'x'"),
        ({"x": X[..., :5]}, "shape"),
        ({"x": X.astype(np.int64)}, "int64"),
        ({"x": np.where(X > 2, np.nan, X)}, "NaN"),
        ({"x": X, "labels": LABELS[:3]}, "differ in length"),
        ({"x": X, "labels": LABELS + 10}, "10 classes"),
    ],
)
def test_bad_arrays(loaded, tmp_path, arrays, part):
    with pytest.raises(UserError, match=part):
        load_dataset(write(tmp_path / "d.npz", **arrays), *loaded)


def test_bad_places(loaded, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "d.npz").write_bytes(b"PK not a zip")
    (tmp_path / "d.parquet").write_bytes(b"PAR1")
    (tmp_path / "d.csv").write_text("1,2")
    for name, part in [
        ("empty", "no .npy"),
        ("d.npz", "readable"),
        ("d.parquet", "readable"),
        ("d.csv", "no training data"),
        ("missing.npz", "does not exist"),
        ("missing.parquet", "does not exist"),
        ("missing", "does not exist"),
    ]:
        with pytest.raises(UserError, match=part):
            load_dataset(str(tmp_path / name), *loaded)


def test_a_hub_name_without_hub_or_network_is_one_clear_error(loaded, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"glue/mrpc.*(qhost\[hub\]|cannot be reached)"):
        load_dataset("glue/mrpc", *loaded)


def test_ragged_and_text_columns_are_refused(loaded, tmp_path):
    path = tmp_path / "d.parquet"
    pq.write_table(pa.table({"x": [[1.0, 2.0], [1.0]]}), path)
    with pytest.raises(UserError, match="differ in shape"):
        load_dataset(str(path), *loaded)
    pq.write_table(pa.table({"x": ["a", "b"]}), path)
    with pytest.raises(UserError, match="not numbers"):
        load_dataset(str(path), *loaded)


def test_files_that_options_name_are_part_of_what_decides(tmp_path):
    train, layers = tmp_path / "d.npz", tmp_path / "layers.json"
    train.write_bytes(b"one")
    layers.write_text("{}")
    options = [QatOptions(train_dataset=str(train)), SparseOptions(layer_wise_sparsity=str(layers))]
    first = referenced_files(options)
    assert set(first) == {str(train), str(layers)}
    train.write_bytes(b"two")
    second = referenced_files(options)
    assert second[str(train)] != first[str(train)] and second[str(layers)] == first[str(layers)]
    assert referenced_files([QatOptions()]) == {}
