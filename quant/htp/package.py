"""Compile one graph as it is for several SoCs into one artifact: `qhost compile`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from quant.artifact import Artifact, ArtifactContents, write_artifact
from quant.errors import ToolchainError, UserError
from quant.evaluate import SAME_GRAPH, evaluate_outputs, quality_json, run_ort
from quant.figures import Provenance
from quant.htp.compile import Compiled, compile_context
from quant.htp.device_model import device_model_block
from quant.htp.emulator import HtpEmulator
from quant.htp.options import HtpOptions, RunSettings
from quant.htp.soc import Soc
from quant.htp.sparse import compress_weights
from quant.methods import Quantized
from quant.methods.grammar import AS_IS
from quant.model import load_graph, save
from quant.task import load_task

Compiler = Callable[[Path, Soc, HtpOptions, Path], Compiled]

# What an artifact says of a graph that no method of ours made.
AS_IS_FLOAT, AS_IS_QUANTIZED = "fp16", AS_IS.canonical


@dataclass(frozen=True)
class PackageRequest:
    """What to compile. golden_samples: inferences run in the emulator per SoC and stored.

    sparse_weights: the experimental compression of quant.htp.sparse.
    """

    model_path: Path
    output: Path
    socs: tuple[Soc, ...]
    options: HtpOptions = field(default_factory=HtpOptions)
    run_settings: RunSettings = field(default_factory=RunSettings)
    task_path: Path | None = None
    model_type: str | None = None
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    golden_samples: int = 2
    sparse_weights: bool = False


@dataclass(frozen=True)
class SocResult:
    """One SoC of a request. status: ok, skipped (refused, `reason` says why and `hint` what to
    do) or failed (died).

    sqnr_db: of the emulator's outputs against onnxruntime running the same graph.
    """

    soc: Soc
    status: str
    reason: str = ""
    compiled: Compiled | None = None
    sqnr_db: float | None = None
    context_bytes: int = 0
    hint: str = ""


def package(
    request: PackageRequest,
    on_result: Callable[[SocResult], None],
    compiler: Compiler = compile_context,
) -> tuple[Artifact | None, list[SocResult]]:
    """Compile for every SoC, run the goldens, write the artifact.

    A SoC that refuses the graph, or whose compiler dies, is a result of its own and the others go
    on; None instead of an artifact where all fail, and nothing is written then.
    Raises UserError where the model or the task is wrong.
    """
    model, quantized = load_graph(request.model_path, request.input_shapes)
    task = load_task(request.task_path, model, model_type=request.model_type)
    with tempfile.TemporaryDirectory(prefix="qhost-compile-") as temp:
        onnx_path = Path(temp) / "model.onnx"
        save(model, onnx_path)
        count = min(request.golden_samples, len(task))
        feeds = [task.feed(model, i) for i in range(count)]
        reference = run_ort(onnx_path, task, count)
        results: list[SocResult] = []
        outputs: dict[str, list[dict[str, Any]]] = {}
        for soc in request.socs:
            out_dir = Path(temp) / soc.id
            result, soc_outputs = _one(request, soc, onnx_path, out_dir, feeds, reference, compiler)
            results.append(result)
            if result.compiled is not None:
                outputs[soc.id] = soc_outputs
            on_result(result)
        done = {r.soc.id: r.compiled for r in results if r.compiled is not None}
        if not done:
            return None, results
        evaluations = {
            f"htp_emulator:{soc}": evaluate_outputs(task, reference, out, Provenance.HTP_EMULATOR)
            for soc, out in outputs.items()
        }
        contents = ArtifactContents(
            model=model,
            task=task,
            variant=AS_IS_QUANTIZED if quantized else AS_IS_FLOAT,
            options_json="[]",
            model_onnx=onnx_path,
            contexts=done,
            quantized=Quantized(model),
            goldens={soc: (feeds, out) for soc, out in outputs.items()},
            quality={name: quality_json(e, SAME_GRAPH) for name, e in evaluations.items()},
            scores={name: e.scores for name, e in evaluations.items()},
            device_model={
                soc.id: device_model_block(onnx_path, soc, done[soc.id])
                for soc in request.socs
                if soc.id in done
            },
            htp_options=request.options,
            run_settings=request.run_settings,
            notes=_notes(results),
        )
        return write_artifact(request.output, contents), results


def _one(
    request: PackageRequest,
    soc: Soc,
    onnx_path: Path,
    out_dir: Path,
    feeds: Sequence[Mapping[str, Any]],
    reference: Sequence[Mapping[str, Any]],
    compiler: Compiler,
) -> tuple[SocResult, list[dict[str, Any]]]:
    try:
        compiled = compiler(onnx_path, soc, request.options, out_dir)
        if request.sparse_weights:
            compiled = compress_weights(
                onnx_path, soc, compiled, request.options, feeds, out_dir / "sparse"
            )
        with HtpEmulator(compiled.context_onnx, soc=soc) as emulator:
            outputs = emulator.run(feeds)
    except UserError as error:
        return SocResult(soc, "skipped", error.message, hint=error.hint), []
    except ToolchainError as error:
        return SocResult(soc, "failed", str(error)), []
    size = compiled.context_bin.stat().st_size
    return SocResult(soc, "ok", "", compiled, sqnr_db(reference, outputs), size), outputs


def sqnr_db(reference: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> float:
    """Signal to noise over all float outputs of all samples, in dB; inf where they are equal."""
    signal = noise = 0.0
    for want, got in zip(reference, outputs, strict=True):
        for name, array in want.items():
            if array.dtype.kind != "f":
                continue
            exact = array.astype(np.float64)
            signal += float(np.sum(exact**2))
            noise += float(np.sum((exact - got[name].astype(np.float64)) ** 2))
    if noise == 0.0:
        return float("inf")
    return float(10.0 * np.log10(signal / noise)) if signal > 0.0 else float("-inf")


def _notes(results: Sequence[SocResult]) -> tuple[str, ...]:
    return tuple(f"{r.soc.id} {r.status}: {r.reason}" for r in results if r.status != "ok")
