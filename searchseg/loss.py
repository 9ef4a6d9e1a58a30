"""Dice loss, the loss of the paper, and its sum with cross-entropy."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-6
Total = Callable[[Tensor], Tensor]


def _wide(logits: Tensor) -> Tensor:
    """In single precision at least: sums over a batch need it."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _alone(sums: Tensor) -> Tensor:
    return sums


def dice_loss(logits: Tensor, target: Tensor, ignore_index: int = 255, total: Total = _alone) -> Tensor:
    """1 - 2 * sum(p * g) / (sum(p) + sum(g)), averaged over the classes (Zhu & Ma 2023; soft Dice of
    arXiv 1606.04797).

    logits (B, K, H, W) floating, target (B, H, W) integer class ids; pixels equal to `ignore_index` count
    for nothing. Sums run over the whole batch, and `total` makes those of all processes out of them: the loss
    of a batch is not the mean of the losses of its parts. A class without a counted target pixel is left out
    of the mean; a batch without any counted pixel gives 0 with a zero gradient. Returns a scalar in [0, 1],
    float32 or wider. Raises ValueError on shapes that do not match and, on a CPU, on ids without a class.
    """
    if logits.ndim != 4 or target.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(
            f"dice_loss needs logits (B, K, H, W) and target (B, H, W), got {tuple(logits.shape)} and "
            f"{tuple(target.shape)}"
        )
    counted = (target != ignore_index).unsqueeze(1)
    if target.device.type == "cpu" and target.numel():  # a GPU would have to wait for the answer
        low, high = target.masked_fill(target == ignore_index, 0).aminmax()
        if low < 0 or high >= logits.shape[1]:
            raise ValueError(f"dice_loss has {logits.shape[1]} classes, and target ids from {low} to {high}")
    probability = _wide(logits).softmax(1)
    # truth values, not numbers: a one-hot tensor of int64 would be twice as large as the probabilities
    classes = torch.arange(logits.shape[1], device=target.device).view(1, -1, 1, 1)
    one_hot = (target.unsqueeze(1) == classes) & counted
    overlap = (probability * one_hot).sum((0, 2, 3))
    p_sum, g_sum = (probability * counted).sum((0, 2, 3)), one_hot.sum((0, 2, 3))
    overlap, p_sum, g_sum = total(torch.stack([overlap, p_sum, g_sum.to(p_sum)]))
    present = g_sum > 0
    loss = 1 - 2 * overlap / (p_sum + g_sum).clamp_min(EPSILON)
    return torch.where(present, loss, loss * 0).sum() / present.sum().clamp_min(1)


def dice_cross_entropy_loss(
    logits: Tensor, target: Tensor, ignore_index: int = 255, weight: Tensor | None = None,
    total: Total = _alone,
) -> Tensor:  # fmt: skip
    """Dice loss plus mean pixel-wise cross-entropy; all else as in `dice_loss`.

    `weight` (K,), see `class_weights`: what a pixel of each class counts in the cross-entropy.
    """
    dice = dice_loss(logits, target, ignore_index, total)
    counted, classes = target != ignore_index, target.long()
    entropy = F.cross_entropy(_wide(logits), classes, weight, ignore_index=ignore_index, reduction="sum")
    amount = counted.sum() if weight is None else weight[classes.masked_fill(~counted, 0)][counted].sum()
    entropy, amount = total(torch.stack([entropy, amount.to(entropy)]))
    # the mean reduction is NaN when all is ignored
    return dice + entropy / amount.clamp_min(1 if weight is None else EPSILON)


def class_weights(pixels: Tensor) -> Tensor:
    """Weights 1 / ln(1.02 + share) from the number of pixels of each class (K,), so that rare classes count
    more (ENet, arXiv 1606.02147, section 5.1); scaled so that the average pixel weighs 1.

    Returns (K,) float32. Raises ValueError when there is no pixel.
    """
    if pixels.ndim != 1 or not pixels.sum() > 0:
        raise ValueError(f"class_weights needs the pixels of each class (K,), got {pixels.tolist()}")
    share = pixels.double() / pixels.sum()
    weights = 1 / torch.log(1.02 + share)
    return (weights / (weights * share).sum()).float()
