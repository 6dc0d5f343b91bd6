"""Fake quantization in torch, equal to the exported quantizer, with gradients to its scale.

forward: the float32 arithmetic of QuantizeLinear and DequantizeLinear, as quant/encoding.py.
backward: straight through inside the range; the scale's gradient is that of LSQ (Esser et al.,
Learned Step Size Quantization, ICLR 2020).
"""

from __future__ import annotations

import functools
from typing import Any

Tensor = Any


@functools.cache
def _function() -> Any:
    import torch

    # Keeps a value where the second operand lies inside the limits, else 0: one pass, where a
    # mask of booleans takes three.
    inside = torch.ops.aten.hardtanh_backward

    class Fake(torch.autograd.Function):  # type: ignore[misc]  # torch is not typed here
        @staticmethod
        def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
            ratio = x / scale
            step = torch.round(ratio).clamp_(low, high)
            if any(ctx.needs_input_grad):
                ctx.limits = low - 0.5, high + 0.5
                ctx.save_for_backward(ratio, step - inside(ratio, ratio, *ctx.limits))
            return step.mul_(scale)

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Any:
            (gradient,) = gradients
            ratio, slope = ctx.saved_tensors
            to_scale = None
            if ctx.needs_input_grad[1]:
                if gradient.stride() != slope.stride():
                    gradient = torch.empty_like(slope).copy_(gradient)
                # Both are dense in the same order: one sum over the memory as it lies.
                flat = [t.as_strided((t.numel(),), (1,)) for t in (gradient, slope)]
                to_scale = torch.dot(*flat)
            return inside(gradient, ratio, *ctx.limits), to_scale, None, None

    return Fake


def fake_quantize(x: Tensor, scale: Tensor, zero: int, low: int, high: int) -> Tensor:
    """x as its integer codes tell it; scale () is a tensor.

    The zero point shifts the limits instead of the codes, which is the same for integers.
    """
    return _function().apply(x, scale, low - zero, high - zero)


def rounded(x: Tensor, low: int, high: int) -> Tensor:
    """Integers nearest to x within [low, high]; the gradient passes straight through."""
    return x + (x.detach().round().clamp(low, high) - x.detach())
