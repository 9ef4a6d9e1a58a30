"""How long a training step waits for its rows.

The rows are drawn here, decoded and checked once, as in a training; a step is forward, backward and update
of the preset's SEARCH-Net. Waiting is what `next` of the loader takes: on a CPU without workers that is the
whole augmentation, with workers what they did not finish in time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from accelerate import Accelerator
from PIL import Image

from searchseg.config import ModelConfig
from searchseg.genotype import random_genotype
from searchseg.network import SearchNet, UShapeConfig
from searchseg.task import pet
from training.files import write_atomically
from training.options import machine
from training.presets import PRESETS, RECIPES, Memory
from training.rows import Augmentation
from training.runs import add_memory_options, memory_of
from training.source import Table
from training.timing import between_marks
from training.trainer import Training

TARGET = 0.05


def add_loader_options(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m training.benchmark loader`."""
    parser.add_argument("--preset", choices=tuple(PRESETS), default="lite", help="widths, size, batch")
    parser.add_argument("--size", type=int, help="side of the pictures, instead of the preset's, pixels")
    parser.add_argument("--batch", type=int, help="pictures a step, instead of the preset's")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="numbers of workers")
    parser.add_argument("--steps", type=int, default=20, help="timed steps with each number of workers")
    parser.add_argument("--cpu", action="store_true", help="stay on the CPU even where there is a GPU")
    add_memory_options(parser)
    parser.add_argument("--json", type=Path, help="file for the figures; it keeps those of other settings")
    parser.add_argument("--into", type=Path, help="Markdown file with marks for the table")


def drawn_rows(count: int, side: int) -> Any:
    """Pictures with the columns of the pet task."""
    random = np.random.default_rng(0)
    pictures = [Image.fromarray(random.integers(0, 256, (side, side, 3), np.uint8)) for _ in range(count)]
    masks = [Image.fromarray(random.integers(1, 4, (side, side), np.uint8)) for _ in range(count)]
    features = datasets.Features({"image": datasets.Image(), "segmentation_mask": datasets.Image()})
    return datasets.Dataset.from_dict({"image": pictures, "segmentation_mask": masks}, features)


def measure(settings: Any, nodes: int, workers: int, steps: int, cpu: bool, memory: Memory) -> dict[str, Any]:
    """Seconds of waiting and of computing in `steps` steps after a first that does not count."""
    task, accelerator = pet(), Accelerator(cpu=cpu)
    height, width = settings.shape
    # one batch more than is taken: accelerate fetches the next one before it gives out the present one
    rows = drawn_rows(settings.batch_size * (steps + 2), max(height, width) * 3 // 2)
    table = Table(rows, task, (height * 3 // 2, width * 3 // 2), accelerator, workers)
    shape = UShapeConfig(settings.widths, nodes, settings.stem_stride, len(task.classes))
    network = SearchNet(shape, random_genotype(nodes, seed=0))
    training = Training(network, RECIPES["strong"], accelerator, memory=memory)
    config = ModelConfig("searchnet", {}, task.classes, task.colors, settings.shape)
    batches = table.batches(None, Augmentation(config, "strong", 0, settings.size), settings.batch_size)
    source, waited, computed = iter(batches), [], []
    for _ in range(steps + 1):
        began = time.perf_counter()
        images, masks = next(source)
        got = time.perf_counter()
        training.step(images, masks, 1.0)[0].item()  # waits for a GPU
        waited.append(got - began)
        computed.append(time.perf_counter() - got)
    del waited[0], computed[0]
    return {"workers": workers, "waited": sum(waited) / steps, "step": statistics.median(computed),
            "share": sum(waited) / (sum(waited) + sum(computed)),
            "rate": steps * settings.batch_size / (sum(waited) + sum(computed))}  # fmt: skip


def benchmark_loader(args: argparse.Namespace) -> None:
    """The share of a training step that goes by waiting for rows, with 0, 1 and 2 workers."""
    preset = PRESETS[args.preset]
    given = {"size": args.size, "batch_size": args.batch}
    settings = replace(preset.retrain, **{name: value for name, value in given.items() if value})
    memory = memory_of(args)
    known = json.loads(args.json.read_text()) if args.json and args.json.exists() else {"rows": []}
    # files of before a batch could go in parts
    known["rows"] = [{"parts": 1, "recompute": False, **row} for row in known["rows"]]
    for workers in args.workers:
        found = measure(settings, preset.search.nodes, workers, args.steps, args.cpu, memory)
        about = {
            "preset": args.preset,
            "size": settings.size,
            "batch": settings.batch_size,
            "parts": memory.accumulate,
            "recompute": memory.recompute,
            "steps": args.steps,
        }
        known["rows"] = [r for r in known["rows"] if not (about | {"workers": workers}).items() <= r.items()]
        known["rows"].append({**about, **found})
        print(" | ".join(cells(known["rows"][-1])), flush=True)
    known["machine"] = machine()
    if args.json:
        write_atomically(args.json, json.dumps(known, indent=1) + "\n")
    if args.into:
        between_marks(args.into, "loader", markdown(known))


def cells(row: dict[str, Any]) -> list[str]:
    """A measured setting for people."""
    parts = f" in {row['parts']} parts" if row["parts"] > 1 else ""
    twice = ", cells computed twice" if row["recompute"] else ""
    return [
        f"{row['preset']}, {row['size']} px, batch {row['batch']}{parts}{twice}", str(row["workers"]),
        str(row["steps"]),
        f"{row['waited'] * 1e3:.1f} ms", f"{row['step'] * 1e3:.0f} ms", f"{row['share']:.1%}",
        f"{row['rate']:.1f}",
    ]  # fmt: skip


def markdown(document: dict[str, Any]) -> str:
    """A line a preset and number of workers."""
    about = document["machine"]
    head = "| training | workers | steps | waiting a step | step | share | pictures a second |"
    lines = [head, "|---" * 7 + "|"]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in document["rows"]]
    lines += ["", f"Means of the waiting and medians of the steps on {about['device']}, {about['threads']} "
              f"threads, torch {about['torch']}; at most {TARGET:.0%} is the target."]  # fmt: skip
    return "\n".join(lines) + "\n"
