"""Kill a small search and a small retraining again and again: do they end as if nothing had happened?

kill -9 at random moments, as often as --kills says, each time followed by --resume; then SIGTERM and SIGINT,
--signals times each; then a disk that is full when 0, 50 or 99 % of a file are written, for each file of the
run (--full-disk). Every run that gets to its end must have the same alphas, weights, optimiser states and
history as the undisturbed one, bit for bit; a signal must end it within 30 seconds with exit status 143 or
130, and a full disk with status 1 and a message that names the file.

--processes does something else: two processes of accelerate launch against one, and one of the two killed.

examples:
  python -m training.faults --kills 200 --signals 20 --full-disk
  python -m training.faults --processes

The exit status is 1 when anything differs. Works where processes fork (not on Windows).
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import training.retrain
import training.search
from searchseg.cost import count_macs
from searchseg.genotype import random_genotype
from training.checkpoint import load_checkpoint
from training.files import read_lines, write_atomically
from training.loop import CHECKPOINT
from training.options import Manual
from training.presets import PRESETS
from training.runs import SETTINGS

COMMANDS = {"search": training.search.main, "retrain": training.retrain.main}
ROWS, SIDE = 48, 40
PATIENCE = 30.0  # seconds from a signal to the end


@dataclass
class Tally:
    """What happened to the runs of a kind."""

    what: str
    kills: int = 0
    runs: int = 0
    different: list[str] = field(default_factory=list)
    slowest: float = 0.0  # seconds from a signal to the end

    def line(self) -> str:
        told = f"{self.what}: {self.kills} interruptions of {self.runs} runs, {len(self.different)} differ"
        return told + (f", slowest end after a signal {self.slowest:.1f} s" if self.slowest else "")


def warm() -> None:
    """Import and count what runs need on their way, so that their forks need not."""
    for name in ("datasets", "matplotlib.backends.backend_agg", "timm.utils", "torchmetrics.classification"):
        importlib.import_module(name)
    count_macs(*training.search.derived_shape(PRESETS["smoke"].search, PRESETS["smoke"].retrain, 2))


def draw_rows(folder: Path) -> Path:
    """A dataset of boxes on noise, with their masks, as parquet."""
    import datasets

    numbers, rows = np.random.default_rng(0), []
    for _ in range(ROWS):
        pixels, mask = numbers.integers(0, 120, (SIDE, SIDE, 3), np.uint8), np.zeros((SIDE, SIDE), np.uint8)
        left, top = numbers.integers(0, SIDE // 2, 2)
        box = slice(top, top + SIDE // 2), slice(left, left + SIDE // 2)
        pixels[box], mask[box] = 220, 1
        rows.append({"image": Image.fromarray(pixels), "mask": Image.fromarray(mask)})
    path = folder / "data" / "train-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    datasets.Dataset.from_list(rows).to_parquet(path)
    return folder


def words_of(what: str, data: Path, genotype: Path, out: Path, epochs: int) -> list[str]:
    """The command line that begins a run, or continues it where it has begun."""
    if (out / SETTINGS).is_file():
        return ["--resume", str(out)]
    words = ["--task", "custom", "--classes", "ground,box", "--data", str(data), "--preset", "smoke", "--cpu"]
    more = ["--genotype", str(genotype)] if what == "retrain" else []
    return [*words, *more, "--epochs", str(epochs), "--save-minutes", "0.002", "--out", str(out)]


def begin(what: str, words: list[str], log: Path, prepare: Callable[[], None] | None = None) -> int:
    """Start a run in a child that has all modules already; returns its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with log.open("ab", buffering=0) as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
        torch.set_num_threads(1)
        if prepare:
            prepare()
        status = COMMANDS[what](words)
    except KeyboardInterrupt:  # before the command took over: as Python itself ends then
        status = 128 + signal.SIGINT
    finally:
        os._exit(status)


def ended(child: int, seconds: float) -> int | None:
    """Exit status of a child that ends within so many seconds (negative: by a signal), else None."""
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.005)


def result(out: Path, state: dict[str, Any] | None = None) -> list[Any]:
    """Everything that an end is judged by, but for times; `state`: instead of the one saved."""
    history = [{**line, "seconds": 0} for line in read_lines(out / "history.jsonl")]
    records = [(out / name).read_text() for name in ("search/alpha.jsonl",) if (out / name).exists()]
    weights = [path.read_bytes() for path in sorted(out.glob("*.safetensors"))]
    state = load_checkpoint(out / CHECKPOINT) if state is None else state
    return [history, records, weights, list(_leaves(state))]


def _leaves(value: Any) -> Iterator[Any]:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else None
    if parts is None:
        yield value
    else:
        yield from itertools.chain.from_iterable(map(_leaves, parts))


def equal(one: list[Any], other: list[Any]) -> bool:
    """Whether two results are the same, bit for bit."""
    if one[:3] != other[:3] or len(one[3]) != len(other[3]):
        return False
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(one[3], other[3], strict=True)
    )


class Trial:
    """Runs of one kind on the same rows, the first of them undisturbed."""

    def __init__(self, what: str, folder: Path, epochs: int, seed: int) -> None:
        self.what, self.folder, self.epochs, self.random = what, folder, epochs, np.random.default_rng(seed)
        self.data, self.genotype = folder / "rows", folder / "genotype.json"
        if not self.data.exists():
            draw_rows(self.data)
            write_atomically(self.genotype, random_genotype(2, seed=0).to_json())
        began = time.monotonic()
        if self._whole(folder / f"{what}-undisturbed") != 0:
            raise SystemExit((folder / f"{what}.log").read_text()[-2000:])
        self.seconds = time.monotonic() - began
        self.wanted = result(folder / f"{what}-undisturbed")

    def _begin(self, out: Path) -> int:
        words = words_of(self.what, self.data, self.genotype, out, self.epochs)
        return begin(self.what, words, self.folder / f"{self.what}.log")

    def _whole(self, out: Path) -> int | None:
        return ended(self._begin(out), 3600)

    def disturb(self, signum: int, times: int) -> Tally:
        """Runs that are sent a signal at random moments until it has hit `times` times."""
        tally = Tally(f"{self.what}, {signal.Signals(signum).name}")
        while tally.kills < times:
            out = self.folder / f"{self.what}-{signum}-{tally.runs}"
            tally.runs += 1
            while (fault := self._once(out, signum, tally, times)) is None:
                pass
            if fault or not equal(result(out), self.wanted):
                tally.different.append(fault or f"{out.name} ends otherwise than the undisturbed run")
                print(tally.different[-1], file=sys.stderr)
            print(tally.line(), flush=True)
        return tally

    def _once(self, out: Path, signum: int, tally: Tally, times: int) -> str | None:
        """Start or continue once: "" when the run came to its end, a sentence for a fault, else None."""
        child = self._begin(out)
        wait = 3600.0 if tally.kills >= times else self.random.exponential(self.seconds / 4)
        status = ended(child, wait)
        if status is None:
            os.kill(child, signum)
            began = time.monotonic()
            status = ended(child, PATIENCE)
            if status is None:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return f"{out.name} did not end within {PATIENCE:.0f} s"
            if status == 0:  # it got to its end meanwhile
                return ""
            tally.kills += 1
            if signum != signal.SIGKILL:
                tally.slowest = max(tally.slowest, time.monotonic() - began)
            # before the loop begins there is nothing to save, and the signal ends the process itself
            good = {-signum, 128 + signum} if signum != signal.SIGKILL else {-signum}
            return None if status in good else f"{out.name} ended with status {status}"
        return "" if status == 0 else f"{out.name} ended with status {status}, see {self.what}.log"


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("python -m training.faults", description=__doc__, formatter_class=Manual)
    top.add_argument("--what", choices=(*COMMANDS, "both"), default="both", help="what is interrupted")
    top.add_argument("--kills", type=int, default=200, help="kill -9 of each")
    top.add_argument("--signals", type=int, default=20, help="SIGTERM and SIGINT of each")
    top.add_argument("--full-disk", action="store_true", help="also fill the disk under each file of a run")
    top.add_argument("--processes", action="store_true", help="two processes instead of all this")
    top.add_argument("--epochs", type=int, default=4, help="length of the runs")
    top.add_argument("--seed", type=int, default=0, help="of the moments")
    top.add_argument("--folder", type=Path, help="where to leave the runs (default: nowhere)")
    return top


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    tallies = []
    warm()
    with tempfile.TemporaryDirectory() as name:
        folder = args.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        if args.processes:
            from training.faults_processes import compare_processes

            return compare_processes(folder, tuple(COMMANDS) if args.what == "both" else (args.what,))
        for what in COMMANDS if args.what == "both" else (args.what,):
            trial = Trial(what, folder, args.epochs, args.seed)
            print(f"{what}: an undisturbed run takes {trial.seconds:.1f} s", flush=True)
            for signum, times in (
                (signal.SIGKILL, args.kills), (signal.SIGTERM, args.signals), (signal.SIGINT, args.signals),
            ):  # fmt: skip
                if times:
                    tallies.append(trial.disturb(signum, times))
            if args.full_disk:
                from training.faults_disk import fill_disks

                tallies.append(fill_disks(trial))
    print("\n".join(tally.line() for tally in tallies))
    return int(any(tally.different for tally in tallies))


if __name__ == "__main__":
    sys.exit(main())
