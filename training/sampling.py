"""Genotypes drawn at random: the baseline that every search has to beat."""

from __future__ import annotations

from collections.abc import Callable

from searchseg.genotype import Genotype, random_genotype
from searchseg.task import TaskError

MAX_DRAWS = 20_000  # per genotype wanted; one within 15 % of a common size comes up in a few draws


def draw_genotypes(
    nodes: int, number: int, seed: int, near: tuple[Callable[[Genotype], float], float, float] | None = None
) -> list[Genotype]:
    """`number` different genotypes, drawn uniformly from all with `nodes` nodes a cell.

    `near` = (cost, wanted, tolerance) keeps those with |cost - wanted| <= tolerance * wanted. Raises
    TaskError when too few of them turn up.
    """
    found: dict[str, Genotype] = {}
    for draw in range(MAX_DRAWS * number):
        if len(found) == number:
            break
        genotype = random_genotype(nodes, seed * 1_000_003 + draw)  # runs of different seeds share no draw
        if near is None or abs(near[0](genotype) - near[1]) <= near[2] * near[1]:
            found.setdefault(genotype.id, genotype)
    if len(found) < number:
        raise TaskError(
            f"found {len(found)} of {number} random genotypes so near to the wanted cost: allow more"
        )
    return list(found.values())
