"""What is trained of a quantized state, as torch leaves, and the way back.

Every leaf is in units of its own size, so that one learning rate fits a layer of 0.001 and one of
10: a weight's codes in units of their channel's root mean square, scales as logarithms, centroids
in units of their spacing, biases in units of their root mean square.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from quant.encoding import Encoding, with_scale
from quant.graph import activations, array_of, encoding_groups, initializer_uses, name_of
from quant.reweight import scale_of, with_codes
from quant.state import Quantized
from quant.train.fake import fake_quantize, rounded

Array = np.ndarray[Any, Any]
Tensor = Any

CENTROID_RATE = 10.0  # times the learning rate: a spacing is a fraction of a weight's size
_BIN = 0.49  # half of an integer's bin, with a margin for float32
_PRUNED_SHARE = 0.1  # a weight with this share of exact zeros keeps them


@dataclass(frozen=True)
class Trained:
    """Which parts of the state learn. A clustered weight moves with its level only."""

    weights: bool = True
    scales: bool = True
    activations: bool = True
    biases: bool = True


@dataclass(frozen=True, eq=False)
class _Weight:
    name: str
    encoding: Encoding
    reference: Tensor  # unit of the free weight; or spacing of its levels
    index: Tensor | None  # level of each weight, for a clustered one
    levels: Tensor | None
    mask: Tensor | None


class Parameters:
    """Leaves by name, and from them the initializers and the activations' quantizer."""

    def __init__(self, state: Quantized, trained: Trained) -> None:
        self.state = state
        self.trained = trained
        self.leaves: dict[str, Tensor] = {}
        self.rates: dict[str, float] = {}
        self._fixed: dict[str, Tensor] = {}
        self._weights: dict[str, _Weight] = {}
        self._biases: dict[str, tuple[Tensor, float, str | None, str]] = {}
        self._add_initializers()
        self._add_activations()

    def _leaf(self, key: str, start: Tensor, learns: bool, rate: float = 1.0) -> None:
        self.leaves[key] = start.clone().requires_grad_(learns)
        self.rates[key] = rate

    def _add_initializers(self) -> None:
        import torch

        plan = self.state.plan
        for use in initializer_uses(self.state.model.ir.graph):
            name = name_of(use.value)
            encoding = plan.tensors.get(name)
            if encoding is None or name in self._weights or name in self._fixed:
                continue
            data = np.array(array_of(use.value), np.float32)
            codes = plan.codes.get(name)
            if use.role == "weight":
                self._add_weight(name, encoding, data, codes)
            elif use.role == "bias" and encoding.bits == 32:
                source, weight = use.node.inputs[0], use.node.inputs[1]
                assert source is not None and weight is not None
                size = float(np.sqrt(np.mean(np.square(data)))) or 0.01
                own = name_of(weight) not in plan.tensors or (
                    plan.tensors[name_of(weight)].block_size is not None
                )
                self._biases[name] = (
                    torch.from_numpy(data),
                    size,
                    None if own else name_of(source),
                    name_of(weight),
                )
                self._leaf(f"bias {name}", torch.zeros(data.shape), self.trained.biases)
            else:
                known = encoding.fake(data) if codes is None else encoding.dequantize(codes)
                self._fixed[name] = torch.from_numpy(np.array(known, np.float32))

    def _add_weight(self, name: str, encoding: Encoding, data: Array, codes: Array | None) -> None:
        import torch

        restored = encoding.fake(data) if codes is None else encoding.dequantize(codes)
        levels = self.state.codebooks.get(name)
        index = level_tensor = mask = None
        if levels is not None and codes is not None:
            index = torch.from_numpy(np.searchsorted(levels, codes.astype(np.int64)))
            level_tensor = torch.from_numpy(levels.astype(np.float32))
            gap = float(np.diff(levels).mean()) if levels.size > 1 else 1.0
            reference = torch.tensor(gap)
            self._leaf(
                f"weight {name}", torch.zeros(levels.size), self.trained.weights, CENTROID_RATE
            )
        else:
            # Weights are trained in units of their own scale: a scale that learns then leaves
            # every integer where it is. Where integers were chosen together (second order), the
            # float weights are another network, so training starts from the integers, each weight
            # within its integer's bin as near as that to its float value: those that were rounded
            # on a knife's edge change first.
            ratio = data / scale_of(encoding, data.shape)
            start = ratio
            if codes is not None:
                whole = codes.astype(np.float32)
                start = np.clip(ratio, whole - _BIN, whole + _BIN)
            start = np.clip(start.astype(np.float32), encoding.qmin, encoding.qmax)
            axis = encoding.axis if encoding.block_size is None else 1 - (encoding.axis or 0)
            other = tuple(k for k in range(data.ndim) if k != axis)
            size = np.sqrt(np.mean(np.square(start), axis=other, keepdims=True)) + 1e-3
            reference = torch.from_numpy(size.astype(np.float32))
            kept = restored != 0
            if kept.mean() < 1.0 - _PRUNED_SHARE:
                mask = torch.from_numpy(kept.astype(np.float32))
            self._leaf(f"weight {name}", torch.from_numpy(start) / reference, self.trained.weights)
        self._weights[name] = _Weight(name, encoding, reference, index, level_tensor, mask)
        self._leaf(f"scale {name}", torch.zeros(encoding.scale.shape), self.trained.scales)

    def _add_activations(self) -> None:
        """One leaf per group of values that share an encoding; a table's or a converted one's
        encoding stays as it is."""
        import torch

        graph, plan = self.state.model.ir.graph, self.state.plan
        groups = encoding_groups(graph)
        self._activations: dict[str, tuple[str, Encoding]] = {}
        members: dict[str, list[str]] = {}
        for value in activations(graph):
            name = name_of(value)
            if name in plan.tensors:
                members.setdefault(groups.get(name, name), []).append(name)
        for root, names in members.items():
            first = plan.tensors[names[0]]
            same = all(plan.tensors[n].same_as(first) for n in names)
            free = same and root not in graph.initializers
            free = free and not any(n in plan.converted for n in names)
            for name in names:
                self._activations[name] = (root if free else f"{root} {name}", plan.tensors[name])
            for key in {self._activations[n][0] for n in names}:
                learns = free and self.trained.activations
                self._leaf(f"activation {key}", torch.zeros(()), learns)

    def _scale(self, leaf: str, encoding: Encoding) -> Tensor:
        import torch

        return torch.from_numpy(np.array(encoding.scale)) * torch.exp(self.leaves[leaf])

    def _spread(self, scale: Tensor, encoding: Encoding, shape: tuple[int, ...]) -> Tensor:
        """A weight's scale, shaped to broadcast against the weight."""
        if encoding.axis is None:
            return scale
        if encoding.block_size is not None:
            long = scale.repeat_interleave(encoding.block_size, encoding.axis)
            return long.narrow(encoding.axis, 0, shape[encoding.axis])
        return scale.reshape([-1 if k == encoding.axis else 1 for k in range(len(shape))])

    def _level_values(self, weight: _Weight) -> Tensor:
        """The integer levels of a clustered weight; one that is zero stays zero."""
        assert weight.levels is not None
        moved = weight.levels + self.leaves[f"weight {weight.name}"] * weight.reference
        whole = rounded(moved, weight.encoding.qmin, weight.encoding.qmax)
        return whole * (weight.levels != 0)

    def _codes(self, weight: _Weight) -> Tensor:
        """The integers of a weight, as floats; the gradient passes through the rounding."""
        if weight.index is not None:
            return self._level_values(weight)[weight.index]
        latent = self.leaves[f"weight {weight.name}"] * weight.reference
        whole = rounded(latent, weight.encoding.qmin, weight.encoding.qmax)
        return whole if weight.mask is None else whole * weight.mask

    def initializers(self) -> dict[str, Tensor]:
        """Every planned initializer as the exported graph will see it."""
        out: dict[str, Tensor] = dict(self._fixed)
        scales: dict[str, Tensor] = {}
        for name, w in self._weights.items():
            scale = self._scale(f"scale {name}", w.encoding)
            scales[name] = scale
            codes = self._codes(w)
            out[name] = codes * self._spread(scale, w.encoding, tuple(codes.shape))
        for name, (start, size, source, weight) in self._biases.items():
            value = start + self.leaves[f"bias {name}"] * size
            out[name] = self._rounded_bias(name, value, source, scales.get(weight), weight)
        return out

    def _rounded_bias(
        self, name: str, value: Tensor, source: str | None, scale: Tensor | None, weight: str
    ) -> Tensor:
        import torch

        plan = self.state.plan
        with torch.no_grad():
            if source is None or source not in self._activations:
                step = torch.from_numpy(np.array(plan.tensors[name].scale))
            else:
                key, encoding = self._activations[source]
                seen = plan.converted.get(source)
                step = self._scale(f"activation {key}", encoding)
                if seen is not None:
                    step = torch.from_numpy(np.array(seen.scale))
                own = plan.tensors[weight].scale
                step = step * (torch.from_numpy(np.array(own)) if scale is None else scale)
            whole = (torch.round(value.double() / step.double()) * step.double()).float()
        return value + (whole - value.detach())

    def quantizer(self, name: str, value: Tensor) -> Tensor:
        """The activation behind its quantizer; values the plan does not name pass."""
        found = self._activations.get(name)
        if found is None:
            return value
        key, encoding = found
        value = _fake(value, self._scale(f"activation {key}", encoding), encoding)
        converted = self.state.plan.converted.get(name)
        if converted is None:
            return value
        import torch

        return _fake(value, torch.from_numpy(np.array(converted.scale)), converted)

    def result(self) -> Quantized:
        """The state with what was learned: scales, integers and biases."""
        import torch

        encodings: dict[str, Encoding] = {}
        codes: dict[str, Array] = {}
        levels: dict[str, Array] = dict(self.state.codebooks)
        biases: dict[str, Array] = {}
        with torch.no_grad():
            for name, (key, encoding) in self._activations.items():
                scale = self._scale(f"activation {key}", encoding).numpy()
                encodings[name] = with_scale(encoding, scale)
            for name, w in self._weights.items():
                scale = self._scale(f"scale {name}", w.encoding).numpy()
                encodings[name] = with_scale(w.encoding, scale)
                codes[name] = self._codes(w).numpy().astype(np.int64)
                if w.index is not None:
                    levels[name] = np.unique(self._level_values(w).numpy().astype(np.int64))
            for name, (start, size, _, _) in self._biases.items():
                biases[name] = (start + self.leaves[f"bias {name}"] * size).numpy()
        from dataclasses import replace

        return with_codes(replace(self.state, codebooks=levels), codes, biases, encodings)

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Set the leaves (a checkpoint's) in place."""
        import torch

        with torch.no_grad():
            for key, leaf in self.leaves.items():
                leaf.copy_(torch.from_numpy(np.array(arrays[key])))


def _fake(value: Tensor, scale: Tensor, encoding: Encoding) -> Tensor:
    zero = int(encoding.zero_point)
    return fake_quantize(value, scale, zero, encoding.qmin, encoding.qmax)
