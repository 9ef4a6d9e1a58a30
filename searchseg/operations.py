"""The seven candidate operations of an edge. All keep the shape (B, C, H, W), so that all edges compete on
equal terms.

timm has the MBConv block too; ours is written out because importing any part of timm adds two seconds to the
start of the page, and because the search wants normalisation without affine parameters (DARTS, section
3.1.1).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from searchseg.genotype import OPERATION_NAMES

EXPANSION = 3  # of MBConv; MobileNetV2 has 6, which costs twice the memory traffic (our choice)
SQUEEZE = 4  # reduction inside squeeze-and-excitation


class ConvNorm(nn.Sequential):
    """Convolution and batch norm, followed by ReLU when `activation` is set; "same" padding at stride 1."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        activation: bool = False,
        affine: bool = True,
    ) -> None:
        padding = dilation * (kernel - 1) // 2
        conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding, dilation, groups, bias=False)
        norm = nn.BatchNorm2d(channels_out, affine=affine)
        super().__init__(conv, norm, *([nn.ReLU(inplace=True)] if activation else []))


class SepConv(nn.Sequential):
    """Depthwise-separable convolution applied twice, ReLU first (DARTS, section 3.1.1)."""

    def __init__(self, channels: int, kernel: int, affine: bool = True) -> None:
        super().__init__(
            nn.ReLU(),
            _depthwise(channels, kernel),
            ConvNorm(channels, channels, 1, affine=affine, activation=True),
            _depthwise(channels, kernel),
            ConvNorm(channels, channels, 1, affine=affine),
        )

    def after_relu(self, x: Tensor) -> Tensor:
        """The output for an input that has passed the first ReLU already: edges of one node share it."""
        return self[4](self[3](self[2](self[1](x))))


class DilConv(nn.Sequential):
    """Depthwise-separable convolution with dilation 2, ReLU first (DARTS, section 3.1.1)."""

    def __init__(self, channels: int, kernel: int, affine: bool = True) -> None:
        super().__init__(
            nn.ReLU(),
            _depthwise(channels, kernel, dilation=2),
            ConvNorm(channels, channels, 1, affine=affine),
        )

    def after_relu(self, x: Tensor) -> Tensor:
        """As `SepConv.after_relu`."""
        return self[2](self[1](x))


class SqueezeExcitation(nn.Module):
    """Scales every channel by a gate computed from the mean of all channels (Hu et al., arXiv 1709.01507)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.excite = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.relu(self.squeeze(channel_means(x)))
        return x * torch.sigmoid(self.excite(gate))


class MBConv(nn.Module):
    """MobileNetV2's inverted residual (arXiv 1801.04381) with squeeze-and-excitation after the depthwise
    step."""

    def __init__(self, channels: int, kernel: int, affine: bool = True) -> None:
        super().__init__()
        expanded = EXPANSION * channels
        self.expand = ConvNorm(channels, expanded, 1, affine=affine, activation=True)
        self.depthwise = ConvNorm(expanded, expanded, kernel, groups=expanded, affine=affine, activation=True)
        self.attend = SqueezeExcitation(expanded, max(1, channels // SQUEEZE))
        self.project = ConvNorm(expanded, channels, 1, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(self.attend(self.depthwise(self.expand(x))))


def channel_means(x: Tensor) -> Tensor:
    """Mean of every channel of x (B, C, H, W), as (B, C, 1, 1). Pixels come first, so that the gradient is
    in the order of x where that is channels_last: adding one in another order takes five times as long."""
    return x.permute(0, 2, 3, 1).mean((1, 2), keepdim=True).permute(0, 3, 1, 2)


def _depthwise(channels: int, kernel: int, dilation: int = 1) -> nn.Conv2d:
    padding = dilation * (kernel - 1) // 2
    return nn.Conv2d(channels, channels, kernel, 1, padding, dilation, groups=channels, bias=False)


# name -> build(channels, affine)
OPERATIONS: dict[str, Callable[[int, bool], nn.Module]] = {
    "sepconv_3x3": lambda channels, affine: SepConv(channels, 3, affine),
    "sepconv_5x5": lambda channels, affine: SepConv(channels, 5, affine),
    "dilconv_3x3": lambda channels, affine: DilConv(channels, 3, affine),
    "dilconv_5x5": lambda channels, affine: DilConv(channels, 5, affine),
    "mbconv_3x3": lambda channels, affine: MBConv(channels, 3, affine),
    "mbconv_5x5": lambda channels, affine: MBConv(channels, 5, affine),
    "skip": lambda channels, affine: nn.Identity(),
}
assert tuple(OPERATIONS) == OPERATION_NAMES
