"""The U of eight cells: USpace is searched, SearchNet is what a search found. One wiring, two fillings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from searchseg.cell import ArchitectureParameter, Cell, MixedOp, fixed_cell, searching_cell, upsampled
from searchseg.derivation import derive
from searchseg.genotype import (
    CELL_NAMES,
    OPERATION_NAMES,
    Genotype,
)
from searchseg.mixed import ALL
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

    `make_cell(name, channels_in, channels)` fills the U. Images (B, 3, H, W) of any size give class
    scores (B, num_classes, H, W).
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
        c6 = self.C6(c3, c5)
        c7 = self.C7(c2, c6)
        c8 = self.C8(c1, c7)
        return upsampled(self.head(c8), image)

    def recompute_cells(self, recompute: bool = True) -> None:
        """Train in less memory: cells compute their insides again in the backward pass (Chen et al., arXiv
        1604.06174). Gradients and statistics are those without it."""
        for cell in self.cells().values():
            cell.recompute = recompute

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
    """The searchable network: every edge of every cell holds all seven operations and its own alpha.

    `partial` = K lets 1/K of the channels pass the operations and gives every edge a beta (see MixedOp).
    """

    def __init__(self, config: UShapeConfig, partial: int = 1) -> None:
        super().__init__(config, lambda name, c_in, c: searching_cell(c_in, c, config.nodes, partial))

    def architecture_parameters(self) -> Iterator[ArchitectureParameter]:
        """The alphas and betas; together with `weight_parameters` they partition `parameters()`."""
        for *_, mixed in self.edges():
            yield mixed.alpha
            if mixed.beta is not None:
                yield mixed.beta

    def weight_parameters(self) -> Iterator[nn.Parameter]:
        """Everything that is not an alpha or beta."""
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

    def betas(self) -> dict[str, dict[str, float]] | None:
        """Raw betas: cell -> "source-target" -> number; None without partial channels."""
        table: dict[str, dict[str, float]] = {name: {} for name in CELL_NAMES}
        for name, source, target, mixed in self.edges():
            if mixed.beta is None:
                return None
            table[name][f"{source}-{target}"] = mixed.beta.item()
        return table

    def choose(self, genotype: Genotype | None) -> None:
        """Run only the edges and operations of `genotype`, on the shared weights; None: run the mixture
        again."""
        kept = {
            (name, edge.source, edge.target): (OPERATION_NAMES.index(edge.operation),)
            for name, edges in (genotype.cells.items() if genotype else ())
            for edge in edges
        }
        for name, source, target, mixed in self.edges():
            mixed.candidates = kept.get((name, source, target), ()) if genotype else ALL

    def use_auxiliary_skips(self, weight: float) -> None:
        """Add `weight` times its input to the output of every edge (DARTS-, arXiv 2009.01027)."""
        for *_, mixed in self.edges():
            mixed.auxiliary = weight

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
        return derive(self.alphas(), self.arguments.nodes, search or {}, self.betas())


def config_arguments(config: UShapeConfig) -> dict[str, Any]:
    """The config as the plain values that config.json holds under `arguments`."""
    return {**asdict(config), "widths": list(config.widths)}


def _down(channels_in: int, channels_out: int) -> ConvNorm:
    return ConvNorm(channels_in, channels_out, 3, stride=2, activation=True)
