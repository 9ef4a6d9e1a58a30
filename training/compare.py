"""Hold found genotypes against random ones: retrain all of them by one recipe, from several seeds.

A search is worth its cost when its networks beat networks drawn at random from the same space (Li &
Talwalkar, arXiv 1902.07638; Yang et al., arXiv 1912.12522). Every network is trained on the same rows,
without those that --hold-out keeps, and scored on these. The test split is read once, after all trainings,
and only with --test.

example:
  python -m training.compare --searched runs/a/genotype.json --searched runs/b/genotype.json --random 3
    --seeds 2 --data FOLDER --preset lite --epochs 15 --size 112 --out runs/compare
  python -m training.compare --resume runs/compare

what it leaves in --out: compare.json (every score with the protocol), compare.md (the table), and a run
folder for every training. Trainings that are done are not repeated, so --resume takes more of --searched.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from searchseg.cost import macs, parameters
from searchseg.genotype import Genotype
from searchseg.pretrained import from_pretrained
from searchseg.task import Task, TaskError
from training import table
from training.evaluate import evaluate_rows
from training.files import read_lines, write_atomically
from training.networks import read_genotype, searchnet
from training.options import Manual, add_data_options, data_of, dataset_name, hardware_of, machine, task_of
from training.presets import RECIPES, RetrainSettings
from training.retrain_options import add_training_options, retrain_settings
from training.rows import CheckedRows, hold_out, load_rows
from training.runs import SETTINGS, add_run_options, parse, perform, record_settings
from training.sampling import draw_genotypes
from training.trainer import retrain

RESULT = "result.json"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A genotype to train: `kind` is "searched" or "random", `name` what the table calls it."""

    kind: str
    name: str
    genotype: Genotype


def candidates(
    searched: list[Path], random: int, within: float | None, seed: int, settings: RetrainSettings, task: Task
) -> list[Candidate]:
    """The searched genotypes, then `random` drawn ones of equal nodes, near the first one's size."""
    found = [Candidate("searched", _name(path), read_genotype(path)) for path in searched]
    first = found[0].genotype

    def cost(genotype: Genotype) -> int:
        with torch.device("meta"):
            return parameters(searchnet(genotype, settings, task))

    wanted = None if within is None else (cost, cost(first), within)
    drawn = draw_genotypes(first.nodes, random, seed, wanted)
    return found + [Candidate("random", f"random {i + 1}", genotype) for i, genotype in enumerate(drawn)]


def compare(
    entries: list[Candidate], seeds: int, settings: RetrainSettings, recipe_name: str, task: Task, rows: Any,
    share: float, out: Path, accelerator: Accelerator, test: Any = None, workers: int = 0,
    report: Callable[[list[dict[str, Any]]], None] = lambda records: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Train every candidate from the seeds 0..`seeds` - 1; one record a training, also in its run folder.

    `report` gets the records so far after every training.
    """
    learning, validation = hold_out(rows, share)
    if validation is None:
        raise TaskError("a comparison needs rows that no network was trained on: --hold-out 0.2")
    quiet = not accelerator.is_main_process
    checked = CheckedRows(validation, task, None, "held-out rows", quiet)
    records = []
    for seed in range(seeds):
        for entry in entries:
            folder = out / f"{entry.genotype.id}-seed{seed}"
            if not (folder / RESULT).exists():
                accelerator.print(f"{entry.name}, genotype {entry.genotype.id}, seed {seed}")
                torch.manual_seed(seed)
                model = searchnet(entry.genotype, settings, task)
                recipe = RECIPES[recipe_name]
                kept = retrain(
                    model, settings, recipe, task, learning, folder, accelerator, seed=seed, workers=workers
                )
                scores = evaluate_rows(kept, checked, task, accelerator.device, quiet=True)
                record = {
                    "genotype": entry.genotype.id,
                    "seed": seed,
                    "miou": scores.miou,
                    "dice_loss": scores.dice_loss,
                    "parameters": parameters(kept),
                    "macs": macs(kept, (1, 3, *settings.shape)),
                    "minutes": sum(r["seconds"] for r in read_lines(folder / "history.jsonl")) / 60,
                    "machine": machine(),
                    "processes": accelerator.num_processes,
                }
                if accelerator.is_main_process:
                    write_atomically(folder / RESULT, json.dumps(record, indent=2) + "\n")
                accelerator.wait_for_everyone()
            record = json.loads((folder / RESULT).read_text())
            records.append({"kind": entry.kind, "name": entry.name, **record})
            report(records)
    if test is not None:
        _score_test(records, CheckedRows(test, task, None, "test rows", quiet), task, out, accelerator)
    return records


def _score_test(
    records: list[dict[str, Any]], rows: CheckedRows, task: Task, out: Path, accelerator: Accelerator
) -> None:
    for record in records:
        model = from_pretrained(out / f"{record['genotype']}-seed{record['seed']}", device=accelerator.device)
        record["test_miou"] = evaluate_rows(model, rows, task, accelerator.device, quiet=True).miou


def summary(records: list[dict[str, Any]], measure: str = "miou") -> list[dict[str, Any]]:
    """Mean and deviation over the seeds for every genotype, and for all random ones together.

    `improvement` is 100 * (searched - random) / random, in percent of the random genotypes' mean.
    """
    groups: dict[tuple[str, str | None], list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["kind"], record["genotype"]), []).append(record)
    drawn = [record for record in records if record["kind"] == "random"]
    if drawn:
        groups["all", None] = drawn
    base = statistics.fmean(r[measure] for r in drawn) if drawn else None
    rows = []
    for (kind, genotype), group in groups.items():
        values = [record[measure] for record in group]
        mean = statistics.fmean(values)
        rows.append(
            {
                "name": "random, all" if kind == "all" else group[0]["name"],
                "genotype": genotype,
                "trainings": len(values),
                "mean": mean,
                "deviation": statistics.stdev(values) if len(values) > 1 else None,
                "improvement": 100 * (mean - base) / base if base and kind == "searched" else None,
                "parameters": round(statistics.fmean(r["parameters"] for r in group)),
                "macs": round(statistics.fmean(r["macs"] for r in group)),
            }
        )
    return rows


def markdown(records: list[dict[str, Any]], protocol: dict[str, Any]) -> str:
    """The table of `summary` with its protocol."""
    tested = all("test_miou" in record for record in records)
    head = ["genotype", "id", "trainings", "mIoU", "deviation", "against random", "parameters", "MACs"]
    lines = ["| " + " | ".join(head + ["test mIoU"] * tested) + " |", "|---" * (len(head) + tested) + "|"]
    test = {(r["name"], r["genotype"]): r for r in summary(records, "test_miou")} if tested else {}
    for row in sorted(summary(records), key=lambda row: -row["mean"]):
        cells = [
            row["name"], f"`{row['genotype']}`" if row["genotype"] else "", str(row["trainings"]),
            f"{row['mean']:.4f}", _number(row["deviation"], ".4f"), _number(row["improvement"], "+.2f", " %"),
            f"{row['parameters'] / 1e6:.2f} M", f"{row['macs'] / 1e9:.2f} G",
        ]  # fmt: skip
        if tested:
            cells.append(f"{test[row['name'], row['genotype']]['mean']:.4f}")
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "Protocol: " + ", ".join(f"{key} {value}" for key, value in protocol.items()) + "."]
    return "\n".join(lines) + "\n"


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"


def _name(path: Path) -> str:
    return path.parent.name if path.name == "genotype.json" and path.parent.name else path.stem


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("python -m training.compare", description=__doc__, formatter_class=Manual)
    what = top.add_argument_group("genotypes")
    what.add_argument(
        "--searched", action="append", default=[], help="genotype.json of a search; may be repeated"
    )
    what.add_argument("--random", type=int, default=3, help="how many genotypes to draw uniformly")
    what.add_argument(
        "--within", type=float, help="draw only random ones this near to the first one's parameters (0.15)"
    )
    what.add_argument("--seeds", type=int, default=2, help="trainings of every genotype")
    add_data_options(top, split="train")
    group = add_training_options(top)
    group.add_argument("--hold-out", type=float, default=0.2, help="share of the rows to score on")
    group.add_argument("--test", help="split to score once at the end, for the report")
    add_run_options(top, "random genotypes", precisions=("no", "fp16", "bf16"), push=False)
    return top


def _is_table(words: list[str]) -> bool:
    """Whether the arguments ask for a table, or continue one."""
    if any(word.split("=")[0] in ("--table", "--show") for word in words):
        return True
    settings = Path(words[words.index("--resume") + 1], SETTINGS) if "--resume" in words[:-1] else None
    return bool(settings and settings.is_file() and "table" in json.loads(settings.read_text())["options"])


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    if _is_table(words):
        return table.main(argv)
    top = parser()
    given = top.parse_args(argv)
    args = parse(top, argv)
    if args.resume:  # a comparison grows: these two may differ from those it began with
        args.searched = [*args.searched, *given.searched]
        args.test = given.test or args.test
    if not args.searched:
        top.error("give --searched G.json, the genotype of a search")
    return perform(_run, args, argv, "training.compare")


def _run(args: argparse.Namespace, accelerator: Accelerator, command: str) -> None:
    task = task_of(args)
    data, revision = data_of(args, task)
    settings = retrain_settings(args)
    searched = [Path(path) for path in dict.fromkeys(args.searched)]
    entries = candidates(searched, args.random, args.within, args.seed, settings, task)
    rows = load_rows(data, args.split, revision, task)
    test = load_rows(data, args.test, revision, task) if args.test else None
    if args.resume and accelerator.is_main_process:  # so that the next --resume knows them too
        record = json.loads((args.out / SETTINGS).read_text())
        record["options"] |= {"searched": args.searched, "test": args.test}
        write_atomically(args.out / SETTINGS, json.dumps(record, indent=2) + "\n")
    record_settings(args, accelerator, command, settings=dataclasses.asdict(settings))
    within = "no limit" if args.within is None else args.within
    protocol = {
        "data": dataset_name(data), "split": args.split, "rows": len(rows), "held out": args.hold_out,
        "preset": args.preset, "recipe": args.recipe, "epochs": settings.epochs, "size": settings.size,
        "retraining seeds": args.seeds, "rule": task.note, "random within": within,
    }  # fmt: skip

    def report(records: list[dict[str, Any]]) -> None:
        if accelerator.is_main_process:
            protocol["hardware"] = hardware_of(
                (f"{record['name']}, seed {record['seed']}", record) for record in records
            )
            document = {"protocol": protocol, "command": command, "summary": summary(records)}
            text = json.dumps({**document, "trainings": records}, indent=2) + "\n"
            write_atomically(args.out / "compare.json", text)
            write_atomically(args.out / "compare.md", markdown(records, protocol))

    records = compare(
        entries, args.seeds, settings, args.recipe, task, rows, args.hold_out, args.out, accelerator, test,
        args.workers, report,
    )  # fmt: skip
    report(records)  # which adds the hardware to the protocol
    accelerator.print(markdown(records, protocol))


if __name__ == "__main__":
    sys.exit(main())
