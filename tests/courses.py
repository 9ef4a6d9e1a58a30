"""Real searches and retrainings that take a second or two, shared by tests."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from searchseg import task as tasks
from searchseg.cost import count_macs
from searchseg.genotype import random_genotype
from training.checkpoint import save_checkpoint
from training.networks import searchnet
from training.presets import PRESETS, RECIPES, RetrainSettings, SearchMethod
from training.retrain import main
from training.search import derived_shape, search
from training.together import normalise_together
from training.trainer import retrain

TASK = tasks.custom(["dark", "light"])
SEARCH = dataclasses.replace(
    PRESETS["smoke"].search, widths=(4, 4, 4, 4), nodes=1, size=16, epochs=2, warmup_epochs=0, batch_size=4
)
FINAL = RetrainSettings((4, 4, 4, 4), 2, (2, 2, 2, 4), 16, 2, 8)
METHODS = {
    "darts": SearchMethod(partial=4, regularise="auxiliary-skip"),
    "second order": SearchMethod(order=2),
    "random-shared": SearchMethod("random-shared", samples=1),
    "reinforce": SearchMethod("reinforce", samples=1),
}


@contextlib.contextmanager
def without_extras() -> Iterator[None]:
    """Leave out curves and the genotype's cost: no part of learning, and they take longer than the steps.

    What operations cost is counted here, so that processes forked from this one remember it.
    """
    count_macs(*derived_shape(SEARCH, FINAL, len(TASK.classes)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.trainer.draw_curves", lambda *args: None)
        patch.setattr("training.search._with_costs", lambda genotype, *args: genotype)
        yield


@contextlib.contextmanager
def in_memory() -> Iterator[dict[Path, dict[str, Any]]]:
    """Let courses keep what they save in a dictionary, by path, with an empty file for others to link: to
    write and read thousands of small tensors takes longer than to learn from sixteen rows."""
    kept: dict[Path, dict[str, Any]] = {}

    def save(path: Path, state: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        kept[path] = copy.deepcopy(state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.loop.load_checkpoint", lambda path: copy.deepcopy(kept.get(path)))
        patch.setattr("training.loop.save_checkpoint", save)
        yield kept


def draw_table() -> datasets.Dataset:
    """Sixteen rows of light boxes on dark noise."""
    numbers = np.random.default_rng(0)
    return datasets.Dataset.from_list([box(numbers) for _ in range(16)])


def box(numbers: np.random.Generator) -> dict[str, Any]:
    pixels, mask = numbers.integers(0, 90, (18, 18, 3), np.uint8), np.zeros((18, 18), np.uint8)
    left, top = numbers.integers(0, 9, 2)
    pixels[top : top + 8, left : left + 8], mask[top : top + 8, left : left + 8] = 220, 1
    return {"image": Image.fromarray(pixels), "mask": Image.fromarray(mask)}


def begin(name: str, rows: Any, out: Path, accelerator: Accelerator, sync: bool = False) -> None:
    """Begin or continue a course of that name; what is drawn besides must not matter."""
    if name in METHODS:
        torch.manual_seed(len(str(out)))
        more = {"method": METHODS[name], "final": FINAL, "sync_batch_norm": sync}
        search(SEARCH, TASK, rows, out, {"seed": 3, "task": "custom"}, accelerator, **more)
        return
    torch.manual_seed(0)
    net = searchnet(random_genotype(1, seed=0), FINAL, TASK)
    if sync:
        normalise_together(net)
    recipe = RECIPES["paper" if name == "paper recipe" else "strong"]
    retrain(net, FINAL, recipe, TASK, rows, out, accelerator, seed=3)


def stop_after(epoch: int) -> Callable[[Path, dict], None]:
    """Saves, and then is Ctrl-C once so many epochs are done."""

    def save_then_stop(path: Path, state: dict) -> None:
        save_checkpoint(path, state)
        if state["epoch"] == epoch:
            raise KeyboardInterrupt

    return save_then_stop


def train_with_a_stop(words: list[str], out: Path) -> None:
    """A retraining that Ctrl-C ends after its first epoch, and that goes on from there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.loop.save_checkpoint", stop_after(1))
        assert main(words) == 130
    assert main(["--resume", str(out)]) == 0
