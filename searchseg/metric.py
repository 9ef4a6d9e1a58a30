"""Intersection over union from one confusion matrix over a whole split."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Scores:
    """IoU of every class (None where neither target nor prediction has a pixel), their mean, and pixel
    accuracy."""

    iou: tuple[float | None, ...]
    miou: float
    accuracy: float


class ConfusionMatrix(nn.Module):
    """Counts (true class, predicted class) pairs; torchmetrics underneath, which also sums over processes.

    `update` takes class ids of equal shapes; target pixels equal to `ignore_index` count for nothing.
    `earlier`: counts (K, K) of all processes to begin with, true class first.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255, earlier: Tensor | None = None) -> None:
        super().__init__()
        self.earlier = earlier
        from torchmetrics.classification import (
            MulticlassConfusionMatrix,
        )  # slow to import, only training needs it

        self.matrix = MulticlassConfusionMatrix(num_classes, ignore_index=ignore_index, validate_args=False)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        self.matrix.update(prediction.long(), target.long())

    def counts(self) -> Tensor:
        """The counts so far of all processes (K, K) int64, true class first."""
        counts = self.matrix.compute()
        return counts if self.earlier is None else counts + self.earlier.to(counts.device)

    def compute(self) -> Scores:
        """TP / (TP + FN + FP) of every class, and the mean over the classes that occur (Zhu & Ma 2023,
        eq. for mIoU)."""
        counts = self.counts().double()
        hits, union = counts.diag(), counts.sum(0) + counts.sum(1) - counts.diag()
        iou = [h / u if u > 0 else None for h, u in zip(hits.tolist(), union.tolist(), strict=True)]
        known = [value for value in iou if value is not None]
        total = counts.sum().item()
        return Scores(
            tuple(iou), sum(known) / len(known) if known else 0.0, hits.sum().item() / total if total else 0.0
        )

    def reset(self) -> None:
        self.matrix.reset()
        self.earlier = None
