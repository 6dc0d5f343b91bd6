"""`qhost inspect`: what is in an artifact or a context binary, read back from the bytes."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from host.cli import terminal
from host.errors import UserError
from quant.htp.soc import get_soc, soc_of_model

if TYPE_CHECKING:
    from quant.artifact import Artifact
    from quant.htp.inspect import ContextInfo, ContextTensor
    from quant.qdq import QuantizedTensor


_BARS = "▁▂▃▄▅▆▇█"


def inspect(
    path: Annotated[
        Path | None, typer.Argument(help="An artifact (.qnn), a context binary (.bin), or .onnx.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="JSON instead of tables.")] = False,
    nodes: Annotated[
        bool, typer.Option("--nodes", help="Also the QNN operators each ONNX node became.")
    ] = False,
    tensors: Annotated[
        bool, typer.Option("--tensors", help="also the encoding of every quantized tensor")
    ] = False,
    fallback: Annotated[
        Path | None, typer.Option(help="An .onnx: list the nodes the HTP refuses, and why.")
    ] = None,
    schedule: Annotated[
        bool,
        typer.Option("--schedule", help="Compile again and summarise the compiler's schedule."),
    ] = False,
    device: Annotated[str, typer.Option(help="SoC for --fallback and --schedule.")] = "",
) -> None:
    """Show SoCs, toolchain, graphs, tensors, memory and sizes, and check every checksum."""
    from quant.artifact import open_artifact
    from quant.htp.inspect import read_context

    if device and fallback is None and not schedule:
        raise UserError(
            "--device says for which SoC --fallback and --schedule compile.", "Add one of them."
        )
    if fallback is not None:
        _show_fallback(fallback, device or "sm8650", json_output)
        return
    if path is None:
        raise UserError("Nothing to inspect.", "Give a .qnn, a context .bin or --fallback M.onnx.")
    if not path.is_file():
        problem = "is a directory" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {problem}.", "Give a .qnn or a context .bin.")
    if path.suffix == ".bin" and (nodes or tensors or schedule):
        raise UserError(
            f"{path.name} is a bare context: --nodes, --tensors and --schedule need the graph "
            "it was compiled from.",
            "Give the .qnn.",
        )
    if schedule:
        _show_schedule(path, device, json_output)
        return
    if path.suffix == ".onnx":
        _show_tensors(path, json_output, asked=tensors)
        return
    if path.suffix == ".bin":
        info = read_context(path)
        report = {"file": str(path), "size_bytes": path.stat().st_size, **_context_json(info)}
        if json_output:
            print(json.dumps(report, indent=2))
        else:
            _print_context(terminal.stdout(), path.name, info, path.stat().st_size)
        return
    if path.suffix != ".qnn":
        raise UserError(
            f"{path.name} is none of .qnn, .onnx and .bin.",
            "Give an artifact, a QDQ model or a bare context.",
        )
    artifact = open_artifact(path)
    contexts = _read_contexts(artifact)
    if json_output:
        report = _artifact_json(artifact, contexts)
        if tensors:
            report["tensors"] = [dataclasses.asdict(r) for r in _artifact_tensors(artifact)]
        print(json.dumps(report, indent=2))
        return
    console = terminal.stdout()
    _print_artifact(console, artifact, contexts)
    if nodes:
        _print_nodes(console, artifact)
    if tensors:
        _print_tensors(console, _artifact_tensors(artifact))


def register(app: typer.Typer) -> None:
    app.command("inspect")(inspect)


def _show_fallback(path: Path, device: str, json_output: bool) -> None:
    from quant.htp.compile import unsupported_nodes
    from quant.htp.options import HtpOptions

    rows = unsupported_nodes(path, get_soc(device), HtpOptions())
    if json_output:
        print(json.dumps([dataclasses.asdict(r) for r in rows], indent=2))
        return
    if not rows:
        print(f"{device}: the HTP takes every node of {path.name}.")
        return
    table = Table("node", "operator", Column("reason", overflow="fold"))
    for row in rows:
        table.add_row(row.node, row.op_type, row.reason)
    console = terminal.stdout()
    console.print(f"{device}: the HTP refuses {_count(len(rows), 'node')} of {path.name}")
    console.print(table)


def _show_schedule(path: Path, device: str, json_output: bool) -> None:
    from quant.artifact import open_artifact
    from quant.htp.options import HtpOptions
    from quant.htp.schedule import read_schedule

    schedules = {}
    with tempfile.TemporaryDirectory(prefix="qhost-inspect-") as temp:
        if path.suffix == ".qnn":
            artifact = open_artifact(path)
            model = _extract_model(artifact, Path(temp))
            options = HtpOptions.parse(artifact.manifest["htp_options"])
            socs = [device] if device else list(artifact.socs)
        else:
            model, options, socs = path, HtpOptions(), [device or "sm8650"]
        for soc in socs:
            schedules[soc] = read_schedule(model, get_soc(soc), options)
    if json_output:
        print(json.dumps({s: dataclasses.asdict(v) for s, v in schedules.items()}, indent=2))
        return
    for soc, s in schedules.items():
        kinds = ", ".join(f"{kind} {count}" for kind, count in s.kinds[:8])
        stages = ", ".join(f"{n} {us / 1000:.1f} ms" for n, us in s.stage_us.items())
        bar = "".join(_BARS[min(7, v * 8 // (s.vtcm_peak_bytes + 1))] for v in s.vtcm_over_time)
        pairs = [
            ("steps", f"{s.operations:,}: {s.hmx:,} HMX, {s.hvx:,} HVX, {s.dma:,} DMA"),
            ("barriers", f"{s.sync:,}"),
            ("VTCM over time", f"{bar} (peak {_bytes(s.vtcm_peak_bytes)})"),
            ("DRAM read, write", f"{_bytes(s.dram_read_bytes)}, {_bytes(s.dram_write_bytes)}"),
            ("VTCM read, write", f"{_bytes(s.vtcm_read_bytes)}, {_bytes(s.vtcm_write_bytes)}"),
            ("most frequent", kinds),
            ("compile stages", stages),
        ]
        _print_pairs(terminal.stdout(), f"{soc}: the compiler's schedule", pairs)


def _extract_model(artifact: Artifact, folder: Path) -> Path:
    """The artifact's graph, with its external weights beside it."""
    from quant.artifact import MANIFEST

    names = [n for n in artifact.members if "/" not in n and n != MANIFEST]
    artifact.extract_members(folder, names)
    return folder / "model.onnx"


def _artifact_tensors(artifact: Artifact) -> list[QuantizedTensor]:
    with tempfile.TemporaryDirectory(prefix="qhost-inspect-") as temp:
        return _tensors(_extract_model(artifact, Path(temp)))


def _tensors(model: Path) -> list[QuantizedTensor]:
    import onnx

    from quant.qdq import quantized_tensors

    try:
        return quantized_tensors(onnx.load(str(model)))
    except Exception as error:  # onnx raises what protobuf raises
        raise UserError(f"{model} cannot be read as ONNX: {error}.") from error


def _show_tensors(path: Path, json_output: bool, *, asked: bool) -> None:
    if not asked:
        raise UserError(
            f"{path.name} is a model, not a compiled context.",
            "Give --tensors for its encodings, --schedule, or --fallback with it.",
        )
    rows = _tensors(path)
    if json_output:
        print(json.dumps([dataclasses.asdict(r) for r in rows], indent=2))
    else:
        _print_tensors(terminal.stdout(), rows)


def _print_tensors(console: Console, rows: list[QuantizedTensor]) -> None:
    if not rows:
        console.print("No tensor of the graph is quantized: it is a float model.")
        return
    table = Table(
        Column("tensor", overflow="fold"), "role", "type", "shape", "scales",
        Column("scale", justify="right"), Column("zero point", justify="right"),
        title="quantized tensors",
    )  # fmt: skip
    for r in rows:
        along = f"blocks of {r.block_size}, axis {r.axis}" if r.block_size else f"axis {r.axis}"
        table.add_row(
            r.name,
            r.role,
            r.dtype,
            "x".join(str(d) for d in r.shape),
            "one" if r.axis is None else f"{r.scales} along {along}",
            _span(f"{r.scale_min:.6g}", f"{r.scale_max:.6g}"),
            _span(str(r.zero_point_min), str(r.zero_point_max)),
        )
    console.print(table)


def _span(low: str, high: str) -> str:
    return low if low == high else f"{low} .. {high}"


def _print_nodes(console: Console, artifact: Artifact) -> None:
    for soc in artifact.socs:
        table = Table(
            Column("ONNX node", overflow="fold"),
            Column("QNN operators", overflow="fold"),
            title=f"{soc}: what became of the nodes",
        )
        for node, ops in artifact.soc(soc)["node_map"].items():
            table.add_row(node, ", ".join(ops))
        console.print(table)


def _read_contexts(artifact: Artifact) -> dict[str, ContextInfo]:
    """Metadata of every context, from the binaries and not from the manifest."""
    with tempfile.TemporaryDirectory(prefix="qhost-inspect-") as temp:
        return {soc: artifact.read_context(soc, Path(temp)) for soc in artifact.socs}


def _context_json(info: ContextInfo) -> dict[str, Any]:
    soc = soc_of_model(info.soc_model)
    return {"soc": soc.id if soc else None, **info.to_json()}


def _artifact_json(artifact: Artifact, contexts: Mapping[str, ContextInfo]) -> dict[str, Any]:
    manifest = artifact.manifest
    return {
        "file": str(artifact.path),
        "sha256": artifact.sha256,
        "size_bytes": artifact.size_bytes,
        "checksums": "ok",
        **{k: manifest[k] for k in ("model", "task", "variant", "options", "htp_options")},
        "run_settings": manifest["run_settings"],
        "quality": manifest["quality"],
        "socs": {
            soc: {
                **{k: v for k, v in artifact.soc(soc).items() if k != "context"},
                "context": _context_json(info),
                "device_model": manifest["device_model"].get(soc),
            }
            for soc, info in contexts.items()
        },
        "members": manifest["members"],
    }


def _print_artifact(
    console: Console, artifact: Artifact, contexts: Mapping[str, ContextInfo]
) -> None:
    manifest = artifact.manifest
    model, task = manifest["model"], manifest["task"]
    _print_pairs(
        console,
        f"{artifact.path.name}: {model['name']}, {manifest['variant']}",
        [
            ("model type", model["model_type"]),
            ("model fingerprint", model["fingerprint"][:16]),
            ("task", f"{task['name']}{' (synthetic)' if task['synthetic'] else ''}"),
            ("methods", manifest["variant"]),
            ("compile options", _settings(manifest["htp_options"])),
            ("run settings", _settings(manifest["run_settings"])),
            ("notes", "; ".join(manifest["notes"])),
            ("size", _bytes(artifact.size_bytes)),
            ("sha256", artifact.sha256),
            ("checksums", f"ok, {len(artifact.members)} members"),
        ],
    )
    table = Table("engine", "n", "metric", "value", "SQNR dB", "agreement", title="quality")
    for engine, row in manifest["quality"].items():
        cells = (row.get(k) for k in ("n", "metric", "value", "sqnr_db", "agreement"))
        table.add_row(engine, *(_cell(c) for c in cells))
    if manifest["quality"]:
        console.print(table)
    for soc, info in contexts.items():
        entry = artifact.soc(soc)
        _print_context(console, soc, info, entry["context_bytes"])
        figures = entry["figures"]
        predicted = manifest["device_model"].get(soc)
        pairs = [
            ("toolchain", ", ".join(f"{k} {v}" for k, v in sorted(entry["toolchain"].items()))),
            ("download", f"{_bytes(entry['download_bytes'])} after deflate"),
            ("DDR read", f"{_bytes(figures['ddr_read_bytes'])} per inference"),
            ("DDR write", f"{_bytes(figures['ddr_write_bytes'])} per inference"),
            ("spill", f"{_bytes(figures['spill_bytes'])} per inference"),
            ("fill", f"{_bytes(figures['fill_bytes'])} per inference"),
        ]
        _print_pairs(console, f"{soc}: the compiler's figures", pairs)
        if predicted:
            total = predicted["latency_us"]["total"] / 1000.0
            pairs = [("latency", f"{total:.3f} ms"), ("basis", predicted["basis"])]
            _print_pairs(console, f"{soc}: predicted for an emulated device", pairs)


def _print_context(console: Console, title: str, info: ContextInfo, size: int) -> None:
    soc = soc_of_model(info.soc_model)
    _print_pairs(
        console,
        f"{title}: context binary",
        [
            ("SoC", f"{soc.id if soc else 'unknown'} (soc_model {info.soc_model})"),
            ("architecture", f"v{info.arch}"),
            ("toolchain build", info.build_id),
            ("context size", _bytes(size)),
        ],
    )
    for graph in info.graphs:
        _print_pairs(
            console,
            "graph",
            [
                ("name", graph.name),
                ("VTCM in the binary", _bytes(graph.vtcm_bytes)),
                ("spill/fill buffer", _bytes(graph.spill_fill_bytes)),
                ("optimization level", str(graph.optimization_level)),
                ("HVX threads", str(graph.hvx_threads) if graph.hvx_threads else "all"),
            ],
        )
        table = Table("", "tensor", "type", "shape", "encoding", title="tensors")
        for direction, tensors in (("in", graph.inputs), ("out", graph.outputs)):
            for tensor in tensors:
                shape = "x".join(str(d) for d in tensor.shape)
                table.add_row(direction, tensor.name, tensor.dtype, shape, _encoding(tensor))
        console.print(table)


def _encoding(tensor: ContextTensor) -> str:
    encoding = tensor.encoding
    if encoding is None:
        return ""
    if len(encoding.scale) > 1:
        return f"{len(encoding.scale)} scales along axis {encoding.axis}"
    return f"scale {encoding.scale[0]:.6g}, zero point {-encoding.offset[0]}"


def _print_pairs(console: Console, title: str, pairs: Iterable[tuple[str, str]]) -> None:
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in pairs:
        if value:
            table.add_row(name, value)
    console.print(table)


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in sorted(values.items()))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _bytes(count: int) -> str:
    """Bytes with a decimal unit beside them, so that small and large files compare."""
    return f"{count:,} B" if count < 100_000 else f"{count:,} B ({count / 1e6:.2f} MB)"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
