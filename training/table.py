"""Train and score the systems of the paper by one recipe, and write the table and its figures.

Same rows, size, augmentation, epochs, recipe and seeds for all; the epoch of each training is chosen by its
mIoU on validation rows, the test rows are read once for each training. --resume continues after a stop and
takes more --systems or --seeds: trainings that are done are kept.

examples:
  python -m training.compare --table pet --data DATA --split train+train_extra --out results/pet
  python -m training.compare --table camvid --data DATA --validation validation --systems searchnet,unet
    --seeds 2 --out results/camvid
  python -m training.compare --resume results/camvid --systems setr-mla,segformer,fpn@tu-efficientnet_lite0

what it leaves in --out: SYSTEM-seedS/ (run folders with result.json and the confusion counts of every test
picture), table.md, table.json, loss.png, miou.png, cost.png, confusion.png, and pictures.png with the best,
median and worst test pictures (it shows the dataset: mind its licence before you publish it).
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from searchseg import task as tasks
from searchseg.baselines import BASELINES
from searchseg.genotype import Genotype
from searchseg.task import Task, TaskError
from training.bootstrap import paired_bootstrap
from training.files import write_atomically
from training.options import Manual, add_data_options, data_of, dataset_name, task_of
from training.retrain import add_training_options, genotype_of, recipe_of_run, retrain_settings
from training.rows import CheckedRows, hold_out, load_rows
from training.runs import SETTINGS, add_run_options, parse, perform, record_settings, recorded
from training.source import Table
from training.systems import COUNTS, PAPER_SYSTEMS, RESULT, CannotBuild, System, TableRows, run_system
from training.table_figures import draw_figures

SHIPPED = Path(__file__).resolve().parent.parent / "hub" / "models" / "searchnet-pet-lite" / "genotype.json"
# Zhu & Ma 2023, tables of the experiments: (Dice loss, mIoU in percent); their protocol is not stated
PAPER = {
    "pet": {
        "fpn": (0.39, 74.3), "unet": (0.41, 81.2), "deeplabv3": (0.13, 92.7), "unetplusplus": (0.11, 97.3),
        "setr": (0.13, 95.6), "searchnet": (0.08, 95.3),
    },
    "camvid": {"unet": (0.23, 46.2), "searchnet": (0.14, 66.7)},
}  # fmt: skip
# columns that only some tables have: key in result.json, and what a reader calls it
OPTIONAL = {
    "miou_averaged_with_mirrored": "mIoU, averaged with the mirrored picture",
    "foreground_iou_border_as_pet": "pet IoU, border as pet",
    "gpu_seconds_per_picture": "seconds a picture, GPU",
}


def table(
    records: list[dict[str, Any]], intervals: dict[str, Any], task: str, classes: tuple[str, ...]
) -> str:
    """The table as Markdown: a row a system, means over its seeds; `OPTIONAL` columns where there is one."""
    extra = {key: label for key, label in OPTIONAL.items() if any(r.get(key) is not None for r in records)}
    head = ["system", "seeds", "mIoU", "deviation", "Dice loss", *extra.values()]
    head += ["parameters", "MACs", "seconds a picture", "minutes", "SEARCH-Net against it"]
    head += ["paper, protocol unknown"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for system in dict.fromkeys(record["system"] for record in records):
        rows = [record for record in records if record["system"] == system]
        scores = [row["miou"] for row in rows]
        deviation = f"{np.std(scores, ddof=1):.4f}" if len(rows) > 1 else ""
        cells = [
            System(system).title,
            str(len(rows)),
            f"{np.mean(scores):.4f}",
            deviation,
            _mean(rows, "dice_loss"),
            *(_mean(rows, key) for key in extra),
        ]
        cells += [
            f"{rows[0]['parameters'] / 1e6:.2f} M", f"{rows[0]['macs'] / 1e9:.2f} G",
            f"{np.median([row['seconds_per_picture'] for row in rows]):.3f}", _mean(rows, "minutes", 1),
        ]  # fmt: skip
        found = intervals.get(system)
        cells.append(
            "" if found is None else f"{found['difference']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]"
        )
        paper = PAPER.get(task, {}).get(system)
        cells.append("" if paper is None else f"loss {paper[0]}, mIoU {paper[1]} %")
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "IoU of each class:",
        "",
        "| system | " + " | ".join(classes) + " |",
        "|---" * (len(classes) + 1) + "|",
    ]
    for system in dict.fromkeys(record["system"] for record in records):
        rows = [record for record in records if record["system"] == system]
        cells = [_mean([row["iou"] for row in rows], name) for name in classes]
        lines.append(f"| {System(system).title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _mean(rows: list[dict[str, Any]], key: str, digits: int = 4) -> str:
    values = [row[key] for row in rows if row.get(key) is not None]
    return f"{np.mean(values):.{digits}f}" if values else "absent"


def intervals_of(records: list[dict[str, Any]], out: Path) -> dict[str, Any]:
    """SEARCH-Net's mIoU minus that of each other system, with its interval, over the seeds that both have."""

    def counts(system: str, seeds: list[int]) -> np.ndarray:
        return np.stack([np.load(out / f"{system}-seed{seed}" / COUNTS)["counts"] for seed in seeds])

    seeds: dict[str, set[int]] = {}
    for record in records:
        seeds.setdefault(record["system"], set()).add(record["seed"])
    found = {}
    for system, own in seeds.items():
        shared = sorted(own & seeds.get("searchnet", set()))
        if system != "searchnet" and shared:
            interval = paired_bootstrap(counts("searchnet", shared), counts(system, shared))
            found[system] = {
                **dataclasses.asdict(interval),
                "decided": interval.decided,
                "seeds": len(shared),
            }
    return found


def rows_of(
    args: argparse.Namespace, task: Task, shape: tuple[int, int], accelerator: Accelerator
) -> TableRows:
    """The rows of a table, checked and decoded once for all its trainings at `shape`; the test rows only for
    the process that scores."""
    main_process = accelerator.is_main_process
    data, revision = data_of(args, task)
    learning = load_rows(data, args.split, revision, task)
    if args.validation:
        validation = load_rows(data, args.validation, revision, task)
    else:
        learning, validation = hold_out(learning, args.hold_out)
    if validation is None:
        raise TaskError("rows to choose the epoch on are needed: --validation SPLIT or --hold-out 0.1")
    height, width = shape
    learned = Table(learning, task, (height * 3 // 2, width * 3 // 2), accelerator, args.workers)
    chosen = CheckedRows(validation, task, None, "validation rows", quiet=not main_process)
    if not main_process:
        return TableRows(learned, chosen)
    test = load_rows(data, args.test, revision, task)
    bordered = None
    if task.name == "pet" and args.border == "ignore":
        bordered = CheckedRows(test, tasks.pet("pet"), None, "test rows, border as pet")
    return TableRows(learned, chosen, CheckedRows(test, task, None, "test rows"), bordered)


def add_scoring_options(parser: argparse.ArgumentParser) -> None:
    """--validation, --hold-out and --test."""
    rows = parser.add_argument_group("rows to choose and to score on")
    rows.add_argument("--validation", help="split to choose the epoch on")
    rows.add_argument(
        "--hold-out", type=float, default=0.1, help="without --validation: this share of --split"
    )
    rows.add_argument("--test", default="test", help="split to score on")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("python -m training.compare", description=__doc__, formatter_class=Manual)
    top.add_argument("--table", choices=("pet", "camvid", "custom"), help="the task of the table")
    top.add_argument(
        "--show", type=Path, metavar="RESULTS", help="print the table of a folder, train nothing"
    )
    top.add_argument(
        "--into", type=Path, metavar="FILE", help="with --show: write it between the file's marks"
    )
    what = top.add_argument_group("systems")
    what.add_argument(
        "--systems", default=",".join(PAPER_SYSTEMS),
        help=f"also {', '.join(sorted({*BASELINES} - {*PAPER_SYSTEMS}))}, setr-naive, setr-mla; FPN@ENCODER",
    )  # fmt: skip
    what.add_argument("--genotype", default=str(SHIPPED), help="of the SEARCH-Net: a file or Hub id")
    what.add_argument("--seeds", type=int, default=1, help="trainings of each")
    what.add_argument(
        "--encoder-weights", choices=("imagenet",), help="begin encoders with these, downloaded"
    )
    add_data_options(top, split="train")
    add_scoring_options(top)
    group = add_training_options(top)
    group.add_argument(
        "--flip", action="store_true", help="also score the average with the mirrored picture, apart"
    )
    add_run_options(top, "unused: seeds are 0 to --seeds - 1", precisions=("no", "fp16", "bf16"), push=False)
    return top


def main(argv: list[str] | None = None) -> int:
    top = parser()
    given = top.parse_args(argv)
    if given.show:
        return show(given.show, given.into)
    args = parse(top, argv)
    if not args.table:
        top.error("say which table with --table pet, camvid or custom")
    if args.resume:  # a table grows: what is named now is added to what it began with
        more = given.systems.split(",") if _named(argv, "--systems") else []
        args.systems = ",".join(dict.fromkeys([*args.systems.split(","), *more]))
        args.seeds = max(args.seeds, given.seeds)
    args.task = args.table
    try:
        for name in args.systems.split(","):
            System(name)
    except ValueError as error:
        top.error(f"--systems: {error}")
    if args.seeds < 1:
        top.error(f"--seeds must be at least 1, got {args.seeds}")
    return perform(_run, args, argv, "training.compare")


def _named(argv: list[str] | None, option: str) -> bool:
    return any(word.startswith(option) for word in (sys.argv[1:] if argv is None else argv))


def _run(args: argparse.Namespace, accelerator: Accelerator, command: str) -> None:
    task, main_process = task_of(args), accelerator.is_main_process
    settings = retrain_settings(args)
    kept = args.out / "genotype.json"  # the search that wrote the first one may go on
    genotype: Genotype = genotype_of(str(kept) if kept.exists() else args.genotype)[0]
    rows = rows_of(args, task, settings.shape, accelerator)
    data, revision = data_of(args, task)
    if main_process and args.resume:  # so that the next --resume knows them too
        record = json.loads((args.out / SETTINGS).read_text())
        record["options"] |= {"systems": args.systems, "seeds": args.seeds}
        write_atomically(args.out / SETTINGS, json.dumps(record, indent=2) + "\n")
    recipe = recipe_of_run(args)
    record_settings(
        args, accelerator, command, settings=dataclasses.asdict(settings), recipe=dataclasses.asdict(recipe)
    )
    if main_process:
        write_atomically(kept, genotype.to_json())
    began = recorded(args.out, accelerator)
    protocol = {
        "task": task.name, "data": dataset_name(data), "revision": revision,
        "learned on": f"{args.split}, {len(rows.learning)} rows",
        "epoch chosen on": f"{args.validation or f'{args.hold_out} of it'}, {len(rows.validation)} rows",
        "scored on": f"{args.test}, at the size of the mask", "rule": task.note,
        "preset": args.preset, "recipe": args.recipe, "epochs": settings.epochs, "batch": settings.batch_size,
        "size": "{}x{}".format(*settings.shape),
        "encoder weights": args.encoder_weights or "none, from scratch", "genotype": genotype.id,
        "processes": began["processes"], "machine": began["machine"]["device"],
        "torch": began["machine"]["torch"],
    }  # fmt: skip
    systems = in_order(args.systems.split(","))
    runs = [(seed, name) for seed in range(args.seeds) for name in systems]
    failed: dict[str, str] = {}
    for seed, name in runs:
        system = System(name)
        accelerator.print(f"{system.title}, seed {seed}")
        build = functools.partial(system.build, settings, task, genotype, bool(args.encoder_weights))
        try:
            run_system(
                name, seed, build, settings, recipe, task, rows, args.out, accelerator, args.flip,
                60 * args.save_minutes,
            )  # fmt: skip
        except CannotBuild as error:  # an encoder that does not fit, or cannot be fetched
            accelerator.print(f"error: {system.title} cannot be built: {error}", file=sys.stderr)
            failed[name] = str(error)
        if main_process:
            write_report(results(runs, args.out), failed, protocol, began["command"], task, args.out)
    if main_process and rows.test is not None:
        records = results(runs, args.out)
        if records:
            draw_figures(records, task, rows.test, args.out)
        print((args.out / "table.md").read_text())
    if failed:
        raise TaskError(f"not in the table: {', '.join(System(name).title for name in failed)}, see above")


def in_order(names: list[str]) -> list[str]:
    """The paper's systems first, then the others as they were named."""
    first = [name for name in PAPER_SYSTEMS if name in names]
    return list(dict.fromkeys([*first, *names]))


def results(runs: list[tuple[int, str]], out: Path) -> list[dict[str, Any]]:
    """What is done of `runs`, (seed, system) each, in the order of the systems."""
    order = in_order([name for _, name in runs])
    paths = [
        out / f"{name}-seed{seed}" / RESULT
        for seed, name in sorted(runs, key=lambda run: order.index(run[1]))
    ]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def show(folder: Path, into: Path | None) -> int:
    """Print a table again from its table.json, or replace what stands between its marks in a file."""
    try:
        document = json.loads((folder / "table.json").read_text())
    except (OSError, ValueError) as error:
        print(f"error: no table in {folder}: {error}", file=sys.stderr)
        return 1
    task = document["protocol"]["task"]
    whole = table(document["trainings"], document["against searchnet"], task, ())
    text = whole.partition("\n\n")[0] + "\n"
    if into is None:
        print(text)
        return 0
    first, last = f"<!-- table {folder.name} -->", f"<!-- end of table {folder.name} -->"
    before, found, rest = into.read_text().partition(first)
    _, ended, after = rest.partition(last)
    if not found or not ended:
        print(f"error: {into} has no lines {first} and {last}", file=sys.stderr)
        return 1
    write_atomically(into, f"{before}{first}\n\n{text}\n{last}{after}")
    return 0


def write_report(
    records: list[dict[str, Any]], failed: dict[str, str], protocol: dict[str, Any], command: str, task: Task,
    out: Path,
) -> None:  # fmt: skip
    """table.json and table.md of the trainings so far, and of the systems that could not be built."""
    intervals = intervals_of(records, out)
    document = {
        "protocol": protocol,
        "command": command,
        "against searchnet": intervals,
        "not run": failed,
        "trainings": records,
    }
    write_atomically(out / "table.json", json.dumps(document, indent=2) + "\n")
    stated = ", ".join(f"{key} {value}" for key, value in protocol.items() if value is not None)
    text = (
        f"{table(records, intervals, task.name, task.classes)}\n"
        + "".join(f"{System(name).title} could not be run: {error}\n\n" for name, error in failed.items())
        + f"Protocol: {stated}.\n\n"
        "SEARCH-Net against it: difference of mIoU with the 95 % interval of a paired bootstrap over "
        "the test pictures, seeds held fixed. Minutes include the scoring of validation rows. The encoder "
        f"of a system stands in table.json.\n\nCommand: `{command}`\n"
    )
    write_atomically(out / "table.md", text)


if __name__ == "__main__":
    sys.exit(main())
