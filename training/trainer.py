"""The training of a final network: one optimiser, averaged weights, small pictures first where the recipe
says so. `python -m training.retrain` is its command."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import nn

from searchseg.config import ModelConfig
from searchseg.loss import class_weights
from searchseg.network import UShape
from searchseg.pretrained import save_pretrained
from searchseg.task import Task
from training.depthwise import as_before, learn_depthwise
from training.evaluate import evaluate_rows
from training.files import replace_files
from training.loop import SAVE_SECONDS, Loop, NotFinite, finite
from training.pictures import draw_curves
from training.presets import Memory, Recipe, RetrainSettings, height_width
from training.rows import Augmentation
from training.schedule import cosine
from training.source import Batches, Source, open_source, scored_rows, share_of
from training.steps import Meter, criterion


class Training:
    """One network, its optimiser and its averaged weights."""

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        accelerator: Accelerator,
        class_weights: torch.Tensor | None = None,
        memory: Memory | None = None,
    ) -> None:
        from timm.utils import ModelEmaV3  # importing timm takes two seconds, which --help need not wait for

        self.recipe, self.accelerator, self.memory = recipe, accelerator, memory or Memory()
        if isinstance(model, UShape):
            model.recompute_cells(self.memory.recompute)
        learn_depthwise(model)
        self.network = model.to(accelerator.device, memory_format=torch.channels_last)
        # a warm-up of the decay keeps the random first weights from staying in a short run's average
        self.ema = ModelEmaV3(self.network, decay=recipe.ema, use_warmup=True) if recipe.ema else None
        more = {} if class_weights is None else {"weight": class_weights.to(accelerator.device)}
        self.criterion = criterion(recipe.loss, **more)
        optimizer = _optimizer(model, recipe)
        self.model, self.optimizer = accelerator.prepare(self.network, optimizer)

    def step(
        self, images: torch.Tensor, masks: torch.Tensor, factor: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One step at learning rate `factor` * lr; returns loss and class scores. Raises NotFinite."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr * factor
        self.optimizer.zero_grad()
        losses, scores = [], []
        parts = self.memory.parts(images, masks)
        for place, (part, truth, share) in enumerate(parts, 1):
            # processes exchange gradients once, with the last part
            with self.accelerator.no_sync(self.model) if place < len(parts) else contextlib.nullcontext():
                logits = self.model(part.contiguous(memory_format=torch.channels_last))
                loss = self.criterion(logits, truth)
                loss = loss if share == 1 else loss * share
                self.accelerator.backward(loss)
            losses.append(loss.detach())
            scores.append(logits.detach())
        total = torch.stack(losses).sum()
        # also where nothing is clipped: the norm tells whether all gradients of all processes are finite
        norm = self.accelerator.clip_grad_norm_(
            self.model.parameters(), self.recipe.gradient_clip or math.inf
        )
        if self.accelerator.scaler is None:
            finite(total, "the loss")
            finite(norm, "a gradient")
        self.optimizer.step()
        if (
            self.accelerator.optimizer_step_was_skipped
        ):  # by the scaler of half precision, which now scales less
            raise NotFinite("a gradient in half precision is not finite")
        return total, torch.cat(scores)

    def update_average(self, step: int) -> None:
        if self.ema:
            self.ema.update(self.network, step=step)

    def share_statistics(self) -> None:
        """Give all processes the batch norm statistics of the main one: what they score is what is saved."""
        for buffer in self.result.buffers():
            broadcast(buffer)

    @property
    def result(self) -> nn.Module:
        """The network to keep: averaged where the recipe averages."""
        return self.ema.module if self.ema else self.network

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema:
            self.ema.module.load_state_dict(state["ema"])
        if self.accelerator.scaler and state.get("scaler"):
            self.accelerator.scaler.load_state_dict(state["scaler"])


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay)
    # decay pulls kernels towards zero; on norms and biases (one-dimensional) it would only fight the data
    kernels = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": kernels, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, recipe.lr)


class Retraining:
    """The course of a network's training: one optimiser, small pictures first where the recipe says so."""

    def __init__(
        self, training: Training, source: Source, settings: RetrainSettings, task: Task, out: Path, *,
        seed: int, held_out: Any = None, keep_best: bool = False,
    ) -> None:  # fmt: skip
        self.training, self.source, self.settings, self.task, self.out = training, source, settings, task, out
        self.accelerator, self.recipe = training.accelerator, training.recipe
        self.config: ModelConfig = training.network.config  # type: ignore[assignment]
        self.seed, self.held_out, self.keep_best = seed, held_out, keep_best
        self.meters = {"train": Meter(len(task.classes), self.accelerator)}
        self.loaders: dict[tuple[int, int], Batches] = {}  # by size
        self.loaded: Any = None

    def state_dict(self) -> dict[str, Any]:
        return self.training.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.training.load_state_dict(state)

    def buffers(self) -> list[torch.Tensor]:
        return list(self.training.network.buffers())

    def finished(self, history: list[dict[str, Any]]) -> bool:
        return False

    def begin_epoch(self, epoch: int) -> None:
        size = _size(self.settings, self.recipe, epoch)
        if size not in self.loaders:
            recipe, settings = self.recipe, self.settings
            augment = Augmentation(self.config, recipe.augment, self.seed, size, settings.crop_share)
            self.loaders[size] = self.source.batches(None, augment, settings.batch_size)
        self.loaded = self.loaders[size]
        self.loaded.epoch = epoch
        self.training.model.train()

    def batches(self, epoch: int, done: int) -> Batches:
        self.loaded.skip = done
        return self.loaded

    @property
    def total(self) -> int:
        return self.settings.epochs * steps_of(self.source, self.settings)

    def step(self, index: int, batch: Any, factor: float) -> None:
        images, masks = batch
        if self.recipe.schedule == "cosine":
            factor *= cosine(index, self.total, self.recipe.warmup)
        self.meters["train"].add(self.training.step(images, masks, factor), masks)
        self.training.update_average(index)

    def rows_of(self, epoch: int, index: int) -> str:
        return self.loaded.rows_of(index)

    def end_epoch(self, epoch: int) -> dict[str, list[dict[str, Any]]]:
        size = list(_size(self.settings, self.recipe, epoch))
        record = {"epoch": epoch + 1, "size": size, **self.meters["train"].result("train")}
        if self.held_out is not None:
            self.training.share_statistics()
            place = self.accelerator.process_index, self.accelerator.num_processes
            rows = share_of(self.held_out, *place)
            scores = evaluate_rows(self.training.result, rows, self.task, self.accelerator.device, quiet=True)
            record |= {"held_out_loss": scores.dice_loss, "held_out_miou": scores.miou}
        return {"history.jsonl": [record]}

    def keep(self, records: dict[str, list[dict[str, Any]]]) -> None:
        *before, last = records["history.jsonl"]
        self._save(self.out)
        if self.keep_best and all(last["held_out_miou"] > row["held_out_miou"] for row in before):
            self._save(self.out / "best")

    def _save(self, folder: Path) -> None:
        replace_files(folder, lambda aside: save_pretrained(self.training.result, aside, self.config))


def steps_of(source: Source, settings: RetrainSettings) -> int:
    """Steps of an epoch."""
    return max(1, len(source) // settings.batch_size)


def retrain(
    model: nn.Module,
    settings: RetrainSettings,
    recipe: Recipe,
    task: Task,
    rows: Any,
    out: Path,
    accelerator: Accelerator,
    *,
    seed: int,
    held_out: Any = None,
    workers: int = 0,
    keep_best: bool = False,
    save_seconds: float = SAVE_SECONDS,
    memory: Memory | None = None,
) -> nn.Module:
    """Train `model` (it carries its ModelConfig) on `rows`, a table or a stream, or continue.

    Returns the network kept. `keep_best` saves besides, in `out` / "best", the one of the epoch with the best
    mIoU on `held_out`. Raises Interrupted after a signal, TaskError when the training diverges.
    """
    accelerator.free_memory()  # of an earlier network: compare trains several in one process
    height, width = settings.shape
    source = open_source(rows, task, (height * 3 // 2, width * 3 // 2), accelerator, workers)
    balance = _balance(recipe, source.pixels, len(task.classes))
    training = Training(model, recipe, accelerator, balance, memory)
    if held_out is not None:
        held_out = scored_rows(held_out, task, "held-out rows", quiet=not accelerator.is_main_process)
    course = Retraining(
        training, source, settings, task, out, seed=seed, held_out=held_out, keep_best=keep_best
    )
    history = Loop(
        course, out, accelerator, what="training", epochs=settings.epochs, steps=steps_of(source, settings),
        seed=seed, best="train_miou" if held_out is None else "held_out_miou", save_seconds=save_seconds,
    ).run()  # fmt: skip
    if accelerator.is_main_process:
        names = {"train": "training rows", "held_out": "held-out rows"}
        draw_curves(history, {f"{k}_loss": v for k, v in names.items()}, "loss", out / "loss.png")
        draw_curves(history, {f"{k}_miou": v for k, v in names.items()}, "mIoU", out / "miou.png")
    return as_before(training.result)


def _balance(recipe: Recipe, pixels: Any, classes: int) -> torch.Tensor | None:
    """Weights of the classes where the recipe balances them; a stream's are not known."""
    if not recipe.balance or recipe.loss != "dice+ce" or classes < 3 or pixels is None:
        return None
    return class_weights(torch.from_numpy(pixels[:classes]))


def _size(settings: RetrainSettings, recipe: Recipe, epoch: int) -> tuple[int, int]:
    """Height and width of the examples of an epoch, pictures or crops of them: small first where the recipe
    says so, in multiples of 16."""
    height, width = height_width(settings.crop or settings.size)
    if epoch >= recipe.small_until * settings.epochs:
        return height, width
    smaller = [max(16, round(side * recipe.small_factor / 16) * 16) for side in (height, width)]
    return smaller[0], smaller[1]
