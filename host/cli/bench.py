"""`qhost bench`: the main job."""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from host.cli import terminal
from host.cli.progress import Progress
from host.errors import ExitCode, UserError, unknown_name

if TYPE_CHECKING:
    from host.bench.prepare import BenchConfig, ModelInput
    from host.bench.run import BenchOutcome
    from host.report.data import SessionReport

_LONGEST_VARIANT = 120  # characters of a file's name


def register(app: typer.Typer) -> None:
    @app.command("bench")
    def bench(
        model_path: Annotated[
            list[Path] | None,
            typer.Option(
                help="Model (.onnx, .pt2, .pt), artifact (.qnn) or context (.bin); repeatable. "
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
            typer.Option(help="all, or e.g. fp16,int8,int4[block-size=32],hybrid+qat."),
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
            typer.Option(
                min=0.0,
                help="Device seconds to wait for cooling before a block (300; sustained 1800).",
            ),
        ] = None,
        max_temperature: Annotated[
            str | None, typer.Option(help="Degrees C at which a run fails: npu=95,skin=43.")
        ] = None,
        stop_charging: Annotated[
            bool | None,
            typer.Option("--stop-charging", help="Cut the charger while measuring; restored."),
        ] = None,
        per_op: Annotated[
            bool | None,
            typer.Option("--per-op", help="Cycles per operator too, in a pass of their own."),
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
                "per_op": per_op,
                "meter": meter,
            },
            model_inputs(model_path or [], task or [], model_type, metric),
            resume=resume,
            input_shapes=input_shape or [],
        )
        if not model_path:
            typer.echo(f"No --model-path was given. {config.models[0].note}", err=True)
        return show_outcome(config, run_shown(config), json_output)


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
    from host.report.files import check_writable
    from quant.htp.options import PERF_PROFILES
    from quant.methods.grammar import parse_methods

    values = {name: r.value for name, r in resolve(flags).items()}
    target = parse_target(values["device"], mock=values["mock"])
    db_named = values["db_path"] is not None
    default_db = "qhost-mock.duckdb" if target.emulated else "qhost.duckdb"
    get_profile(values["profile"], emulated=target.emulated)
    if (htp := values["perf_profile"]) and htp not in PERF_PROFILES:
        raise unknown_name("HTP performance profile", htp, PERF_PROFILES)
    if resume and not (values["db_path"] or Path(default_db)).exists():
        raise UserError(
            f"Nothing to resume: {values['db_path'] or default_db} does not exist.",
            "Run without --resume.",
        )
    check_writable(values["output_dir"])
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
        per_op=values["per_op"],
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
                model_type or sample.model_type,
                metric or sample.metric,
                f"Model: {sample.name}, the sample that ships with qhost "
                f"(an image classifier: {sample.description}).",
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


def run_shown(config: BenchConfig) -> BenchOutcome:
    """The bench with its progress on stderr. Raises UserError when only the input is to blame."""
    from host.bench.run import run_bench

    with Progress() as progress:
        outcome = run_bench(config, progress)
        if outcome.user_error:
            raise UserError(outcome.user_error)
    return outcome


def show_outcome(config: BenchConfig, outcome: BenchOutcome, json_output: bool) -> int:
    """Write the page, print table or JSON; the exit code."""
    from host.report.document import as_text, dumps, to_document
    from host.report.files import write_text
    from host.report.load import load_session
    from host.report.page import report_page
    from host.report.table import session_table
    from host.store import Store

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
        console = terminal.stdout()
        for report in reports:
            console.print(session_table(report, console.width))
        console.print(f"Database: {config.db_path.resolve()}", soft_wrap=True)
        for page in pages:
            console.print(f"Report:   {page.resolve()}", soft_wrap=True)
    return ExitCode.OK if outcome.all_ok else ExitCode.JOBS_FAILED


def _keep_artifacts(outcome: BenchOutcome, reports: Sequence[SessionReport], folder: Path) -> None:
    """The .qnn of every run beside the report, under a name that says what it is."""
    for report in reports:
        for run in report.runs:
            source = outcome.artifacts.get(run.run_id)
            if source is not None:
                shutil.copyfile(source, folder / artifact_name(report.model_name, run.variant))


def artifact_name(model_name: str, variant: str) -> str:
    """`net-int4-block-size-32-.qnn`; options may hold paths, and be longer than a file name."""
    name = re.sub(r"[^\w.+@-]", "-", variant)
    if len(name) > _LONGEST_VARIANT:
        name = f"{name[:_LONGEST_VARIANT]}-{hashlib.sha256(variant.encode()).hexdigest()[:8]}"
    return f"{model_name}-{name}.qnn"
