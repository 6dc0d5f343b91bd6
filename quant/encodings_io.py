"""Encodings files of AIMET and QAIRT: JSON in, JSON out.

Three public shapes exist, and QAIRT's converter takes each as quantization overrides:

- 0.6.1: `activation_encodings` and `param_encodings` map a tensor's name to a list of entries
  (bitwidth, dtype, is_symmetric, offset, scale, min, max), one per channel.
- 1.0.0: both are lists of entries (name, bw, dtype, enc_type, is_sym, scale[], offset[]).
- 2.0.0: `encodings` is one list (name, output_dtype, y_scale, y_zero_point, axis, block_size).

In the first two, real = (q + offset) * scale with q from 0 to 2**bits - 1: an offset is a negated
zero point, and a signed symmetric tensor has -2**(bits - 1). They do not say on which axis channels
lie on: it is the axis of the weight in the graph. Scales are written with all digits, so that what
was written reads back bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from quant.encoding import Encoding, QuantPlan
from quant.errors import UserError, unknown_name
from quant.graph import array_of, initializer_uses, name_of

VERSIONS = ("0.6.1", "1.0.0", "2.0.0")
_BITS = (4, 8, 16, 32)
_FLOAT_DTYPES = {"float", "float16", "fp16"}


@dataclass(frozen=True)
class Encodings:
    """Encodings by tensor name. floats: tensors the file keeps in floating point."""

    tensors: Mapping[str, Encoding]
    floats: frozenset[str] = frozenset()


def read_encodings(path: Path, graph: ir.Graph) -> Encodings:
    """Read a file of any of VERSIONS for `graph`, which gives the channel axes.

    Raises UserError for a missing file, invalid JSON, an unknown version, or an entry that lacks a
    field or has values no integer tensor can have; the entry is named.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}.") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} is not an encodings file: it holds no JSON object.")
    axes = _channel_axes(graph)
    version = str(data.get("version", "0.6.1"))
    if version not in VERSIONS:
        raise unknown_name(f"version of {path.name}:", version, VERSIONS)
    rows = _rows_of_2(data, path) if version == "2.0.0" else _rows(data, path)
    tensors: dict[str, Encoding] = {}
    floats: set[str] = set()
    for name, row in rows:
        try:
            read = _read_2(row) if version == "2.0.0" else _read(row, axes.get(name))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(
                f"{path.name}: the encoding of {name!r} is not valid: {reason}."
            ) from error
        if read is None:
            floats.add(name)
        else:
            tensors[name] = read
    return Encodings(tensors, frozenset(floats))


def encodings_document(plan: QuantPlan, graph: ir.Graph, version: str = "2.0.0") -> dict[str, Any]:
    """`plan` in one of VERSIONS.

    Raises UserError for block-wise encodings in 0.6.1 and 1.0.0, which cannot express them. A
    second encoding for the readers of a tensor has no place in these files: the converter makes
    its own conversions.
    """
    if version not in VERSIONS:
        raise unknown_name("version of encodings:", version, VERSIONS)
    if version == "2.0.0":
        rows = [{"name": n, **_write_2(e)} for n, e in sorted(plan.tensors.items())]
        return {"version": version, "encodings": rows}
    groups: dict[str, Any] = {}
    for key, is_parameter in (("activation_encodings", False), ("param_encodings", True)):
        picked = {
            n: e
            for n, e in sorted(plan.tensors.items())
            if (n in graph.initializers) is is_parameter
        }
        for name, encoding in picked.items():
            if encoding.block_size is not None:
                raise UserError(
                    f"The block-wise encoding of {name!r} does not exist in version {version}.",
                    "Write version 2.0.0.",
                )
        groups[key] = (
            {n: _write_06(e) for n, e in picked.items()}
            if version == "0.6.1"
            else [{"name": n, **_write_10(e)} for n, e in picked.items()]
        )
    return {"version": version, **groups}


def _channel_axes(graph: ir.Graph) -> dict[str, tuple[int, int]]:
    """(channel axis, channels) of each weight and bias."""
    found: dict[str, tuple[int, int]] = {}
    for use in initializer_uses(graph):
        axis = use.axis if use.role == "weight" else 0 if use.role == "bias" else None
        if axis is not None:
            found[name_of(use.value)] = (axis, array_of(use.value).shape[axis])
    return found


def _rows(data: Mapping[str, Any], path: Path) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key in ("activation_encodings", "param_encodings"):
        group = data.get(key, {})
        if isinstance(group, dict):
            found += [(str(name), entries) for name, entries in group.items()]
        elif isinstance(group, list) and all(isinstance(e, dict) and "name" in e for e in group):
            found += [(str(entry["name"]), entry) for entry in group]
        else:
            raise UserError(f"{path.name}: {key} is neither an object nor a list of named entries.")
    if not found:
        raise UserError(
            f"{path.name} holds no encodings.",
            "It needs activation_encodings, param_encodings, or (2.0.0) encodings.",
        )
    return found


def _rows_of_2(data: Mapping[str, Any], path: Path) -> list[tuple[str, Any]]:
    rows = data.get("encodings")
    if not isinstance(rows, list) or not all(isinstance(r, dict) and "name" in r for r in rows):
        raise UserError(f"{path.name}: 'encodings' is not a list of named entries.")
    return [(str(r["name"]), r) for r in rows]


def _read(row: Any, channel: tuple[int, int] | None) -> Encoding | None:
    """0.6.1 (a list of entries) or 1.0.0 (one entry with lists); None for a float tensor."""
    entries = row if isinstance(row, list) else [row]
    if not entries:
        raise ValueError("it is an empty list")
    first = entries[0]
    if str(first.get("dtype", "int")).lower() in _FLOAT_DTYPES:
        return None
    bits = int(first["bitwidth"] if "bitwidth" in first else first["bw"])
    symmetric = str(first.get("is_symmetric", first.get("is_sym", False))).lower() == "true"
    scales: list[float] = []
    offsets: list[float] = []
    for entry in entries:
        scale, offset = entry["scale"], entry["offset"]
        scales += scale if isinstance(scale, list) else [scale]
        offsets += offset if isinstance(offset, list) else [offset]
    if str(first.get("enc_type", "")).upper() in {"PER_BLOCK", "LPBQ"}:
        raise ValueError("block-wise encodings are read from version 2.0.0 only")
    if len(scales) != len(offsets):
        raise ValueError(f"{len(scales)} scales but {len(offsets)} offsets")
    signed = symmetric and all(o == -(2 ** (bits - 1)) for o in offsets)
    zeros = [0 if signed else -int(o) for o in offsets]
    per_channel = len(scales) > 1 or str(first.get("enc_type", "")).upper() == "PER_CHANNEL"
    axis = None
    if per_channel:
        if channel is None:
            raise ValueError("it is per channel, but the graph has no such weight")
        axis, channels = channel
        if channels != len(scales):
            raise ValueError(f"it has {len(scales)} channels, the weight has {channels}")
    return _encoding(bits, signed, signed, np.array(scales), np.array(zeros), axis, None)


def _read_2(row: Mapping[str, Any]) -> Encoding | None:
    dtype = str(row["output_dtype"]).lower()
    if dtype in _FLOAT_DTYPES | {"float32", "bfloat16"}:
        return None
    signed = not dtype.startswith("u")
    bits = int(dtype.removeprefix("u").removeprefix("int"))
    scale = np.array(row["y_scale"], np.float64)
    zero = np.broadcast_to(np.array(row.get("y_zero_point", 0)), scale.shape)
    axis = row.get("axis")
    block = row.get("block_size")
    return _encoding(
        bits,
        signed,
        signed and not zero.any(),
        scale,
        zero,
        None if axis is None else int(axis),
        None if block is None else int(block),
    )


def _encoding(
    bits: int,
    signed: bool,
    symmetric: bool,
    scale: Any,
    zero: Any,
    axis: int | None,
    block: int | None,
) -> Encoding:
    if bits not in _BITS:
        raise ValueError(f"{bits} bits; the HTP has 4, 8, 16 and (biases) 32")
    scale = np.asarray(scale, np.float32)
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise ValueError("a scale is not a positive number")
    if axis is None:
        scale, zero = scale.reshape(()), np.asarray(zero).reshape(())
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if (np.asarray(zero) < low).any() or (np.asarray(zero) > high).any():
        raise ValueError(f"a zero point is outside {low} to {high}")
    empty = Encoding(bits, signed, symmetric, scale, np.zeros(()), axis, block)
    zeros = np.asarray(zero).astype(np.int64).astype(empty.numpy_dtype)
    return Encoding(bits, signed, symmetric, scale, np.array(zeros), axis, block)


def _offsets(encoding: Encoding) -> list[int]:
    base = -(2 ** (encoding.bits - 1)) if encoding.signed else 0
    return [base - int(z) for z in encoding.zero_point.reshape(-1).astype(np.int64)]


def _write_06(encoding: Encoding) -> list[dict[str, Any]]:
    top = 2**encoding.bits - 1
    return [
        {
            "bitwidth": encoding.bits,
            "dtype": "int",
            "is_symmetric": str(encoding.signed and encoding.symmetric),
            "offset": offset,
            "scale": float(scale),
            "min": float(scale) * offset,
            "max": float(scale) * (offset + top),
        }
        for scale, offset in zip(encoding.scale.reshape(-1), _offsets(encoding), strict=True)
    ]


def _write_10(encoding: Encoding) -> dict[str, Any]:
    return {
        "bw": encoding.bits,
        "dtype": "INT",
        "enc_type": "PER_TENSOR" if encoding.axis is None else "PER_CHANNEL",
        "is_sym": encoding.signed and encoding.symmetric,
        "scale": [float(s) for s in encoding.scale.reshape(-1)],
        "offset": _offsets(encoding),
    }


def _write_2(encoding: Encoding) -> dict[str, Any]:
    row: dict[str, Any] = {
        "output_dtype": f"{'' if encoding.signed else 'u'}int{encoding.bits}",
        "y_scale": encoding.scale.astype(np.float64).tolist(),
    }
    zeros = encoding.zero_point.astype(np.int64)
    if zeros.any():
        row["y_zero_point"] = zeros.tolist()
    if encoding.axis is not None:
        row["axis"] = encoding.axis
    if encoding.block_size is not None:
        row["block_size"] = encoding.block_size
    return row


__all__ = ["VERSIONS", "Encodings", "encodings_document", "read_encodings"]
