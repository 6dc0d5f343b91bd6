"""Take over a context binary that another tool compiled: a `.bin` becomes an artifact.

What a context does not carry stays unknown, and is said to be: the graph it was made from, the
compiler's figures, labels, and the float model's outputs. Its goldens are the HTP emulator's
outputs for synthetic inputs, so a device can still be checked against the emulator.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
from onnx import TensorProto, helper

from quant import cache
from quant.artifact import (
    FORMAT,
    FORMAT_VERSION,
    Artifact,
    download_bytes,
    encodings_json,
    golden_members,
    interface_json,
    json_bytes,
    open_artifact,
    write_members,
)
from quant.errors import UserError
from quant.htp.compile import toolchain_versions
from quant.htp.device_model import context_only_block
from quant.htp.emulator import HtpEmulator
from quant.htp.inspect import ContextGraph, ContextInfo, ContextTensor, read_context
from quant.htp.options import HtpOptions, RunSettings
from quant.htp.soc import Soc, soc_of_model
from quant.methods import Quantized
from quant.methods.grammar import AS_IS
from quant.model import Model
from quant.task import Task, load_task

GOLDEN_SAMPLES = 4
BINARY = "context.bin"
NOTE = "a bare context binary: its accuracy and the compiler's figures are not known"

# Element types of ONNX by what a context stores; quantized tensors go in and out as integers.
_ELEMENTS = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bool": TensorProto.BOOL,
    "int8": TensorProto.INT8,
    "int16": TensorProto.INT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "uint8": TensorProto.UINT8,
    "uint16": TensorProto.UINT16,
    "uint32": TensorProto.UINT32,
    "sfixed8": TensorProto.INT8,
    "sfixed16": TensorProto.INT16,
    "sfixed32": TensorProto.INT32,
    "ufixed8": TensorProto.UINT8,
    "ufixed16": TensorProto.UINT16,
    "ufixed32": TensorProto.UINT32,
}


def adopt_context(path: Path, cache_dir: Path, *, model_type: str | None = None) -> Artifact:
    """The artifact of the context binary at `path`, made below `cache_dir` or found there.

    Raises UserError for a file that is no context binary, one of an unknown SoC, with several
    graphs, or with tensors onnxruntime has no type for; ToolchainError where it does not run.
    """
    info = read_context(path)
    soc = soc_of_model(info.soc_model)
    if soc is None:
        raise UserError(
            f"{path.name} is for soc_model {info.soc_model}, which qhost does not know.",
            "Compile the model for a SoC of `qhost compile`.",
        )
    if len(info.graphs) != 1:
        names = ", ".join(graph.name for graph in info.graphs)
        raise UserError(
            f"{path.name} holds {len(info.graphs)} graphs ({names}); one can be run.",
            "Compile one graph per context.",
        )
    data = path.read_bytes()
    fingerprint = hashlib.sha256(data).hexdigest()
    proto = _wrapper(path, info)
    name = path.stem if path.stem != "context" else path.resolve().parent.name
    model = Model(onnx_ir.serde.deserialize_model(proto), name, fingerprint)
    task = load_task(None, model, model_type=model_type)
    key = cache.key({"context": fingerprint, "name": name, "task": task.model_type})
    target = cache_dir / "artifacts" / f"{key}.qnn"
    if target.exists():
        with contextlib.suppress(UserError):  # damaged: made again
            return open_artifact(target)
    with tempfile.TemporaryDirectory(prefix="qhost-adopt-") as temp:
        binary, wrapper = Path(temp) / BINARY, Path(temp) / "context.onnx"
        binary.write_bytes(data)
        wrapper.write_bytes(proto.SerializeToString(deterministic=True))
        feeds = [task.feed(model, i) for i in range(min(GOLDEN_SAMPLES, len(task)))]
        with HtpEmulator(wrapper, soc=soc) as emulator:
            outputs = emulator.run(feeds)
        members: list[tuple[str, Path | bytes]] = [
            (f"contexts/{soc.id}/context.onnx", wrapper),
            (f"contexts/{soc.id}/{BINARY}", binary),
            ("encodings.json", json_bytes(encodings_json(Quantized(model)))),
            *golden_members(soc.id, feeds, outputs),
            ("report/layers.json", json_bytes([])),
        ]
        target.parent.mkdir(parents=True, exist_ok=True)
        return write_members(target, _manifest(model, task, soc, info, wrapper, binary), members)


def _manifest(
    model: Model, task: Task, soc: Soc, info: ContextInfo, wrapper: Path, binary: Path
) -> dict[str, Any]:
    io_bytes = sum(
        int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize
        for spec in (*model.inputs, *model.outputs)
    )
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model": interface_json(model, task.model_type),
        "task": {
            "name": task.name,
            "fingerprint": task.fingerprint,
            "metric": None,
            "synthetic": True,
            "notes": [NOTE],
        },
        "variant": AS_IS.canonical,
        "options": [],
        "notes": [NOTE],
        "htp_options": dataclasses.asdict(HtpOptions()),
        "run_settings": dataclasses.asdict(RunSettings()),
        "socs": {
            soc.id: {
                "soc_model": info.soc_model,
                "arch": info.arch,
                "context_bytes": binary.stat().st_size,
                "download_bytes": download_bytes(wrapper, binary),
                "figures": {},
                "context": info.to_json(),
                "node_map": {},
                "toolchain": {**toolchain_versions(), "qairt": info.build_id},
            }
        },
        "quality": {},
        "device_model": {soc.id: context_only_block(binary.stat().st_size, io_bytes, info, soc)},
    }


def _wrapper(path: Path, info: ContextInfo) -> onnx.ModelProto:
    """The one-node graph through which onnxruntime loads the context."""
    graph: ContextGraph = info.graphs[0]
    node = helper.make_node(
        "EPContext",
        [t.name for t in graph.inputs],
        [t.name for t in graph.outputs],
        name=graph.name,
        domain="com.microsoft",
        embed_mode=0,
        ep_cache_context=BINARY,
        ep_sdk_version=info.build_id,
        main_context=1,
        max_size=graph.spill_fill_bytes,
        partition_name=graph.name,
        source="QNNExecutionProvider",
    )
    body = helper.make_graph(
        [node],
        graph.name,
        [_value(path, t) for t in graph.inputs],
        [_value(path, t) for t in graph.outputs],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(body, opset_imports=opsets, ir_version=10)


def _value(path: Path, tensor: ContextTensor) -> onnx.ValueInfoProto:
    element = _ELEMENTS.get(tensor.dtype)
    if element is None:
        raise UserError(
            f"{path.name}: {tensor.name!r} is {tensor.dtype}, which cannot be fed.",
            "Compile it with inputs and outputs of 8, 16 or 32 bits.",
        )
    return helper.make_tensor_value_info(tensor.name, element, tensor.shape)
