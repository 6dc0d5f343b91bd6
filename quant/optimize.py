"""Search compile options and rewrites for a stated objective, on the compiler's own figures.

Every candidate is compiled for every SoC. One is chosen that is not worse than the input on any
objective of any SoC, and its outputs are compared with the input's in the HTP emulator: bit-equal
where only compile options changed, at least MIN_SQNR_DB where the graph was rewritten. Where no
candidate is better the input itself is the answer.

Not searched, because measured not to move any of these figures: context priority, the shared
spill-fill buffer, and folding, fusing or transposing, which the compile session does anyway.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from quant.archive import digest
from quant.artifact import (
    MANIFEST,
    Artifact,
    RunSettings,
    golden_members,
    model_members,
    soc_entry,
    write_members,
)
from quant.errors import ToolchainError, UserError, unknown_name
from quant.htp.compile import Compiled, compile_context
from quant.htp.device_model import device_model_block
from quant.htp.emulator import HtpEmulator
from quant.htp.options import HtpOptions
from quant.htp.package import sqnr_db
from quant.htp.soc import Soc, get_soc
from quant.htp.strips import split_into_strips

MIN_SQNR_DB = 60.0
STRIPS = (2, 4, 8, 16, 32)

Outputs = list[dict[str, np.ndarray[Any, Any]]]


@dataclass(frozen=True)
class Objective:
    """A figure to make small. `of` gets the graph, the SoC and what the compiler said."""

    name: str
    what: str
    unit: str
    of: Callable[[Path, Soc, Compiled], float]


def _traffic(onnx_path: Path, soc: Soc, compiled: Compiled) -> float:
    return float(compiled.figures.ddr_total_bytes)


def _latency(onnx_path: Path, soc: Soc, compiled: Compiled) -> float:
    return float(device_model_block(onnx_path, soc, compiled)["latency_us"]["total"])


OBJECTIVES: dict[str, Objective] = {
    o.name: o
    for o in (
        Objective("memory", "DDR traffic per inference, the compiler's figure", "bytes", _traffic),
        # Compilation cannot change the arithmetic, only how often DRAM is touched for it.
        Objective("power", "DDR traffic per inference, which costs DRAM energy", "bytes", _traffic),
        Objective("latency", "latency predicted from the compiler's figures", "us", _latency),
    )
}


@dataclass(frozen=True)
class Space:
    """What may be tried. vtcm: `off` as given, `balanced` also half, `aggressive` also all."""

    modes: bool = True
    strips: bool = True
    vtcm: str = "aggressive"

    def __post_init__(self) -> None:
        if self.vtcm not in ("off", "balanced", "aggressive"):
            raise unknown_name("cache config", self.vtcm, ("off", "balanced", "aggressive"))


@dataclass(frozen=True)
class Candidate:
    """Options, and how many strips the graph is cut into (1: not rewritten)."""

    options: HtpOptions
    strips: int = 1

    def describe(self, given: HtpOptions) -> str:
        changes = [
            f"{f.name}={getattr(self.options, f.name)}"
            for f in dataclasses.fields(HtpOptions)
            if getattr(self.options, f.name) != getattr(given, f.name)
        ]
        if self.strips > 1:
            changes.append(f"{self.strips} strips")
        return ", ".join(changes) or "as given"


@dataclass
class Trial:
    """One candidate: figures per SoC, objective values per (objective, SoC), and its fate."""

    candidate: Candidate
    name: str
    onnx_path: Path
    compiled: dict[str, Compiled] = field(default_factory=dict)
    values: dict[tuple[str, str], float] = field(default_factory=dict)
    context_bytes: int = 0
    verdict: str = ""
    outputs: dict[str, Outputs] = field(default_factory=dict)

    def ratio(self, baseline: Trial) -> float:
        """Mean of the objective values over those of the baseline."""
        ratios = [v / max(baseline.values[key], 1e-9) for key, v in self.values.items()]
        return sum(ratios) / len(ratios)

    def to_json(self) -> dict[str, Any]:
        return {
            "candidate": self.name,
            "verdict": self.verdict,
            "figures": {s: dataclasses.asdict(c.figures) for s, c in self.compiled.items()},
            "values": {f"{o}:{s}": v for (o, s), v in self.values.items()},
        }


@dataclass(frozen=True)
class Optimized:
    """The result: `artifact` is the chosen trial's; `why` says in a sentence what was chosen."""

    artifact: Artifact
    baseline: Trial
    chosen: Trial
    trials: tuple[Trial, ...]
    why: str


def parse_objectives(text: str) -> tuple[Objective, ...]:
    """Objectives from `memory,power,latency`."""
    names = [n.strip().lower() for n in text.split(",") if n.strip()]
    for name in names:
        if name not in OBJECTIVES:
            raise unknown_name("objective", name, OBJECTIVES)
    if not names:
        raise UserError("No objective was given.", f"Choose from {', '.join(OBJECTIVES)}.")
    return tuple(OBJECTIVES[n] for n in dict.fromkeys(names))


def optimize_artifact(
    artifact: Artifact,
    output: Path,
    objectives: Sequence[Objective],
    *,
    socs: Sequence[Soc] = (),
    space: Space = Space(),
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
            "Optimize first, then compile the result with --htp-sparse-compression.",
        )
    goldens = artifact.goldens(artifact.socs[0])
    if not goldens:
        raise UserError(f"{artifact.path} holds no golden inputs.", "Compile the model again.")
    feeds = [inputs for inputs, _ in goldens]
    with tempfile.TemporaryDirectory(prefix="qhost-optimize-") as temp:
        names = [n for n in artifact.members if "/" not in n and n != MANIFEST]
        artifact.extract_members(Path(temp), names)
        search = _Search(Path(temp), targets, tuple(objectives), given, on_trial)
        trials = search.run(space)
        baseline = trials[0]
        _reuse_goldens(artifact, baseline)
        chosen = _choose(baseline, trials, feeds)
        why = explain(baseline, chosen, objectives)
        settings = run_settings or RunSettings(**artifact.manifest["run_settings"])
        written = _write(artifact, output, chosen, trials, objectives, why, settings, feeds)
    return Optimized(written, baseline, chosen, tuple(trials), why)


def _reuse_goldens(artifact: Artifact, baseline: Trial) -> None:
    """Take the stored outputs where the input's contexts are the ones just compiled again."""
    outputs: dict[str, Outputs] = {}
    for soc, compiled in baseline.compiled.items():
        member = artifact.members.get(f"contexts/{soc}/context.bin")
        if member is None or digest(compiled.context_bin)[2] != member.sha256:
            return
        outputs[soc] = [out for _, out in artifact.goldens(soc)]
    baseline.outputs = outputs


class _Search:
    def __init__(
        self,
        work: Path,
        socs: tuple[Soc, ...],
        objectives: tuple[Objective, ...],
        given: HtpOptions,
        on_trial: Callable[[Trial], None],
    ) -> None:
        self.work, self.socs, self.objectives = work, socs, objectives
        self.given, self.on_trial = given, on_trial
        self.trials: list[Trial] = []
        self.strip_models: dict[int, Path | None] = {1: work / "model.onnx"}

    def run(self, space: Space) -> list[Trial]:
        """All trials, the input first. Options are searched first, then strips with the best."""
        self._try(Candidate(self.given), required=True)
        for options in self._options(space):
            self._try(Candidate(options))
        best = self._best()
        if space.strips and any(
            c.figures.spill_bytes + c.figures.fill_bytes for c in best.compiled.values()
        ):
            for strips in STRIPS:
                self._try(Candidate(best.candidate.options, strips))
        return self.trials

    def _options(self, space: Space) -> list[HtpOptions]:
        g = self.given
        out = []
        if space.modes:
            out += [dataclasses.replace(g, finalization_mode=m) for m in range(4)]
        smallest = min(s.vtcm_mb for s in self.socs)
        vtcm = {"off": [], "balanced": [smallest // 2], "aggressive": [0, smallest]}[space.vtcm]
        for mode in (
            dict.fromkeys((g.finalization_mode, 0)) if space.modes else (g.finalization_mode,)
        ):
            out += [dataclasses.replace(g, finalization_mode=mode, vtcm_mb=v) for v in vtcm]
        return [o for o in dict.fromkeys(out) if o != g]

    def _best(self) -> Trial:
        baseline = self.trials[0]
        return min((t for t in self.trials if not t.verdict), key=lambda t: t.ratio(baseline))

    def _model(self, strips: int) -> Path | None:
        if strips not in self.strip_models:
            source = self.work / "model.onnx"
            split = split_into_strips(onnx.load(str(source), load_external_data=False), strips)
            path = None
            if split is not None:
                # Beside the original, where the external weights are found.
                path = self.work / f"strips-{strips}.onnx"
                path.write_bytes(split.SerializeToString(deterministic=True))
            self.strip_models[strips] = path
        return self.strip_models[strips]

    def _try(self, candidate: Candidate, *, required: bool = False) -> None:
        path = self._model(candidate.strips)
        if path is None:
            return
        trial = Trial(candidate, candidate.describe(self.given), path)
        out = self.work / f"trial-{len(self.trials)}"
        try:
            for soc in self.socs:
                compiled = compile_context(path, soc, candidate.options, out / soc.id)
                trial.compiled[soc.id] = compiled
                trial.context_bytes += compiled.context_bin.stat().st_size
                for objective in self.objectives:
                    value = objective.of(path, soc, compiled)
                    trial.values[objective.name, soc.id] = value
        except (UserError, ToolchainError) as error:
            if required:
                raise
            trial.verdict = f"refused: {error}"
        if self.trials and not trial.verdict:
            trial.verdict = _worse(self.trials[0], trial)
        if trial.verdict:
            shutil.rmtree(out, ignore_errors=True)  # its contexts are not needed any more
        self.trials.append(trial)
        self.on_trial(trial)


def _worse(baseline: Trial, trial: Trial) -> str:
    for (objective, soc), value in trial.values.items():
        if value > baseline.values[objective, soc]:
            return f"worse in {objective} on {soc}"
    if trial.ratio(baseline) >= 1.0:
        return "no better"
    return ""


def _choose(baseline: Trial, trials: Sequence[Trial], feeds: Outputs) -> Trial:
    """The best trial whose outputs agree with the baseline's."""
    open_trials = [t for t in trials if t is not baseline and not t.verdict]
    # Among equals the smaller rewrite and the smaller context win.
    open_trials.sort(key=lambda t: (t.ratio(baseline), t.candidate.strips, t.context_bytes))
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
    worst = float("inf")
    for soc, outputs in trial.outputs.items():
        worst = min(worst, sqnr_db(baseline.outputs[soc], outputs))
    if _equal(baseline.outputs, trial.outputs):
        return "chosen: outputs bit-equal to the input's"
    if trial.candidate.strips == 1:
        return f"outputs differ from the input's ({worst:.1f} dB)"
    if worst < MIN_SQNR_DB:
        return f"outputs are only {worst:.1f} dB from the input's"
    return f"chosen: outputs {worst:.1f} dB from the input's"


def _run(trial: Trial, feeds: Outputs) -> dict[str, Outputs]:
    outputs = {}
    for soc, compiled in trial.compiled.items():
        with HtpEmulator(compiled.context_onnx) as emulator:
            outputs[soc] = emulator.run(feeds)
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
        members += golden_members(soc, feeds, chosen.outputs[soc])
    members += [(n, artifact.read(n)) for n in ("report/layers.json", "quality/scores.npz")]
    manifest = {
        **artifact.manifest,
        "htp_options": dataclasses.asdict(chosen.candidate.options),
        "run_settings": dataclasses.asdict(settings),
        "socs": {soc: soc_entry(c) for soc, c in sorted(chosen.compiled.items())},
        "device_model": {
            soc: device_model_block(model_onnx, get_soc(soc), c)
            for soc, c in chosen.compiled.items()
        },
        "optimization": {
            "objectives": {o.name: o.what for o in objectives},
            "why": why,
            "trials": [t.to_json() for t in trials],
        },
    }
    return write_members(output, manifest, members)
