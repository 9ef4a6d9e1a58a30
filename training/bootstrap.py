"""Is one network better than another, or was it these test pictures? A paired bootstrap over pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DRAWS, LEVEL = 2000, 0.95


@dataclass(frozen=True)
class Interval:
    """Difference of two mIoUs on all pictures, and the interval that holds 95 % of the resampled ones."""

    difference: float
    low: float
    high: float

    @property
    def decided(self) -> bool:
        """Whether zero lies outside of the interval."""
        return self.low > 0 or self.high < 0


def miou(counts: np.ndarray) -> np.ndarray:
    """Mean IoU of confusion matrices (..., K, K), true class first, over the classes that occur in each."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1).astype(float)
    union = counts.sum(-1) + counts.sum(-2) - hits
    with np.errstate(invalid="ignore"):
        iou = np.where(union > 0, hits / union, np.nan)
    return np.nanmean(iou, axis=-1)


def paired_bootstrap(one: np.ndarray, other: np.ndarray, seed: int = 0, draws: int = DRAWS) -> Interval:
    """mIoU of `one` minus that of `other`: (seeds, pictures, K, K) counts of the same pictures in one order.

    The mIoU of several seeds is their mean; the seeds stay as they are, only pictures are drawn. Every draw
    takes as many pictures as there are, with repetition, the same ones for both (Efron & Tibshirani 1993,
    chapter 13: the percentile interval). Raises ValueError for counts that do not pair.
    """
    if one.shape != other.shape or one.ndim != 4 or 0 in one.shape:
        raise ValueError(
            f"counts of equal shapes (seeds, pictures, K, K) are wanted, got {one.shape}, {other.shape}"
        )
    random, pictures = np.random.default_rng(seed), one.shape[1]
    differences = np.empty(draws)
    for draw in range(draws):
        # how often each picture was drawn: a product with the counts is their sum over the drawn ones
        times = np.bincount(random.integers(0, pictures, pictures), minlength=pictures)
        drawn = (np.einsum("p,spij->sij", times, counts) for counts in (one, other))
        differences[draw] = np.subtract(*(miou(total).mean() for total in drawn))
    low, high = np.quantile(differences, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    difference = miou(one.sum(1)).mean() - miou(other.sum(1)).mean()
    return Interval(float(difference), float(low), float(high))
