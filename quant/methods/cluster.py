"""cluster: a few shared levels per weight tensor; the download shrinks, the context does not."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field, replace

import numpy as np

from quant import codebook
from quant.datasets import load_dataset
from quant.encoding import SMALLEST_SCALE, Array, Encoding, with_scale
from quant.errors import UserError, unknown_name
from quant.graph import array_of, initializer_uses, name_of
from quant.layers import Layer, from_matrix, to_matrix
from quant.methods.base import Method, Quantized
from quant.methods.int8 import check_activation_bits
from quant.model import Model
from quant.reweight import (
    corrected_bias,
    input_moments,
    planned,
    scale_of,
    with_codes,
)
from quant.rewrite import replace_weights
from quant.rounding import Snap, greedy_round, weighted_error
from quant.task import Task
from quant.train import require
from quant.train.fit import Training, fit

TARGETS = ("hexagon", "float")
_ZERO_SHARE = 0.1  # a weight with this share of exact zeros was pruned: its zeros stay
_REACH = 8.0  # root mean squares that the largest code stands for at most
_GROUPED = 8  # more groups than this: depthwise


@dataclass(frozen=True)
class ClusterOptions:
    """Options of the method, also on the command line."""

    clusters: int = field(default=32, metadata={"help": "Levels per weight tensor, 8 to 256."})
    adaptive_centroids: bool = field(
        default=True,
        metadata={"help": "Optimal levels weighted by sensitivity; off: evenly spaced."},
    )
    optimize_for: str = field(
        default="hexagon",
        metadata={"help": "hexagon: levels on the integer grid; float: fp16 graph, float levels."},
    )
    activation_bits: int = field(
        default=8, metadata={"help": "Of the int8 plan, where no step before made one."}
    )
    fine_tune: bool = field(
        default=False, metadata={"help": "Train the levels; which weight has which level stays."}
    )
    fine_tune_dataset: str = field(
        default="task", metadata={"help": "As --train-dataset of qat; used with --fine-tune."}
    )
    epochs: int = field(default=4, metadata={"help": "Of fine-tuning."})
    learning_rate: float = field(default=3e-4, metadata={"help": "Of fine-tuning, relative."})
    batch_size: int = field(default=16, metadata={"help": "Of fine-tuning."})
    seed: int = field(default=0, metadata={"help": "Of fine-tuning: the order of samples."})

    def __post_init__(self) -> None:
        self.training()
        if self.fine_tune and self.optimize_for == "float":
            raise UserError(
                "fine-tune trains levels on the integer grid, not float ones.",
                "Leave optimize-for at hexagon.",
            )
        check_activation_bits(self.activation_bits)
        if not 8 <= self.clusters <= 256:
            raise UserError(f"clusters {self.clusters} is not in 8 to 256.")
        if self.optimize_for not in TARGETS:
            raise unknown_name("target of cluster", self.optimize_for, TARGETS)

    def training(self) -> Training:
        return Training(self.epochs, self.learning_rate, self.batch_size, seed=self.seed)


def apply(state: Quantized, task: Task, options: ClusterOptions) -> Quantized:
    if options.optimize_for == "float":
        return _cluster_float(state, options)
    if options.fine_tune:
        require("cluster with fine-tune")
        data = load_dataset(options.fine_tune_dataset, state.model, task)
    original = state.teacher or state.model
    state = _cluster_codes(planned(state, task, options.activation_bits), task, options)
    if options.fine_tune:
        fitted = fit(state, original, task, data, options.training())
        note = fitted.note("cluster fine-tuned")
        state = replace(fitted.state, notes=(*fitted.state.notes, note))
    return with_download_note(state, original, options.clusters)


def _cluster_codes(state: Quantized, task: Task, options: ClusterOptions) -> Quantized:
    """Levels on the integer grid of each weight's own encoding, shared by all its channels.

    Depthwise layers are left alone: few weights, and the most sensitive ones.
    """
    codes: dict[str, Array] = {}
    levels: dict[str, Array] = {}
    biases: dict[str, Array] = {}
    encodings: dict[str, Encoding] = {}
    left: list[str] = []
    for layer, moments in input_moments(state.model, task):
        name = layer.weight
        planned_as = state.plan.tensors.get(name)
        if planned_as is None:
            continue
        if layer.groups > _GROUPED:
            left.append(name)
            continue
        data = array_of(state.model.ir.graph.initializers[name])
        hessian = moments.hessian(centred=layer.bias is not None)
        tried = [planned_as]
        if planned_as.axis is not None and planned_as.block_size is None:
            tried.append(even_channels(planned_as, data))
        # Which scale suits shared levels better differs from layer to layer: the error decides.
        best = min(
            (_assign(layer, data, e, hessian, options) for e in tried), key=lambda a: a.error
        )
        encodings[name], levels[name], codes[name] = best.encoding, best.levels, best.codes
        after = best.encoding.dequantize(best.codes.astype(best.encoding.numpy_dtype))
        biases |= corrected_bias(state.model, layer, data, after, moments)
    for name, data, encoding in _other_weights(state, {*codes, *left}):
        target = data / scale_of(encoding, data.shape) + encoding.zero_point.reshape(-1)[0]
        levels[name] = choose_levels(target, np.ones_like(target), encoding, options)
        codes[name] = codebook.nearest(levels[name], target)
    clustered = replace(state, codebooks={**state.codebooks, **levels})
    done = with_codes(clustered, codes, biases, encodings)
    if not left:
        return done
    note = f"cluster: depthwise layers keep their own weights: {', '.join(left)}"
    return replace(done, notes=(*done.notes, note))


@dataclass(frozen=True, eq=False)
class _Assigned:
    error: float
    encoding: Encoding
    levels: Array
    codes: Array


def _assign(
    layer: Layer, data: Array, encoding: Encoding, hessian: Array, options: ClusterOptions
) -> _Assigned:
    """Levels and codes of one weight under the scales of `encoding`, which are then refitted."""
    weight = to_matrix(layer, data).astype(np.float64)
    scale = to_matrix(layer, scale_of(encoding, data.shape)).astype(np.float64)
    diagonal = np.einsum("gkk->gk", hessian)[:, None, :]
    kept = pruned_mask(weight)
    levels = choose_levels(
        weight / scale, scale**2 * diagonal, encoding, options, zero=kept is not None
    )
    parts = [
        greedy_round(w, h, s, _snap(levels, None if kept is None else kept[g]))
        for g, (w, h, s) in enumerate(zip(weight, hessian, scale, strict=True))
    ]
    q = np.stack(parts)
    fitted = _refit(encoding, weight, q, scale, hessian)
    codes = from_matrix(layer, q, data.shape)
    after = to_matrix(layer, fitted.dequantize(codes.astype(fitted.numpy_dtype)))
    error = float(weighted_error(weight - after, hessian).sum())
    return _Assigned(error, fitted, levels, codes)


def even_channels(encoding: Encoding, data: Array) -> Encoding:
    """The scales per channel under which every channel has the same root mean square.

    Levels are shared by all channels: they fit best where the channels' distributions agree in
    their middle, not in their largest weight. The largest of all still has the largest code.
    """
    other = tuple(k for k in range(data.ndim) if k != encoding.axis)
    size = np.sqrt(np.mean(np.square(data.astype(np.float64)), axis=other))
    peak = np.abs(data).max(axis=other)
    alive = size > 0
    if not alive.any():
        return encoding
    reach = min(float((peak[alive] / size[alive]).max()), _REACH)
    scale = np.where(alive, size * reach / encoding.qmax, encoding.scale)
    return with_scale(encoding, np.maximum(scale, SMALLEST_SCALE).astype(np.float32))


def _refit(
    encoding: Encoding, weight: Array, codes: Array, scale: Array, hessian: Array
) -> Encoding:
    """The scale of each channel that is best for its codes, in closed form."""
    if encoding.axis is None or encoding.block_size is not None:
        return encoding
    restored = codes * scale
    projected = np.matmul(restored, hessian)
    power = (projected * restored).sum(-1).reshape(-1)
    factor = (projected * weight).sum(-1).reshape(-1) / np.where(power > 0, power, 1.0)
    factor = np.where((power > 0) & (factor > 0.5) & (factor < 2.0), factor, 1.0)
    return with_scale(encoding, encoding.scale * factor.astype(np.float32))


def _other_weights(state: Quantized, done: Set[str]) -> list[tuple[str, Array, Encoding]]:
    """Embedding tables and weights that no linear layer reads: rounded to the nearest level."""
    found: dict[str, tuple[str, Array, Encoding]] = {}
    for use in initializer_uses(state.model.ir.graph):
        name = name_of(use.value)
        table = use.node.op_type == "Gather" and use.index == 0
        encoding = state.plan.tensors.get(name)
        if encoding is None or name in done or not (use.role == "weight" or table):
            continue
        found[name] = (name, array_of(use.value), encoding)
    return list(found.values())


def pruned_mask(weight: Array) -> Array | None:
    """Booleans (of the weight's shape) of what was not pruned; None for a dense weight."""
    kept = weight != 0
    return kept if kept.mean() < 1.0 - _ZERO_SHARE else None


def _snap(levels: Array, kept: Array | None) -> Snap:
    if kept is None:
        return lambda x, j: codebook.nearest(levels, x)
    return lambda x, j: codebook.nearest(levels, x) * kept[:, j]


def choose_levels(
    target: Array,
    importance: Array,
    encoding: Encoding,
    options: ClusterOptions,
    *,
    zero: bool = False,
) -> Array:
    """At most `clusters` integers of the encoding's range for real-valued codes `target`."""
    low, high = encoding.qmin, encoding.qmax
    if not options.adaptive_centroids:
        low, high = max(low, round(float(target.min()))), min(high, round(float(target.max())))
        return codebook.linear_levels(options.clusters, min(low, 0), max(high, 0))
    importance = np.broadcast_to(importance, target.shape)
    if high - low > 512:  # wider grids only cost time: 16-bit weights are not clustered for size
        raise UserError("cluster needs weights of at most 8 bits.", "Compose it with int8 or int4.")
    return codebook.optimal_levels(target, importance, options.clusters, low, high, zero=zero)


def _cluster_float(state: Quantized, options: ClusterOptions) -> Quantized:
    """Float levels per tensor: grid search, then exact Lloyd steps. The graph stays float."""
    if state.plan.tensors:
        raise UserError(
            "cluster[optimize-for=float] needs a float model, but a step before quantized it.",
            "Leave optimize-for at hexagon.",
        )
    weights: dict[str, Array] = {}
    for use in initializer_uses(state.model.ir.graph):
        table = use.node.op_type == "Gather" and use.index == 0
        name = name_of(use.value)
        if name not in weights and (use.role == "weight" or table):
            weights[name] = _float_levels(array_of(use.value), options)
    note = f"cluster: at most {options.clusters} float levels in each of {len(weights)} tensors"
    model = replace_weights(state.model, weights)
    return replace(state, model=model, notes=(*state.notes, note))


def _float_levels(data: Array, options: ClusterOptions) -> Array:
    limit = float(np.abs(data).max(initial=0.0))
    if limit == 0.0:
        return data
    grid = 255
    x = data.astype(np.float64) * (grid / limit)
    if not options.adaptive_centroids:
        levels = codebook.linear_levels(options.clusters, -grid, grid).astype(np.float64)
    else:
        levels = codebook.optimal_levels(x, np.ones_like(x), options.clusters, -grid, grid).astype(
            np.float64
        )
        for _ in range(10):  # Lloyd from a near-optimal start only polishes
            index = np.searchsorted((levels[1:] + levels[:-1]) / 2, x.reshape(-1))
            count = np.bincount(index, minlength=levels.size)
            total = np.bincount(index, x.reshape(-1), levels.size)
            levels = np.where(count > 0, total / np.maximum(count, 1), levels)
    return (codebook.nearest(levels, x) * (limit / grid)).astype(np.float32)


def stored(state: Quantized) -> bytes:
    """The clustered weights as they are best transferred: codebooks, indices entropy-coded."""
    return codebook.pack_all({name: state.plan.codes[name] for name in state.codebooks})


def download(state: Quantized, original: Model) -> codebook.Download:
    """What all weights of a clustered model take to transfer, and those of the float model."""
    packed = len(stored(state))
    other = 0
    floats = sum(array_of(v).nbytes for v in original.ir.graph.initializers.values())
    for name, value in state.model.ir.graph.initializers.items():
        data = array_of(value)
        encoding = state.plan.tensors.get(name)
        if encoding is None:
            other += data.nbytes
        else:
            codes = 0 if name in state.codebooks else (data.size * encoding.bits + 7) // 8
            other += codes + encoding.scale.nbytes + 1
    return codebook.Download(packed, other, floats)


def with_download_note(state: Quantized, original: Model, clusters: int) -> Quantized:
    size = download(state, original)
    most = max((int(np.unique(state.plan.codes[n]).size) for n in state.codebooks), default=0)
    note = (
        f"cluster: at most {most} distinct weights in each of {len(state.codebooks)} tensors "
        f"(asked for {clusters}); indices and codebook entropy-coded make the weights "
        f"{size.total_bytes:,} bytes to download, {size.total_bytes / size.float_bytes:.1%} of "
        f"float32; the context and memory at run time are those of the weights' width"
    )
    return replace(state, notes=(*state.notes, note))


CLUSTER = Method(
    "cluster", "few shared levels per weight, smaller download", ClusterOptions, apply, True
)
