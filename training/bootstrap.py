"""Is one network better than another, or was it these test pictures? A paired bootstrap over pictures.

Both networks segment every picture of a split; mIoU comes from one confusion matrix over the split, as in
training.evaluate. The interval knows nothing of the noise of training: other seeds are other networks.

example:
  python -m training.bootstrap hub/models/searchnet-pet hub/models/unet-pet --data ../shared/data/pet
    --json difference.json
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

DRAWS, LEVEL = 2000, 0.95


@dataclass(frozen=True)
class Interval:
    """Difference of two mIoUs on all pictures, and the interval that holds 95 % of the resampled ones."""

    difference: float
    low: float
    high: float

    @property
    def decided(self) -> bool:
        """Whether zero lies outside of the interval."""
        return self.low > 0 or self.high < 0


def miou(counts: np.ndarray) -> np.ndarray:
    """Mean IoU of confusion matrices (..., K, K), true class first, over the classes that occur in each."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1).astype(float)
    union = counts.sum(-1) + counts.sum(-2) - hits
    with np.errstate(invalid="ignore"):
        iou = np.where(union > 0, hits / union, np.nan)
    return np.nanmean(iou, axis=-1)


def paired_bootstrap(one: np.ndarray, other: np.ndarray, seed: int = 0, draws: int = DRAWS) -> Interval:
    """mIoU of `one` minus that of `other`: (seeds, pictures, K, K) counts of the same pictures in one order.

    The mIoU of several seeds is their mean; the seeds stay as they are, only pictures are drawn. Every draw
    takes as many pictures as there are, with repetition, the same ones for both (Efron & Tibshirani 1993,
    chapter 13: the percentile interval). Raises ValueError for counts that do not pair.
    """
    if one.shape != other.shape or one.ndim != 4 or 0 in one.shape:
        raise ValueError(
            f"counts of equal shapes (seeds, pictures, K, K) are wanted, got {one.shape}, {other.shape}"
        )
    random, pictures = np.random.default_rng(seed), one.shape[1]
    differences = np.empty(draws)
    for draw in range(draws):
        # how often each picture was drawn: a product with the counts is their sum over the drawn ones
        times = np.bincount(random.integers(0, pictures, pictures), minlength=pictures)
        drawn = (np.einsum("p,spij->sij", times, counts) for counts in (one, other))
        differences[draw] = np.subtract(*(miou(total).mean() for total in drawn))
    low, high = np.quantile(differences, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    difference = miou(one.sum(1)).mean() - miou(other.sum(1)).mean()
    return Interval(float(difference), float(low), float(high))


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Score both models of the options and draw; returns what --json keeps. TaskError, PretrainedError."""
    from searchseg.pretrained import from_pretrained
    from training.evaluate import check_classes
    from training.options import data_of, dataset_name, task_of
    from training.rows import CheckedRows, load_rows
    from training.table_scores import picture_counts  # which needs this module

    task = task_of(args)
    data, revision = data_of(args, task)
    models = [from_pretrained(source, device=args.device) for source in (args.one, args.other)]
    for source, model in zip((args.one, args.other), models, strict=True):
        check_classes(model, task, source)
    rows = CheckedRows(load_rows(data, args.split, revision, task), task, None, "rows")
    counts = [picture_counts(model, rows, task, args.device)[0][None] for model in models]
    names = [Path(source).name if Path(source).exists() else source for source in (args.one, args.other)]
    scores = {name: float(miou(found.sum((0, 1)))) for name, found in zip(names, counts, strict=True)}
    about = {"task": task.name, "rule": task.note, "dataset": dataset_name(data), "revision": revision,
             "split": args.split, "pictures": len(rows), "draws": DRAWS, "level": LEVEL}  # fmt: skip
    return {"miou": scores, **asdict(paired_bootstrap(*counts)), **about}


def main(argv: list[str] | None = None) -> int:
    import torch

    from searchseg.pretrained import PretrainedError
    from searchseg.task import TaskError
    from training.files import write_atomically
    from training.options import Manual, add_data_options

    parser = argparse.ArgumentParser(
        "python -m training.bootstrap", description=__doc__, formatter_class=Manual
    )
    parser.add_argument("one", help="model, folder or user/name")
    parser.add_argument("other", help="the one to hold it against")
    add_data_options(parser, split="test")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to run"
    )
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args(argv)
    try:
        found = compare(args)
    except (TaskError, PretrainedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, value in found["miou"].items():
        print(f"mIoU {value:.4f}  {name}")
    low, high = found["low"], found["high"]
    print(f"difference {found['difference']:+.4f}, {LEVEL:.0%} interval [{low:+.4f}, {high:+.4f}]")
    if args.json:
        write_atomically(args.json, json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
