"""What the searches on shared weights have in common: the best of many candidates, none of them trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from searchseg.genotype import Genotype


def best_of(
    genotypes: Iterable[Genotype], score: Callable[[Genotype], float]
) -> tuple[Genotype, float, list[float]]:
    """Score every candidate; return the best one (of equals the first), its score, and all scores in order.

    The last step of random search with weight sharing (Li & Talwalkar 2019, arXiv 1902.07638) and of ENAS
    (Pham et al. 2018, arXiv 1802.03268). Raises ValueError without candidates or when a score is not
    finite.
    """
    candidates = list(genotypes)
    scores = [float(score(genotype)) for genotype in candidates]
    if not scores or not all(map(math.isfinite, scores)):
        raise ValueError(f"candidates need finite scores, one or more, got {scores}")
    best = scores.index(max(scores))
    return candidates[best], scores[best], scores
