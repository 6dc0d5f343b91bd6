"""A small GPT, trained by this recipe on the King James Bible (public domain).

Three pre-norm layers, width 128, 4 heads, context 64, BPE of 512 symbols, 0.73 M parameters.
Whole chapters (INDICES) are held out for evaluation; the metric is perplexity per symbol.
Takes about five minutes on one core; needs torch.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from host.errors import UserError
from host.samples import MODEL_FILE, RECIPES, fetch
from host.samples.bpe import Bpe
from host.samples.check import float_figure, write_task
from host.samples.graph import GraphBuilder
from host.samples.transformer import MASKED, Linear, attention

if TYPE_CHECKING:
    import torch

INDICES = Path(__file__).parent / "data" / "small_gpt.json"
VOCABULARY, LENGTH, WIDTH, HEADS, LAYERS = 512, 64, 128, 4, 3
STEPS, BATCH, LEARNING_RATE = 1000, 32, 3e-3
EVALUATION_WINDOWS, CALIBRATION_WINDOWS = 200, 128
SEED = 31
_LAYER_NORM_EPSILON = 1e-5
_HEADING = re.compile(r"\S.* \d+$")

Weights = dict[str, NDArray[Any]]


def build(work: Path, output: Path) -> str:
    held_out = set(json.loads(INDICES.read_text())["evaluation"])
    chapters = read_chapters(work)
    training = [words for name, words in chapters.items() if name not in held_out]
    evaluation = [words for name, words in chapters.items() if name in held_out]
    bpe = Bpe.train((word for words in training for word in words), VOCABULARY)
    tokens = np.array(bpe.encode(w for words in training for w in words), np.int64)
    held = np.array(bpe.encode(w for words in evaluation for w in words), np.int64)
    onnx.save(to_onnx(train(tokens)), output / MODEL_FILE)
    starts = np.linspace(0, len(held) - LENGTH - 1, EVALUATION_WINDOWS).astype(np.int64)
    windows = held[starts[:, None] + np.arange(LENGTH + 1)]
    rng = np.random.default_rng(SEED)
    drawn = rng.choice(len(tokens) - LENGTH, CALIBRATION_WINDOWS, replace=False)
    write_task(
        output,
        RECIPES["small-gpt"],
        {"input_ids": windows[:, :-1]},
        windows[:, 1:],
        {"input_ids": tokens[drawn[:, None] + np.arange(LENGTH)]},
    )
    return float_figure(output)


def read_chapters(work: Path) -> dict[str, list[str]]:
    """Chapter ("Genesis 1") -> its words and punctuation marks, without verse numbers."""
    program = fetch.debian_package("bible-kjv", "usr/bin/bible", work) / "usr/bin/bible"
    data = fetch.debian_package("bible-kjv-text", "usr/lib/bible.data", work) / "usr/lib"
    command = [str(program), "-p", str(data), "-l200", "Gen1:1-Rev22:21"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not done.stdout:
        raise UserError(
            f"{program} printed no text: {done.stderr.strip()}.",
            "Install it: apt-get install bible-kjv bible-kjv-text",
        )
    chapters: dict[str, list[str]] = {}
    name = ""
    for line in done.stdout.splitlines():
        if _HEADING.match(line):
            name = line
            chapters[name] = []
        elif line:
            text = re.sub(r"^ *\d+ ", " ", line)
            chapters[name] += re.findall(r"[A-Za-z]+|[^A-Za-z\s]", text)
    return chapters


def train(tokens: NDArray[np.int64]) -> Weights:
    """AdamW with a cosine schedule on random windows; the trained weights by name."""
    try:
        import torch
    except ImportError:
        raise UserError(
            "small-gpt is trained by its recipe and torch is not installed.",
            "Install it: pip install 'qhost[train]'",
        ) from None
    generator = torch.Generator().manual_seed(SEED)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one order of summation: the same weights on every machine alike
    parameters = {
        name: torch.tensor(value, requires_grad=True) for name, value in _initial().items()
    }
    matrices = [p for p in parameters.values() if p.ndim == 2]
    vectors = [p for p in parameters.values() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=LEARNING_RATE, total_steps=STEPS, pct_start=0.1
    )
    data = torch.from_numpy(tokens)
    span = torch.arange(LENGTH + 1)
    for _ in range(STEPS):
        starts = torch.randint(0, len(data) - LENGTH, (BATCH, 1), generator=generator)
        windows = data[starts + span]
        logits = _forward(parameters, windows[:, :-1])
        loss = torch.nn.functional.cross_entropy(
            logits.reshape(-1, VOCABULARY), windows[:, 1:].reshape(-1)
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        schedule.step()
    torch.set_num_threads(threads)
    return {name: value.detach().numpy() for name, value in parameters.items()}


def _initial() -> Weights:
    rng = np.random.default_rng(SEED)

    def normal(*shape: int) -> NDArray[np.float32]:
        return (rng.standard_normal(shape) * 0.02).astype(np.float32)

    weights: Weights = {
        "tokens.weight": normal(VOCABULARY, WIDTH),
        "positions.weight": normal(LENGTH, WIDTH),
    }
    for number in range(LAYERS):
        name = f"layer{number}"
        for part, outputs, inputs in (
            ("query", WIDTH, WIDTH),
            ("key", WIDTH, WIDTH),
            ("value", WIDTH, WIDTH),
            ("output", WIDTH, WIDTH),
            ("up", 4 * WIDTH, WIDTH),
            ("down", WIDTH, 4 * WIDTH),
        ):
            weights[f"{name}.{part}.weight"] = normal(outputs, inputs)
            weights[f"{name}.{part}.bias"] = np.zeros(outputs, np.float32)
    for norm in [f"layer{i}.{n}" for i in range(LAYERS) for n in ("norm1", "norm2")] + ["norm"]:
        weights[f"{norm}.weight"] = np.ones(WIDTH, np.float32)
        weights[f"{norm}.bias"] = np.zeros(WIDTH, np.float32)
    weights["logits.weight"] = normal(VOCABULARY, WIDTH)
    weights["logits.bias"] = np.zeros(VOCABULARY, np.float32)
    return weights


def _forward(p: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """ids (N, LENGTH) -> logits (N, LENGTH, VOCABULARY)."""
    from torch.nn import functional

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        shape = (WIDTH,)
        weight, bias = p[f"{name}.weight"], p[f"{name}.bias"]
        return functional.layer_norm(x, shape, weight, bias, _LAYER_NORM_EPSILON)

    def heads(name: str, x: torch.Tensor) -> torch.Tensor:
        return linear(name, x).unflatten(2, (HEADS, WIDTH // HEADS)).transpose(1, 2)

    x = functional.embedding(ids, p["tokens.weight"]) + p["positions.weight"]
    for number in range(LAYERS):
        name = f"layer{number}"
        y = norm(f"{name}.norm1", x)
        context = functional.scaled_dot_product_attention(
            heads(f"{name}.query", y),
            heads(f"{name}.key", y),
            heads(f"{name}.value", y),
            is_causal=True,
        )
        x = x + linear(f"{name}.output", context.transpose(1, 2).flatten(2))
        y = functional.gelu(linear(f"{name}.up", norm(f"{name}.norm2", x)))
        x = x + linear(f"{name}.down", y)
    return linear("logits", norm("norm", x))


def to_onnx(weights: Weights) -> onnx.ModelProto:
    """input_ids (1, 64) int64 -> logits (1, 64, 512)."""

    def pair(name: str) -> Linear:
        return weights[f"{name}.weight"], weights[f"{name}.bias"]

    graph = GraphBuilder("small_gpt")
    ids = graph.input("input_ids", np.int64, (1, LENGTH))
    causal = np.triu(np.full((LENGTH, LENGTH), MASKED, np.float32), 1)[None, None]
    bias = graph.parameter("causal_mask", causal)
    table = graph.parameter("tokens.weight", weights["tokens.weight"])
    x = graph.node("Gather", [table, ids], "tokens", axis=0)
    positions = graph.parameter("positions.weight", weights["positions.weight"][None])
    x = graph.node("Add", [x, positions], "embeddings")
    for number in range(LAYERS):
        name = f"layer{number}"
        y = graph.layer_norm(f"{name}.norm1", x, *pair(f"{name}.norm1"), _LAYER_NORM_EPSILON)
        projections = {part: pair(f"{name}.{part}") for part in ("query", "key", "value", "output")}
        y = attention(graph, name, y, bias, projections, length=LENGTH, heads=HEADS)
        x = graph.node("Add", [x, y], f"{name}.attention.residual")
        y = graph.layer_norm(f"{name}.norm2", x, *pair(f"{name}.norm2"), _LAYER_NORM_EPSILON)
        y = graph.linear(f"{name}.up", y, *pair(f"{name}.up"))
        y = graph.node("Gelu", [y], f"{name}.gelu")
        y = graph.linear(f"{name}.down", y, *pair(f"{name}.down"))
        x = graph.node("Add", [x, y], f"{name}.residual")
    x = graph.layer_norm("norm", x, *pair("norm"), _LAYER_NORM_EPSILON)
    graph.linear("logits", x, *pair("logits"))
    return graph.build({"logits": (1, LENGTH, VOCABULARY)})


def make_indices(work: Path) -> dict[str, object]:
    """How INDICES was drawn; the committed file is what counts."""
    names = list(read_chapters(work))
    rng = np.random.default_rng(SEED)
    drawn = sorted(rng.choice(len(names), 60, replace=False).tolist())
    return {
        "dataset": "King James Bible (Debian packages bible-kjv, bible-kjv-text)",
        "evaluation": [names[i] for i in drawn],
        "calibration": "windows of the chapters that are not held out",
    }
