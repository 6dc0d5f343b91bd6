"""Candidates for a better context: compile options and rewrites, tried on the compiler.

In this order: options one at a time (finalization mode, VTCM, shared spill buffer, priority), then
the rewrites of quant.htp.rewrites, then strips where the graph spills, then integer inputs and
outputs where that was asked for; each with the best found so far.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from quant.errors import ToolchainError, UserError, unknown_name
from quant.htp.compile import Compiled, compile_context
from quant.htp.device_model import device_model_block
from quant.htp.integer_io import IoEncoding, integer_io
from quant.htp.options import HtpOptions
from quant.htp.rewrites import REWRITES
from quant.htp.soc import Soc
from quant.htp.strips import split_into_strips

STRIPS = (2, 4, 8, 16, 32)

Compiler = Callable[[Path, Soc, HtpOptions, Path], Compiled]
Outputs = list[dict[str, np.ndarray[Any, Any]]]
_Rewritten = tuple[Path, dict[str, IoEncoding]]


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
    """What may be tried. vtcm: `off` as given, `balanced` also half, `aggressive` also all.

    modes: also the other options (spill buffer, priority). rewrites: those of quant.htp.rewrites.
    integer_io: also integer graph inputs and outputs, which changes the model's interface.
    """

    modes: bool = True
    rewrites: bool = True
    strips: bool = True
    vtcm: str = "aggressive"
    integer_io: bool = False

    def __post_init__(self) -> None:
        if self.vtcm not in ("off", "balanced", "aggressive"):
            raise unknown_name("cache config", self.vtcm, ("off", "balanced", "aggressive"))


@dataclass(frozen=True)
class Candidate:
    """Options, and the rewrites: by name, strips the graph is cut into (1: none), integer I/O."""

    options: HtpOptions
    rewrites: tuple[str, ...] = ()
    strips: int = 1
    integer_io: bool = False

    @property
    def rewritten(self) -> bool:
        return bool(self.rewrites) or self.strips > 1 or self.integer_io

    def describe(self, given: HtpOptions) -> str:
        changes = [
            f"{f.name}={getattr(self.options, f.name)}"
            for f in dataclasses.fields(HtpOptions)
            if getattr(self.options, f.name) != getattr(given, f.name)
        ]
        changes += self.rewrites
        if self.strips > 1:
            changes.append(f"{self.strips} strips")
        if self.integer_io:
            changes.append("integer I/O")
        return ", ".join(changes) or "as given"


@dataclass
class Trial:
    """One candidate: figures per SoC, objective values per (objective, SoC), and its fate.

    encodings: those of inputs and outputs that became integers. outputs: as the context gives
    them.
    """

    candidate: Candidate
    name: str
    onnx_path: Path
    encodings: dict[str, IoEncoding] = field(default_factory=dict)
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


def parse_objectives(text: str) -> tuple[Objective, ...]:
    """Objectives from `memory,power,latency`."""
    names = [n.strip().lower() for n in text.split(",") if n.strip()]
    for name in names:
        if name not in OBJECTIVES:
            raise unknown_name("objective", name, OBJECTIVES)
    if not names:
        raise UserError("No objective was given.", f"Choose from {', '.join(OBJECTIVES)}.")
    return tuple(OBJECTIVES[n] for n in dict.fromkeys(names))


class Search:
    """The trials of one input, on its graph `work`/model.onnx and the options it was given."""

    def __init__(
        self,
        work: Path,
        socs: tuple[Soc, ...],
        objectives: tuple[Objective, ...],
        given: HtpOptions,
        on_trial: Callable[[Trial], None],
        compiler: Compiler = compile_context,
    ) -> None:
        self.work, self.socs, self.objectives = work, socs, objectives
        self.given, self.on_trial, self.compiler = given, on_trial, compiler
        self.trials: list[Trial] = []
        self.models: dict[tuple[tuple[str, ...], int, bool], _Rewritten | None] = {
            ((), 1, False): (work / "model.onnx", {})
        }

    def run(self, space: Space) -> list[Trial]:
        """All trials, the input first. Options are searched first, then strips with the best."""
        self._try(Candidate(self.given), required=True)
        for options in self._options(space):
            self._try(Candidate(options))
        if space.rewrites:
            for name in REWRITES:
                best = self._best().candidate
                self._try(dataclasses.replace(best, rewrites=(*best.rewrites, name)))
        best_trial = self._best()
        if space.strips and any(
            c.figures.spill_bytes + c.figures.fill_bytes for c in best_trial.compiled.values()
        ):
            for strips in STRIPS:
                self._try(dataclasses.replace(best_trial.candidate, strips=strips))
        if space.integer_io:
            self._try(dataclasses.replace(self._best().candidate, integer_io=True))
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
        if space.modes:
            out.append(dataclasses.replace(g, spill_fill_buffer=not g.spill_fill_buffer))
            out.append(
                dataclasses.replace(g, priority="high" if g.priority != "high" else "normal")
            )
        return [o for o in dict.fromkeys(out) if o != g]

    def _best(self) -> Trial:
        baseline = self.trials[0]
        return min((t for t in self.trials if not t.verdict), key=lambda t: t.ratio(baseline))

    def _model(self, candidate: Candidate) -> _Rewritten | None:
        """The rewritten graph and its integer encodings; None where it cannot be rewritten so."""
        key = candidate.rewrites, candidate.strips, candidate.integer_io
        if key not in self.models:
            self.models[key] = self._rewrite(*key)
        return self.models[key]

    def _rewrite(self, rewrites: tuple[str, ...], strips: int, integer: bool) -> _Rewritten | None:
        # Beside the original, where the external weights are found.
        path = self.work / "model.onnx"
        for name in rewrites:
            target = self.work / f"{path.stem}-{name}.onnx"
            if not target.exists() and not REWRITES[name](path, target):
                target.unlink(missing_ok=True)
                return None
            path = target
        if strips == 1 and not integer:
            return path, {}
        model: onnx.ModelProto | None = onnx.load(str(path), load_external_data=False)
        encodings: dict[str, IoEncoding] = {}
        if integer and model is not None:
            found = integer_io(model)
            if found is None:
                return None
            model, encodings = found
        if strips > 1 and model is not None:
            model = split_into_strips(model, strips)
        if model is None:
            return None
        target = self.work / f"{path.stem}-{strips}-{int(integer)}.onnx"
        target.write_bytes(model.SerializeToString(deterministic=True))
        return target, encodings

    def _try(self, candidate: Candidate, *, required: bool = False) -> None:
        rewritten = self._model(candidate)
        if rewritten is None:
            return
        path, encodings = rewritten
        trial = Trial(candidate, candidate.describe(self.given), path, encodings)
        out = self.work / f"trial-{len(self.trials)}"
        try:
            for soc in self.socs:
                compiled = self.compiler(path, soc, candidate.options, out / soc.id)
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
    if trial.candidate.rewrites and _same_for_the_compiler(baseline, trial):
        # Another spelling of the same work must not look faster to the predictor.
        return "no better: the compiler makes the same of it"
    return ""


def _same_for_the_compiler(one: Trial, two: Trial) -> bool:
    return all(
        (a.figures, a.operators) == (b.figures, b.operators)
        for a, b in zip(one.compiled.values(), two.compiled.values(), strict=True)
    )
