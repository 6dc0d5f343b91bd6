"""From the command line's words to a checked bench: models and tasks loaded, methods parsed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from host.devices import Target
from host.errors import UserError, unknown_name
from quant.build import BuildRequest
from quant.htp.soc import Soc
from quant.methods.grammar import Variant
from quant.model import Model, load
from quant.task import Task, load_task

THERMAL_SITES = ("npu", "cpu", "gpu", "ddr", "skin", "battery")


@dataclass(frozen=True)
class ModelInput:
    """One --model-path with what belongs to it."""

    path: Path
    task_path: Path | None = None
    model_type: str | None = None
    metric: str | None = None
    note: str = ""


@dataclass(frozen=True)
class BenchConfig:
    """One bench call, every setting resolved."""

    models: tuple[ModelInput, ...]
    variants: tuple[Variant, ...]
    target: Target
    db_path: Path
    db_named: bool  # the user named the database: mixing real and emulated is on purpose
    output_dir: Path
    cache_dir: Path
    profile: str | None = None
    perf_profile: str = "burst"
    emulator_samples: int = 256
    seed: int = 0
    time_factor: float | None = None
    sample_rate_hz: float = 100.0
    cooldown_timeout_s: float = 300.0
    ceilings: tuple[tuple[str, float], ...] = ()
    stop_charging: bool = False
    resume: bool = False
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    command: str = ""


@dataclass(frozen=True)
class Prepared:
    """A model that loads and a task that fits it."""

    source: ModelInput
    model: Model
    task: Task

    def request(self, config: BenchConfig, variant: Variant, soc: str) -> BuildRequest:
        return BuildRequest(
            model_path=self.source.path,
            variant=variant.canonical,
            soc=soc,
            cache_dir=config.cache_dir,
            task_path=self.source.task_path,
            model_type=self.source.model_type,
            metric=self.source.metric,
            input_shapes=config.input_shapes,
            emulator_samples=config.emulator_samples,
        )


def prepare(config: BenchConfig) -> tuple[Prepared, ...]:
    """Load every model and task; UserError for the first that does not fit."""
    out = []
    for source in config.models:
        model = load(source.path, input_shapes=config.input_shapes)
        task = load_task(
            source.task_path, model, model_type=source.model_type, metric=source.metric
        )
        out.append(Prepared(source, model, task))
    names = [p.model.name for p in out]
    if len(set(names)) != len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise UserError(
            f"Two models are called {twice!r}.", "Rename one file: reports tell them apart by it."
        )
    return tuple(out)


def session_fingerprint(config: BenchConfig, prepared: tuple[Prepared, ...], profile: str) -> str:
    """Of all that --resume must find unchanged. Methods are not in it: more may be asked for."""
    whole = {
        "models": [(p.model.fingerprint, p.task.fingerprint) for p in prepared],
        "target": [config.target.emulated_soc, config.target.serial, config.target.soc],
        "profile": profile,
        "perf_profile": config.perf_profile,
        "emulator_samples": config.emulator_samples,
        "seed": config.seed,
        "sample_rate_hz": config.sample_rate_hz,
    }
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def skip_reason(variant: Variant, soc: Soc) -> str:
    """Why a variant cannot run on this SoC; empty when it can."""
    if not soc.fp16 and any(step.method == "fp16" for step in variant.steps):
        return f"{soc.id} (v{soc.arch}) has no fp16 on the HTP."
    return ""


def parse_ceilings(text: str) -> tuple[tuple[str, float], ...]:
    """`npu=95,skin=43` -> (("npu", 95.0), ("skin", 43.0)): degrees C at which a run fails."""
    out = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        site, _, value = part.partition("=")
        if site not in THERMAL_SITES:
            raise unknown_name("thermal site", site, THERMAL_SITES)
        try:
            out.append((site, float(value)))
        except ValueError:
            raise UserError(
                f"--max-temperature {part!r} is not site=degrees.", "Example: npu=95,skin=43."
            ) from None
    return tuple(out)


def parse_input_shapes(texts: list[str]) -> dict[str, tuple[int, ...]]:
    """`name:1,3,224,224` -> {"name": (1, 3, 224, 224)}."""
    out: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, sep, dims = text.rpartition(":")
        try:
            shape = tuple(int(d) for d in dims.split(","))
        except ValueError:
            shape = ()
        if not sep or not name or not shape or min(shape) < 1:
            raise UserError(
                f"--input-shape {text!r} is not name:d1,d2,...", "Example: image:1,3,224,224."
            )
        out[name] = shape
    return out
