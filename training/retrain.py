"""Train a final network by one recipe: the SEARCH-Net of a genotype or a baseline from scratch, or a trained
one further.

recipes:
  paper    Dice loss, SGD with momentum 0.9, lr 1e-3, weight decay 5e-4, no augmentation (Zhu & Ma 2023)
  strong   Dice + cross-entropy (rare classes of three or more weigh more), AdamW with warm-up and cosine,
           averaged weights (EMA), joint augmentation, the first half of the epochs at three quarters of the
           size; python -m training.ablation shows what each part brings

examples:
  python -m training.retrain --genotype runs/pet/genotype.json --data FOLDER --recipe strong --out runs/net
  python -m training.retrain --architecture unet --data FOLDER --recipe strong --out runs/unet
  python -m training.retrain --genotype me/pets --task custom --classes a,b --data me/leaves --out runs/leaves
  python -m training.retrain --finetune me/pets --lr 5e-4 --task custom --classes a,b --data me/leaves
    --out runs/leaves   (the weights of a trained model to begin with, its last layer anew for other classes)
  python -m training.retrain --finetune runs/streets --lr 1e-3 --size 360x480 --crop 180x240
    --no-class-weights --corruptions --task camvid --data FOLDER --out runs/finer
  python -m training.retrain --resume runs/net
  accelerate launch --multi_gpu --num_processes 2 -m training.retrain --cpu --architecture unet --data FOLDER
    --out runs/unet   (two processes on a CPU)

The model saved is the one after the last epoch (of the averaged weights, where the recipe has them): no
epoch is chosen, so no row needs to be kept for choosing. --hold-out 0.1 keeps a fixed tenth of the rows out
of the training and adds its loss and mIoU to the history.

what it leaves in --out: config.json, genotype.json, model.safetensors (a model that
searchseg.from_pretrained loads), history.jsonl, loss.png, miou.png, settings.json, checkpoint.pt.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import nn

from searchseg.baselines import BASELINES
from searchseg.config import ModelConfig
from searchseg.loss import class_weights
from searchseg.network import UShape
from searchseg.pretrained import (
    GENOTYPE,
    WEIGHTS,
    save_pretrained,
)
from searchseg.task import Task
from training.depthwise import as_before, learn_depthwise
from training.evaluate import evaluate_rows
from training.files import replace_files, write_atomically
from training.loop import CHECKPOINT, SAVE_SECONDS, Loop, NotFinite, finite
from training.networks import baseline, begun_with, genotype_of, searchnet
from training.options import Manual, add_data_options, data_of, dataset_name, picture_size, task_of
from training.pictures import draw_curves
from training.presets import RECIPES, Memory, Recipe, RetrainSettings, height_width
from training.pseudo import with_pseudo_masks
from training.retrain_options import add_training_options, cropped, recipe_of_run, retrain_settings
from training.rows import Augmentation
from training.runs import (
    add_memory_options,
    add_process_options,
    add_run_options,
    memory_of,
    parse,
    perform,
    push,
    record_settings,
)
from training.schedule import cosine
from training.source import (
    Batches,
    Source,
    add_stream_options,
    learning_rows,
    open_source,
    scored_rows,
    share_of,
)
from training.steps import Meter, criterion
from training.together import normalise_together


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


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("python -m training.retrain", description=__doc__, formatter_class=Manual)
    what = top.add_argument_group("network").add_mutually_exclusive_group()
    what.add_argument("--genotype", help="genotype.json of a search, or a Hub repository, user/name")
    what.add_argument("--architecture", choices=tuple(BASELINES), help="a baseline instead")
    what.add_argument(
        "--finetune", metavar="MODEL",
        help="a trained model, folder or user/name, with its weights and its size",
    )  # fmt: skip
    add_data_options(top, split="train")
    add_stream_options(top)
    taught = top.add_argument_group("self-training")
    taught.add_argument(
        "--pseudo", metavar="MASKS",
        help="also learn from this dataset of a teacher's masks (training.segment --sure 0.9 --with-image)",
    )  # fmt: skip
    borrowed = top.add_argument_group("encoder of a baseline")
    borrowed.add_argument("--encoder", help="such as resnet18 (default: the architecture's own)")
    borrowed.add_argument("--encoder-weights", choices=("imagenet",), help="begin with these, downloaded")
    group = add_training_options(top)
    group.add_argument(
        "--crop", type=picture_size, metavar="HEIGHTxWIDTH",
        help="learn from parts of this size of pictures of --size, which --recipe strong cuts out at random: "
        "the scale of large pictures at the cost a step of small ones. Its proportions are near the "
        "picture's; a picture shows one part an epoch, so give more epochs",
    )  # fmt: skip
    group.add_argument(
        "--lr", type=float, help="instead of the recipe's rate, of which --finetune takes a quarter"
    )
    group.add_argument(
        "--no-class-weights", action="store_true",
        help="cross-entropy of the recipe strong weighs all classes alike, also rare ones of three or more",
    )  # fmt: skip
    group.add_argument(
        "--corruptions", action="store_true",
        help="the recipe strong also darkens, blurs and compresses pictures and makes them noisy, each a "
        "fifth of them: for a network that is to meet bad photos, which training.altered has more of",
    )  # fmt: skip
    group.add_argument("--hold-out", type=float, default=0.0, help="share of the rows kept out, for curves")
    add_run_options(top, "first weights, order and augmentation", precisions=("no", "fp16", "bf16"))
    add_memory_options(top)
    add_process_options(top)
    return top


def main(argv: list[str] | None = None) -> int:
    top = parser()
    args = parse(top, argv)
    if args.pseudo and args.streaming:
        top.error("--pseudo does not go with --streaming: its rows are checked and kept")
    if not args.genotype and not args.architecture and not args.finetune:
        top.error(f"give --genotype G.json, --finetune MODEL or --architecture {'|'.join(BASELINES)}")
    if (args.encoder or args.encoder_weights) and not args.architecture:
        top.error("--encoder and --encoder-weights go with --architecture alone")
    if args.lr is not None and not 0 < args.lr < math.inf:
        top.error(f"--lr must be a positive number, got {args.lr}")
    if args.no_class_weights and not RECIPES[args.recipe].balance:
        top.error(f"--no-class-weights: the recipe {args.recipe} has none")
    if args.corruptions and RECIPES[args.recipe].augment == "none":
        top.error(f"--corruptions: the recipe {args.recipe} does not augment")
    kept = args.out / GENOTYPE  # its own copy, which is there before anything is learned
    if args.resume and args.genotype and (kept.exists() or (args.out / CHECKPOINT).exists()):
        args.genotype = str(kept)
    return perform(_run, args, argv, "training.retrain")


def _run(args: argparse.Namespace, accelerator: Accelerator, command: str) -> None:
    task = task_of(args)
    data, revision = data_of(args, task)
    changes: dict[str, Any] = {"balance": False} if args.no_class_weights else {}
    if args.corruptions:
        changes["augment"] = "corrupted"
    if args.lr or args.finetune:
        changes["lr"] = args.lr or RECIPES[args.recipe].lr / 4
    settings, recipe = retrain_settings(args), recipe_of_run(args, **changes)
    torch.manual_seed(args.seed)
    found, origin = genotype_of(args.genotype) if args.genotype else (None, {})
    if args.finetune:
        model, origin = _trained(args, task, accelerator)
        settings = dataclasses.replace(settings, size=model.config.image_size)  # type: ignore[arg-type]
    elif found:
        model = searchnet(found, settings, task)
    else:
        model = baseline(args.architecture, settings, task, args.encoder, bool(args.encoder_weights))
    settings = cropped(settings, args.crop, recipe)
    stated = dataclasses.asdict(settings)
    if args.finetune:  # its widths are those of the model
        stated = {name: stated[name] for name in ("size", "crop", "epochs", "batch_size")}
    if args.resume and (args.out / "config.json").exists():  # what it sees must not change on the way
        kept = ModelConfig.from_json((args.out / "config.json").read_bytes())
        statistics = {"image_mean": kept.image_mean, "image_std": kept.image_std}
        model.config = dataclasses.replace(model.config, **statistics)  # type: ignore[type-var, assignment]
    rows, held_out = learning_rows(args, data, revision, task, accelerator)
    taught = {}
    if args.pseudo:
        rows = with_pseudo_masks(rows, args.pseudo, task)
        taught = {"pseudo": {"dataset": dataset_name(args.pseudo), "rows": len(rows.pseudo)}}
    record_settings(
        args, accelerator, command, settings=stated, recipe=dataclasses.asdict(recipe),
        dataset=dataset_name(data), revision=revision, rows=len(rows), **taught,
        **origin,
    )  # fmt: skip
    if accelerator.is_main_process and model.genotype is not None:
        write_atomically(args.out / GENOTYPE, model.genotype.to_json())
    if accelerator.is_main_process and args.finetune and not (args.out / WEIGHTS).exists():
        replace_files(args.out, lambda aside: save_pretrained(model, aside))  # to go on without the first one
    if args.sync_batch_norm:
        normalise_together(model)
    more = {"seed": args.seed, "held_out": held_out, "workers": args.workers}
    more |= {"save_seconds": 60 * args.save_minutes, "memory": memory_of(args)}
    retrain(model, settings, recipe, task, rows, args.out, accelerator, **more)
    accelerator.print(f"model in {args.out}")
    push(args, accelerator)
    accelerator.print(
        f"next: python -m training.evaluate {args.out} --task {task.name} --data {data} --split test"
    )


def _trained(
    args: argparse.Namespace, task: Task, accelerator: Accelerator
) -> tuple[nn.Module, dict[str, Any]]:
    """The model that --finetune begins with, or the copy of it that a run keeps, and its origin."""
    source = str(args.out) if (args.out / WEIGHTS).exists() else args.finetune
    size = None if args.size is None else height_width(args.size)
    with accelerator.main_process_first():  # the others find it in the cache
        model, origin = begun_with(source, task, size)
    if fresh := origin["finetuned"]["fresh"]:
        accelerator.print(f"begin anew, for {', '.join(task.classes)}: {', '.join(fresh)}")
    return model, origin


if __name__ == "__main__":
    sys.exit(main())
