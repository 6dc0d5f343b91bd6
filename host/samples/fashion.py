"""Fashion-MNIST as Debian packages it: IDX files in, seeded class-balanced splits out."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from host.errors import UserError

DATASET_DIR = Path("/usr/share/datasets/fashion-mnist")
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
# Mean and standard deviation of the 60,000 training images scaled to 0-1.
MEAN, STD = 0.2860, 0.3530

_IDX_UBYTE = 0x08
_PREFIX = {"train": "train", "test": "t10k"}


@dataclass(frozen=True)
class Split:
    """images: uint8 (N, 28, 28); labels: int64 (N,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def read_idx(path: Path) -> NDArray[np.uint8]:
    """One gzipped IDX file of unsigned bytes (format: magic 00 00 type rank, big-endian sizes).

    Raises UserError for a missing, truncated or foreign file.
    """
    try:
        raw = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"Fashion-MNIST is not installed: {path} is missing.",
            "Install it: apt-get install dataset-fashion-mnist",
        ) from None
    except (OSError, EOFError) as error:
        raise UserError(f"{path} is not a complete gzip file: {error}.", "Reinstall it.") from error
    if len(raw) < 4 or raw[:3] != bytes([0, 0, _IDX_UBYTE]):
        raise UserError(f"{path} is not an IDX file of unsigned bytes.", "Reinstall it.")
    rank = raw[3]
    header = 4 + 4 * rank
    shape = tuple(int(n) for n in np.frombuffer(raw[4:header], dtype=">u4"))
    if len(shape) != rank or len(raw) - header != int(np.prod(shape)):
        raise UserError(f"{path} is truncated: its header promises {shape}.", "Reinstall it.")
    return np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape)


def load_split(split: str, directory: Path = DATASET_DIR) -> Split:
    """split: "train" (60,000 images) or "test" (10,000)."""
    prefix = _PREFIX[split]
    images = read_idx(directory / f"{prefix}-images-idx3-ubyte.gz")
    labels = read_idx(directory / f"{prefix}-labels-idx1-ubyte.gz")
    return Split(images, labels.astype(np.int64))


def balanced_indices(labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """`count` indices in random order, each class equally often (the remainder to the first ones).

    A prefix is not balanced exactly, but the order is random, so any prefix is an unbiased sample.
    """
    rng = np.random.default_rng(seed)
    classes = np.unique(labels)
    quota, rest = divmod(count, len(classes))
    chosen = [
        rng.choice(np.flatnonzero(labels == c), quota + (i < rest), replace=False)
        for i, c in enumerate(classes)
    ]
    return rng.permutation(np.concatenate(chosen)).astype(np.int64)


def normalise(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 (N, 28, 28) -> float32 (N, 1, 28, 28), (x / 255 - MEAN) / STD."""
    scaled = (images.astype(np.float32) / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
    return scaled[:, None]
