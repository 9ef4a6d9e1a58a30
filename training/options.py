"""Command-line options that several commands share, and what they mean."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import searchseg
from searchseg import task as tasks
from searchseg.task import Task, TaskError


class Manual(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the layout of the description and names the default of every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        nothing = action.default is None or action.default is False or action.default == []
        return action.help if nothing else super()._get_help_string(action)


def add_data_options(parser: argparse.ArgumentParser, split: str) -> None:
    """--task, --data, --revision, --split and what a user's own data needs."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--task", choices=("pet", "camvid", "custom"), default="pet", help="what the columns mean"
    )
    group.add_argument("--data", help="folder with a datasets repository, or Hub id (pet knows its own)")
    group.add_argument("--revision", help="commit of the Hub dataset (pet knows its own)")
    group.add_argument("--split", default=split, help="split, or several joined by +")
    group.add_argument(
        "--border", choices=("ignore", "pet", "class"), default="ignore", help="pet: the trimap's border"
    )
    group.add_argument("--image-column", default="image", help="custom: column of the pictures")
    group.add_argument(
        "--mask-column", default="mask", help="custom: column of the masks (value i = class i)"
    )
    group.add_argument("--classes", help="custom: names of the classes, a,b,c or a text file with one a line")
    group.add_argument("--ignore-value", type=int, help="custom: mask value that counts for nothing")


def task_of(args: argparse.Namespace) -> Task:
    """The task that the options describe; TaskError when a custom task has no classes."""
    if args.task == "pet":
        return tasks.pet(args.border)
    if args.task == "camvid":
        return tasks.camvid()
    if not args.classes:
        raise TaskError("--task custom needs --classes a,b,c or --classes names.txt")
    path = Path(args.classes)
    names = path.read_text().splitlines() if path.is_file() else args.classes.split(",")
    return tasks.custom(
        [name.strip() for name in names if name.strip()],
        image_column=args.image_column,
        mask_column=args.mask_column,
        ignore_value=args.ignore_value,
    )


def picture_size(text: str) -> int | tuple[int, int]:
    """ "160" or "HEIGHTxWIDTH", "144x192"; for argparse."""
    sides = text.lower().split("x")
    if not 1 <= len(sides) <= 2 or not all(side.isdecimal() and 16 <= int(side) <= 4096 for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r}: wanted is a side such as 160, or 144x192, 16 to 4096")
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def data_of(args: argparse.Namespace, task: Task) -> tuple[str, str | None]:
    """Dataset and revision: as given, else the ones the task knows."""
    if args.data:
        return args.data, args.revision
    if task.dataset is None:
        raise TaskError(f"task {task.name} has no dataset of its own: give a folder or a Hub id with --data")
    return task.dataset, args.revision or task.revision


def dataset_name(data: str) -> str:
    """The name to put on record: a Hub id as it is, of a folder only its last part (paths stay private)."""
    return f"folder {Path(data).resolve().name}" if os.path.isdir(data) else data


def machine() -> dict[str, Any]:
    """Processor or GPU, cores and versions, for the protocol of a run."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "device": gpu or processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "searchseg": searchseg.__version__,
    }


def hardware_of(trainings: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
    """What finished the trainings, from their names and records with `machine` and `processes`; with the
    names of those of each kind where they differ, as those of a table that grew elsewhere do."""
    found: dict[str, list[str]] = {}
    for name, training in trainings:
        place = "not on record"
        if "machine" in training:
            about, count = training["machine"], training["processes"]
            place = f"{count} process{'es' * (count > 1)} of {about['threads']} thread"
            place += f"{'s' * (about['threads'] > 1)} on {about['device']}, torch {about['torch']}"
        found.setdefault(place, []).append(name)
    if len(found) < 2:
        return next(iter(found), "nothing was trained")
    return "; ".join(f"{place} ({', '.join(names)})" for place, names in found.items())


def command_line(module: str, args: list[str] | None) -> str:
    """The command as one would type it, with folders shortened to their names."""
    words = sys.argv[1:] if args is None else args
    return shlex.join(["python", "-m", module, *words])


def processor() -> str:
    """Name of the processor and number of its cores."""
    if os.path.exists("/proc/cpuinfo"):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} cores"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
