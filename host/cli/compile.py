"""`qhost compile`: one graph, as it is, for several SoCs into one artifact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from host.cli import terminal
from host.errors import ExitCode, ToolchainError, UserError

if TYPE_CHECKING:
    from quant.htp.package import SocResult
    from quant.htp.soc import Soc


def compile_(
    model_path: Annotated[
        Path, typer.Option(help="Float or QDQ .onnx, .pt2 or TorchScript .pt; compiled as it is.")
    ],
    output_path: Annotated[Path, typer.Option(help="The artifact to write (.qnn).")],
    device: Annotated[str, typer.Option(help="SoC ids joined by commas, or `all`.")] = "sm8650",
    option: Annotated[
        list[str] | None, typer.Option(help="Compile option name=value (repeatable).")
    ] = None,
    task: Annotated[
        Path | None, typer.Option(help="Task file .npz whose first samples become the goldens.")
    ] = None,
    model_type: Annotated[str | None, typer.Option(help="Kind of synthetic inputs.")] = None,
    input_shape: Annotated[
        list[str] | None, typer.Option(help="name:1,3,224,224 for a dynamic input (repeatable).")
    ] = None,
    golden_samples: Annotated[int, typer.Option(min=1, help="Inferences stored per SoC.")] = 2,
    perf_profile: Annotated[str, typer.Option(help="HTP performance profile stored.")] = "burst",
    htp_sparse_compression: Annotated[
        bool, typer.Option(help="Experimental: compress pruned int8 weights (v73 and later).")
    ] = False,
    backend: Annotated[
        str, typer.Option(help="auto (the SDK where QAIRT_SDK_ROOT is set), ort, or qairt.")
    ] = "auto",
) -> None:
    """Compile a model for one or more SoCs, strictly: every node on the HTP, or none."""
    from host.report.files import check_output
    from quant.htp.options import RunSettings, parse_assignments
    from quant.htp.package import PackageRequest, package
    from quant.htp.sdk import choose_compiler

    request = PackageRequest(
        model_path=model_path,
        output=output_path,
        socs=parse_socs(device),
        options=parse_assignments(option or []),
        run_settings=RunSettings(perf_profile=perf_profile),
        task_path=task,
        model_type=model_type,
        input_shapes=parse_shapes(input_shape or []),
        golden_samples=golden_samples,
        sparse_weights=htp_sparse_compression,
    )
    check_output(output_path, model_path, (".qnn",))
    console = terminal.stderr()
    artifact, results = package(
        request,
        lambda r: console.print(f"{r.soc.id}: {r.status}"),
        choose_compiler(backend),
    )
    terminal.stdout().print(_table(results))
    for result in results:
        if result.reason:
            print(f"{result.soc.id} {result.status}: {result.reason}")
    if artifact is None:
        first = results[0]
        several = "No SoC accepts it; the first said: " if len(results) > 1 else ""
        if all(r.status == "failed" for r in results):
            raise ToolchainError(f"{several}{first.reason}")  # nobody's input is to blame
        raise UserError(f"{several}{first.reason}", first.hint)
    print(f"{artifact.path} ({artifact.size_bytes:,} bytes, sha256 {artifact.sha256})")
    if any(r.status != "ok" for r in results):
        raise typer.Exit(ExitCode.JOBS_FAILED)


def register(app: typer.Typer) -> None:
    app.command("compile")(compile_)


def parse_socs(text: str) -> tuple[Soc, ...]:
    """SoCs of a comma-separated list; `all` is every part of the table."""
    from quant.htp.soc import SOCS, get_soc

    if text.strip().lower() == "all":
        return tuple(SOCS.values())
    socs = [get_soc(item) for item in text.split(",") if item.strip()]
    if not socs:
        raise UserError("No SoC was given.", "Write for instance --device sm8550,sm8650.")
    return tuple(dict.fromkeys(socs))


def parse_shapes(items: list[str]) -> dict[str, tuple[int, ...]]:
    """{input name: shape} of `name:1,3,224,224` strings."""
    shapes = {}
    for item in items:
        name, colon, dims = item.rpartition(":")
        try:
            shape = tuple(int(d) for d in dims.split(","))
        except ValueError:
            shape = ()
        if not colon or not name or not shape or min(shape) < 1:
            raise UserError(f"{item!r} is not an input shape.", "Write it as name:1,3,224,224.")
        shapes[name] = shape
    return shapes


def _table(results: list[SocResult]) -> Table:
    table = Table("SoC", "status", "context", "DDR r+w", "spill+fill", "vs ORT", "took")
    for column in table.columns[2:]:
        column.justify = "right"
    for r in results:
        if r.compiled is None:
            table.add_row(r.soc.id, r.status)
            continue
        figures = r.compiled.figures
        table.add_row(
            r.soc.id,
            r.status,
            f"{r.context_bytes:,}",
            f"{figures.ddr_total_bytes:,}",
            f"{figures.spill_bytes + figures.fill_bytes:,}",
            "" if r.sqnr_db is None else f"{r.sqnr_db:.1f} dB",
            f"{r.compiled.seconds:.1f} s",
        )
    return table
