"""DARTS: the architecture is a softmax over operations, and learns by gradient like the weights do."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from searchseg.cost import OperationCosts, expected_cost
from searchseg.derivation import derive
from searchseg.genotype import Genotype
from searchseg.network import USpace
from training.budget import penalty
from training.perturbation import perturb
from training.presets import SearchMethod, SearchSettings
from training.supernet import Batch, Result, Supernet
from training.unrolled import unrolled_gradient

BUDGET_WEIGHT = 1.0  # of log(expected cost / limit): the loss of a segmentation network lies between 0 and 2


class Darts(Supernet):
    """Alpha moves on held-out images, the weights on training images (Liu et al., arXiv 1806.09055,
    algorithm 1).

    `costs` and `limit` are the budget, in the unit of both; without them cost does not matter.
    """

    def __init__(
        self,
        space: USpace,
        settings: SearchSettings,
        accelerator: Accelerator,
        method: SearchMethod | None = None,
        costs: OperationCosts | None = None,
        limit: float | None = None,
    ) -> None:
        super().__init__(space, settings, accelerator, method or SearchMethod())
        self.costs, self.limit = costs, limit
        self.alphas = list(space.architecture_parameters())
        self.progress = 0.0  # share of the search that is done
        self.alpha_optimizer = torch.optim.Adam(
            self.alphas, settings.alpha_lr, betas=(0.5, 0.999), weight_decay=settings.alpha_weight_decay
        )

    def set_rate(self, factor: float, architecture: float = 1.0) -> None:
        super().set_rate(factor, architecture)
        for group in self.alpha_optimizer.param_groups:
            group["lr"] = self.settings.alpha_lr * architecture

    def begin_epoch(self, epoch: int) -> None:
        self.progress = epoch / self.settings.epochs
        if self.method.regularise == "auxiliary-skip":
            last = max(1, self.settings.epochs - 1)
            self.space.use_auxiliary_skips(1 - epoch / last)

    def architecture_step(self, held_out: Batch, training: Batch | None = None) -> Result:
        """Move alpha down the gradient of the loss on held-out images; returns loss and class scores.

        Second order also needs the training batch of the weight step that follows.
        """
        seen: list[Result] = []

        def held_out_loss() -> Tensor:
            loss, logits = self.loss(held_out)
            seen.append((loss.detach(), logits.detach()))
            return loss

        gradients: list[Tensor | None]
        if self.method.order == 2 and training is not None:
            group = self.weight_optimizer.param_groups[0]
            gradients = unrolled_gradient(
                held_out_loss,
                lambda: self.loss(training)[0],
                self.weights,
                self.alphas,
                xi=group["lr"],
                momentum=group["momentum"],
                weight_decay=group["weight_decay"],
                velocities=[self.weight_optimizer.state[w].get("momentum_buffer") for w in self.weights],
                average=self.average,  # type: ignore[arg-type]
            )
        else:
            result, found = self.differentiate(held_out, self.alphas)
            seen.append(result)
            gradients = self.average(found)
        extra = self._regulariser()
        if extra is not None:
            more = torch.autograd.grad(extra, self.alphas, allow_unused=True)
            gradients = [g if m is None else g + m for g, m in zip(gradients, more, strict=True)]
        self.apply(self.alphas, gradients, self.alpha_optimizer)
        return seen[0]

    def _regulariser(self) -> Tensor | None:
        """What the alpha loss holds beside the loss on the images."""
        terms = []
        if self.method.regularise == "beta":
            # Beta-decay (Ye et al., arXiv 2203.01665, eq. 11), weight 0 -> 50: towards the end the softmax
            # hardly moves any more, and no operation runs away with it
            alpha = torch.stack([mixed.alpha for *_, mixed in self.space.edges()])
            terms.append(50 * self.progress * alpha.logsumexp(1).mean())
        if self.costs is not None and self.limit is not None:
            expected = expected_cost(self.space, self.costs)
            terms.append(BUDGET_WEIGHT * penalty(expected, self.limit).to(self.alphas[0].device))
        return torch.stack([term.float() for term in terms]).sum() if terms else None

    def genotype(self, search: dict[str, Any]) -> Genotype:
        return derive(
            self.space.alphas(),
            self.space.arguments.nodes,
            search,
            self.space.betas(),
            self.method.max_skips,
            self.costs,
            self.limit,
        )

    def finish(
        self, search: dict[str, Any], batches: Sequence[Batch], tuning: Sequence[Batch] = ()
    ) -> Genotype:
        if self.method.derive == "alpha":
            return self.genotype(search)
        self.space.use_auxiliary_skips(0)
        endless = itertools.cycle(tuning or [None])

        def tune() -> None:
            batch = next(endless)
            if batch is not None:
                self.weight_step(batch)

        strengths = perturb(self.space, lambda: self.score(batches), tune, search["seed"])
        return derive(
            strengths, self.space.arguments.nodes, search, None, self.method.max_skips, self.costs, self.limit
        )

    def record(self) -> dict[str, Any]:
        return {"entropy": self.space.entropy()}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "alpha_optimizer": self.alpha_optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.alpha_optimizer.load_state_dict(state["alpha_optimizer"])
