"""The systems of a table, each trained from every seed by one recipe, its epoch chosen on validation rows and
its test rows read once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from searchseg.baselines import BASELINES, TITLES
from searchseg.baselines.setr import DECODERS
from searchseg.cost import macs, parameters
from searchseg.genotype import Genotype
from searchseg.pretrained import PretrainedError, from_pretrained
from searchseg.task import IGNORE, Task
from training.bootstrap import miou
from training.evaluate import answers
from training.files import read_lines, write_atomically
from training.loop import SAVE_SECONDS
from training.options import machine
from training.presets import Recipe, RetrainSettings
from training.retrain import baseline, retrain, searchnet
from training.rows import CheckedRows
from training.source import Table

PAPER_SYSTEMS = ("searchnet", "unet", "fpn", "deeplabv3", "unetplusplus", "setr")
RESULT, COUNTS = "result.json", "counts.npz"
TIMED_ON_CPU = 20  # pictures, where the others are scored on a GPU


class CannotBuild(Exception):
    """A network that some process could not build or fetch."""


@dataclasses.dataclass(frozen=True)
class System:
    """A network by name: ARCHITECTURE, ARCHITECTURE@ENCODER, or SETR with another decoder, setr-mla."""

    name: str

    def __post_init__(self) -> None:
        known = ("searchnet", *BASELINES, *(f"setr-{decoder}" for decoder in DECODERS if decoder != "pup"))
        alone = self._base in ("searchnet", "unet")
        if self._base not in known or self.name.endswith("@") or (self.encoder and alone):
            raise ValueError(
                f"no system {self.name!r}: choose from {', '.join(known)}, or FPN's like fpn@ENCODER"
            )

    @property
    def _base(self) -> str:
        return self.name.partition("@")[0]

    @property
    def architecture(self) -> str:
        """As in config.json."""
        return self._base.partition("-")[0]

    @property
    def encoder(self) -> str | None:
        return self.name.partition("@")[2] or None

    @property
    def title(self) -> str:
        """What a reader calls it."""
        decoder = self._base.partition("-")[2]
        title = TITLES[self.architecture] + (f"-{decoder.upper()}" if decoder else "")
        return title + (f" ({self.encoder})" if self.encoder else "")

    def build(
        self, settings: RetrainSettings, task: Task, genotype: Genotype, encoder_weights: bool = False
    ) -> nn.Module:
        """The network with fresh weights, or with the encoder's ImageNet weights where it has one.

        Raises PretrainedError for an encoder that does not fit.
        """
        if self.architecture == "searchnet":
            return searchnet(genotype, settings, task)
        decoder = self._base.partition("-")[2]
        return baseline(
            self.architecture, settings, task, self.encoder,
            pretrained=encoder_weights and self.architecture != "unet",
            **({"decoder": decoder} if decoder else {}),
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TableRows:
    """Rows to learn from, to choose the epoch on and to score; `bordered`: the test rows with the trimap's
    border counted as pet, None for other tasks. Processes that do not score have no test rows."""

    learning: Table
    validation: CheckedRows
    test: CheckedRows | None = None
    bordered: CheckedRows | None = None


def run_system(
    name: str, seed: int, build: Callable[[], nn.Module], settings: RetrainSettings, recipe: Recipe,
    task: Task, rows: TableRows, out: Path, accelerator: Accelerator, flip: bool = False,
    save_seconds: float = SAVE_SECONDS,
) -> None:  # fmt: skip
    """Train and score one network from one seed in `out` / "NAME-seedS", unless that was done before.

    `flip` also scores the average with the mirrored pictures, apart. Raises CannotBuild, in all processes.
    """
    folder = out / f"{name}-seed{seed}"
    if not (folder / RESULT).exists():
        torch.manual_seed(seed)
        model = _built(build, accelerator)
        retrain(
            model, settings, recipe, task, rows.learning, folder, accelerator, seed=seed,
            held_out=rows.validation, keep_best=True, save_seconds=save_seconds,
        )  # fmt: skip
        if rows.test is not None:
            _score(folder, name, seed, task, rows, accelerator.device, flip)
        accelerator.wait_for_everyone()


def _built(build: Callable[[], nn.Module], accelerator: Accelerator) -> nn.Module:
    model, told = None, ""
    try:
        model = build()
    except (PretrainedError, ValueError, OSError) as error:
        told = str(error)
    failed = torch.tensor(float(model is None), device=accelerator.device)
    if accelerator.reduce(failed, "sum").item() or model is None:
        raise CannotBuild(told or "another process could not build it")
    return model


def _score(
    folder: Path, name: str, seed: int, task: Task, rows: TableRows, device: torch.device, flip: bool
) -> None:
    history = read_lines(folder / "history.jsonl")
    model = from_pretrained(folder / "best", device=device).to(memory_format=torch.channels_last)
    assert rows.test is not None
    counts, losses, seconds = picture_counts(model, rows.test, task, device)
    np.savez_compressed(folder / COUNTS, counts=counts)
    bordered, flipped = None, None
    if rows.bordered is not None:
        bordered = float(class_iou(picture_counts(model, rows.bordered, task, device)[0].sum(0))[1])
    if flip:
        flipped = float(miou(picture_counts(model, rows.test, task, device, flip=True)[0].sum(0)))
    total = counts.sum(0)
    height, width = model.config.image_size
    record = {
        "system": name,
        "seed": seed,
        "epoch": max(history, key=lambda row: row["held_out_miou"])["epoch"],
        "validation_miou": max(row["held_out_miou"] for row in history),
        "miou": float(miou(total)),
        "miou_averaged_with_mirrored": flipped,
        "iou": {
            c: None if np.isnan(v) else float(v) for c, v in zip(task.classes, class_iou(total), strict=True)
        },
        "dice_loss": float(np.mean(losses)),
        "foreground_iou_border_as_pet": bordered,
        "parameters": parameters(model),
        "macs": macs(model, (1, 3, height, width)),
        **_speed(model, rows.test, task, device, seconds),
        "minutes": sum(row["seconds"] for row in history) / 60,
        "arguments": dict(model.config.arguments),
        "machine": machine(),
    }
    write_atomically(folder / RESULT, json.dumps(record, indent=2) + "\n")


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


def class_iou(counts: np.ndarray) -> np.ndarray:
    """IoU of each class (K,) from a confusion matrix (K, K); NaN where a class occurs nowhere."""
    hits = np.diag(counts)
    with np.errstate(invalid="ignore"):
        return hits / (counts.sum(0) + counts.sum(1) - hits)


def picture_counts(
    model: nn.Module, rows: Any, task: Task, device: Any, flip: bool = False
) -> tuple[np.ndarray, list[float], list[float]]:
    """Confusion counts of every picture (pictures, K, K), true class first; Dice loss and seconds of each."""
    classes = len(task.classes)
    counts, losses, seconds = np.zeros((len(rows), classes, classes), np.int64), [], []
    pairs = (rows[place] for place in range(len(rows)))
    for place, answer in enumerate(answers(model, pairs, device, flip)):
        valid = answer.truth != IGNORE
        joint = answer.truth[valid].astype(np.int64) * classes + answer.prediction[valid]
        counts[place] = np.bincount(joint, minlength=classes**2).reshape(classes, classes)
        seconds.append(answer.seconds)
        if answer.dice_loss is not None:
            losses.append(answer.dice_loss)
    return counts, losses, seconds
