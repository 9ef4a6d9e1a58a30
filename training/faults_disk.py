"""Fill the disk under each file of a run, part of training.faults.

The limit is that of the kernel on the size of a file (RLIMIT_FSIZE), set while the file in question is being
written: to the process it is what a full disk is, in the midst of a write.
"""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import training.files
from training.faults import Tally, Trial, begin, ended, equal, result, words_of

SHARES = (0.0, 0.5, 0.99)
LINKS = ("checkpoint.previous.pt", "checkpoint.best.pt")  # take no room of their own
# written by the library into a folder that is then moved, together with the weights
TOGETHER = ("config.json", "genotype.json", "model.safetensors")


def fill_disks(trial: Trial) -> Tally:
    """Runs that find the disk full under one of their files, and go on when there is room again."""
    tally = Tally(f"{trial.what}, full disk")
    whole = trial.folder / f"{trial.what}-undisturbed"
    names = sorted(str(p.relative_to(whole)) for p in whole.rglob("*") if p.is_file())
    for name in (name for name in names if name not in LINKS):
        for share in SHARES:
            fault = _once(trial, name, int(share * (whole / name).stat().st_size), tally)
            if fault:
                tally.different.append(f"{name} at {share:.0%}: {fault}")
                print(f"{trial.what}, full disk, {tally.different[-1]}", file=sys.stderr)
    print(tally.line(), flush=True)
    return tally


def _once(trial: Trial, name: str, room: int, tally: Tally) -> str:
    """What is wrong with a run whose file `name` may have `room` bytes; empty when nothing is."""
    out, log = trial.folder / f"{trial.what}-full-{tally.runs}", trial.folder / f"{trial.what}-full.log"
    tally.runs, tally.kills = tally.runs + 1, tally.kills + 1
    log.unlink(missing_ok=True)
    words = words_of(trial.what, trial.data, trial.genotype, out, trial.epochs)
    status = ended(begin(trial.what, words, log, lambda: _limit(out, name, room)), 600)
    said = log.read_text(errors="replace")
    if status != 1 or "cannot write" not in said or "bytes are free" not in said:
        return f"ends with status {status} and says {said[-300:]!r}"
    if name not in TOGETHER and str(out / name) not in said:
        return f"says {said[-300:]!r}"
    again = words_of(trial.what, trial.data, trial.genotype, out, trial.epochs)
    status = ended(begin(trial.what, again, log), 600)
    if status != 0 or not equal(result(out), trial.wanted):
        return f"ends with status {status}, or otherwise than the undisturbed run, when there is room again"
    return ""


def _limit(out: Path, name: str, room: int) -> None:
    """In the child: whatever is written as `name` may have so many bytes."""
    plain, (soft, hard) = training.files.enough_room, resource.getrlimit(resource.RLIMIT_FSIZE)

    @contextlib.contextmanager
    def limited(path: Path, size: int | None = None) -> Iterator[None]:
        hit = path == out / name or (path == out and name in TOGETHER)
        with plain(path, size):
            if hit:
                resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
            try:
                yield
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    training.files.enough_room = limited
