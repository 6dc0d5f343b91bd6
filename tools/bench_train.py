"""Figures of the training methods: make training data of the samples, run variants, print a table.

    python tools/bench_train.py data efficientnet-lite0 train.npz --samples 1500
    python tools/bench_train.py run SAMPLE_DIR --train train.npz --seeds 3 'qat[weight-bits=4]' ...
    python tools/bench_train.py resume SAMPLE_DIR 'qat[epochs=16]'

`run` quantizes, evaluates the exported QDQ graph in onnxruntime (float arithmetic between Q and
DQ) and prints one JSON line per variant and seed, with what the saved file holds: distinct
integers per clustered tensor, groups that break an n:m pattern, bytes of initializers. With
--soc it compiles as well and looks the clustered integers up in the context binary. In a variant,
TRAIN stands for the file and SEED for the seed.
`resume` trains once undisturbed, and once killed (SIGKILL) after a checkpoint, started again, and
killed again; the two files must be the same. Needs the extra `train`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from quant.evaluate import evaluate_outputs, run_model
from quant.figures import Provenance
from quant.graph import array_of
from quant.htp.compile import compile_context
from quant.htp.options import HtpOptions
from quant.htp.soc import get_soc
from quant.layers import linear_layers
from quant.methods.grammar import Variant, export, parse_methods, quantize
from quant.methods.sparse import SparseOptions, eligible
from quant.model import load, save
from quant.pruning import Pattern, parse_pattern
from quant.state import Quantized
from quant.task import load_task

Array = np.ndarray[Any, Any]
_TILE = 32


def make_data(sample: str, output: Path, samples: int, work: Path) -> None:
    """Training samples that are in neither the evaluation nor the calibration split."""
    if sample == "efficientnet-lite0":
        from host.samples import efficientnet_lite0, fashion

        split = fashion.load_split("train")
        rows = slice(2000, 2000 + samples)
        images = efficientnet_lite0.preprocess(split.images[rows]).astype(np.float16)
        np.savez(output, image=images, labels=split.labels[rows])
    elif sample == "fashion-cnn":
        from host.samples import SHIPPED, fashion, sample_path

        used = json.loads((sample_path(SHIPPED) / "indices.json").read_text())["calibration"]
        split = fashion.load_split("train")
        kept = np.setdiff1d(np.arange(len(split.labels)), used)[:samples]
        np.savez(output, image=fashion.normalise(split.images[kept]), labels=split.labels[kept])
    elif sample == "small-gpt":
        from host.samples import small_gpt as recipe
        from host.samples.bpe import Bpe

        held_out = set(json.loads(recipe.INDICES.read_text())["evaluation"])
        chapters = recipe.read_chapters(work)
        words = [w for name, text in chapters.items() if name not in held_out for w in text]
        tokens = np.array(Bpe.train(iter(words), recipe.VOCABULARY).encode(words), np.int64)
        rng = np.random.default_rng(1)
        starts = rng.choice(len(tokens) - recipe.LENGTH - 1, samples, replace=False)
        windows = tokens[starts[:, None] + np.arange(recipe.LENGTH + 1)]
        np.savez(output, input_ids=windows[:, :-1], labels=windows[:, 1:])
    else:
        raise SystemExit(f"no training data is known for {sample}")


def saved_integers(path: Path) -> dict[str, Array]:
    """Quantized weights of a saved QDQ graph by the name of the float weight."""
    return {
        t.name.removesuffix("_quantized"): onnx.numpy_helper.to_array(t).astype(np.int64)
        for t in onnx.load(path).graph.initializer
        if t.name.endswith("_quantized")
    }


def broken_groups(codes: Array, pattern: Pattern, axis: int) -> int:
    """Groups of m consecutive input channels of one tap that hold more than n non-zeros."""
    moved = np.moveaxis(codes, axis, -1)
    groups = moved.reshape(*moved.shape[:-1], -1, pattern.m)
    return int(((groups != 0).sum(-1) > pattern.n).sum())


def pattern_of(variant: Variant) -> Pattern | None:
    given = [s.options for s in variant.steps if isinstance(s.options, SparseOptions)]
    return parse_pattern(given[-1].structured_pattern) if given else None


def file_facts(state: Quantized, variant: Variant, path: Path) -> dict[str, Any]:
    """What the saved file holds, read back from it."""
    codes = saved_integers(path)
    tensors = onnx.load(path).graph.initializer
    facts: dict[str, Any] = {
        "initializer_bytes": sum(onnx.numpy_helper.to_array(t).nbytes for t in tensors)
    }
    if state.codebooks:
        facts["clustered_tensors"] = len(state.codebooks)
        facts["most_distinct"] = max(int(np.unique(codes[n]).size) for n in state.codebooks)
    pattern = pattern_of(variant)
    if pattern is not None:
        held: dict[str, int] = {}
        for layer in linear_layers(state.model):
            shape = tuple(array_of(state.model.ir.graph.initializers[layer.weight]).shape)
            if eligible(layer, shape, pattern):
                axis = 1 if layer.is_conv else 1 - layer.axis
                held[layer.weight] = broken_groups(codes[layer.weight], pattern, axis)
        facts["pattern_layers"] = len(held)
        facts["pattern_broken_groups"] = sum(held.values())
        zeros = [float((codes[n] == 0).mean()) for n in held]
        facts["least_zeros_of_a_layer"] = min(zeros)
    return facts


def found_in(context: Array, codes: Array) -> bool:
    """Whether a stretch of the context is these int8 weights in some order.

    The compiler reorders weights into tiles and may fill channels up to whole tiles of 32 with
    zeros: the stretch then has the same non-zero bytes equally often, and zeros. Layers whose
    tiles lie apart are not found.
    """
    taps = int(np.prod(codes.shape[2:]))
    padded = taps * int(np.prod([-(-n // _TILE) * _TILE for n in codes.shape[:2]]))
    data = codes.astype(np.int8).view(np.uint8).reshape(-1)
    return any(_stretch(context, data, length) for length in sorted({data.size, padded}))


def _stretch(context: Array, data: Array, length: int) -> bool:
    values, counts = np.unique(data[data != 0], return_counts=True)
    allowed = np.isin(context, values) | (context == 0)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], allowed.astype(np.int8), [0]])))
    for start, end in edges.reshape(-1, 2):
        if end - start < length:
            continue
        alike = np.ones(end - start - length + 1, bool)
        for value, count in zip(values, counts, strict=True):
            total = np.concatenate([[0], np.cumsum(context[start:end] == value)])
            alike &= total[length:] - total[:-length] == count
        if alike.any():
            return True
    return False


def compiled_facts(state: Quantized, path: Path, soc: str) -> dict[str, Any]:
    """Bytes of the context, and which clustered tensors lie in it as their codebook's integers."""
    with tempfile.TemporaryDirectory(prefix="bench-train-") as folder:
        compiled = compile_context(path, get_soc(soc), HtpOptions(), Path(folder))
        context = np.fromfile(compiled.context_bin, np.uint8)
    facts: dict[str, Any] = {"context_bytes": context.size}
    if state.codebooks:
        codes = saved_integers(path)
        found = {n: found_in(context, codes[n]) for n in state.codebooks}
        facts["found_in_context"] = f"{sum(found.values())} of {len(found)}"
        facts["not_found"] = [n for n, there in found.items() if not there]
    return facts


def run(
    directory: Path, train: Path | None, variants: list[str], seeds: range, n: int, soc: str
) -> None:
    model = load(directory / "model.onnx")
    task = load_task(directory / "task.npz", model)
    reference = run_model(model, task, n)
    score = evaluate_outputs(task, reference, reference, Provenance.ORT_CPU)
    first = {"variant": "float", "metric": score.metric, "value": score.value, "n": score.n}
    print(json.dumps(first), flush=True)
    for text in variants:
        values = []
        for seed in seeds:
            given = text.replace("TRAIN", str(train)).replace("SEED", str(seed))
            (variant,) = parse_methods(given)
            start, cpu = time.perf_counter(), time.process_time()
            state = quantize(model, task, variant)
            exported = export(state)
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
            with tempfile.TemporaryDirectory(prefix="bench-train-") as folder:
                path = Path(folder) / "model.onnx"
                save(exported, path)
                facts = file_facts(state, variant, path)
                if soc:
                    facts |= compiled_facts(state, path, soc)
            judged = time.process_time()
            outputs = run_model(exported, task, n)
            judged = time.process_time() - judged
            score = evaluate_outputs(task, reference, outputs, Provenance.ORT_CPU)
            values.append(score.value or 0.0)
            row = {
                "variant": variant.canonical.replace(str(train), "TRAIN"),
                "value": score.value,
                "sqnr_db": round(score.sqnr_db, 2),
                "agreement": score.agreement,
                "seconds": round(seconds, 1),
                "cpu_s": round(cpu, 1),
                "cpu_s_judging": round(judged, 1),
                "load": round(os.getloadavg()[1], 1),
                **facts,
                "notes": state.notes,
            }
            print(json.dumps(row), flush=True)
        if len(values) > 1:
            print(json.dumps({"variant": text, "median": statistics.median(values)}), flush=True)


def resume(directory: Path, variant: str, kills: int = 2) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-resume-") as temp:

        def start(name: str) -> subprocess.Popen[bytes]:
            command = [
                sys.executable, "-m", "host", "quantize", variant,
                "--model-path", str(directory / "model.onnx"),
                "--task", str(directory / "task.npz"),
                "--output-path", str(Path(temp) / f"{name}.onnx"),
            ]  # fmt: skip
            environment = {**os.environ, "QHOST_CACHE_DIR": str(Path(temp) / name)}
            log = (Path(temp) / f"{name}.log").open("ab")
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

        assert start("whole").wait() == 0
        stopped_at = []
        for _ in range(kills):
            child = start("killed")
            before = _checkpoint(Path(temp))
            while child.poll() is None and _checkpoint(Path(temp)) == before:
                time.sleep(0.2)
            child.kill()
            child.wait()
            log = (Path(temp) / "killed.log").read_text()
            stopped_at.append(log.rsplit("training step ", 1)[-1].split(",")[0])
        left = [p.name for p in Path(temp).glob("*.onnx")]
        assert start("killed").wait() == 0
        digests = [
            hashlib.sha256((Path(temp) / f"{n}.onnx").read_bytes()).hexdigest()
            for n in ("whole", "killed")
        ]
        row = {
            "variant": variant,
            "killed_near_step": stopped_at,
            "files_after_the_kills": left,
            "sha256": digests,
            "same": digests[0] == digests[1],
        }
        print(json.dumps(row))


def _checkpoint(folder: Path) -> float:
    return max((p.stat().st_mtime for p in folder.glob("killed/training/*.npz")), default=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    verbs = parser.add_subparsers(dest="verb", required=True)
    data = verbs.add_parser("data", help="write training data of a sample")
    data.add_argument("sample")
    data.add_argument("output", type=Path)
    data.add_argument("--samples", type=int, default=1500)
    data.add_argument("--work-dir", type=Path, default=Path("work"), help="for downloads")
    bench = verbs.add_parser("run", help="quantize and evaluate variants of a sample")
    bench.add_argument("sample_dir", type=Path)
    bench.add_argument("variants", nargs="+")
    bench.add_argument("--train", type=Path)
    bench.add_argument("--seeds", type=int, default=1, help="how many, from --first-seed")
    bench.add_argument("--first-seed", type=int, default=0)
    bench.add_argument("--soc", default="", help="compile for it, too: sm8650")
    bench.add_argument("--samples", type=int, default=1000)
    killed = verbs.add_parser("resume", help="kill a training and compare what it ends with")
    killed.add_argument("sample_dir", type=Path)
    killed.add_argument("variant")
    given = parser.parse_args()
    if given.verb == "data":
        make_data(given.sample, given.output, given.samples, given.work_dir)
    elif given.verb == "resume":
        resume(given.sample_dir, given.variant)
    else:
        seeds = range(given.first_seed, given.first_seed + given.seeds)
        run(given.sample_dir, given.train, given.variants, seeds, given.samples, given.soc)


if __name__ == "__main__":
    main()
