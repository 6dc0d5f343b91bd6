"""The bench itself: build every variant, run it on the device, measure, store.

While the device checks one variant the next one is quantized and compiled; when all are there,
their timed blocks are interleaved in a random order. What is stored is complete at every moment:
a run is `failed`/KILLED until its last transaction says otherwise.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from host import __version__
from host.bench.accuracy import accuracy_pass, beside_the_emulator, evaluation_figures
from host.bench.builder import Builder, BuildFailure, Built
from host.bench.device import DeviceRunner, SegmentDone, missing_blocks
from host.bench.figures import drop_figures, score_arrays, static_figures
from host.bench.passes import run_passes
from host.bench.plan import (
    Conditions,
    Job,
    JobVariant,
    Profile,
    block_order,
    block_segment,
    get_profile,
    new_run_ids,
)
from host.bench.prepare import (
    BenchConfig,
    Prepared,
    PreparedArtifact,
    PreparedModel,
    prepare,
    session_fingerprint,
    skip_reason,
)
from host.bench.records import open_store, record_unopened, run_row
from host.devices import DeviceInfo, DeviceSession, open_device, require_runnable
from host.errors import DeviceError, FailureClass, RunStatus, ToolchainError, UserError
from host.measure import Limits, assess
from host.meters.recorder import MeterRecorder, open_recorder
from host.store import Store, new_session_id
from host.store.rows import DeviceRow, RawBatch, RunRow, SessionRow, Stage
from quant.artifact import Artifact, open_artifact
from quant.build import cached_artifact
from quant.evaluate import Evaluation
from quant.figures import Figure
from quant.htp.soc import get_soc


class BenchEvents(Protocol):
    """What the command line shows while a bench runs."""

    def planned(
        self, session_id: str, info: DeviceInfo, jobs: Sequence[Job], profile: Profile
    ) -> None: ...
    def stage(self, run_id: str, stage: str, seconds: float) -> None: ...
    def segment(self, done: SegmentDone) -> None: ...
    def batch(self, raw: RawBatch) -> None: ...
    def finished(self, run_id: str, status: RunStatus, message: str) -> None: ...


@dataclass(frozen=True)
class BenchOutcome:
    session_id: str
    statuses: dict[str, RunStatus]
    failures: dict[str, tuple[FailureClass, str]]
    artifacts: dict[str, Path]

    @property
    def all_ok(self) -> bool:
        return all(s in (RunStatus.OK, RunStatus.SKIPPED) for s in self.statuses.values())

    @property
    def user_error(self) -> str:
        """When nothing ran and only the user's input is to blame: what to tell them."""
        if any(s is RunStatus.OK for s in self.statuses.values()) or not self.failures:
            return ""
        if any(kind is not FailureClass.USER_ERROR for kind, _ in self.failures.values()):
            return ""
        return "; ".join(dict.fromkeys(message for _, message in self.failures.values()))


def run_bench(config: BenchConfig, events: BenchEvents) -> BenchOutcome:
    """Run a bench. Raises UserError or DeviceError before the first job; later failures are rows.

    KeyboardInterrupt passes through; the children are ended and the database is whole.
    """
    prepared = prepare(config)
    if config.db_path.exists():
        # A database that cannot be written is refused before any device is touched; a new one is
        # not made before there is a device to fill it from.
        Store.open(config.db_path).close()
    try:
        device = open_device(config.target, time_factor=config.time_factor)
    except DeviceError as e:
        record_unopened(config, prepared, e)
        raise
    with ExitStack() as stack:
        stack.enter_context(closing(device))
        meter = None
        if config.meter:
            meter = open_recorder(config.meter, device.info.label, emulated=device.info.emulated)
            stack.enter_context(closing(meter))
        store = stack.enter_context(open_store(config))
        return _Bench(config, prepared, store, device, events, meter).run()


class _Bench:
    """One session. Its state is what must survive from one phase to the next."""

    def __init__(
        self,
        config: BenchConfig,
        prepared: tuple[Prepared, ...],
        store: Store,
        device: DeviceSession,
        events: BenchEvents,
        meter: MeterRecorder | None = None,
    ) -> None:
        self.config = config
        self.meter = meter
        self.prepared = prepared
        self.store = store
        self.device = device
        self.events = events
        self.profile: Profile = get_profile(config.profile, emulated=device.info.emulated)
        self.conditions = Conditions(
            device.info.soc,
            self.profile,
            config.perf_profile,
            config.sample_rate_hz,
            self.profile.cooldown_s
            if config.cooldown_timeout_s is None
            else config.cooldown_timeout_s,
            ceilings=config.ceilings,
            stop_charging=config.stop_charging,
        )
        self.session_id = ""
        self.statuses: dict[str, RunStatus] = {}
        self.failures: dict[str, tuple[FailureClass, str]] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.evaluations: dict[str, Evaluation] = {}  # what the device itself computed

    def run(self) -> BenchOutcome:
        session_id, old_runs = self._session()
        self.session_id = session_id
        jobs = self._jobs(session_id, old_runs)
        self.events.planned(session_id, self.device.info, [job for job, _ in jobs], self.profile)
        for job, _ in jobs:
            if job.skip:
                self._finish(job.run_id, RunStatus.SKIPPED, message=job.skip)
        todo = [(job, p) for job, p in jobs if not job.skip]
        if todo:
            self._run_jobs(session_id, todo)
        self.store.finish_session(session_id)
        return BenchOutcome(
            session_id,
            self.statuses,
            self.failures,
            {run_id: a.path for run_id, a in self.artifacts.items()},
        )

    # Planning ------------------------------------------------------------------------------

    def _session(self) -> tuple[str, dict[tuple[str, str], RunRow]]:
        """A new session, or with --resume the latest like this one and its runs."""
        config, info = self.config, self.device.info
        fingerprint = session_fingerprint(config, self.prepared, self.profile.name)
        if config.resume:
            found = self.store.resumable(fingerprint)
            if found is None:
                raise UserError(
                    f"Nothing to resume in {config.db_path}: no session with the same models, "
                    "task, device, profile and seed.",
                    "Run without --resume.",
                )
            session_id = found.session_id
            runs = {(r.model_name, r.variant): r for r in self.store.runs_of(session_id)}
        else:
            session_id, runs = new_session_id(), {}
            self.store.new_session(
                SessionRow(
                    session_id,
                    fingerprint,
                    info.emulated,
                    self.profile.name,
                    config.seed,
                    command=config.command,
                    host_version=__version__,
                    host_json=json.dumps({"python": sys.version.split()[0]}),
                ),
                allow_mixed=config.db_named,
            )
        self.store.add_device(
            DeviceRow(
                session_id,
                info.serial,
                info.label,
                info.soc,
                info.emulated,
                json.dumps(
                    {
                        "model": info.model,
                        "build": info.build,
                        "os": info.os,
                        "agent_version": info.agent_version,
                        "emulation_basis": info.emulation_basis,
                        **info.fingerprint,
                    }
                ),
            )
        )
        return session_id, runs

    def _jobs(
        self, session_id: str, old: dict[tuple[str, str], RunRow]
    ) -> list[tuple[Job, Prepared]]:
        """Every model x variant not finished yet. Unfinished runs of a resumed session keep
        their id, and with it the blocks that are stored; a sustained one begins again."""
        soc = get_soc(self.device.info.soc)
        jobs = []
        new_ids = new_run_ids(session_id, {row.run_id for row in old.values()})
        for p in self.prepared:
            for variant in p.variants:
                row = old.get((p.identity.name, variant.canonical))
                if row is not None and row.status in (RunStatus.OK, RunStatus.SKIPPED):
                    self.statuses[row.run_id] = row.status
                    continue
                kept = row is not None and row.failure_class is FailureClass.KILLED
                if row is not None and kept and not self.profile.contiguous:
                    run_id = row.run_id
                else:
                    run_id = row.run_id if row is not None else next(new_ids)
                    self._add_run(session_id, run_id, p, variant)
                job = Job(run_id, p.identity.name, variant, skip_reason(variant, soc))
                jobs.append((job, p))
        return jobs

    def _add_run(self, session_id: str, run_id: str, p: Prepared, variant: JobVariant) -> None:
        info = self.device.info
        row = run_row(
            self.config, session_id, run_id, p, variant, self.profile.name, info.label, info
        )
        self.store.add_run(row, [*info.channels, *(self.meter.channels if self.meter else ())])

    # Running -------------------------------------------------------------------------------

    def _run_jobs(self, session_id: str, todo: list[tuple[Job, Prepared]]) -> None:
        stored = {
            job.run_id: {b.block_index for b in self.store.run_data(job.run_id).blocks}
            for job, _ in todo
        }
        runner = DeviceRunner(
            self.device,
            self.store,
            session_id,
            self.events.segment,
            last_time_ns=self.store.last_time_ns(session_id),
            meter=self.meter,
            on_batch=self.events.batch,
        )
        try:
            self._build_and_check(todo, runner)
            self._timed_blocks(runner, stored)
            self._accuracy_passes(todo, runner)
        except DeviceError as e:
            # The device is lost for good: what is not finished has failed with it.
            for job, _ in todo:
                if job.run_id not in self.statuses:
                    message = runner.failures.get(job.run_id)
                    self._fail(
                        job.run_id,
                        message.failure_class if message else e.failure_class,
                        message.message if message else e.message,
                    )
            return
        self._measure([job for job, _ in todo if job.run_id not in self.statuses], runner.notes)

    def _build_and_check(self, todo: list[tuple[Job, Prepared]], runner: DeviceRunner) -> None:
        """Build in a thread, in order; put and check each variant as soon as it is there."""
        results: queue.Queue[tuple[Job, Built | BuildFailure]] = queue.Queue()
        log = self.config.cache_dir / "build.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        builder = Builder(log)

        def build_all() -> None:
            for job, p in todo:
                try:
                    built = self._build(builder, job, p)
                except UserError as e:
                    built = BuildFailure(FailureClass.USER_ERROR, e.message, e.hint)
                except (OSError, RuntimeError, ToolchainError) as e:
                    built = BuildFailure(FailureClass.HARNESS_ERROR, f"The build failed: {e}")
                except Exception as e:  # noqa: BLE001 - without an answer the bench would wait for ever
                    what = f"{type(e).__name__}: {e}"
                    built = BuildFailure(
                        FailureClass.HARNESS_ERROR, f"The build failed inside qhost: {what}"
                    )
                results.put((job, built))

        thread = threading.Thread(target=build_all, name="build", daemon=True)
        thread.start()
        try:
            for _ in todo:
                job, built = results.get()
                self._built(job, built, runner)
        finally:
            builder.close()
            thread.join(timeout=10.0)

    def _build(self, builder: Builder, job: Job, p: Prepared) -> Built | BuildFailure:
        soc = self.device.info.soc
        if isinstance(p, PreparedArtifact):
            p.require(soc)
            return Built(p.artifact.path, True, {})
        request = p.request(self.config, job.variant.canonical, soc, self.device.info.compiler)
        start = time.perf_counter()
        found = cached_artifact(request, p.model, p.task)
        if found is not None:
            seconds = time.perf_counter() - start
            self.events.stage(job.run_id, "cached", seconds)
            return Built(found.path, True, {"cache lookup": seconds})
        return builder.build(
            request, lambda _variant, stage, s: self.events.stage(job.run_id, stage, s)
        )

    def _built(self, job: Job, built: Built | BuildFailure, runner: DeviceRunner) -> None:
        if isinstance(built, BuildFailure):
            text = f"{built.message} {built.hint}".strip()
            self._fail(job.run_id, built.failure_class, text)
            return
        artifact = open_artifact(built.artifact)
        self.artifacts[job.run_id] = artifact
        self.store.add_stages(
            job.run_id,
            [Stage(name, s, built.cached) for name, s in built.stages.items()],
        )
        self.store.set_artifact(job.run_id, artifact.sha256)
        self.store.add_figures(
            job.run_id, static_figures(artifact, self.device.info.soc, self.config.seed)
        )
        for engine, (metric, scores) in score_arrays(artifact).items():
            self.store.add_scores(job.run_id, engine, metric, scores)
        try:
            require_runnable(artifact, self.device.info)
        except UserError as e:
            self._fail(job.run_id, FailureClass.USER_ERROR, f"{e.message} {e.hint}")
            return
        runner.put(artifact)
        run_passes(
            runner,
            self.device,
            job.run_id,
            artifact.sha256,
            self.conditions,
            self.config.output_dir / self.session_id,
            per_op=self.config.per_op,
        )
        self._collect_failures(runner)

    def _timed_blocks(self, runner: DeviceRunner, stored: dict[str, set[int]]) -> None:
        ready = [r for r in self.artifacts if r not in self.statuses]
        profile = self.profile
        order = block_order(ready, profile.blocks, self.config.seed, contiguous=profile.contiguous)
        runner.run(
            [
                block_segment(run_id, self.artifacts[run_id].sha256, index, self.conditions)
                for run_id, index in missing_blocks(order, stored)
            ]
        )
        self._collect_failures(runner)

    def _accuracy_passes(self, todo: list[tuple[Job, Prepared]], runner: DeviceRunner) -> None:
        """With --device-accuracy, after the timed blocks: the pass would warm the device up."""
        if not self.config.device_accuracy:
            return
        for p in self.prepared:
            jobs = [job for job, q in todo if q is p and job.run_id not in self.statuses]
            if jobs and isinstance(p, PreparedModel):
                self.evaluations |= accuracy_pass(
                    p,
                    {job.run_id: self.artifacts[job.run_id] for job in jobs},
                    self.config,
                    self.conditions,
                    runner,
                    self.device.info.numerics,
                    self.events.stage,
                )
        self._collect_failures(runner)

    def _collect_failures(self, runner: DeviceRunner) -> None:
        for run_id, failure in runner.failures.items():
            if run_id not in self.statuses:
                self._fail(run_id, failure.failure_class, failure.message)

    # Ending --------------------------------------------------------------------------------

    def _measure(self, jobs: Iterable[Job], of_runs: Mapping[str, Sequence[str]]) -> None:
        info = self.device.info
        for job in jobs:
            data = self.store.run_data(job.run_id)
            artifact = self.artifacts[job.run_id]
            time_model = artifact.manifest["device_model"].get(info.soc, {})
            limits = Limits(
                self.profile.min_inferences,
                self.profile.min_s,
                allow_throttling=self.profile.contiguous,
                cooldown_failure="; ".join(c.message for c in data.cooldowns if c.timed_out),
                partial_time=info.emulated and bool(time_model.get("partial")),
            )
            result = assess(data, info.provenance, limits)
            baseline = self._baseline(job)
            drops = drop_figures(
                artifact, self.artifacts[baseline] if baseline else None, self.config.seed
            )
            figures, notes = self._device_quality(job.run_id, artifact, baseline)
            self._finish(
                job.run_id,
                result.status,
                message=result.message,
                figures=_latest([*result.figures, *drops, *figures]),
                power_method=result.power_method,
                power_update_hz=result.power_update_hz,
                notes=[*of_runs.get(job.run_id, ()), *map(str, result.warnings), *notes],
            )

    def _device_quality(
        self, run_id: str, artifact: Artifact, baseline: str
    ) -> tuple[list[Figure], list[str]]:
        """Figures and a note of the accuracy pass. An emulated device computes what the HTP
        emulator computed already: its figures count where they rest on more samples."""
        evaluation = self.evaluations.get(run_id)
        if evaluation is None:
            return [], []
        notes = [beside_the_emulator(evaluation, artifact)]
        known = int(artifact.manifest["quality"].get(evaluation.engine.value, {}).get("n", 0))
        if evaluation.n <= known:
            return [], notes
        fp16 = self.evaluations.get(baseline)
        self.store.add_scores(run_id, evaluation.engine, evaluation.metric, evaluation.scores)
        return evaluation_figures(evaluation, artifact, fp16, self.config.seed), notes

    def _baseline(self, job: Job) -> str:
        """The run of the same model's fp16 artifact; empty where it is the job or there is none."""
        for run_id, artifact in self.artifacts.items():
            same = artifact.manifest["model"]["name"] == job.model_name
            if same and artifact.variant == "fp16" and run_id != job.run_id:
                return run_id
        return ""

    def _fail(self, run_id: str, failure_class: FailureClass, message: str) -> None:
        self.failures[run_id] = (failure_class, message)
        self._finish(run_id, RunStatus.FAILED, failure_class=failure_class, message=message)

    def _finish(
        self,
        run_id: str,
        status: RunStatus,
        *,
        failure_class: FailureClass | None = None,
        message: str = "",
        figures: Sequence[Figure] = (),
        power_method: str | None = None,
        power_update_hz: float | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.store.finish_run(
            run_id,
            status,
            failure_class=failure_class,
            message=message,
            figures=figures,
            power_method=power_method,
            power_update_hz=power_update_hz,
            notes=notes,
        )
        self.statuses[run_id] = status
        self.events.finished(run_id, status, message)


def _latest(figures: Sequence[Figure]) -> list[Figure]:
    """Of figures of the same metric and provenance the last."""
    return list({(f.metric, f.provenance): f for f in figures}.values())
