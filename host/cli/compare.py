"""`qhost compare-all`: a bench whose end is one comparison file and one verdict."""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from host.cli.bench import Progress, model_inputs, resolve_bench
from host.errors import ExitCode, UserError, unknown_name

if TYPE_CHECKING:
    from host.bench.prepare import BenchConfig
    from host.crosscheck import Remark
    from host.report.data import SessionReport
    from host.report.verdict import Constraints
    from host.store import Store

# --metrics words -> metrics of the contract.
METRIC_WORDS = {
    "accuracy": "accuracy",
    "latency": "latency_ms",
    "throughput": "throughput_items_per_sec",
    "power": "power_mw",
    "energy": "energy_mj",
    "size": "model_size_bytes",
    "memory": "memory_mb",
    "startup": "startup_ms",
}
_DROP = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(pt|%)\s*")


def register(app: typer.Typer) -> None:
    @app.command("compare-all")
    def compare_all(
        model_path: Annotated[
            Path | None, typer.Option(help="Model to compare; without it: the shipped sample.")
        ] = None,
        model_type: Annotated[
            str | None, typer.Option(help="text, vision, audio, text_generation or multimodal.")
        ] = None,
        methods: Annotated[str | None, typer.Option(help="Methods grammar, or all.")] = None,
        metrics: Annotated[
            str, typer.Option(help=f"Comma-separated: {', '.join(METRIC_WORDS)}.")
        ] = ",".join(METRIC_WORDS),
        task: Annotated[Path | None, typer.Option(help="Task file .npz.")] = None,
        metric: Annotated[str | None, typer.Option(help="Accuracy metric.")] = None,
        output_dir: Annotated[
            Path | None, typer.Option(help="Where <model>_comparison.json goes (qhost-out).")
        ] = None,
        device: Annotated[str | None, typer.Option(help="As for qhost bench.")] = None,
        mock: Annotated[
            bool | None, typer.Option("--mock", help="Run on an emulated device.")
        ] = None,
        profile: Annotated[str | None, typer.Option(help="As for qhost bench.")] = None,
        store_in_db: Annotated[
            bool, typer.Option("--store-in-db", help="Keep the session in the database.")
        ] = False,
        db_path: Annotated[Path | None, typer.Option(help="Database for --store-in-db.")] = None,
        max_accuracy_drop: Annotated[
            str, typer.Option(help="Below fp16: points (0.5pt) or percent of the figure (5%).")
        ] = "1pt",
        max_latency_ms: Annotated[float | None, typer.Option(min=0.0)] = None,
        max_size_mb: Annotated[float | None, typer.Option(min=0.0)] = None,
        max_energy_mj: Annotated[float | None, typer.Option(min=0.0)] = None,
        emulator_samples: Annotated[int | None, typer.Option(min=1)] = None,
        input_shape: Annotated[list[str] | None, typer.Option()] = None,
        json_output: Annotated[bool, typer.Option("--json")] = False,
    ) -> int:
        """Run every method and say which one to ship, under your constraints."""
        shown = parse_metrics(metrics)
        parse_drop(max_accuracy_drop, 1.0)
        models = model_inputs(
            [model_path] if model_path else [], [task] if task else [], model_type, metric
        )
        with tempfile.TemporaryDirectory(prefix="qhost-compare-") as tmp:
            if not store_in_db:
                db_path = Path(tmp) / "comparison.duckdb"
            flags = {
                "device": device, "methods": methods, "mock": mock, "profile": profile,
                "db_path": db_path, "output_dir": output_dir,
                "emulator_samples": emulator_samples,
            }  # fmt: skip
            config = resolve_bench(flags, models, resume=False, input_shapes=input_shape or [])
            report, remarks, all_ok = _run(config)
        from host.report.verdict import Constraints, decide

        constraints = Constraints(
            parse_drop(max_accuracy_drop, _baseline_accuracy(report)),
            max_latency_ms,
            max_size_mb,
            max_energy_mj,
        )
        report = replace(
            report,
            verdict=decide(report, constraints),
            db_path=str(config.db_path) if store_in_db else "",
        )
        document, path = _write(report, remarks, config.output_dir)
        if json_output:
            print(document)
        else:
            _show(report, remarks, shown, constraints, path)
        return ExitCode.OK if all_ok else ExitCode.JOBS_FAILED


def parse_metrics(text: str) -> tuple[str, ...]:
    """`accuracy,latency` -> metrics of the contract."""
    words = [w.strip() for w in text.split(",") if w.strip()]
    if not words:
        raise UserError("--metrics is empty.", f"Known: {', '.join(METRIC_WORDS)}.")
    for word in words:
        if word not in METRIC_WORDS:
            raise unknown_name("metric", word, METRIC_WORDS)
    return tuple(METRIC_WORDS[w] for w in words)


def parse_drop(text: str, baseline: float) -> float:
    """`0.5pt` -> 0.005; `5%` -> 0.05 x baseline: in the unit of the accuracy."""
    match = _DROP.fullmatch(text)
    if match is None:
        raise UserError(
            f"--max-accuracy-drop {text!r} is neither points nor percent.", "Write 0.5pt or 5%."
        )
    amount = float(match[1]) / 100
    return amount if match[2] == "pt" else amount * abs(baseline)


def _run(config: BenchConfig) -> tuple[SessionReport, list[Remark], bool]:
    from host.bench.run import run_bench
    from host.crosscheck import cross_check
    from host.gate_session import session_subjects
    from host.report.load import load_session
    from host.store import Store

    with Progress() as progress:
        outcome = run_bench(config, progress)
    if outcome.user_error:
        raise UserError(outcome.user_error)
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


def _baseline_accuracy(report: SessionReport) -> float:
    baseline = report.baseline
    value = baseline.value("accuracy") if baseline else None
    return 1.0 if value is None else value


def _write(report: SessionReport, remarks: list[Remark], folder: Path) -> tuple[str, Path]:
    from host.report.document import to_document
    from host.report.files import write_text

    document = to_document(report) | {"remarks": [asdict(r) for r in remarks]}
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    path = folder / f"{report.model_name}_comparison.json"
    write_text(path, text + "\n")
    return text, path


def _show(
    report: SessionReport,
    remarks: list[Remark],
    metrics: tuple[str, ...],
    constraints: Constraints,
    path: Path,
) -> None:
    from host.report.table import session_table
    from host.report.verdict import pareto_front

    console = Console()
    console.print(session_table(report, console.width, metrics=metrics))
    console.print(f"Constraints: {'; '.join(constraints.describe())}.", highlight=False)
    front = pareto_front(report)
    console.print(f"Pareto front, latency and accuracy: {', '.join(front)}.", highlight=False)
    if not remarks:
        console.print("Cross-checks between methods and with the goldens: nothing to remark.")
    for remark in remarks:
        console.print(f"Look: {remark.text}", highlight=False, soft_wrap=True)
    if report.db_path:
        console.print(f"Database: {Path(report.db_path).resolve()}", soft_wrap=True)
    console.print(f"Comparison: {path.resolve()}", highlight=False, soft_wrap=True)
