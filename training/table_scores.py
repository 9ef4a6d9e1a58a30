"""What a table knows of a trained network: its scores on the test rows, its cost, and what they are worth."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from searchseg.config import ModelConfig
from searchseg.cost import macs, parameters
from searchseg.pretrained import CONFIG, from_pretrained
from searchseg.segmenter import Segmenter
from searchseg.task import IGNORE, Task
from training.bootstrap import miou
from training.evaluate import Answer, answers
from training.files import read_lines
from training.options import machine
from training.presets import Recipe
from training.rows import CheckedRows
from training.source import Table
from training.timing import interleaved

COUNTS = "counts.npz"  # confusion counts of every test picture
TIMED_ON_CPU = 20  # pictures, where the others are scored on a GPU


@dataclasses.dataclass(frozen=True)
class TableRows:
    """Rows to learn from, to choose the epoch on and to score; `bordered`: the test rows with the trimap's
    border counted as pet, None for other tasks. Processes that do not score have no test rows."""

    learning: Table
    validation: CheckedRows
    test: CheckedRows | None = None
    bordered: CheckedRows | None = None


@dataclasses.dataclass(frozen=True)
class Origin:
    """What metrics.json says beside the scores: the dataset, the split to score on, and settings.json of the
    table."""

    dataset: str
    revision: str | None
    split: str
    began: dict[str, Any]


def score(
    model_folder: Path, folder: Path, task: Task, rows: TableRows, device: torch.device, flip: bool
) -> dict[str, Any]:
    """The scores of a model on the test rows, and its cost; leaves the counts of every picture in the run
    folder."""
    history = read_lines(folder / "history.jsonl")
    model = from_pretrained(model_folder, device=device).to(memory_format=torch.channels_last)
    assert rows.test is not None
    counts, losses, seconds = picture_counts(model, rows.test, task, device)
    np.savez_compressed(folder / COUNTS, counts=counts)
    bordered, flipped = None, None
    if rows.bordered is not None:
        bordered = float(class_iou(picture_counts(model, rows.bordered, task, device)[0].sum(0))[1])
    if flip:
        flipped = float(miou(picture_counts(model, rows.test, task, device, flip=True)[0].sum(0)))
    total = counts.sum(0)
    return {
        "schema": 1,
        "epoch": max(history, key=lambda row: row["held_out_miou"])["epoch"],
        "validation_miou": max(row["held_out_miou"] for row in history),
        "miou": float(miou(total)),
        "miou_averaged_with_mirrored": flipped,
        "iou": {
            c: None if np.isnan(v) else float(v) for c, v in zip(task.classes, class_iou(total), strict=True)
        },
        "pixel_accuracy": float(np.trace(total) / total.sum()),
        "dice_loss": float(np.mean(losses)),
        "foreground_iou_border_as_pet": bordered,
        "parameters": parameters(model),
        "macs": macs(model, (1, 3, *model.config.image_size)),
        **_speed(model, rows.test, task, device, seconds),
        "arguments": dict(model.config.arguments),
    }


def provenance(
    folder: Path, task: Task, rows: TableRows, origin: Origin, recipe: Recipe, seed: int, processes: int
) -> dict[str, Any]:
    """What the scores are worth: the protocol of the scoring, and how the network was trained.

    Machine and number of processes are those that finished it: a table may grow on another machine than it
    began on.
    """
    history = read_lines(folder / "history.jsonl")
    config = ModelConfig.from_json((folder / CONFIG).read_bytes())
    assert rows.test is not None
    validation = origin.began["options"].get("validation") or "held-out part of the training rows"
    return {
        "protocol": {
            "task": task.name, "dataset": origin.dataset, "revision": origin.revision, "split": origin.split,
            "rows": len(rows.test), "classes": list(task.classes), "rule": task.note,
            "input_size": list(config.image_size), "scored_at": "size of the mask", "machine": machine(),
            "command": origin.began["command"],
        },
        "training": {
            **origin.began, "options": {**origin.began["options"], "seed": seed},
            "machine": machine(), "processes": processes,
            "recipe": dataclasses.asdict(recipe), "dataset": origin.dataset, "revision": origin.revision,
            "rows": len(rows.learning), "chosen_on": f"{validation}, {len(rows.validation)} rows",
            "epochs_done": len(history), "minutes": sum(row["seconds"] for row in history) / 60,
        },
    }  # fmt: skip


def _speed(
    model: nn.Module, rows: CheckedRows, task: Task, device: torch.device, seconds: list[float]
) -> dict[str, float | None]:
    """Median seconds a picture on a CPU, and on the GPU where `seconds` were taken there."""
    if device.type == "cpu":
        return {"seconds_per_picture": float(np.median(seconds)), "gpu_seconds_per_picture": None}
    some = [rows[place] for place in range(min(TIMED_ON_CPU, len(rows)))]
    on_cpu = picture_counts(model.cpu(), some, task, "cpu")[2]
    return {
        "seconds_per_picture": float(np.median(on_cpu)),
        "gpu_seconds_per_picture": float(np.median(seconds)),
    }


def seconds_in_turns(networks: dict[str, nn.Module], rows: CheckedRows, runs: int = 20) -> dict[str, Any]:
    """Median seconds a picture of every network through Segmenter on the CPU, measured in turns, so that a
    busy moment of the machine hits all of them; what the weights are does not matter."""
    pixels = rows[0][0]
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    segmenters = {name: Segmenter(network, "cpu") for name, network in networks.items()}
    calls = {name: functools.partial(segmenter, picture) for name, segmenter in segmenters.items()}
    medians = {name: float(np.median(seconds)) for name, seconds in interleaved(calls, runs).items()}
    return {
        "systems": medians, "runs": runs, "picture": f"{picture.width}x{picture.height}",
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def class_iou(counts: np.ndarray) -> np.ndarray:
    """IoU of each class (K,) from a confusion matrix (K, K); NaN where a class occurs nowhere."""
    hits = np.diag(counts)
    with np.errstate(invalid="ignore"):
        return hits / (counts.sum(0) + counts.sum(1) - hits)


def counts_of(answer: Answer, classes: int) -> np.ndarray:
    """Confusion counts (K, K) of one picture, true class first, without its ignored pixels."""
    valid = answer.truth != IGNORE
    joint = answer.truth[valid].astype(np.int64) * classes + answer.prediction[valid]
    return np.bincount(joint, minlength=classes**2).reshape(classes, classes)


def picture_counts(
    model: nn.Module, rows: Any, task: Task, device: Any, flip: bool = False
) -> tuple[np.ndarray, list[float], list[float]]:
    """Confusion counts of every picture (pictures, K, K), true class first; Dice loss and seconds of each."""
    classes = len(task.classes)
    counts, losses, seconds = np.zeros((len(rows), classes, classes), np.int64), [], []
    pairs = (rows[place] for place in range(len(rows)))
    for place, answer in enumerate(answers(model, pairs, device, flip)):
        counts[place] = counts_of(answer, classes)
        seconds.append(answer.seconds)
        if answer.dice_loss is not None:
            losses.append(answer.dice_loss)
    return counts, losses, seconds
