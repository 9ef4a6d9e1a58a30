"""What a search step needs in memory, and what each way to need less saves.

Every combination of partial channels, parts of a batch and recomputed cells runs in a process of its own,
which is stopped as soon as it goes over the limit. On a CPU the figure is the largest resident memory of
that process, libraries included; on a GPU what torch had allocated there at most.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from searchseg.network import USpace
from training.darts import Darts
from training.files import write_atomically
from training.options import machine
from training.presets import PRESETS, Memory, SearchMethod
from training.timing import between_marks

GB = 1e9
POLL = 0.02  # seconds between looks at a child
SPARE = 0.7  # GB that must stay free for the rest of the machine


def add_memory_measurements(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m training.benchmark memory`."""
    parser.add_argument("--preset", choices=tuple(PRESETS), default="paper", help="widths and nodes")
    parser.add_argument("--batch", type=int, help="pictures a step, instead of the preset's")
    parser.add_argument("--size", type=int, help="side of the pictures, instead of the preset's, pixels")
    parser.add_argument("--partial", default="1,4", help="values of --partial to measure")
    parser.add_argument("--accumulate", default="1,2,8", help="values of --accumulate to measure")
    parser.add_argument("--recompute", default="no,yes", help="without, with --checkpoint-activations")
    parser.add_argument("--limit", type=float, default=16.0, help="GB at which a process is stopped")
    parser.add_argument("--cpu", action="store_true", help="stay on the CPU even where there is a GPU")
    parser.add_argument("--json", type=Path, help="file for the figures; those it has are not measured again")
    parser.add_argument("--into", type=Path, help="document that gets all figures of --json, between marks")
    parser.add_argument("--only", help=argparse.SUPPRESS)


def benchmark_memory(args: argparse.Namespace) -> None:
    """Peak memory of a search step for each combination of what saves memory."""
    settings = PRESETS[args.preset].search
    args.batch, args.size = args.batch or settings.batch_size, args.size or settings.size
    if args.only:  # the child that is measured
        partial, parts, recompute = json.loads(args.only)
        print(json.dumps(_step(args, partial, Memory(parts, recompute))))
        return
    known: dict[str, Any] = {"steps": [], "machine": machine()}
    if args.json and args.json.exists():
        known = json.loads(args.json.read_text())
    print(f"search step, preset {args.preset}, widths {settings.widths}, {settings.nodes} nodes, "
          f"batch {args.batch}, {args.size} px, stopped over {args.limit:g} GB")  # fmt: skip
    print(f"{'partial':>7} {'accumulate':>10} {'checkpoint-activations':>22} {'peak memory':>12}")
    for choice in _choices(args):
        row = next((r for r in known["steps"] if all(r[k] == v for k, v in choice.items())), None)
        if row is None:
            row = {**choice, **_measure(args, choice)}
            known["steps"].append(row)
            if args.json:
                write_atomically(args.json, json.dumps(known, indent=1) + "\n")
        print(line(row), flush=True)
    if args.into:
        between_marks(args.into, "memory", table(known["steps"], known["machine"]))


def table(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """All measured combinations as markdown."""
    head = ("partial", "accumulate", "checkpoint-activations", "peak memory")
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    order = sorted(rows, key=lambda r: (r["partial"], r["recompute"], r["accumulate"]))
    lines += [f"| {' | '.join(re.split(r'  +', line(row).strip()))} |" for row in order]
    told = (
        f"{about['device']}, {about['threads']} threads, torch {about['torch']}; libraries take 0.7 GB of "
        "it. Of a batch in parts one is computed, beside gradients such as the parts before it leave."
    )
    return "\n".join([*lines, "", told])


def line(row: dict[str, Any]) -> str:
    """A measured combination for people."""
    peak = f"{row['peak_gb']:.1f} GB" if row["peak_gb"] else f"over {row['limit_gb']:g} GB"
    again = "yes" if row["recompute"] else "no"
    return f"{row['partial']:>7} {row['accumulate']:>10} {again:>22} {peak:>12}"


def _choices(args: argparse.Namespace) -> list[dict[str, Any]]:
    shape = {"preset": args.preset, "batch": args.batch, "size": args.size, "limit_gb": args.limit}
    again = [word == "yes" for word in args.recompute.split(",")]
    partials, parts = (list(map(int, text.split(","))) for text in (args.partial, args.accumulate))
    return [
        {**shape, "partial": k, "accumulate": n, "recompute": r}
        for k, n, r in itertools.product(partials, parts, again)
    ]


def _measure(args: argparse.Namespace, choice: dict[str, Any]) -> dict[str, Any]:
    """Peak in GB of a step in a process of its own; None when it goes over the limit."""
    what = json.dumps([choice["partial"], choice["accumulate"], choice["recompute"]])
    command = [sys.executable, "-m", "training.memory", "--only", what, "--preset", args.preset]
    command += ["--batch", str(args.batch), "--size", str(args.size), *(["--cpu"] if args.cpu else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        while child.poll() is None:
            over = resident(child.pid) > args.limit * GB
            if over or _available() < SPARE * GB:
                child.kill()
                child.wait()
                if not over:
                    raise SystemExit(f"less than {SPARE} GB are free on this machine: end what else runs")
                return {"peak_gb": None}
            time.sleep(POLL)
        said = child.stdout.read() if child.stdout else ""
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {child.returncode}")
    found = json.loads(said.splitlines()[-1])
    if found["peak_gb"] > args.limit:  # between two looks, or on a GPU
        return {"peak_gb": None}
    return found


def resident(pid: int | str = "self", what: str = "VmRSS") -> int:
    """Bytes of memory that a process holds, or with VmHWM has held at most; 0 when it is gone."""
    try:
        found = re.search(rf"{what}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        if pid == "self":  # no Linux
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return 0
    return int(found[1]) * 1024 if found else 0


def _available() -> float:
    """Bytes that the machine could still give; infinite where it does not say."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return float("inf")
    return int(found[1]) * 1024 if found else float("inf")


def _step(args: argparse.Namespace, partial: int, memory: Memory) -> dict[str, float]:
    """Peak memory of the step of the weights as in the midst of a search; that of alpha needs less.

    Of a batch in parts one is computed, beside gradients such as the parts before it have left.
    """
    torch.manual_seed(0)
    settings, accelerator = PRESETS[args.preset].search, Accelerator(cpu=args.cpu)
    device, count = accelerator.device, -(-args.batch // memory.accumulate)
    space = USpace(settings.network(2), partial).to(device=device, memory_format=torch.channels_last)
    run = Darts(space, settings, accelerator, SearchMethod(partial=partial))
    run.save_memory(Memory(1, memory.recompute))
    _warm(run)
    before = [torch.zeros_like(w) for w in run.weights] if memory.accumulate > 1 else []
    images = torch.randn(count, 3, args.size, args.size, device=device)
    run.weight_step((images, torch.randint(0, 2, (count, args.size, args.size), device=device)))
    del before
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else resident(what="VmHWM")
    return {"peak_gb": round(peak / GB, 2)}


def _warm(run: Darts) -> None:
    """Let the optimisers have the state that they have after a first step."""
    for optimizer, parameters in (
        (run.weight_optimizer, run.weights), (run.alpha_optimizer, run.alphas)
    ):  # fmt: skip
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    options = argparse.ArgumentParser("python -m training.memory", description=__doc__)
    add_memory_measurements(options)
    benchmark_memory(options.parse_args())
