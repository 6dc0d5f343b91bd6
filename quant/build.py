"""One variant from model to artifact: quantize, evaluate, compile, evaluate in the HTP emulator.

Artifacts are cached by content. `python -P -m quant.build` is the worker that the host runs: one
JSON request per line on stdin, events as JSON lines on stdout.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from quant import cache
from quant.archive import replacing
from quant.artifact import Artifact, ArtifactContents, open_artifact, write_artifact
from quant.datasets import referenced_files
from quant.errors import ToolchainError, UserError
from quant.evaluate import (
    FLOAT,
    SAME_GRAPH,
    Outputs,
    evaluate_outputs,
    quality_json,
    run_ort,
)
from quant.figures import Provenance
from quant.htp.device_model import device_model_block
from quant.htp.emulator import HtpEmulator
from quant.htp.options import HtpOptions
from quant.htp.sdk import backend_identity, choose_compiler
from quant.htp.soc import get_soc
from quant.methods.grammar import AS_IS, Variant, export, parse_variant, quantize
from quant.model import Model, load, load_graph, save
from quant.npz import npz_bytes
from quant.task import Task, load_task
from quant.train import session as training

GOLDEN_SAMPLES = 4
ENDING_S = 5.0  # how long a worker that is told to end may clean up

StageCallback = Callable[[str, float], None]


@dataclass(frozen=True)
class BuildRequest:
    """All that decides an artifact. `variant` in canonical form of the methods grammar."""

    model_path: Path
    variant: str
    soc: str
    cache_dir: Path
    task_path: Path | None = None
    model_type: str | None = None
    metric: str | None = None
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    emulator_samples: int = 256
    htp: HtpOptions = field(default_factory=HtpOptions)
    backend: str = "ort"  # qairt: by the SDK's tools, for a device that runs the SDK's libraries

    def to_json(self) -> dict[str, Any]:
        out = dataclasses.asdict(self)
        for key in ("model_path", "cache_dir", "task_path"):
            out[key] = None if out[key] is None else str(out[key])
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BuildRequest:
        given = dict(data)
        given["model_path"] = Path(given["model_path"])
        given["cache_dir"] = Path(given["cache_dir"])
        given["task_path"] = Path(given["task_path"]) if given["task_path"] else None
        given["input_shapes"] = {k: tuple(v) for k, v in given["input_shapes"].items()}
        given["htp"] = HtpOptions(**given["htp"])
        return cls(**given)


@dataclass(frozen=True)
class BuildResult:
    """The artifact in the cache; seconds per stage of this call (empty when cached)."""

    artifact: Path
    cached: bool
    stages: dict[str, float]


def artifact_path(request: BuildRequest, model: Model, task: Task) -> Path:
    """Where the cache keeps the artifact of this request."""
    variant = parse_variant(request.variant)
    name = cache.key(
        {
            "files": referenced_files([step.options for step in variant.steps]),
            "model": model.fingerprint,
            "name": model.name,
            "task": task.fingerprint,
            "model_type": task.model_type,
            "metric": task.metric.name if task.metric else None,
            "variant": request.variant,
            "soc": request.soc,
            "htp": dataclasses.asdict(request.htp),
            "emulator_samples": request.emulator_samples,
            "backend": backend_identity(request.backend),
        }
    )
    return request.cache_dir / "artifacts" / f"{name}.qnn"


def cached_artifact(request: BuildRequest, model: Model, task: Task) -> Artifact | None:
    """The artifact if it is in the cache and whole; a damaged one is removed."""
    path = artifact_path(request, model, task)
    if not path.exists():
        return None
    try:
        return open_artifact(path)
    except UserError:
        path.unlink(missing_ok=True)
        return None


def build(request: BuildRequest, on_stage: StageCallback) -> BuildResult:
    """Build the artifact, or find it in the cache. on_stage(name, 0.0) begins a stage, ends it
    with its seconds; of a training, on_stage(progress, 0.0) says how far it is. Raises UserError
    for what the user can mend, ToolchainError otherwise."""
    stages: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(name: str) -> Iterator[None]:
        on_stage(name, 0.0)
        start = time.perf_counter()
        yield
        stages[name] = time.perf_counter() - start
        on_stage(name, stages[name])

    with stage("load"):
        if request.variant == AS_IS.canonical:
            model, _ = load_graph(request.model_path, request.input_shapes)
        else:
            model = load(request.model_path, input_shapes=request.input_shapes)
        task = load_task(
            request.task_path, model, model_type=request.model_type, metric=request.metric
        )
    target = artifact_path(request, model, task)
    if cached_artifact(request, model, task) is not None:
        return BuildResult(target, True, {})
    variant = parse_variant(request.variant)
    target.parent.mkdir(parents=True, exist_ok=True)
    progress = training.told(lambda text: on_stage(text, 0.0))
    trained_in = training.Session(request.cache_dir / "training", progress)
    with training.use(trained_in), tempfile.TemporaryDirectory(prefix="qhost-build-") as tmp:
        contents = _build(Path(tmp), request, variant, model, task, stage)
        with stage("package"):
            write_artifact(target, contents)
    return BuildResult(target, False, stages)


def _build(
    tmp: Path,
    request: BuildRequest,
    variant: Variant,
    model: Model,
    task: Task,
    stage: Callable[[str], contextlib.AbstractContextManager[None]],
) -> ArtifactContents:
    soc = get_soc(request.soc)
    with stage("quantize"):
        quantized = quantize(model, task, variant)
        model_onnx = tmp / "model.onnx"
        save(export(quantized), model_onnx)
    with stage("compile"):
        compile_for = choose_compiler(request.backend)
        compiled = compile_for(model_onnx, soc, request.htp, tmp / "compiled")
    with stage("evaluate_ort"):
        ort_outputs = run_ort(model_onnx, task)
        evaluations = {}
        if variant == AS_IS:  # what it was before it was quantized is not known
            reference = ort_outputs
        else:
            reference = float_outputs(request.cache_dir, model, task)
            evaluations["float"] = evaluate_outputs(task, reference, reference, Provenance.ORT_CPU)
        evaluations["ort_cpu"] = evaluate_outputs(task, reference, ort_outputs, Provenance.ORT_CPU)
    with stage("evaluate_htp"):
        n = min(request.emulator_samples, len(task))
        feeds = [task.feed(model, i) for i in range(n)]
        with HtpEmulator(compiled.context_onnx) as emulator:
            htp_outputs = emulator.run(feeds)
        evaluations["htp_emulator"] = evaluate_outputs(
            task, reference[:n], htp_outputs, Provenance.HTP_EMULATOR
        )
    golden = min(GOLDEN_SAMPLES, n)
    return ArtifactContents(
        model=model,
        task=task,
        variant=variant.canonical,
        options_json=variant.options_json,
        model_onnx=model_onnx,
        contexts={soc.id: compiled},
        quantized=quantized,
        goldens={soc.id: (feeds[:golden], htp_outputs[:golden])},
        quality={
            name: quality_json(e, FLOAT if "float" in evaluations else SAME_GRAPH)
            for name, e in evaluations.items()
        },
        scores={name: e.scores for name, e in evaluations.items()},
        device_model={soc.id: device_model_block(model_onnx, soc, compiled)},
        htp_options=request.htp,
    )


def float_outputs(cache_dir: Path, model: Model, task: Task) -> list[Outputs]:
    """Outputs of the float model over the task, computed once for all its variants."""
    parts = {"float_outputs": model.fingerprint, "task": task.fingerprint}
    path = cache_dir / "float" / f"{cache.key(parts)}.npz"
    names = [o.name for o in model.outputs]
    if path.exists():
        try:
            with np.load(path, allow_pickle=False) as data:
                stacked = [data[f"o{k}"] for k in range(len(names))]
            return [{name: stacked[k][i] for k, name in enumerate(names)} for i in range(len(task))]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            path.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="qhost-float-") as tmp:
        onnx_path = Path(tmp) / "float.onnx"
        save(model, onnx_path)
        outputs = run_ort(onnx_path, task)
    stacked = [np.stack([o[name] for o in outputs]) for name in names]
    with replacing(path) as out:
        out.write(npz_bytes({f"o{k}": array for k, array in enumerate(stacked)}))
    return outputs


def _serve() -> None:
    """The worker loop. When stdin ends, so does the worker, whatever it is doing."""
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # a library that prints must not break the protocol
    requests: list[str] = []
    ready = threading.Condition()

    def read() -> None:
        for line in sys.stdin:
            with ready:
                requests.append(line)
                ready.notify()
        # The host is gone: end as if told to, and take along what does not follow.
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ENDING_S)
        os.killpg(os.getpgid(0), signal.SIGKILL)

    if os.getpgid(0) != os.getpid():
        os.setpgid(0, 0)
    threading.Thread(target=read, daemon=True).start()

    def emit(**event: Any) -> None:
        events.write(json.dumps(event) + "\n")

    while True:
        with ready:
            ready.wait_for(lambda: bool(requests))
            request = BuildRequest.from_json(json.loads(requests.pop(0)))
        try:
            result = build(request, lambda s, t: emit(event="stage", stage=s, seconds=t))
            emit(
                event="done",
                artifact=str(result.artifact),
                cached=result.cached,
                stages=result.stages,
            )
        except UserError as e:
            emit(event="error", failure_class="USER_ERROR", message=e.message, hint=e.hint)
        except (ToolchainError, MemoryError, OSError) as e:
            emit(
                event="error",
                failure_class="HARNESS_ERROR",
                message=f"{type(e).__name__}: {e}" if not isinstance(e, ToolchainError) else str(e),
                hint=_space_hint(request.cache_dir),
            )


def _space_hint(cache_dir: Path) -> str:
    probe = cache_dir if cache_dir.exists() else Path.home()
    free = shutil.disk_usage(probe).free
    return f"Only {free / 1e6:.0f} MB are free at {probe}." if free < 500e6 else ""


def _main() -> None:
    """Serve until told to end, and leave no files of a build that was under way then."""

    def end(_number: int, _frame: object) -> None:
        raise SystemExit

    signal.signal(signal.SIGTERM, end)
    try:
        _serve()
    except SystemExit:  # die of the signal all the same: the host tells how a worker ended
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    _main()
