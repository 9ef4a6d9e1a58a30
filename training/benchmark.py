"""Measure speed and memory on this machine.

  python -m training.benchmark segment    a photo of 1024x768 to its mask through Segmenter
  python -m training.benchmark search     one search step (alpha step + weight step) of the supernet
  python -m training.benchmark retrain    one retraining step of a SEARCH-Net and of the UNet

Each prints medians with their spread, parameters, MACs and peak memory of the process. The networks of a
table are timed in turns, so that a busy moment of the machine hits all of them.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

import searchseg
from searchseg.baselines import UNet
from searchseg.cost import macs, parameters
from searchseg.genotype import random_genotype
from searchseg.network import SearchNet, UShapeConfig, USpace
from training.darts import Darts
from training.options import Manual, machine
from training.presets import PRESETS, RECIPES
from training.retrain import Training

MODELS = Path(__file__).parent.parent / "hub" / "models"


def peak_memory() -> float:
    """Largest resident memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def interleaved(calls: dict[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """Seconds of `runs` calls each, taken in turns after one call that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(runs + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


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


def segment(args: argparse.Namespace) -> None:
    """Every model under --models on one photo."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    photo = Image.fromarray(pixels).resize((1024, 768), Image.Resampling.BICUBIC)
    folders = sorted(path.parent for path in args.models.glob("*/config.json"))
    if not folders:
        sys.exit(f"no model under {args.models}")
    segmenters = {folder.name: searchseg.Segmenter.from_pretrained(folder) for folder in folders}
    seconds = interleaved({name: lambda s=s: s(photo) for name, s in segmenters.items()}, args.runs)
    networks = {name: (s.model, s.config.image_size[0]) for name, s in segmenters.items()}
    print(f"photo of {photo.width}x{photo.height} to mask, one picture at a time")
    print_table(seconds, 1, networks)


def search(args: argparse.Namespace) -> None:
    """The supernet of a preset."""
    settings = PRESETS[args.preset].search
    space = USpace(settings.network(2)).to(memory_format=torch.channels_last)
    step, batch = Darts(space, settings, Accelerator(cpu=True)), _batch(args)
    calls = {"alpha step + weight step": lambda: (step.architecture_step(batch), step.weight_step(batch))}
    print(
        f"search, preset {args.preset}, batch {args.batch}, {args.size} px (two passes over the batch a step)"
    )
    print_table(interleaved(calls, args.runs), 2 * args.batch, dict.fromkeys(calls, (space, args.size)))


def retrain(args: argparse.Namespace) -> None:
    """A SEARCH-Net of random cells and the UNet of a preset."""
    preset = PRESETS[args.preset]
    shape = UShapeConfig(preset.retrain.widths, preset.search.nodes, preset.retrain.stem_stride)
    networks = {
        "SEARCH-Net (random cells)": SearchNet(shape, random_genotype(preset.search.nodes, seed=0)),
        "UNet": UNet(preset.retrain.unet_widths),
    }
    recipe, batch = RECIPES["strong"], _batch(args)
    steps = {name: Training(network, recipe, Accelerator(cpu=True)) for name, network in networks.items()}
    calls = {name: lambda t=t: (t.step(*batch, 1.0), t.update_average(1)) for name, t in steps.items()}
    print(f"retraining step, preset {args.preset}, recipe strong, batch {args.batch}, {args.size} px")
    table = {name: (network, args.size) for name, network in networks.items()}
    print_table(interleaved(calls, args.runs), args.batch, table)


def _batch(args: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    masks = torch.randint(0, 2, (args.batch, args.size, args.size))
    return torch.randn(args.batch, 3, args.size, args.size), masks


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m training.benchmark", description=__doc__, formatter_class=Manual
    )
    commands = parser.add_subparsers(required=True, metavar="segment|search|retrain")
    for call in (segment, search, retrain):
        sub = commands.add_parser(call.__name__, help=call.__doc__, formatter_class=Manual)
        sub.add_argument("--runs", type=int, default=20 if call is segment else 5, help="timed calls of each")
        if call is segment:
            sub.add_argument("--models", type=Path, default=MODELS, help="folder of model folders")
        else:
            sub.add_argument("--preset", choices=tuple(PRESETS), default="lite", help="widths and nodes")
            sub.add_argument("--batch", type=int, default=8, help="pictures a step")
            sub.add_argument("--size", type=int, default=128, help="side of the pictures, pixels")
        sub.set_defaults(call=call)
    args = parser.parse_args(argv)
    args.call(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
