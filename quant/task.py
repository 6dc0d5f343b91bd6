"""A task: the inputs a model is judged on, its labels and metric, and its calibration samples."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quant.errors import UserError, unknown_name
from quant.metrics import METRICS, Metric, choose_metric, get_metric
from quant.model import Interface, Model, TensorSpec

__all__ = ["METRICS", "MODEL_TYPES", "Metric", "Task", "choose_metric", "get_metric", "load_task"]

Array = np.ndarray[Any, Any]

MODEL_TYPES = ("text", "vision", "audio", "text_generation", "multimodal")
_CALIBRATION = "calibration_"
_SPLIT_SEED = 20240229
_CALIBRATION_SHARE = 0.2
_MAX_SPLIT_CALIBRATION = 128
_SYNTHETIC_SAMPLES = 32
_SYNTHETIC_CALIBRATION = 32


@dataclass(frozen=True, eq=False)
class Task:
    """`inputs` and `calibration`: arrays by input name, first axis = samples.

    `synthetic`: the inputs are made up, so accuracy can only mean agreement with the float model.
    """

    name: str
    model_type: str
    inputs: Mapping[str, Array]
    labels: Array | None
    calibration: Mapping[str, Array]
    metric: Metric | None
    synthetic: bool
    notes: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int:
        return _length(self.inputs)

    @property
    def n_calibration(self) -> int:
        return _length(self.calibration)

    def feed(self, model: Model | Interface, i: int, split: str = "inputs") -> dict[str, Array]:
        """Sample i as one call of the model; a batch axis of one is added where it is missing."""
        arrays = self.inputs if split == "inputs" else self.calibration
        return {spec.name: _one(arrays[spec.name][i], spec) for spec in model.inputs}


def _one(sample: Array, spec: TensorSpec) -> Array:
    dtype = np.dtype(spec.dtype)
    if sample.shape != spec.shape and (1, *sample.shape) == spec.shape:
        sample = sample[None]
    return np.ascontiguousarray(sample, dtype)


def _length(arrays: Mapping[str, Array]) -> int:
    return min((len(a) for a in arrays.values()), default=0)


def load_task(
    path: Path | None,
    model: Model,
    *,
    model_type: str | None = None,
    metric: str | None = None,
) -> Task:
    """Read a .npz task file for `model`; with no path, make a synthetic one, labelled so.

    Arrays are named as the model's inputs (first axis = samples), with optional `labels` and
    optional `calibration_<input>`, optional strings `meta_metric` and `meta_model_type` (arguments
    win over them). Without calibration arrays a seeded fifth of the samples (at
    most 128) is set apart for calibration and a note says so. Raises UserError for arrays that do
    not fit the model, NaN, an empty set, or labels of another length.
    """
    if path is None:
        kind = _model_type(model_type or _guess_type(model))
        if metric is not None:
            raise UserError(
                f"Metric {metric!r} needs labels, and no task was given.", "Add --task FILE.npz."
            )
        return _synthetic(model, kind)
    path = Path(path)
    arrays = _read_npz(path)
    kind = _model_type(model_type or _meta(arrays, "model_type") or _guess_type(model))
    metric = metric or _meta(arrays, "metric")
    inputs = {s.name: _checked(arrays, s.name, s, path.name) for s in model.inputs}
    n = _same_length(inputs, path.name)
    labels = arrays.get("labels")
    if labels is not None and len(labels) != n:
        raise UserError(
            f"{path.name} has {n} samples but {len(labels)} labels.", "Give one label per sample."
        )
    calibration = {
        s.name: _checked(arrays, _CALIBRATION + s.name, s, path.name)
        for s in model.inputs
        if _CALIBRATION + s.name in arrays
    }
    allowed = {"labels", *inputs, *(_CALIBRATION + k for k in inputs)}
    unknown = sorted(k for k in arrays if k not in allowed and not k.startswith("meta_"))
    if unknown:
        raise unknown_name(f"array in {path.name}:", unknown[0], sorted(allowed))
    notes: tuple[str, ...] = ()
    if calibration and len(calibration) != len(inputs):
        missing = next(k for k in inputs if k not in calibration)
        raise UserError(
            f"{path.name} has calibration arrays but none for input {missing!r}.",
            f"Add {_CALIBRATION}{missing}, or leave all of them out.",
        )
    if calibration:
        _same_length(calibration, path.name)
    else:
        if n < 2:
            raise UserError(
                f"{path.name} has one sample: none is left to calibrate on.",
                "Add samples or calibration_<input> arrays.",
            )
        k = max(1, min(_MAX_SPLIT_CALIBRATION, int(n * _CALIBRATION_SHARE)))
        order = np.random.default_rng(_SPLIT_SEED).permutation(n)
        held, rest = np.sort(order[:k]), np.sort(order[k:])
        calibration = {name: a[held] for name, a in inputs.items()}
        inputs = {name: a[rest] for name, a in inputs.items()}
        labels = None if labels is None else labels[rest]
        notes = (
            f"calibrated on {k} samples split off the task (seed {_SPLIT_SEED}), "
            f"judged on the other {n - k}",
        )
    chosen = None
    if labels is not None:
        shape = model.outputs[0].shape
        chosen = get_metric(metric) if metric else choose_metric(labels, shape)
        if chosen.name in {"top1", "top5"} and labels.size and labels.max() >= int(np.prod(shape)):
            raise UserError(
                f"{path.name} has label {int(labels.max())}, but the model has "
                f"{int(np.prod(shape))} classes.",
                "Number the classes from 0.",
            )
    elif metric is not None:
        raise UserError(
            f"Metric {metric!r} needs labels, and {path.name} has none.", "Add an array `labels`."
        )
    return Task(
        path.stem, kind, inputs, labels, calibration, chosen, False, notes, _hash(arrays, metric)
    )


def _model_type(name: str) -> str:
    if name not in MODEL_TYPES:
        raise unknown_name("model type", name, MODEL_TYPES)
    return name


def _meta(arrays: Mapping[str, Array], key: str) -> str | None:
    """The file's own word on its model type or metric: an array `meta_<key>` of one string."""
    array = arrays.get(f"meta_{key}")
    return None if array is None or array.size != 1 else str(array.reshape(-1)[0])


def _read_npz(path: Path) -> dict[str, Array]:
    if not path.exists():
        raise UserError(f"Task file {path} does not exist.", "Check --task.")
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no archive of arrays")
        with np.load(path, allow_pickle=False) as data:
            return {key: data[key] for key in data.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise UserError(
            f"{path.name} is not a readable .npz task file: {str(error).splitlines()[0]}",
            "Write it with numpy.savez, one array per model input.",
        ) from error


def _checked(arrays: Mapping[str, Array], key: str, spec: TensorSpec, file: str) -> Array:
    array = arrays.get(key)
    if array is None:
        raise UserError(
            f"{file} has no array {key!r} for the model's input.",
            f"It has: {', '.join(sorted(arrays)) or 'nothing'}.",
        )
    if array.ndim == 0 or len(array) == 0:
        what = "calibration set" if key.startswith(_CALIBRATION) else "array"
        raise UserError(f"{file}: the {what} {key!r} is empty.", "Give at least one sample.")
    shape, want = array.shape[1:], spec.shape
    if shape != want and (1, *shape) != want:
        raise UserError(
            f"{file}: {key!r} has samples of shape {list(shape)}, the model takes {list(want)}.",
            "Preprocess the samples as the model expects them.",
        )
    model_kind, kind = np.dtype(spec.dtype).kind, array.dtype.kind
    same = kind == model_kind or (kind in "iub" and model_kind in "iub")
    if not same:
        raise UserError(
            f"{file}: {key!r} is {array.dtype}, the model takes {spec.dtype}.",
            f"Convert it with .astype({spec.dtype!r}).",
        )
    if kind == "f":
        finite = np.isfinite(array)
        if not finite.all():
            bad = int(np.argwhere(~finite)[0][0])
            raise UserError(
                f"{file}: {key!r} holds NaN or Inf (first in sample {bad}).",
                "Remove those samples.",
            )
    return array


def _same_length(arrays: Mapping[str, Array], file: str) -> int:
    lengths = {k: len(a) for k, a in arrays.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{k}: {n}" for k, n in lengths.items())
        raise UserError(f"{file}: arrays differ in length ({listed}).", "Give equal lengths.")
    return next(iter(lengths.values()))


def _hash(arrays: Mapping[str, Array], metric: str | None) -> str:
    digest = hashlib.sha256(f"metric={metric}".encode())
    for key in sorted(arrays):
        array = np.ascontiguousarray(arrays[key])
        digest.update(f"{key}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _guess_type(model: Model) -> str:
    specs = model.inputs
    integer = any(np.dtype(s.dtype).kind in "iu" for s in specs)
    image = any(len(s.shape) == 4 and s.shape[1] in (1, 3, 4) for s in specs)
    if integer and image:
        return "multimodal"
    if integer:
        outputs = model.outputs[0].shape
        return "text_generation" if len(outputs) == 3 and outputs[-1] > 256 else "text"
    return "vision" if image else "audio"


def _vocabulary(model: Model, name: str) -> int:
    """Rows of the table that integer input `name` indexes; 2 for a mask or an unused input."""
    sizes: list[int] = []
    frontier = [v for v in model.ir.graph.inputs if v.name == name]
    seen: set[int] = set()
    while frontier:
        value = frontier.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        for node, index in value.uses():
            if node.op_type in {"Gather", "GatherElements"} and index == 1:
                table = node.inputs[0]
                if table is not None and table.is_initializer() and table.shape is not None:
                    sizes.append(int(str(table.shape[0])))
            elif node.op_type in {"Cast", "Reshape", "Squeeze", "Unsqueeze", "Identity"}:
                frontier.extend(node.outputs)
    return min(sizes) if sizes else 2


def _synthetic(model: Model, kind: str) -> Task:
    rng = np.random.default_rng(_SPLIT_SEED)
    total = _SYNTHETIC_SAMPLES + _SYNTHETIC_CALIBRATION
    arrays: dict[str, Array] = {}
    for spec in model.inputs:
        dtype = np.dtype(spec.dtype)
        if dtype.kind == "f":
            data = rng.standard_normal((total, *spec.shape)).astype(dtype)
        elif "mask" in spec.name.lower() or dtype.kind == "b":
            data = np.ones((total, *spec.shape), dtype)
        elif "type" in spec.name.lower():
            data = np.zeros((total, *spec.shape), dtype)
        elif "position" in spec.name.lower():
            data = np.broadcast_to(np.arange(spec.shape[-1], dtype=dtype), (total, *spec.shape))
        else:
            high = max(2, _vocabulary(model, spec.name))
            data = rng.integers(0, high, (total, *spec.shape)).astype(dtype)
        arrays[spec.name] = np.ascontiguousarray(data)
    cut = _SYNTHETIC_CALIBRATION
    note = "synthetic inputs: accuracy is agreement with the float model, not a task's accuracy"
    return Task(
        "synthetic",
        kind,
        {k: a[cut:] for k, a in arrays.items()},
        None,
        {k: a[:cut] for k, a in arrays.items()},
        None,
        True,
        (note,),
        _hash(arrays, None),
    )
