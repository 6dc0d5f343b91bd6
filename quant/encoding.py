"""Encodings: how a real tensor maps to integers, and the plan that gives tensors encodings.

real = (q - zero_point) * scale, in float32, exactly as ONNX QuantizeLinear/DequantizeLinear
compute it in onnxruntime: a quotient in float32, rounded half to even, saturated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

Array = np.ndarray[Any, Any]

# The smallest scale: below it the float32 quotient overflows and the HTP flushes it to zero.
SMALLEST_SCALE = np.float32(1e-12)

DEAD = 1e-6

_DTYPES: dict[tuple[int, bool], tuple[Any, ir.DataType]] = {
    (4, True): (ml_dtypes.int4, ir.DataType.INT4),
    (8, True): (np.int8, ir.DataType.INT8),
    (16, True): (np.int16, ir.DataType.INT16),
    (32, True): (np.int32, ir.DataType.INT32),
    (4, False): (ml_dtypes.uint4, ir.DataType.UINT4),
    (8, False): (np.uint8, ir.DataType.UINT8),
    (16, False): (np.uint16, ir.DataType.UINT16),
}


@dataclass(frozen=True, eq=False)
class Encoding:
    """Integer encoding of one tensor.

    scale, zero_point: shape () per tensor; (C,) along `axis` per channel; the tensor's shape with
    `axis` divided by `block_size` per block. `symmetric`: the zero point is 0 and the most
    negative code is not used, so that -x encodes as -q.
    """

    bits: int
    signed: bool
    symmetric: bool
    scale: Array
    zero_point: Array
    axis: int | None = None
    block_size: int | None = None

    @property
    def qmin(self) -> int:
        if not self.signed:
            return 0
        return -(1 << (self.bits - 1)) + (1 if self.symmetric and self.bits < 32 else 0)

    @property
    def qmax(self) -> int:
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def data_type(self) -> ir.DataType:
        return _DTYPES[self.bits, self.signed][1]

    @property
    def numpy_dtype(self) -> Any:
        return _DTYPES[self.bits, self.signed][0]

    def _expanded(self, x: Array) -> tuple[Array, Array]:
        scale, zero = self.scale, self.zero_point
        if self.axis is None:
            return scale, zero
        if self.block_size is not None:
            length = x.shape[self.axis]
            return (
                np.repeat(scale, self.block_size, axis=self.axis).take(range(length), self.axis),
                np.repeat(zero, self.block_size, axis=self.axis).take(range(length), self.axis),
            )
        shape = [1] * x.ndim
        shape[self.axis] = -1
        return scale.reshape(shape), zero.reshape(shape)

    def quantize(self, x: Array) -> Array:
        """Codes of x in the storage dtype, same shape as x."""
        scale, zero = self._expanded(x)
        if self.bits == 32:  # float32 has too few digits for a 31-bit code
            q = np.rint(x.astype(np.float64) / scale.astype(np.float64))
        else:
            q = np.asarray(x.astype(np.float32, copy=False) / scale)
            q = np.rint(q, out=q)
            q = np.asarray(q + zero.astype(np.float32)) if zero.any() else q
        return np.clip(q, self.qmin, self.qmax, out=q).astype(self.numpy_dtype)

    def dequantize(self, q: Array) -> Array:
        """float32 values of the codes q, same shape."""
        scale, zero = self._expanded(q)
        return (q.astype(np.int32) - zero.astype(np.int32)).astype(np.float32) * scale

    def fake(self, x: Array) -> Array:
        """Quantize and dequantize: what the integer graph knows of x."""
        return self.dequantize(self.quantize(x))

    def same_as(self, other: Encoding) -> bool:
        return (
            (self.bits, self.signed, self.axis, self.block_size)
            == (other.bits, other.signed, other.axis, other.block_size)
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )


def asymmetric(low: float, high: float, bits: int) -> Encoding:
    """Unsigned per-tensor encoding of [low, high], widened to hold an exact zero."""
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    levels = 2**bits - 1
    scale = np.float32((high - low) / levels)
    if not scale >= SMALLEST_SCALE:  # a constant zero, or NaN
        scale = np.float32(1.0 / levels) if high - low <= 0 else SMALLEST_SCALE
    zero = np.clip(np.rint(-low / np.float64(scale)), 0, levels)
    return Encoding(
        bits,
        signed=False,
        symmetric=False,
        scale=np.array(scale, np.float32),
        zero_point=np.array(zero, _DTYPES[bits, False][0]),
    )


def symmetric(
    limit: Array | float, bits: int, *, axis: int | None = None, block_size: int | None = None
) -> Encoding:
    """Signed encoding of [-limit, limit]; `limit` is shaped as the scale will be.

    A dead channel (below DEAD times the largest) takes the scale of the smallest live one: its
    codes are zero, its bias still fits 32 bits, and HTP, which computes garbage on scales such as
    1e-12, is not asked to.
    """
    limits = np.asarray(limit, np.float64)
    live = limits[limits > DEAD * limits.max(initial=0.0)]
    fill = float(live.min()) if live.size else 1.0
    limits = np.where(limits > DEAD * limits.max(initial=0.0), limits, fill)
    scale = np.maximum((limits / (2 ** (bits - 1) - 1)).astype(np.float32), SMALLEST_SCALE)
    return Encoding(
        bits,
        signed=True,
        symmetric=True,
        scale=np.asarray(scale, np.float32),
        zero_point=np.zeros(scale.shape, _DTYPES[bits, True][0]),
        axis=axis,
        block_size=block_size,
    )


def with_scale(encoding: Encoding, scale: Array) -> Encoding:
    return replace(encoding, scale=np.asarray(scale, np.float32))


def bias_encoding(input_scale: Array, weight: Encoding) -> Encoding:
    """int32 encoding of a bias: scale = input scale x weight scale, zero point 0."""
    scale = (input_scale.astype(np.float32) * weight.scale.astype(np.float32)).astype(np.float32)
    return Encoding(
        32,
        signed=True,
        symmetric=True,
        scale=scale,
        zero_point=np.zeros(scale.shape, np.int32),
        axis=None if scale.ndim == 0 else 0,
    )


@dataclass(frozen=True)
class QuantPlan:
    """Encodings by value name: activations and initializers. Empty: the model stays float.

    `codes`: integers of a weight whose rounding was chosen (second-order, learned); a weight
    without codes is rounded to nearest. `converted`: a second encoding for all consumers of an
    activation, reached through a requantization (8 to 16 bits between operators of different
    width).
    """

    tensors: Mapping[str, Encoding] = field(default_factory=dict)
    codes: Mapping[str, Array] = field(default_factory=dict)
    converted: Mapping[str, Encoding] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("tensors", "codes", "converted"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def updated(
        self,
        tensors: Mapping[str, Encoding],
        codes: Mapping[str, Array] | None = None,
        converted: Mapping[str, Encoding] | None = None,
    ) -> QuantPlan:
        """A plan with these encodings replaced; codes of replaced tensors are dropped."""
        kept = {k: v for k, v in self.codes.items() if k not in tensors}
        return QuantPlan(
            {**self.tensors, **tensors},
            {**kept, **(codes or {})},
            {**self.converted, **(converted or {})},
        )
