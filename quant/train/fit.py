"""The training loop: from one quantized state to a better one, the same each time.

Seeds are fixed and one thread sums in one order, so a training gives the same result on the same
machine, also when it was killed and went on from a checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from quant.archive import replacing
from quant.cache import code_fingerprint
from quant.datasets import Dataset
from quant.errors import UserError, unknown_name
from quant.model import Model, TensorSpec
from quant.npz import load_npz, npz_bytes
from quant.state import Quantized
from quant.task import Task
from quant.train import memory, require, session
from quant.train.graph import TorchGraph
from quant.train.parameters import Parameters, Trained

Array = np.ndarray[Any, Any]
Tensor = Any

LOSSES = ("auto", "labels", "distill")
CLASS_METRICS = {"top1", "top5", "perplexity", "token_top1"}
_WARM_UP = 0.05  # share of the steps in which the rate rises
_BETAS, _EPSILON = (0.9, 0.99), 1e-8
_HELD_OUT = 8  # one sample in so many judges the result and is not trained on
_TARGET_BYTES = 256_000_000  # of the teacher's outputs kept; beyond, they are computed each time
_FEWEST_HELD_OUT, _MOST_HELD_OUT = 16, 256
_NO_LABEL = -100  # of a token that is not judged
_CERTAIN = 1.645  # standard errors; the one-sided 95 % point of a normal distribution


@dataclass(frozen=True)
class Training:
    """learning_rate: per step, relative to the size of what is trained (see parameters.py)."""

    epochs: int = 4
    learning_rate: float = 3e-4
    batch_size: int = 32
    loss: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise UserError(f"epochs {self.epochs} is not 1 or more.")
        if not 0.0 < self.learning_rate <= 1.0:
            raise UserError(
                f"learning-rate {self.learning_rate:g} is not above 0 and at most 1.",
                "It is relative to the weights' size: 0.0003 is a good start.",
            )
        if self.batch_size < 1:
            raise UserError(f"batch-size {self.batch_size} is not 1 or more.")
        if self.loss not in LOSSES:
            raise unknown_name("loss", self.loss, LOSSES)


@dataclass(frozen=True)
class Fitted:
    """The state after training; losses on the held-out samples before and after, one each.

    A gain that the choice of held-out samples may explain is none: a start that is good already
    would be traded for noise.
    """

    state: Quantized
    before: Array
    after: Array
    steps: int
    samples: int
    labelled: bool

    @property
    def kept(self) -> bool:
        return gained(self.before, self.after)

    def note(self, what: str) -> str:
        taught = "labels and the float model" if self.labelled else "the float model's outputs"
        text = (
            f"{what}: {self.steps} steps on {self.samples} samples, taught by {taught}; "
            f"held-out loss {self.before.mean():.4g} -> {self.after.mean():.4g}"
            f"{' (of the labels)' if self.labelled else ''}"
        )
        return text if self.kept else f"{text}: no certain gain, the model before training was kept"


def gained(before: Array, after: Array) -> bool:
    """Whether the mean loss fell by more than the choice of samples explains (paired, 95 %)."""
    fall = before - after
    if len(fall) < 2:
        return bool(fall.mean() > 0)
    return bool(fall.mean() > _CERTAIN * fall.std(ddof=1) / math.sqrt(len(fall)))


def fit(
    state: Quantized,
    teacher: Model,
    task: Task,
    data: Dataset,
    options: Training,
    trained: Trained | None = None,
) -> Fitted:
    """Train `state` on `data` and return the better of before and after on held-out samples.

    teacher: the float model whose outputs are the target; labels are used besides where the
    dataset has them and the task's metric reads classes. Raises UserError for a missing torch, an
    operator without a torch form, labels that are asked for and missing.
    """
    require("Training")
    labelled = uses_labels(data, task, options.loss)
    with _deterministic(options.seed), memory.kept():
        return _fit(state, teacher, task, data, options, trained or Trained(), labelled)


def uses_labels(data: Dataset, task: Task, loss: str) -> bool:
    classes = task.metric is None or task.metric.name in CLASS_METRICS
    if loss == "labels" and data.labels is None:
        raise UserError(
            f"Training data {data.name} has no labels, and loss=labels needs them.",
            "Add an array `labels`, or train with loss=distill.",
        )
    if loss == "labels" and not classes:
        raise UserError(
            f"loss=labels needs class labels, and {data.name} is judged by another metric.",
            "Train with loss=distill.",
        )
    return loss != "distill" and data.labels is not None and classes


@contextlib.contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    state = torch.get_rng_state()
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(state)


def batch_of(specs: tuple[TensorSpec, ...], data: Dataset, rows: Array) -> dict[str, Tensor]:
    """Feeds of these samples, laid side by side along each input's leading dimension."""
    import torch

    out = {}
    for spec in specs:
        picked = data.inputs[spec.name][rows].astype(spec.dtype, copy=False)
        lead = spec.shape[0] if spec.shape else 1
        shape = (len(rows) * lead, *spec.shape[1:])
        laid = torch.from_numpy(np.ascontiguousarray(picked.reshape(shape)))
        # Channels innermost: depthwise convolutions take half the time backwards.
        image = laid.dim() == 4 and laid.is_floating_point()
        out[spec.name] = laid.contiguous(memory_format=torch.channels_last) if image else laid
    return out


class _Loss:
    """Distance of each sample's outputs from the teacher's, and from the labels if there are any.

    judging: from the labels alone, where they teach. The teacher steadies the training, but a
    network that knows the labels better than its teacher must not lose for it.
    """

    def __init__(self, model: Model, task: Task, labelled: bool) -> None:
        self.outputs = [o for o in model.outputs if np.dtype(o.dtype).kind == "f"]
        names = CLASS_METRICS if task.metric is not None else set()
        typed = task.model_type in {"vision", "text_generation"}
        self.classes = task.metric.name in names if task.metric is not None else typed
        self.labelled = labelled

    def __call__(
        self,
        outputs: Mapping[str, Tensor],
        target: Mapping[str, Tensor],
        labels: Tensor | None,
        samples: int,
        judging: bool = False,
    ) -> Tensor:
        """Of every sample, (samples,); the outputs' leading dimension holds one after the other."""
        import torch
        from torch.nn import functional

        terms = []
        for k, spec in enumerate(self.outputs):
            y, t = outputs[spec.name], target[spec.name]
            if k == 0 and self.classes and y.shape[-1] > 1:
                width = y.shape[-1]
                log_y = functional.log_softmax(y.reshape(samples, -1, width), -1)
                log_t = functional.log_softmax(t.reshape(samples, -1, width), -1)
                apart = functional.kl_div(log_y, log_t, log_target=True, reduction="none")
                terms.append(apart.sum(-1).mean(-1))
                if labels is not None:
                    told = functional.nll_loss(
                        log_y.transpose(1, 2),
                        labels.reshape(samples, -1),
                        ignore_index=_NO_LABEL,
                        reduction="none",
                    )
                    counted = (labels.reshape(samples, -1) != _NO_LABEL).sum(-1).clamp(min=1)
                    told = told.sum(-1) / counted
                    if judging:
                        return told
                    terms.append(0.5 * told)
            else:
                apart = ((y - t) ** 2).reshape(samples, -1).mean(-1)
                terms.append(apart / (t.var(unbiased=False) + 1e-12))
        return torch.stack(terms).sum(0)


class _Trainer:
    def __init__(
        self,
        state: Quantized,
        teacher: Model,
        task: Task,
        data: Dataset,
        options: Training,
        trained: Trained,
        labelled: bool,
    ) -> None:
        self.data, self.options = data, options
        self.parameters = Parameters(state, trained)
        self.specs = state.model.inputs
        self.student = TorchGraph(state.model)
        self.teacher = TorchGraph(teacher)
        self.loss = _Loss(state.model, task, labelled)
        order = np.random.default_rng(options.seed).permutation(len(data))
        held = int(np.clip(len(data) // _HELD_OUT, _FEWEST_HELD_OUT, _MOST_HELD_OUT))
        held = held if len(data) >= 2 * _FEWEST_HELD_OUT else 0
        self.held = np.sort(order[:held]) if held else np.arange(len(data))
        self.rows = np.sort(order[held:])
        self.batch = min(options.batch_size, len(self.rows))
        self.steps = options.epochs * math.ceil(len(self.rows) / self.batch)
        probe = batch_of(self.specs, data, np.arange(min(2, len(data))))
        if len(data) > 1:
            self.student.check(probe)
            self.teacher.check(probe)
        self.targets = self._targets(probe)

    def _targets(self, probe: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The teacher's outputs for every sample, (samples, ...), where memory allows.

        Always in the same batches, so that a resumed training gets the same bits.
        """
        import torch

        with torch.no_grad():
            count = len(next(iter(probe.values()))) // max(self.specs[0].shape[0], 1)
            one = sum(v.nbytes for v in self.teacher(probe).values()) / count
            if one * len(self.data) > _TARGET_BYTES:
                return None
            parts: list[dict[str, Tensor]] = []
            for start in range(0, len(self.data), self.batch):
                rows = np.arange(start, min(start + self.batch, len(self.data)))
                outputs = self.teacher(batch_of(self.specs, self.data, rows))
                n = len(rows)
                parts.append({k: v.reshape(n, -1, *v.shape[1:]) for k, v in outputs.items()})
        return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}

    def target_of(self, rows: Array, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        import torch

        if self.targets is not None:
            return {k: v[rows].flatten(0, 1) for k, v in self.targets.items()}
        with torch.no_grad():
            return self.teacher(feeds)

    def loss_of(self, rows: Array, judging: bool = False) -> Tensor:
        """(samples,)"""
        import torch

        feeds = batch_of(self.specs, self.data, rows)
        labels = None
        if self.loss.labelled and self.data.labels is not None:
            labels = torch.from_numpy(self.data.labels[rows].astype(np.int64))
        target = self.target_of(rows, feeds)
        outputs = self.student(feeds, self.parameters.initializers(), self.parameters.quantizer)
        return self.loss(outputs, target, labels, len(rows), judging)

    def held_out_losses(self) -> Array:
        import torch

        with torch.no_grad():
            starts = range(0, len(self.held), self.batch)
            batches = [self.held[start : start + self.batch] for start in starts]
            losses = [self.loss_of(rows, judging=True).numpy() for rows in batches]
        return np.concatenate(losses).astype(np.float64)

    def rows_of(self, step: int) -> Array:
        per_epoch = math.ceil(len(self.rows) / self.batch)
        epoch, k = divmod(step, per_epoch)
        order = np.random.default_rng((self.options.seed, epoch)).permutation(len(self.rows))
        return self.rows[order[k * self.batch : (k + 1) * self.batch]]

    def rate(self, step: int) -> float:
        warm = max(1, round(self.steps * _WARM_UP))
        rise = min(1.0, (step + 1) / warm)
        return self.options.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def _fit(
    state: Quantized,
    teacher: Model,
    task: Task,
    data: Dataset,
    options: Training,
    trained: Trained,
    labelled: bool,
) -> Fitted:
    import torch

    trainer = _Trainer(state, teacher, task, data, options, trained, labelled)
    leaves = {k: v for k, v in trainer.parameters.leaves.items() if v.requires_grad}
    moments = {k: (torch.zeros_like(v), torch.zeros_like(v)) for k, v in leaves.items()}
    where = session.current()
    checkpoint = _checkpoint_path(where, state, teacher, task, data, options, trained)
    start = 0
    saved = _read_checkpoint(checkpoint)
    if saved is not None:
        trainer.parameters.load({k: saved[f"leaf {k}"] for k in trainer.parameters.leaves})
        for k, (m, v) in moments.items():
            m.copy_(torch.from_numpy(saved[f"first {k}"]))
            v.copy_(torch.from_numpy(saved[f"second {k}"]))
        start, before = int(saved["step"]), saved["before"]
    else:
        before = trainer.held_out_losses()
    last = time.monotonic()
    for step in range(start, trainer.steps):
        loss = trainer.loss_of(trainer.rows_of(step)).mean()
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        _adam(leaves, gradients, moments, trainer.parameters.rates, trainer.rate(step), step)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise UserError(
                f"The training loss became {value} at step {step + 1}.", "Lower --learning-rate."
            )
        where.progress(step + 1, trainer.steps, value)
        if checkpoint is not None and time.monotonic() - last >= where.every_s:
            _write_checkpoint(checkpoint, trainer.parameters, moments, step + 1, before)
            last = time.monotonic()
    after = trainer.held_out_losses()
    result = trainer.parameters.result() if gained(before, after) else state
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return Fitted(
        replace(result, notes=state.notes),
        before,
        after,
        trainer.steps,
        len(trainer.rows),
        labelled,
    )


def _adam(
    leaves: Mapping[str, Tensor],
    gradients: tuple[Tensor | None, ...],
    moments: Mapping[str, tuple[Tensor, Tensor]],
    rates: Mapping[str, float],
    rate: float,
    step: int,
) -> None:
    """One step of Adam (Kingma and Ba 2015), in place."""
    import torch

    with torch.no_grad():
        for (key, leaf), gradient in zip(leaves.items(), gradients, strict=True):
            if gradient is None:
                continue
            first, second = moments[key]
            first.lerp_(gradient, 1 - _BETAS[0])
            second.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
            m = first / (1 - _BETAS[0] ** (step + 1))
            v = second / (1 - _BETAS[1] ** (step + 1))
            leaf.sub_(rate * rates[key] * m / (v.sqrt() + _EPSILON))


def _checkpoint_path(
    where: session.Session,
    state: Quantized,
    teacher: Model,
    task: Task,
    data: Dataset,
    options: Training,
    trained: Trained,
) -> Path | None:
    """Named by all that decides the training, so that only the same training goes on from it."""
    if where.folder is None:
        return None
    digest = hashlib.sha256(code_fingerprint().encode())
    metric = task.metric.name if task.metric else None
    for part in (state.model.fingerprint, teacher.fingerprint, data.fingerprint, str(metric)):
        digest.update(part.encode() + b"|")
    digest.update(json.dumps([asdict(options), asdict(trained)], sort_keys=True).encode())
    for name in sorted(state.plan.tensors):
        digest.update(name.encode() + np.asarray(state.plan.tensors[name].scale).tobytes())
    for name in sorted(state.plan.codes):
        digest.update(name.encode() + np.asarray(state.plan.codes[name]).tobytes())
    return where.folder / f"{digest.hexdigest()}.npz"


def _write_checkpoint(
    path: Path,
    parameters: Parameters,
    moments: Mapping[str, tuple[Tensor, Tensor]],
    step: int,
    before: Array,
) -> None:
    arrays = {f"leaf {k}": v.detach().numpy() for k, v in parameters.leaves.items()}
    for k, (first, second) in moments.items():
        arrays |= {f"first {k}": first.numpy(), f"second {k}": second.numpy()}
    arrays |= {"step": np.array(step), "before": before}
    names = sorted(arrays)
    indexed = {f"a{i}": arrays[n] for i, n in enumerate(names)}
    indexed["names"] = np.array(names)
    with replacing(path) as out:
        out.write(npz_bytes(indexed))


def _read_checkpoint(path: Path | None) -> dict[str, Array] | None:
    """The arrays of a checkpoint; a damaged one is removed and training begins again."""
    if path is None or not path.exists():
        return None
    try:
        arrays = load_npz(path, path.name, path.read_bytes())
        return {str(n): arrays[f"a{i}"] for i, n in enumerate(arrays["names"])}
    except (UserError, KeyError):
        path.unlink(missing_ok=True)
        return None
