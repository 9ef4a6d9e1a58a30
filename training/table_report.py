"""The table of systems as Markdown and JSON, from the records of its trainings."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from searchseg.task import Task
from training.bootstrap import paired_bootstrap
from training.files import write_atomically
from training.options import hardware_of
from training.systems import System
from training.table_scores import COUNTS

# Zhu & Ma 2023, tables of the experiments: (Dice loss, mIoU in percent); their protocol is not stated
PAPER = {
    "pet": {
        "fpn": (0.39, 74.3), "unet": (0.41, 81.2), "deeplabv3": (0.13, 92.7), "unetplusplus": (0.11, 97.3),
        "setr": (0.13, 95.6), "searchnet": (0.08, 95.3),
    },
    "camvid": {"unet": (0.23, 46.2), "searchnet": (0.14, 66.7)},
}  # fmt: skip
# columns that only some tables have: key in metrics.json, and what a reader calls it
OPTIONAL = {
    "miou_averaged_with_mirrored": "mIoU, averaged with the mirrored picture",
    "foreground_iou_border_as_pet": "pet IoU, border as pet",
    "gpu_seconds_per_picture": "seconds a picture, GPU",
}


def table(
    records: list[dict[str, Any]], intervals: Mapping[str, Any], task: str, classes: tuple[str, ...],
    seconds: Mapping[str, float],
) -> str:  # fmt: skip
    """The table as Markdown: a row a system, means over its seeds; `OPTIONAL` columns where there is one.

    `seconds` a picture as measured in turns; where a system is not in it, those of its test rows.
    """
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
            f"{seconds.get(system, np.median([row['seconds_per_picture'] for row in rows])):.3f}",
            f"{np.mean([row['training']['minutes'] for row in rows]):.1f}",
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


def _trainings(records: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    several = any(record["seed"] for record in records)
    for record in records:
        seed = f" seed {record['seed']}" if several else ""
        yield f"{System(record['system']).title}{seed}", record["training"]


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


def _how_timed(turns: Mapping[str, Any] | None) -> str:
    if not turns:
        return ""
    return (
        f" Seconds a picture: medians of {turns['runs']} calls of Segmenter, the systems in turns, "
        f"{turns['threads']} thread(s), one picture of {turns['picture']} pixels."
    )


def show(folder: Path, into: Path | None) -> int:
    """Print a table again from its table.json, or replace what stands between its marks in a file."""
    try:
        document = json.loads((folder / "table.json").read_text())
    except (OSError, ValueError) as error:
        print(f"error: no table in {folder}: {error}", file=sys.stderr)
        return 1
    task = document["protocol"]["task"]
    seconds = document.get("seconds in turns", {}).get("systems", {})
    whole = table(document["trainings"], document["against searchnet"], task, (), seconds)
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
    out: Path, turns: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """table.json and table.md of the trainings so far, and of the systems that could not be built.

    `turns`: what `seconds_in_turns` found.
    """
    intervals = intervals_of(records, out)
    protocol = {**protocol, "hardware": hardware_of(_trainings(records))}
    document = {
        "protocol": protocol,
        "command": command,
        "against searchnet": intervals,
        "not run": failed,
        **({"seconds in turns": turns} if turns else {}),
        "trainings": records,
    }
    write_atomically(out / "table.json", json.dumps(document, indent=2) + "\n")
    stated = ", ".join(f"{key} {value}" for key, value in protocol.items() if value is not None)
    text = (
        f"{table(records, intervals, task.name, task.classes, (turns or {}).get('systems', {}))}\n"
        + "".join(f"{System(name).title} could not be run: {error}\n\n" for name, error in failed.items())
        + f"Protocol: {stated}.\n\n"
        "SEARCH-Net against it: difference of mIoU with the 95 % interval of a paired bootstrap over "
        "the test pictures, seeds held fixed. Minutes include the scoring of validation rows. The encoder "
        f"of a system stands in table.json.{_how_timed(turns)}\n\nCommand: `{command}`\n"
    )
    write_atomically(out / "table.md", text)
