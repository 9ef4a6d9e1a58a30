"""How many epochs fit into the minutes that a person has: a few steps timed here, before anything begins."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from accelerate import Accelerator

from searchseg.genotype import random_genotype
from searchseg.network import SearchNet, UShapeConfig, USpace
from training.darts import Darts
from training.presets import PRESETS, RECIPES
from training.trainer import Training

SEARCH_SHARE = 0.4  # of the time; the rest trains the network found
# reading, augmenting and writing take a quarter of a lite run on two cores
LOADING = 1.3
MOST = 4  # times the epochs of the preset: more would only repeat
STEPS = 3


class PlanError(ValueError):
    """Minutes in which nothing can be planned."""


@dataclass(frozen=True)
class Plan:
    """Epochs of both stages, and the seconds that one of each is expected to take."""

    search_epochs: int
    retrain_epochs: int
    search_epoch_seconds: float
    retrain_epoch_seconds: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def make_plan(
    minutes: float, rows: int, preset: str, recipe: str, num_classes: int, accelerator: Accelerator
) -> Plan:
    """Epochs that fill `minutes` with `rows` training rows, at least as many as give a result at all.

    Both stages are timed on random pictures at the sizes of `preset`; first-order DARTS without partial
    channels, the dearest of the plain methods, stands for the search. Raises PlanError for minutes <= 0.
    """
    if not minutes > 0:
        raise PlanError(f"--minutes wants a positive number, got {minutes}")
    chosen, processes = PRESETS[preset], accelerator.num_processes
    search, retrain = chosen.search, chosen.retrain
    space = USpace(search.network(num_classes)).to(accelerator.device, memory_format=torch.channels_last)
    darts = Darts(space, search, accelerator)
    batch = _batch(search.batch_size, (search.size, search.size), num_classes, accelerator)
    search_step = _seconds(lambda: (darts.architecture_step(batch), darts.weight_step(batch)))
    shape = UShapeConfig(retrain.widths, search.nodes, retrain.stem_stride, num_classes)
    network = SearchNet(shape, random_genotype(search.nodes, seed=0))
    training = Training(network, RECIPES[recipe], Accelerator(cpu=accelerator.device.type == "cpu"))
    batch = _batch(retrain.batch_size, retrain.shape, num_classes, accelerator)
    retrain_step = _seconds(lambda: training.step(*batch, 1.0))
    search_epoch = LOADING * search_step * max(1, rows // 2 // search.batch_size // processes)
    retrain_epoch = LOADING * retrain_step * max(1, rows // retrain.batch_size // processes)
    budget = 60 * minutes
    return Plan(
        _fitting(SEARCH_SHARE * budget / search_epoch, search.warmup_epochs + 1, search.epochs),
        _fitting((1 - SEARCH_SHARE) * budget / retrain_epoch, 1, retrain.epochs),
        search_epoch,
        retrain_epoch,
    )


def _fitting(epochs: float, fewest: int, usual: int) -> int:
    return max(fewest, min(int(epochs), MOST * usual))


def _seconds(step: Callable[[], object]) -> float:
    """Median time of a step; the first one, which allocates, does not count."""
    times = []
    for _ in range(STEPS + 1):
        began = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def _batch(
    count: int, shape: tuple[int, int], num_classes: int, accelerator: Accelerator
) -> tuple[torch.Tensor, torch.Tensor]:
    images, masks = torch.randn(count, 3, *shape), torch.randint(0, num_classes, (count, *shape))
    return images.to(accelerator.device), masks.to(accelerator.device)
