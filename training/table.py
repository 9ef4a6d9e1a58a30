"""Train and score the systems of the paper by one recipe, and write the table and its figures.

Same rows, size, augmentation, epochs, recipe and seeds for all; the epoch of each training is chosen by its
mIoU on validation rows, the test rows are read once for each training. --resume continues after a stop and
takes more --systems or --seeds: trainings that are done are kept.

examples:
  python -m training.compare --table pet --data DATA --split train+train_extra --out results/pet
  python -m training.compare --table camvid --data DATA --validation validation --systems searchnet,unet
    --seeds 2 --out results/camvid
  python -m training.compare --resume results/camvid --systems setr-mla,segformer,fpn@tu-efficientnet_lite0

what it leaves in --out: SYSTEM-seedS/ (run folders with metrics.json and the confusion counts of every test
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

from accelerate import Accelerator

from searchseg import task as tasks
from searchseg.baselines import BASELINES
from searchseg.genotype import Genotype
from searchseg.task import Task, TaskError
from training.files import write_atomically
from training.networks import genotype_of
from training.options import Manual, add_data_options, data_of, dataset_name, task_of
from training.retrain_options import add_training_options, recipe_of_run, retrain_settings
from training.rows import CheckedRows, hold_out, load_rows
from training.runs import SETTINGS, add_run_options, parse, perform, record_settings, recorded
from training.source import Table
from training.systems import PAPER_SYSTEMS, RESULT, CannotBuild, System, run_system
from training.table_figures import draw_figures
from training.table_report import show, write_report
from training.table_scores import Origin, TableRows, seconds_in_turns

SHIPPED = Path(__file__).resolve().parent.parent / "hub" / "models" / "searchnet-pet" / "genotype.json"


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
        help=f"also {', '.join(sorted({*BASELINES} - {*PAPER_SYSTEMS}))}, setr-naive, setr-mla, unet-WIDTH; "
        "fpn@ENCODER",
    )  # fmt: skip
    what.add_argument("--genotype", help="of the SEARCH-Net: a file or Hub id (default: the shipped one)")
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
    genotype: Genotype = genotype_of(str(kept if kept.exists() else args.genotype or SHIPPED))[0]
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
    }  # fmt: skip
    origin = Origin(dataset_name(data), revision, args.test, began)
    systems = in_order(args.systems.split(","))
    runs = [(seed, name) for seed in range(args.seeds) for name in systems]
    failed: dict[str, str] = {}
    for seed, name in runs:
        system = System(name)
        accelerator.print(f"{system.title}, seed {seed}")
        build = functools.partial(system.build, settings, task, genotype, bool(args.encoder_weights))
        try:
            run_system(
                name, seed, build, settings, recipe, task, rows, origin, args.out, accelerator, args.flip,
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
            built = [name for name in systems if name not in failed]
            networks = {name: System(name).build(settings, task, genotype) for name in built}
            turns = seconds_in_turns(networks, rows.test)
            write_report(records, failed, protocol, began["command"], task, args.out, turns)
            draw_figures(records, task, rows.test, args.out, turns["systems"])
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


if __name__ == "__main__":
    sys.exit(main())
