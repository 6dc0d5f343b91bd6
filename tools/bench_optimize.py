"""The figures of docs/hardware.md: compile for every SoC, optimize, compress sparse weights.

    python tools/bench_optimize.py compile MODEL.onnx [TASK.npz] [--methods int8]
    python tools/bench_optimize.py spill
    python tools/bench_optimize.py sparse
    python tools/bench_optimize.py never-worse MODEL.onnx [TASK.npz] [--methods int8]

Everything is the compiler's own figure or the HTP emulator's output; nothing is a device's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

from quant.errors import ToolchainError, UserError
from quant.htp.compile import compile_context
from quant.htp.options import HtpOptions
from quant.htp.package import PackageRequest, package
from quant.htp.search import parse_objectives
from quant.htp.soc import SOCS, get_soc
from quant.htp.sparse import compress_weights
from quant.methods.grammar import export, parse_methods, quantize
from quant.model import load, save
from quant.optimize import optimize_artifact
from quant.task import load_task

sys.path.insert(0, str(Path(__file__).parent))
from mobilenet_v2 import mobilenet_v2
from spill_graphs import conv_stack


def _variant(work: Path, model_path: Path, task_path: Path | None, methods: str) -> Path:
    """The model quantized with `methods`, as .onnx."""
    model = load(model_path)
    (variant,) = parse_methods(methods)
    path = work / "variant.onnx"
    save(export(quantize(model, load_task(task_path, model), variant)), path)
    return path


def compile_everywhere(args: argparse.Namespace) -> None:
    """Two compiles per SoC: right metadata, equal bytes, or the compiler's reason."""
    with tempfile.TemporaryDirectory() as temp:
        work = Path(temp)
        path = _variant(work, args.model, args.task, args.methods)
        print("| SoC | context bytes | DDR read+write | spill+fill | two compiles |")
        print("|---|---|---|---|---|")
        for soc in SOCS.values():
            try:
                one = compile_context(path, soc, HtpOptions(), work / "one")
                bytes_one = one.context_bin.read_bytes(), one.context_onnx.read_bytes()
                two = compile_context(path, soc, HtpOptions(), work / "two")
            except (UserError, ToolchainError) as error:
                print(f"| {soc.id} | skipped: {str(error).splitlines()[0][:160]} | | | |")
                continue
            same = bytes_one == (two.context_bin.read_bytes(), two.context_onnx.read_bytes())
            spilled = one.figures.spill_bytes + one.figures.fill_bytes
            print(
                f"| {soc.id} | {len(bytes_one[0]):,} | {one.figures.ddr_total_bytes:,} | "
                f"{spilled:,} | {'identical' if same else 'DIFFER'} |",
                flush=True,
            )


def _optimize(model: Path, work: Path, task: Path | None, options: HtpOptions) -> None:
    soc = get_soc("sm8650")
    request = PackageRequest(
        model, work / "in.qnn", (soc,), options=options, task_path=task, golden_samples=1
    )
    artifact, results = package(request, lambda result: None)
    if artifact is None:
        print(f"{model.name}: {results[0].status}: {results[0].reason}")
        return
    done = optimize_artifact(artifact, work / "out.qnn", parse_objectives("memory"))
    for trial in done.trials:
        f = trial.compiled[soc.id].figures if trial.compiled else None
        figures = (
            f"read {f.ddr_read_bytes:,} write {f.ddr_write_bytes:,} spill {f.spill_bytes:,} "
            f"fill {f.fill_bytes:,}"
            if f
            else ""
        )
        print(f"  {trial.name:32} {figures} {trial.verdict}")
    before, after = (t.compiled[soc.id].figures for t in (done.baseline, done.chosen))
    change = after.ddr_total_bytes / before.ddr_total_bytes - 1
    print(f"{model.name}: {before.ddr_total_bytes:,} -> {after.ddr_total_bytes:,} ({change:+.1%})")
    print(f"  {done.why}", flush=True)


def spill(args: argparse.Namespace) -> None:
    """The two stacks: 512x512 with default options, 256x256 handed over at mode 3."""
    with tempfile.TemporaryDirectory() as temp:
        work = Path(temp)
        small = conv_stack(work / "stack256.onnx", 256, 64)
        _optimize(small, work, None, HtpOptions(finalization_mode=3))
        _optimize(conv_stack(work / "stack512.onnx", 512, 32), work, None, HtpOptions())


def sparse(args: argparse.Namespace) -> None:
    """MobileNetV2 with 2:4 int8 weights, compressed against dense."""
    soc = get_soc("sm8650")
    feeds = [{"x": np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)}]
    with tempfile.TemporaryDirectory() as temp:
        work = Path(temp)
        path = mobilenet_v2(work / "m.onnx", sparse=True)
        dense = compile_context(path, soc, HtpOptions(), work / "dense")
        small = compress_weights(path, soc, dense, HtpOptions(), feeds, work / "sparse")
        sizes = [c.context_bin.stat().st_size for c in (dense, small)]
        reads = [c.figures.ddr_read_bytes for c in (dense, small)]
        print(f"context {sizes[0]:,} -> {sizes[1]:,} bytes ({sizes[1] / sizes[0] - 1:+.1%})")
        print(f"DDR read {reads[0]:,} -> {reads[1]:,} bytes ({reads[1] / reads[0] - 1:+.1%})")
        print("outputs bit-equal to the dense context's (verified, or it would have been refused)")


def never_worse(args: argparse.Namespace) -> None:
    """`optimize --optimize memory` on a model of one's own."""
    with tempfile.TemporaryDirectory() as temp:
        work = Path(temp)
        path = _variant(work, args.model, args.task, args.methods)
        _optimize(path, work, args.task, HtpOptions())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(required=True)
    for name, function in (("compile", compile_everywhere), ("never-worse", never_worse)):
        verb = verbs.add_parser(name, help=function.__doc__)
        verb.add_argument("model", type=Path)
        verb.add_argument("task", type=Path, nargs="?")
        verb.add_argument("--methods", default="fp16")
        verb.set_defaults(function=function)
    for name, function in (("spill", spill), ("sparse", sparse)):
        verbs.add_parser(name, help=function.__doc__).set_defaults(function=function)
    args = parser.parse_args()
    args.function(args)


if __name__ == "__main__":
    main()
