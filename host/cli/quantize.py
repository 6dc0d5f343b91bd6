"""`qhost quantize METHOD`: one variant as a .qnn artifact or as plain QDQ ONNX."""

from __future__ import annotations

import inspect
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from rich.table import Table

from host.cli import terminal
from host.cli.help import Group
from host.errors import UserError

if TYPE_CHECKING:
    from quant.methods import Method, Quantized
    from quant.methods.grammar import Variant

# Options that every method has, in the order of --help; the method's own follow.
_COMMON = (
    ("model_path", Path, MISSING, "Model to quantize: .onnx, .pt2 or TorchScript .pt."),
    ("output_path", Path, MISSING, "Where to write: .qnn (artifact) or .onnx (QDQ graph)."),
    ("model_type", str | None, None, "text, vision, audio, text_generation or multimodal."),
    ("task", Path | None, None, "Task file .npz: calibration samples, inputs, labels."),
    ("metric", str | None, None, "Accuracy metric; default: by the labels."),
    ("device", str | None, None, "SoC to compile for, e.g. sm8650 (the default)."),
    ("mock", bool, False, "Label the device as emulated; quantizing needs none."),
    ("emulator_samples", int, 256, "Labelled samples run in the HTP emulator (.qnn only)."),
    ("input_shape", list[str] | None, None, "Fix a dynamic input: name:1,3,224,224; repeatable."),
    ("json_output", bool, False, "Print the report as JSON."),
)


def register(app: typer.Typer) -> None:
    from quant.methods import METHODS

    quantize = typer.Typer(
        help="Quantize a model: accuracy, report per layer, artifact. Besides the methods below, "
        "COMMAND may be a composition as --methods takes it: 'hybrid+qat[weight-bits=4]'.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    for method in METHODS.values():
        quantize.command(method.name, help=method.summary)(_command(method))
    app.add_typer(quantize, name="quantize", cls=_Variants)


def _command(method: Method) -> Callable[..., None]:
    """A command whose options are the common ones and the fields of the method's dataclass.

    So a method has one list of options, and an option one name on the command line, in the
    --methods grammar and in Python.
    """

    def run(**values: Any) -> None:
        from quant.methods.grammar import make_variant

        own = {f.name: values.pop(f.name) for f in fields(method.options)}
        _quantize(make_variant(method.name, **own), **values)

    hints = get_type_hints(method.options)
    own = [_parameter(f.name, hints[f.name] | None, None, _help(f)) for f in fields(method.options)]
    return _with_parameters(run, method.name, own)


class _Variants(Group):
    """The methods, and whatever else the --methods grammar can say, options in its brackets."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        known = super().get_command(ctx, cmd_name)
        if known is not None or not set(cmd_name) & set("+["):
            return known
        from quant.methods.grammar import parse_methods

        variants = parse_methods(cmd_name)
        if len(variants) > 1:
            raise UserError(
                f"{cmd_name!r} is {len(variants)} variants, and one is quantized at a time.",
                "qhost bench --methods takes several.",
            )
        run = _with_parameters(lambda **values: _quantize(variants[0], **values), "variant", [])
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(cmd_name, help=f"Quantize with {variants[0].canonical}.")(run)
        return typer.main.get_command(app)


def _with_parameters(
    run: Callable[..., None], name: str, own: list[inspect.Parameter]
) -> Callable[..., None]:
    """`run` with the signature that Typer reads: the common options, then its own."""
    common = [_parameter(name, kind, default, text) for name, kind, default, text in _COMMON]
    parameters = [*common, *own]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__name__ = name
    return run


def _help(f: Field[Any]) -> str:
    default = f.default if f.default is not MISSING else "(computed)"
    text = str(f.metadata.get("help", f.name.replace("_", " ")))
    return f"{text} (default {default})"


def _parameter(name: str, kind: Any, default: Any, text: str) -> inspect.Parameter:
    flag = "--json" if name == "json_output" else "--" + name.replace("_", "-")
    option = typer.Option(flag, help=text)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if default is MISSING else default,
        annotation=Annotated[kind, option],
    )


def _quantize(
    variant: Variant,
    *,
    model_path: Path,
    output_path: Path,
    model_type: str | None,
    task: Path | None,
    metric: str | None,
    device: str | None,
    mock: bool,
    emulator_samples: int,
    input_shape: list[str] | None,
    json_output: bool,
) -> None:
    from host.bench.prepare import parse_input_shapes
    from host.devices import DEFAULT_SOC, EMULATED_PREFIX
    from host.report.files import check_output
    from quant.htp.soc import get_soc

    check_output(output_path, model_path, (".qnn", ".onnx"))
    soc = get_soc((device or DEFAULT_SOC).removeprefix(EMULATED_PREFIX))
    shapes = parse_input_shapes(input_shape or [])
    start = time.perf_counter()
    if output_path.suffix == ".onnx":
        report = _to_onnx(model_path, task, model_type, metric, variant, shapes, output_path)
    else:
        report = _to_artifact(
            model_path, task, model_type, metric, variant, shapes, output_path, soc.id,
            emulator_samples,
        )  # fmt: skip
    report |= {
        "variant": variant.canonical,
        "output": str(output_path),
        "output_bytes": output_path.stat().st_size,
        "seconds": round(time.perf_counter() - start, 2),
        "emulated_device": mock or None,
    }
    if json_output:
        print(json.dumps(report, indent=1))
    else:
        _show(report)


def _to_onnx(
    model_path: Path,
    task_path: Path | None,
    model_type: str | None,
    metric: str | None,
    variant: Variant,
    shapes: dict[str, tuple[int, ...]],
    output_path: Path,
) -> dict[str, Any]:
    from host.config import cache_dir, resolve
    from quant.evaluate import evaluate_outputs, quality_json, run_ort
    from quant.figures import Provenance
    from quant.methods.grammar import export, quantize
    from quant.model import load, save
    from quant.task import load_task
    from quant.train import session

    model = load(model_path, input_shapes=shapes)
    task = load_task(task_path, model, model_type=model_type, metric=metric)
    progress = session.told(terminal.stderr().print)
    with session.use(
        session.Session(cache_dir(resolve()["cache_dir"].value) / "training", progress)
    ):
        quantized = quantize(model, task, variant)
    with tempfile.TemporaryDirectory(prefix="qhost-quantize-") as tmp:
        save(model, Path(tmp) / "float.onnx")
        save(export(quantized), Path(tmp) / "qdq.onnx")
        reference = run_ort(Path(tmp) / "float.onnx", task)
        outputs = run_ort(Path(tmp) / "qdq.onnx", task)
    save(export(quantized), output_path)
    quality = {
        "float": quality_json(evaluate_outputs(task, reference, reference, Provenance.ORT_CPU)),
        "ort_cpu": quality_json(evaluate_outputs(task, reference, outputs, Provenance.ORT_CPU)),
    }
    return {
        "quality": quality,
        "notes": [*task.notes, *quantized.notes],
        "layers": _rows(quantized),
    }


def _to_artifact(
    model_path: Path,
    task_path: Path | None,
    model_type: str | None,
    metric: str | None,
    variant: Variant,
    shapes: dict[str, tuple[int, ...]],
    output_path: Path,
    soc: str,
    emulator_samples: int,
) -> dict[str, Any]:
    import shutil

    from host.config import cache_dir, resolve
    from host.report.files import write_whole
    from quant.artifact import open_artifact
    from quant.build import BuildRequest, build

    request = BuildRequest(
        model_path=model_path,
        variant=variant.canonical,
        soc=soc,
        cache_dir=cache_dir(resolve()["cache_dir"].value),
        task_path=task_path,
        model_type=model_type,
        metric=metric,
        input_shapes=shapes,
        emulator_samples=emulator_samples,
    )
    progress = terminal.stderr()

    def on_stage(stage: str, seconds: float) -> None:
        if seconds or stage.startswith("training"):
            tail = f" {seconds:.1f} s" if seconds else ""
            progress.print(f"{stage}{tail}", soft_wrap=True)

    result = build(request, on_stage)
    write_whole(output_path, lambda part: shutil.copyfile(result.artifact, part))
    artifact = open_artifact(output_path)
    return {
        "quality": artifact.manifest["quality"],
        "notes": [*artifact.manifest["task"]["notes"], *artifact.manifest["notes"]],
        "layers": json.loads(artifact.read("report/layers.json")),
        "soc": soc,
        "cached": result.cached,
    }


def _rows(quantized: Quantized) -> list[dict[str, Any]]:
    from dataclasses import asdict

    return [asdict(layer) for layer in quantized.layers]


def _show(report: dict[str, Any]) -> None:
    """Layers first, then quality: the summary stays in sight."""
    console = terminal.stdout()
    layers = Table(box=None, pad_edge=False, header_style="bold")
    for name, right in (
        ("layer", False), ("operator", False), ("bits", True), ("granularity", False),
        ("SQNR dB", True), ("bytes", True),
    ):  # fmt: skip
        layers.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in report["layers"]:
        sqnr = row["sqnr_db"]
        layers.add_row(
            row["name"],
            row["op_type"],
            str(row["bits"]),
            row["granularity"],
            "" if sqnr is None else f"{sqnr:.1f}",
            f"{row['size_bytes']:,}",
        )
    if report["layers"]:
        console.print(layers)
    quality = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("quality", "metric", "value", "SQNR dB", "agreement", "n"):
        quality.add_column(name, justify="left" if name in {"quality", "metric"} else "right")
    names = {
        "float": "float model (onnxruntime)",
        "ort_cpu": "quantized (onnxruntime)",
        "htp_emulator": "quantized (HTP emulator)",
    }
    for engine, q in report["quality"].items():
        value = "" if q["value"] is None else f"{q['value']:.4f}"
        sqnr = "" if q["sqnr_db"] is None else f"{q['sqnr_db']:.1f}"
        quality.add_row(
            names.get(engine, engine), q["metric"], value, sqnr, f"{q['agreement']:.4f}",
            str(q["n"]),
        )  # fmt: skip
    console.print(quality)
    for note in report["notes"]:
        console.print(f"note: {note}", soft_wrap=True)
    console.print(
        f"{report['variant']}: {report['output']} ({report['output_bytes']:,} bytes, "
        f"{report['seconds']:.1f} s)",
        soft_wrap=True,
    )
