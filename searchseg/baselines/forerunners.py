"""FCN and SegNet, the first networks that gave every pixel a class, on encoders of timm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from searchseg.baselines.encoder import MISFITS, AnySize, checked, timm
from searchseg.operations import ConvNorm


class FCN(AnySize):
    """FCN-8s (Long et al., arXiv 1411.4038): scores at strides 32, 16 and 8, summed from deep to shallow."""

    architecture, stride = "fcn", 32

    def __init__(self, encoder: str = "resnet18", num_classes: int = 2, pretrained: bool = False) -> None:
        super().__init__()
        checked(encoder, num_classes)
        self.arguments = {"encoder": encoder, "num_classes": num_classes}
        try:
            with torch.device("meta"):
                strides = timm().create_model(encoder, features_only=True).feature_info.reduction()
            self.encoder = timm().create_model(
                encoder, pretrained=pretrained, features_only=True,
                out_indices=tuple(strides.index(stride) for stride in (8, 16, 32)),
            )  # fmt: skip
        except (*MISFITS, ValueError) as error:
            raise ValueError(f"fcn cannot stand on the encoder {encoder!r}: {error}") from error
        channels = self.encoder.feature_info.channels()
        self.heads = nn.ModuleList(nn.Conv2d(width, num_classes, 1) for width in channels)

    def scores(self, image: Tensor) -> Tensor:
        stride8, stride16, stride32 = (
            head(feature) for head, feature in zip(self.heads, self.encoder(image), strict=True)
        )
        deep = _enlarged(stride32, stride16) + stride16
        return _enlarged(deep, stride8) + stride8


def _enlarged(scores: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(scores, like.shape[2:], mode="bilinear", align_corners=False)


class SegNet(AnySize):
    """SegNet (Badrinarayanan et al., arXiv 1511.00561): a VGG whose pooling indices steer the unpooling."""

    architecture, stride = "segnet", 32

    def __init__(self, encoder: str = "vgg16_bn", num_classes: int = 2, pretrained: bool = False) -> None:
        super().__init__()
        checked(encoder, num_classes)
        self.arguments = {"encoder": encoder, "num_classes": num_classes}
        if not encoder.startswith("vgg"):
            raise ValueError(f"segnet stands on a VGG such as vgg16_bn, got the encoder {encoder!r}")
        try:
            features = timm().create_model(encoder, pretrained=pretrained).features
        except MISFITS as error:
            raise ValueError(f"segnet cannot stand on the encoder {encoder!r}: {error}") from error
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        block: list[nn.Module] = []
        for module in features:
            if isinstance(module, nn.MaxPool2d):
                self.encoder.append(nn.Sequential(*block))
                self.decoder.insert(0, _mirrored(block))
                block = []
            else:
                block.append(module)
        first = next(m for m in self.decoder[-1].modules() if isinstance(m, nn.Conv2d))
        self.head = nn.Conv2d(first.out_channels, num_classes, 3, padding=1)

    def scores(self, image: Tensor) -> Tensor:
        x, places = image, []
        for block in self.encoder:
            x, indices = F.max_pool2d(block(x), 2, return_indices=True)
            places.append(indices)
        for block in self.decoder:
            x = block(F.max_unpool2d(x, places.pop(), [2, 2]))
        return self.head(x)


def _mirrored(block: list[nn.Module]) -> nn.Sequential:
    """As many convolutions as the block has, leading from its channels out to its channels in."""
    pairs = [(m.out_channels, m.in_channels) for m in block if isinstance(m, nn.Conv2d)][::-1]
    # the last one would end in the three colours of the image; the head follows at the first width
    widths = [(a, a if b == 3 else b) for a, b in pairs]
    return nn.Sequential(*(ConvNorm(a, b, 3, activation=True) for a, b in widths))
