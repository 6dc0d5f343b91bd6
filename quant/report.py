"""The per-layer report: bits, granularity, SQNR and stored size of every weight."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from quant.encoding import Array, Encoding
from quant.graph import array_of, initializer_uses, name_of
from quant.state import LayerReport, Quantized

_CHUNK = 1 << 20


def sqnr_db(reference: Array, approximation: Array) -> float:
    """10 log10 of signal power over error power; inf for no error, -inf for no signal."""
    a, b = np.asarray(reference).reshape(-1), np.asarray(approximation).reshape(-1)
    signal = noise = 0.0
    for start in range(0, a.size, _CHUNK):  # an embedding table in float64 would be 100 MB
        part = a[start : start + _CHUNK].astype(np.float64)
        signal += float(np.square(part).sum())
        noise += float(np.square(part - b[start : start + _CHUNK]).sum())
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0 else -math.inf


def stored_bytes(encoding: Encoding, elements: int) -> int:
    """Bytes of the codes, the scales and the zero points."""
    codes = (elements * encoding.bits + 7) // 8
    zeros = (encoding.zero_point.size * encoding.bits + 7) // 8
    return codes + 4 * encoding.scale.size + zeros


def granularity(encoding: Encoding) -> str:
    if encoding.block_size is not None:
        return f"block-{encoding.block_size}"
    return "per-tensor" if encoding.axis is None else "per-channel"


def with_layers(state: Quantized) -> Quantized:
    """The same state with its per-layer report filled in."""
    rows: list[LayerReport] = []
    done: set[str] = set()
    for use in initializer_uses(state.model.ir.graph):
        name = name_of(use.value)
        table = use.node.op_type == "Gather" and use.index == 0
        encoding = state.plan.tensors.get(name)
        if encoding is None or name in done or not (use.role == "weight" or table):
            continue
        done.add(name)
        data = array_of(use.value)
        codes = state.plan.codes.get(name)
        restored = encoding.fake(data) if codes is None else encoding.dequantize(codes)
        rows.append(
            LayerReport(
                name,
                use.node.op_type,
                encoding.bits,
                granularity(encoding),
                sqnr_db(data, restored),
                stored_bytes(encoding, data.size),
            )
        )
    return replace(state, layers=tuple(rows))
