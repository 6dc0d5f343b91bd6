"""Codebooks of quantized weights: optimal levels on the integer grid, entropy-coded storage.

A clustered weight is level[index] x scale: a few integer levels shared by the whole tensor, and the
scales that the encoding has anyway. The HTP stores such a weight as it stores any other (its
context does not shrink); what shrinks is the download, where indices are entropy-coded.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from quant.errors import UserError

Array = np.ndarray[Any, Any]

_MAGIC, _FILE = b"QHCB", b"QHCF"
_PRECISION = 14  # bits of a symbol's frequency in the coder
_LOWER = np.uint64(1 << 16)  # a coder state lies in [2**16, 2**32)
_SYMBOLS_PER_LANE = 2048
_MAX_LANES = 4096


def optimal_levels(
    values: Array, importance: Array, count: int, low: int, high: int, *, zero: bool = False
) -> Array:
    """At most `count` integers in [low, high] of least importance-weighted squared distance.

    values, importance: any equal shapes. Exact one-dimensional k-means restricted to integer
    centroids, by dynamic programming over centroid positions: between neighbouring centroids a < b
    every value goes to the nearer one, and the border (a + b) / 2 lies on a grid of halves, so
    moments in bins of width one half give every cost exactly. `zero`: 0 is one of the levels.
    """
    x = np.clip(np.asarray(values, np.float64).reshape(-1), low, high)
    w = np.asarray(importance, np.float64).reshape(-1)
    if not w.sum() > 0:
        w = np.ones_like(x)
    n = high - low + 1
    # Bin k holds [low + k/2, low + (k+1)/2); the last value falls into an extra bin.
    bins = np.floor((x - low) * 2).astype(np.int64)
    m0, m1, m2 = (
        np.concatenate([[0.0], np.cumsum(np.bincount(bins, w * x**p, 2 * n))]) for p in (0, 1, 2)
    )
    grid = np.arange(low, high + 1, dtype=np.float64)

    def cost(first: Array, last: Array, centre: Array) -> Array:
        """Of the values in bins [first, last) served by `centre`."""
        s0, s1, s2 = (m[last] - m[first] for m in (m0, m1, m2))
        return np.asarray(s2 - 2 * centre * s1 + centre**2 * s0)

    i, j = np.arange(n)[:, None], np.arange(n)[None, :]
    middle = np.where(i < j, i + j, 0)
    between = cost(2 * i, middle, grid[:, None]) + cost(middle, 2 * j, grid[None, :])
    between = np.where(i < j, between, np.inf)
    left = cost(np.zeros(n, np.int64), 2 * np.arange(n), grid)
    right = cost(2 * np.arange(n), np.full(n, 2 * n), grid)
    if zero and low <= 0 <= high:  # no step may leave zero out
        z = -low
        between = np.where((i < z) & (j > z), np.inf, between)
        left = np.where(np.arange(n) > z, np.inf, left)
        right = np.where(np.arange(n) < z, np.inf, right)
    best = left
    back: list[Array] = []
    finals = [best + right]
    for _ in range(min(count, n) - 1):
        table = best[:, None] + between
        back.append(table.argmin(0))
        best = table.min(0)
        finals.append(best + right)
    used = int(np.argmin([f.min() for f in finals]))
    path = [int(finals[used].argmin())]
    for step in reversed(back[:used]):
        path.append(int(step[path[-1]]))
    return np.array(sorted({p + low for p in path}), np.int64)


def linear_levels(count: int, low: int, high: int) -> Array:
    """At most `count` integers spread evenly over [low, high], 0 among them."""
    spread = np.unique(np.rint(np.linspace(low, high, min(count, high - low + 1))).astype(np.int64))
    if 0 not in spread:
        spread[np.abs(spread).argmin()] = 0
    return np.unique(spread)


def nearest(levels: Array, x: Array) -> Array:
    """The level nearest to each x, same shape."""
    borders = (levels[1:] + levels[:-1]) / 2.0
    return np.asarray(levels[np.searchsorted(borders, x)])


@dataclass(frozen=True)
class Download:
    """Bytes to transfer: clustered weights entropy-coded, everything else as it is; and float32."""

    packed_bytes: int
    other_bytes: int
    float_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.packed_bytes + self.other_bytes


def pack(codes: Array) -> bytes:
    """Integer codes of one tensor as codebook + entropy-coded indices.

    The coder is static rANS (Duda 2014) on interleaved lanes, so that numpy codes all lanes at
    once; the size is within about one percent of the entropy for tensors of 10,000 weights up.
    """
    flat = np.asarray(codes).astype(np.int64).reshape(-1)
    levels, symbols, counts = np.unique(flat, return_inverse=True, return_counts=True)
    if levels.size == 0 or levels.size > 256:
        raise ValueError(f"a codebook holds 1 to 256 levels, not {levels.size}")
    frequency = _frequencies(counts)
    start = np.concatenate([[0], np.cumsum(frequency)[:-1]]).astype(np.uint64)
    lanes = int(np.clip(flat.size // _SYMBOLS_PER_LANE, 1, _MAX_LANES))
    steps = -(-flat.size // lanes)
    padded = np.zeros(steps * lanes, np.int64)
    padded[: flat.size] = symbols
    rows = padded.reshape(steps, lanes)
    state = np.full(lanes, _LOWER, np.uint64)
    words: list[Array] = []
    wide = frequency.astype(np.uint64)
    for row in rows[::-1]:
        f, c = wide[row], start[row]
        full = state >= f << np.uint64(32 - _PRECISION)
        words.append((state[full] & np.uint64(0xFFFF)).astype("<u2"))
        state = np.where(full, state >> np.uint64(16), state)
        state = ((state // f) << np.uint64(_PRECISION)) + c + state % f
    stream = np.concatenate(words[::-1]) if words else np.zeros(0, "<u2")
    shape = np.shape(codes)
    head = struct.pack("<4sBHIQ", _MAGIC, len(shape), levels.size, lanes, stream.size)
    return b"".join(
        [
            head,
            np.array(shape, "<u4").tobytes(),
            levels.astype("<i2").tobytes(),
            frequency.astype("<u2").tobytes(),
            state.astype("<u4").tobytes(),
            stream.tobytes(),
        ]
    )


def unpack(data: bytes) -> Array:
    """The inverse of pack: int16 codes. Raises UserError for truncated or foreign bytes."""
    try:
        magic, rank, count, lanes, n_words = struct.unpack_from("<4sBHIQ", data)
        offset = struct.calcsize("<4sBHIQ")
        if magic != _MAGIC or not 1 <= count <= 256 or lanes < 1:
            raise ValueError("not a codebook")

        def take(dtype: str, n: int) -> Array:
            nonlocal offset
            out = np.frombuffer(data, dtype, n, offset)
            offset += out.nbytes
            return out

        shape = tuple(int(d) for d in take("<u4", rank))
        levels, frequency = take("<i2", count), take("<u2", count).astype(np.uint64)
        state, words = take("<u4", lanes).astype(np.uint64), take("<u2", n_words)
        if int(frequency.sum()) != 1 << _PRECISION or offset != len(data):
            raise ValueError("its lengths do not agree")
        size = int(np.prod(shape, dtype=np.int64))
        symbols = _decode(state, words, frequency, -(-size // lanes))
    except (struct.error, ValueError, IndexError) as error:
        raise UserError(f"Packed weights are damaged: {error}.", "Build them again.") from error
    return np.asarray(levels[symbols.reshape(-1)[:size]].reshape(shape))


def _decode(state: Array, words: Array, frequency: Array, steps: int) -> Array:
    start = np.concatenate([[0], np.cumsum(frequency)[:-1]]).astype(np.uint64)
    table = np.repeat(np.arange(frequency.size), frequency.astype(np.int64))
    out = np.empty((steps, state.size), np.int64)
    mask = np.uint64((1 << _PRECISION) - 1)
    position = 0
    for k in range(steps):
        slot = state & mask
        symbol = table[slot.astype(np.int64)]
        out[k] = symbol
        state = frequency[symbol] * (state >> np.uint64(_PRECISION)) + slot - start[symbol]
        low = state < _LOWER
        n = int(low.sum())
        state[low] = (state[low] << np.uint64(16)) | words[position : position + n]
        position += n
    if position != words.size:
        raise ValueError("its stream does not end where its symbols do")
    return out


def _frequencies(counts: Array) -> Array:
    """Counts scaled to sum to 2**PRECISION, none of them zero, each below 2**16."""
    total = 1 << _PRECISION
    scaled = np.maximum(1, np.floor(counts / counts.sum() * total)).astype(np.int64)
    while scaled.sum() != total:
        # What is missing or too much goes to the most frequent: there it changes least.
        at = int(scaled.argmax())
        change = int(total - scaled.sum())
        scaled[at] += max(change, 1 - int(scaled[at]))
    return np.asarray(scaled)


def pack_all(codes: Mapping[str, Array]) -> bytes:
    """Several tensors as one file: their names and lengths as JSON, then each as pack gives it."""
    parts = {name: pack(array) for name, array in sorted(codes.items())}
    index = json.dumps({name: len(data) for name, data in parts.items()}).encode()
    return b"".join([struct.pack("<4sI", _FILE, len(index)), index, *parts.values()])


def unpack_all(data: bytes) -> dict[str, Array]:
    """The inverse of pack_all. Raises UserError for damaged bytes."""
    try:
        magic, size = struct.unpack_from("<4sI", data)
        if magic != _FILE:
            raise ValueError("not a file of codebooks")
        index = json.loads(data[8 : 8 + size])
        offset, out = 8 + size, {}
        for name, length in index.items():
            out[name] = unpack(data[offset : offset + length])
            offset += length
    except (struct.error, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"Packed weights are damaged: {error}.", "Build them again.") from error
    return out
