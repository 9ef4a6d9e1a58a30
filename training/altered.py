"""How a model does on pictures unlike those it learned from, made from test pictures: night, fog, drawings.

Every alteration changes the pictures, and their masks where it moves something; the model is scored on the
same rows under each, as they are first. mIoU is over the classes that occur in a mask or an answer, as
everywhere; an alteration that moves pixels out of view may leave fewer of them. A model that was taught with
--corruptions (training.retrain) has met darkness, blur, noise and JPEG, and the record says so.

example:
  python -m training.altered hub/models/searchnet-pet --data ../shared/data/pet --out altered

what it writes to --out: altered.png, the first row drawn under every alteration with true mask and the
model's; altered.md, the mIoU under each; altered.json, the same with what it belongs to.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from itertools import tee
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor, nn
from tqdm import tqdm

from searchseg.pretrained import PretrainedError
from searchseg.task import Task, TaskError
from training.bootstrap import miou
from training.evaluate import answers
from training.files import write_atomically
from training.networks import training_of
from training.options import Manual
from training.rows import CheckedRows, as_pair, compressed
from training.sheet import (
    Case,
    add_sheet_options,
    case_of,
    check_sheet_options,
    load_model_and_rows,
    write_sheet,
)
from training.table_scores import counts_of

Pair = tuple[Image.Image, Image.Image]  # picture (RGB) and mask (L)
Alteration = Callable[[Image.Image, Image.Image], Pair]
GREY = (190, 190, 190)  # of fog


def _light(share: float) -> Alteration:
    return lambda picture, mask: (ImageEnhance.Brightness(picture).enhance(share), mask)


def _fog(picture: Image.Image, mask: Image.Image) -> Pair:
    """A light grey over six tenths of it."""
    return Image.blend(picture, Image.new("RGB", picture.size, GREY), 0.6), mask


def _drawing(picture: Image.Image, mask: Image.Image) -> Pair:
    """Dark lines on white, as a pencil leaves them."""
    smooth = picture.convert("L").filter(ImageFilter.GaussianBlur(1))
    framed = Image.fromarray(np.pad(np.array(smooth), 1, mode="edge"))  # the filter leaves the frame as it is
    edges = framed.filter(ImageFilter.FIND_EDGES).crop((1, 1, picture.width + 1, picture.height + 1))
    return ImageOps.autocontrast(ImageOps.invert(edges)).convert("RGB"), mask


def _close(picture: Image.Image, mask: Image.Image) -> Pair:
    """The middle, half as wide and high, at the size of the whole."""
    width, height = picture.size
    box = width / 4, height / 4, width * 3 / 4, height * 3 / 4
    return (
        picture.resize(picture.size, Image.Resampling.BICUBIC, box),
        mask.resize(mask.size, Image.Resampling.NEAREST, box),
    )


def _four(picture: Image.Image, mask: Image.Image) -> Pair:
    """Four at once: the picture and its mirror image, each twice, at half the size."""
    size = max(1, picture.width // 2), max(1, picture.height // 2)
    tiles = picture.resize(size, Image.Resampling.LANCZOS), mask.resize(size, Image.Resampling.NEAREST)
    made = Image.new("RGB", (2 * size[0], 2 * size[1])), Image.new("L", (2 * size[0], 2 * size[1]))
    for whole, tile in zip(made, tiles, strict=True):
        for place in range(4):
            left, top = place % 2, place // 2
            whole.paste(tile if left == top else ImageOps.mirror(tile), (left * size[0], top * size[1]))
    return made


def _noisy(picture: Image.Image, mask: Image.Image) -> Pair:
    noise = np.random.default_rng(0).normal(0, 40, (picture.height, picture.width, 3))
    return Image.fromarray((np.array(picture) + noise).clip(0, 255).astype(np.uint8)), mask


ALTERATIONS: dict[str, Alteration] = {
    "as it is": lambda picture, mask: (picture, mask),
    "night, 0.15 of the light": _light(0.15),
    "dusk, 0.45 of the light": _light(0.45),
    "glare, twice the light": _light(2.0),
    "fog, 0.6 of grey": _fog,
    "grey": lambda picture, mask: (ImageOps.grayscale(picture).convert("RGB"), mask),
    "blurred, radius 3": lambda picture, mask: (picture.filter(ImageFilter.GaussianBlur(3)), mask),
    "Gaussian noise, sigma 40 of 255": _noisy,
    "JPEG of quality 5": lambda picture, mask: (compressed(picture, 5), mask),
    "upside down": lambda picture, mask: (ImageOps.flip(picture), ImageOps.flip(mask)),
    "close-up, the middle quarter": _close,
    "four at once": _four,
    "drawing": _drawing,
}


def altered(rows: CheckedRows, alter: Alteration) -> Iterator[tuple[Tensor, Tensor]]:
    """The pairs of `rows` under an alteration, as `CheckedRows` gives them."""
    for pixels, ids in rows:
        picture, mask = alter(Image.fromarray(pixels.permute(1, 2, 0).numpy()), Image.fromarray(ids.numpy()))
        yield as_pair(picture, np.array(mask), None)


def score(model: nn.Module, rows: CheckedRows, task: Task, device: str, name: str) -> tuple[float, Case]:
    """mIoU over `rows` under the alteration of that name, and the first of them as a case.

    TaskError where every pixel is ignored.
    """
    first, counts = None, np.zeros((len(task.classes),) * 2, np.int64)
    pictures, seen = tee(altered(rows, ALTERATIONS[name]))
    for answer, (pixels, _) in zip(answers(model, pictures, device), seen, strict=True):
        counts += counts_of(answer, len(task.classes))
        first = first or case_of(rows.numbers[0], pixels, answer, task, name)
    if first is None or not np.any(counts):
        raise TaskError(
            f"{name}: every pixel of the {len(rows)} rows drawn is ignored: take more with --pictures"
        )
    return float(miou(counts)), first


def met_corruptions(training: dict[str, Any]) -> bool:
    """Whether a training on record, or one that it began with, was with --corruptions."""
    earlier = training.get("finetuned", {}).get("training", {})
    return training.get("recipe", {}).get("augment") == "corrupted" or bool(
        earlier and met_corruptions(earlier)
    )


def markdown(record: dict[str, Any]) -> str:
    """A line an alteration."""
    lines = ["| pictures | mIoU |", "|---|---|"]
    lines += [f"| {name} | {value:.4f} |" for name, value in record["miou"].items()]
    about = (
        f"{record['model']} ({record['fingerprint'][:12]}) on {len(record['rows'])} rows drawn from "
        f"{record['dataset']}, split {record['split']}, with seed {record['seed']}; {record['rule']}."
    )
    if record["met_corruptions"]:
        about += " It was taught with --corruptions: darkness, blur, noise and JPEG are nothing new to it."
    return "\n".join([*lines, "", about]) + "\n"


def main(argv: list[str] | None = None) -> int:
    name = "python -m training.altered"
    parser = argparse.ArgumentParser(name, description=__doc__, formatter_class=Manual)
    add_sheet_options(parser)
    args = parser.parse_args(argv)
    check_sheet_options(parser, args, 1)
    try:
        model, rows, task, record = load_model_and_rows(args, drawn=True)
        found = {
            name: score(model, rows, task, args.device, name)
            for name in tqdm(ALTERATIONS, desc="alterations")
        }
    except (TaskError, PretrainedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    record["met_corruptions"] = met_corruptions(training_of(Path(args.model)))
    record |= {"rows": list(rows.numbers)}
    record["miou"] = {name: round(value, 4) for name, (value, _) in found.items()}
    write_sheet(
        args.out / "altered.png", (case for _, case in found.values()), len(found), task, args.columns
    )
    write_atomically(args.out / "altered.json", json.dumps(record, indent=1) + "\n")
    write_atomically(args.out / "altered.md", text := markdown(record))
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
