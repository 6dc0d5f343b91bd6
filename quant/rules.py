"""What HTP accepts: a checker for QDQ graphs, per operator and SoC.

Two kinds of findings. An `error` would make the strict compile fail, or leave an operator in
float between quantized neighbours. A `warning` compiles but costs accuracy or speed on the device.
The rules come from compiling and running single operators with onnxruntime-qnn 2.7.0 (QAIRT 2.51)
for v68 to v81, not from documentation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from quant.encoding import QuantPlan
from quant.errors import UserError
from quant.graph import array_of, classify, name_of
from quant.model import Model
from quant.planning import seen_encoding

# Operators that the HTP backend of onnxruntime-qnn takes in quantized form.
HTP_OPERATORS = {
    "Abs", "Add", "ArgMax", "ArgMin", "AveragePool", "BatchNormalization", "Cast", "Ceil", "Clip",
    "Concat", "Conv", "ConvTranspose", "Cos", "DepthToSpace", "DequantizeLinear", "Div", "Elu",
    "Equal", "Exp", "Expand", "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Gelu",
    "Gemm", "GlobalAveragePool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "GridSample",
    "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization", "LayerNormalization",
    "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "LpNormalization", "MatMul", "Max",
    "MaxPool", "Mean", "Min", "Mul", "Neg", "Not", "PRelu", "Pad", "Pow", "QuantizeLinear",
    "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Relu", "Reshape", "Resize", "Round",
    "Shape", "Sigmoid", "Sign", "Sin", "Slice", "Softmax", "SpaceToDepth", "Split", "Sqrt",
    "Squeeze", "Sub", "Tanh", "Tile", "TopK", "Transpose", "Unsqueeze", "Upsample", "Where", "And",
    "Or", "ScatterND", "ScatterElements",
}  # fmt: skip

# What QNN's CPU and GPU backends take beyond the operator itself: no 16-bit activations, no int4.
_MOBILE_ACTIVATION_TYPES = {ir.DataType.UINT8}
_ACTIVATION_TYPES = {ir.DataType.UINT8, ir.DataType.UINT16}
_SIGNED_WEIGHTS = {ir.DataType.INT4, ir.DataType.INT8, ir.DataType.INT16}
_UNSIGNED_WEIGHTS = {ir.DataType.UINT8}
_UNQUANTIZED_OK = {"Cast", "Shape", "Constant", "QuantizeLinear", "DequantizeLinear"}
_NARROW_ONLY = {"PRelu"}  # refused with 16-bit activations
TARGETS = ("hexagon", "mobile", "general")


@dataclass(frozen=True)
class Finding:
    """One rule broken by one node."""

    node: str
    op_type: str
    severity: str  # error or warning
    rule: str
    reason: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.op_type} {self.node!r}: {self.reason}"


def check(model: Model, *, arch: int = 75, target: str = "hexagon") -> list[Finding]:
    """Findings of an exported graph for an HTP architecture (68, 69, 73, 75, 79, 81).

    target: hexagon obeys HTP; mobile also what QNN's CPU and GPU backends take; general accepts any
    ONNX QDQ and only checks that the graph is fully quantized.
    """
    findings: list[Finding] = []
    quantized = any(n.op_type == "DequantizeLinear" for n in model.ir.graph)
    for node in model.ir.graph:
        if target != "general":
            findings += _operator(node, arch)
        if not quantized:
            continue
        if node.op_type == "DequantizeLinear":
            if target != "general":
                findings += _weight(node, target)
            continue
        if node.op_type == "QuantizeLinear":
            if target != "general":
                findings += _activation(node, target)
            continue
        findings += _inside_qdq(node)
        if target != "general":
            findings += _wide(node)
            findings += _bias(node)
            findings += _dynamic_matmul(node)
    return findings


def unsupported(model: Model, plan: QuantPlan | None = None, *, arch: int = 75) -> list[Finding]:
    """Nodes of a float or exported graph that HTP cannot run, at all or at the planned widths."""
    findings = [f for node in model.ir.graph for f in _operator(node, arch)]
    for node in model.ir.graph if plan is not None else ():
        source = node.inputs[0] if node.inputs else None
        encoding = None if source is None or plan is None else seen_encoding(plan, source)
        if encoding is not None and encoding.bits == 16:
            findings += _narrow_only(node)
    return findings


def require(model: Model, *, arch: int = 75, target: str = "hexagon") -> None:
    """Raise UserError naming the first error and how many there are."""
    errors = [f for f in check(model, arch=arch, target=target) if f.severity == "error"]
    if errors:
        more = f" ({len(errors) - 1} more)" if len(errors) > 1 else ""
        raise UserError(
            f"HTP v{arch} cannot run {errors[0].op_type} {errors[0].node!r}: "
            f"{errors[0].reason}{more}",
            "Replace the operator in the model, or keep the model in fp16.",
        )


def fully_quantized(model: Model) -> bool:
    """Whether every float tensor between operators carries an encoding."""
    return not any(
        f
        for node in model.ir.graph
        for f in _inside_qdq(node)
        if node.op_type not in _UNQUANTIZED_OK
    )


def _label(node: ir.Node) -> str:
    return node.name or name_of(node.outputs[0])


def _finding(node: ir.Node, severity: str, rule: str, reason: str) -> Finding:
    return Finding(_label(node), node.op_type, severity, rule, reason)


def _operator(node: ir.Node, arch: int) -> Iterator[Finding]:
    if node.domain not in ("", "ai.onnx") or node.op_type not in HTP_OPERATORS:
        yield _finding(node, "error", "operator", "HTP does not have this operator")
    if node.op_type in {"Gemm", "MatMul"} and _single_number(node.inputs[0]):
        reason = "the HTP compiler never finishes on a product with one single number"
        yield _finding(node, "error", "product of one number", reason)
    for value in node.outputs:
        if value.shape is not None and len(value.shape) > 5:
            yield _finding(node, "error", "rank", f"rank {len(value.shape)}; HTP takes up to 5")


def _single_number(value: ir.Value | None) -> bool:
    return value is not None and value.shape is not None and all(d == 1 for d in value.shape)


def _float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.FLOAT


def _inside_qdq(node: ir.Node) -> Iterator[Finding]:
    if node.op_type in _UNQUANTIZED_OK:
        return
    for index, value in enumerate(node.inputs):
        if value is None or not _float(value):
            continue
        if value.is_initializer():
            if classify(node, index)[0] == "parameter":
                continue
            reason = f"operand {value.name!r} is a float constant"
            yield _finding(node, "error", "float operand", reason)
            continue
        producer = value.producer()
        if producer is None or producer.op_type != "DequantizeLinear":
            reason = f"input {value.name!r} has no encoding"
            yield _finding(node, "error", "float operand", reason)
    for value in node.outputs:
        if not _float(value) or not (value.uses() or value.is_graph_output()):
            continue
        readers = {use.node.op_type for use in value.uses()}
        if readers != {"QuantizeLinear"} or value.is_graph_output():
            reason = f"output {value.name!r} has no encoding"
            yield _finding(node, "error", "float result", reason)


def _activation(node: ir.Node, target: str) -> Iterator[Finding]:
    dtype = node.outputs[0].dtype
    allowed = _MOBILE_ACTIVATION_TYPES if target == "mobile" else _ACTIVATION_TYPES
    if dtype not in allowed:
        names = " or ".join(sorted(d.name for d in allowed))
        reason = f"activation type {dtype.name if dtype else 'unknown'}; {target} takes {names}"
        yield _finding(node, "error", "activation type", reason)
    scale = node.inputs[1]
    if scale is None or not scale.is_initializer():
        yield _finding(node, "error", "dynamic scale", "the scale is not a constant")
    elif array_of(scale).size != 1:
        reason = "activations have one scale; fold channel scales into the weights"
        yield _finding(node, "error", "per-channel activation", reason)
    elif not (np.isfinite(array_of(scale)).all() and (array_of(scale) > 0).all()):
        yield _finding(node, "error", "scale", "the scale is not a positive number")


def _weight(node: ir.Node, target: str) -> Iterator[Finding]:
    codes = node.inputs[0]
    if codes is None or not codes.is_initializer() or not node.outputs[0].uses():
        return
    use = next(iter(node.outputs[0].uses()))
    role, axis = classify(use.node, use.idx)
    dtype, op = codes.dtype, use.node.op_type
    scale = array_of(node.inputs[1]) if node.inputs[1] is not None else np.ones(())
    zero = array_of(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    block = node.attributes.get("block_size")
    blocked = block is not None and block.as_int() > 0
    if role == "gamma" and dtype != ir.DataType.UINT8:
        yield _finding(use.node, "error", "gamma type", "gamma must be uint8 beside uint inputs")
    if role != "weight" or dtype is None:
        return
    if target == "mobile" and dtype not in {ir.DataType.INT8, ir.DataType.UINT8}:
        yield _finding(use.node, "error", "weight type", f"{dtype.name} weights are HTP only")
    if blocked:
        if op not in {"MatMul", "Gemm"}:
            reason = "block-wise weights exist for MatMul and Gemm only"
            yield _finding(use.node, "error", "block weights", reason)
        if _input_type(use.node) != ir.DataType.UINT16:
            reason = "block-wise weights need 16-bit activations"
            yield _finding(use.node, "error", "block weights", reason)
        return
    if scale.ndim > 0:  # one channel is per-channel too
        if dtype not in _SIGNED_WEIGHTS or (zero is not None and np.any(zero.astype(np.int64))):
            reason = "per-channel weights must be signed and symmetric"
            yield _finding(use.node, "error", "asymmetric weights", reason)
        given = node.attributes.get("axis")
        rank = 1 if codes.shape is None else len(codes.shape)
        at = (1 if given is None else given.as_int()) % rank
        if axis is not None and at != axis:
            reason = f"scales lie along axis {at}, output channels along {axis}"
            yield _finding(use.node, "error", "channel axis", reason)
    elif dtype == ir.DataType.INT4:
        reason = "per-tensor int4 weights fail for Conv and lose 20 dB for MatMul"
        yield _finding(use.node, "error", "per-tensor int4", reason)
    elif op in {"Conv", "Gemm", "MatMul"} and dtype in _SIGNED_WEIGHTS | _UNSIGNED_WEIGHTS:
        reason = "one scale for all output channels; per-channel is free on HTP"
        yield _finding(use.node, "warning", "per-tensor weights", reason)


def _input_type(node: ir.Node) -> ir.DataType | None:
    source = node.inputs[0]
    producer = None if source is None else source.producer()
    codes = None if producer is None or not producer.inputs else producer.inputs[0]
    return None if codes is None else codes.dtype


def _wide(node: ir.Node) -> Iterator[Finding]:
    if _input_type(node) == ir.DataType.UINT16:
        yield from _narrow_only(node)


def _narrow_only(node: ir.Node) -> Iterator[Finding]:
    if node.op_type in _NARROW_ONLY:
        yield _finding(node, "error", "wide activation", "HTP has it with 8-bit activations only")


def _bias(node: ir.Node) -> Iterator[Finding]:
    """int32 biases must have the scale input x weight (within float32 rounding)."""
    if node.op_type not in {"Conv", "ConvTranspose", "Gemm"} or len(node.inputs) < 3:
        return
    operands = [None if v is None else v.producer() for v in node.inputs[:3]]
    if any(p is None or p.op_type != "DequantizeLinear" for p in operands):
        return
    scales = [array_of(p.inputs[1]) for p in operands if p is not None and p.inputs[1] is not None]
    bias = operands[2]
    assert bias is not None
    if bias.inputs[0] is not None and bias.inputs[0].dtype != ir.DataType.INT32:
        yield _finding(node, "error", "bias type", "the bias is not int32")
    weight = operands[1]
    block = None if weight is None else weight.attributes.get("block_size")
    if block is not None and block.as_int() > 0:
        return
    expected = (scales[0] * scales[1]).reshape(-1)
    found = scales[2].reshape(-1)
    if not np.allclose(expected, found, rtol=1e-5, atol=0.0):
        yield _finding(node, "error", "bias scale", "the bias scale is not input x weight scale")


def _dynamic_matmul(node: ir.Node) -> Iterator[Finding]:
    if node.op_type != "MatMul":
        return
    types: list[ir.DataType | None] = []
    for value in node.inputs:
        producer = None if value is None else value.producer()
        codes = None if producer is None else producer.inputs[0]
        if codes is None or codes.is_initializer():
            return
        types.append(codes.dtype)
    if types == [ir.DataType.UINT16, ir.DataType.UINT16]:
        reason = "QNN may compute a 16 x 16 bit product of activations with one side in 8 bits"
        yield _finding(node, "warning", "demoted product", reason)
