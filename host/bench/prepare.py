"""From the command line's words to a checked bench: models and tasks loaded, methods parsed."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from host.bench.plan import JobVariant
from host.devices import Target
from host.errors import UserError, unknown_name
from quant.artifact import Artifact, open_artifact
from quant.build import BuildRequest
from quant.htp.adopt import adopt_context
from quant.htp.options import RunSettings
from quant.htp.soc import Soc
from quant.methods import METHODS
from quant.methods.grammar import AS_IS, Variant
from quant.metrics import METRICS as TASK_METRICS
from quant.model import Model, load_graph
from quant.task import Task, load_task

AS_IS_NOTE = "already quantized: run as it is; --methods do not apply to it"
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
    perf_profile: str = ""  # empty: as each artifact's run settings say
    emulator_samples: int = 256
    device_accuracy: int = 0  # labelled samples run on the device itself; 0: none
    seed: int = 0
    time_factor: float | None = None
    sample_rate_hz: float = 100.0
    cooldown_timeout_s: float | None = None  # None: the profile's; 0: no gate
    ceilings: tuple[tuple[str, float], ...] = ()
    stop_charging: bool = False
    per_op: bool = False  # cycles per operator, in a pass of their own
    meter: str = ""  # NAME[:key=value,...] of an external one
    resume: bool = False
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    command: str = ""


@dataclass(frozen=True)
class Identity:
    """What a run records of its model and task."""

    name: str
    model_type: str
    fingerprint: str
    task_fingerprint: str
    metric: str
    higher_is_better: bool | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class PreparedModel:
    """A model that loads and a task that fits it: every method makes a variant of it."""

    identity: Identity
    variants: tuple[JobVariant, ...]
    source: ModelInput
    model: Model
    task: Task

    @property
    def perf_profile(self) -> str:
        """What the artifacts built here say (RunSettings' default)."""
        return RunSettings().perf_profile

    def request(self, config: BenchConfig, variant: str, soc: str, backend: str) -> BuildRequest:
        return BuildRequest(
            model_path=self.source.path,
            variant=variant,
            soc=soc,
            cache_dir=config.cache_dir,
            task_path=self.source.task_path,
            model_type=self.source.model_type,
            metric=self.source.metric,
            input_shapes=config.input_shapes,
            emulator_samples=config.emulator_samples,
            backend=backend,
        )


@dataclass(frozen=True)
class PreparedArtifact:
    """A finished .qnn or context: it is run as it is, and is its own only variant."""

    identity: Identity
    variants: tuple[JobVariant, ...]
    artifact: Artifact
    source: ModelInput

    def require(self, soc: str) -> None:
        """Raise UserError where it has no context for `soc`."""
        if soc not in self.artifact.socs:
            raise UserError(
                f"{self.source.path.name} has no context for {soc}, only for "
                f"{', '.join(self.artifact.socs)}.",
                f"Compile the model for {soc}.",
            )

    @property
    def perf_profile(self) -> str:
        return str(self.artifact.manifest["run_settings"]["perf_profile"])


Prepared = PreparedModel | PreparedArtifact


def prepare(config: BenchConfig) -> tuple[Prepared, ...]:
    """Load every model and task, open every artifact; UserError for the first that does not fit."""
    out: list[Prepared] = []
    for source in config.models:
        if source.path.suffix in {".qnn", ".bin"}:
            if config.device_accuracy:
                raise UserError(
                    f"{source.path.name} is finished: it holds no labelled samples to run on the "
                    "device.",
                    "Leave out --device-accuracy, or bench the model it was made from.",
                )
            out.append(_prepare_artifact(source, config.cache_dir))
        else:
            out.append(_prepare_model(source, config))
    return _distinct(out, [source.path for source in config.models])


def _prepare_model(source: ModelInput, config: BenchConfig) -> PreparedModel:
    model, quantized = load_graph(source.path, config.input_shapes)
    task = load_task(source.task_path, model, model_type=source.model_type, metric=source.metric)
    identity = Identity(
        model.name,
        task.model_type,
        model.fingerprint,
        task.fingerprint,
        task.metric.name if task.metric else "agreement",
        task.metric.higher_is_better if task.metric else True,
        (*task.notes, *filter(None, [source.note, AS_IS_NOTE if quantized else ""])),
    )
    variants = tuple(JobVariant.of(v) for v in ([AS_IS] if quantized else config.variants))
    return PreparedModel(identity, variants, source, model, task)


def _prepare_artifact(source: ModelInput, cache_dir: Path) -> PreparedArtifact:
    """A finished .qnn, or a context binary, which becomes one in the cache."""
    if source.task_path is not None or source.metric is not None:
        raise UserError(
            f"{source.path.name} is finished: --task and --metric do not apply to it.",
            "A .qnn carries the accuracy it was built with; a bare context has none.",
        )
    if source.path.suffix == ".bin":
        artifact = adopt_context(source.path, cache_dir, model_type=source.model_type)
    else:
        artifact = open_artifact(source.path)
    with tempfile.TemporaryDirectory(prefix="qhost-contexts-") as temp:
        for soc in artifact.socs:
            artifact.read_context(soc, Path(temp))  # refuses one that belongs to another SoC
    model, task = artifact.manifest["model"], artifact.manifest["task"]
    metric = TASK_METRICS.get(str(task["metric"]))
    options = artifact.manifest["options"]
    identity = Identity(
        str(model["name"]),
        str(model["model_type"]),
        str(model["fingerprint"]),
        str(task["fingerprint"]),
        metric.name if metric else "agreement",
        metric.higher_is_better if metric else True,
        (*task["notes"], f"run from the artifact {source.path.name}"),
    )
    variant = JobVariant(
        artifact.variant,
        tuple(str(step["method"]) for step in options) or (artifact.variant,),
        json.dumps(options, sort_keys=True, separators=(",", ":")),
    )
    return PreparedArtifact(identity, (variant,), artifact, source)


def _distinct(prepared: list[Prepared], paths: list[Path]) -> tuple[Prepared, ...]:
    """Every model x variant once; artifacts of the same variant are told apart by their files."""
    names = [p.identity.name for p in prepared if isinstance(p, PreparedModel)]
    if len(set(names)) != len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise UserError(
            f"Two models are called {twice!r}.", "Rename one file: reports tell them apart by it."
        )
    keys = [(p.identity.name, v.canonical) for p in prepared for v in p.variants]
    out: list[Prepared] = []
    for p, path in zip(prepared, paths, strict=True):
        key = (p.identity.name, p.variants[0].canonical)
        if isinstance(p, PreparedArtifact) and keys.count(key) > 1:
            named = replace(p.variants[0], canonical=f"{p.variants[0].canonical}@{path.stem}")
            p = replace(p, variants=(named,))
        out.append(p)
    return tuple(out)


def session_fingerprint(config: BenchConfig, prepared: tuple[Prepared, ...], profile: str) -> str:
    """Of all that --resume must find unchanged. Methods are not in it: more may be asked for."""
    whole = {
        "models": [
            (p.identity.fingerprint, p.identity.task_fingerprint, type(p).__name__)
            for p in prepared
        ],
        "target": [config.target.emulated_soc, config.target.serial, config.target.soc],
        "profile": profile,
        "perf_profile": config.perf_profile,
        "emulator_samples": config.emulator_samples,
        "device_accuracy": config.device_accuracy,
        "seed": config.seed,
        "sample_rate_hz": config.sample_rate_hz,
    }
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def skip_reason(variant: JobVariant, soc: Soc) -> str:
    """Why a variant cannot run on this SoC or be made on this host; empty when it can."""
    if not soc.fp16 and "fp16" in variant.methods:
        return f"{soc.id} (v{soc.arch}) has no fp16 on the HTP."
    reasons = (METHODS[m].missing() for m in variant.methods if m in METHODS)
    return next((reason for reason in reasons if reason), "")


def parse_ceilings(text: str) -> tuple[tuple[str, float], ...]:
    """`npu=95,skin=43` -> (("npu", 95.0), ("skin", 43.0)): degrees C at which a run fails."""
    out = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        site, _, value = part.partition("=")
        if site not in THERMAL_SITES:
            raise unknown_name("thermal site", site, THERMAL_SITES)
        try:
            degrees = float(value)
        except ValueError:
            degrees = math.nan
        if not math.isfinite(degrees):  # no heat is above NaN: it would be no ceiling at all
            raise UserError(
                f"--max-temperature {part!r} is not site=degrees.", "Example: npu=95,skin=43."
            )
        out.append((site, degrees))
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
