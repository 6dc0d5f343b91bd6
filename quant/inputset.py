"""The samples of a task as files for a device: what an on-device accuracy pass reads.

A folder with manifest.json and, for every input of the model, one .npy with the samples on its
first axis. It is named by the sha256 of the manifest, which lists the sha256 of every array.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from quant.model import Interface, Model
from quant.task import Task

FORMAT = "qhost-inputs"


def write_input_set(folder: Path, model: Model | Interface, task: Task, samples: int) -> str:
    """Write the first `samples` samples below `folder`; the set's name (64 hex digits)."""
    files, digests = {}, {}
    (folder / "inputs").mkdir(parents=True)
    for number, spec in enumerate(model.inputs):
        file = f"inputs/{number}.npy"
        first = task.feed(model, 0)[spec.name]
        stacked = np.lib.format.open_memmap(
            folder / file, mode="w+", dtype=first.dtype, shape=(samples, *first.shape)
        )
        for i in range(samples):
            stacked[i] = task.feed(model, i)[spec.name]
        stacked.flush()
        with (folder / file).open("rb") as source:
            digests[file] = hashlib.file_digest(source, "sha256").hexdigest()
        files[spec.name] = file
    manifest = {"format": FORMAT, "samples": samples, "inputs": files, "sha256": digests}
    data = json.dumps(manifest, sort_keys=True, indent=1).encode()
    (folder / "manifest.json").write_bytes(data)
    return hashlib.sha256(data).hexdigest()
