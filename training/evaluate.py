"""Score a model on a split and write metrics.json, with the protocol that the numbers belong to.

Every picture is resized to the model's input size; its class scores are upsampled to the size of the
picture's own mask and compared there, pixel by pixel. mIoU comes from one confusion matrix over the whole
split.

examples:
  python -m training.evaluate runs/net --task pet --data ../shared/data/pet --split test
  python -m training.evaluate runs/net --task custom --classes a,b --data me/huge --streaming
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from torch import Tensor, distributed, nn
from tqdm import tqdm

from searchseg.config import ModelConfig
from searchseg.cost import macs, parameters
from searchseg.loss import dice_loss
from searchseg.metric import ConfusionMatrix
from searchseg.pretrained import PretrainedError, from_pretrained
from searchseg.segmenter import class_ids
from searchseg.task import IGNORE, Task, TaskError
from training.files import read_lines, write_atomically
from training.options import Manual, add_data_options, command_line, data_of, dataset_name, machine, task_of
from training.rows import CheckedRows
from training.source import add_stream_options, read_rows, scored_rows


@dataclass(frozen=True)
class Evaluation:
    """Scores over a split: IoU per class and mean, pixel accuracy, mean Dice loss a picture, seconds a
    picture, and how many pictures."""

    iou: tuple[float | None, ...]
    miou: float
    accuracy: float
    dice_loss: float
    seconds: float
    pictures: int = 0


@dataclass(frozen=True)
class Answer:
    """What a network says of a picture: true and predicted class ids (H, W), Dice loss (None where every
    pixel is ignored), seconds from the upright picture to the class ids."""

    truth: np.ndarray
    prediction: np.ndarray
    dice_loss: float | None
    seconds: float


@torch.inference_mode()
def answers(
    model: nn.Module, rows: Iterable[tuple[Tensor, Tensor]], device: Any, flip: bool = False
) -> Iterator[Answer]:
    """The network's answer to every pair (picture, mask), at the size of the mask.

    `flip` averages the class probabilities of the picture and of its mirror image. The model is left in eval
    mode.
    """
    model.eval()
    config: ModelConfig = model.config  # type: ignore[assignment]
    for pixels, mask in rows:
        picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        began = time.perf_counter()
        batch = config.tensor(picture)[None].to(device, memory_format=torch.channels_last)
        scores = model(batch).float()
        if flip:
            mirrored = model(batch.flip(-1)).float().flip(-1)
            # logarithms, so that a softmax gives the averaged probabilities back
            scores = ((scores.softmax(1) + mirrored.softmax(1)) / 2).clamp_min(1e-12).log()
        scores = scores.cpu()
        prediction = class_ids(scores[0], *mask.shape)
        seconds, loss = time.perf_counter() - began, None
        if (mask != IGNORE).any():
            wide = nn.functional.interpolate(scores, mask.shape, mode="bilinear", align_corners=False)
            loss = dice_loss(wide, mask[None]).item()
        yield Answer(mask.numpy(), prediction, loss, seconds)


def evaluate_rows(
    model: nn.Module, rows: Iterable[tuple[Tensor, Tensor]], task: Task, device: Any, quiet: bool = False,
    flip: bool = False,
) -> Evaluation:  # fmt: skip
    """Score `model` on pairs (picture, mask) at their own size, those of all processes together.

    Where several processes are given the same pairs the scores are as from one. TaskError when there is no
    pair. `flip` as in `answers`.
    """
    confusion, losses, seconds = ConfusionMatrix(len(task.classes)), [], []
    total = len(rows) if isinstance(rows, CheckedRows) else None
    shown = tqdm(
        answers(model, rows, device, flip), desc="evaluate", unit="picture", disable=quiet, total=total
    )
    for answer in shown:
        confusion.update(torch.from_numpy(answer.prediction), torch.from_numpy(answer.truth))
        seconds.append(answer.seconds)
        if answer.dice_loss is not None:
            losses.append(answer.dice_loss)
    losses, seconds = _of_all_processes(losses), _of_all_processes(seconds)
    if not losses:
        raise TaskError("there is no pixel to score: check --split, --hold-out and --ignore-value")
    result = confusion.to(device).compute()  # sums over processes, for which NCCL wants it on the device
    return Evaluation(
        result.iou,
        result.miou,
        result.accuracy,
        float(np.mean(losses)),
        float(np.median(seconds)),
        len(seconds),
    )


def _of_all_processes(values: list[float]) -> list[float]:
    if not _together():
        return values
    lists: list[list[float]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(lists, values)
    return [value for part in lists for value in part]


def check_classes(model: nn.Module, task: Task, name: str) -> None:
    """TaskError unless a model, called `name`, knows the classes of a task."""
    config: ModelConfig = model.config  # type: ignore[assignment]
    if config.classes != task.classes:
        raise TaskError(f"{name} knows {config.classes}, task {task.name} has {task.classes}")


def metrics_document(
    model: nn.Module, task: Task, scores: Evaluation, flipped: Evaluation | None, rows: int,
    args: argparse.Namespace, data: str, revision: str | None, command: str,
) -> dict[str, Any]:  # fmt: skip
    """The contents of metrics.json: scores, cost, and the protocol of both evaluation and training."""
    height, width = model.config.image_size
    settings = args.folder / "settings.json"
    history = read_lines(args.folder / "history.jsonl")
    return {
        "schema": 1,
        "miou": scores.miou,
        "iou": dict(zip(task.classes, scores.iou, strict=True)),
        "pixel_accuracy": scores.accuracy,
        "dice_loss": scores.dice_loss,
        "seconds_per_picture": scores.seconds,
        **({"averaged_with_mirrored": _both(flipped)} if flipped else {}),
        "parameters": parameters(model),
        "macs": macs(model, (1, 3, height, width)),
        "protocol": {
            "task": task.name, "dataset": dataset_name(data), "revision": revision, "split": args.split,
            "rows": rows, "classes": list(task.classes), "rule": task.note, "input_size": [height, width],
            "scored_at": "size of the mask", "machine": machine(), "command": command,
        },
        "training": {
            **(json.loads(settings.read_text()) if settings.exists() else {}),
            "epochs_done": len(history),
            "minutes": round(sum(record["seconds"] for record in history) / 60, 1),
        },
    }  # fmt: skip


def _both(scores: Evaluation) -> dict[str, float]:
    return {"miou": scores.miou, "dice_loss": scores.dice_loss}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("python -m training.evaluate", description=__doc__, formatter_class=Manual)
    top.add_argument("folder", type=Path, help="run folder with a model; metrics.json is written there")
    add_data_options(top, split="test")
    add_stream_options(top)
    top.add_argument(
        "--flip", action="store_true",
        help="also score the average with the mirrored picture, apart (seconds double)",
    )  # fmt: skip
    top.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to run")
    return top


def _place(device: str) -> tuple[int, int, str]:
    """Number of this process, of all, and its device: as `accelerate launch` or torchrun says, else alone."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return 0, 1, device
    state = PartialState(cpu=device == "cpu")
    return state.process_index, state.num_processes, str(state.device)


def main(argv: list[str] | None = None) -> int:
    ours = not _together()
    try:
        status = _main(argv)
        if ours and status == 0 and _together():  # leaving while another still talks to it aborts that one
            PartialState().wait_for_everyone()
        return status
    finally:
        if ours and _together():
            PartialState().destroy_process_group()


def _together() -> bool:
    """Whether this process belongs to a group."""
    return distributed.is_available() and distributed.is_initialized()


def _main(argv: list[str] | None) -> int:
    args = parser().parse_args(argv)
    process, processes, args.device = _place(args.device)
    main_process = process == 0
    try:
        task = task_of(args)
        data, revision = data_of(args, task)
        model = from_pretrained(args.folder, device=args.device)
        check_classes(model, task, "the model")
        rows = read_rows(args, data, revision, task, process, processes)
        pairs = scored_rows(rows, task, "rows", quiet=not main_process)
        scores = evaluate_rows(model, pairs, task, args.device, quiet=not main_process)
        flipped = None
        if args.flip:
            flipped = evaluate_rows(model, pairs, task, args.device, quiet=not main_process, flip=True)
    except (TaskError, PretrainedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; nothing was written", file=sys.stderr)
        return 130
    if not main_process:
        return 0
    number = scores.pictures if args.streaming else len(rows)
    document = metrics_document(
        model, task, scores, flipped, number, args, data, revision, command_line("training.evaluate", argv)
    )
    write_atomically(args.folder / "metrics.json", json.dumps(document, indent=2) + "\n")
    print(f"mIoU {scores.miou:.4f}, Dice loss {scores.dice_loss:.4f}: {args.folder / 'metrics.json'}")
    if flipped is not None:
        print(
            f"averaged with the mirrored picture: mIoU {flipped.miou:.4f}, Dice loss {flipped.dice_loss:.4f}"
        )
    for name, value in document["iou"].items():
        print(f"  {name:<12} {'absent' if value is None else f'{value:.4f}'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
