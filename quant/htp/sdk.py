"""Compile with the user's QAIRT SDK, for devices that run the libraries of that SDK.

    qairt-converter               ONNX and quantization overrides -> DLC
    qnn-context-binary-generator  DLC and back-end extension JSON -> context binary

Command lines and files follow Qualcomm's public documentation. They are tested against stand-in
executables that check them; no real SDK was at hand when this was written.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from quant.errors import ToolchainError, UserError, unknown_name
from quant.htp.compile import (
    COMPILE_TIMEOUT_S,
    Compiled,
    check_precision,
    compile_context,
    died,
    read_log,
)
from quant.htp.inspect import ContextInfo, ContextTensor, read_context
from quant.htp.options import HtpOptions
from quant.htp.overrides import float_graph_and_overrides
from quant.htp.soc import Soc

BACKENDS = ("auto", "ort", "qairt")
SDK_VARIABLE = "QAIRT_SDK_ROOT"
SDK_BACKEND = "qairt-sdk"  # what an artifact's toolchain says of such a context

_HOST = "x86_64-linux-clang"
_CONVERTER, _GENERATOR = "qairt-converter", "qnn-context-binary-generator"
_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "ufixed8": TensorProto.UINT8,
    "sfixed8": TensorProto.INT8,
    "ufixed16": TensorProto.UINT16,
    "sfixed16": TensorProto.INT16,
    "bool": TensorProto.BOOL,
}


def choose_compiler(name: str) -> Callable[[Path, Soc, HtpOptions, Path], Compiled]:
    """The compiler of `--backend`. `auto`: the SDK where QAIRT_SDK_ROOT is set."""
    if name not in BACKENDS:
        raise unknown_name("back end", name, BACKENDS)
    if name == "ort" or (name == "auto" and not os.environ.get(SDK_VARIABLE)):
        return compile_context
    return compile_with_sdk


def backend_identity(name: str) -> str:
    """What tells one compiler of `--backend` from another in a cache: the SDK by its generator."""
    if choose_compiler(name) is compile_context:
        return "ort"
    with (find_sdk() / "bin" / _HOST / _GENERATOR).open("rb") as tool:
        return hashlib.file_digest(tool, "sha256").hexdigest()


def find_sdk() -> Path:
    """The SDK's root. Raises UserError where QAIRT_SDK_ROOT is unset or not an SDK."""
    root = os.environ.get(SDK_VARIABLE, "")
    if not root:
        raise UserError(f"{SDK_VARIABLE} is not set.", "Point it at an unpacked QAIRT SDK.")
    for tool in (_CONVERTER, _GENERATOR):
        if not os.access(Path(root) / "bin" / _HOST / tool, os.X_OK):
            raise UserError(
                f"{root} is not a QAIRT SDK for this host: bin/{_HOST}/{tool} is missing.",
                f"Point {SDK_VARIABLE} at the directory that holds bin and lib.",
            )
    return Path(root)


def compile_with_sdk(onnx_path: Path, soc: Soc, options: HtpOptions, out_dir: Path) -> Compiled:
    """As compile_context, with the tools of QAIRT_SDK_ROOT.

    Raises UserError where a tool refuses the graph (its last error line is the reason) and
    ToolchainError where one dies or writes something it was not asked for.
    """
    options.check(soc)
    check_precision(onnx_path, soc)
    sdk = find_sdk()
    start = time.monotonic()
    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".compile-", dir=out_dir) as temp:
        work = Path(temp)
        model = onnx.load(str(onnx_path))
        float_model, overrides = float_graph_and_overrides(model)
        onnx.save(float_model, str(work / "model.onnx"))
        convert = [
            *("--input_network", str(work / "model.onnx")),
            *("--output_path", str(work / "model.dlc")),
            *("--target_backend", "HTP"),
            "--preserve_io_datatype",
        ]
        if overrides["activation_encodings"] or overrides["param_encodings"]:
            (work / "overrides.json").write_text(json.dumps(overrides, indent=1))
            convert += ["--quantization_overrides", str(work / "overrides.json")]
        _run(sdk, _CONVERTER, convert, work, onnx_path.name)
        config = write_config(sdk, soc, options, "model", work)
        log = _run(
            sdk,
            _GENERATOR,
            [
                *("--dlc_path", str(work / "model.dlc")),
                *("--backend", str(sdk / "lib" / _HOST / "libQnnHtp.so")),
                *("--config_file", str(config)),
                *("--binary_file", "context"),
                *("--output_dir", str(work / "out")),
                *("--log_level", "verbose"),
            ],
            work,
            onnx_path.name,
        )
        binary = work / "out" / "context.bin"
        if not binary.is_file():
            raise ToolchainError(f"{_GENERATOR} ended well but wrote no context.bin.")
        info = read_context(binary)
        if (info.soc_model, info.arch) != (soc.soc_model, soc.arch):
            raise ToolchainError(
                f"{_GENERATOR} was asked for soc_model {soc.soc_model}, v{soc.arch} and wrote "
                f"soc_model {info.soc_model}, v{info.arch}."
            )
        (work / "context.onnx").write_bytes(wrapper(info, model).SerializeToString())
        figures, stages = read_log(log)
        binary.replace(out_dir / "context.bin")
        (work / "context.onnx").replace(out_dir / "context.onnx")
    return Compiled(
        context_onnx=out_dir / "context.onnx",
        context_bin=out_dir / "context.bin",
        figures=figures,
        info=info,
        seconds=time.monotonic() - start,
        toolchain={"backend": SDK_BACKEND, "qairt": info.build_id},
        stage_us=stages,
    )


def write_config(sdk: Path, soc: Soc, options: HtpOptions, graph: str, work: Path) -> Path:
    """The two JSON files of the HTP back-end extension; the path of the outer one."""
    for name in ("bf16", "extended_udma", "monolithic_lstm", "fp16_clamp_overflow"):
        if getattr(options, name):
            raise UserError(
                f"{name} has no known name in the SDK's configuration files.",
                "Compile with --backend ort, or leave it out.",
            )
    if options.spill_fill_buffer:
        raise UserError(
            "spill_fill_buffer belongs to loading several contexts with the SDK's tools.",
            "Compile with --backend ort, or leave it out.",
        )
    graph_config: dict[str, Any] = {
        "graph_names": [graph],
        "vtcm_mb": options.vtcm_mb or soc.vtcm_mb,
    }
    if options.finalization_mode:
        graph_config["O"] = options.finalization_mode
    if soc.fp16:
        graph_config["fp16_relaxed_precision"] = 1
    htp = {
        "graphs": [graph_config],
        "devices": [
            {"soc_model": soc.soc_model, "dsp_arch": f"v{soc.arch}", "pd_session": "unsigned"}
        ],
    }
    (work / "htp.json").write_text(json.dumps(htp, indent=1))
    outer: dict[str, Any] = {
        "backend_extensions": {
            "shared_library_path": str(sdk / "lib" / _HOST / "libQnnHtpNetRunExtensions.so"),
            "config_file_path": str(work / "htp.json"),
        }
    }
    if options.priority != "normal":
        outer["context_configs"] = {"context_priority": options.priority}
    (work / "extensions.json").write_text(json.dumps(outer, indent=1))
    return work / "extensions.json"


def wrapper(info: ContextInfo, model: onnx.ModelProto) -> onnx.ModelProto:
    """The EPContext model through which onnxruntime loads a context.bin beside it.

    Raises ToolchainError where the context's inputs and outputs are not those of `model`.
    """
    if len(info.graphs) != 1:
        raise ToolchainError(f"The context holds {len(info.graphs)} graphs, not one.")
    graph = info.graphs[0]
    names = {i.name for i in model.graph.initializer}
    inputs = [i.name for i in model.graph.input if i.name not in names]
    outputs = [o.name for o in model.graph.output]
    _same_names("inputs", inputs, graph.inputs)
    _same_names("outputs", outputs, graph.outputs)
    node = helper.make_node(
        "EPContext",
        inputs,
        outputs,
        name=graph.name,
        domain="com.microsoft",
        embed_mode=0,
        ep_cache_context="context.bin",
        ep_sdk_version=info.build_id,
        main_context=1,
        max_size=graph.spill_fill_bytes,
        partition_name=graph.name,
        source="QNNExecutionProvider",
    )
    return helper.make_model(
        helper.make_graph(
            [node], graph.name, _values(inputs, graph.inputs), _values(outputs, graph.outputs)
        ),
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )


def _same_names(what: str, want: list[str], have: tuple[ContextTensor, ...]) -> None:
    if sorted(want) != sorted(t.name for t in have):
        raise ToolchainError(
            f"The context's {what} are {', '.join(t.name for t in have)}, "
            f"the model's {', '.join(want)}."
        )


def _values(names: list[str], tensors: tuple[ContextTensor, ...]) -> list[onnx.ValueInfoProto]:
    by_name: Mapping[str, ContextTensor] = {t.name: t for t in tensors}
    return [
        helper.make_tensor_value_info(n, _TYPES[by_name[n].dtype], by_name[n].shape) for n in names
    ]


def _run(sdk: Path, tool: str, args: list[str], work: Path, subject: str) -> bytes:
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(sdk / "lib" / _HOST),
        "PYTHONPATH": str(sdk / "lib" / "python"),
        "PATH": f"{sdk / 'bin' / _HOST}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    try:
        done = subprocess.run(
            [str(sdk / "bin" / _HOST / tool), *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=work,
            env=environment,
            timeout=COMPILE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ToolchainError(f"{tool} did not end within {COMPILE_TIMEOUT_S:.0f} s.") from error
    except OSError as error:
        raise ToolchainError(f"{tool} cannot be started: {error.strerror}.") from error
    if done.returncode == 0:
        return done.stdout
    lines = [s for s in done.stdout.decode(errors="replace").splitlines() if s.strip()]
    errors = [s for s in lines if "ERROR" in s.upper()] or lines
    said = f": {errors[-1].strip()[:400]}" if errors else ""
    if done.returncode < 0:
        raise ToolchainError(f"{tool} {died(done.returncode)} on {subject}{said}")
    raise UserError(
        f"{tool} refuses {subject}{said}", "See the SDK's documentation of that message."
    )
