"""`qhost bench`: the main job."""

from __future__ import annotations

import shlex
import shutil
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from host.errors import ExitCode, RunStatus, UserError

if TYPE_CHECKING:
    from host.bench.device import SegmentDone
    from host.bench.plan import Job
    from host.bench.prepare import BenchConfig, ModelInput
    from host.bench.run import BenchOutcome
    from host.devices import DeviceInfo
    from host.report.data import SessionReport

STAGES = ("load", "quantize", "compile", "evaluate_ort", "evaluate_htp", "package")


class Progress:
    """The stage table on stderr: live on a terminal, a line per event elsewhere.

    Called from the build thread and from the main one.
    """

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self._lock = threading.Lock()
        self._jobs: dict[str, str] = {}
        self._cells: dict[str, dict[str, str]] = {}
        self._seconds: dict[str, float] = {}
        self._lookup_s = 0.0
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=4, transient=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def planned(self, session_id: str, info: DeviceInfo, jobs: Sequence[Job]) -> None:
        kind = f"EMULATED device: {info.emulation_basis}" if info.emulated else info.model
        self.console.print(f"Session {session_id} on {info.label} ({kind})", highlight=False)
        several = len({job.model_name for job in jobs}) > 1
        for job in jobs:
            model = f"{job.model_name} " if several else ""
            self._jobs[job.run_id] = model + job.variant.canonical
            self._cells[job.run_id] = {"state": f"skipped: {job.skip}" if job.skip else "waiting"}
        self._show(f"{len(jobs)} jobs: " + ", ".join(j.variant.canonical for j in jobs))

    def stage(self, run_id: str, stage: str, seconds: float) -> None:
        with self._lock:
            cells = self._cells.setdefault(run_id, {})
            if stage == "cached":
                cells["state"] = "cached"
                cells.update(dict.fromkeys(STAGES, "cached"))
                self._lookup_s += seconds
            elif seconds == 0.0:
                cells["state"] = f"{stage} ..."
                return self._update()
            else:
                cells[stage] = f"{seconds:.1f} s"
                self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds
                cells["state"] = "built"
        return self._show(f"{self._jobs.get(run_id, run_id)}: {stage} {cells.get(stage, '')}")

    def segment(self, done: SegmentDone) -> None:
        run_id = done.spec.run_id
        with self._lock:
            if done.failure:
                text = f"failed: {done.failure}"
            elif done.spec.kind == "check":
                text = "checked on the device"
            elif done.spec.kind == "evaluate":
                text = "evaluated on the device"
            else:
                text = f"block {done.spec.block_index + 1} measured"
            self._cells.setdefault(run_id, {})["state"] = text
        self._show(f"{self._jobs.get(run_id, run_id)}: {text}")

    def finished(self, run_id: str, status: RunStatus, message: str) -> None:
        with self._lock:
            self._cells.setdefault(run_id, {})["state"] = status.value
        tail = f": {message}" if message else ""
        self._show(f"{self._jobs.get(run_id, run_id)}: {status.value}{tail}")

    def table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("job", overflow="fold")
        for stage in STAGES:
            table.add_column(stage.replace("_", " "), justify="right")
        table.add_column("state", overflow="fold")
        for run_id, name in self._jobs.items():
            cells = self._cells[run_id]
            table.add_row(name, *(cells.get(s, "") for s in STAGES), cells["state"])
        totals = [f"{self._seconds.get(s, 0.0):.1f} s" for s in STAGES]
        lookups = f"cache lookups {self._lookup_s:.2f} s" if self._lookup_s else ""
        table.add_row("total", *totals, lookups, style="bold")
        return table

    def _update(self) -> None:
        if self._live is not None:
            self._live.update(self.table())

    def _show(self, line: str) -> None:
        if self._live is not None:
            self._update()
        else:
            self.console.print(line, highlight=False, soft_wrap=True)


def register(app: typer.Typer) -> None:
    @app.command("bench")
    def bench(
        model_path: Annotated[
            list[Path] | None,
            typer.Option(
                help="Model (.onnx, .pt2, .pt) or artifact (.qnn); repeatable. "
                "Without it: the shipped sample."
            ),
        ] = None,
        task: Annotated[
            list[Path] | None,
            typer.Option(help="Task file .npz; none, or one per --model-path in the same order."),
        ] = None,
        model_type: Annotated[
            str | None,
            typer.Option(help="text, vision, audio, text_generation or multimodal."),
        ] = None,
        metric: Annotated[
            str | None, typer.Option(help="Accuracy metric; default: by the labels.")
        ] = None,
        device: Annotated[
            str | None,
            typer.Option(help="Serial, SoC id (sm8650: any idle device of it) or emulated:<soc>."),
        ] = None,
        methods: Annotated[
            str | None,
            typer.Option(help="all, or e.g. fp16,int8,int4[block_size=32],hybrid+qat."),
        ] = None,
        mock: Annotated[
            bool | None,
            typer.Option("--mock", help="Run on emulated:<soc of --device>, without adb."),
        ] = None,
        profile: Annotated[
            str | None,
            typer.Option(help="rapid (default with --mock), quick, normal (default), sustained."),
        ] = None,
        perf_profile: Annotated[
            str | None, typer.Option(help="The HTP's performance profile (the artifact's: burst).")
        ] = None,
        db_path: Annotated[
            Path | None,
            typer.Option(help="DuckDB file; default qhost.duckdb, with --mock qhost-mock.duckdb."),
        ] = None,
        output_dir: Annotated[
            Path | None, typer.Option(help="Where the report and artifacts go (qhost-out).")
        ] = None,
        resume: Annotated[
            bool, typer.Option("--resume", help="Do only what the last such session lacks.")
        ] = False,
        emulator_samples: Annotated[
            int | None,
            typer.Option(min=1, help="Labelled samples run in the HTP emulator (256)."),
        ] = None,
        device_accuracy: Annotated[
            int | None,
            typer.Option(
                min=0,
                metavar="N",
                help="Also run N labelled samples on the device: accuracy measured there.",
            ),
        ] = None,
        input_shape: Annotated[
            list[str] | None,
            typer.Option(help="Fix a dynamic input: name:1,3,224,224; repeatable."),
        ] = None,
        seed: Annotated[
            int | None, typer.Option(help="Seed of the block order and of resampling (0).")
        ] = None,
        time_factor: Annotated[
            float | None,
            typer.Option(help="Device seconds per wall second of an emulated device."),
        ] = None,
        cooldown_timeout: Annotated[
            float | None,
            typer.Option(min=0.0, help="Device seconds to wait for cooling before a block (300)."),
        ] = None,
        max_temperature: Annotated[
            str | None, typer.Option(help="Degrees C at which a run fails: npu=95,skin=43.")
        ] = None,
        stop_charging: Annotated[
            bool | None,
            typer.Option("--stop-charging", help="Cut the charger while measuring; restored."),
        ] = None,
        meter: Annotated[
            str | None,
            typer.Option(help="External power meter: NAME[:key=value,...], e.g. stream:port=7100."),
        ] = None,
        json_output: Annotated[
            bool, typer.Option("--json", help="Results as JSON on stdout, and nothing else.")
        ] = False,
    ) -> int:
        """Quantize with every method, compile, run, measure, store, compare."""
        from host.bench.run import run_bench

        config = resolve_bench(
            {
                "device": device,
                "methods": methods,
                "mock": mock,
                "profile": profile,
                "perf_profile": perf_profile,
                "db_path": db_path,
                "output_dir": output_dir,
                "emulator_samples": emulator_samples,
                "device_accuracy": device_accuracy,
                "seed": seed,
                "time_factor": time_factor,
                "cooldown_timeout": cooldown_timeout,
                "max_temperature": max_temperature,
                "stop_charging": stop_charging,
                "meter": meter,
            },
            model_inputs(model_path or [], task or [], model_type, metric),
            resume=resume,
            input_shapes=input_shape or [],
        )
        if not model_path:
            typer.echo(f"No --model-path: benching {config.models[0].note}.", err=True)
        progress = Progress()
        with progress:
            outcome = run_bench(config, progress)
        if not progress.console.is_terminal:
            progress.console.print(progress.table())
        return show_outcome(config, outcome, json_output)


def resolve_bench(
    flags: Mapping[str, object],
    models: tuple[ModelInput, ...],
    *,
    resume: bool,
    input_shapes: list[str],
) -> BenchConfig:
    """Flags, environment, qhost.toml and defaults as one checked BenchConfig."""
    from host.bench.plan import get_profile
    from host.bench.prepare import BenchConfig, parse_ceilings, parse_input_shapes
    from host.config import cache_dir, resolve
    from host.devices import parse_target
    from quant.methods.grammar import parse_methods

    values = {name: r.value for name, r in resolve(flags).items()}
    target = parse_target(values["device"], mock=values["mock"])
    db_named = values["db_path"] is not None
    default_db = "qhost-mock.duckdb" if target.emulated else "qhost.duckdb"
    get_profile(values["profile"], emulated=target.emulated)
    return BenchConfig(
        models=models,
        variants=parse_methods(values["methods"]),
        target=target,
        db_path=values["db_path"] or Path(default_db),
        db_named=db_named,
        output_dir=values["output_dir"],
        cache_dir=cache_dir(values["cache_dir"]),
        profile=values["profile"],
        perf_profile=values["perf_profile"] or "",
        emulator_samples=values["emulator_samples"],
        device_accuracy=values["device_accuracy"],
        seed=values["seed"],
        time_factor=values["time_factor"],
        sample_rate_hz=values["sample_rate_hz"],
        cooldown_timeout_s=values["cooldown_timeout"],
        ceilings=parse_ceilings(values["max_temperature"]),
        stop_charging=values["stop_charging"],
        meter=values["meter"],
        resume=resume,
        input_shapes=parse_input_shapes(input_shapes),
        command=shlex.join(["qhost", *sys.argv[1:]]),
    )


def model_inputs(
    model_paths: list[Path], tasks: list[Path], model_type: str | None, metric: str | None
) -> tuple[ModelInput, ...]:
    """--model-path and --task zipped; without a model the shipped sample, which says so."""
    from host.bench.prepare import ModelInput
    from host.samples import default_sample

    if not model_paths:
        if tasks:
            raise UserError("--task without --model-path.", "Name the model that the task is for.")
        sample = default_sample()
        return (
            ModelInput(
                sample.model_path,
                sample.task_path,
                sample.model_type,
                sample.metric,
                f"the shipped sample {sample.name} ({sample.description})",
            ),
        )
    if tasks and len(tasks) != len(model_paths):
        raise UserError(
            f"{len(model_paths)} --model-path but {len(tasks)} --task.",
            "Give no task, or one per model in the same order.",
        )
    return tuple(
        ModelInput(path, tasks[i] if tasks else None, model_type, metric)
        for i, path in enumerate(model_paths)
    )


def show_outcome(config: BenchConfig, outcome: BenchOutcome, json_output: bool) -> int:
    """Write the page, print table or JSON; the exit code."""
    from host.report.document import as_text, dumps, to_document
    from host.report.files import write_text
    from host.report.load import load_session
    from host.report.page import report_page
    from host.report.table import session_table
    from host.store import Store

    if outcome.user_error:
        raise UserError(outcome.user_error)
    with Store.open(config.db_path, read_only=True) as store:
        reports = load_session(store, outcome.session_id, artifacts=outcome.artifacts.values())
    folder = config.output_dir / outcome.session_id
    pages = []
    for report in reports:
        stem = report.model_name if len(reports) > 1 else "report"
        pages.append(folder / f"{stem}.html")
        write_text(pages[-1], report_page(report))
        write_text(folder / f"{stem}.json", dumps(report))
    _keep_artifacts(outcome, reports, folder)
    if json_output:
        documents = [to_document(report) for report in reports]
        whole = {"schema": {"name": "qhost.comparisons", "version": 1}, "comparisons": documents}
        print(as_text(documents[0] if len(documents) == 1 else whole))
    else:
        console = Console()
        for report in reports:
            console.print(session_table(report, console.width))
        console.print(f"Database: {config.db_path.resolve()}", soft_wrap=True, highlight=False)
        for page in pages:
            console.print(f"Report:   {page.resolve()}", soft_wrap=True, highlight=False)
    return ExitCode.OK if outcome.all_ok else ExitCode.JOBS_FAILED


def _keep_artifacts(outcome: BenchOutcome, reports: Sequence[SessionReport], folder: Path) -> None:
    """The .qnn of every run beside the report, under a name that says what it is."""
    for report in reports:
        for run in report.runs:
            source = outcome.artifacts.get(run.run_id)
            if source is not None:
                name = run.variant.translate(str.maketrans("[]=,:", "-----"))
                shutil.copyfile(source, folder / f"{report.model_name}-{name}.qnn")
