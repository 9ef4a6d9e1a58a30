"""Depthwise convolutions whose gradients are right and fast in bfloat16 on a CPU.

oneDNN has no fast gradient for depthwise kernels larger than 3x3 or with dilation, and in bfloat16 that of a
dilated kernel is garbage (seen with torch 2.14 on a processor with AMX). Both gradients are forward
convolutions, which it does well. In single precision a search step is slower by them, so that stays torch's:
docs/performance.md has the figures.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

Pair = tuple[int, int]
NARROW = (torch.bfloat16, torch.float16)


def depthwise(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    """`F.conv2d` for x (B, C, H, W) and kernels (C, 1, k, k) at stride 1 with "same" padding, gradients of
    any order; it is that where nothing is learned, in wide types and on other devices than a CPU."""
    double = torch.float64 in (x.dtype, weight.dtype)  # which autocast leaves as it is
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and not double:
        # here, so that the input is kept in the narrow type
        narrow = torch.get_autocast_dtype("cpu")
        x, weight = x.to(narrow), weight.to(narrow)
    learned = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if x.device.type != "cpu" or x.dtype not in NARROW or not learned:
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    out = _Depthwise.apply(x, weight, padding, dilation)
    return out if bias is None else out + bias.to(out).view(-1, 1, 1)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, padding: Pair, dilation: Pair) -> Tensor:
        return F.conv2d(x, weight, None, 1, padding, dilation, len(weight))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, ctx.padding, ctx.dilation = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Any:
        (x, weight), padding, dilation = ctx.saved_tensors, ctx.padding, ctx.dilation  # type: ignore[attr-defined]
        to_x, to_weight, *_ = ctx.needs_input_grad  # type: ignore[attr-defined]
        if x.is_contiguous(memory_format=torch.channels_last):
            gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_x = of_weight = None
        if to_x:
            of_x = _Depthwise.apply(gradient, weight.flip(2, 3), padding, dilation)
        if to_weight:
            of_weight = _weight_gradient(x, gradient, weight.shape, padding, dilation)
        return of_x, of_weight, None, None


def _weight_gradient(x: Tensor, gradient: Tensor, shape: Any, padding: Pair, dilation: Pair) -> Tensor:
    """Every plane of `x` convolved with its plane of the gradient, as if that were the kernel: place (i, j)
    of the result is what tap (i, j) of the kernel saw, and the distance of taps becomes the stride."""
    batch, channels, height, width = gradient.shape
    down, across = padding
    padded = F.pad(x, (across, across, down, down))
    planes = padded.reshape(1, batch * channels, *padded.shape[2:])
    kernels = gradient.reshape(batch * channels, 1, height, width)
    taps = F.conv2d(planes, kernels, stride=dilation, groups=batch * channels)
    return taps.view(batch, channels, *shape[2:]).sum(0).unsqueeze(1)


class DepthwiseConv2d(nn.Conv2d):
    """Conv2d that learns by `depthwise`."""

    convolve = staticmethod(depthwise)  # searchseg.mixed asks for it

    def forward(self, x: Tensor) -> Tensor:
        return depthwise(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups  # type: ignore[arg-type]
        )  # fmt: skip


def learn_depthwise(network: nn.Module) -> None:
    """Let every depthwise convolution of `network` that `depthwise` can do, and that is slow without it,
    learn by it; names and values stay."""
    for module in network.modules():
        if type(module) is nn.Conv2d and _fits(module):
            module.__class__ = DepthwiseConv2d


def as_before(network: nn.Module) -> nn.Module:
    """`network` with torch's own convolutions again: what makes it ready to run knows no others."""
    for module in network.modules():
        if type(module) is DepthwiseConv2d:
            module.__class__ = nn.Conv2d
    return network


def _fits(conv: nn.Conv2d) -> bool:
    geometry = zip(conv.kernel_size, conv.stride, conv.padding, conv.dilation, strict=False)
    return (
        1 < conv.groups == conv.in_channels == conv.out_channels
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and all(s == 1 and 2 * p == d * (k - 1) for k, s, p, d in geometry)
        and (max(conv.kernel_size) > 3 or max(conv.dilation) > 1)
    )
