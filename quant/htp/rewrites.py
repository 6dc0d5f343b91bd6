"""Rewrites that keep a graph's function and may give the compiler less to do.

fold    constant subgraphs computed, identities and inverse pairs removed, transposes moved and
        cancelled (layout), batch normalisation folded: onnxruntime's basic optimizations
fuse    layer normalisation, GELU and linear layers spelled in pieces become one operator each

The compile session folds by itself before it hands the graph to the HTP, and the HTP compiler
keeps small intermediate tensors in VTCM, so neither need help; which is why they are candidates
whose figures decide, not steps that are always taken.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir

from quant.fuse import fuse_gelu, fuse_layer_norm, fuse_linear, fuse_tanh_gelu, remove_dead
from quant.simplify import drop_identities, fold_batch_normalization, normalize_gemm


def fold(source: Path, target: Path) -> bool:
    """Write `source` after onnxruntime's basic optimizations; False where they change nothing,
    or the result is not plain ONNX."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 4
    try:
        ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
        before, after = (onnx.load(str(p), load_external_data=False) for p in (source, target))
    except Exception:  # noqa: BLE001 - a graph the CPU provider cannot take is left as it is
        return False
    plain = all(node.domain in ("", "ai.onnx") for node in after.graph.node)
    return plain and _operators(before) != _operators(after)


def fuse(source: Path, target: Path) -> bool:
    """Write `source` with its decomposed operators fused; False where there are none."""
    model = ir.load(source)
    graph = model.graph
    passes: tuple[Callable[[ir.Graph], bool], ...] = (
        drop_identities, fold_batch_normalization, fuse_layer_norm, fuse_gelu, fuse_tanh_gelu,
        fuse_linear, normalize_gemm,
    )  # fmt: skip
    changed = [apply(graph) for apply in passes]
    if not any(changed):
        return False
    remove_dead(graph)
    graph.sort()
    ir.save(model, target)
    return True


REWRITES: dict[str, Callable[[Path, Path], bool]] = {"fold": fold, "fuse": fuse}


def _operators(model: onnx.ModelProto) -> list[str]:
    return sorted(node.op_type for node in model.graph.node)
