"""The table of quantization methods: one row per variant, fp16 (the baseline) first."""

from __future__ import annotations

from quant.methods.base import LayerReport, Method, Quantized
from quant.methods.cluster import CLUSTER
from quant.methods.fp16 import FP16
from quant.methods.hybrid import HYBRID
from quant.methods.int4 import INT4
from quant.methods.int8 import INT8
from quant.methods.per_channel import PER_CHANNEL
from quant.methods.qat import QAT
from quant.methods.sparse import SPARSE

METHODS: dict[str, Method] = {
    m.name: m for m in (FP16, INT8, INT4, PER_CHANNEL, HYBRID, CLUSTER, SPARSE, QAT)
}

__all__ = ["METHODS", "LayerReport", "Method", "Quantized"]
