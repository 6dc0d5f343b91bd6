"""Search compile options and rewrites for a stated objective, on the compiler's own figures.

Every candidate is compiled for every SoC (quant.htp.search). One is chosen that is not worse than
the input on any objective of any SoC, and its outputs are compared with the input's in the HTP
emulator: bit-equal where only compile options changed, at least MIN_SQNR_DB where the graph was
rewritten. Where no candidate is better the input itself is the answer.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quant.archive import digest
from quant.artifact import (
    MANIFEST,
    Artifact,
    golden_members,
    model_members,
    soc_entry,
    write_members,
)
from quant.errors import UserError
from quant.htp.compile import compile_context
from quant.htp.device_model import device_model_block
from quant.htp.emulator import HtpEmulator
from quant.htp.integer_io import convert
from quant.htp.options import HtpOptions, RunSettings
from quant.htp.package import sqnr_db
from quant.htp.sdk import SDK_BACKEND, compile_with_sdk
from quant.htp.search import Compiler, Objective, Outputs, Search, Space, Trial
from quant.htp.soc import Soc, get_soc

MIN_SQNR_DB = 60.0


@dataclass(frozen=True)
class Optimized:
    """The result: `artifact` is the chosen trial's; `why` says in a sentence what was chosen."""

    artifact: Artifact
    baseline: Trial
    chosen: Trial
    trials: tuple[Trial, ...]
    why: str


def optimize_artifact(
    artifact: Artifact,
    output: Path,
    objectives: Sequence[Objective],
    *,
    socs: Sequence[Soc] = (),
    space: Space | None = None,
    run_settings: RunSettings | None = None,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> Optimized:
    """Write to `output` the best artifact found; `socs` defaults to those of the input.

    Raises UserError where the input holds no golden inputs, or does not compile as it is.
    """
    targets = tuple(socs) or tuple(get_soc(s) for s in artifact.socs)
    given = HtpOptions.parse(artifact.manifest["htp_options"])
    if any("sparse_weights" in artifact.soc(s)["toolchain"] for s in artifact.socs):
        raise UserError(
            f"{artifact.path} holds contexts with sparse weight compression, which the search "
            "cannot keep.",
            "Give an artifact that was compiled without --htp-sparse-compression.",
        )
    goldens = artifact.goldens(artifact.socs[0])
    if not goldens:
        raise UserError(f"{artifact.path} holds no golden inputs.", "Compile the model again.")
    feeds = [inputs for inputs, _ in goldens]
    with tempfile.TemporaryDirectory(prefix="qhost-optimize-") as temp:
        names = [n for n in artifact.members if "/" not in n and n != MANIFEST]
        artifact.extract_members(Path(temp), names)
        search = Search(
            Path(temp), targets, tuple(objectives), given, on_trial, compiler_of(artifact)
        )
        trials = search.run(space or Space())
        baseline = trials[0]
        _reuse_goldens(artifact, baseline)
        chosen = _choose(baseline, trials, feeds)
        why = explain(baseline, chosen, objectives)
        settings = run_settings or RunSettings.from_json(artifact.manifest["run_settings"])
        written = _write(artifact, output, chosen, trials, objectives, why, settings, feeds)
    return Optimized(written, baseline, chosen, tuple(trials), why)


def compiler_of(artifact: Artifact) -> Compiler:
    """What compiled the artifact, for candidates that run where it runs: a device's runtime
    refuses contexts of a newer toolchain."""
    if any(artifact.soc(s)["toolchain"].get("backend") == SDK_BACKEND for s in artifact.socs):
        return compile_with_sdk
    return compile_context


def _reuse_goldens(artifact: Artifact, baseline: Trial) -> None:
    """Take the stored outputs where the input's contexts are the ones just compiled again."""
    outputs: dict[str, Outputs] = {}
    for soc, compiled in baseline.compiled.items():
        member = artifact.members.get(f"contexts/{soc}/context.bin")
        if member is None or digest(compiled.context_bin)[2] != member.sha256:
            return
        outputs[soc] = [out for _, out in artifact.goldens(soc)]
    baseline.outputs = outputs


def _choose(baseline: Trial, trials: Sequence[Trial], feeds: Outputs) -> Trial:
    """The best trial whose outputs agree with the baseline's."""
    open_trials = [t for t in trials if t is not baseline and not t.verdict]
    # Among equals the smaller rewrite and the smaller context win.
    open_trials.sort(
        key=lambda t: (
            t.ratio(baseline),
            t.candidate.rewritten,
            t.candidate.strips,
            t.context_bytes,
        )
    )
    for trial in open_trials:
        trial.verdict = _compare(baseline, trial, feeds)
        if trial.verdict.startswith("chosen"):
            for other in open_trials:
                other.verdict = other.verdict or "better than the input, not the best"
            baseline.verdict = "the input"
            return trial
    if not baseline.outputs:
        baseline.outputs = _run(baseline, feeds)
    baseline.verdict = "chosen: nothing was better"
    return baseline


def _compare(baseline: Trial, trial: Trial, feeds: Outputs) -> str:
    if not baseline.outputs:
        baseline.outputs = _run(baseline, feeds)
    trial.outputs = _run(trial, feeds)
    floats = {
        soc: [convert(o, trial.encodings, to="float") for o in outputs]
        for soc, outputs in trial.outputs.items()
    }
    if _equal(baseline.outputs, floats):
        return "chosen: outputs bit-equal to the input's"
    worst = min(sqnr_db(baseline.outputs[soc], outputs) for soc, outputs in floats.items())
    if not trial.candidate.rewritten:
        return f"outputs differ from the input's ({worst:.1f} dB)"
    if worst < MIN_SQNR_DB:
        return f"outputs are only {worst:.1f} dB from the input's"
    return f"chosen: outputs {worst:.1f} dB from the input's"


def _run(trial: Trial, feeds: Outputs) -> dict[str, Outputs]:
    converted = [convert(feed, trial.encodings, to="integer") for feed in feeds]
    outputs = {}
    for soc, compiled in trial.compiled.items():
        with HtpEmulator(compiled.context_onnx) as emulator:
            outputs[soc] = emulator.run(converted)
    return outputs


def _equal(one: Mapping[str, Outputs], two: Mapping[str, Outputs]) -> bool:
    return all(
        np.array_equal(a[name], b[name])
        for soc in one
        for a, b in zip(one[soc], two[soc], strict=True)
        for name in a
    )


def explain(baseline: Trial, chosen: Trial, objectives: Sequence[Objective]) -> str:
    """What was chosen and why, in a sentence."""
    if chosen is baseline:
        return "The input was kept: no candidate was better without being worse elsewhere."
    parts = []
    for objective in objectives:
        for soc in chosen.compiled:
            before, after = baseline.values[objective.name, soc], chosen.values[objective.name, soc]
            parts.append(
                f"{objective.name} on {soc} {before:,.0f} -> {after:,.0f} {objective.unit} "
                f"({100.0 * (after / before - 1.0):+.1f} %)"
            )
    return f"Chosen: {chosen.name}. {'; '.join(parts)}. {chosen.verdict.partition(': ')[2]}."


def _write(
    artifact: Artifact,
    output: Path,
    chosen: Trial,
    trials: Sequence[Trial],
    objectives: Sequence[Objective],
    why: str,
    settings: RunSettings,
    feeds: Outputs,
) -> Artifact:
    """The input's artifact with another graph, other contexts and goldens."""
    model_onnx = chosen.onnx_path
    staged = model_onnx.parent / "chosen" / "model.onnx"
    staged.parent.mkdir()
    shutil.copyfile(model_onnx, staged)
    for name, _ in model_members(model_onnx)[1:]:
        (staged.parent / name).parent.mkdir(parents=True, exist_ok=True)
        (staged.parent / name).hardlink_to(model_onnx.parent / name)
    members = model_members(staged)
    for soc in sorted(chosen.compiled):
        compiled = chosen.compiled[soc]
        members.append((f"contexts/{soc}/context.onnx", compiled.context_onnx))
        members.append((f"contexts/{soc}/context.bin", compiled.context_bin))
    members.append(("encodings.json", artifact.read("encodings.json")))
    for soc in sorted(chosen.compiled):
        stored = [convert(feed, chosen.encodings, to="integer") for feed in feeds]
        members += golden_members(soc, stored, chosen.outputs[soc])
    members += [(n, artifact.read(n)) for n in ("report/layers.json", "quality/scores.npz")]
    model = dict(artifact.manifest["model"])
    for key in ("inputs", "outputs"):
        model[key] = [
            {**t, "dtype": chosen.encodings[t["name"]].dtype}
            if t["name"] in chosen.encodings
            else t
            for t in model[key]
        ]
    encodings = {
        **artifact.manifest.get("io_encodings", {}),
        **{name: dataclasses.asdict(e) for name, e in chosen.encodings.items()},
    }
    manifest = {
        **artifact.manifest,
        "model": model,
        "io_encodings": encodings,
        "htp_options": dataclasses.asdict(chosen.candidate.options),
        "run_settings": dataclasses.asdict(settings),
        "socs": {soc: soc_entry(c) for soc, c in sorted(chosen.compiled.items())},
        "device_model": {
            soc: device_model_block(model_onnx, get_soc(soc), c)
            for soc, c in chosen.compiled.items()
        },
        "notes": _notes(artifact.manifest["notes"], chosen, why),
        "optimization": {
            "objectives": {o.name: o.what for o in objectives},
            "why": why,
            "trials": [t.to_json() for t in trials],
        },
    }
    return write_members(output, manifest, members)


def _notes(given: Sequence[str], chosen: Trial, why: str) -> list[str]:
    notes = [*given, f"optimized: {why}"]
    if chosen.candidate.rewritten:
        notes.append("quality was evaluated before the graph was rewritten")
    return notes
