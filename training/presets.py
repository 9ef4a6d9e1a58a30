"""Presets (how large) and recipes (how to train): every number of a run that a user does not give."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from searchseg.network import UShapeConfig

Size = int | tuple[int, int]  # side of a square picture, or (height, width), pixels
MOST_STRETCH = 1.5  # of a crop's width to its height, against the picture's


def height_width(size: Size) -> tuple[int, int]:
    """(height, width) of a Size; also takes the list that JSON makes of a pair."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


@dataclass(frozen=True)
class SearchSettings:
    """A search: network and picture size of the proxy, length, and the two optimisers (both Adam)."""

    widths: tuple[int, int, int, int]
    nodes: int
    stem_stride: int
    size: int  # side of the square input, pixels
    epochs: int
    warmup_epochs: int  # weights only, so that alpha is not decided by what trains fastest
    batch_size: int
    loss: str  # "dice" or "dice+ce"
    weight_lr: float
    alpha_lr: float
    weight_decay: float = 3e-4
    alpha_weight_decay: float = 1e-3
    gradient_clip: float = 5.0
    sgd_lr: float = 0.025  # of the weights in a second-order search (DARTS, section 3.1)
    controller_lr: float = 3.5e-3  # of the controller of --method reinforce; ENAS has 3.5e-4 for 300 epochs

    def network(self, num_classes: int) -> UShapeConfig:
        return UShapeConfig(self.widths, self.nodes, self.stem_stride, num_classes)


@dataclass(frozen=True)
class Memory:
    """What a step may do to need less memory, at the cost of time."""

    accumulate: int = 1  # parts of a batch that go through the network one after the other
    recompute: bool = False  # cells compute their insides again in the backward pass

    def parts(self, images: Any, masks: Any) -> list[tuple[Any, Any, float]]:
        """The parts of a batch, each with its share."""
        pieces = zip(images.chunk(self.accumulate), masks.chunk(self.accumulate), strict=True)
        return [(image, mask, len(image) / len(images)) for image, mask in pieces]


@dataclass(frozen=True)
class SearchMethod:
    """How the architecture is found; the defaults are first-order DARTS as published."""

    name: str = "darts"  # or "random", "random-shared", "reinforce"
    order: int = 1
    partial: int = 1  # 1 / partial of the channels pass the operations
    regularise: str = "none"  # or "auxiliary-skip", "beta"
    max_skips: int | None = None  # a cell, in the derived network
    budget: str | None = None  # "macs", "params" or "latency" of the derived network
    limit: float | None = None
    monitor_every: int = 0  # epochs between measurements of the Hessian; 0 for never
    early_stop: str = "none"  # or "eigenvalue", "unchanged"
    derive: str = "alpha"  # or "perturbation"
    samples: int = 64  # candidates that random-shared and reinforce score in the end


@dataclass(frozen=True)
class RetrainSettings:
    """Sizes and length of the training of a final network; `unet_widths` has at least as many parameters.

    Raises ValueError for a crop that is larger than the picture or of other proportions.
    """

    widths: tuple[int, int, int, int]
    stem_stride: int
    unet_widths: tuple[int, ...]
    size: Size  # of the input
    epochs: int
    batch_size: int  # of all processes together
    crop: Size | None = None  # what is seen of a picture of `size` in training; None for all of it

    def __post_init__(self) -> None:
        height, width = height_width(self.crop or self.size)
        if height > self.shape[0] or width > self.shape[1]:
            whole = "x".join(map(str, self.shape))
            raise ValueError(f"a crop of {height}x{width} is larger than the picture, {whole}")
        stretch = width * self.shape[0] / (height * self.shape[1])
        if not 1 / MOST_STRETCH <= stretch <= MOST_STRETCH:
            raise ValueError(
                f"a crop of {height}x{width} has other proportions than the picture, and would not fit into "
                "it at every scale"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the input."""
        return height_width(self.size)

    @property
    def crop_share(self) -> float:
        """Share of the area of the input that `crop` has, 1 without one."""
        return math.prod(height_width(self.crop or self.size)) / math.prod(self.shape)


@dataclass(frozen=True)
class Preset:
    search: SearchSettings
    retrain: RetrainSettings


@dataclass(frozen=True)
class Recipe:
    """How a final network is trained."""

    loss: str
    optimizer: str  # "sgd" or "adamw"
    lr: float
    weight_decay: float
    schedule: str  # "constant", or "cosine" after a linear warm-up
    warmup: float = 0.0  # share of all steps
    augment: str = "none"  # "none", "strong" or "corrupted", see rows.py
    ema: float = 0.0  # decay per step of the averaged weights; 0 for none
    small_until: float = 0.0  # share of the epochs trained at `small_factor` of the size first
    small_factor: float = 0.75
    gradient_clip: float = 0.0
    # cross-entropy weighs rare classes more, where there are more than two
    balance: bool = False


PRESETS = {
    "smoke": Preset(
        SearchSettings((4, 8, 16, 32), 2, 2, 32, 3, 1, 8, "dice+ce", 2e-3, 3e-3),
        RetrainSettings((4, 8, 16, 32), 2, (4, 8, 16, 32), 32, 3, 8),
    ),
    "lite": Preset(
        SearchSettings((8, 16, 32, 64), 3, 2, 96, 20, 5, 16, "dice+ce", 2e-3, 3e-3),
        RetrainSettings((16, 32, 64, 128), 2, (16, 32, 64, 128, 256), 160, 40, 16),
    ),
    "paper": Preset(
        SearchSettings((64, 128, 256, 512), 4, 1, 256, 300, 15, 8, "dice", 1e-3, 1e-3),
        RetrainSettings((64, 128, 256, 512), 1, (64, 128, 256, 512, 1024), 256, 200, 8),
    ),
}

# what the recipe strong consists of, in the order in which an ablation adds it
PLAIN = Recipe("dice", "adamw", lr=2e-3, weight_decay=0.01, schedule="constant", gradient_clip=1.0)
PARTS = {
    "cross-entropy beside Dice": {"loss": "dice+ce"},
    "warm-up and cosine": {"schedule": "cosine", "warmup": 0.1},
    "crops, scales, flips, colours": {"augment": "strong"},
    "averaged weights": {"ema": 0.995},
    "three quarters of the size first": {"small_until": 0.5},
    "rare classes weigh more": {"balance": True},
}


def recipe_of(parts: list[str]) -> Recipe:
    """The plain recipe with some of the `PARTS`."""
    changes: dict[str, Any] = {}
    for part in parts:
        changes |= PARTS[part]
    return replace(PLAIN, **changes)


RECIPES = {
    "paper": Recipe(loss="dice", optimizer="sgd", lr=1e-3, weight_decay=5e-4, schedule="constant"),
    "strong": recipe_of(list(PARTS)),
}
