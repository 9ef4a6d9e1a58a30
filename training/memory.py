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

GB = 1e9
POLL = 0.02  # seconds between looks at a child


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
    parser.add_argument("--only", help=argparse.SUPPRESS)


def benchmark_memory(args: argparse.Namespace) -> None:
    """Peak memory of a search step for each combination of what saves memory."""
    settings = PRESETS[args.preset].search
    args.batch, args.size = args.batch or settings.batch_size, args.size or settings.size
    if args.only:  # the child that is measured
        partial, parts, recompute = json.loads(args.only)
        print(json.dumps(_step(args, partial, Memory(parts, recompute))))
        return
    known = json.loads(args.json.read_text()) if args.json and args.json.exists() else {"steps": []}
    print(f"search step, preset {args.preset}, widths {settings.widths}, {settings.nodes} nodes, "
          f"batch {args.batch}, {args.size} px, stopped over {args.limit:g} GB")  # fmt: skip
    print(
        f"{'partial':>7} {'accumulate':>10} {'checkpoint-activations':>22} {'peak memory':>12} {'seconds':>8}"
    )
    for choice in _choices(args):
        row = next((r for r in known["steps"] if all(r[k] == v for k, v in choice.items())), None)
        if row is None:
            row = {**choice, **_measure(args, choice)}
            known["steps"].append(row)
            if args.json:
                document = {**known, "machine": machine()}
                write_atomically(args.json, json.dumps(document, indent=1) + "\n")
        print(line(row), flush=True)


def line(row: dict[str, Any]) -> str:
    """A measured combination for people."""
    peak = f"{row['peak_gb']:.1f} GB" if row["peak_gb"] else f"over {row['limit_gb']:g} GB"
    took = f"{row['seconds']:.1f}" if row["seconds"] else "-"
    again = "yes" if row["recompute"] else "no"
    return f"{row['partial']:>7} {row['accumulate']:>10} {again:>22} {peak:>12} {took:>8}"


def _choices(args: argparse.Namespace) -> list[dict[str, Any]]:
    shape = {"preset": args.preset, "batch": args.batch, "size": args.size, "limit_gb": args.limit}
    again = [word == "yes" for word in args.recompute.split(",")]
    partials, parts = (list(map(int, text.split(","))) for text in (args.partial, args.accumulate))
    return [
        {**shape, "partial": k, "accumulate": n, "recompute": r}
        for k, n, r in itertools.product(partials, parts, again)
    ]


def _measure(args: argparse.Namespace, choice: dict[str, Any]) -> dict[str, Any]:
    """Peak in GB and seconds of a step in a process of its own; None for both when it goes over the limit."""
    what = json.dumps([choice["partial"], choice["accumulate"], choice["recompute"]])
    command = [sys.executable, "-m", "training.benchmark", "memory", "--only", what, "--preset", args.preset]
    command += ["--batch", str(args.batch), "--size", str(args.size), *(["--cpu"] if args.cpu else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        while child.poll() is None:
            if resident(child.pid) > args.limit * GB:
                child.kill()
                child.wait()
                return {"peak_gb": None, "seconds": None}
            time.sleep(POLL)
        said = child.stdout.read() if child.stdout else ""
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {child.returncode}")
    found = json.loads(said.splitlines()[-1])
    if found["peak_gb"] > args.limit:  # between two looks, or on a GPU
        return {"peak_gb": None, "seconds": None}
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


def _step(args: argparse.Namespace, partial: int, memory: Memory) -> dict[str, float]:
    """Peak memory and seconds of one search step, taken as in the midst of a search.

    Of a batch in many parts only two are computed, as no more memory is needed after the second; the seconds
    are scaled.
    """
    torch.manual_seed(0)
    settings, accelerator = PRESETS[args.preset].search, Accelerator(cpu=args.cpu)
    device, parts = accelerator.device, min(memory.accumulate, 2)
    count = -(-args.batch // memory.accumulate) * parts
    space = USpace(settings.network(2), partial).to(device=device, memory_format=torch.channels_last)
    run = Darts(space, settings, accelerator, SearchMethod(partial=partial))
    run.save_memory(Memory(parts, memory.recompute))
    _warm(run)
    images = torch.randn(count, 3, args.size, args.size, device=device)
    masks = torch.randint(0, 2, (count, args.size, args.size), device=device)
    began = time.perf_counter()
    run.architecture_step((images, masks))
    run.weight_step((images, masks))
    gpu = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if gpu else resident(what="VmHWM")
    seconds = (time.perf_counter() - began) * args.batch / count
    return {"peak_gb": round(peak / GB, 2), "seconds": round(seconds, 2)}


def _warm(run: Darts) -> None:
    """Let the optimisers have the state that they have after a first step."""
    for optimizer, parameters in (
        (run.weight_optimizer, run.weights), (run.alpha_optimizer, run.alphas)
    ):  # fmt: skip
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
