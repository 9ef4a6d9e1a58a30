"""Searches that run one architecture at a time on shared weights: at random, or by a learning controller."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator

from searchseg.genotype import Genotype, random_genotype
from searchseg.network import USpace
from training.presets import SearchMethod, SearchSettings
from training.reinforce import Controller, Reinforce
from training.shared_weights import best_of
from training.steps import Meter
from training.supernet import Batch, Result, Supernet


class RandomShared(Supernet):
    """Random search with weight sharing (Li & Talwalkar, arXiv 1902.07638).

    Every step trains the weights of one architecture drawn at random; in the end the best of `samples`
    random ones, scored with these weights on held-out images, is the result.
    """

    def __init__(
        self,
        space: USpace,
        settings: SearchSettings,
        accelerator: Accelerator,
        method: SearchMethod,
        seed: int,
    ) -> None:
        super().__init__(space, settings, accelerator, method)
        self.seed, self.drawn = seed, 0
        self.present = self.draw()

    def draw(self) -> Genotype:
        """The next architecture of a sequence that depends on the seed alone."""
        self.drawn += 1
        return random_genotype(self.space.arguments.nodes, self.seed * 1_000_003 + self.drawn)

    def architecture_step(self, held_out: Batch, training: Batch | None = None) -> Result:
        """Nothing is learned about the architecture before the end; the loss tells how the weights do."""
        self.space.choose(self.present)
        return self.look(held_out)

    def weight_step(self, training: Batch) -> Result:
        self.present = self.draw()
        self.space.choose(self.present)
        return super().weight_step(training)

    def look(self, held_out: Batch) -> Result:
        self.space.choose(self.present)
        return super().look(held_out)

    def genotype(self, search: dict[str, Any]) -> Genotype:
        """The one that runs at present: every epoch of this search is as good as the last."""
        return Genotype(self.present.nodes, self.present.cells, search)

    def finish(
        self, search: dict[str, Any], batches: Sequence[Batch], tuning: Sequence[Batch] = ()
    ) -> Genotype:
        best, score, _ = best_of([self.draw() for _ in range(self.method.samples)], self._scorer(batches))
        self.space.choose(None)
        return Genotype(best.nodes, best.cells, {**search, "samples": self.method.samples, "score": score})

    def _scorer(self, batches: Sequence[Batch]) -> Callable[[Genotype], float]:
        def score(genotype: Genotype) -> float:
            self.present = genotype
            return self.score(batches)

        return score

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "drawn": self.drawn, "present": self.present.to_json()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.drawn, self.present = state["drawn"], Genotype.from_json(state["present"])


class ByController(RandomShared):
    """An RNN writes the architectures and learns by policy gradient which earn more (NASNet, arXiv
    1707.07012).

    The weights are shared, as in ENAS (arXiv 1802.03268): training every candidate by itself, as NASNet
    does, would take a thousand times as long. The reward is the mIoU on a held-out batch.
    """

    def __init__(
        self,
        space: USpace,
        settings: SearchSettings,
        accelerator: Accelerator,
        method: SearchMethod,
        seed: int,
    ) -> None:
        torch.manual_seed(seed)
        # a controller of its own for every process would drift apart: all see the same rewards and draws
        self.learner = Reinforce(
            Controller(space.arguments.nodes), seed, learning_rate=settings.controller_lr
        )
        super().__init__(space, settings, accelerator, method, seed)

    def set_rate(self, factor: float, architecture: float = 1.0) -> None:
        super().set_rate(factor, architecture)
        for group in self.learner.optimizer.param_groups:
            group["lr"] = self.settings.controller_lr * architecture

    def draw(self) -> Genotype:
        with torch.no_grad():
            return self.learner.controller.sample(self.learner.generator)[0]

    def architecture_step(self, held_out: Batch, training: Batch | None = None) -> Result:
        """One policy-gradient step of the controller; the weights rest."""
        results: list[Result] = []

        def reward(genotype: Genotype) -> float:
            self.present = genotype
            results.append(self.look(held_out))
            meter = Meter(self.space.arguments.num_classes, self.accelerator)
            meter.add(results[-1], held_out[1])
            return meter.confusion.compute().miou

        self.learner.step(reward)
        return results[-1]

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "learner": self.learner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.learner.load_state_dict(state["learner"])
