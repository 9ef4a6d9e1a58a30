"""Two processes of accelerate launch against one, and one of the two killed: part of training.faults."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from searchseg.genotype import Genotype, random_genotype
from training.faults import draw_rows, words_of
from training.files import read_lines, write_atomically

TOLERANCE = 1e-4  # of the losses after an epoch, relative
PATIENCE = 60.0  # seconds from a death to the end of the others


def compare_processes(folder: Path, kinds: tuple[str, ...]) -> int:
    """1 when two processes learn something else than one, or do not end together; prints the figures."""
    data, genotype, bad = folder / "rows", folder / "genotype.json", 0
    if not data.exists():
        draw_rows(data)
        write_atomically(genotype, random_genotype(2, seed=0).to_json())
    for what in kinds:
        outs = {count: folder / f"{what}-{count}" for count in (1, 2)}
        for count, out in outs.items():
            words = [*words_of(what, data, genotype, out, 1), "--sync-batch-norm"]
            if subprocess.run(launch(what, words, count), capture_output=True).returncode:
                return 1
        (one,), (two,) = (read_lines(out / "history.jsonl") for out in outs.values())
        losses = [key for key in one if key.endswith("_loss")]
        apart = max(abs(two[key] / one[key] - 1) for key in losses)
        told = f"{what}: losses of two processes and of one differ by {apart:.1e} after an epoch"
        if what == "search":
            found = [Genotype.from_json((out / "genotype.json").read_text()).id for out in outs.values()]
            told += f", genotypes {found[0]} and {found[1]}"
            bad += found[0] != found[1]
        print(told, flush=True)
        bad += apart > TOLERANCE
        bad += _one_dies(what, [*words_of(what, data, genotype, folder / f"{what}-dies", 40)], folder)
    return int(bad > 0)


def launch(what: str, words: list[str], count: int) -> list[str]:
    """The command line for so many processes."""
    if count == 1:
        return [sys.executable, "-m", f"training.{what}", *words]
    several = ["--multi_gpu", "--num_processes", str(count), "--main_process_port", "0"]
    return [sys.executable, "-m", "accelerate.commands.launch", *several, "-m", f"training.{what}", *words]


def _one_dies(what: str, words: list[str], folder: Path) -> int:
    """Kill the second of two processes after an epoch; 1 unless the other ends in time and says why."""
    out, log = folder / f"{what}-dies", folder / f"{what}-dies.log"
    with log.open("wb") as file:
        run = subprocess.Popen(launch(what, words, 2), stdout=file, stderr=file)
        while not read_lines(out / "history.jsonl") and run.poll() is None:
            time.sleep(0.1)
        victim = max(_children(run.pid))
        os.kill(victim, signal.SIGKILL)
        began = time.monotonic()
        try:
            status = run.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            run.kill()
            status = None
    seconds, said = time.monotonic() - began, log.read_text(errors="replace")
    told = "is gone; continue, with any number of processes" in said
    again = subprocess.Popen(launch(what, ["--resume", str(out)], 1), stderr=subprocess.DEVNULL)
    done = len(read_lines(out / "history.jsonl"))
    while again.poll() is None and len(read_lines(out / "history.jsonl")) == done:
        time.sleep(0.1)
    again.terminate()
    goes_on = again.wait(PATIENCE) in (0, 128 + signal.SIGTERM)
    words = f"{'with' if told else 'without'} a message", "goes" if goes_on else "does not go"
    print(
        f"{what}: one of two processes killed: the launcher ends with status {status} after {seconds:.1f} s, "
        f"{words[0]}; one process {words[1]} on from epoch {done}",
        flush=True,
    )
    return int(not (status and told and goes_on and seconds < PATIENCE))


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
