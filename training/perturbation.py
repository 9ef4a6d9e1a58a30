"""Derivation by perturbation: an operation matters as much as the supernet loses without it (DARTS-PT)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from searchseg.genotype import CELL_NAMES
from searchseg.mixed import ALL
from searchseg.network import USpace

Strengths = dict[str, dict[str, list[float]]]


def perturb(space: USpace, score: Callable[[], float], tune: Callable[[], None], seed: int) -> Strengths:
    """Decide every edge of `space` by what removing costs (Wang et al., arXiv 2108.04392, algorithm 1).

    In seeded order, each edge keeps the operation whose removal lowers `score` (mIoU, 0..1) most, and
    `tune` lets the weights settle. Then each edge is closed for a moment: what that costs is its
    strength. Returns numbers in the form of alphas, of which `derive` makes the genotype. `space` runs
    the mixture again afterwards.
    """
    edges = list(space.edges())
    strengths: Strengths = {name: {} for name in CELL_NAMES}
    try:
        for index in np.random.default_rng(seed).permutation(len(edges)):
            mixed = edges[index][-1]
            without = []
            for operation in ALL:
                mixed.candidates = tuple(o for o in ALL if o != operation)
                without.append(score())
            mixed.candidates = (without.index(min(without)),)
            tune()
        whole = score()
        for name, source, target, mixed in edges:
            kept, mixed.candidates = mixed.candidates, ()
            lost = whole - score()
            mixed.candidates = kept
            # 1 + a loss of -1..1 stays above the 0 of the others, and orders the edges by their loss
            strengths[name][f"{source}-{target}"] = [1 + lost if o in kept else 0.0 for o in ALL]
    finally:
        space.choose(None)
    return strengths
