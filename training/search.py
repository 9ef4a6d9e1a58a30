"""Search for a U-shaped network: DARTS, first order, over the eight cells of the U-space.

Every step first moves the architecture (alpha) on a batch of held-out images, then the weights on a batch of
training images (Liu et al., arXiv 1806.09055, algorithm 1 with xi = 0). Both halves come from the rows given
by --split; the validation and test splits are never read.

examples:
  python -m training.search --task pet --preset lite --seed 0 --out runs/pet
  python -m training.search --task pet --data FOLDER --split train+train_extra --preset lite --out runs/pet
  python -m training.search --task custom --data me/leaves --classes soil,leaf --out runs/leaves
  python -m training.search --resume runs/pet
  accelerate launch --multi_gpu --num_processes 2 -m training.search --cpu --out runs/pet
    (two processes on a CPU)

what it leaves in --out:
  genotype.json          the architecture so far, final at the end: feed it to training.retrain
  history.jsonl          a line an epoch: loss and mIoU of both halves, entropy, skips, expected MACs, seconds
  search/                alpha.jsonl and genotype.jsonl (a line an epoch), halves.json, loss.png, miou.png,
                         alpha.svg
  settings.json          everything that --resume needs
  checkpoint.pt          state after the last whole epoch
All of it is rewritten whole after every epoch, so a stopped run is readable.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

import searchseg
from searchseg.config import ModelConfig
from searchseg.cost import ExpectedMacs
from searchseg.drawing import draw_alpha
from searchseg.network import USpace, config_arguments
from searchseg.task import Task, TaskError
from training.files import load_checkpoint, read_lines, save_checkpoint, write_atomically, write_lines
from training.options import Manual, add_data_options, data_of, dataset_name, task_of
from training.pictures import draw_curves
from training.presets import PRESETS, SearchSettings
from training.rows import CheckedRows, Examples, halves, load_rows, loader
from training.runs import add_run_options, parse, perform, record_settings
from training.schedule import cosine
from training.steps import LOSSES, Meter

Batch = tuple[Tensor, Tensor]


class Search:
    """The supernet with its two optimisers, and the two steps of DARTS."""

    def __init__(self, space: USpace, settings: SearchSettings, accelerator: Accelerator) -> None:
        self.space, self.settings, self.accelerator = space, settings, accelerator
        self.criterion = LOSSES[settings.loss]
        self.weights = list(space.weight_parameters())
        self.alphas = list(space.architecture_parameters())
        self.weight_optimizer = torch.optim.Adam(
            self.weights, settings.weight_lr, weight_decay=settings.weight_decay
        )
        self.alpha_optimizer = torch.optim.Adam(
            self.alphas, settings.alpha_lr, betas=(0.5, 0.999), weight_decay=settings.alpha_weight_decay
        )

    def architecture_step(self, held_out: Batch) -> tuple[Tensor, Tensor]:
        """Move alpha down the gradient of the loss on held-out images; returns loss and class scores."""
        loss, logits = self._loss(held_out)
        self._descend(loss, self.alphas, self.alpha_optimizer)
        return loss.detach(), logits.detach()

    def weight_step(self, training: Batch) -> tuple[Tensor, Tensor]:
        """Move the weights down the gradient of the loss on training images; returns loss and class
        scores."""
        loss, logits = self._loss(training)
        self._descend(loss, self.weights, self.weight_optimizer)
        return loss.detach(), logits.detach()

    @torch.no_grad()
    def look(self, held_out: Batch) -> tuple[Tensor, Tensor]:
        """Loss and class scores on held-out images while alpha rests (warm-up)."""
        return self._loss(held_out)

    def _loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        images, masks = batch
        with self.accelerator.autocast():
            logits = self.space(images.contiguous(memory_format=torch.channels_last))
        return self.criterion(logits, masks), logits

    def _descend(
        self, loss: Tensor, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> None:
        # only the gradients that the step needs are computed; they are averaged over processes as one vector,
        # because DistributedDataParallel would insist on a gradient for every parameter, alpha and weights
        # alike
        gradients = torch.autograd.grad(loss, parameters)
        flat = self.accelerator.reduce(torch.cat([g.flatten() for g in gradients]), "mean")
        for parameter, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = gradient.view_as(parameter)
        nn.utils.clip_grad_norm_(parameters, self.settings.gradient_clip)
        optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {
            "space": self.space.state_dict(),
            "weight_optimizer": self.weight_optimizer.state_dict(),
            "alpha_optimizer": self.alpha_optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.space.load_state_dict(state["space"])
        self.weight_optimizer.load_state_dict(state["weight_optimizer"])
        self.alpha_optimizer.load_state_dict(state["alpha_optimizer"])


def search(settings: SearchSettings, task: Task, rows: Any, out: Path, origin: dict[str, Any],
           accelerator: Accelerator, workers: int = 0) -> searchseg.Genotype:  # fmt: skip
    """Run (or continue) a search that writes to `out`; `origin` goes into genotype.json and must hold the
    seed."""
    seed, main = origin["seed"], accelerator.is_main_process
    if len(rows) < 2:
        raise TaskError(f"a search needs two rows or more, one for each half, got {len(rows)}: widen --split")
    weight_half, alpha_half = halves(rows, seed)
    torch.manual_seed(seed)
    space = USpace(settings.network(len(task.classes))).to(
        accelerator.device, memory_format=torch.channels_last
    )
    run = Search(space, settings, accelerator)
    size = (settings.size, settings.size)
    config = ModelConfig("searchnet", config_arguments(space.arguments), task.classes, task.colors, size)
    checked = CheckedRows(rows, task, settings.size * 3 // 2, "rows", quiet=not main)
    examples = Examples(checked, config, "strong", seed, settings.size)
    loaders = [
        loader(examples, half, seed, settings.batch_size, workers) for half in (weight_half, alpha_half)
    ]
    samplers = [item.sampler for item in loaders]
    weight_loader, alpha_loader = accelerator.prepare(*loaders)
    expected_macs = ExpectedMacs(space, size)

    state = load_checkpoint(out / "checkpoint.pt")
    start = state["epoch"] if state else 0
    if state:
        run.load_state_dict(state["search"])
    files = {name: out / name for name in ("history.jsonl", "search/alpha.jsonl", "search/genotype.jsonl")}
    records = {name: read_lines(path)[:start] for name, path in files.items()}
    cut, path = json.dumps({"weights": weight_half, "alpha": alpha_half}), out / "search/halves.json"
    if state and path.read_text() != cut:
        raise TaskError(f"{path} has other rows than --data and --split give now: resume with the same rows")
    if main:
        write_atomically(path, cut)

    steps = min(len(weight_loader), len(alpha_loader))
    total = settings.epochs * steps
    bar = tqdm(
        total=total, initial=start * steps, desc="search", unit="step", disable=not main, mininterval=1
    )
    genotype = space.genotype(origin)
    for epoch in range(start, settings.epochs):
        began, warming = time.monotonic(), epoch < settings.warmup_epochs
        for sampler in samplers:
            sampler.epoch = epoch
        weight_meter, alpha_meter = (Meter(len(task.classes), accelerator.device) for _ in range(2))
        for step, (training, held_out) in enumerate(
            zip(weight_loader, alpha_loader, strict=False), epoch * steps
        ):
            for group in run.weight_optimizer.param_groups:
                group["lr"] = settings.weight_lr * cosine(step, total)
            alpha_meter.add(run.look(held_out) if warming else run.architecture_step(held_out), held_out[1])
            weight_meter.add(run.weight_step(training), training[1])
            bar.update()
        losses = weight_meter.result("weight", accelerator) | alpha_meter.result("alpha", accelerator)
        if not all(map(math.isfinite, losses.values())):
            raise TaskError(f"the search diverged in epoch {epoch + 1}: {losses}")
        genotype = space.genotype({**origin, "epochs": epoch + 1, "created": _now()})
        record = {
            "epoch": epoch + 1,
            "phase": "warmup" if warming else "search",
            **losses,
            "entropy": space.entropy(),
            "skips": genotype.count("skip"),
            "expected_macs": expected_macs().item(),
            "genotype": genotype.id,
            "seconds": round(time.monotonic() - began, 2),
        }
        bar.set_postfix({"epoch": epoch + 1, "held-out mIoU": f"{record['alpha_miou']:.3f}"})
        if main:
            records["history.jsonl"].append(record)
            records["search/alpha.jsonl"].append({"epoch": epoch + 1, "alpha": space.alphas()})
            records["search/genotype.jsonl"].append({"epoch": epoch + 1, **json.loads(genotype.to_json())})
            for name, path in files.items():
                write_lines(path, records[name])
            write_atomically(out / "genotype.json", genotype.to_json())
            save_checkpoint(out / "checkpoint.pt", {"epoch": epoch + 1, "search": run.state_dict()})
        accelerator.wait_for_everyone()
    bar.close()
    if main:
        _draw(records["history.jsonl"], space, out / "search")
    return genotype


def _draw(history: list[dict[str, Any]], space: USpace, folder: Path) -> None:
    halves_ = {"weight": "weights' half", "alpha": "alpha's half (held out)"}
    draw_curves(history, {f"{k}_loss": label for k, label in halves_.items()}, "loss", folder / "loss.png")
    draw_curves(history, {f"{k}_miou": label for k, label in halves_.items()}, "mIoU", folder / "miou.png")
    write_atomically(folder / "alpha.svg", draw_alpha(space.alphas()))


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("python -m training.search", description=__doc__, formatter_class=Manual)
    add_data_options(top, split="train")
    add_run_options(top, "halves, first weights, order and augmentation", precisions=("no", "bf16"))
    return top


def main(argv: list[str] | None = None) -> int:
    return perform(_run, parse(parser(), argv), argv, "training.search")


def _run(args: argparse.Namespace, accelerator: Accelerator, command: str) -> None:
    task = task_of(args)
    data, revision = data_of(args, task)
    rows = load_rows(data, args.split, revision, task)
    settings = PRESETS[args.preset].search
    if args.epochs:
        warmup = min(settings.warmup_epochs, args.epochs // 2)
        settings = dataclasses.replace(settings, epochs=args.epochs, warmup_epochs=warmup)
    origin = {
        "task": task.name, "dataset": dataset_name(data), "revision": revision, "split": args.split,
        "preset": args.preset, "method": "darts-first-order", "seed": args.seed, "epochs": settings.epochs,
        "version": searchseg.__version__,
    }  # fmt: skip
    record_settings(args, accelerator, command, settings=dataclasses.asdict(settings), rows=len(rows))
    genotype = search(settings, task, rows, args.out, origin, accelerator, args.workers)
    path = args.out / "genotype.json"
    accelerator.print(f"genotype {genotype.id} in {path}")
    accelerator.print(
        f"next: python -m training.retrain --genotype {path} --task {task.name} --data {data} --out RUN"
    )


if __name__ == "__main__":
    sys.exit(main())
