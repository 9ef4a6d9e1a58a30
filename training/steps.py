"""What search and retraining share: the losses by name, and the score of an epoch."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor

from searchseg.loss import dice_cross_entropy_loss, dice_loss
from searchseg.metric import ConfusionMatrix

LOSSES = {"dice": dice_loss, "dice+ce": dice_cross_entropy_loss}


class Meter:
    """Mean loss and mIoU of the batches of an epoch, over all processes."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.confusion = ConfusionMatrix(num_classes).to(device)
        self.losses: list[Tensor] = []

    def add(self, result: tuple[Tensor, Tensor], masks: Tensor) -> None:
        """Take in the (loss, class scores) of a step and the masks they belong to."""
        loss, logits = result
        self.losses.append(loss)
        self.confusion.update(logits.argmax(1), masks)

    def result(self, name: str, accelerator: Accelerator) -> dict[str, float]:
        """`{name}_loss` and `{name}_miou`."""
        loss = accelerator.reduce(torch.stack(self.losses).mean(), "mean").item()
        return {f"{name}_loss": loss, f"{name}_miou": self.confusion.compute().miou}
