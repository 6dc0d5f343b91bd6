"""Measure `hybrid` on real models: the figures of docs/hybrid.md.

    python tools/bench_hybrid.py minilm MODEL_DIR
    python tools/bench_hybrid.py efficientnet MODEL_DIR
    python tools/bench_hybrid.py sweep MODEL_DIR
    python tools/bench_hybrid.py budgets MODEL_DIR [MODEL_DIR ...]
    python tools/bench_hybrid.py compile MODEL_DIR

MODEL_DIR holds model.onnx and task.npz as `qhost samples build` makes them. CPU seconds are those
of this process, user and system, from loading the model to the exported QDQ graph.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from quant.budget import stored_size
from quant.encoding import QuantPlan, asymmetric
from quant.errors import UserError
from quant.evaluate import evaluate_outputs, run_model
from quant.figures import Provenance
from quant.graph import activations, folded_into, initializer_uses, name_of
from quant.htp.compile import compile_context
from quant.htp.options import HtpOptions
from quant.htp.soc import get_soc
from quant.methods.grammar import export, make_variant, quantize
from quant.methods.hybrid import HybridOptions, apply
from quant.metrics import cosine_rows
from quant.model import Model, load, save
from quant.parts import computes, node_key
from quant.planning import PlanOptions, activation_ranges, weight_encoding
from quant.rewrite import insert_qdq
from quant.sensitivity import analyse
from quant.simplify import simplify
from quant.state import Quantized
from quant.task import Task, load_task

Figures = dict[str, Any]


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _load(folder: Path) -> tuple[Model, Task]:
    model = load(folder / "model.onnx")
    return model, load_task(folder / "task.npz", model)


def minilm(folder: Path) -> Figures:
    """At most 30 % of the activations at 16 bits."""
    start = _cpu()
    model, task = _load(folder)
    options = {"max_a16": "30%", "sensitivity_samples": 2}
    done = quantize(model, task, make_variant("hybrid", **options))
    graph = export(done)
    spent = _cpu() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    reference, outputs = run_model(model, task), run_model(graph, task)
    judged = evaluate_outputs(task, reference, outputs, Provenance.ORT_CPU)
    plain = evaluate_outputs(task, reference, reference, Provenance.ORT_CPU)
    a, b = (np.stack([o["embedding"].ravel() for o in x]) for x in (reference, outputs))
    with np.load(folder / "task.npz", allow_pickle=False) as data:
        feeds = {k: data[f"meta_lee_{k}"] for k in task.inputs}
        human = data["meta_lee_similarity"]
    pairs = replace(task, inputs=feeds, labels=None, metric=None)
    upper = np.triu_indices(len(human), 1)

    def pearson(which: Model) -> float:
        e = np.stack([o["embedding"].ravel() for o in run_model(which, pairs)])
        return float(np.corrcoef((e @ e.T)[upper], human[upper])[0, 1])

    return {
        "cpu_s": spent,
        "peak_mib": peak,
        "share_above_8_bits": done.reports["sensitivity"]["chosen"]["share_above_8_bits"],
        "cosine": float(np.mean(cosine_rows(a, b))),
        "n": judged.n,
        "sentiment": judged.value,
        "sentiment_float": plain.value,
        "lee": pearson(graph),
        "lee_float": pearson(model),
        "notes": list(done.notes),
    }


def efficientnet(folder: Path) -> Figures:
    """A mean of at most 6 weight bits, activations at 16 bits."""
    start = _cpu()
    model, task = _load(folder)
    graph = simplify(model).ir.graph
    widths = {node_key(n): 16 for n in graph if computes(n)}
    base, elements = stored_size(graph, widths)
    scales = sum(
        weight_encoding(u, PlanOptions()).scale.size
        for u in initializer_uses(graph)
        if name_of(u.value) in elements
    )
    # Mean 6 bits; a scale has four bytes, and a zero point at most one.
    target = (base + sum(elements.values()) * 6 / 8 + 4.5 * scales) / 1e6
    done = quantize(
        model,
        task,
        make_variant("hybrid", target_size=target, activation_bits=16, sensitivity_samples=8),
    )
    exported = export(done)
    spent = _cpu() - start
    bits = {r.name: r.bits for r in done.layers}
    mean = sum(bits[n] * c for n, c in elements.items()) / sum(elements.values())
    reference, outputs = run_model(model, task), run_model(exported, task)
    judged = evaluate_outputs(task, reference, outputs, Provenance.ORT_CPU)
    return {
        "cpu_s": spent,
        "eligible_layers": len(elements),
        "layers_at_4_bits": sum(b == 4 for b in bits.values()),
        "mean_weight_bits": mean,
        "top1": judged.value,
        "n": judged.n,
        "agreement": judged.agreement,
        "kept_at_8_bits": sorted(n for n in elements if bits[n] == 8),
    }


def _ranks(x: list[float]) -> np.ndarray[Any, Any]:
    return np.argsort(np.argsort(np.array(x), kind="stable")).astype(np.float64)


def _spearman(a: list[float], b: list[float]) -> float:
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def sweep(folder: Path, n: int = 64) -> Figures:
    """The analysis against the export and evaluation of each tensor alone, on other samples."""
    model, task = _load(folder)
    model = simplify(model)
    ranges = activation_ranges(model, task, PlanOptions(), {})
    start = _cpu()
    found = analyse(model, task, ranges, samples=4)
    spent = _cpu() - start
    reference = run_model(model, task, n)
    names = [o.name for o in model.outputs]

    def error(plan: QuantPlan) -> float:
        outputs = run_model(insert_qdq(model, plan), task, n)
        power = sum(float(np.square(r[k]).sum()) for r in reference for k in names)
        lost = sum(
            float(np.square(r[k] - o[k]).sum())
            for r, o in zip(reference, outputs, strict=True)
            for k in names
        )
        return lost / power

    full: dict[str, tuple[list[float], list[float]]] = {}
    start = _cpu()
    for bits in (4, 8):
        ours, theirs = [], []
        for use in initializer_uses(model.ir.graph):
            if use.role == "weight":
                encoding = weight_encoding(use, PlanOptions(weight_bits=bits))
                ours.append(found.weights[name_of(use.value)][bits])
                theirs.append(error(QuantPlan({name_of(use.value): encoding})))
        full[f"weights_at_{bits}_bits"] = ours, theirs

    ours, theirs = [], []
    for value in activations(model.ir.graph):
        name = name_of(value)
        if folded_into(value) is None and name in found.activations:
            ours.append(sum(found.activations[name].values()))
            theirs.append(error(QuantPlan({name: asymmetric(*ranges[name], 8)})))
    full["activations_at_8_bits"] = ours, theirs
    return {
        "samples_analysis": found.samples,
        "samples_sweep": n,
        "cpu_s_analysis": spent,
        "cpu_s_sweep": _cpu() - start,
        "tensors": {k: len(v[0]) for k, v in full.items()},
        "rank_correlation": {k: _spearman(*v) for k, v in full.items()},
    }


def budgets(folders: list[Path], count: int = 10) -> Figures:
    """Random budgets: kept, or refused with the closest possible."""
    rng = np.random.default_rng(11)
    kept = refused = 0
    broken: list[str] = []
    for folder in folders:
        model, task = _load(folder)
        simple = simplify(model)
        graph = simple.ir.graph
        _, elements = stored_size(graph, {node_key(n): 8 for n in graph if computes(n)})
        whole = sum(elements.values()) / 1e6
        for _ in range(count):
            size, share = float(rng.uniform(0.3, 1.4)) * whole, float(rng.uniform(0.0, 1.0))
            options = HybridOptions(target_size=size, max_a16=f"{share:.4f}", sensitivity_samples=1)
            text = f"{folder.name}: {size:.4g} MB, {share:.1%} above 8 bits"
            try:
                done = apply(Quantized(simple), task, options)
            except UserError as e:
                refused += 1
                if "Allow" not in e.hint:
                    broken.append(f"{text}: refused without the closest: {e}")
                continue
            kept += 1
            stored = _stored_bytes(done) / 1e6
            wide = done.reports["sensitivity"]["chosen"]["share_above_8_bits"]
            if stored > size or wide > share + 1e-4:
                broken.append(f"{text}: got {stored:.4g} MB and {wide:.1%}")
    return {"kept": kept, "refused": refused, "broken": broken}


def _stored_bytes(done: Quantized) -> int:
    """What the constants of the exported graph take, by their own types."""
    total = 0
    for value in export(done).ir.graph.initializers.values():
        constant = value.const_value
        if constant is None or value.dtype is None or value.dtype.name == "INT64":
            continue
        name = value.name or ""
        described = name.removesuffix("_scale").removesuffix("_zero_point")
        if described != name:  # of an activation, or derived as a bias's is: not a weight's
            encoding = done.plan.tensors.get(described)
            if encoding is None or encoding.bits == 32 or encoding.axis is None:
                continue
        total += int(np.ceil(constant.size * value.dtype.itemsize))
    return total


def compile_all(folder: Path) -> Figures:
    """One graph of fp16, int8 and int4 on v69, v73, v75 and v79."""
    model, task = _load(folder)
    done = quantize(model, task, make_variant("hybrid"))
    bits = sorted({r.bits for r in done.layers})
    sizes: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-hybrid-") as temp:
        save(export(done), Path(temp) / "model.onnx")
        for soc in ("sm8450", "sm8550", "sm8650", "sm8750"):
            out = Path(temp) / soc
            compiled = compile_context(Path(temp) / "model.onnx", get_soc(soc), HtpOptions(), out)
            sizes[soc] = compiled.context_bin.stat().st_size
    return {"weight_bits": bits, "context_bytes": sizes, "notes": list(done.notes)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("what", choices=["minilm", "efficientnet", "sweep", "budgets", "compile"])
    parser.add_argument("folders", type=Path, nargs="+")
    given = parser.parse_args()
    if given.what == "budgets":
        figures = budgets(given.folders)
    else:
        run = {
            "minilm": minilm,
            "efficientnet": efficientnet,
            "sweep": sweep,
            "compile": compile_all,
        }[given.what]
        figures = run(given.folders[0])
    json.dump(figures, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
