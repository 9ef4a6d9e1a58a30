"""The cell: a small directed acyclic graph, filled with mixed operations (search) or with one each
(final)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from searchseg.genotype import INPUT_NODES, Edge, possible_edges
from searchseg.operations import OPERATIONS, ConvNorm


class ArchitectureParameter(nn.Parameter):
    """A parameter that describes the architecture; every other parameter of a network is a weight."""


class MixedOp(nn.Module):
    """All seven operations on one edge: output = sum over o of softmax(alpha)_o * o(x) (DARTS, eq. 2).

    Shape (B, C, H, W) in and out. `alpha` has one entry per operation, in the order of OPERATION_NAMES.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        # without affine normalisation no operation can scale itself up against its alpha
        self.operations = nn.ModuleList(build(channels, False) for build in OPERATIONS.values())
        self.alpha = ArchitectureParameter(1e-3 * torch.randn(len(self.operations)))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.alpha.softmax(0)
        out = weights[0] * self.operations[0](x)
        for weight, operation in zip(weights[1:], self.operations[1:], strict=True):
            out = torch.addcmul(out, weight, operation(x))
        return out


class Cell(nn.Module):
    """Node j = sum of its incoming edges; output = 1x1 merge of the concatenated intermediate nodes (DARTS,
    fig. 1).

    `edges` maps (source, target) to the module on that edge. Two inputs of shape (B, channels_in[i], H, W)
    with equal H and W give (B, channels, H, W).
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
        targets = range(INPUT_NODES, INPUT_NODES + nodes)
        self._sources = [[s for s, t in edges if t == target] for target in targets]

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        states = [self.inputs[0](first), self.inputs[1](second)]
        for target, sources in enumerate(self._sources, start=INPUT_NODES):
            arriving = [self.edges[f"{source}-{target}"](states[source]) for source in sources]
            states.append(sum(arriving[1:], arriving[0]))
        return self.merge(torch.cat(states[INPUT_NODES:], dim=1))


def searching_cell(channels_in: tuple[int, int], channels: int, nodes: int) -> Cell:
    """A cell of the search space: a MixedOp on every possible edge."""
    return Cell(channels_in, channels, nodes, {edge: MixedOp(channels) for edge in possible_edges(nodes)})


def fixed_cell(channels_in: tuple[int, int], channels: int, nodes: int, edges: tuple[Edge, ...]) -> Cell:
    """A cell of a SEARCH-Net: one operation on each edge of the genotype."""
    modules = {(edge.source, edge.target): OPERATIONS[edge.operation](channels, True) for edge in edges}
    return Cell(channels_in, channels, nodes, modules)
