"""Look at every row of a dataset before a training does: what is wrong, in which row, and what cures it.

Faults stop a training: rows that cannot be read, masks that do not fit their pictures, values that the task
does not declare. Doubts do not: classes that no mask has, rows in which every pixel is ignored, pictures that
occur twice, above all in two splits.

examples:
  python -m training.check --task pet --data FOLDER --splits train,test
  python -m training.check --task custom --classes soil,leaf --data me/leaves --json report.json

The exit status is 1 when there is a fault.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from searchseg.task import IGNORE, Task, TaskError
from training.files import write_atomically
from training.options import Manual, add_data_options, data_of, task_of
from training.rows import load_rows, read_row

MOST_SHOWN = 20  # of each kind


@dataclass
class Split:
    """What a scan found in the rows of one split: faults and doubts as sentences, pixels of every class."""

    name: str
    rows: int = 0
    faults: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    pixels: dict[str, int] = field(default_factory=dict)
    ignored: int = 0
    sides: tuple[int, int] = (0, 0)  # shortest and longest
    digests: dict[str, int] = field(default_factory=dict, repr=False)  # of pictures -> first row


def scan(rows: Any, task: Task, name: str, quiet: bool = False) -> Split:
    """Read every row; a bad one is noted, not raised."""
    found, counts = Split(name, len(rows)), np.zeros(256, np.int64)
    shortest, longest, blank = 2**31, 0, []
    for index in tqdm(range(len(rows)), desc=f"check {name}", unit="row", disable=quiet):
        try:
            image, mask = read_row(rows, index, task)
        except TaskError as error:
            found.faults.append(f"{name}, {error}")
            continue
        present = np.bincount(mask.ravel(), minlength=256)
        counts += present
        if present[IGNORE] == mask.size:
            blank.append(index)
        shortest, longest = min(shortest, *image.size), max(longest, *image.size)
        first = found.digests.setdefault(digest(image), index)
        if first != index:
            found.doubts.append(f"{name}, row {index} has the picture of row {first}: remove one of them")
    found.pixels = {label: int(counts[i]) for i, label in enumerate(task.classes)}
    found.ignored, found.sides = int(counts[IGNORE]), (min(shortest, longest), longest)
    if blank:
        told = ", ".join(map(str, blank[:MOST_SHOWN])) + (" ..." if len(blank) > MOST_SHOWN else "")
        found.doubts.append(f"{name}: every pixel is ignored in row {told}: nothing can be learned from it")
    readable = len(rows) > len(found.faults)
    absent = [label for label, count in found.pixels.items() if not count] if readable else []
    if len(absent) == len(task.classes):
        found.faults.append(
            f"{name}: every pixel of every mask is ignored: check --ignore-value and --classes"
        )
    elif absent:
        found.doubts.append(f"{name}: no mask has {', '.join(absent)}: check --classes, or expect no score")
    return found


def digest(image: Image.Image) -> str:
    """Equal for pictures of equal size and pixels."""
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


def across(splits: Sequence[Split]) -> list[str]:
    """Pictures that two splits have: a score on rows that were learned from means nothing."""
    told = []
    for place, one in enumerate(splits):
        for other in splits[place + 1 :]:
            shared = one.digests.keys() & other.digests.keys()
            pairs = sorted((one.digests[d], other.digests[d]) for d in shared)
            if pairs:
                shown = ", ".join(f"{a} and {b}" for a, b in pairs[:MOST_SHOWN])
                told.append(
                    f"{one.name} and {other.name} share {len(pairs)} pictures (rows {shown}): "
                    "remove them from one, or scores are too good"
                )
    return told


def report(splits: Sequence[Split], shared: Sequence[str]) -> str:
    """The findings for people."""
    lines = []
    for split in splits:
        short, long = split.sides
        total = sum(split.pixels.values()) + split.ignored
        lines.append(f"{split.name}: {split.rows} rows, sides of {short} to {long} pixels")
        shares = {**split.pixels, "ignored": split.ignored}
        lines += [f"  {label:<16} {count / total:7.2%}" for label, count in shares.items()] if total else []
    for kind, sentences in (
        ("fault", [sentence for split in splits for sentence in split.faults]),
        ("doubt", [sentence for split in splits for sentence in split.doubts] + list(shared)),
    ):
        lines += [f"{kind}: {sentence}" for sentence in sentences[:MOST_SHOWN]]
        if len(sentences) > MOST_SHOWN:
            lines.append(f"{kind}: and {len(sentences) - MOST_SHOWN} more; --json has them all")
        lines.append(f"{len(sentences)} {kind}s")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("python -m training.check", description=__doc__, formatter_class=Manual)
    add_data_options(top, split="train")
    top.add_argument("--splits", help="splits to look at, joined by commas, instead of --split")
    top.add_argument("--json", type=Path, help="file for the whole report")
    return top


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    found: list[Split] = []
    try:
        task = task_of(args)
        data, revision = data_of(args, task)
    except TaskError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name in (args.splits or args.split).split(","):
        try:
            found.append(scan(load_rows(data, name, revision, task), task, name))
        except TaskError as error:  # of the split as a whole: missing, empty, broken, without a column
            found.append(Split(name, faults=[str(error)]))
        except KeyboardInterrupt:
            print("\nstopped; nothing was written", file=sys.stderr)
            return 130
    shared = across(found)
    print(report(found, shared))
    if args.json:
        rows = [{k: v for k, v in asdict(split).items() if k != "digests"} for split in found]
        write_atomically(args.json, json.dumps({"splits": rows, "shared": shared}, indent=2) + "\n")
    return int(any(split.faults for split in found))


if __name__ == "__main__":
    sys.exit(main())
