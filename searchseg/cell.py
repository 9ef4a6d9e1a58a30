"""The cell: a small directed acyclic graph, filled with mixed operations (search) or with one each
(final)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from searchseg.genotype import INPUT_NODES, Edge, possible_edges
from searchseg.mixed import ArchitectureParameter, MixedOp, mixtures
from searchseg.operations import OPERATIONS, ConvNorm

__all__ = ["ArchitectureParameter", "Cell", "MixedOp", "fixed_cell", "searching_cell", "upsampled"]


class Cell(nn.Module):
    """Node j = sum of its incoming edges; output = 1x1 merge of the concatenated intermediate nodes
    (DARTS, fig. 1).

    `edges` maps (source, target) to the module on that edge. Inputs of shape (B, channels_in[i], H, W) give
    (B, channels, H, W); the second may have another height and width, it is upsampled to those of the first.
    """

    def __init__(
        self,
        channels_in: tuple[int, int],
        channels: int,
        nodes: int,
        edges: Mapping[tuple[int, int], nn.Module],
    ) -> None:
        super().__init__()
        self.inputs = nn.ModuleList(ConvNorm(c, channels, 1) for c in channels_in)
        self.edges = nn.ModuleDict(
            {f"{source}-{target}": module for (source, target), module in edges.items()}
        )
        self.merge = ConvNorm(nodes * channels, channels, 1, activation=True)
        self._leaving = [
            [target for origin, target in edges if origin == source] for source in range(INPUT_NODES + nodes)
        ]
        self.partial = 1  # of the channels, 1 / partial pass the operations of an edge
        self.recompute = False  # keep the inputs alone for the backward pass, which computes the rest again

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            contexts = functools.partial(_twice, self)
            return checkpoint(self._combine, first, second, use_reentrant=False, context_fn=contexts)
        return self._combine(first, second)

    def _combine(self, first: Tensor, second: Tensor) -> Tensor:
        states = [self.inputs[0](first), self.inputs[1](upsampled(second, first))]
        sums: dict[int, list[Tensor]] = {}
        scales = self.edge_weights()
        for source, leaving in enumerate(self._leaving):
            if source >= INPUT_NODES:
                states.append(_joined(sums[source], self.partial))
            targets = [t for t in leaving if getattr(self._edge(source, t), "candidates", True)]
            arrived = _leave([self._edge(source, target) for target in targets], states[source])
            for target, parts in zip(targets, arrived, strict=True):
                sums[target] = _plus(sums.get(target), parts, scales.get((source, target)))
        return self.merge(torch.cat(states[INPUT_NODES:], dim=1))

    def edge_weights(self) -> dict[tuple[int, int], Tensor]:
        """softmax of beta over the open edges into a node (PC-DARTS, eq. 4); empty where edges have no
        beta."""
        entering: dict[int, dict[tuple[int, int], Tensor]] = {}
        for source, targets in enumerate(self._leaving):
            for target in targets:
                edge = self._edge(source, target)
                if isinstance(edge, MixedOp) and edge.beta is not None and edge.candidates:
                    entering.setdefault(target, {})[source, target] = edge.beta
        return {
            key: weight
            for betas in entering.values()
            for key, weight in zip(betas, torch.cat(list(betas.values())).softmax(0), strict=True)
        }

    def _edge(self, source: int, target: int) -> nn.Module:
        return self.edges[f"{source}-{target}"]


def upsampled(x: Tensor, like: Tensor) -> Tensor:
    """x (B, C, h, w) bilinearly at the height and width of `like` (B, _, H, W), or x where it has them."""
    if x.shape[2:] == like.shape[2:]:
        return x
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


def _twice(cell: Cell) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What surrounds the first pass and the second one, which must not count in the statistics again."""
    return nullcontext(), _statistics_rest(cell)


@contextmanager
def _statistics_rest(cell: Cell) -> Iterator[None]:
    norms = [module for module in cell.modules() if isinstance(module, nn.BatchNorm2d)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches


def _leave(edges: list[nn.Module], x: Tensor) -> list[list[Tensor]]:
    """What the edges that leave a node make of its state: one part, or the mixed channels and the rest."""
    if not edges or not all(isinstance(edge, MixedOp) for edge in edges):
        return [[edge(x)] for edge in edges]
    mixed = mixtures(edges, x)  # type: ignore[arg-type]
    rest = [x[:, mixed[0].shape[1] :]] if mixed[0].shape[1] < x.shape[1] else []
    return [[out, *rest] for out in mixed]


def _plus(sums: list[Tensor] | None, parts: list[Tensor], scale: Tensor | None) -> list[Tensor]:
    if sums is None:
        return parts if scale is None else [scale * part for part in parts]
    if scale is None:
        return [total + part for total, part in zip(sums, parts, strict=True)]
    return [torch.addcmul(total, scale, part) for total, part in zip(sums, parts, strict=True)]


def _joined(parts: list[Tensor], partial: int) -> Tensor:
    return parts[0] if len(parts) == 1 else _shuffle(torch.cat(parts, dim=1), partial)


def _shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels, so that the next node's operations meet others (ShuffleNet, arXiv 1707.01083).

    Once a node, after the sum of its edges: the same as once an edge before it. A rest that does not fill
    the groups stays at the end.
    """
    batch, channels, height, width = x.shape
    if channels % groups:
        full = channels // groups * groups
        return torch.cat([_shuffle(x[:, :full], groups), x[:, full:]], dim=1)
    # as (B, H, W, C), so that channels_last stays channels_last
    x = x.permute(0, 2, 3, 1).reshape(batch, height, width, groups, channels // groups)
    return x.transpose(3, 4).reshape(batch, height, width, channels).permute(0, 3, 1, 2)


def searching_cell(channels_in: tuple[int, int], channels: int, nodes: int, partial: int = 1) -> Cell:
    """A cell of the search space: a MixedOp on every possible edge; `partial` as in MixedOp."""
    edges = {edge: MixedOp(channels, partial) for edge in possible_edges(nodes)}
    cell = Cell(channels_in, channels, nodes, edges)
    cell.partial = partial
    return cell


def fixed_cell(channels_in: tuple[int, int], channels: int, nodes: int, edges: tuple[Edge, ...]) -> Cell:
    """A cell of a SEARCH-Net: one operation on each edge of the genotype."""
    modules = {(edge.source, edge.target): OPERATIONS[edge.operation](channels, True) for edge in edges}
    return Cell(channels_in, channels, nodes, modules)
