"""What an emulated device is told of an artifact: predicted time, activity, memory, load times.

A prior from published device times, evaluated on the compiler's figures and the graph. Nothing
here is measured on the model at hand, and the constants mix effects: they are no specification of
the hardware. The block's `basis` says so and travels with every figure made from it.

Microseconds on SM8650, other parts scaled by `Soc.latency_vs_sm8650`:

    fixed    38 per inference (30-45 fitted)
    hmx      per GMAC of dense convolutions and matrix products: 30 with 8-bit activations, 155 in
             fp16 (fitted). 60 with 16-bit activations is an assumption: the median ratio of
             published w8a16 to w8a8 times on SM8650 is 1.97 (13 models)
    ddr      16 per MB that crosses DDR beyond the graph's inputs and outputs: weights, spill, fill
    io       150 per MB of graph inputs and outputs
    hvx      12 per MB written by operators that do not run on the matrix unit. An assumption, a
             compromise between published SM8650 times: with it MobileNetV3-Large comes out about
             35 % low, ResNet-18 9 % low, ResNet-50 10 % high, MiniLM 34 % high (the first three
             by counts from the literature)

Load times and memory have no published breakdown and are assumptions: see LOAD and memory_bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from quant.errors import UserError
from quant.htp.compile import Compiled
from quant.htp.inspect import ContextInfo
from quant.htp.soc import Soc

BASIS = (
    "predicted: a prior from published device times (39 models, SM8650 and SM8750) on the "
    "compiler's static figures; not measured; expect errors of tens of percent; load times and "
    "memory are assumptions"
)

PARTIAL_BASIS = (
    "predicted, and only a lower bound: a bare context does not tell its arithmetic, so this is "
    "the fixed cost, the weights read once, and inputs and outputs; not measured"
)

FIXED_US = 38.0
HMX_US_PER_GMAC = {8: 30.0, 16: 60.0, 32: 155.0}  # by activation bits; 32 = float, run as fp16
DDR_US_PER_MB = 16.0
IO_US_PER_MB = 150.0
HVX_US_PER_MB = 12.0

# Cold load: process start and libraries, then the context from flash, then mapping into the DSP.
# Warm load: the file is in the page cache. Assumed, from the order of magnitude seen on phones.
LOAD_FIXED_S = 0.060
FLASH_BYTES_PER_S = 1.0e9
MAP_BYTES_PER_S = 4.0e9
RUNTIME_BYTES = 12_000_000  # libraries, skel and heap of the HTP runtime; assumed

_DENSE = {"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"}
_FREE = {  # folded into neighbours, or only another view of the same bytes
    "QuantizeLinear",
    "DequantizeLinear",
    "Relu",
    "Clip",
    "Identity",
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Slice",  # the compiler's schedule takes it in place
    "Split",
    "Constant",
    "Shape",
    "BatchNormalization",
    "Dropout",
}
_BITS: dict[int, int] = {
    TensorProto.UINT8: 8,
    TensorProto.INT8: 8,
    TensorProto.UINT4: 8,
    TensorProto.INT4: 8,
    TensorProto.UINT16: 16,
    TensorProto.INT16: 16,
}


@dataclass(frozen=True)
class GraphWork:
    """Work of one inference, counted on the ONNX graph.

    dense_macs: multiply-accumulates on the matrix unit, by activation bits (8, 16, 32 = float).
    depthwise_macs: those of depthwise convolutions, which run on the vector unit.
    vector_bytes: bytes written by operators outside the matrix unit.
    """

    dense_macs: dict[int, int]
    depthwise_macs: int
    vector_bytes: int
    io_bytes: int

    @property
    def macs(self) -> int:
        return sum(self.dense_macs.values()) + self.depthwise_macs


class _Graph:
    """Shapes, element types and producers of a model's tensors."""

    def __init__(self, model: onnx.ModelProto) -> None:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        self.nodes = inferred.node
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.types: dict[str, int] = {}
        for value in [*inferred.input, *inferred.output, *inferred.value_info]:
            tensor = value.type.tensor_type
            self.types[value.name] = tensor.elem_type
            if tensor.HasField("shape"):
                self.shapes[value.name] = tuple(d.dim_value for d in tensor.shape.dim)
        for initializer in inferred.initializer:
            self.types[initializer.name] = initializer.data_type
            self.shapes[initializer.name] = tuple(initializer.dims)
        self.initializers = {i.name for i in inferred.initializer}
        self.producer = {o: n for n in inferred.node for o in n.output}
        self.inputs = [i.name for i in inferred.input if i.name not in self.initializers]
        self.outputs = [o.name for o in inferred.output]

    def elements(self, name: str) -> int:
        return math.prod(self.shapes.get(name, (0,)))

    def bits(self, name: str) -> int:
        """Bits of the stored tensor that `name` is the dequantized form of; 32 for float."""
        node = self.producer.get(name)
        if node is None or node.op_type not in ("DequantizeLinear", "QuantizeLinear"):
            return 32
        stored = node.input[0] if node.op_type == "DequantizeLinear" else node.output[0]
        return _BITS.get(self.types.get(stored, 0), 32)

    def constant(self, name: str) -> bool:
        node = self.producer.get(name)
        if node is not None and node.op_type == "DequantizeLinear":
            return node.input[0] in self.initializers
        return name in self.initializers

    def written_bits(self, node: onnx.NodeProto) -> int:
        """Bits of a node's output: those of the QuantizeLinear behind it, else of its input."""
        for consumer in self.nodes:
            if consumer.op_type == "QuantizeLinear" and consumer.input[0] in node.output:
                return self.bits(consumer.output[0])
        return min((self.bits(i) for i in node.input if i and not self.constant(i)), default=32)


def _node_macs(node: onnx.NodeProto, graph: _Graph) -> tuple[int, bool]:
    """(multiply-accumulates, whether they are a depthwise convolution's) of a dense operator."""
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    out = graph.elements(node.output[0]) if node.output[0] else 0
    if node.op_type in ("Conv", "ConvTranspose"):
        weight = graph.shapes.get(node.input[1], ())
        groups = int(attributes.get("group", 1))
        positions = out if node.op_type == "Conv" else graph.elements(node.input[0])
        macs = positions * math.prod(weight[1:])
        return macs, groups > 1 and weight[1:2] == (1,)
    if node.op_type == "Gemm":
        shape = graph.shapes.get(node.input[0], (0, 0))
        return out * (shape[0] if attributes.get("transA") else shape[-1]), False
    if node.op_type == "MatMul":
        return out * graph.shapes.get(node.input[0], (0,))[-1], False
    steps = graph.shapes.get(node.input[0], (0,))  # recurrent: (steps, batch, features)
    weights = graph.elements(node.input[1]) + graph.elements(node.input[2])
    return math.prod(steps[:2]) * weights, False


def count_work(onnx_path: Path) -> GraphWork:
    """Count the work of the graph at `onnx_path` (shapes must be static)."""
    try:
        model = onnx.load(str(onnx_path), load_external_data=False)
    except Exception as error:
        raise UserError(f"{onnx_path} is not an ONNX model: {error}.") from error
    graph = _Graph(model)
    dense: dict[int, int] = {}
    depthwise_macs = 0
    vector_bytes = 0
    for node in graph.nodes:
        if node.op_type in _FREE or all(graph.constant(i) for i in node.input if i):
            continue
        if node.op_type in _DENSE:
            macs, depthwise = _node_macs(node, graph)
            if not depthwise:
                bits = graph.bits(node.input[0])
                dense[bits] = dense.get(bits, 0) + macs
                continue
            depthwise_macs += macs
        # A float tensor lives on the device as fp16.
        width = min(graph.written_bits(node), 16) // 8
        vector_bytes += width * sum(graph.elements(o) for o in node.output if o)
    return GraphWork(dense, depthwise_macs, vector_bytes, _io_bytes(graph))


def _io_bytes(graph: _Graph) -> int:
    total = 0
    for name in [*graph.inputs, *graph.outputs]:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(graph.types[name])
        total += graph.elements(name) * dtype.itemsize
    return total


def device_model_block(onnx_path: Path, soc: Soc, compiled: Compiled) -> dict[str, Any]:
    """The manifest's `device_model` block of one SoC; JSON-ready, times in microseconds."""
    return _block(
        count_work(onnx_path),
        compiled.figures.ddr_total_bytes,
        compiled.context_bin.stat().st_size,
        compiled.info,
        soc,
    )


def context_only_block(
    context_bytes: int, io_bytes: int, info: ContextInfo, soc: Soc
) -> dict[str, Any]:
    """The block of a context whose graph is not known: a lower bound, marked `partial`.

    Its arithmetic cannot be counted, and of DDR traffic only that the weights are read once.
    """
    work = GraphWork({}, 0, 0, io_bytes)
    block = _block(work, context_bytes + io_bytes, context_bytes, info, soc)
    return {**block, "basis": PARTIAL_BASIS, "partial": True}


def _block(
    work: GraphWork, ddr_bytes: int, context_bytes: int, info: ContextInfo, soc: Soc
) -> dict[str, Any]:
    scale = soc.latency_vs_sm8650
    hmx = sum(HMX_US_PER_GMAC[bits] * macs / 1e9 for bits, macs in work.dense_macs.items())
    hvx = HVX_US_PER_MB * work.vector_bytes / 1e6
    ddr = DDR_US_PER_MB * max(0, ddr_bytes - work.io_bytes) / 1e6
    io = IO_US_PER_MB * work.io_bytes / 1e6
    parts = {"fixed": FIXED_US, "hmx": hmx, "hvx": hvx, "weights_ddr": ddr, "io": io}
    latency = {name: round(us * scale, 3) for name, us in parts.items()}
    total = sum(latency.values())
    spill = sum(g.spill_fill_bytes for g in info.graphs)
    return {
        "basis": BASIS,
        "scale_basis": f"x{scale} of SM8650: {soc.ratio_basis} (n = {soc.ratio_n})",
        "soc": {
            "id": soc.id,
            "soc_model": soc.soc_model,
            "arch": soc.arch,
            "vtcm_mb": soc.vtcm_mb,
            "hvx_threads": soc.hvx_threads,
            "ddr_gb_per_s": soc.ddr_gb_per_s,
        },
        "latency_us": {**latency, "total": round(total, 3)},
        "activity": {
            "macs": work.macs,
            "macs_by_activation_bits": {str(b): m for b, m in sorted(work.dense_macs.items())},
            "depthwise_macs": work.depthwise_macs,
            "hmx_share": round(latency["hmx"] / total, 4),
            "hvx_share": round(latency["hvx"] / total, 4),
            "ddr_bytes": ddr_bytes,
        },
        "memory_bytes": RUNTIME_BYTES + context_bytes + spill + work.io_bytes,
        "load_s": {
            "cold": round(
                LOAD_FIXED_S + context_bytes / FLASH_BYTES_PER_S + context_bytes / MAP_BYTES_PER_S,
                6,
            ),
            "warm": round(LOAD_FIXED_S / 2 + context_bytes / MAP_BYTES_PER_S, 6),
        },
    }
