"""What a network costs: parameters and multiply-accumulate operations (MACs)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from searchseg.network import USpace


def parameters(module: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in module.parameters())


def macs(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of one forward pass on an input of `shape` (B, C, H, W); convolutions and
    products only."""
    ghost = copy.deepcopy(module).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ghost(torch.empty(shape, device="meta"))
    return counter.get_total_flops() // 2  # a flop counter counts multiplication and addition apart


class ExpectedMacs:
    """MACs of one picture through a USpace, each edge weighted by softmax(alpha): what the derived net may
    cost.

    Counted once on meta tensors at `size` (H, W); calling it gives a scalar tensor that alpha's gradient can
    flow through. Every edge is counted as if it stayed, so a derived network, which keeps two edges a node,
    costs less.
    """

    def __init__(self, space: USpace, size: tuple[int, int]) -> None:
        self.edges = [mixed for *_, mixed in space.edges()]
        shapes = _edge_shapes(space, size)
        known: dict[tuple[int, ...], Tensor] = {}
        for mixed, shape in zip(self.edges, shapes, strict=True):
            if shape not in known:
                known[shape] = torch.tensor([float(macs(o, shape)) for o in mixed.operations])
        self.costs = torch.stack([known[shape] for shape in shapes])
        self.fixed = macs(space, (1, 3, *size)) - self.costs.sum().item()

    def __call__(self) -> Tensor:
        alpha = torch.stack([mixed.alpha for mixed in self.edges])
        return (alpha.softmax(1) * self.costs.to(alpha.device)).sum() + self.fixed


def _edge_shapes(space: USpace, size: tuple[int, int]) -> list[tuple[int, ...]]:
    """Input shape of every edge, in the order of `space.edges()`, for one picture of `size`."""
    ghost = copy.deepcopy(space).to("meta").eval()
    shapes: dict[int, tuple[int, ...]] = {}
    edges = [mixed for *_, mixed in ghost.edges()]
    hooks = [
        m.register_forward_pre_hook(lambda m, x: shapes.update({id(m): tuple(x[0].shape)})) for m in edges
    ]
    with torch.no_grad():
        ghost(torch.empty((1, 3, *size), device="meta"))
    for hook in hooks:
        hook.remove()
    return [shapes[id(mixed)] for mixed in edges]
