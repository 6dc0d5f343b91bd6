"""Experimental: contexts with sparse weight compression for pruned int8 models (v73 and later).

The HTP compiler can store a pruned int8 weight as a bitmap and its non-zero values, which makes
the context smaller and saves DDR reads; the outputs do not change. onnxruntime-qnn does not offer
it. Here the graph is written as a DLC by the provider and compiled through the compiler's C
interface (quant.htp._native) with one more graph option.

Undocumented, and therefore checked instead of trusted: how the interface's table is laid out and
how the option is numbered. So this works with the one toolchain it was proved with (TOOLCHAIN)
and refuses every other; and a context is only handed out when its metadata are those of the dense
one, it is smaller, and its outputs in the HTP emulator are bit-equal to the dense context's.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quant.errors import ToolchainError, UserError
from quant.htp._worker import DLC_DIR
from quant.htp.compile import (
    COMPILE_TIMEOUT_S,
    Compiled,
    read_log,
    run_worker,
    stage_model,
    toolchain_versions,
    worker_command,
)
from quant.htp.emulator import HtpEmulator
from quant.htp.inspect import ContextInfo, read_context
from quant.htp.options import HtpOptions
from quant.htp.soc import Soc

TOOLCHAIN = {"onnxruntime-qnn": "2.7.0", "qairt": "v2.51.0.260929181845"}
FIRST_ARCH = 73

_SPARSE_WEIGHTS = 6  # the graph optimization type, found by trial with TOOLCHAIN


def compress_weights(
    onnx_path: Path,
    soc: Soc,
    dense: Compiled,
    options: HtpOptions,
    feeds: Sequence[Mapping[str, np.ndarray[Any, Any]]],
    out_dir: Path,
) -> Compiled:
    """A context of the same graph with compressed weights, in out_dir.

    `dense`: the ordinary context of the same graph, SoC and options. `feeds`: inputs on which the
    outputs are compared. Raises UserError saying why where it is refused: the part, the options,
    the toolchain, no gain, other metadata, or outputs that are not bit-equal.
    """
    _check(soc, dense, options, feeds)
    import onnxruntime_qnn

    start = time.monotonic()
    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".sparse-", dir=out_dir) as temp:
        work = Path(temp)
        dlc = _write_dlc(onnx_path, soc, work)
        request = {
            "libs": onnxruntime_qnn.LIB_DIR_FULL_PATH,
            "dlc": str(dlc),
            "soc_model": soc.soc_model,
            "optimizations": {_SPARSE_WEIGHTS: 1.0},
        }
        command = worker_command(module="quant.htp._native")
        subject = f"{onnx_path.name} for {soc.id} with sparse weights"
        answer, log = run_worker(command, request, work, subject, COMPILE_TIMEOUT_S)
        if not answer["ok"]:
            raise UserError(
                f"Sparse weight compression failed for {soc.id}: {answer['error']}.",
                "Compile without --htp-sparse-compression.",
            )
        figures, stages = read_log(log)
        # The wrapper names the binary beside it, so a copy of it serves the new one.
        shutil.copyfile(dense.context_onnx, work / "context.onnx")
        info = read_context(work / "context.bin")
        _verify(dense, info, work, feeds)
        for name in ("context.bin", "context.onnx"):
            (work / name).replace(out_dir / name)
    return dataclasses.replace(
        dense,
        context_onnx=out_dir / "context.onnx",
        context_bin=out_dir / "context.bin",
        figures=figures,
        info=info,
        seconds=time.monotonic() - start,
        stage_us=stages,
        toolchain={**dense.toolchain, "sparse_weights": "experimental"},
    )


def _check(soc: Soc, dense: Compiled, options: HtpOptions, feeds: Sequence[object]) -> None:
    hint = "Compile without --htp-sparse-compression."
    if soc.arch < FIRST_ARCH:
        raise UserError(
            f"Sparse weight compression needs v{FIRST_ARCH} or later; {soc.id} has v{soc.arch}.",
            hint,
        )
    have = {**toolchain_versions(), "qairt": dense.info.build_id}
    for name, version in TOOLCHAIN.items():
        if have[name] != version:
            raise UserError(
                f"Sparse weight compression was proved with {name} {version} only; "
                f"this is {have[name]}.",
                hint,
            )
    if options != HtpOptions():
        raise UserError(
            "Sparse weight compression is proved with default compile options only.",
            "Leave the compile options out, or the compression.",
        )
    if not feeds:
        raise ValueError("outputs must be compared on at least one input")


def _write_dlc(onnx_path: Path, soc: Soc, work: Path) -> Path:
    stage_model(onnx_path, work)
    subject = f"{onnx_path.name} for {soc.id}"
    command = worker_command("dlc")
    answer, _ = run_worker(command, {"soc_model": soc.soc_model}, work, subject, COMPILE_TIMEOUT_S)
    files = list((work / DLC_DIR).glob("*.dlc"))
    if len(files) != 1:
        raise ToolchainError(
            f"The provider wrote {len(files)} DLC files for {subject}, not one. "
            f"{answer.get('error', '')}"
        )
    return files[0]


def _verify(
    dense: Compiled,
    info: ContextInfo,
    work: Path,
    feeds: Sequence[Mapping[str, np.ndarray[Any, Any]]],
) -> None:
    hint = "Compile without --htp-sparse-compression."
    want = [(g.name, g.inputs, g.outputs) for g in dense.info.graphs]
    have = [(g.name, g.inputs, g.outputs) for g in info.graphs]
    if (info.soc_model, info.arch) != (dense.info.soc_model, dense.info.arch) or want != have:
        raise UserError("The sparse context has another interface than the dense one.", hint)
    sizes = [p.stat().st_size for p in (dense.context_bin, work / "context.bin")]
    if sizes[1] >= sizes[0]:
        raise UserError(
            f"Sparse weight compression does not help: {sizes[0]:,} bytes dense, "
            f"{sizes[1]:,} compressed.",
            "Prune first (--methods 'int8,sparse[pattern=2:4]'), or leave it out.",
        )
    with (
        HtpEmulator(dense.context_onnx) as one,
        HtpEmulator(work / "context.onnx") as two,
    ):
        for expected, got in zip(one.run(feeds), two.run(feeds), strict=True):
            if not all(np.array_equal(expected[name], got[name]) for name in expected):
                raise UserError("The sparse context's outputs differ from the dense one's.", hint)
