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
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        super().__init__()
        from torchmetrics.classification import (
            MulticlassConfusionMatrix,
        )  # slow to import, only training needs it

        self.matrix = MulticlassConfusionMatrix(num_classes, ignore_index=ignore_index, validate_args=False)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        self.matrix.update(prediction.long(), target.long())

    def compute(self) -> Scores:
        """TP / (TP + FN + FP) of every class, and the mean over the classes that occur (Zhu & Ma 2023,
        eq. for mIoU)."""
        counts = self.matrix.compute().double()
        hits, union = counts.diag(), counts.sum(0) + counts.sum(1) - counts.diag()
        iou = [h / u if u > 0 else None for h, u in zip(hits.tolist(), union.tolist(), strict=True)]
        known = [value for value in iou if value is not None]
        total = counts.sum().item()
        return Scores(
            tuple(iou), sum(known) / len(known) if known else 0.0, hits.sum().item() / total if total else 0.0
        )

    def reset(self) -> None:
        self.matrix.reset()
