"""`qhost optimize`, `memory-optimize`, `power-optimize`: a better context for the same model."""

from __future__ import annotations

import dataclasses
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from host.cli import terminal
from host.cli.compile import parse_socs
from host.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from quant.artifact import Artifact
    from quant.htp.options import RunSettings
    from quant.htp.search import Objective, Space, Trial


class CacheConfig(StrEnum):
    OFF = "off"
    BALANCED = "balanced"
    AGGRESSIVE = "aggressive"


class Tiling(StrEnum):
    DEFAULT = "default"
    OPTIMAL = "optimal"


class BatteryMode(StrEnum):
    PERFORMANCE = "performance"
    BALANCED = "balanced"
    EFFICIENT = "efficient"


class Scaling(StrEnum):
    ENABLED = "enabled"
    DISABLED = "disabled"


# Performance profile by battery mode, with a clock that may change and with one that may not. No
# compiler figure predicts their effect: they are applied by rule, and the bench measures it.
_PROFILES = {
    BatteryMode.PERFORMANCE: {Scaling.DISABLED: "burst", Scaling.ENABLED: "balanced"},
    BatteryMode.BALANCED: {
        Scaling.ENABLED: "balanced",
        Scaling.DISABLED: "sustained_high_performance",
    },
    BatteryMode.EFFICIENT: {Scaling.ENABLED: "power_saver"},
}
# RPC polling and control latency in us, where the fastest answer is worth the power.
_PERFORMANCE_RPC = (9999, 100)

ModelPath = Annotated[Path, typer.Option(help="Artifact (.qnn), or a float or QDQ .onnx.")]
OutputPath = Annotated[Path, typer.Option(help="The artifact to write (.qnn).")]
Device = Annotated[
    str | None, typer.Option(help="SoC ids joined by commas (default: those of the artifact).")
]


def optimize(
    model_path: ModelPath,
    output_path: OutputPath,
    device: Device = None,
    objectives: Annotated[
        str, typer.Option("--optimize", help="memory, power, latency, joined by commas.")
    ] = "memory,power,latency",
    integer_io: Annotated[
        bool, typer.Option(help="Also try integer inputs and outputs: changes the interface.")
    ] = False,
) -> None:
    """Search compile options and strips for the objectives; never worse than the input."""
    from quant.htp.search import Space, parse_objectives

    space = Space(integer_io=integer_io)
    _run(model_path, output_path, device, parse_objectives(objectives), space)


def memory_optimize(
    model_path: ModelPath,
    output_path: OutputPath,
    device: Device = None,
    cache_config: Annotated[
        CacheConfig,
        typer.Option(
            help="VTCM: off = as given, balanced = half left to others, aggressive = all."
        ),
    ] = CacheConfig.AGGRESSIVE,
    tiling_strategy: Annotated[
        Tiling, typer.Option(help="default = the compiler's, optimal = search modes and strips.")
    ] = Tiling.OPTIMAL,
) -> None:
    """Reduce DDR traffic: VTCM use, finalization modes, strips with halos where a graph spills."""
    from quant.htp.search import Space, parse_objectives

    optimal = tiling_strategy is Tiling.OPTIMAL
    space = Space(modes=optimal, rewrites=optimal, strips=optimal, vtcm=cache_config.value)
    _run(model_path, output_path, device, parse_objectives("memory"), space)


def power_optimize(
    model_path: ModelPath,
    output_path: OutputPath,
    device: Device = None,
    battery_mode: Annotated[
        BatteryMode, typer.Option(help="Run-time settings kept in the artifact.")
    ] = BatteryMode.BALANCED,
    dynamic_scaling: Annotated[
        Scaling | None,
        typer.Option(
            help="Whether the HTP may change its clock (bare: enabled; default: the mode's way)."
        ),
    ] = None,
) -> None:
    """Reduce DRAM energy, and store the run-time settings of a battery mode for the agent."""
    from quant.htp.search import Space, parse_objectives

    settings = power_settings(battery_mode, dynamic_scaling)
    _run(model_path, output_path, device, parse_objectives("power"), Space(), settings)


def power_settings(battery_mode: BatteryMode, dynamic_scaling: Scaling | None) -> RunSettings:
    """The run settings of a battery mode. UserError where it cannot hold the HTP's clock."""
    from quant.htp.options import RunSettings

    profiles = _PROFILES[battery_mode]
    scaling = dynamic_scaling or next(iter(profiles))
    if scaling not in profiles:
        raise UserError(
            f"No profile of battery mode {battery_mode.value} holds the HTP's clock.",
            "Leave out --dynamic-scaling disabled, or take --battery-mode balanced.",
        )
    polling, latency = _PERFORMANCE_RPC if battery_mode is BatteryMode.PERFORMANCE else (0, 0)
    return RunSettings(profiles[scaling], polling, latency)


def register(app: typer.Typer) -> None:
    app.command("optimize")(optimize)
    app.command("memory-optimize")(memory_optimize)
    app.command("power-optimize")(power_optimize)


def _run(
    model_path: Path,
    output_path: Path,
    device: str | None,
    objectives: Sequence[Objective],
    space: Space,
    settings: RunSettings | None = None,
) -> None:
    from host.report.files import check_output
    from quant.optimize import optimize_artifact

    socs = parse_socs(device) if device else ()
    check_output(output_path, model_path, (".qnn",))
    progress = terminal.stderr()
    with tempfile.TemporaryDirectory(prefix="qhost-optimize-") as temp:
        artifact = _as_artifact(model_path, Path(temp), device)
        result = optimize_artifact(
            artifact,
            output_path,
            objectives,
            socs=socs,
            space=space,
            run_settings=settings,
            on_trial=lambda t: progress.print(f"{t.name}: {t.verdict or 'kept'}"),
        )
    _print_trials(result.trials, objectives)
    print(result.why)
    if settings is not None:
        values = ", ".join(f"{k}={v}" for k, v in dataclasses.asdict(settings).items())
        print(f"Run-time settings for the agent, not predicted by any figure above: {values}.")
    done = result.artifact
    print(f"{done.path} ({done.size_bytes:,} bytes, sha256 {done.sha256})")


def _as_artifact(path: Path, temp: Path, device: str | None) -> Artifact:
    from quant.artifact import open_artifact
    from quant.htp.package import PackageRequest, package

    if path.suffix == ".qnn":
        return open_artifact(path)
    socs = parse_socs(device or "sm8650")
    request = PackageRequest(path, temp / "input.qnn", socs)
    artifact, results = package(request, lambda result: None)
    refused = [r for r in results if r.status != "ok"]
    if artifact is None or refused:
        raise UserError(
            f"{refused[0].soc.id}: {refused[0].reason}", refused[0].hint or "Leave that device out."
        )
    return artifact


def _print_trials(trials: Sequence[Trial], objectives: Sequence[Objective]) -> None:
    table = Table(
        Column("candidate", overflow="fold", min_width=22),
        "SoC",
        *(Column(name, justify="right") for name in ("DDR read", "DDR write", "spill", "fill")),
        Column("QNN ops", justify="right"),
    )
    for objective in objectives:
        table.add_column(f"{objective.name} ({objective.unit})", justify="right")
    table.add_column("verdict", overflow="fold", min_width=24)
    for trial in trials:
        for soc, compiled in trial.compiled.items():
            f = compiled.figures
            numbers = (f.ddr_read_bytes, f.ddr_write_bytes, f.spill_bytes, f.fill_bytes)
            values = [trial.values.get((o.name, soc)) for o in objectives]
            table.add_row(
                trial.name,
                soc,
                *(f"{n / 1e6:.2f} MB" for n in numbers),
                f"{compiled.operators:,}",
                *("-" if v is None else f"{v:,.0f}" for v in values),
                trial.verdict,
            )
        if not trial.compiled:
            table.add_row(trial.name, *[""] * (6 + len(objectives)), trial.verdict)
    # Wide enough for its figures even where the output is not a terminal.
    terminal.stdout(max(terminal.stdout().width, 150)).print(table)
