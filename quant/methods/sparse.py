"""sparse: prune weights (in a pattern the HTP can compress, or freely) or whole channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from quant.channels import find_groups, remove_channels
from quant.codebook import nearest
from quant.datasets import load_dataset
from quant.encoding import Array, Encoding
from quant.errors import UserError, unknown_name
from quant.graph import array_of
from quant.layers import Layer, from_matrix, linear_layers, to_matrix
from quant.methods.base import Method, Quantized
from quant.methods.int8 import check_activation_bits
from quant.pruning import (
    GRID,
    Pattern,
    check_sparsity,
    layer_sparsities,
    parse_pattern,
    pattern_mask,
    read_layer_sparsities,
    share_mask,
)
from quant.reweight import (
    corrected_bias,
    input_moments,
    planned,
    scale_of,
    with_codes,
)
from quant.rounding import Moments, greedy_round
from quant.task import Task
from quant.train import require
from quant.train.fit import Training, fit

PRUNING_METHODS = ("magnitude", "structured", "weight_importance")
SCHEDULES = ("linear", "cubic", "exponential")
_STAGES = 3
_CURVE_ROWS = 128


@dataclass(frozen=True)
class SparseOptions:
    """Options of the method, also on the command line."""

    sparsity: float = field(default=0.5, metadata={"help": "Share of weights or channels pruned."})
    pruning_method: str = field(
        default="weight_importance",
        metadata={"help": "magnitude, weight_importance (by output error) or structured."},
    )
    structured_pattern: str = field(
        default="none",
        metadata={"help": "n:m along input channels, such as 2:4; it decides the sparsity."},
    )
    layer_wise_sparsity: str = field(
        default="", metadata={"help": "JSON file {weight name: sparsity}; others as --sparsity."}
    )
    activation_bits: int = field(
        default=8, metadata={"help": "Of the int8 plan, where no step before made one."}
    )
    fine_tune: bool = field(
        default=False, metadata={"help": "Train what stays, in stages of rising sparsity."}
    )
    fine_tune_dataset: str = field(
        default="task", metadata={"help": "As --train-dataset of qat; used with --fine-tune."}
    )
    pruning_schedule: str = field(
        default="cubic",
        metadata={"help": "linear, cubic or exponential rise over the stages of fine-tuning."},
    )
    epochs: int = field(default=4, metadata={"help": "Of fine-tuning, over all stages."})
    learning_rate: float = field(default=3e-4, metadata={"help": "Of fine-tuning, relative."})
    batch_size: int = field(default=16, metadata={"help": "Of fine-tuning."})
    seed: int = field(default=0, metadata={"help": "Of fine-tuning: the order of samples."})

    def __post_init__(self) -> None:
        self.training(self.epochs)
        if self.pruning_schedule not in SCHEDULES:
            raise unknown_name("pruning schedule", self.pruning_schedule, SCHEDULES)
        check_sparsity(self.sparsity)
        check_activation_bits(self.activation_bits)
        if self.pruning_method not in PRUNING_METHODS:
            raise unknown_name("pruning method", self.pruning_method, PRUNING_METHODS)
        pattern = parse_pattern(self.structured_pattern)
        if pattern is not None and self.pruning_method == "structured":
            raise UserError(
                "structured pruning removes whole channels; it takes no pattern.",
                "Leave structured-pattern out, or choose magnitude or weight_importance.",
            )

    def training(self, epochs: int) -> Training:
        return Training(epochs, self.learning_rate, self.batch_size, seed=self.seed)


def apply(state: Quantized, task: Task, options: SparseOptions) -> Quantized:
    structured = options.pruning_method == "structured"
    prune = prune_channels if structured else prune_weights
    original = state.teacher or state.model
    if not options.fine_tune:
        state = planned(state, task, options.activation_bits)
        return prune(state, task, options, options.sparsity, "no fine-tuning took place")
    require("sparse with fine-tune")
    data = load_dataset(options.fine_tune_dataset, state.model, task)
    state = planned(state, task, options.activation_bits)
    stages = schedule(options)
    told = state.notes
    share, extra = divmod(options.epochs, len(stages))
    for k, sparsity in enumerate(stages):
        last = k == len(stages) - 1
        # The last stage learns longest: it alone has the final zeros.
        epochs = share + (extra if last else 0)
        pruned = prune(state, task, options, sparsity, "then fine-tuned")
        if epochs:
            fitted = fit(pruned, original, task, data, options.training(epochs))
            pruned = replace(fitted.state, notes=(*pruned.notes, fitted.note("sparse fine-tuned")))
        told = (*told, *pruned.notes[len(state.notes) :]) if last else told
        state = replace(pruned, notes=told if last else state.notes)
    return state


def schedule(options: SparseOptions) -> list[float]:
    """Sparsity at the end of each stage, the last one the wanted.

    A pattern and the removal of channels have one stage.
    """
    one = options.structured_pattern != "none" or options.pruning_method == "structured"
    stages = 1 if one else min(_STAGES, options.epochs)
    s = options.sparsity
    out = []
    for k in range(1, stages + 1):
        t = k / stages
        out.append(
            {
                "linear": s * t,
                "cubic": s * (1 - (1 - t) ** 3),  # Zhu and Gupta 2017
                "exponential": 1 - (1 - s) ** t,
            }[options.pruning_schedule]
        )
    return out


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A layer that can be pruned: its weight and scale (N, K), Hessian (K, K) and saliency."""

    layer: Layer
    moments: Moments
    data: Array
    encoding: Encoding
    weight: Array
    scale: Array
    hessian: Array
    taps: int


def prune_weights(
    state: Quantized, task: Task, options: SparseOptions, sparsity: float, after_that: str
) -> Quantized:
    """One-shot pruning with the second-order update of what stays.

    after_that: what the note says of fine-tuning.
    """
    pattern = parse_pattern(options.structured_pattern)
    shapes: dict[str, tuple[int, ...]] = {}
    skipped: list[str] = []
    masks: dict[str, Array] = {}
    for layer, shape in _layers(state):
        if eligible(layer, shape, pattern):
            shapes[layer.weight] = shape
        else:
            skipped.append(layer.weight)
    given = (
        read_layer_sparsities(options.layer_wise_sparsity, shapes)
        if options.layer_wise_sparsity
        else {}
    )
    shares = dict.fromkeys(shapes, sparsity)
    if options.pruning_method == "weight_importance" and pattern is None:
        free = [n for n in shapes if n not in given]
        if free:
            sizes = {n: int(np.prod(shapes[n])) for n in free}
            shares |= layer_sparsities(_error_curves(state, task, set(free)), sizes, sparsity)
    shares |= {name: value * sparsity / options.sparsity for name, value in given.items()}
    codes: dict[str, Array] = {}
    biases: dict[str, Array] = {}
    books = state.codebooks
    zeroed = {n: _with_zero(books[n]) for n, share in shares.items() if share and n in books}
    state = replace(state, codebooks={**books, **zeroed})
    for layer, moments in input_moments(state.model, task):
        if layer.weight not in shapes or shares[layer.weight] == 0.0:
            continue
        c = _candidate(state, layer, moments)
        score = _saliency(c, options.pruning_method)
        kept = (
            pattern_mask(score, pattern, c.taps)
            if pattern is not None
            else share_mask(score, shares[layer.weight])
        )
        q = greedy_round(c.weight, c.hessian, c.scale, _snap(c, state, kept))
        codes[layer.weight] = from_matrix(layer, q[None], c.data.shape)
        masks[layer.weight] = kept
        after = c.encoding.dequantize(codes[layer.weight].astype(c.encoding.numpy_dtype))
        biases |= corrected_bias(state.model, layer, c.data, after, moments)
    if not codes:
        raise UserError(
            "No layer of this model can be pruned this way.",
            "A pattern n:m needs input channels that are a multiple of m, and no depthwise layer.",
        )
    pruned = with_codes(state, codes, biases)
    return replace(
        pruned, notes=(*pruned.notes, _note(pruned, list(codes), skipped, pattern, after_that))
    )


def prune_channels(
    state: Quantized, task: Task, options: SparseOptions, sparsity: float, after_that: str
) -> Quantized:
    """Whole channels removed from the graph; arguments as prune_weights."""
    shares: dict[str, float] = {}
    if options.layer_wise_sparsity:
        known = {g.producer.weight: g for g in find_groups(state)}
        shares = read_layer_sparsities(options.layer_wise_sparsity, known)
    pruned, sizes = remove_channels(state, task, sparsity, shares)
    before, after = (sum(s[k] for s in sizes.values()) for k in (0, 1))
    weights = [
        sum(array_of(v).size for v in s.model.ir.graph.initializers.values())
        for s in (state, pruned)
    ]
    note = (
        f"sparse: {before - after} of {before} channels removed in {len(sizes)} layers, "
        f"{weights[1]:,} of {weights[0]:,} weights left; the readers' weights took over by least "
        f"squares; {after_that}"
    )
    return replace(pruned, notes=(*pruned.notes, note))


def _layers(state: Quantized) -> list[tuple[Layer, tuple[int, ...]]]:
    initializers = state.model.ir.graph.initializers
    return [
        (layer, tuple(array_of(initializers[layer.weight]).shape))
        for layer in linear_layers(state.model)
        if layer.weight in state.plan.tensors
    ]


def eligible(layer: Layer, shape: tuple[int, ...], pattern: Pattern | None) -> bool:
    """Whether the layer can be pruned: one group, and input channels in whole groups of m."""
    if layer.groups > 1:
        return False
    channels = shape[1] if layer.is_conv else shape[1 - layer.axis]
    return pattern is None or channels % pattern.m == 0


def _candidate(state: Quantized, layer: Layer, moments: Moments) -> _Candidate:
    encoding = state.plan.tensors[layer.weight]
    data = array_of(state.model.ir.graph.initializers[layer.weight])
    taps = int(np.prod(data.shape[2:])) if layer.is_conv else 1
    return _Candidate(
        layer,
        moments,
        data,
        encoding,
        to_matrix(layer, data)[0].astype(np.float64),
        to_matrix(layer, scale_of(encoding, data.shape))[0].astype(np.float64),
        moments.hessian(centred=layer.bias is not None)[0],
        taps,
    )


def _saliency(c: _Candidate, method: str) -> Array:
    """(N, K): the magnitude, or the rise of the output error when the rest makes up for it.

    Each output channel's add up to one: what follows (a depthwise layer, a normalisation) scales
    small channels up again, so no channel's weights are cheaper for its being small.
    """
    if method == "magnitude":
        score = np.abs(c.weight)
    else:
        score = np.square(c.weight) / np.diagonal(np.linalg.inv(c.hessian))  # Hassibi, Stork 1993
    return np.asarray(score / np.maximum(score.sum(1, keepdims=True), 1e-30))


def _power(weight: Array, hessian: Array) -> Array:
    """Squared output of each row, (N,)."""
    return np.asarray(np.einsum("nk,nk->n", weight @ hessian, weight))


def _error_curves(state: Quantized, task: Task, names: set[str]) -> dict[str, Array]:
    """Squared output error over output power with GRID of the layer pruned, by weight.

    Of at most _CURVE_ROWS output channels, without the last sweeps of the rounding.
    """
    curves: dict[str, Array] = {}
    for layer, moments in input_moments(state.model, task):
        if layer.weight not in names:
            continue
        c = _candidate(state, layer, moments)
        count = min(len(c.weight), _CURVE_ROWS)
        rows = np.linspace(0, len(c.weight) - 1, count).astype(int)
        c = replace(c, weight=c.weight[rows], scale=c.scale[rows])
        score = _saliency(c, "weight_importance")
        power = max(float(_power(c.weight, c.hessian).sum()), 1e-30)
        errors = [0.0]
        for sparsity in GRID[1:]:
            snap = _snap(c, state, share_mask(score, sparsity))
            q = greedy_round(c.weight, c.hessian, c.scale, snap, sweeps=0)
            lost = float(_power(c.weight - q * c.scale, c.hessian).sum())
            errors.append(max(lost / power, errors[-1]))
        curves[layer.weight] = np.array(errors)
    return curves


def _with_zero(levels: Array) -> Array:
    """The levels of a codebook with 0 among them, as many as before: the least gives way."""
    if 0 in levels:
        return levels
    out = np.array(levels)
    out[np.abs(out).argmin()] = 0
    return out


def _snap(c: _Candidate, state: Quantized, kept: Array) -> Callable[[Array, int], Array]:
    low, high = c.encoding.qmin, c.encoding.qmax
    levels = state.codebooks.get(c.layer.weight)
    if levels is None:
        return lambda x, j: np.clip(np.rint(x), low, high) * kept[:, j]
    return lambda x, j: nearest(levels, x) * kept[:, j]


def achieved(state: Quantized, names: list[str]) -> float:
    """Share of zero codes over the named weights."""
    zeros = sum(int((state.plan.codes[n] == 0).sum()) for n in names)
    return zeros / max(sum(state.plan.codes[n].size for n in names), 1)


def _note(
    state: Quantized,
    names: list[str],
    skipped: list[str],
    pattern: Pattern | None,
    after_that: str,
) -> str:
    how = f"{pattern.n}:{pattern.m} along input channels" if pattern else "unstructured"
    left = f"; not eligible, left dense: {', '.join(skipped)}" if skipped else ""
    return (
        f"sparse: {achieved(state, names):.1%} zeros in {len(names)} layers, {how}, one-shot with "
        f"a second-order update of the remaining weights; {after_that}{left}"
    )


SPARSE = Method("sparse", "pruned weights or channels", SparseOptions, apply, True)
