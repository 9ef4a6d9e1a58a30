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
    """mIoU of `one` minus that of `other`, both (pictures, K, K) counts of the same pictures in one order.

    Every draw takes as many pictures as there are, with repetition, the same ones for both (Efron &
    Tibshirani 1993, chapter 13: the percentile interval). Raises ValueError for counts that do not pair.
    """
    if one.shape != other.shape or one.ndim != 3 or len(one) == 0:
        raise ValueError(
            f"counts of equal shapes (pictures, K, K) are wanted, got {one.shape}, {other.shape}"
        )
    random, pictures = np.random.default_rng(seed), len(one)
    differences = np.empty(draws)
    for draw in range(draws):
        # how often each picture was drawn: a product with the counts is their sum over the drawn ones
        times = np.bincount(random.integers(0, pictures, pictures), minlength=pictures)
        differences[draw] = miou(np.tensordot(times, one, 1)) - miou(np.tensordot(times, other, 1))
    low, high = np.quantile(differences, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(miou(one.sum(0)) - miou(other.sum(0))), float(low), float(high))
