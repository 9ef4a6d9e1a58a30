"""From the numbers of a search to the discrete architecture, within a budget if there is one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from searchseg.genotype import (
    EDGES_PER_NODE,
    INPUT_NODES,
    OPERATION_NAMES,
    Edge,
    Genotype,
    GenotypeError,
)

SKIP = "skip"


class Costs(Protocol):
    """What derivation asks of a table of costs; see searchseg.cost.OperationCosts."""

    def of(self, cell: str, operation: str) -> float: ...

    def total(self, genotype: Genotype) -> float: ...


@dataclass
class Choice:
    """An edge with the operation it carries for now.

    `strength` and `weights` (of each operation on this edge) are logarithms of softmax weights.
    """

    source: int
    target: int
    strength: float
    weights: Mapping[str, float]
    operation: str

    @property
    def edge(self) -> Edge:
        return Edge(self.source, self.target, self.operation)


Cells = Mapping[str, Sequence[Choice]]


def derive(
    alphas: Mapping[str, Mapping[str, Sequence[float]]],
    nodes: int,
    search: Mapping[str, Any],
    betas: Mapping[str, Mapping[str, float]] | None = None,
    max_skips: int | None = None,
    costs: Costs | None = None,
    limit: float | None = None,
) -> Genotype:
    """Each node keeps its two strongest edges, each with its strongest operation (DARTS, section 2.4).

    alphas: cell -> "source-target" -> one raw number per operation. betas: cell -> "source-target" -> raw
    number. The strength of an edge is its largest softmax(alpha), times softmax(beta) over the edges into
    the same node where there are betas (PC-DARTS, section 3.3). A cell with more than `max_skips` skips
    gives up the weakest of them. A network whose `costs` exceed `limit` takes cheaper operations, those
    first that lose least log softmax(alpha) for what they save (our choice). Equal numbers: the first
    source, then the first operation, wins. Raises GenotypeError when a number is not finite, and, with
    the smallest possible cost, when no choice of operations stays within `limit`.
    """
    cells = {
        name: _strongest(_choices(name, table, betas[name] if betas else None), nodes)
        for name, table in alphas.items()
    }
    if max_skips is not None:
        for choices in cells.values():
            _limit_skips(choices, max_skips)
    if costs is not None and limit is not None:
        _fit(cells, nodes, costs, limit, max_skips)
    return _genotype(nodes, cells, search)


def _choices(
    cell: str, alphas: Mapping[str, Sequence[float]], betas: Mapping[str, float] | None
) -> list[Choice]:
    """Every edge of a cell with its strongest operation."""
    choices = []
    for key, alpha in alphas.items():
        _check_finite(f"alpha of {cell} {key}", alpha)
        weights = dict(zip(OPERATION_NAMES, _log_softmax(alpha), strict=True))
        best = max(weights, key=weights.__getitem__)  # the first of equals
        source, target = map(int, key.split("-"))
        choices.append(Choice(source, target, weights[best], weights, best))
    if betas is not None:
        for target in {choice.target for choice in choices}:
            entering = [choice for choice in choices if choice.target == target]
            raw = [betas[f"{choice.source}-{target}"] for choice in entering]
            _check_finite(f"beta of {cell} into node {target}", raw)
            for choice, weight in zip(entering, _log_softmax(raw), strict=True):
                choice.strength += weight
    return choices


def _strongest(choices: Sequence[Choice], nodes: int) -> list[Choice]:
    """The two strongest edges into every node."""
    kept = []
    for target in range(INPUT_NODES, INPUT_NODES + nodes):
        entering = [choice for choice in choices if choice.target == target]
        kept += sorted(entering, key=lambda c: (-c.strength, c.source))[:EDGES_PER_NODE]
    return kept


def _limit_skips(choices: Sequence[Choice], max_skips: int) -> None:
    """The weakest skips of a cell, down to `max_skips`, become their edge's next best operation."""
    skips = [choice for choice in choices if choice.operation == SKIP]
    for choice in sorted(skips, key=lambda c: (-c.strength, c.source, c.target))[max_skips:]:
        others = [operation for operation in OPERATION_NAMES if operation != SKIP]
        choice.operation = max(others, key=choice.weights.__getitem__)


def _fit(cells: Cells, nodes: int, costs: Costs, limit: float, max_skips: int | None) -> None:
    """While the network costs too much, make the replacement that loses least weight for what it saves."""
    while (cost := costs.total(_genotype(nodes, cells, {}))) > limit:
        best = min(_replacements(cells, costs, max_skips), key=lambda r: r[0], default=None)
        if best is None:
            raise GenotypeError(
                f"no choice of operations stays within the budget of {limit:,.10g}: the cheapest costs "
                f"{cost:,.10g}; raise the budget or take smaller widths"
            )
        _, choice, operation = best
        choice.operation = operation


def _replacements(cells: Cells, costs: Costs, max_skips: int | None) -> Iterator[tuple[float, Choice, str]]:
    """All (log weight lost per cost saved, edge, cheaper operation); the first of equals shall win."""
    for cell, choices in cells.items():
        skips = sum(choice.operation == SKIP for choice in choices)
        full = max_skips is not None and skips >= max_skips
        for choice in sorted(choices, key=lambda c: (c.source, c.target)):
            for operation in OPERATION_NAMES:
                saved = costs.of(cell, choice.operation) - costs.of(cell, operation)
                if saved > 0 and not (operation == SKIP and full):
                    lost = choice.weights[choice.operation] - choice.weights[operation]
                    yield lost / saved, choice, operation


def _genotype(nodes: int, cells: Cells, search: Mapping[str, Any]) -> Genotype:
    return Genotype(
        nodes, {name: tuple(choice.edge for choice in choices) for name, choices in cells.items()}, search
    )


def _log_softmax(values: Sequence[float]) -> list[float]:
    top = max(values)
    total = math.log(math.fsum(math.exp(value - top) for value in values))
    return [value - top - total for value in values]


def _check_finite(what: str, values: Sequence[float]) -> None:
    if not all(map(math.isfinite, values)):
        raise GenotypeError(f"{what} is not finite: the search diverged")
