"""Several processes as one: sums and batch norm over the whole batch, on any backend.

A loss that is a quotient of sums, as Dice is, is not the mean of what the processes find in their shares, and
batch norm of a share is not that of the batch. `over_processes` makes the sums of all out of the sums of one;
gradients that are averaged over the processes afterwards, as DistributedDataParallel does, are then those
that one process would find in the whole batch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from searchseg.task import TaskError


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def over_processes(values: Tensor) -> Tensor:
    """The sum of `values` over all processes, in each of them, with gradients of any order.

    All processes must call it in the same order with equal shapes.
    """
    return _Sum.apply(values) if processes() > 1 else values


class _Sum(torch.autograd.Function):
    """Every process sees the sum, so the gradient of each is the sum of the gradients that all have of it."""

    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Any:
        return _Sum.apply(gradient)


def whole_batch_norm(
    x: Tensor, mean: Tensor | None, variance: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """`torch.nn.functional.batch_norm` over the pictures of all processes; each has equally many.

    torch.nn.SyncBatchNorm does the same on a GPU and refuses tensors of a CPU.
    """
    if not training or processes() == 1:
        return F.batch_norm(x, mean, variance, weight, bias, training, momentum, eps)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    found = _statistics_of_all(wide)
    centre, spread = found[:, 0].mean(0), found[:, 1].mean(0) + found[:, 0].var(0, correction=0)
    count = x.numel() // x.shape[1] * processes()
    with torch.no_grad():
        if mean is not None and variance is not None:
            mean.lerp_(centre.detach().to(mean), momentum)
            variance.lerp_(spread.detach().to(variance) * count / (count - 1), momentum)
    scale = (spread + eps).rsqrt() * (1 if weight is None else weight)
    normal = (wide - _along(centre, x)) * _along(scale, x)
    return (normal if bias is None else normal + _along(bias, x)).to(x.dtype)


def _statistics_of_all(x: Tensor) -> Tensor:
    """Mean and variance of the channels in every process, (processes, 2, C): each leaves all but its own row
    at zero, so that the sum holds them all. Sums of squares would cancel where the mean is large."""
    axes = [0, *range(2, x.ndim)]
    variance, mean = torch.var_mean(x, axes, correction=0)
    rows = [torch.zeros_like(variance.expand(2, -1))] * processes()
    rows[dist.get_rank()] = torch.stack([mean, variance])
    return over_processes(torch.stack(rows))


def _along(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (x.ndim - 2))


class WholeBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d over the pictures of all processes."""

    normalise = staticmethod(whole_batch_norm)  # searchseg.mixed asks for it

    def forward(self, x: Tensor) -> Tensor:
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                momentum = 1 / self.num_batches_tracked.item()
        batch = self.training or self.running_mean is None
        statistics = self.running_mean, self.running_var
        return whole_batch_norm(x, *statistics, self.weight, self.bias, batch, momentum, self.eps)


def normalise_together(network: nn.Module) -> None:
    """Let every batch norm of `network` see the pictures of all processes; names and values stay.

    Raises TaskError for batch norms that are more than that, as those of some encoders are.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    strange = {type(norm).__name__ for norm in norms} - {"BatchNorm2d", "WholeBatchNorm2d"}
    if strange:
        raise TaskError(
            f"--sync-batch-norm: {', '.join(sorted(strange))} cannot be shared by processes: leave it "
            "out, or take a network of BatchNorm2d"
        )
    for norm in norms:
        norm.__class__ = WholeBatchNorm2d
