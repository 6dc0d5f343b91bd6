"""Figures of the training methods: make training data of the samples, run variants, print a table.

    python tools/bench_train.py data efficientnet-lite0 train.npz --samples 1500
    python tools/bench_train.py run SAMPLE_DIR --train train.npz --seeds 3 'qat[weight-bits=4]' ...

`run` quantizes, evaluates the exported QDQ graph in onnxruntime (float arithmetic between Q and
DQ) and prints one JSON line per variant and seed. In a variant, TRAIN stands for the file and SEED
for the seed. Needs the extra `train`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np

from quant.evaluate import evaluate_outputs, run_model
from quant.figures import Provenance
from quant.methods.grammar import export, parse_methods, quantize
from quant.model import load
from quant.task import load_task


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


def run(directory: Path, train: Path | None, variants: list[str], seeds: int, n: int) -> None:
    model = load(directory / "model.onnx")
    task = load_task(directory / "task.npz", model)
    reference = run_model(model, task, n)
    score = evaluate_outputs(task, reference, reference, Provenance.ORT_CPU)
    print(json.dumps({"variant": "float", "metric": score.metric, "value": score.value}))
    for text in variants:
        values = []
        for seed in range(seeds):
            given = text.replace("TRAIN", str(train)).replace("SEED", str(seed))
            (variant,) = parse_methods(given)
            start = time.perf_counter()
            state = quantize(model, task, variant)
            seconds = time.perf_counter() - start
            outputs = run_model(export(state), task, n)
            score = evaluate_outputs(task, reference, outputs, Provenance.ORT_CPU)
            values.append(score.value or 0.0)
            row = {
                "variant": variant.canonical,
                "value": score.value,
                "sqnr_db": round(score.sqnr_db, 2),
                "agreement": score.agreement,
                "seconds": round(seconds, 1),
                "notes": state.notes,
            }
            print(json.dumps(row), flush=True)
        if seeds > 1:
            print(json.dumps({"variant": text, "median": statistics.median(values)}), flush=True)


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
    bench.add_argument("--seeds", type=int, default=1)
    bench.add_argument("--samples", type=int, default=1000)
    given = parser.parse_args()
    if given.verb == "data":
        make_data(given.sample, given.output, given.samples, given.work_dir)
    else:
        run(given.sample_dir, given.train, given.variants, given.seeds, given.samples)


if __name__ == "__main__":
    main()
