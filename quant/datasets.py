"""Training data: .npz, .parquet, a folder of arrays, the task's own calibration, or a hub name."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quant.archive import digest
from quant.errors import UserError
from quant.model import Model, TensorSpec
from quant.task import Task

Array = np.ndarray[Any, Any]

TASK = "task"  # the name of the task's own calibration samples
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_SUFFIXES = (".npz", ".parquet")


@dataclass(frozen=True, eq=False)
class Dataset:
    """inputs by name, first axis = samples; labels or None; fingerprint of the content."""

    name: str
    inputs: Mapping[str, Array]
    labels: Array | None
    fingerprint: str

    def __len__(self) -> int:
        return min(len(a) for a in self.inputs.values())


def load_dataset(name: str, model: Model, task: Task) -> Dataset:
    """The training data that `name` means for this model.

    "" or "task": the task's calibration samples, which have no labels. A path: .npz as a task file
    (arrays by input name, optional `labels`), .parquet with a column per input, or a folder of
    <input>.npy files. Else a hub name such as glue/mrpc. Raises UserError for what is missing,
    empty, of another shape, NaN, or out of reach.
    """
    if name in {"", TASK}:
        if task.n_calibration == 0:
            raise UserError("The task has no calibration samples to train on.")
        return _checked("'task' (its calibration samples)", dict(task.calibration), None, model)
    path = Path(name)
    if path.is_dir():
        arrays = {p.stem: _read_npy(p) for p in sorted(path.glob("*.npy"))}
        if not arrays:
            raise UserError(
                f"Folder {name} holds no .npy file.", "Write one <input>.npy per model input."
            )
    elif path.suffix == ".npz":
        arrays = _read_npz(path)
    elif path.suffix == ".parquet":
        arrays = _read_parquet(path, model)
    elif path.exists():
        raise UserError(
            f"{name} is no training data: {path.suffix or 'a file without suffix'}.",
            f"Give {', '.join(_SUFFIXES)} or a folder of .npy files.",
        )
    elif _HUB_NAME.fullmatch(name) and not path.suffix:
        arrays = _from_hub(name, model)
    else:
        raise UserError(f"Training data {name} does not exist.", "Check --train-dataset.")
    labels = arrays.pop("labels", None)
    return _checked(name, arrays, labels, model)


def referenced_files(options: Sequence[Any]) -> dict[str, str]:
    """{path: sha256} of every file or folder that a method's options name.

    Part of what decides a result besides the options' text: a changed file under the same name
    is another training set, or other sparsities.
    """
    found: dict[str, str] = {}
    for given in options:
        for item in dataclasses.fields(given):
            value = getattr(given, item.name)
            if not isinstance(value, str) or not value:
                continue
            path = Path(value)
            if path.is_file():
                found[value] = digest(path)[2]
            elif path.is_dir():
                parts = [(p.name, digest(p)[2]) for p in sorted(path.glob("*.npy"))]
                found[value] = hashlib.sha256(repr(parts).encode()).hexdigest()
    return found


def _checked(name: str, arrays: dict[str, Array], labels: Array | None, model: Model) -> Dataset:
    inputs = {s.name: _input(name, arrays, s) for s in model.inputs}
    lengths = {k: len(a) for k, a in inputs.items()}
    if labels is not None:
        lengths["labels"] = len(labels)
    if min(lengths.values()) == 0:
        raise UserError(f"Training data {name} is empty.", "Give at least one sample.")
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{k}: {n}" for k, n in lengths.items())
        raise UserError(f"Training data {name}: arrays differ in length ({listed}).")
    if labels is not None:
        _check_labels(name, labels, model)
    digest = hashlib.sha256()
    for key, array in [*sorted(inputs.items()), ("labels", labels)]:
        if array is not None:
            digest.update(f"{key}|{array.dtype.str}|{array.shape}|".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return Dataset(name, inputs, labels, digest.hexdigest())


def _input(name: str, arrays: Mapping[str, Array], spec: TensorSpec) -> Array:
    array = arrays.get(spec.name)
    if array is None:
        raise UserError(
            f"Training data {name} has nothing for the model's input {spec.name!r}.",
            f"It has: {', '.join(sorted(arrays)) or 'nothing'}.",
        )
    shape = array.shape[1:]
    if shape != spec.shape and (1, *shape) != spec.shape:
        raise UserError(
            f"Training data {name}: {spec.name!r} has samples of shape {list(shape)}, "
            f"the model takes {list(spec.shape)}.",
            "Preprocess the samples as the model expects them.",
        )
    kinds = (array.dtype.kind, np.dtype(spec.dtype).kind)
    if kinds[0] != kinds[1] and not set(kinds) <= set("iub"):
        raise UserError(
            f"Training data {name}: {spec.name!r} is {array.dtype}, the model takes {spec.dtype}."
        )
    if kinds[0] == "f" and not np.isfinite(array).all():
        raise UserError(f"Training data {name}: {spec.name!r} holds NaN or Inf.")
    return array


def _check_labels(name: str, labels: Array, model: Model) -> None:
    width = model.outputs[0].shape[-1] if model.outputs[0].shape else 1
    if labels.dtype.kind in "iu" and width > 1 and labels.size and int(labels.max()) >= width:
        raise UserError(
            f"Training data {name} has label {int(labels.max())}, but the model has {width} "
            f"classes.",
            "Number the classes from 0.",
        )


def _read_npy(path: Path) -> Array:
    try:
        return np.asarray(np.load(path, allow_pickle=False, mmap_mode="r"))
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path} is not a readable .npy file: {error}.") from error


def _read_npz(path: Path) -> dict[str, Array]:
    if not path.exists():
        raise UserError(f"Training data {path} does not exist.", "Check --train-dataset.")
    try:
        with np.load(path, allow_pickle=False) as data:
            return {k: data[k] for k in data.files if not k.startswith(("meta_", "calibration_"))}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a readable .npz file: {error}.") from error


def _read_parquet(path: Path, model: Model) -> dict[str, Array]:
    """One column per input, each cell a (nested) list or a number; optional column `labels`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.exists():
        raise UserError(f"Training data {path} does not exist.", "Check --train-dataset.")
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is not a readable .parquet file: {error}.") from error
    out: dict[str, Array] = {}
    specs = {s.name: s for s in model.inputs}
    for column in table.column_names:
        if column != "labels" and column not in specs:
            continue
        values = table.column(column).to_pylist()
        try:
            array = np.asarray(values)
        except ValueError as error:
            raise UserError(f"{path}: rows of {column!r} differ in shape.") from error
        if array.dtype.kind not in "biuf":
            raise UserError(f"{path}: column {column!r} is not numbers.")
        spec = specs.get(column)
        if spec is not None:
            # Parquet keeps flat lists only: a sample of the right size takes the input's shape.
            size = int(np.prod(spec.shape))
            if array.ndim == 2 and array.shape[1] == size:
                array = array.reshape(-1, *spec.shape)
            array = array.astype(spec.dtype)
        out[column] = array
    return out


def _from_hub(name: str, model: Model) -> dict[str, Array]:
    """The train split of a hub dataset as parquet, its columns named as the model's inputs."""
    try:
        huggingface_hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise UserError(
            f"Training data {name!r} is no file, and hub datasets need huggingface-hub.",
            "Install it: pip install 'qhost[hub]', or give a .npz file.",
        ) from None
    repository, _, config = name.partition("/")
    tried = [name, repository] if config else [name]
    for candidate in tried:
        try:
            files = huggingface_hub.HfApi().list_repo_files(candidate, repo_type="dataset")
        except Exception as error:  # noqa: BLE001 - the hub raises dozens of kinds
            reason = error
            continue
        wanted = [f for f in files if f.endswith(".parquet") and "train" in f]
        if candidate == repository and config:
            wanted = [f for f in wanted if config in f]
        if not wanted:
            raise UserError(f"Hub dataset {name!r} has no train split as parquet.")
        local = huggingface_hub.hf_hub_download(candidate, wanted[0], repo_type="dataset")
        return _read_parquet(Path(local), model)
    raise UserError(
        f"Training data {name!r} is no file here, and the hub cannot be reached or lacks it "
        f"({type(reason).__name__}).",
        "Check the name and the network, or give a .npz file.",
    )
