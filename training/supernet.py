"""The supernet in training: what every search method on shared weights does to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from searchseg.genotype import Genotype
from searchseg.network import USpace
from training.loop import finite
from training.presets import Memory, SearchMethod, SearchSettings
from training.steps import Meter, criterion

Batch = tuple[Tensor, Tensor]
Result = tuple[Tensor, Tensor]  # loss and class scores, without graph


class Supernet:
    """A USpace and the optimiser of its weights; a search method adds what decides on the architecture."""

    def __init__(
        self, space: USpace, settings: SearchSettings, accelerator: Accelerator, method: SearchMethod
    ) -> None:
        self.space, self.settings, self.accelerator, self.method = space, settings, accelerator, method
        self.criterion = criterion(settings.loss)
        self.weights = list(space.weight_parameters())
        self.weight_optimizer = self._optimizer()
        self.channels_last = True  # twice as fast as the default layout on a CPU
        self.memory = Memory()

    def _optimizer(self) -> torch.optim.Optimizer:
        if self.method.order == 2:  # the unrolled step is that of SGD with momentum (DARTS, section 3.1)
            return torch.optim.SGD(
                self.weights, self.settings.sgd_lr, momentum=0.9, weight_decay=self.settings.weight_decay
            )
        return torch.optim.Adam(
            self.weights, self.settings.weight_lr, weight_decay=self.settings.weight_decay
        )

    def set_rate(self, factor: float, architecture: float = 1.0) -> None:
        """Learning rates of the weights and of the architecture for the steps to come, as factors on the
        preset's."""
        full = self.settings.sgd_lr if self.method.order == 2 else self.settings.weight_lr
        for group in self.weight_optimizer.param_groups:
            group["lr"] = full * factor

    def begin_epoch(self, epoch: int) -> None:
        """Called before the steps of `epoch` (counted from 0)."""

    def architecture_step(self, held_out: Batch, training: Batch | None = None) -> Result:
        """Learn about the architecture from held-out images; returns loss and class scores."""
        raise NotImplementedError

    def weight_step(self, training: Batch) -> Result:
        """Move the weights down the gradient of the loss on training images; returns loss and class
        scores."""
        result, gradients = self.differentiate(training, self.weights)
        finite(result[0], "the loss on training rows")
        self.apply(self.weights, self.average(gradients), self.weight_optimizer)
        return result

    def save_memory(self, memory: Memory) -> None:
        """Let the steps to come need less of it."""
        self.memory = memory
        self.space.recompute_cells(memory.recompute)

    def differentiate(
        self, batch: Batch, parameters: Sequence[nn.Parameter]
    ) -> tuple[Result, list[Tensor | None]]:
        """Loss and class scores of a batch, without graph, and the gradients of the loss.

        Of a batch in parts, the loss is the mean of theirs; batch norm and Dice see a part at a time.
        """
        total: list[Tensor | None] = [None] * len(parameters)
        losses, scores = [], []
        for images, masks, share in self.memory.parts(*batch):
            loss, logits = self.loss((images, masks))
            loss = loss if share == 1 else loss * share
            # a chosen genotype leaves most of the supernet out
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
            total = [a if b is None else b if a is None else a + b for a, b in zip(total, found, strict=True)]
            losses.append(loss.detach())
            scores.append(logits.detach())
        return (torch.stack(losses).sum(), torch.cat(scores)), total

    @torch.no_grad()
    def look(self, held_out: Batch) -> Result:
        """Loss and class scores on held-out images while the architecture rests."""
        return self.loss(held_out)

    def score(self, batches: Iterable[Batch]) -> float:
        """mIoU of what the supernet runs at present, over `batches` and all processes."""
        meter = Meter(self.space.arguments.num_classes, self.accelerator)
        for batch in batches:
            meter.add(self.look(batch), batch[1])
        return meter.confusion.compute().miou

    def genotype(self, search: dict[str, Any]) -> Genotype:
        """The architecture as it stands."""
        raise NotImplementedError

    def finish(
        self, search: dict[str, Any], batches: Sequence[Batch], tuning: Sequence[Batch] = ()
    ) -> Genotype:
        """The architecture at the end of the search.

        A method may choose it by held-out `batches`, and go on training the weights on `tuning`.
        """
        return self.genotype(search)

    def record(self) -> dict[str, Any]:
        """What the history of an epoch should hold of the method's own state."""
        return {}

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss (with its graph) and class scores of a batch."""
        images, masks = batch
        with self.accelerator.autocast():
            layout = torch.channels_last if self.channels_last else torch.contiguous_format
            logits = self.space(images.contiguous(memory_format=layout))
        return self.criterion(logits, masks), logits

    def average(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Mean of the gradients over processes, as one vector.

        DistributedDataParallel would insist on a gradient for every parameter, alpha and weights alike.
        """
        present = [g for g in gradients if g is not None]
        if self.accelerator.num_processes == 1:
            return list(gradients)
        flat = self.accelerator.reduce(torch.cat([g.flatten() for g in present]), "mean")
        parts = iter(flat.split([g.numel() for g in present]))
        return [None if g is None else next(parts).view_as(g) for g in gradients]

    def apply(
        self,
        parameters: Sequence[nn.Parameter],
        gradients: Sequence[Tensor | None],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """One step of `optimizer` along `gradients`, clipped."""
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        norm = nn.utils.clip_grad_norm_(parameters, self.settings.gradient_clip)
        finite(norm, "a gradient")
        optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {"space": self.space.state_dict(), "weight_optimizer": self.weight_optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.space.load_state_dict(state["space"])
        self.weight_optimizer.load_state_dict(state["weight_optimizer"])
