"""The mixed operation: all candidates on one edge, weighted by the architecture parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from searchseg.operations import OPERATIONS, DilConv, SepConv, channel_means

DENSE_CHANNELS = 512  # up to here a dense product with zeros beats a grouped one
ALL = tuple(range(len(OPERATIONS)))


class ArchitectureParameter(nn.Parameter):
    """A parameter that describes the architecture; every other parameter of a network is a weight."""


class MixedOp(nn.Module):
    """All seven operations on one edge: output = sum over o of softmax(alpha)_o * o(x) (DARTS, eq. 2).

    Shape (B, C, H, W) in and out. `alpha` has one entry per operation, in the order of OPERATION_NAMES.
    With `partial` = K > 1 only the first C // K channels pass the operations, the others go round them
    (PC-DARTS, arXiv 1907.05737, eq. 2); the edge then has a `beta`, which its cell turns into edge
    normalisation.

    Two switches change what takes part, for samplers and derivation: `candidates` (indices of operations;
    none closes the edge) and `auxiliary`, the weight of an extra skip (DARTS-, arXiv 2009.01027, eq. 6).
    """

    def __init__(self, channels: int, partial: int = 1) -> None:
        super().__init__()
        self.passing = max(1, channels // partial)
        # without affine normalisation no operation can scale itself up against its alpha
        self.operations = nn.ModuleList(build(self.passing, False) for build in OPERATIONS.values())
        self.alpha = ArchitectureParameter(1e-3 * torch.randn(len(self.operations)))
        self.beta = ArchitectureParameter(1e-3 * torch.randn(1)) if partial > 1 else None
        self.candidates: tuple[int, ...] = ALL
        self.auxiliary = 0.0

    def weights(self) -> Tensor:
        """softmax of alpha over the operations that take part."""
        alpha = self.alpha if self.candidates == ALL else self.alpha[list(self.candidates)]
        return alpha.softmax(0)

    def forward(self, x: Tensor) -> Tensor:
        mixed = mixtures([self], x)[0]
        return torch.cat([mixed, x[:, self.passing :]], dim=1) if self.passing < x.shape[1] else mixed


def mixtures(edges: Sequence[MixedOp], x: Tensor) -> list[Tensor]:
    """What mixed operations that leave one node make of their channels, computed together where that
    saves time.

    The separable and dilated convolutions of all edges share their first ReLU. When few channels pass
    (partial channels), the operations of one kind run as one operation on the channels of all edges side
    by side: the same products, in a fraction of the calls, each wide enough for vector instructions.
    """
    passing = edges[0].passing
    front = x[:, :passing] if passing < x.shape[1] else x
    rectified = F.relu(front)
    alike = len(edges) > 1 and all(edge.candidates == ALL for edge in edges)
    if alike and passing < x.shape[1]:
        mixed = _side_by_side(edges, front, rectified)
    else:
        mixed = [_one_by_one(edge, front, rectified) for edge in edges]
    return [
        torch.add(out, front, alpha=edge.auxiliary) if edge.auxiliary else out
        for edge, out in zip(edges, mixed, strict=True)
    ]


def _one_by_one(edge: MixedOp, front: Tensor, rectified: Tensor) -> Tensor:
    weights, out = edge.weights(), None
    for weight, index in zip(weights, edge.candidates, strict=True):
        operation = edge.operations[index]
        starts_rectified = isinstance(operation, (SepConv, DilConv))
        y = operation.after_relu(rectified) if starts_rectified else operation(front)  # type: ignore[operator]
        if len(edge.candidates) == 1:
            return y
        out = weight * y if out is None else torch.addcmul(out, weight, y)
    assert out is not None, "a closed edge has no output"
    return out


def _side_by_side(edges: Sequence[MixedOp], front: Tensor, rectified: Tensor) -> list[Tensor]:
    """All operations of n edges in five stages; in each, equal layers of all edges and operations are one
    call."""
    count, channels = len(edges), front.shape[1]
    sep3, sep5, dil3, dil5, mb3, mb5, _ = zip(*(edge.operations for edge in edges), strict=True)
    many = torch.cat([rectified] * count, dim=1)
    # first depthwise and pointwise convolution of the separable ones, the only one of the dilated ones
    y = torch.cat([_depthwise([op[1] for op in ops], many) for ops in (sep3, sep5, dil3, dil5)], dim=1)
    y = _norm([op[2][1] for op in (*sep3, *sep5, *dil3, *dil5)],
              _pointwise([op[2][0] for op in (*sep3, *sep5, *dil3, *dil5)], y))  # fmt: skip
    separable, dilated = y.chunk(2, dim=1)
    first, second = separable.relu().chunk(2, dim=1)
    y = torch.cat([_depthwise([op[3] for op in sep3], first), _depthwise([op[3] for op in sep5], second)], 1)
    separable = _norm([op[4][1] for op in (*sep3, *sep5)], _pointwise([op[4][0] for op in (*sep3, *sep5)], y))
    # inverted residuals: one product expands the input for all of them
    residuals = (*mb3, *mb5)
    y = F.conv2d(front, torch.cat([op.expand[0].weight for op in residuals]))
    first, second = _norm([op.expand[1] for op in residuals], y).relu_().chunk(2, dim=1)
    y = torch.cat([_depthwise([op.depthwise[0] for op in mb3], first),
                   _depthwise([op.depthwise[0] for op in mb5], second)], dim=1)  # fmt: skip
    y = _norm([op.depthwise[1] for op in residuals], y).relu_()
    gate = _pointwise([op.attend.squeeze for op in residuals], channel_means(y)).relu()
    y = y * _pointwise([op.attend.excite for op in residuals], gate).sigmoid()
    y = _norm([op.project[1] for op in residuals], _pointwise([op.project[0] for op in residuals], y))
    # the weighted sum; a residual adds its input, as the skip does, so the input has the weight of all three
    weights = torch.stack([edge.weights() for edge in edges], dim=1)  # (7, count)
    direct = weights[4:].sum(0)
    weights = weights.repeat_interleave(channels, dim=1)[:, :, None, None]
    out = (torch.cat([front] * count, dim=1)) * direct.repeat_interleave(channels)[:, None, None]
    parts = (*separable.chunk(2, 1), *dilated.chunk(2, 1), *y.chunk(2, 1))
    for weight, part in zip(weights, parts, strict=False):
        out = torch.addcmul(out, weight, part)
    return list(out.chunk(count, dim=1))


def _depthwise(convolutions: Sequence[nn.Conv2d], x: Tensor) -> Tensor:
    first = convolutions[0]
    weight = torch.cat([convolution.weight for convolution in convolutions])
    convolve = getattr(first, "convolve", F.conv2d)  # those that are learned on a CPU have their own
    return convolve(x, weight, None, first.stride, first.padding, first.dilation, x.shape[1])


def _pointwise(convolutions: Sequence[nn.Conv2d], x: Tensor) -> Tensor:
    """n convolutions of 1x1, each on its own channels of x (B, n * C, H, W)."""
    biases = [convolution.bias for convolution in convolutions]
    bias = torch.cat(biases) if biases[0] is not None else None  # type: ignore[arg-type]
    if x.shape[1] > DENSE_CHANNELS:
        weight = torch.cat([convolution.weight for convolution in convolutions])
        return F.conv2d(x, weight, bias, groups=len(convolutions))
    # a dense product with zeros between the modules: many narrow groups have no fast kernel on a CPU
    weight = torch.block_diag(*(convolution.weight.flatten(1) for convolution in convolutions))
    return F.conv2d(x, weight[:, :, None, None], bias)


def _norm(norms: Sequence[nn.BatchNorm2d], x: Tensor) -> Tensor:
    first = norms[0]
    mean, variance = (
        torch.cat([getattr(m, name) for m in norms]) for name in ("running_mean", "running_var")
    )
    momentum = 0.1 if first.momentum is None else first.momentum
    normalise = getattr(first, "normalise", F.batch_norm)  # norms that are shared by processes have their own
    y = normalise(x, mean, variance, None, None, first.training, momentum, first.eps)
    if first.training:
        with torch.no_grad():
            for norm, m, v in zip(norms, mean.chunk(len(norms)), variance.chunk(len(norms)), strict=True):
                norm.running_mean.copy_(m)  # type: ignore[union-attr]
                norm.running_var.copy_(v)  # type: ignore[union-attr]
    return y
