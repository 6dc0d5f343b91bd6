"""Compile an ONNX graph into an HTP context binary, in a process of its own, strictly."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx

from quant.errors import ToolchainError, UserError
from quant.htp._worker import CONTEXT_NAME, MODEL_NAME, TRACE_DIR
from quant.htp.inspect import ContextInfo, read_context
from quant.htp.options import HtpOptions
from quant.htp.soc import Soc

COMPILE_TIMEOUT_S = 1800.0

# The compiler writes a few bytes of uninitialised memory into some contexts (seen with a
# transformer for a part with 2 MB of VTCM). With this, glibc hands out zeroed memory, so that two
# compiles are byte-identical.
_ZEROED_MEMORY = {"MALLOC_PERTURB_": "255"}

_FIGURE = re.compile(rb"\b(spill|fill|write_total|read_total)_bytes=(\d+)")
_STAGE = re.compile(rb"Completed stage: (.+?) \((\d+) us\)")
_LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_LOG_ERROR = re.compile(rb"\[[EF]:onnxruntime:[^\]]*\] *(.+)")


@dataclass(frozen=True)
class CompilerFigures:
    """The compiler's own DDR summary, bytes per inference, summed over the context's graphs."""

    ddr_read_bytes: int
    ddr_write_bytes: int
    spill_bytes: int
    fill_bytes: int

    @property
    def ddr_total_bytes(self) -> int:
        return self.ddr_read_bytes + self.ddr_write_bytes


@dataclass(frozen=True)
class Unsupported:
    """A node the HTP refuses, and why, in the toolchain's words."""

    node: str
    op_type: str
    reason: str


@dataclass(frozen=True)
class Compiled:
    """A context and what was learned while making it.

    stage_us: compile time by stage (host time); node_map: ONNX node -> QNN operators made of it;
    operators: QNN operators of the whole graph.
    `seconds` and `stage_us` differ between two builds, everything else does not.
    """

    context_onnx: Path
    context_bin: Path
    figures: CompilerFigures
    info: ContextInfo
    seconds: float
    toolchain: dict[str, str]
    stage_us: dict[str, int] = field(default_factory=dict)
    node_map: dict[str, tuple[str, ...]] = field(default_factory=dict)
    operators: int = 0


@cache
def _versions() -> tuple[tuple[str, str], ...]:
    return tuple((n, metadata.version(n)) for n in ("onnxruntime", "onnxruntime-qnn"))


def toolchain_versions() -> dict[str, str]:
    """Versions of the packages that decide what a context binary looks like."""
    return dict(_versions())


def worker_environment() -> dict[str, str]:
    return {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}


def worker_command(*args: str, module: str = "quant.htp._worker") -> list[str]:
    return [sys.executable, "-P", "-m", module, *args]


def died(returncode: int) -> str:
    """How a process ended, in words."""
    if returncode < 0:
        try:
            return f"was killed by {signal.Signals(-returncode).name}"
        except ValueError:
            return f"was killed by signal {-returncode}"
    return f"ended with exit code {returncode}"


def compile_context(
    onnx_path: Path,
    soc: Soc,
    options: HtpOptions,
    out_dir: Path,
    *,
    timeout_s: float = COMPILE_TIMEOUT_S,
) -> Compiled:
    """Compile `onnx_path` for `soc` into out_dir/context.onnx and out_dir/context.bin.

    Strict: every node must run on the HTP. The two files depend on the model's content, the SoC,
    the options and the toolchain, on nothing else.

    Raises UserError naming node, operator and reason where the HTP refuses the graph, and
    ToolchainError where the compiler dies, hangs, or writes something it was not asked for.
    """
    options.check(soc)
    check_precision(onnx_path, soc)
    start = time.monotonic()
    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".compile-", dir=out_dir) as temp:
        work = Path(temp)
        answer, log = run_compiler(onnx_path, soc, options, work, timeout_s)
        if not answer["ok"]:
            raise refusal(soc, str(answer["error"]), work, log)
        wrapper, binaries = work / CONTEXT_NAME, list(work.glob("*.bin"))
        if not wrapper.exists() or len(binaries) != 1:
            raise ToolchainError(
                f"The HTP compiler wrote {len(binaries)} context binaries for {soc.id}, not one."
            )
        info = read_context(binaries[0])
        if (info.soc_model, info.arch) != (soc.soc_model, soc.arch):
            raise ToolchainError(
                f"The HTP compiler was asked for {soc.id} (soc_model {soc.soc_model}, "
                f"v{soc.arch}) and wrote soc_model {info.soc_model}, v{info.arch}."
            )
        _rename_binary(wrapper, "context.bin")
        figures, stages = read_log(log)
        mappings = _op_mappings(_read_trace(work))
        binaries[0].replace(out_dir / "context.bin")
        wrapper.replace(out_dir / "context.onnx")
    return Compiled(
        context_onnx=out_dir / "context.onnx",
        context_bin=out_dir / "context.bin",
        figures=figures,
        info=info,
        seconds=time.monotonic() - start,
        toolchain={**toolchain_versions(), "qairt": info.build_id},
        stage_us=stages,
        node_map=_read_node_map(mappings),
        operators=len(mappings),
    )


def unsupported_nodes(onnx_path: Path, soc: Soc, options: HtpOptions) -> tuple[Unsupported, ...]:
    """The nodes of `onnx_path` that the HTP of `soc` refuses; empty where it compiles.

    Raises UserError where the graph as a whole is refused and no node is to blame.
    """
    options.check(soc)
    check_precision(onnx_path, soc)
    with tempfile.TemporaryDirectory(prefix="qhost-fallback-") as temp:
        work = Path(temp)
        answer, log = run_compiler(onnx_path, soc, options, work, COMPILE_TIMEOUT_S)
        rows = _read_unsupported(_read_trace(work))
        if not answer["ok"] and not rows:
            raise refusal(soc, str(answer["error"]), work, log)
        return rows


def check_precision(onnx_path: Path, soc: Soc) -> None:
    """Raise UserError for a float model or a float layer on a part without fp16."""
    if soc.fp16:
        return
    model = onnx.load(str(onnx_path), load_external_data=False)
    if not any(n.op_type == "DequantizeLinear" for n in model.graph.node):
        raise UserError(
            f"{onnx_path.name} is a float model, and the HTP of {soc.id} has no fp16.",
            "Quantize it (int8), or choose another device.",
        )
    restored = {o for n in model.graph.node if n.op_type == "DequantizeLinear" for o in n.output}
    for node in model.graph.node:
        if node.op_type in _LAYERS and not restored & set(node.input[1:2]):
            constants = {i.name for i in model.graph.initializer}
            if constants & set(node.input[1:2]):
                raise UserError(
                    f"{onnx_path.name} computes {node.output[0]!r} ({node.op_type}) in fp16, "
                    f"and the HTP of {soc.id} has no fp16.",
                    "Give that part or layer int8, or choose another device.",
                )


def run_compiler(
    onnx_path: Path,
    soc: Soc,
    options: HtpOptions,
    work: Path,
    timeout_s: float,
    extra: Mapping[str, str] | None = None,
) -> tuple[dict[str, Any], bytes]:
    """Compile in the directory `work`, with `extra` provider options; the answer and the log."""
    stage_model(onnx_path, work)
    request = {
        "soc_model": soc.soc_model,
        "options": {**options.provider_options(), **(extra or {})},
    }
    subject = f"{onnx_path.name} for {soc.id}"
    return run_worker(worker_command("compile"), request, work, subject, timeout_s)


def run_worker(
    command: list[str], request: dict[str, Any], work: Path, subject: str, timeout_s: float
) -> tuple[dict[str, Any], bytes]:
    """Hand `request` to a compiler process in the directory `work`; its answer and its log.

    Raises ToolchainError where the process dies or does not end in time.
    """
    log_path = work / "log"
    with log_path.open("wb") as log:
        try:
            done = subprocess.run(
                command,
                input=json.dumps(request).encode(),
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=work,
                env={**worker_environment(), **_ZEROED_MEMORY},
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ToolchainError(
                f"The HTP compiler did not finish {subject} within {timeout_s:.0f} s "
                "and was stopped."
            ) from error
    text = log_path.read_bytes()
    if done.returncode != 0:
        raise ToolchainError(
            f"The HTP compiler {died(done.returncode)} while compiling {subject}."
            f"{_last_words(text)}"
        )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer, text


def external_data_files(onnx_path: Path) -> tuple[str, ...]:
    """Names of the files beside `onnx_path` that hold its external tensors.

    Raises UserError for a file that is not ONNX and for a location outside its directory.
    """
    try:
        model = onnx.load(str(onnx_path), load_external_data=False)
    except Exception as error:
        raise UserError(f"{onnx_path} is not an ONNX model: {error}.") from error
    names: dict[str, None] = {}
    for tensor in _all_tensors(model.graph):
        for entry in tensor.external_data:
            if entry.key == "location":
                names[entry.value] = None
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{onnx_path} keeps weights outside its directory: {name!r}.")
    return tuple(sorted(names))


def _all_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("g"):
                yield from _all_tensors(attribute.g)


def stage_model(onnx_path: Path, work: Path) -> None:
    """Bring the model into the compiler's directory under a fixed name; nothing is copied twice."""
    _link(onnx_path, work / MODEL_NAME)
    for name in external_data_files(onnx_path):
        _link(onnx_path.parent / name, work / name)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(source.resolve())
    except FileNotFoundError as error:
        raise UserError(f"{source} does not exist.") from error
    except OSError:  # another file system
        shutil.copyfile(source, target)


def _last_words(log: bytes) -> str:
    errors = _LOG_ERROR.findall(log)
    if errors:
        return " It said last: " + str(errors[-1], errors="replace")[:300]
    lines = log.strip().splitlines()
    # A Python traceback ends with the exception; the verbose log's last line says nothing.
    if lines and b"Error" in lines[-1]:
        return " It said last: " + str(lines[-1], errors="replace")[:300]
    return ""


def read_log(log: bytes) -> tuple[CompilerFigures, dict[str, int]]:
    """The DDR summary and the microseconds per stage in the compiler's verbose log."""
    totals = {b"spill": 0, b"fill": 0, b"write_total": 0, b"read_total": 0}
    found = _FIGURE.findall(log)
    if not found:
        raise ToolchainError("The HTP compiler printed no DDR summary; its log has changed.")
    for name, value in found:
        totals[name] += int(value)
    stages: dict[str, int] = {}
    for name, microseconds in _STAGE.findall(log):
        key = name.decode(errors="replace")
        stages[key] = stages.get(key, 0) + int(microseconds)
    figures = CompilerFigures(
        ddr_read_bytes=totals[b"read_total"],
        ddr_write_bytes=totals[b"write_total"],
        spill_bytes=totals[b"spill"],
        fill_bytes=totals[b"fill"],
    )
    return figures, stages


def _read_trace(work: Path) -> Mapping[str, Any]:
    path = work / TRACE_DIR / "qnn_op_trace.json"
    if not path.exists():
        return {}
    trace: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return trace


def _read_unsupported(trace: Mapping[str, Any]) -> tuple[Unsupported, ...]:
    out = []
    for row in trace.get("unsupported_nodes", ()):
        node, op = str(row.get("node_name", "")), str(row.get("op_type", ""))
        reason = " ".join(str(row.get("reason", "")).split())
        # The trace glues "<node> will not be assigned" onto the reason; the table says it already.
        reason = re.sub(rf"\s*\.?\s*{re.escape(op)} node `[^`]*` will not be.*$", "", reason)
        out.append(Unsupported(node, op, reason.rstrip(".")))
    return tuple(out)


def _op_mappings(trace: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """One entry per QNN operator: its type, and the ONNX nodes it was made of."""
    return [m for g in trace.get("subgraph_traces", ()) for m in g.get("op_mappings", ())]


def _read_node_map(mappings: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    nodes: dict[str, list[str]] = {}
    for mapping in mappings:
        for source in mapping.get("sources", ()):
            if source.get("type") == "OP":
                nodes.setdefault(str(source["name"]), []).append(mapping["dst_qnn_op_type"])
    return {name: tuple(ops) for name, ops in nodes.items()}


def refusal(soc: Soc, error: str, work: Path, log: bytes) -> UserError:
    """The error for a graph that did not compile: the refused node, or the log's reason."""
    refused = _read_unsupported(_read_trace(work))
    if refused:
        first = refused[0]
        others = len(refused) - 1
        more = f" (and {others} more node{'s' if others > 1 else ''})" if others else ""
        return UserError(
            f"The HTP of {soc.id} refuses node {first.node!r} ({first.op_type}){more}: "
            f"{first.reason.rstrip('.')}.",
            "Replace the operator; `qhost inspect --fallback MODEL.onnx` lists every such node.",
        )
    said = [e.decode(errors="replace") for e in _LOG_ERROR.findall(log)]
    reason = next((s for s in said if "QNN" in s or "Qnn" in s), "") or (said[-1] if said else "")
    text = " ".join((reason or error).split())[:400]
    return UserError(
        f"The HTP compiler refuses the graph for {soc.id}: {text.rstrip('.')}.",
        "Check that the model loads in onnxruntime and that its operators are quantized.",
    )


def _rename_binary(wrapper: Path, name: str) -> None:
    """Point the EPContext wrapper at `name` beside it."""
    model = onnx.load(str(wrapper), load_external_data=False)
    foreign = {n.op_type for n in model.graph.node} - {"EPContext"}
    if foreign:
        raise ToolchainError(
            f"The HTP compiler left {', '.join(sorted(foreign))} outside the context."
        )
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "ep_cache_context":
                attribute.s = name.encode()
    wrapper.write_bytes(model.SerializeToString(deterministic=True))
