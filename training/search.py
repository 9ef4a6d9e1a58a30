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
  checkpoint.pt          the last state, checkpoint.previous.pt the one before, checkpoint.best.pt that of the
                         best epoch on held-out images
All of it is rewritten whole after every epoch, so a stopped run is readable.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

import searchseg
from searchseg.config import ModelConfig
from searchseg.cost import OperationCosts, count_macs, count_parameters, expected_cost, macs, parameters
from searchseg.genotype import CELL_NAMES, Genotype
from searchseg.network import SearchNet, UShapeConfig, USpace, config_arguments
from searchseg.task import Task, TaskError
from training.budget import Budget, parse_budget
from training.darts import Darts
from training.depthwise import learn_depthwise
from training.files import write_atomically
from training.loop import SAVE_SECONDS, Loop, finite
from training.monitor import largest_eigenvalue, stop_at
from training.options import Manual, add_data_options, data_of, dataset_name, task_of
from training.presets import PRESETS, Memory, RetrainSettings, SearchMethod, SearchSettings
from training.report import write_report
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
from training.sampling import draw_genotypes
from training.schedule import cosine
from training.search_options import add_method_options, method_name, method_of
from training.shared_search import ByController, RandomShared
from training.source import Batches, Source, add_stream_options, learning_rows, open_source
from training.steps import Meter
from training.supernet import Batch, Supernet
from training.together import normalise_together

# how many held-out batches score candidates in the end, and training batches settle the weights meanwhile
FINAL_BATCHES = 4
MONITOR_PICTURES = 8
HISTORY, GENOTYPES, ALPHAS = "history.jsonl", "search/genotype.jsonl", "search/alpha.jsonl"


class Searching:
    """The course of a search: architecture on held-out images, then weights on training images."""

    def __init__(
        self, run: Supernet, source: Source, halves: tuple[Any, Any], task: Task, settings: SearchSettings,
        macs_costs: OperationCosts, origin: dict[str, Any], out: Path,
    ) -> None:  # fmt: skip
        self.run, self.source, self.alpha_half, self.settings = run, source, halves[1], settings
        self.macs_costs, self.origin, self.out = macs_costs, origin, out
        size = (settings.size, settings.size)
        arguments = config_arguments(run.space.arguments)
        self.config = ModelConfig("searchnet", arguments, task.classes, task.colors, size)
        self.loaders = [self._batches(half, "strong") for half in halves]
        self.meters = {name: Meter(len(task.classes), run.accelerator) for name in ("weight", "alpha")}
        self.held_out: Any = None  # the last batch, on which the Hessian is measured

    def _batches(self, half: Any, augment: str) -> Batches:
        augmentation = Augmentation(self.config, augment, self.origin["seed"], self.settings.size)
        return self.source.batches(half, augmentation, self.settings.batch_size)

    def scoring(self) -> Batches:
        """Held-out batches as they are."""
        return self._batches(self.alpha_half, "none")

    def state_dict(self) -> dict[str, Any]:
        return self.run.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.run.load_state_dict(state)

    def buffers(self) -> list[torch.Tensor]:
        return list(self.run.space.buffers())

    def finished(self, history: list[dict[str, Any]]) -> bool:
        return stop_at(self.run.method.early_stop, history) is not None

    def begin_epoch(self, epoch: int) -> None:
        for loader in self.loaders:
            loader.epoch = epoch
        self.run.begin_epoch(epoch)

    def batches(self, epoch: int, done: int) -> Iterator[tuple[Batch, Batch]]:
        for loader in self.loaders:
            loader.skip = done
        return zip(*self.loaders, strict=False)

    def warming(self, epoch: int) -> bool:
        """Whether the weights learn alone in this epoch."""
        return epoch < self.settings.warmup_epochs

    def step(self, index: int, batch: tuple[Batch, Batch], factor: float) -> None:
        training, self.held_out = batch
        steps = min(map(len, self.loaders))
        self.run.set_rate(factor * cosine(index, self.settings.epochs * steps), factor)
        if self.warming(index // steps):
            looked = self.run.look(self.held_out)
            finite(self.run.accelerator.reduce(looked[0], "mean"), "the loss on held-out rows")
        else:
            looked = self.run.architecture_step(self.held_out, training)
        learned = self.run.weight_step(training)
        self.meters["alpha"].add(looked, self.held_out[1])
        self.meters["weight"].add(learned, training[1])

    def rows_of(self, epoch: int, index: int) -> str:
        return " and held out ".join(loader.rows_of(index) for loader in self.loaders)

    def end_epoch(self, epoch: int) -> dict[str, list[dict[str, Any]]]:
        run, method = self.run, self.run.method
        losses = self.meters["weight"].result("weight") | self.meters["alpha"].result("alpha")
        genotype = run.genotype({**self.origin, "epochs": epoch + 1, "created": _now()})
        record = {
            "epoch": epoch + 1,
            "phase": "warmup" if self.warming(epoch) else "search",
            **losses,
            **run.record(),
            "skips": genotype.count("skip"),
            "skips_per_cell": {cell: genotype.count("skip", cell) for cell in CELL_NAMES},
            "expected_macs": expected_cost(run.space, self.macs_costs).item(),
            "genotype": genotype.id,
        }
        if method.monitor_every and not self.warming(epoch) and (epoch + 1) % method.monitor_every == 0:
            record["eigenvalue"] = _eigenvalue(run, self.held_out, run.accelerator)
        lines = {HISTORY: [record], GENOTYPES: [{"epoch": epoch + 1, **json.loads(genotype.to_json())}]}
        if isinstance(run, Darts):
            lines[ALPHAS] = [{"epoch": epoch + 1, "alpha": run.space.alphas(), "beta": run.space.betas()}]
        return lines

    def keep(self, records: dict[str, list[dict[str, Any]]]) -> None:
        last = {key: value for key, value in records[GENOTYPES][-1].items() if key != "epoch"}
        write_atomically(self.out / "genotype.json", Genotype.from_json(json.dumps(last)).to_json())


def search(
    settings: SearchSettings,
    task: Task,
    rows: Any,
    out: Path,
    origin: dict[str, Any],
    accelerator: Accelerator,
    workers: int = 0,
    method: SearchMethod | None = None,
    final: RetrainSettings | None = None,
    device: str | None = None,
    save_seconds: float = SAVE_SECONDS,
    memory: Memory | None = None,
    sync_batch_norm: bool = False,
) -> Genotype:
    """Run (or continue) a search that writes to `out`; `origin` goes into genotype.json and must hold the
    seed.

    The budget of `method` is kept on `device`. `final` has the widths and size of the derived network, to
    which costs and budget refer (default: those of the search itself). Raises Interrupted
    after a signal, TaskError when it diverges.
    """
    device = device or str(accelerator.device)
    method, seed, main = method or SearchMethod(), origin["seed"], accelerator.is_main_process
    if len(rows) < 2:
        raise TaskError(f"a search needs two rows or more, one for each half, got {len(rows)}: widen --split")
    source = open_source(rows, task, settings.size * 3 // 2, accelerator, workers)
    weight_half, alpha_half = source.halves(seed)
    torch.manual_seed(seed)
    space = USpace(settings.network(len(task.classes)), method.partial)
    space = space.to(accelerator.device, memory_format=torch.channels_last)
    learn_depthwise(space)
    if sync_batch_norm:
        normalise_together(space)
    shape, shape_size = derived_shape(settings, final, len(task.classes))
    macs_costs = count_macs(shape, shape_size)
    budget = Budget(method.budget, method.limit) if method.budget and method.limit else None
    with accelerator.main_process_first():  # the others find its table of latencies in the cache
        costs = budget.costs(shape, shape_size, device) if budget else None
    run = _start(space, settings, accelerator, method, seed, costs)
    run.save_memory(memory or Memory())
    course = Searching(run, source, (weight_half, alpha_half), task, settings, macs_costs, origin, out)
    steps = min(map(len, course.loaders))
    loop = Loop(
        course, out, accelerator, what="search", epochs=settings.epochs, steps=steps, seed=seed,
        records=(HISTORY, GENOTYPES, *([ALPHAS] if isinstance(run, Darts) else [])), best="alpha_miou",
        save_seconds=save_seconds,
    )  # fmt: skip
    _keep_halves(out / "search/halves.json", source.record(weight_half, alpha_half), loop.resumed, main)
    history = loop.run()

    found = out / "genotype.json"
    if (
        loop.resumed
        and found.exists()
        and "epoch_kept" in (done := Genotype.from_json(found.read_text())).search
    ):
        return done
    kept = stop_at(method.early_stop, history) or len(history)
    stated = {**origin, "epochs": len(history), "created": _now(), "epoch_kept": kept, "rule": _rule(method)}
    if kept < len(history):
        earlier = {key: value for key, value in loop.records[GENOTYPES][kept - 1].items() if key != "epoch"}
        genotype = Genotype.from_json(json.dumps({**earlier, "search": stated}))
    else:
        for loader in course.loaders:  # a resumed run that only finishes has not set it
            loader.epoch, loader.skip = len(history) - 1, 0
        genotype = run.finish(stated, _first(course.scoring()), _first(course.loaders[0]))
    genotype = _with_costs(genotype, shape, shape_size, budget, costs, device)
    if main:
        write_atomically(found, genotype.to_json())
    accelerator.wait_for_everyone()
    return genotype


def derived_shape(
    settings: SearchSettings, final: RetrainSettings | None, num_classes: int
) -> tuple[UShapeConfig, tuple[int, int]]:
    """Shape and picture size of the network that the search is for."""
    if final is None:
        return settings.network(num_classes), (settings.size, settings.size)
    shape = UShapeConfig(final.widths, settings.nodes, final.stem_stride, num_classes)
    return shape, final.shape


def _start(
    space: USpace,
    settings: SearchSettings,
    accelerator: Accelerator,
    method: SearchMethod,
    seed: int,
    costs: OperationCosts | None,
) -> Supernet:
    if method.name == "darts":
        return Darts(space, settings, accelerator, method, costs, method.limit)
    kinds = {"random-shared": RandomShared, "reinforce": ByController}
    return kinds[method.name](space, settings, accelerator, method, seed)


def _keep_halves(path: Path, halves: dict[str, Any], resumed: bool, main: bool) -> None:
    cut = json.dumps(halves)
    if resumed and path.read_text() != cut:
        raise TaskError(f"{path} has other rows than --data and --split give now: resume with the same rows")
    if main:
        write_atomically(path, cut)


def _first(batches: Iterable[Batch]) -> list[Batch]:
    return list(itertools.islice(batches, FINAL_BATCHES))


def _eigenvalue(run: Supernet, held_out: Batch, accelerator: Accelerator) -> float:
    """Of the Hessian in alpha, on a few pictures: the graph of its gradient takes three times the memory."""
    images, masks = held_out
    count = max(1, MONITOR_PICTURES // accelerator.num_processes)
    few = images[:count], masks[:count]
    alphas = list(run.space.architecture_parameters())
    return largest_eigenvalue(
        lambda: run.loss(few)[0], alphas, average=lambda product: accelerator.reduce(product, "mean")
    )


def _rule(method: SearchMethod) -> str:
    return "the last epoch" if method.early_stop == "none" else f"early stop: {method.early_stop}"


def _with_costs(
    genotype: Genotype,
    shape: UShapeConfig,
    size: tuple[int, int],
    budget: Budget | None,
    costs: OperationCosts | None,
    device: Any,
) -> Genotype:
    """The genotype with the true cost of its network on record, and its budget if there is one."""
    network = SearchNet(shape, genotype)
    facts: dict[str, Any] = {"parameters": parameters(network), "macs": macs(network, (1, 3, *size))}
    if budget and costs:
        facts |= {
            "budget": budget.text(budget.limit),
            "predicted": budget.text(costs.total(genotype)),
            "measured": budget.text(budget.cost_of(network.eval(), size, device)),
        }
    return Genotype(genotype.nodes, genotype.cells, {**genotype.search, **facts})


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("python -m training.search", description=__doc__, formatter_class=Manual)
    add_data_options(top, split="train")
    add_stream_options(top)
    add_method_options(top)
    add_run_options(top, "halves, first weights, order and augmentation", precisions=("no", "bf16"))
    add_memory_options(top)
    add_process_options(top)
    top.add_argument("--batch-size", type=int, help="of all processes together, instead of the preset's")
    top.add_argument("--device", help="where --max-latency is measured (default: where the search runs)")
    return top


def main(argv: list[str] | None = None) -> int:
    return perform(_run, parse(parser(), argv), argv, "training.search")


def _run(args: argparse.Namespace, accelerator: Accelerator, command: str) -> None:
    task, method, memory = task_of(args), method_of(args), memory_of(args)
    data, revision = data_of(args, task)
    preset = PRESETS[args.preset]
    settings = preset.search
    if args.epochs:
        warmup = min(settings.warmup_epochs, args.epochs // 2)
        settings = dataclasses.replace(settings, epochs=args.epochs, warmup_epochs=warmup)
    if args.batch_size is not None:
        if args.batch_size < 1:
            raise TaskError(f"--batch-size must be at least 1, got {args.batch_size}")
        settings = dataclasses.replace(settings, batch_size=args.batch_size)
    origin = {
        "task": task.name, "dataset": dataset_name(data), "revision": revision, "split": args.split,
        "preset": args.preset, "method": method_name(method), "seed": args.seed, "epochs": settings.epochs,
        "version": searchseg.__version__,
    }  # fmt: skip
    if method.name == "random":
        draw(args, settings, preset.retrain, len(task.classes), origin, accelerator)
        return
    rows, _ = learning_rows(args, data, revision, task, accelerator)
    record_settings(
        args, accelerator, command, settings=dataclasses.asdict(settings), method=dataclasses.asdict(method),
        rows=len(rows),
    )  # fmt: skip
    genotype = search(
        settings, task, rows, args.out, origin, accelerator, args.workers, method, preset.retrain,
        args.device, 60 * args.save_minutes, memory, args.sync_batch_norm,
    )  # fmt: skip
    path = args.out / "genotype.json"
    if accelerator.is_main_process:
        accelerator.print(f"genotype {genotype.id} in {path}, report in {write_report(args.out)}")
    push(args, accelerator, genotype_only=True)
    for name in ("budget", "predicted", "measured"):
        if name in genotype.search:
            accelerator.print(f"{name:<10} {genotype.search[name]}")
    accelerator.print(
        f"next: python -m training.retrain --genotype {path} --task {task.name} --data {data} --out RUN"
    )


def draw(
    args: argparse.Namespace,
    settings: SearchSettings,
    final: RetrainSettings,
    num_classes: int,
    origin: dict[str, Any],
    accelerator: Accelerator,
) -> None:
    """--method random: write --samples genotypes to genotypes/, the first one also as genotype.json."""
    shape, _ = derived_shape(settings, final, num_classes)
    costs, near = count_parameters(shape), None
    tolerance = 0.15 if args.within is None else args.within
    if args.params:
        try:
            near = (costs.total, parse_budget(args.params, "params"), tolerance)
        except ValueError as error:
            raise TaskError(str(error)) from error
    found = draw_genotypes(settings.nodes, args.samples, args.seed, near)
    if not accelerator.is_main_process:
        return
    for number, genotype in enumerate(found, 1):
        facts = {**origin, "epochs": 0, "number": number, "parameters": int(costs.total(genotype))}
        text = Genotype(genotype.nodes, genotype.cells, facts).to_json()
        write_atomically(args.out / f"genotypes/{number:03}.json", text)
        if number == 1:
            write_atomically(args.out / "genotype.json", text)
    accelerator.print(f"{len(found)} genotypes in {args.out / 'genotypes'}")


if __name__ == "__main__":
    sys.exit(main())
