"""Train the shipped sample: a depthwise-separable CNN on Fashion-MNIST, exported with its task.

    python tools/train_fashion_cnn.py --output-dir host/samples/data/fashion_cnn

Needs the extra `train` (torch) and Debian's dataset-fashion-mnist. One core, seeded, ~6 minutes;
writes model.onnx, task.npz and indices.json. Training sees the training split only, and the
evaluation images are drawn from the test split.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from host.samples import RECIPES, SHIPPED, fashion
from host.samples.check import write_task
from host.samples.graph import GraphBuilder

SEED = 20260601
STEM_CHANNELS = 32
# (output channels, stride) of each depthwise-separable block; the stem halves 28x28 to 14x14.
BLOCKS = ((64, 1), (128, 2), (128, 1), (128, 1), (256, 2), (256, 1))
EVALUATION_IMAGES = 1000
CALIBRATION_IMAGES = 256


class ConvBn(nn.Sequential):
    """Conv without bias, BatchNorm, ReLU: what export folds into one Conv and one Relu."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )


class FashionCnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleDict({"stem": ConvBn(1, STEM_CHANNELS, 3, 2, 1)})
        channels = STEM_CHANNELS
        for number, (outputs, stride) in enumerate(BLOCKS, start=1):
            name = f"block{number}"
            self.features[f"{name}_depthwise"] = ConvBn(channels, channels, 3, stride, channels)
            self.features[f"{name}_pointwise"] = ConvBn(channels, outputs, 1, 1, 1)
            channels = outputs
        self.classifier = nn.Linear(channels, len(fashion.CLASSES))

    def forward(self, image: Tensor) -> Tensor:
        for layer in self.features.values():
            image = layer(image)
        logits: Tensor = self.classifier(image.mean(dim=(2, 3)))
        return logits


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """(N, 1, 28, 28): mirror half of the batch, shift each image by up to two pixels."""
    n = len(images)
    mirrored = torch.rand(n, 1, 1, 1, generator=generator) < 0.5
    images = torch.where(mirrored, images.flip(3), images)
    background = -fashion.MEAN / fashion.STD
    padded = nn.functional.pad(images, (2, 2, 2, 2), value=background)
    shift = torch.randint(0, 5, (2, n, 1), generator=generator)
    rows = (shift[0] + torch.arange(28))[:, None, :, None]
    columns = (shift[1] + torch.arange(28))[:, None, None, :]
    return padded[torch.arange(n)[:, None, None, None], 0, rows, columns]


def train(model: FashionCnn, split: fashion.Split, epochs: int, batch: int) -> None:
    generator = torch.Generator().manual_seed(SEED)
    images = torch.from_numpy(fashion.normalise(split.images))
    labels = torch.from_numpy(split.labels)
    steps = len(images) // batch
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.15, total_steps=epochs * steps, pct_start=0.25
    )
    loss_function = nn.CrossEntropyLoss(label_smoothing=0.05)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.train()
    start = time.monotonic()
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        total = 0.0
        for step in range(steps):
            chosen = order[step * batch : (step + 1) * batch]
            x = augment(images[chosen], generator).contiguous(memory_format=torch.channels_last)
            loss = loss_function(model(x), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        elapsed = time.monotonic() - start
        print(f"epoch {epoch + 1}/{epochs}: loss {total / steps:.4f}, {elapsed:.0f} s", flush=True)


def accuracy(model: FashionCnn, split: fashion.Split) -> float:
    model.eval()
    images = torch.from_numpy(fashion.normalise(split.images))
    with torch.inference_mode():
        predicted = torch.cat([model(part).argmax(1) for part in images.split(500)])
    return float((predicted.numpy() == split.labels).mean())


def fold(layer: ConvBn) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weight and bias of the Conv that equals Conv + BatchNorm in inference."""
    conv, norm = layer[0], layer[1]
    gain = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    weight = conv.weight.double() * gain[:, None, None, None]
    bias = norm.bias.double() - norm.running_mean.double() * gain
    return (
        weight.detach().contiguous().numpy().astype(np.float32),
        bias.detach().numpy().astype(np.float32),
    )


def to_onnx(model: FashionCnn) -> onnx.ModelProto:
    """Static graph with every BatchNorm folded; tensors carry the names of the layers."""
    model.eval()
    graph = GraphBuilder("fashion_cnn")
    tensor = graph.input("image", np.float32, (1, 1, 28, 28))
    for name, layer in model.features.items():
        conv = layer[0]
        weight, bias = fold(layer)
        tensor = graph.conv(
            name,
            tensor,
            weight,
            bias,
            stride=conv.stride[0],
            pads=[conv.padding[0]] * 4,
            groups=conv.groups,
        )
        tensor = graph.node("Relu", [tensor], f"{name}.relu")
    pooled = graph.node("GlobalAveragePool", [tensor], "pool")
    features = graph.node("Flatten", [pooled], "features", axis=1)
    classifier = model.classifier
    graph.gemm(
        "logits", features, classifier.weight.detach().numpy(), classifier.bias.detach().numpy()
    )
    return graph.build({"logits": (1, len(fashion.CLASSES))})


def write_samples(directory: Path, training: fashion.Split, test: fashion.Split) -> None:
    evaluation = fashion.balanced_indices(test.labels, EVALUATION_IMAGES, SEED)
    calibration = fashion.balanced_indices(training.labels, CALIBRATION_IMAGES, SEED + 1)
    write_task(
        directory,
        RECIPES[SHIPPED],
        {"image": fashion.normalise(test.images[evaluation])},
        test.labels[evaluation],
        {"image": fashion.normalise(training.images[calibration])},
    )
    indices = {
        "dataset": "Fashion-MNIST (Debian package dataset-fashion-mnist)",
        "seed": SEED,
        "evaluation_split": "test",
        "evaluation": evaluation.tolist(),
        "calibration_split": "train",
        "calibration": calibration.tolist(),
    }
    (directory / "indices.json").write_text(json.dumps(indices) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=128)
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    training, test = fashion.load_split("train"), fashion.load_split("test")
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    write_samples(arguments.output_dir, training, test)
    model = FashionCnn()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters before folding", flush=True)
    train(model, training, arguments.epochs, arguments.batch_size)
    print(f"test accuracy, 10,000 images: {accuracy(model, test):.4f}")
    onnx.save(to_onnx(model), arguments.output_dir / "model.onnx")


if __name__ == "__main__":
    main()
