"""How fast the networks are: as trained, as Segmenter runs them, by onnxruntime, and the UNet of the paper.

The systems of a row are called in turns in one process, with the same weights and pictures; another number of
threads is another process. Beside them, in the same turns, runs a product of two 1024x1024 matrices: GFLOP/s
are twice the multiply-accumulates of the network as trained, and their share is that of this product's rate,
which a network bound by arithmetic alone would reach. Memory is the peak of a process that loads one system
and calls it three times.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import searchseg
from searchseg.baselines import UNet
from searchseg.cost import macs, parameters
from searchseg.fast import faster
from searchseg.onnx import OnnxError, OnnxNetwork
from training.files import write_atomically
from training.options import machine
from training.timing import between_marks, interleaved, peak_memory

SHIPPED = Path(__file__).parent.parent / "hub" / "models" / "searchnet-pet"
PAPER_UNET = "UNet 64-1024"
PRODUCT, SIDE = "matrix product", 1024
WAYS = ("as trained", "Segmenter", "onnxruntime")
Systems = dict[tuple[str, str], nn.Module]  # by name and way
MEMORY_KEY = ("system", "way", "size", "pictures")
KEY = (*MEMORY_KEY, "threads")


def add_segment_options(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m training.benchmark segment`."""
    numbers: dict[str, Any] = {"type": int, "nargs": "+"}
    models = "model folders, or folders of them; nothing: the UNet of the paper alone"
    parser.add_argument("--models", type=Path, nargs="*", default=[SHIPPED], help=models)
    parser.add_argument("--sizes", **numbers, default=[128, 256, 512], help="sides of the input, pixels")
    parser.add_argument("--pictures", **numbers, default=[1, 4, 16], help="pictures a call")
    parser.add_argument("--threads", **numbers, default=[1, 2], help="numbers of threads, a process each")
    parser.add_argument("--runs", type=int, default=20, help="timed calls of each system; 0: time nothing")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="how to run the models")
    parser.add_argument("--no-paper-unet", action="store_true", help="leave the UNet of the paper out")
    budget = "seconds for all calls of a system in one row; one that needs more is called once"
    parser.add_argument("--budget", type=float, default=30, help=budget)
    parser.add_argument("--memory", action="store_true", help="also the peak memory of each row")
    parser.add_argument("--json", type=Path, help="file for the figures; it keeps those of other settings")
    parser.add_argument("--into", type=Path, help="Markdown file with marks for the table")
    parser.add_argument("--show", action="store_true", help="measure nothing, show the figures of --json")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)


def benchmark_segment(args: argparse.Namespace) -> None:
    """The networks against each other: seconds, memory, GFLOP/s and their share of the machine's."""
    if args.memory_of:
        print(json.dumps(_memory(args)))
        return
    if args.child:
        for row in _rows(args):
            print(json.dumps(row), flush=True)
        return
    known = json.loads(args.json.read_text()) if args.json and args.json.exists() else {"rows": []}
    if args.show and not known["rows"]:
        raise SystemExit(
            f"no figures to show: {args.json} does not exist, give --json FILE of an earlier run"
        )
    rows = {tuple(row[k] for k in KEY): row for row in known["rows"]}
    about = known.get("machine", machine())
    memory = [m for m in known.get("memory", []) if "pictures" in m]  # older files have one size without it
    if not args.show and any(about[key] != machine()[key] for key in ("device", "torch")):
        where = f"{about['device']}, torch {about['torch']}"
        raise SystemExit(f"{args.json} has figures of another machine ({where}): choose another file")
    for threads in args.threads if args.runs and not args.show else ():
        for row in _child(args, threads, "--child"):
            rows[tuple(row[k] for k in KEY)] = row
            print(line(row), flush=True)
            _keep(args.json, about, rows, memory)
    if not rows:
        raise SystemExit("nothing was timed: give --runs, and more than onnxruntime to the UNet of the paper")
    if args.memory and not args.show:
        for found in _memories(args, rows):
            key = [found[k] for k in MEMORY_KEY]
            memory = [*(m for m in memory if [m[k] for k in MEMORY_KEY] != key), found]
            print(f"{' '.join(map(str, key))}: {found['peak_mb']:.0f} MB", flush=True)
            _keep(args.json, about, rows, memory)
    text = markdown(list(rows.values()), memory, about)
    between_marks(args.into, "segment", text) if args.into else print(text)


def _keep(path: Path | None, about: Any, rows: dict[Any, dict[str, Any]], memory: list[Any]) -> None:
    """Write what is known by now: a size with a number of pictures may take half an hour."""
    if path:
        document = {"machine": about, "rows": list(rows.values()), "memory": memory}
        write_atomically(path, json.dumps(document, indent=1) + "\n")


def _memories(args: argparse.Namespace, rows: Iterable[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """The peaks of all systems that --models, --ways, --sizes and --pictures name and that have a row."""
    names = {*_model_folders(args), *([] if args.no_paper_unet else [PAPER_UNET])}
    for key in sorted({row[:-1] for row in rows}):
        wanted = zip(key, (names, args.ways, args.sizes, args.pictures), strict=True)
        if not all(value in among for value, among in wanted):
            continue
        (found,) = _child(args, max(args.threads), "--memory-of", json.dumps(key))
        yield {**dict(zip(MEMORY_KEY, key, strict=True)), **found}


def _child(args: argparse.Namespace, threads: int, *what: str) -> Iterator[dict[str, Any]]:
    command = [sys.executable, "-m", "training.benchmark_segment", *what, "--runs", str(args.runs)]
    for name in ("models", "sizes", "pictures", "ways"):
        command += [f"--{name}", *map(str, getattr(args, name))]
    command += ["--budget", str(args.budget), *(["--no-paper-unet"] if args.no_paper_unet else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
        yield from (json.loads(line) for line in child.stdout or () if line.startswith("{"))
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {child.returncode}")


def folders(paths: list[Path]) -> list[Path]:
    """The model folders among `paths`, and in those that are no model themselves."""
    found = [
        folder
        for path in paths
        for folder in ([path] if (path / "config.json").exists() else sorted(path.iterdir()))
        if (folder / "config.json").exists()
    ]
    if not found:
        raise SystemExit(f"no model in {', '.join(map(str, paths)) or '--models'}")
    return found


def _ready(model: nn.Module, way: str, size: int) -> nn.Module:
    if way == "onnxruntime":
        return OnnxNetwork(model, (size, size))
    return model.eval() if way == "as trained" else faster(model)


def _model_folders(args: argparse.Namespace) -> dict[str, Path]:
    """Those of --models by name; none where only the UNet of the paper is asked for."""
    alone = not args.models and not args.no_paper_unet
    return {} if alone else {folder.name: folder for folder in folders(args.models)}


def _systems(args: argparse.Namespace) -> Systems:
    """The networks by name and way; onnxruntime's are made for each size, here they stand as trained."""
    models = {name: searchseg.from_pretrained(folder) for name, folder in _model_folders(args).items()}
    found = {(name, way): model for (name, model), way in itertools.product(models.items(), args.ways)}
    if not args.no_paper_unet:
        torch.manual_seed(0)
        found |= {(PAPER_UNET, way): UNet() for way in args.ways if way != "onnxruntime"}
    return found


def _rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    systems = _systems(args)
    for size in args.sizes:
        ready: Systems = {}
        for key, model in systems.items():
            try:
                ready[key] = _ready(model, key[1], size)
            except OnnxError as error:
                print(f"onnxruntime: {error}", file=sys.stderr)
        for pictures in args.pictures if ready else ():
            yield from _row(args, systems, ready, size, pictures)


def _row(
    args: argparse.Namespace, systems: Systems, ready: Systems, size: int, pictures: int
) -> Iterator[dict[str, Any]]:  # fmt: skip
    image = torch.randn(pictures, 3, size, size, generator=torch.Generator().manual_seed(0))
    calls: dict[Any, Callable[[], object]] = {}
    about = {"size": size, "pictures": pictures, "threads": torch.get_num_threads(), "runs": args.runs}
    for key, network in ready.items():
        fast = key[1] == "Segmenter"
        call = _call(network, image.to(memory_format=torch.channels_last) if fast else image)
        began = time.perf_counter()
        call()
        once = time.perf_counter() - began
        if once * args.runs > args.budget:
            yield {"system": key[0], "way": key[1], **about, "seconds": None, "once": once}
        else:
            calls[key] = call
    square = torch.randn(SIDE, SIDE)
    calls[PRODUCT] = lambda: square @ square
    seconds = interleaved(calls, args.runs)
    best = 2 * SIDE**3 / statistics.median(seconds.pop(PRODUCT)) / 1e9
    for (system, way), values in seconds.items():
        cost = macs(systems[system, way], (1, 3, size, size))
        middle = statistics.median(values)
        rate = 2 * cost * pictures / middle / 1e9
        yield {
            "system": system, "way": way, **about, "seconds": middle, "range": [min(values), max(values)],
            "macs": cost, "parameters": parameters(systems[system, way]), "gflops": rate,
            "product_gflops": best,
        }  # fmt: skip


def _call(network: nn.Module, image: torch.Tensor) -> Callable[[], object]:
    def call() -> object:
        with torch.inference_mode():
            return network(image)

    return call


def _memory(args: argparse.Namespace) -> dict[str, float]:
    system, way, size, pictures = json.loads(args.memory_of)
    model = UNet() if system == PAPER_UNET else searchseg.from_pretrained(_model_folders(args)[system])
    layout = torch.channels_last if way == "Segmenter" else torch.contiguous_format
    call = _call(_ready(model, way, size), torch.randn(pictures, 3, size, size).to(memory_format=layout))
    for _ in range(3):  # Segmenter records the calls of the second and replays them in the third
        call()
    return {"peak_mb": peak_memory()}


def line(row: dict[str, Any]) -> str:
    """A measured row for people."""
    where = f"{row['system']:<20} {row['way']:<12} {row['size']:>4} px x{row['pictures']:<3}"
    where += f" {row['threads']} threads"
    if row["seconds"] is None:
        return f"{where}  over the budget: {row['once']:.2f} s a call"
    low, high = row["range"]
    share = row["gflops"] / row["product_gflops"]
    return (
        f"{where}  {row['seconds'] * 1e3:8.1f} ms ({low * 1e3:.1f}-{high * 1e3:.1f})  "
        f"{row['pictures'] / row['seconds']:7.1f} pictures/s  {row['gflops']:6.1f} GFLOP/s  {share:.0%}"
    )


def markdown(rows: list[dict[str, Any]], memory: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """A line a system, size and number of pictures, with milliseconds by way and threads."""
    threads = sorted({row["threads"] for row in rows})
    head = ["network", "side", "pictures", "MACs a picture"]
    head += [f"{way}, {n} thread{'s' * (n > 1)}" for n in threads for way in WAYS]
    head += [f"Segmenter, GFLOP/s (share), {n} thread{'s' * (n > 1)}" for n in threads]
    head += ["peak memory, MB: as trained / Segmenter / onnxruntime"] if memory else []
    table = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    found = {tuple(row[k] for k in KEY): row for row in rows}
    peaks = {tuple(m[k] for k in MEMORY_KEY): f"{m['peak_mb']:.0f}" for m in memory}
    for system, size, pictures in sorted({(r["system"], r["size"], r["pictures"]) for r in rows}):
        cells = [found.get((system, way, size, pictures, n)) for n in threads for way in WAYS]
        cost = next((f"{c['macs'] / 1e9:.2f} G" for c in cells if c and c["seconds"]), "")
        rates = [_rate(found.get((system, "Segmenter", size, pictures, n))) for n in threads]
        entry = [system, str(size), str(pictures), cost, *map(_cell, cells), *rates]
        known = [peaks.get((system, way, size, pictures)) for way in WAYS]
        entry += [" / ".join(peak or "-" for peak in known)] if memory else []
        table.append("| " + " | ".join(entry) + " |")
    words = (
        f"Median milliseconds of {rows[0]['runs']} calls in turns on {about['device']}, torch "
        f"{about['torch']}; a number in brackets is a single call, where more were over the time budget."
    )
    if memory:
        words += (
            " Memory is that of one process each after three calls with the most threads; two of the same "
        )
        words += "differ by some 30 MB."
    return "\n".join([*table, "", words]).strip() + "\n"


def _rate(row: dict[str, Any] | None) -> str:
    if row is None or row["seconds"] is None:
        return ""
    return f"{row['gflops']:.0f} ({row['gflops'] / row['product_gflops']:.0%})"


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    return f"[{row['once'] * 1e3:.0f}]" if row["seconds"] is None else f"{row['seconds'] * 1e3:.1f}"


if __name__ == "__main__":  # a child, which must not import what other benchmarks need
    child = argparse.ArgumentParser()
    add_segment_options(child)
    benchmark_segment(child.parse_args())
