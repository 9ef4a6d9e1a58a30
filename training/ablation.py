"""What does each part of the recipe strong bring? One network, trained with one part more at a time.

The first row has none of the parts, the last is the recipe strong; rows, seed, size and epochs are equal. The
epoch is chosen on validation rows, and the test rows are read once for each training, alone and averaged with
their mirror images (no training of its own).

examples:
  python -m training.ablation --task camvid --data DATA --validation validation --size 144x192 --batch-size 8
    --architecture unet --out runs/ablation
  python -m training.ablation --resume runs/ablation

what it leaves in --out: ablation.md, ablation.json, and a run folder for every row. --resume goes on after a
stop; rows that are done are kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from searchseg.genotype import Genotype
from searchseg.task import TaskError
from training.bootstrap import paired_bootstrap
from training.files import write_atomically
from training.networks import genotype_of
from training.options import Manual, add_data_options, data_of, dataset_name, hardware_of, task_of
from training.presets import PARTS, recipe_of
from training.retrain_options import add_training_options, retrain_settings
from training.runs import add_run_options, parse, perform, record_settings, recorded
from training.systems import RESULT, System, run_system
from training.table import SHIPPED, add_scoring_options, rows_of
from training.table_scores import COUNTS, Origin

CAVEAT = (
    "Each row has the parts of the rows above it, so what a part brings depends on the order. The interval "
    "is that of a paired bootstrap over the test pictures with the seeds held fixed: it knows nothing of the "
    "noise of training."
)
NOTHING = "Dice loss, AdamW, constant rate, no augmentation"


def steps(classes: int) -> list[tuple[str, list[str]]]:
    """What each row is called, and the parts it has: one more than the row before.

    Two classes are not balanced, see the recipe.
    """
    parts = [part for part, changes in PARTS.items() if classes > 2 or "balance" not in changes]
    return [(NOTHING, []), *((f"+ {parts[number]}", parts[: number + 1]) for number in range(len(parts)))]


def markdown(rows_of_table: list[tuple[str, list[str]]], records: list[dict[str, Any]], out: Path) -> str:
    """The table: means over the seeds, and what the part brought with its interval."""
    lines = [
        "| recipe | mIoU | brought, with 95 % interval | averaged with the mirrored picture | Dice loss |"
    ]
    lines.append("|---" * 5 + "|")
    before = None
    for number, (label, _) in enumerate(rows_of_table):
        rows = [record for record in records if record["system"] == str(number)]
        counts = np.stack([np.load(out / f"{number}-seed{row['seed']}" / COUNTS)["counts"] for row in rows])
        brought = ""
        if before is not None:
            found = paired_bootstrap(counts, before)
            brought = f"{found.difference:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
        means = {key: np.mean([row[key] for row in rows]) for key in MEASURES}
        cells = [label, f"{means['miou']:.4f}", brought, f"{means['miou_averaged_with_mirrored']:.4f}"]
        lines.append("| " + " | ".join([*cells, f"{means['dice_loss']:.4f}"]) + " |")
        before = counts
    return "\n".join(lines) + "\n"


MEASURES = ("miou", "miou_averaged_with_mirrored", "dice_loss")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("python -m training.ablation", description=__doc__, formatter_class=Manual)
    what = top.add_argument_group("network")
    what.add_argument("--architecture", default="searchnet", help="or unet, fpn, fpn@ENCODER ...")
    what.add_argument("--genotype", help="of the SEARCH-Net: a file or Hub id (default: the shipped one)")
    what.add_argument("--seeds", type=int, default=1, help="trainings of each row")
    add_data_options(top, split="train")
    add_scoring_options(top)
    add_training_options(top, recipe=False)
    add_run_options(top, "unused: seeds are 0 to --seeds - 1", precisions=("no", "fp16", "bf16"), push=False)
    return top


def main(argv: list[str] | None = None) -> int:
    top = parser()
    args = parse(top, argv)
    try:
        System(args.architecture)
    except ValueError as error:
        top.error(f"--architecture: {error}")
    if args.seeds < 1:
        top.error(f"--seeds must be at least 1, got {args.seeds}")
    return perform(_run, args, argv, "training.ablation")


def _run(args: argparse.Namespace, accelerator: Accelerator, command: str) -> None:
    task, settings, system = task_of(args), retrain_settings(args), System(args.architecture)
    kept = args.out / "genotype.json"
    genotype: Genotype = genotype_of(str(kept if kept.exists() else args.genotype or SHIPPED))[0]
    data, revision = data_of(args, task)
    rows = rows_of(args, task, settings.shape, accelerator)
    planned = steps(len(task.classes))
    record_settings(args, accelerator, command, settings=dataclasses.asdict(settings), rows=dict(planned))
    if accelerator.is_main_process and system.architecture == "searchnet":
        write_atomically(kept, genotype.to_json())
    began = recorded(args.out, accelerator)
    if began.get("rows") != dict(planned):
        raise TaskError(f"{args.out} has rows of other parts than this version: begin with a new --out")
    protocol = {
        "network": system.title, "data": dataset_name(data), "revision": revision,
        "learned on": f"{args.split}, {len(rows.learning)} rows",
        "epoch chosen on": f"{args.validation or f'{args.hold_out} of it'}, {len(rows.validation)} rows",
        "scored on": f"{args.test}, at the size of the mask", "rule": task.note, "preset": args.preset,
        "epochs": settings.epochs, "batch": settings.batch_size, "size": "{}x{}".format(*settings.shape),
        "seeds": args.seeds,
    }  # fmt: skip
    origin = Origin(dataset_name(data), revision, args.test, began)
    for seed in range(args.seeds):
        for number, (label, parts) in enumerate(planned):
            accelerator.print(f"{label}, seed {seed}")
            run_system(
                str(number), seed, lambda: system.build(settings, task, genotype), settings, recipe_of(parts),
                task, rows, origin, args.out, accelerator, flip=True, save_seconds=60 * args.save_minutes,
            )  # fmt: skip
    if accelerator.is_main_process:
        folders = [args.out / f"{n}-seed{seed}" for n in range(len(planned)) for seed in range(args.seeds)]
        records = [json.loads((folder / RESULT).read_text()) for folder in folders]
        labels = [f"{label}, seed {seed}" for label, _ in planned for seed in range(args.seeds)]
        trainings = zip(labels, (record["training"] for record in records), strict=True)
        protocol["hardware"] = hardware_of(trainings)
        document = {"protocol": protocol, "command": began["command"], "trainings": records}
        write_atomically(args.out / "ablation.json", json.dumps(document, indent=2) + "\n")
        stated = ", ".join(f"{key} {value}" for key, value in protocol.items() if value is not None)
        text = f"{markdown(planned, records, args.out)}\nProtocol: {stated}.\n\n"
        text += f"{CAVEAT}\n\nCommand: `{began['command']}`\n"
        write_atomically(args.out / "ablation.md", text)
        print(text)


if __name__ == "__main__":
    sys.exit(main())
