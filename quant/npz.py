"""Arrays as .npz bytes: written reproducibly, read without trust."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quant.errors import UserError

Array = np.ndarray[Any, Any]


def npz_bytes(arrays: Mapping[str, Array]) -> bytes:
    """The arrays as an uncompressed .npz with fixed timestamps: equal arrays, equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(arrays):
            data = io.BytesIO()
            np.lib.format.write_array(data, np.asarray(arrays[name], order="C"), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), data.getvalue())
    return buffer.getvalue()


def load_npz(path: Path, name: str, data: bytes) -> dict[str, Array]:
    """The arrays of an .npz found in `path` under `name`. Raises UserError where it is none, or
    could expand when read."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            # Compressed entries could expand without bound; we never write any.
            if any(i.compress_type != zipfile.ZIP_STORED for i in archive.infolist()):
                raise UserError(f"{path}: {name} is compressed.", "Build the artifact again.")
        with np.load(io.BytesIO(data), allow_pickle=False) as npz:
            return {key: npz[key] for key in npz.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: {name} is not a readable .npz: {error}.") from error
