"""Look at what a model does: a sheet of pictures drawn by chance, and one of those it does worst on.

Every picture stands three times: as it is, under its true mask, and under the model's; above it are the
number of its row and its own mIoU, over the classes that occur in either mask. Pixels that no score counts
stay uncoloured in both.

example:
  python -m training.sheet hub/models/searchnet-pet --data ../shared/data/pet --out sheets

what it writes to --out: sample.png, worst.png, and scores.json with the rows shown and the mIoU of every row.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from searchseg.pretrained import PretrainedError, fingerprint, from_pretrained
from searchseg.segmenter import png_bytes
from searchseg.task import IGNORE, Task, TaskError
from training.bootstrap import miou
from training.evaluate import Answer, answers, check_classes
from training.files import write_atomically
from training.options import Manual, add_data_options, data_of, dataset_name, task_of
from training.rows import CheckedRows, load_rows
from training.table_figures import palette
from training.table_scores import counts_of, picture_counts

SIDE, GAP, LINE = 200, 6, 18  # pixels: of a picture at most, between pictures, of a line of text
OPACITY = 0.6


@dataclass(frozen=True)
class Case:
    """A row with its picture (RGB), both masks (H, W) and its own mIoU, NaN where every pixel is ignored;
    `altered` says how it was changed."""

    row: int
    picture: Image.Image
    truth: np.ndarray
    prediction: np.ndarray
    miou: float
    altered: str = ""


def coloured(picture: Image.Image, mask: np.ndarray, task: Task) -> Image.Image:
    """The picture under the colours of a mask; ignored pixels as they are."""
    shown = Image.blend(picture, Image.fromarray(palette(task)[mask]), OPACITY)
    shown.paste(picture, mask=Image.fromarray((mask == IGNORE).astype(np.uint8) * 255))
    return shown


def draw(cases: Iterable[Case], count: int, task: Task, columns: int) -> Image.Image:
    """The sheet of `count` cases, in their order, `columns` of them in a line."""
    width, height = 3 * (SIDE + GAP) + GAP, SIDE + LINE + GAP
    font = ImageFont.load_default(12)
    names = list(zip(task.classes, task.colors, strict=True))
    places, under = _legend(
        [LINE + round(font.getlength(name)) + 2 * GAP for name in task.classes], columns * width
    )
    sheet = Image.new("RGB", (columns * width, under + -(-count // columns) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for (name, color), (left, top) in zip(names, places, strict=True):
        pen.rectangle((left, top, left + LINE - GAP, top + LINE - GAP), fill=color)
        pen.text((left + LINE, top - 2), name, "black", font)
    for number, case in enumerate(cases):
        left, top = number % columns * width + GAP, under + number // columns * height
        name = case.altered or "picture, truth, model"
        pen.text((left, top), f"row {case.row}   mIoU {case.miou:.3f}   {name}", "black", font)
        for place, picture in enumerate(_tiles(case, task)):
            sheet.paste(picture, (left + place * (SIDE + GAP), top + LINE))
    return sheet


def _legend(widths: Sequence[int], width: int) -> tuple[list[tuple[int, int]], int]:
    """Where entries of these widths go on a sheet, and where it goes on below them."""
    places, left, top = [], GAP, GAP
    for entry in widths:
        if left + entry > width and left > GAP:
            left, top = GAP, top + LINE
        places.append((left, top))
        left += entry
    return places, top + LINE


def _tiles(case: Case, task: Task) -> Iterator[Image.Image]:
    """The picture as it is and under both masks, small; what no score counts is left out of the model's."""
    counted = np.where(case.truth == IGNORE, np.uint8(IGNORE), case.prediction)
    scale = min(1.0, SIDE / max(case.picture.size))
    size = max(1, round(case.picture.width * scale)), max(1, round(case.picture.height * scale))
    for picture in (case.picture, *(coloured(case.picture, mask, task) for mask in (case.truth, counted))):
        yield picture.resize(size, Image.Resampling.LANCZOS)


def scores_of(model: nn.Module, rows: CheckedRows, task: Task, device: str) -> list[float]:
    """mIoU of every row by itself; NaN where every pixel is ignored."""
    counts, _, _ = picture_counts(model, rows, task, device)
    return [_own_miou(own) for own in counts]


def _own_miou(counts: np.ndarray) -> float:
    return float(miou(counts)) if counts.any() else math.nan


def cases_of(
    model: nn.Module, rows: CheckedRows, task: Task, device: str, chosen: Sequence[int]
) -> Iterator[Case]:
    """The rows `chosen` with the model's masks, one at a time: pictures may be large."""
    said = answers(model, (rows[row] for row in chosen), device)
    for row, answer in zip(chosen, said, strict=True):
        yield case_of(row, rows[row][0], answer, task)


def case_of(row: int, pixels: Tensor, answer: Answer, task: Task, altered: str = "") -> Case:
    """A row with the model's answer to its picture (3, H, W), uint8."""
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    own = _own_miou(counts_of(answer, len(task.classes)))
    return Case(row, picture, answer.truth, answer.prediction, own, altered)


def drawn_rows(count: int, pictures: int, seed: int) -> list[int]:
    """Numbers of `pictures` rows of `count`, all where there are no more, drawn by chance; in order."""
    random = np.random.default_rng(seed)
    return sorted(random.choice(count, min(pictures, count), replace=False).tolist())


def worst_rows(scores: Sequence[float], worst: int) -> list[int]:
    """Numbers of the worst of those rows that have a score, from the worst on."""
    order = sorted((row for row, score in enumerate(scores) if not math.isnan(score)), key=scores.__getitem__)
    return order[:worst]


def add_sheet_options(parser: argparse.ArgumentParser) -> None:
    """The model, its data, and what sheets show of it."""
    parser.add_argument("model", help="folder or user/name")
    add_data_options(parser, split="test")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the sheets go")
    parser.add_argument("--pictures", type=int, default=30, help="how many rows, drawn by chance")
    parser.add_argument("--seed", type=int, default=0, help="which rows are drawn")
    parser.add_argument("--columns", type=int, default=3, help="pictures in a line of a sheet")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help="where to run")


def check_sheet_options(parser: argparse.ArgumentParser, args: argparse.Namespace, least: int) -> None:
    """Exits where the numbers or --out cannot be; `least`: of --pictures."""
    if args.pictures < least or args.columns < 1:
        parser.error(f"--pictures is {least} or more, --columns is 1 or more")
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"{args.out} is a file: choose another --out")


def load_model_and_rows(
    args: argparse.Namespace, drawn: bool = False
) -> tuple[nn.Module, CheckedRows, Task, dict[str, Any]]:
    """Model, rows (`drawn`: only those of --pictures), task, and what belongs on record.

    TaskError or PretrainedError.
    """
    task = task_of(args)
    data, revision = data_of(args, task)
    model = from_pretrained(args.model, device=args.device)
    check_classes(model, task, args.model)
    table = load_rows(data, args.split, revision, task)
    only = drawn_rows(len(table), args.pictures, args.seed) if drawn else None
    rows = CheckedRows(table, task, None, "rows", only=only)
    return model, rows, task, {
        "model": dataset_name(args.model), "fingerprint": fingerprint(model), "task": task.name,
        "rule": task.note, "dataset": dataset_name(data), "revision": revision, "split": args.split,
        "seed": args.seed,
    }  # fmt: skip


def write_sheet(path: Path, cases: Iterable[Case], count: int, task: Task, columns: int) -> None:
    """Draw the sheet of `count` cases into a PNG file."""
    write_atomically(path, png_bytes(draw(cases, count, task, columns)))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m training.sheet", description=__doc__, formatter_class=Manual)
    add_sheet_options(parser)
    parser.add_argument("--worst", type=int, default=10, help="how many of the worst")
    args = parser.parse_args(argv)
    check_sheet_options(parser, args, 0)
    if args.worst < 0:
        parser.error("--worst is 0 or more")
    try:
        model, rows, task, record = load_model_and_rows(args)
        scores = scores_of(model, rows, task, args.device)
    except (TaskError, PretrainedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    record["sample"] = drawn_rows(len(rows), args.pictures, args.seed)
    record["worst"] = worst_rows(scores, args.worst)
    for name in ("sample", "worst"):
        chosen = record[name]
        (args.out / f"{name}.png").unlink(missing_ok=True)  # of an earlier model
        if chosen:
            cases = cases_of(model, rows, task, args.device, chosen)
            write_sheet(args.out / f"{name}.png", cases, len(chosen), task, args.columns)
    record["miou"] = [None if math.isnan(score) else round(score, 4) for score in scores]
    write_atomically(args.out / "scores.json", json.dumps(record) + "\n")
    shown = f"{len(record['sample'])} pictures, and the {len(record['worst'])} worst of {len(rows)}"
    print(f"{shown}: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
