"""What a network costs: parameters and multiply-accumulate operations (MACs)."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from searchseg.genotype import (
    CELL_NAMES,
    EDGES_PER_NODE,
    OPERATION_NAMES,
    Edge,
    Genotype,
    possible_edges,
)
from searchseg.mixed import MixedOp
from searchseg.network import SearchNet, UShapeConfig, USpace
from searchseg.operations import OPERATIONS


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


@dataclass(frozen=True)
class PartCost:
    """What a part of a network costs for one picture, and the shape, (C, H, W), of what it gives."""

    parameters: int
    macs: int
    shape: tuple[int, ...]


def part_costs(
    network: nn.Module, parts: Mapping[str, nn.Module], size: tuple[int, int]
) -> dict[str, PartCost]:
    """Costs of the modules `parts` of `network` for one picture of `size` (H, W), in the order they run.

    A module that runs more than once counts every time.
    """
    ghost = copy.deepcopy(network).to("meta").eval()
    names = {id(module): name for name, module in network.named_modules()}
    spent: dict[str, int] = dict.fromkeys(parts, 0)
    shapes: dict[str, tuple[int, ...]] = {}
    with FlopCounterMode(display=False) as counter, torch.no_grad():

        def before(part: str) -> None:
            spent[part] -= counter.get_total_flops()

        def after(part: str, output: Any) -> None:
            spent[part] += counter.get_total_flops()
            while not isinstance(output, Tensor):  # an encoder gives a pyramid: its deepest level
                output = output[0] if isinstance(output[0], list | tuple) else output[-1]
            shapes[part] = tuple(output.shape[1:])

        for part, module in parts.items():
            twin = ghost.get_submodule(names[id(module)])
            twin.register_forward_pre_hook(lambda _, __, part=part: before(part))
            twin.register_forward_hook(lambda _, __, output, part=part: after(part, output))
        ghost(torch.empty((1, 3, *size), device="meta"))
    return {
        part: PartCost(parameters(parts[part]), spent[part] // 2, shape) for part, shape in shapes.items()
    }


@dataclass(frozen=True)
class OperationCosts:
    """What an operation costs in a cell of a U, and what stem, links, cell inputs, merges and head cost
    (`fixed`).

    `table`: cell -> operation -> cost of one edge. The unit is that of whoever counted: MACs, parameters,
    seconds.
    """

    table: Mapping[str, Mapping[str, float]]
    fixed: float

    def of(self, cell: str, operation: str) -> float:
        """Cost of an edge of `cell` that carries `operation`."""
        return self.table[cell][operation]

    def total(self, genotype: Genotype) -> float:
        """Cost of the whole network of a genotype."""
        return self.fixed + sum(
            self.of(cell, edge.operation) for cell, edges in genotype.cells.items() for edge in edges
        )


@functools.lru_cache(64)
def count_macs(config: UShapeConfig, size: tuple[int, int]) -> OperationCosts:
    """MACs of one picture of `size` (H, W) through a SearchNet; totals are exact. Counted once a process."""
    return _count(config, size, macs)


@functools.lru_cache(64)
def count_parameters(config: UShapeConfig) -> OperationCosts:
    """Parameters of a SearchNet; totals are exact. Counted once a process."""
    return _count(config, (32, 32), lambda module, _: parameters(module))  # the same at any size


def expected_cost(space: USpace, costs: OperationCosts) -> Tensor:
    """Cost that the network derived from `space` is expected to have: a scalar with a gradient, float64
    on the CPU.

    Sum over edges of the probability to be kept times softmax(alpha) . costs, plus the fixed cost
    (ProxylessNAS, arXiv 1812.00332, section 3.3; that edges are kept or not is our addition).
    """
    entering: dict[tuple[str, int], list[MixedOp]] = {}
    for cell, _, target, mixed in space.edges():
        entering.setdefault((cell, target), []).append(mixed)
    total = torch.tensor(costs.fixed, dtype=torch.float64)
    for (cell, _), edges in entering.items():
        prices = [costs.of(cell, operation) for operation in OPERATION_NAMES]
        # float32 does not hold the MACs of a large network, and not every accelerator has float64
        alphas = torch.stack([mixed.alpha for mixed in edges]).cpu().double()
        total = total + _kept(edges) @ (alphas.softmax(1) @ torch.tensor(prices, dtype=torch.float64))
    return total


def _kept(edges: Sequence[MixedOp]) -> Tensor:
    """Probability of each of the edges into a node to be among the two that it keeps."""
    betas: list[Tensor] = [mixed.beta for mixed in edges if mixed.beta is not None]
    if not betas:
        return torch.full((len(edges),), EDGES_PER_NODE / len(edges), dtype=torch.float64)
    first = torch.cat(betas).cpu().double().softmax(0)
    # two draws without replacement: drawn first, or second after another edge
    odds = first / (1 - first).clamp_min(1e-12)
    return first + first * (odds.sum() - odds)


def cell_shapes(config: UShapeConfig, size: tuple[int, int]) -> dict[str, tuple[int, int, int, int]]:
    """Shape (1, C, H, W) of the nodes of every cell for one picture of `size` (H, W)."""
    with torch.device("meta"):
        net = SearchNet(config, _plainest(config.nodes)).eval()
    shapes = {}
    for name, cell in net.cells().items():
        cell.register_forward_hook(
            lambda _, __, output, name=name: shapes.update({name: tuple(output.shape)})
        )
    with torch.no_grad():
        net(torch.empty((1, 3, *size), device="meta"))
    return shapes


def _count(
    config: UShapeConfig, size: tuple[int, int], cost: Callable[[nn.Module, tuple[int, ...]], int]
) -> OperationCosts:
    """Count each operation once per shape; what a network of nothing but skips costs is fixed."""
    shapes = cell_shapes(config, size)
    with torch.device("meta"):
        net = SearchNet(config, _plainest(config.nodes))
        known = {
            shape: {name: cost(build(shape[1], True), shape) for name, build in OPERATIONS.items()}
            for shape in set(shapes.values())
        }
    table = {cell: known[shape] for cell, shape in shapes.items()}
    return OperationCosts(table, cost(net, (1, 3, *size)))


def _plainest(nodes: int) -> Genotype:
    """Skips from the two inputs of each cell to every node."""
    edges = tuple(Edge(s, t, "skip") for s, t in possible_edges(nodes) if s < EDGES_PER_NODE)
    return Genotype(nodes, dict.fromkeys(CELL_NAMES, edges))
