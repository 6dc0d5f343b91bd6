"""The outputs of a context on every sample of an input set: what on-device accuracy is made of.

An input set lies where artifacts lie, under the sha256 of its manifest.json: for every input of the
graph one .npy with the samples on its first axis. It is mapped, not read: a set may be larger than
the device's memory.
"""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from agent.artifacts import ArtifactStore, checked_name
from agent.errors import BadArtifact, BadRequest, DeviceFailure
from agent.runtime import Array, Feed
from protos import agent_pb2 as pb

FORMAT = "qhost-inputs"
MAX_SAMPLES = 1_000_000


@dataclass(frozen=True)
class InputSet:
    """`arrays`: by input name, samples on the first axis."""

    arrays: Mapping[str, Array]
    samples: int

    def feeds(self) -> Iterator[Feed]:
        for i in range(self.samples):
            yield {name: np.asarray(array[i]) for name, array in self.arrays.items()}


def read_inputs(store: ArtifactStore, sha256: str) -> InputSet:
    """The input set `sha256`. Raises NotFound and BadArtifact, naming what is wrong with it."""
    manifest, folder = store.manifest(sha256), store.path(sha256)
    files = manifest.get("inputs")
    if manifest.get("format") != FORMAT or not isinstance(files, dict) or not files:
        raise BadArtifact(f"{sha256[:12]} is no input set")
    arrays: dict[str, Array] = {}
    for name, file in files.items():
        try:
            path = folder / checked_name(str(file))
            arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (BadRequest, OSError, ValueError) as error:
            raise BadArtifact(f"input set {sha256[:12]}: {file} is no readable .npy") from error
    lengths = {len(array) if array.ndim else 0 for array in arrays.values()}
    if len(lengths) != 1 or not 0 < (samples := lengths.pop()) <= MAX_SAMPLES:
        raise BadArtifact(f"input set {sha256[:12]}: its arrays have no common number of samples")
    return InputSet(arrays, samples)


class OutputFiles:
    """One .npy per output in `folder`, written sample by sample; its shape is known in advance."""

    def __init__(self, folder: Path, samples: int) -> None:
        self._folder = folder
        self._samples = samples
        self._files: dict[str, tuple[Path, BinaryIO, Any, Array]] = {}
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def __enter__(self) -> OutputFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for _path, file, _digest, _first in self._files.values():
            file.close()
        if kind is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def append(self, outputs: Mapping[str, Array]) -> None:
        """The outputs of the next sample. DeviceFailure where their names or shapes change."""
        if not self._files:
            for number, (name, array) in enumerate(outputs.items()):
                path = self._folder / f"{number}.npy"
                self._files[name] = (path, path.open("wb"), hashlib.sha256(), array)
                self._write(name, _header(array, self._samples))
        if outputs.keys() != self._files.keys():
            raise DeviceFailure("the outputs of two samples have different names")
        for name, array in outputs.items():
            first = self._files[name][3]
            if (array.shape, array.dtype) != (first.shape, first.dtype):
                raise DeviceFailure(f"output {name!r} changes its shape between two samples")
            self._write(name, np.ascontiguousarray(array).tobytes())

    def _write(self, name: str, data: bytes) -> None:
        _, file, digest, _ = self._files[name]
        file.write(data)
        digest.update(data)

    def finish(self, root: Path) -> list[pb.OutputFile]:
        """Close the files; what the host needs to fetch them, named from `root`."""
        out = []
        for name, (path, file, digest, _) in self._files.items():
            file.close()
            out.append(
                pb.OutputFile(
                    tensor=name,
                    file=path.relative_to(root).as_posix(),
                    size=path.stat().st_size,
                    sha256=digest.hexdigest(),
                )
            )
        return out


def _header(array: Array, samples: int) -> bytes:
    buffer = io.BytesIO()
    header = {
        "descr": np.lib.format.dtype_to_descr(array.dtype),
        "fortran_order": False,
        "shape": (samples, *array.shape),
    }
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()
