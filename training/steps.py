"""What search and retraining share: the losses by name, and the score of an epoch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from searchseg.loss import dice_cross_entropy_loss, dice_loss
from searchseg.metric import ConfusionMatrix
from training.together import over_processes

LOSSES: dict[str, Callable[..., Tensor]] = {"dice": dice_loss, "dice+ce": dice_cross_entropy_loss}


def criterion(name: str, **more: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of that name of the batch of all processes together: (logits, masks) of one -> scalar."""
    return functools.partial(LOSSES[name], total=over_processes, **more)


class Meter:
    """Mean loss and mIoU of the batches of an epoch, over all processes.

    An epoch that is interrupted goes on with the state of its meter: the result is the same, bit for bit.
    """

    def __init__(self, num_classes: int, accelerator: Accelerator) -> None:
        self.num_classes, self.accelerator = num_classes, accelerator
        self.confusion = ConfusionMatrix(num_classes).to(accelerator.device)
        self.losses: list[Tensor] = []
        self.earlier = torch.empty(
            0
        )  # the losses of the steps before an interruption, means of all processes

    def fresh(self) -> Meter:
        """One of the same kind that has seen nothing."""
        return Meter(self.num_classes, self.accelerator)

    def add(self, result: tuple[Tensor, Tensor], masks: Tensor) -> None:
        """Take in the (loss, class scores) of a step and the masks they belong to."""
        loss, logits = result
        self.losses.append(loss)
        self.confusion.update(logits.argmax(1), masks)

    def result(self, name: str) -> dict[str, float]:
        """`{name}_loss` and `{name}_miou`; NaN and 0 when every step was taken back."""
        losses = self._all_losses()
        loss = losses.mean().item() if len(losses) else float("nan")
        return {f"{name}_loss": loss, f"{name}_miou": self.confusion.compute().miou}

    def state_dict(self) -> dict[str, Any]:
        """What all processes have seen so far; all of them must call it."""
        seen = self.confusion.counts() if self.losses else self.confusion.earlier
        return {"losses": self._all_losses(), "counts": None if seen is None else seen.cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses, self.earlier = [], state["losses"]
        self.confusion = ConfusionMatrix(self.num_classes, earlier=state["counts"]).to(
            self.accelerator.device
        )

    def _all_losses(self) -> Tensor:
        if not self.losses:
            return self.earlier
        now = self.accelerator.reduce(torch.stack(self.losses), "mean").cpu()
        return torch.cat([self.earlier.to(now), now])
