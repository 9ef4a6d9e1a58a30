"""The U of eight cells: USpace is searched, SearchNet is what a search found. One wiring, two fillings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from searchseg.cell import ArchitectureParameter, Cell, MixedOp, fixed_cell, searching_cell
from searchseg.genotype import (
    CELL_NAMES,
    EDGES_PER_NODE,
    INPUT_NODES,
    OPERATION_NAMES,
    Edge,
    Genotype,
    GenotypeError,
)
from searchseg.operations import ConvNorm


@dataclass(frozen=True)
class UShapeConfig:
    """Sizes of a U: channels of the four levels, intermediate nodes a cell, stride of the stem, classes."""

    widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    nodes: int = 4
    stem_stride: int = 1
    num_classes: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        if len(self.widths) != 4 or not all(type(w) is int and 1 <= w <= 8192 for w in self.widths):
            raise ValueError(
                f"widths must be four integers from 1 to 8192 (one a level), got {self.widths!r}"
            )
        for name, low, high in (("nodes", 1, 16), ("stem_stride", 1, 2), ("num_classes", 2, 255)):
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ValueError(f"{name} must be an integer from {low} to {high}, got {value!r}")


class UShape(nn.Module):
    """Stem, eight cells, four levels, head (architecture: Zhu & Ma 2023, figure 2; stem and links are our
    choice).

    `make_cell(name, channels_in, channels)` fills the U. Images (B, 3, H, W) of any size give class scores
    (B, num_classes, H, W).
    """

    def __init__(self, config: UShapeConfig, make_cell: Callable[[str, tuple[int, int], int], Cell]) -> None:
        super().__init__()
        self.arguments = config
        w1, w2, w3, w4 = config.widths
        self.stem = ConvNorm(3, w1, 3, stride=config.stem_stride, activation=True)
        self.C1 = make_cell("C1", (w1, w1), w1)
        self.down_stem, self.down_C1 = _down(w1, w2), _down(w1, w2)
        self.C2 = make_cell("C2", (w2, w2), w2)
        self.down_C1_again, self.down_C2 = _down(w2, w3), _down(w2, w3)
        self.C3 = make_cell("C3", (w3, w3), w3)
        self.down_C2_again, self.down_C3 = _down(w3, w4), _down(w3, w4)
        self.C4 = make_cell("C4", (w4, w4), w4)
        self.C5 = make_cell("C5", (w4, w4), w4)
        self.C6 = make_cell("C6", (w3, w4), w3)
        self.C7 = make_cell("C7", (w2, w3), w2)
        self.C8 = make_cell("C8", (w1, w2), w1)
        self.head = nn.Conv2d(w1, config.num_classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        stem = self.stem(image)
        c1 = self.C1(stem, stem)
        c1_down = self.down_C1(c1)
        c2 = self.C2(self.down_stem(stem), c1_down)
        c2_down = self.down_C2(c2)
        c3 = self.C3(self.down_C1_again(c1_down), c2_down)
        c3_down = self.down_C3(c3)
        c4 = self.C4(self.down_C2_again(c2_down), c3_down)
        c5 = self.C5(c3_down, c4)
        c6 = self.C6(c3, _up(c5, c3))
        c7 = self.C7(c2, _up(c6, c2))
        c8 = self.C8(c1, _up(c7, c1))
        return _up(self.head(c8), image)

    def cells(self) -> dict[str, Cell]:
        """The eight cells by name, in the order of the figure."""
        return {name: getattr(self, name) for name in CELL_NAMES}


class SearchNet(UShape):
    """The final network of a genotype. Raises ValueError when genotype and config disagree on the nodes a
    cell."""

    architecture = "searchnet"

    def __init__(self, config: UShapeConfig, genotype: Genotype) -> None:
        if config.nodes != genotype.nodes:
            raise ValueError(
                f"config has {config.nodes} nodes a cell, the genotype {genotype.nodes}: make them equal"
            )
        super().__init__(
            config, lambda name, c_in, c: fixed_cell(c_in, c, config.nodes, tuple(genotype.cells[name]))
        )
        self.genotype = genotype


class USpace(UShape):
    """The searchable network: every edge of every cell holds all seven operations and its own alpha."""

    def __init__(self, config: UShapeConfig) -> None:
        super().__init__(config, lambda name, c_in, c: searching_cell(c_in, c, config.nodes))

    def architecture_parameters(self) -> Iterator[ArchitectureParameter]:
        """The alphas; together with `weight_parameters` they partition `parameters()`."""
        return (mixed.alpha for *_, mixed in self.edges())

    def weight_parameters(self) -> Iterator[nn.Parameter]:
        """Everything that is not an alpha."""
        alphas = {id(p) for p in self.architecture_parameters()}
        return (p for p in self.parameters() if id(p) not in alphas)

    def edges(self) -> Iterator[tuple[str, int, int, MixedOp]]:
        """Every edge as (cell, source, target, mixed operation)."""
        for name, cell in self.cells().items():
            for key, mixed in cell.edges.items():
                source, target = map(int, key.split("-"))
                assert isinstance(mixed, MixedOp)
                yield name, source, target, mixed

    def alphas(self) -> dict[str, dict[str, list[float]]]:
        """Raw alphas as plain numbers: cell -> "source-target" -> one number per operation."""
        table: dict[str, dict[str, list[float]]] = {name: {} for name in CELL_NAMES}
        for name, source, target, mixed in self.edges():
            table[name][f"{source}-{target}"] = mixed.alpha.detach().tolist()
        return table

    @torch.no_grad()
    def entropy(self) -> float:
        """Mean entropy of the edges' softmax(alpha), divided by its largest value: 1 undecided, 0 decided."""
        alpha = torch.stack([mixed.alpha for *_, mixed in self.edges()])
        return (
            torch.special.entr(alpha.softmax(1)).sum(1).mean() / torch.tensor(alpha.shape[1]).log()
        ).item()

    def genotype(self, search: Mapping[str, Any] | None = None) -> Genotype:
        """Derive the architecture: each node keeps its two strongest edges, each with its strongest
        operation."""
        return derive(self.alphas(), self.arguments.nodes, search or {})


def derive(
    alphas: Mapping[str, Mapping[str, list[float]]], nodes: int, search: Mapping[str, Any]
) -> Genotype:
    """Genotype of raw alphas (DARTS, section 2.4): the strength of an edge is the weight of its best
    operation."""
    cells = {}
    for name, table in alphas.items():
        best = []
        for key, alpha in table.items():
            if not all(map(math.isfinite, alpha)):
                raise GenotypeError(f"alpha of {name} {key} is not finite: the search diverged")
            weights = torch.tensor(alpha, dtype=torch.float64).softmax(0)
            source, target = map(int, key.split("-"))
            best.append((weights.max().item(), Edge(source, target, OPERATION_NAMES[int(weights.argmax())])))
        cells[name] = tuple(
            edge
            for target in range(INPUT_NODES, INPUT_NODES + nodes)
            for _, edge in sorted((b for b in best if b[1].target == target), key=lambda b: (-b[0], b[1]))[
                :EDGES_PER_NODE
            ]
        )
    return Genotype(nodes, cells, search)


def config_arguments(config: UShapeConfig) -> dict[str, Any]:
    """The config as the plain values that config.json holds under `arguments`."""
    return {**asdict(config), "widths": list(config.widths)}


def _down(channels_in: int, channels_out: int) -> ConvNorm:
    return ConvNorm(channels_in, channels_out, 3, stride=2, activation=True)


def _up(x: Tensor, like: Tensor) -> Tensor:
    if x.shape[2:] == like.shape[2:]:
        return x
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)
