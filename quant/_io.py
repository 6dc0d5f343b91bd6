"""Read and write ONNX files, and bring a graph to the one form the rest of quant works on.

The form: opset 21 or later, static shapes, constants as initializers, functions inlined, types and
shapes on every value.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx import version_converter
from onnx_ir.passes import common

from quant.errors import UserError

OPSET = 21  # first opset with int4 and int16 in QuantizeLinear/DequantizeLinear
OLDEST_OPSET = 11
_BIG_BYTES = 1024  # initializers above this size stay out of the C++ converter and inference
_QDQ_OPS = {"QuantizeLinear", "DequantizeLinear"}
_QUANTIZED_OPS = {
    *_QDQ_OPS,
    "QLinearConv",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
    "DynamicQuantizeLinear",
}


def read_proto(path: Path) -> onnx.ModelProto:
    """The parsed file with its external data. Raises UserError if it is not a usable ONNX file."""
    if not path.exists():
        raise UserError(f"{path} does not exist.", "Check --model-path.")
    if path.is_dir():
        raise UserError(f"{path} is a directory.", "Give the .onnx file inside it.")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty.", "Export the model again.")
    if path.suffix == ".qnn":
        raise UserError(
            f"{path} is an artifact, already quantized and compiled.",
            "Give the .onnx it was made from; qhost inspect shows what it holds.",
        )
    try:
        proto = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not an ONNX model, or it is truncated ({type(error).__name__}).",
            "Give a .onnx file; copy or export it again if it was cut short.",
        ) from error
    if not proto.graph.node and not proto.graph.output:
        raise UserError(
            f"{path} holds no graph.", "Give a .onnx file; copy or export it again if it was cut."
        )
    try:
        onnx.load_external_data_for_model(proto, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"The external data of {path.name} cannot be read: {first}",
            "Keep the data file next to the .onnx file, complete.",
        ) from error
    return proto


def convert_opset(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The model at opset 21 or later. Big weights stay outside the converter's copies."""
    version = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if version >= OPSET:
        return proto
    if version < OLDEST_OPSET:
        raise UserError(
            f"{name} uses opset {version}; the oldest that can be converted is {OLDEST_OPSET}.",
            "Export it again with opset_version=17 or later.",
        )
    kept = {t.name: t for t in proto.graph.initializer if t.ByteSize() > _BIG_BYTES}
    small = onnx.ModelProto()
    small.CopyFrom(_without(proto, kept))
    declared = {i.name for i in small.graph.input}
    for tensor in kept.values():
        if tensor.name not in declared:
            small.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    try:
        converted = version_converter.convert_version(small, OPSET)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"{name} cannot be converted from opset {version} to {OPSET}: {first}",
            f"Export it again with opset_version={OPSET}.",
        ) from error
    inputs = [i for i in converted.graph.input if i.name not in kept]
    del converted.graph.input[:]
    converted.graph.input.extend(inputs)
    converted.graph.initializer.extend(kept.values())
    converted.ir_version = max(converted.ir_version, 10)  # int4 tensors need IR version 10
    return converted


def _without(proto: onnx.ModelProto, kept: Mapping[str, onnx.TensorProto]) -> onnx.ModelProto:
    """A shallow rebuild of the model without the initializers in `kept`."""
    out = onnx.ModelProto(ir_version=max(proto.ir_version, 4), opset_import=proto.opset_import)
    out.functions.extend(proto.functions)
    graph = out.graph
    graph.name = proto.graph.name or "graph"
    graph.node.extend(proto.graph.node)
    graph.input.extend(proto.graph.input)
    graph.output.extend(proto.graph.output)
    graph.value_info.extend(proto.graph.value_info)
    graph.initializer.extend(t for t in proto.graph.initializer if t.name not in kept)
    return out


def to_ir(proto: onnx.ModelProto, name: str) -> ir.Model:
    """The IR graph with constants lifted to initializers, functions inlined, every value named."""
    if proto.graph.sparse_initializer:
        raise UserError(f"{name} has sparse initializers.", "Export it with dense weights.")
    model = ir.from_proto(proto)
    if model.functions:
        model = common.InlinePass()(model).model
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveInitializersFromInputsPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.NameFixPass()(model)
    common.TopologicalSortPass()(model)
    return model


def infer_shapes(model: ir.Model) -> None:
    """Put a type and a shape on every value the ONNX rules can reach (in place)."""
    common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)


def fix_input_shapes(
    model: ir.Model, input_shapes: Mapping[str, tuple[int, ...]], name: str
) -> None:
    """Set the given shapes and refuse whatever stays dynamic (in place)."""
    known = {v.name: v for v in model.graph.inputs}
    for key, shape in input_shapes.items():
        value = known.get(key)
        if value is None:
            listed = ", ".join(str(k) for k in known)
            raise UserError(f"{name} has no input {key!r}.", f"Its inputs: {listed}.")
        old = value.shape
        if old is not None:
            clash = len(old) != len(shape) or any(
                isinstance(a, int) and a != b for a, b in zip(old, shape, strict=True)
            )
            if clash:
                raise UserError(
                    f"Input {key!r} of {name} has shape {_shape_text(old)}, not {list(shape)}.",
                    "Only dynamic dimensions can be set.",
                )
        value.shape = ir.Shape(shape)
    for value in model.graph.inputs:
        shape_now = value.shape
        if shape_now is None or any(not isinstance(d, int) or d <= 0 for d in shape_now):
            dims = "unknown" if shape_now is None else _shape_text(shape_now)
            example = ",".join(
                str(d) if isinstance(d, int) and d > 0 else "1" for d in (shape_now or (1,))
            )
            raise UserError(
                f"Input {value.name!r} of {name} has a dynamic shape {dims}; "
                "the HTP needs static shapes.",
                f"Give it, for example: --input-shape {value.name}:{example}",
            )
    if input_shapes:  # shapes recorded with the old symbols would contradict the new ones
        for node in model.graph.all_nodes():
            for output in node.outputs:
                if not output.is_graph_output():
                    output.shape = None
        for output in model.graph.outputs:
            output.shape = None


def _shape_text(shape: ir.Shape) -> str:
    return "[" + ", ".join(str(d) for d in shape) + "]"


def check_content(model: ir.Model, name: str) -> None:
    """Refuse what would quantize into nonsense: no nodes, NaN or Inf weights, quantized graphs."""
    if not list(model.graph):
        raise UserError(f"{name} has no nodes.", "Export the model again.")
    if not model.graph.inputs or not model.graph.outputs:
        raise UserError(f"{name} has no inputs or no outputs.", "Export the model again.")
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.dtype not in _FLOATS:
            continue
        array = as_float(tensor)
        if not math.isnan(_finite_probe(array)):
            continue
        bad = np.isnan(array) | np.isposinf(array)
        if not bad.any() and _is_mask_constant(value):
            continue  # -inf of an attention mask: clamped before ranges are taken
        count = int((~np.isfinite(array)).sum())
        kind = "NaN" if np.isnan(array).any() else "Inf"
        raise UserError(
            f"Initializer {value.name!r} of {name} holds {count} {kind} value(s).",
            "Fix the checkpoint; quantizing it would give a model that returns garbage.",
        )


def _finite_probe(array: np.ndarray) -> float:
    """NaN if anything in the array is not finite, else 0.0, without a mask array."""
    if array.size == 0:
        return 0.0
    low, high = float(array.min()), float(array.max())
    return 0.0 if math.isfinite(low) and math.isfinite(high) else math.nan


def _is_mask_constant(value: ir.Value) -> bool:
    return all(
        use.node.op_type in {"Add", "Where", "Mul", "Sub", "Max", "Slice", "Unsqueeze", "Expand"}
        for use in value.uses()
    )


_FLOATS = {
    ir.DataType.FLOAT,
    ir.DataType.DOUBLE,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
}


def as_float(tensor: ir.TensorProtocol) -> np.ndarray:
    array = tensor.numpy()
    if array.dtype == ml_dtypes.bfloat16 or array.dtype == np.float16:
        return np.asarray(array, dtype=np.float32)
    return array


def is_quantized(model: ir.Model) -> bool:
    """Whether the graph already holds quantization operators."""
    return any(node.op_type in _QUANTIZED_OPS for node in model.graph.all_nodes())


def content_hash(model: ir.Model) -> str:
    """sha256 over interface, nodes, attributes and weights; not over paths, names of tools, docs.

    Weights are hashed one after the other from their mapped bytes, so that no second copy of the
    model is built.
    """
    digest = hashlib.sha256()

    def put(*parts: object) -> None:
        for part in parts:
            data = part if isinstance(part, bytes) else str(part).encode()
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)

    def put_graph(graph: ir.Graph) -> None:
        for value in (*graph.inputs, *graph.outputs):
            put("io", value.name, value.dtype, value.shape)
        for key in sorted(graph.initializers):
            tensor = graph.initializers[key].const_value
            if tensor is None:
                continue
            put("init", key, tensor.dtype, tuple(tensor.shape), tensor.tobytes())
        for node in graph:
            put("node", node.domain, node.op_type)
            put(*[("" if v is None else v.name) for v in node.inputs])
            put(*[v.name for v in node.outputs])
            for key in sorted(node.attributes):
                attr = node.attributes[key]
                if isinstance(attr, ir.Attr) and attr.type == ir.AttributeType.GRAPH:
                    put("graph", key)
                    put_graph(attr.as_graph())
                else:
                    proto = ir.serde.serialize_attribute(attr)
                    proto.doc_string = ""
                    put("attr", proto.SerializeToString(deterministic=True))

    put(*[f"{k}={v}" for k, v in sorted(model.opset_imports.items())])
    put_graph(model.graph)
    return digest.hexdigest()


def write_model(model: ir.Model, path: Path) -> None:
    """Write one file, or file plus `<name>.data` above 1.5 GB, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = sum(
        v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None
    )
    if size > 1_500_000_000:  # protobuf's limit is 2 GB
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            staged = Path(folder) / path.name
            ir.save(model, staged, external_data=f"{path.name}.data")
            Path(f"{staged}.data").replace(f"{path}.data")
            staged.replace(path)
        return
    data = ir.to_proto(model).SerializeToString(deterministic=True)
    handle, staged_name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(staged_name).chmod(0o644)
        Path(staged_name).replace(path)
    except BaseException:
        Path(staged_name).unlink(missing_ok=True)
        raise
