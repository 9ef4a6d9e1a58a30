"""SETR: a vision transformer of timm as encoder, and three ways back to the pixels."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from searchseg.baselines.encoder import MISFITS, AnySize, checked, timm
from searchseg.operations import ConvNorm

DECODERS = ("pup", "naive", "mla")


class SETR(AnySize):
    """SETR (Zheng et al., CVPR 2021, arXiv 2012.15840): images (B, 3, H, W) of any size to class scores.

    `encoder`: a timm vision transformer of square patches; its position embedding is resampled to the
    image. `decoder`: "pup" (progressive upsampling by two, section 3.3), "naive" (two layers, then at once)
    or "mla" (multi-level aggregation of four layers). The paper's auxiliary heads are left out.
    """

    architecture = "setr"

    def __init__(
        self,
        encoder: str = "vit_tiny_patch16_224",
        decoder: str = "pup",
        width: int = 128,
        num_classes: int = 2,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        checked(encoder, num_classes)
        if decoder not in DECODERS:
            raise ValueError(f"decoder must be one of {', '.join(DECODERS)}, got {decoder!r:.80}")
        if type(width) is not int or not 4 <= width <= 2048 or width % 4:
            raise ValueError(f"width must be a multiple of 4 from 4 to 2048, got {width!r:.80}")
        self.arguments = {"encoder": encoder, "decoder": decoder, "width": width, "num_classes": num_classes}
        try:
            transformer = timm().create_model(
                encoder, pretrained=pretrained, num_classes=0, dynamic_img_size=True
            )
            self.stride, depth, channels = _described(transformer)
        except MISFITS as error:
            raise ValueError(f"setr cannot stand on the encoder {encoder!r}: {error}") from error
        if decoder == "mla":
            layers = [depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)]
            self.decoder: nn.Module = MultiLevelAggregation(channels, width, num_classes)
        else:
            layers = [depth - 1]
            make = ProgressiveUpsampling if decoder == "pup" else NaiveUpsampling
            self.decoder = make(channels, width, num_classes)
        # pooling and class token of a classifier, which would get no gradient here
        transformer.norm = transformer.fc_norm = transformer.head = nn.Identity()
        self.encoder = Layers(transformer, layers)

    def scores(self, image: Tensor) -> Tensor:
        return self.decoder(self.encoder(image))


class Layers(nn.Module):
    """The outputs (B, C, H / patch, W / patch) of some layers of a vision transformer, shallow to deep."""

    def __init__(self, transformer: nn.Module, indices: list[int]) -> None:
        super().__init__()
        self.transformer: Any = transformer
        self.indices = indices

    def forward(self, image: Tensor) -> list[Tensor]:
        return self.transformer.forward_intermediates(
            image, indices=self.indices, intermediates_only=True, norm=False, output_fmt="NCHW"
        )


def _described(encoder: Any) -> tuple[int, int, int]:
    """Side of a patch, number of layers and channels."""
    height, width = encoder.patch_embed.patch_size
    if height != width:
        raise ValueError(f"setr wants square patches, the encoder has {height} x {width}")
    return height, len(encoder.blocks), encoder.embed_dim


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class TokenNorm(nn.LayerNorm):
    """Layer norm of every token on its own, for (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ProgressiveUpsampling(nn.Module):
    """Four times a 3x3 convolution and twice the size (SETR-PUP)."""

    def __init__(self, channels: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm = TokenNorm(channels)
        widths = [channels, width, width, width, width]
        self.steps = nn.ModuleList(ConvNorm(a, b, 3, activation=True) for a, b in itertools.pairwise(widths))
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.norm(features[-1])
        for step in self.steps:
            x = _twice(step(x))
        return self.head(x)


class NaiveUpsampling(nn.Module):
    """1x1 convolution, norm, ReLU, 1x1 convolution, and the size of the image at once (SETR-Naive)."""

    def __init__(self, channels: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm = TokenNorm(channels)
        self.layers = nn.Sequential(
            ConvNorm(channels, width, 1, activation=True), nn.Conv2d(width, num_classes, 1)
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.layers(self.norm(features[-1]))


class MultiLevelAggregation(nn.Module):
    """Four layers, each added to the deeper ones, refined, enlarged four times and joined (SETR-MLA)."""

    def __init__(self, channels: int, width: int, num_classes: int) -> None:
        super().__init__()
        half = width // 2
        self.norms = nn.ModuleList(TokenNorm(channels) for _ in range(4))
        self.entries = nn.ModuleList(ConvNorm(channels, width, 1, activation=True) for _ in range(4))
        # after the addition one more 3x3, then the two that follow the entry's 1x1, the last one narrower
        self.streams = nn.ModuleList(
            nn.Sequential(*(ConvNorm(width, out, 3, activation=True) for out in (width, width, half)))
            for _ in range(4)
        )
        self.head = nn.Conv2d(4 * half, num_classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        total, streams = None, []
        entered = [entry(norm(x)) for entry, norm, x in zip(self.entries, self.norms, features, strict=True)]
        for x, stream in zip(reversed(entered), self.streams, strict=True):  # from the deepest up
            total = x if total is None else total + x
            streams.append(_twice(_twice(stream(total))))
        return self.head(torch.cat(streams, dim=1))
