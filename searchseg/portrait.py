"""What a loaded network looks like: its parts with their costs, and its drawing."""

from __future__ import annotations

from typing import Any

from torch import nn

from searchseg.baselines import TITLES
from searchseg.cost import PartCost, part_costs
from searchseg.drawing import draw, draw_parts, draw_unet
from searchseg.network import UShape


def named_parts(model: nn.Module) -> dict[str, nn.Module]:
    """The parts that a drawing names: stem, cells and head of a SEARCH-Net, else the children of the network.

    A list of modules counts as its members, and a network that only wraps another as that one.
    """
    if isinstance(model, UShape):
        return {"stem": model.stem, **model.cells(), "head": model.head}
    children = dict(model.named_children())
    if len(children) == 1:
        children = dict(next(iter(children.values())).named_children())
    parts: dict[str, nn.Module] = {}
    for name, child in children.items():
        if isinstance(child, nn.ModuleList):
            parts |= {f"{name} {place}": module for place, module in enumerate(child, start=1)}
        else:
            parts[name.replace("_", " ")] = child
    return parts


def costs_of_parts(model: nn.Module) -> dict[str, PartCost]:
    """What each part costs for one picture of the network's own size, in the order they run."""
    config: Any = model.config
    return part_costs(model, named_parts(model), config.image_size)


def portrait(model: nn.Module) -> str:
    """SVG of a network that carries its ModelConfig: the U of a SEARCH-Net or UNet, else its parts."""
    config: Any = model.config
    arguments, size = config.arguments, config.image_size
    genotype = getattr(model, "genotype", None)
    if genotype is not None:
        widths, stride = arguments["widths"], arguments["stem_stride"]
        return draw(genotype, widths=widths, image_size=size, stem_stride=stride)
    if config.architecture == "unet":
        return draw_unet(arguments["widths"], image_size=size)
    words = [
        (name, f"{cost.parameters / 1e6:.2f} M parameters, gives {' × '.join(map(str, cost.shape))}")
        for name, cost in costs_of_parts(model).items()
    ]
    name = TITLES.get(config.architecture, config.architecture)
    return draw_parts(name, words, image_size=size)
