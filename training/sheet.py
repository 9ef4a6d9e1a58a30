"""Look at what a model does: a sheet of pictures drawn by chance, and one of those it does worst on.

Every picture stands three times: as it is, under its true mask, and under the model's; above it are the
number of its row and its own mIoU, over the classes that occur in either mask. Pixels that no score counts
stay uncoloured in both.

example:
  python -m training.sheet hub/models/searchnet-pet --data ../shared/data/pet --out sheets

what it writes to --out: sample.png, worst.png, and scores.json with the mIoU of every row.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from tqdm import tqdm

from searchseg.metric import ConfusionMatrix
from searchseg.pretrained import PretrainedError, from_pretrained
from searchseg.task import IGNORE, Task, TaskError
from training.bootstrap import miou
from training.evaluate import answers
from training.files import write_atomically
from training.options import Manual, add_data_options, data_of, dataset_name, task_of
from training.rows import CheckedRows, load_rows

SIDE, GAP, LINE = 200, 6, 18  # pixels: of a picture at most, between pictures, of a line of text
OPACITY = 0.6


@dataclass(frozen=True)
class Case:
    """A row with its picture (RGB), both masks (H, W) and its own mIoU, NaN where every pixel is ignored."""

    row: int
    picture: Image.Image
    truth: np.ndarray
    prediction: np.ndarray
    miou: float


def coloured(picture: Image.Image, mask: np.ndarray, task: Task) -> Image.Image:
    """The picture under the colours of a mask; ignored pixels as they are."""
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(task.colors)] = [[int(color[at : at + 2], 16) for at in (1, 3, 5)] for color in task.colors]
    shown = Image.blend(picture, Image.fromarray(palette[mask]), OPACITY)
    shown.paste(picture, mask=Image.fromarray((mask == IGNORE).astype(np.uint8) * 255))
    return shown


def draw(cases: Sequence[Case], task: Task, columns: int) -> Image.Image:
    """The sheet of some cases, in their order, `columns` of them in a line."""
    width, height = 3 * (SIDE + GAP) + GAP, SIDE + LINE + GAP
    lines = -(-len(cases) // columns)
    sheet = Image.new("RGB", (columns * width, LINE + GAP + lines * height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    at = GAP
    for name, color in zip(task.classes, task.colors, strict=True):
        pen.rectangle((at, GAP, at + LINE - GAP, LINE), fill=color)
        pen.text((at + LINE, GAP - 2), name, "black", font)
        at += LINE + round(pen.textlength(name, font)) + 2 * GAP
    for place, case in enumerate(cases):
        left, top = place % columns * width + GAP, LINE + GAP + place // columns * height
        pen.text((left, top), f"row {case.row}   mIoU {case.miou:.3f}   picture, truth, model", "black", font)
        masks = [coloured(case.picture, mask, task) for mask in (case.truth, _hidden(case))]
        for number, picture in enumerate((case.picture, *masks)):
            small = ImageOps.contain(picture, (SIDE, SIDE))
            sheet.paste(small, (left + number * (SIDE + GAP), top + LINE))
    return sheet


def _hidden(case: Case) -> np.ndarray:
    """The model's mask without the pixels that no score counts."""
    return np.where(case.truth == IGNORE, np.uint8(IGNORE), case.prediction)


def look(
    source: str, rows: CheckedRows, task: Task, device: str, pictures: int, worst: int, seed: int = 0
) -> tuple[list[Case], list[Case], list[float]]:
    """Cases drawn by chance in the order of the rows, the worst ones from the worst on, and all mIoUs.

    Raises PretrainedError, TaskError for a model of other classes.
    """
    model = from_pretrained(source, device=device)
    if model.config.classes != task.classes:
        raise TaskError(f"the model knows {model.config.classes}, task {task.name} has {task.classes}")
    random = np.random.default_rng(seed)
    drawn = set(random.choice(len(rows), min(pictures, len(rows)), replace=False).tolist())
    sample: list[Case] = []
    last: list[Case] = []  # the worst so far
    scores: list[float] = []
    shown = tqdm(answers(model, rows, device), desc="segment", unit="picture", total=len(rows))
    for row, answer in enumerate(shown):
        confusion = ConfusionMatrix(len(task.classes))
        confusion.update(torch.from_numpy(answer.prediction), torch.from_numpy(answer.truth))
        score = float("nan") if answer.dice_loss is None else float(miou(confusion.counts().numpy()))
        scores.append(score)
        picture = Image.fromarray(rows[row][0].permute(1, 2, 0).numpy())
        case = Case(row, picture, answer.truth, answer.prediction, score)
        if row in drawn:
            sample.append(case)
        if worst and score == score:
            last = sorted([*last, case], key=lambda other: other.miou)[:worst]
    return sample, last, scores


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m training.sheet", description=__doc__, formatter_class=Manual)
    parser.add_argument("model", help="folder or user/name")
    add_data_options(parser, split="test")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the sheets go")
    parser.add_argument("--pictures", type=int, default=30, help="how many, drawn by chance")
    parser.add_argument("--worst", type=int, default=10, help="how many of the worst")
    parser.add_argument("--seed", type=int, default=0, help="which pictures are drawn")
    parser.add_argument("--columns", type=int, default=3, help="pictures in a line of a sheet")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help="where to run")
    args = parser.parse_args(argv)
    if min(args.pictures, args.worst) < 0 or args.columns < 1:
        parser.error("--pictures and --worst are 0 or more, --columns is 1 or more")
    try:
        task = task_of(args)
        data, revision = data_of(args, task)
        rows = CheckedRows(load_rows(data, args.split, revision, task), task, None, "rows")
        sample, worst, scores = look(
            args.model, rows, task, args.device, args.pictures, args.worst, args.seed
        )
    except (TaskError, PretrainedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, cases in (("sample", sample), ("worst", worst)):
        if cases:
            stream = io.BytesIO()
            draw(cases, task, args.columns).save(stream, "PNG", compress_level=1)
            write_atomically(args.out / f"{name}.png", stream.getvalue())
    record = {"task": task.name, "dataset": dataset_name(data), "revision": revision, "split": args.split,
              "miou": [None if score != score else round(score, 4) for score in scores]}  # fmt: skip
    write_atomically(args.out / "scores.json", json.dumps(record) + "\n")
    print(f"{len(sample)} pictures, and the {len(worst)} worst of {len(rows)}: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
