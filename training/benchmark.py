"""Measure speed and memory on this machine.

  python -m training.benchmark segment    networks as trained, by Segmenter, by onnxruntime, and a UNet
  python -m training.benchmark photo      a photo from bytes to mask, step by step, and folders of photos
  python -m training.benchmark loader     how long a training step waits for its rows
  python -m training.benchmark search     one search step (alpha step + weight step) against a plain reference
  python -m training.benchmark retrain    one retraining step of a SEARCH-Net and of the UNet
  python -m training.benchmark page       the page under load, over HTTP (training/load.py)
  python -m training.benchmark start      what a user waits for until the first mask (training/startup.py)
  python -m training.benchmark memory     peak memory of a search step by what saves it (training/memory.py)

`search` and `retrain` print medians with their spread, parameters, MACs and peak memory of the process;
the networks of a table are timed in turns, so that a busy moment of the machine hits all of them.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from searchseg.baselines import UNet
from searchseg.cost import macs, parameters
from searchseg.genotype import random_genotype
from searchseg.mixed import MixedOp
from searchseg.network import SearchNet, UShapeConfig, USpace
from searchseg.task import TaskError
from training.benchmark_loader import add_loader_options, benchmark_loader
from training.benchmark_photo import add_photo_options, benchmark_photo
from training.benchmark_segment import add_segment_options, benchmark_segment
from training.darts import Darts
from training.depthwise import as_before
from training.memory import add_memory_measurements, benchmark_memory
from training.options import Manual, machine
from training.presets import PRESETS, RECIPES
from training.timing import interleaved, peak_memory
from training.trainer import Training


def print_table(
    seconds: dict[str, list[float]], pictures: int, networks: dict[str, tuple[nn.Module, int]]
) -> None:
    """A row a network: median seconds with range, pictures a second, parameters, MACs at its side in
    pixels."""
    print(f"{'':<28} {'median s':>9} {'range':>15} {'pictures/s':>11} {'parameters':>11} {'MACs':>9}")
    for name, values in seconds.items():
        network, side = networks[name]
        middle = statistics.median(values)
        spread = f"{min(values):.3f}-{max(values):.3f}"
        cost = f"{macs(network, (1, 3, side, side)) / 1e6:.0f} M"
        print(
            f"{name:<28} {middle:>9.3f} {spread:>15} {pictures / middle:>11.2f} {parameters(network):>11,} "
            f"{cost:>9}"
        )
    print(f"peak memory {peak_memory():.0f} MB; {machine()}")


class PlainEdge(nn.Module):
    """A mixed operation without any sharing: what the search is timed against."""

    def __init__(self, mixed: MixedOp) -> None:
        super().__init__()
        self.operations, self.alpha = mixed.operations, mixed.alpha

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.alpha.softmax(0)
        return sum(w * operation(x) for w, operation in zip(weights, self.operations, strict=True))


def supernets(args: argparse.Namespace) -> dict[str, Darts]:
    """The plain reference in the default memory format, and our search without and with partial channels."""
    settings = PRESETS[args.preset].search
    torch.manual_seed(0)
    space = USpace(settings.network(2))
    narrow = USpace(settings.network(2), partial=4)
    accelerator = Accelerator(cpu=args.cpu)
    spaces = {"plain reference": copy.deepcopy(space), "ours": space, "ours, partial 4": narrow}
    found = {}
    for name, network in spaces.items():
        network.to(accelerator.device)
        found[name] = Darts(network, settings, accelerator)
        if name == "plain reference":
            for cell in network.cells().values():
                cell.edges = nn.ModuleDict({key: PlainEdge(edge) for key, edge in cell.edges.items()})
            found[name].channels_last = False
        else:
            network.to(memory_format=torch.channels_last)
    return found


def search(args: argparse.Namespace) -> None:
    """A search step (alpha step + weight step) against a reference that calls each operation on its own."""
    if args.only:  # the child that measures memory
        run, batch = supernets(args)[args.only], _batch(args)
        for _ in range(2):
            run.architecture_step(batch)
            run.weight_step(batch)
        print(f"{peak_memory():.0f}")
        return
    runs, batch = supernets(args), _batch(args)
    reference, ours = (runs[name].loss(batch)[1] for name in ("plain reference", "ours"))
    print(f"class scores differ from those of the reference by {(ours - reference).abs().max():.1e} at most")
    print(f"search step, preset {args.preset}, batch {args.batch}, {args.size} px, two passes over the batch")
    calls = {
        name: lambda r=run: (r.architecture_step(batch), r.weight_step(batch)) for name, run in runs.items()
    }
    seconds = interleaved(calls, args.runs)
    plain = seconds["plain reference"]
    print(
        f"{'':<18} {'median s':>9} {'range':>15} {'times faster':>13} {'peak memory':>12} {'parameters':>11}"
    )
    for name, values in seconds.items():
        faster = statistics.median(p / v for p, v in zip(plain, values, strict=True))
        spread, count = f"{min(values):.3f}-{max(values):.3f}", parameters(runs[name].space)
        middle, memory = statistics.median(values), _memory_of(name, args)
        print(f"{name:<18} {middle:>9.3f} {spread:>15} {faster:>13.2f} {memory:>7.0f} MB {count:>11,}")
    print(f"times faster: median of the ratios, turn by turn; memory: of a process of its own; {machine()}")


def _memory_of(name: str, args: argparse.Namespace) -> float:
    """Peak resident memory, MB, of a fresh process that takes two search steps."""
    command = [sys.executable, "-m", "training.benchmark", "search", "--only", name]
    command += ["--preset", args.preset, "--batch", str(args.batch), "--size", str(args.size)]
    command += ["--cpu"] if args.cpu else []
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(result.stdout.split()[-1])


def retrain(args: argparse.Namespace) -> None:
    """A SEARCH-Net of random cells, with our gradients of its depthwise convolutions and with torch's, and
    the UNet of a preset."""
    preset = PRESETS[args.preset]
    shape = UShapeConfig(preset.retrain.widths, preset.search.nodes, preset.retrain.stem_stride)
    networks = {
        "SEARCH-Net (random cells)": SearchNet(shape, random_genotype(preset.search.nodes, seed=0)),
        "the same, torch's gradients": SearchNet(shape, random_genotype(preset.search.nodes, seed=0)),
        "UNet": UNet(preset.retrain.unet_widths),
    }
    options, recipe = {"cpu": args.cpu, "mixed_precision": args.mixed_precision}, RECIPES["strong"]
    steps = {name: Training(network, recipe, Accelerator(**options)) for name, network in networks.items()}
    batch = _batch(args)
    as_before(networks["the same, torch's gradients"])
    calls = {name: lambda t=t: (t.step(*batch, 1.0), t.update_average(1)) for name, t in steps.items()}
    print(
        f"retraining step, preset {args.preset}, recipe strong, batch {args.batch}, {args.size} px, "
        f"mixed precision {args.mixed_precision}"
    )
    table = {name: (network, args.size) for name, network in networks.items()}
    print_table(interleaved(calls, args.runs), args.batch, table)


def _batch(args: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    masks = torch.randint(0, 2, (args.batch, args.size, args.size))
    images = torch.randn(args.batch, 3, args.size, args.size)
    device = Accelerator(cpu=args.cpu).device
    return images.to(device), masks.to(device)


def page(args: argparse.Namespace) -> int:
    """The page under 0.5, 0.9 and 2 times its capacity; exit code 1 if a request is lost or wrong."""
    from training import load  # needs httpx, which comes with gradio

    return load.benchmark_page(args)


def start(args: argparse.Namespace) -> int:
    """Import, start of the page, first mask and first paint; exit code 1 if a target is missed."""
    from training import startup  # as above

    return startup.benchmark_start(args)


def add_page_options(parser: argparse.ArgumentParser) -> None:
    """What `page` needs; `--url` takes a page that runs already instead of starting app.py."""
    parser.add_argument("--requests", type=int, default=9999, help="requests, a third at each load")
    parser.add_argument("--turns", type=int, default=40, help="requests one by one, for the service time")
    parser.add_argument("--model", default="searchnet-pet", help="name of the network on the page")
    parser.add_argument("--width", type=int, default=256, help="of the pictures, pixels")
    parser.add_argument("--height", type=int, default=192, help="of the pictures, pixels")
    parser.add_argument("--seed", type=int, default=0, help="of the pictures and the arrivals")
    parser.add_argument("--deadline", type=float, default=120, help="seconds until a request counts as lost")
    parser.add_argument("--url", help="address of a started page, such as http://127.0.0.1:7860")
    parser.add_argument("--pid", type=int, help="process of the page at --url, for its memory")
    parser.add_argument("--json", type=Path, help="file for the figures")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m training.benchmark", description=__doc__, formatter_class=Manual
    )
    commands = parser.add_subparsers(
        required=True, metavar="segment|photo|loader|search|retrain|page|start|memory"
    )
    for name, call, add_options in (
        ("segment", benchmark_segment, add_segment_options),
        ("photo", benchmark_photo, add_photo_options),
        ("loader", benchmark_loader, add_loader_options),
    ):
        sub = commands.add_parser(name, help=call.__doc__, formatter_class=Manual)
        add_options(sub)
        sub.set_defaults(call=call)
    for call in (search, retrain):
        sub = commands.add_parser(call.__name__, help=call.__doc__, formatter_class=Manual)
        sub.add_argument("--runs", type=int, default=5, help="timed calls of each")
        sub.add_argument("--preset", choices=tuple(PRESETS), default="lite", help="widths and nodes")
        sub.add_argument("--batch", type=int, default=8, help="pictures a step")
        sub.add_argument("--size", type=int, default=128, help="side of the pictures, pixels")
        sub.add_argument("--cpu", action="store_true", help="stay on the CPU even where there is a GPU")
        if call is search:
            sub.add_argument("--only", help=argparse.SUPPRESS)
        else:
            sub.add_argument(
                "--mixed-precision", choices=("no", "fp16", "bf16"), default="no", help="of steps"
            )
        sub.set_defaults(call=call)
    sub = commands.add_parser("page", help=page.__doc__, formatter_class=Manual)
    add_page_options(sub)
    sub.set_defaults(call=page)
    sub = commands.add_parser("start", help=start.__doc__, formatter_class=Manual)
    sub.add_argument("--turns", type=int, default=5, help="starts of the page")
    sub.add_argument("--model", default="searchnet-pet", help="name of the network on the page")
    sub.set_defaults(call=start)
    sub = commands.add_parser("memory", help=benchmark_memory.__doc__, formatter_class=Manual)
    add_memory_measurements(sub)
    sub.set_defaults(call=benchmark_memory)
    args = parser.parse_args(argv)
    try:
        return args.call(args) or 0
    except TaskError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
