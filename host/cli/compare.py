"""`qhost compare-all`: a bench whose end is one comparison file and one verdict."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from host.cli import terminal
from host.cli.bench import model_inputs, resolve_bench, run_shown
from host.errors import ExitCode, UserError, unknown_name
from host.gate import ALIASES

if TYPE_CHECKING:
    from host.bench.prepare import BenchConfig, ModelInput
    from host.compare import Constraints
    from host.crosscheck import Remark
    from host.report.data import SessionReport
    from host.store import Store

METRIC_WORDS = ("accuracy", *ALIASES)
PLOTS = ("pareto", "radar", "bars")

ModelPath = Annotated[
    Path | None, typer.Option(help="Model to compare; without it: the shipped sample.")
]
ModelType = Annotated[
    str | None, typer.Option(help="text, vision, audio, text_generation or multimodal.")
]
Methods = Annotated[str | None, typer.Option(help="Methods grammar, or all (the default).")]
TaskPath = Annotated[Path | None, typer.Option(help="Task file .npz.")]
OutputDir = Annotated[
    Path | None, typer.Option(help="Where <model>_comparison.json goes (qhost-out).")
]
Device = Annotated[str | None, typer.Option(help="As for qhost bench.")]
Mock = Annotated[bool | None, typer.Option("--mock", help="Run on an emulated device.")]
StoreInDb = Annotated[bool, typer.Option("--store-in-db", help="Keep the session in the database.")]
DbPath = Annotated[Path | None, typer.Option(help="Database for --store-in-db.")]
Visualize = Annotated[
    bool, typer.Option("--visualize", help=f"Draw {', '.join(PLOTS)} and the report page too.")
]


def register(app: typer.Typer) -> None:
    @app.command("compare-all")
    def compare_all(
        model_path: ModelPath = None,
        model_type: ModelType = None,
        methods: Methods = None,
        metrics: Annotated[
            str, typer.Option(help=f"Comma-separated: {', '.join(METRIC_WORDS)}.")
        ] = ",".join(METRIC_WORDS),
        task: TaskPath = None,
        metric: Annotated[str | None, typer.Option(help="Accuracy metric.")] = None,
        output_dir: OutputDir = None,
        device: Device = None,
        mock: Mock = None,
        profile: Annotated[str | None, typer.Option(help="As for qhost bench.")] = None,
        store_in_db: StoreInDb = False,
        db_path: DbPath = None,
        max_accuracy_drop: Annotated[
            str, typer.Option(help="Below the float model: points (0.5pt) or percent of it (5%).")
        ] = "1pt",
        max_latency_ms: Annotated[
            float | None, typer.Option(min=0.0, help="Slower variants are not shipped.")
        ] = None,
        max_size_mb: Annotated[
            float | None, typer.Option(min=0.0, help="Of the context binary; MB = 1e6 bytes.")
        ] = None,
        max_energy_mj: Annotated[
            float | None, typer.Option(min=0.0, help="Net energy of one inference.")
        ] = None,
        objective: Annotated[
            str, typer.Option(help="What to ship the best of: latency, energy, size, ...")
        ] = "latency",
        emulator_samples: Annotated[
            int | None, typer.Option(min=1, help="As for qhost bench.")
        ] = None,
        input_shape: Annotated[list[str] | None, typer.Option(help="As for qhost bench.")] = None,
        visualize: Visualize = False,
        json_output: Annotated[
            bool, typer.Option("--json", help="The comparison on stdout, and nothing else.")
        ] = False,
    ) -> int:
        """Run every method and say which one to ship, under your constraints."""
        from host.compare import Constraints, parse_drop, parse_objective

        return _compare(
            model_inputs(
                [model_path] if model_path else [], [task] if task else [], model_type, metric
            ),
            {
                "device": device,
                "methods": methods,
                "mock": mock,
                "profile": profile,
                "db_path": db_path,
                "output_dir": output_dir,
                "emulator_samples": emulator_samples,
            },
            Constraints(
                parse_drop(max_accuracy_drop),
                max_latency_ms,
                max_size_mb,
                max_energy_mj,
                parse_objective(objective),
            ),
            parse_metrics(metrics),
            input_shapes=input_shape or [],
            store_in_db=store_in_db,
            visualize=visualize,
            json_output=json_output,
        )

    @app.command("example")
    def example(
        model_path: ModelPath = None,
        model_type: ModelType = None,
        methods: Methods = None,
        task: TaskPath = None,
        output_dir: OutputDir = None,
        device: Device = None,
        mock: Mock = None,
        store_in_db: StoreInDb = False,
        db_path: DbPath = None,
        visualize: Visualize = False,
    ) -> int:
        """The whole workflow once: every method, the comparison, plots, the database."""
        from host.report.verdict import DEFAULT

        return _compare(
            model_inputs(
                [model_path] if model_path else [], [task] if task else [], model_type, None
            ),
            {
                "device": device,
                "methods": methods,
                "mock": mock,
                "db_path": db_path,
                "output_dir": output_dir,
            },
            DEFAULT,
            parse_metrics(",".join(METRIC_WORDS)),
            input_shapes=[],
            store_in_db=store_in_db,
            visualize=visualize,
            json_output=False,
        )


def _compare(
    models: tuple[ModelInput, ...],
    flags: dict[str, object],
    constraints: Constraints,
    metrics: tuple[str, ...],
    *,
    input_shapes: list[str],
    store_in_db: bool,
    visualize: bool,
    json_output: bool,
) -> int:
    from host.report.verdict import decide

    if flags["db_path"] is not None and not store_in_db:
        raise UserError("--db-path without --store-in-db.", "Add it, or leave --db-path out.")
    with tempfile.TemporaryDirectory(prefix="qhost-compare-") as tmp:
        if not store_in_db:
            flags = flags | {"db_path": Path(tmp) / "comparison.duckdb"}
        config = resolve_bench(flags, models, resume=False, input_shapes=input_shapes)
        report, remarks, all_ok = _run(config)
    report = replace(
        report,
        verdict=decide(report, constraints),
        db_path=str(config.db_path) if store_in_db else "",
    )
    document, path = _write(report, remarks, config.output_dir)
    if json_output:
        print(document)
    else:
        _show(report, remarks, metrics, path)
    if visualize:
        for drawn in _draw(report, config.output_dir):
            typer.echo(f"Plot: {drawn.resolve()}", err=json_output)
    return ExitCode.OK if all_ok else ExitCode.JOBS_FAILED


def _draw(report: SessionReport, folder: Path) -> list[Path]:
    from host.cli.visualize import write_plot
    from host.report.files import write_text
    from host.report.page import report_page

    page = folder / f"{report.model_name}_report.html"
    write_text(page, report_page(report))
    drawn = [page]
    for plot in PLOTS:
        drawn.append(folder / f"{report.model_name}_{plot}.png")
        write_plot(report, plot, drawn[-1])
    return drawn


def parse_metrics(text: str) -> tuple[str, ...]:
    """`accuracy,latency` -> metrics of the contract."""
    words = [w.strip() for w in text.split(",") if w.strip()]
    if not words:
        raise UserError("--metrics is empty.", f"Known: {', '.join(METRIC_WORDS)}.")
    for word in words:
        if word not in METRIC_WORDS:
            raise unknown_name("metric", word, METRIC_WORDS)
    return tuple(ALIASES.get(w, w) for w in words)


def _run(config: BenchConfig) -> tuple[SessionReport, list[Remark], bool]:
    from host.crosscheck import cross_check
    from host.gate_session import session_subjects
    from host.report.load import load_session
    from host.store import Store

    outcome = run_shown(config)
    with Store.open(config.db_path, read_only=True) as store:
        (report,) = load_session(store, outcome.session_id, artifacts=outcome.artifacts.values())
        remarks = cross_check(session_subjects(store, outcome.session_id))
        remarks += _golden_remarks(store, outcome.session_id)
    return report, remarks, outcome.all_ok


def _golden_remarks(store: Store, session_id: str) -> list[Remark]:
    """Variants whose outputs on the device are not those of the HTP emulator."""
    from host.crosscheck import Remark

    remarks = []
    for run in store.runs_of(session_id):
        golden = store.run_data(run.run_id).golden
        if golden is not None and not golden.bit_equal:
            text = f"{run.variant}: the device is {golden.sqnr_db:.1f} dB from the HTP emulator"
            remarks.append(Remark("goldens", text))
    return remarks


def _write(report: SessionReport, remarks: list[Remark], folder: Path) -> tuple[str, Path]:
    from host.report.document import as_text, to_document
    from host.report.files import write_text

    document = to_document(report) | {"remarks": [asdict(r) for r in remarks]}
    text = as_text(document)
    path = folder / f"{report.model_name}_comparison.json"
    write_text(path, text)
    return text, path


def _show(
    report: SessionReport,
    remarks: list[Remark],
    metrics: tuple[str, ...],
    path: Path,
) -> None:
    from host.report.table import session_table

    console = terminal.stdout()
    console.print(session_table(report, console.width, metrics=metrics))
    assert report.verdict is not None
    asked = "; ".join(report.verdict.constraints)
    console.print(f"Constraints: {asked}.")
    front = ", ".join(report.verdict.front)
    console.print(f"Pareto front, latency and accuracy: {front}.")
    if not remarks:
        console.print("Cross-checks between methods and with the goldens: nothing to remark.")
    for remark in remarks:
        console.print(f"Look: {remark.text}", soft_wrap=True)
    if report.db_path:
        console.print(f"Database: {Path(report.db_path).resolve()}", soft_wrap=True)
    console.print(f"Comparison: {path.resolve()}", soft_wrap=True)
