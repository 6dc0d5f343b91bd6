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

    class Fake(torch.autograd.Function):  # type: ignore[misc]  # torch is not typed here
        @staticmethod
        def forward(
            ctx: Any, x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int
        ) -> Tensor:
            # In place where it can be: the memory's speed decides here. Shifting by the zero point
            # is exact on integers, so the codes are those of QuantizeLinear.
            ratio = x / scale
            step = torch.round(ratio)
            clipped = torch.clamp(step, low - zero, high - zero)
            inside = step == clipped
            slope = torch.addcmul(clipped, ratio, inside, value=-1.0, out=step)
            ctx.save_for_backward(inside, slope)
            ctx.scale_shape = scale.shape
            return clipped.mul_(scale) if scale.dim() == 0 else clipped * scale

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Any:
            (gradient,) = gradients
            inside, slope = ctx.saved_tensors
            to_scale = None
            if ctx.needs_input_grad[1]:
                if ctx.scale_shape == () and gradient.stride() == slope.stride():
                    # Both are dense in the same order: one sum over the memory as it lies.
                    flat = [t.as_strided((t.numel(),), (1,)) for t in (gradient, slope)]
                    to_scale = torch.dot(*flat)
                else:
                    to_scale = (gradient * slope).sum_to_size(ctx.scale_shape)
            return gradient * inside, to_scale, None, None, None

    return Fake


def fake_quantize(x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
    """x as its integer codes tell it; scale and zero broadcast against x."""
    return _function().apply(x, scale, zero, low, high)


def rounded(x: Tensor, low: int, high: int) -> Tensor:
    """Integers nearest to x within [low, high]; the gradient passes straight through."""
    return x + (x.detach().round().clamp(low, high) - x.detach())
