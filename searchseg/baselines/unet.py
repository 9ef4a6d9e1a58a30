"""The plain UNet, of any widths."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from searchseg.operations import ConvNorm


@dataclass(frozen=True)
class UNetConfig:
    """Channels of the levels, top to bottom (two to six of them), and classes."""

    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    num_classes: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        if not 2 <= len(self.widths) <= 6 or not all(type(w) is int and 1 <= w <= 8192 for w in self.widths):
            raise ValueError(f"widths must be two to six integers from 1 to 8192, got {self.widths!r}")
        if type(self.num_classes) is not int or not 2 <= self.num_classes <= 255:
            raise ValueError(f"num_classes must be an integer from 2 to 255, got {self.num_classes!r}")


class UNet(nn.Module):
    """The plain UNet (Ronneberger et al., arXiv 1505.04597), with padded convolutions and batch norm.

    Two 3x3 convolutions a block, max pooling down, 2x2 up-convolution, concatenation with the skip.
    Images (B, 3, H, W) of any size give class scores (B, num_classes, H, W).
    """

    architecture = "unet"

    def __init__(self, widths: Sequence[int] = UNetConfig.widths, num_classes: int = 2) -> None:
        super().__init__()
        self.arguments = UNetConfig(tuple(widths), num_classes)
        pairs = list(itertools.pairwise(widths))
        self.first = _block(3, widths[0])
        self.encoder = nn.ModuleList(_block(above, below) for above, below in pairs)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(below, above, 2, stride=2) for above, below in reversed(pairs)
        )
        self.decoder = nn.ModuleList(_block(2 * above, above) for above, _ in reversed(pairs))
        self.head = nn.Conv2d(widths[0], num_classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        features = [self.first(image)]
        for block in self.encoder:
            features.append(
                block(F.max_pool2d(features[-1], 2, ceil_mode=True))
            )  # ceil: odd sizes lose no pixel
        x = features.pop()
        for up, block in zip(self.up, self.decoder, strict=True):
            skip = features.pop()
            x = block(torch.cat([skip, up(x)[..., : skip.shape[2], : skip.shape[3]]], dim=1))
        return self.head(x)


def _block(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        ConvNorm(channels_in, channels_out, 3, activation=True),
        ConvNorm(channels_out, channels_out, 3, activation=True),
    )
