"""The systems of a table, each trained from every seed by one recipe, its epoch chosen on validation rows and
its test rows read once."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

from searchseg.cost import macs, parameters
from searchseg.genotype import Genotype
from searchseg.loss import dice_loss
from searchseg.pretrained import from_pretrained
from searchseg.segmenter import class_ids
from searchseg.task import IGNORE, Task
from training.bootstrap import miou
from training.files import read_lines, write_atomically
from training.options import machine
from training.presets import Recipe, RetrainSettings
from training.retrain import baseline, retrain, searchnet
from training.rows import CheckedRows
from training.source import Table

SYSTEMS = ("searchnet", "unet", "fpn", "deeplabv3", "unetplusplus", "setr", "fcn", "segnet")
RESULT, COUNTS = "result.json", "counts.npz"


@dataclasses.dataclass(frozen=True)
class TableRows:
    """Rows to learn from, to choose the epoch on and to score; `bordered`: the test rows with the trimap's
    border counted as pet, None for other tasks. Processes that do not score have no test rows."""

    learning: Table
    validation: CheckedRows
    test: CheckedRows | None = None
    bordered: CheckedRows | None = None


def build_system(
    name: str, settings: RetrainSettings, task: Task, genotype: Genotype, encoder_weights: bool
) -> nn.Module:
    """The network of a system with fresh weights, or with the encoder's ImageNet weights where it has one."""
    if name == "searchnet":
        return searchnet(genotype, settings, task)
    return baseline(name, settings, task, pretrained=encoder_weights and name != "unet")


def run_system(
    name: str, seed: int, build: Callable[[], nn.Module], settings: RetrainSettings, recipe: Recipe,
    task: Task, rows: TableRows, out: Path, accelerator: Accelerator,
) -> None:  # fmt: skip
    """Train and score one system from one seed in `out` / "NAME-seedS", unless that was done before."""
    folder = out / f"{name}-seed{seed}"
    if not (folder / RESULT).exists():
        torch.manual_seed(seed)
        model = build()
        retrain(
            model, settings, recipe, task, rows.learning, folder, accelerator, seed=seed,
            held_out=rows.validation, keep_best=True,
        )  # fmt: skip
        if rows.test is not None:
            _score(folder, name, seed, task, rows, settings.size, accelerator.device)
        accelerator.wait_for_everyone()


def _score(
    folder: Path, name: str, seed: int, task: Task, rows: TableRows, size: int, device: torch.device
) -> None:
    history = read_lines(folder / "history.jsonl")
    model = from_pretrained(folder / "best", device=device).to(memory_format=torch.channels_last)
    assert rows.test is not None
    counts, losses, seconds = picture_counts(model, rows.test, task, device)
    np.savez_compressed(folder / COUNTS, counts=counts)
    foreground = None
    if rows.bordered is not None:
        whole = picture_counts(model, rows.bordered, task, device)[0].sum(0)
        foreground = float(whole[1, 1] / (whole[1].sum() + whole[:, 1].sum() - whole[1, 1]))
    total = counts.sum(0)
    with np.errstate(invalid="ignore"):
        iou = np.diag(total) / (total.sum(0) + total.sum(1) - np.diag(total))
    record = {
        "system": name,
        "seed": seed,
        "epoch": max(history, key=lambda row: row["held_out_miou"])["epoch"],
        "validation_miou": max(row["held_out_miou"] for row in history),
        "miou": float(miou(total)),
        "iou": {c: None if np.isnan(v) else float(v) for c, v in zip(task.classes, iou, strict=True)},
        "dice_loss": float(np.mean(losses)),
        "foreground_iou_border_as_pet": foreground,
        "parameters": parameters(model),
        "macs": macs(model, (1, 3, size, size)),
        "seconds_per_picture": float(np.median(seconds)),
        "minutes": sum(row["seconds"] for row in history) / 60,
        "arguments": dict(model.config.arguments),
        "machine": machine(),
    }
    write_atomically(folder / RESULT, json.dumps(record, indent=2) + "\n")


@torch.inference_mode()
def picture_counts(
    model: nn.Module, rows: CheckedRows, task: Task, device: Any
) -> tuple[np.ndarray, list[float], list[float]]:
    """Confusion counts of every picture (pictures, K, K), true class first; Dice loss and seconds of each."""
    classes, config = len(task.classes), model.config
    counts, losses, seconds = np.zeros((len(rows), classes, classes), np.int64), [], []
    for place in range(len(rows)):
        pixels, mask = rows[place]
        began = time.perf_counter()
        batch = config.tensor(Image.fromarray(pixels.permute(1, 2, 0).numpy()))[None]
        batch = batch.to(device, memory_format=torch.channels_last)
        scores = model(batch).float().cpu()
        prediction = class_ids(scores[0], *mask.shape)
        seconds.append(time.perf_counter() - began)
        truth, valid = mask.numpy(), mask.numpy() != IGNORE
        pairs = truth[valid].astype(np.int64) * classes + prediction[valid]
        counts[place] = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
        if valid.any():
            wide = nn.functional.interpolate(scores, mask.shape, mode="bilinear", align_corners=False)
            losses.append(dice_loss(wide, mask[None]).item())
    return counts, losses, seconds
