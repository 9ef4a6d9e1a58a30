"""Convolutions and products as oneDNN computes them fastest: kernels in its order, the ReLU in the same pass.

Rows are pixels: (B * H * W, channels), the memory of a picture (B, channels, H, W) in channels_last.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Hashable

import torch
from torch import Tensor, nn


def _function(name: str) -> Callable[..., Tensor]:
    """A function of torch's oneDNN; one that raises NotImplementedError where torch was built without it."""

    def missing(*_: object) -> Tensor:
        raise NotImplementedError(f"this build of torch has no mkldnn::{name}")

    return getattr(getattr(torch.ops.mkldnn, name, None), "default", missing)


CONVOLVE = _function("_convolution_pointwise")
MULTIPLY = _function("_linear_pointwise")
MOST_SHAPES = 2  # of inputs that a layer keeps ordered kernels for: each is a copy of them
WIDE = 2**18  # values of a product; up to there it costs less than a call of oneDNN


class Ordered:
    """What `make(shape)` gives, a kernel in the order for an input of that shape, kept for the latest
    MOST_SHAPES of them. One for another shape would be put in order again in every call, which can take
    5 ms."""

    def __init__(self, make: Callable[..., Tensor]) -> None:
        self._make = make
        self._kept: dict[Hashable, Tensor] = {}
        self._making = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def __call__(self, shape: Hashable) -> Tensor:
        kernel = self._kept.get(shape)
        if kernel is not None:
            return kernel
        with self._making:
            if shape not in self._kept:
                while len(self._kept) >= MOST_SHAPES:
                    self._kept.pop(next(iter(self._kept)))
                self._kept[shape] = self._make(shape)
            return self._kept[shape]


class OrderedConv(nn.Module):
    """A convolution with the ReLU after it, its kernels in oneDNN's order for the shape of the input."""

    def __init__(self, conv: nn.Conv2d, relu: bool) -> None:
        super().__init__()
        self.weight, self.bias, self.relu = conv.weight, conv.bias, relu
        self._geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self.ordered = Ordered(self._order)

    def forward(self, x: Tensor) -> Tensor:
        after = "relu" if self.relu else "none"
        return CONVOLVE(x, self.ordered(x.shape), self.bias, *self._geometry, after, [], "")

    def _order(self, shape: torch.Size) -> Tensor:
        padding, stride, dilation, groups = self._geometry
        reorder = torch._C._nn.mkldnn_reorder_conv2d_weight
        kernel = self.weight.detach().to_mkldnn()
        return reorder(kernel, padding, stride, dilation, groups, list(shape))  # type: ignore[call-arg]


class Pointwise(nn.Module):
    """A 1x1 convolution as a product of rows (B * H * W, channels), and the ReLU after it."""

    def __init__(self, conv: nn.Conv2d, relu: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(conv.weight.detach().flatten(1).t().contiguous(), requires_grad=False)
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.relu = relu
        self.ordered = Ordered(self._order)

    def forward(self, rows: Tensor) -> Tensor:
        if len(rows) * len(self.bias) > WIDE:
            return self.multiplied(rows)
        out = torch.addmm(self.bias, rows, self.weight)
        return out.relu_() if self.relu else out

    def multiplied(self, rows: Tensor) -> Tensor:
        """The same in one pass, by oneDNN: torch's product copies the bias first."""
        after = "relu" if self.relu else "none"
        return MULTIPLY(rows, self.ordered(len(rows)), self.bias, after, [], "")

    def _order(self, rows: int) -> Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(self.weight.detach().t().contiguous(), rows)


class PointwiseConv(Pointwise):
    """The same for a picture (B, channels, H, W)."""

    planes = (
        False  # whether channel by channel, which a few channels are upsampled two to four times faster in
    )

    def forward(self, x: Tensor) -> Tensor:
        picture = as_picture(super().forward(as_rows(x)), x)
        return picture.contiguous() if self.planes else picture


def as_rows(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B * H * W, C); a view where x is channels_last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def as_picture(rows: Tensor, like: Tensor) -> Tensor:
    """(B * H * W, C) to (B, C, H, W), channels_last, with B, H and W of `like`."""
    batch, _, height, width = like.shape
    return rows.view(batch, height, width, -1).permute(0, 3, 1, 2)


@functools.cache
def onednn_works() -> bool:
    """Whether this build of torch has the functions used here, and they give what torch gives."""
    if not torch.backends.mkldnn.is_available():
        return False
    x = torch.linspace(-1, 1, 8 * 81, dtype=torch.float32).reshape(1, 8, 9, 9)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            conv, point = (nn.Conv2d(8, 8, k, padding=k // 2, dtype=torch.float32) for k in (3, 1))
            product, rows = Pointwise(point, relu=True), as_rows(x)
            found = OrderedConv(conv, relu=True)(x), as_picture(product.multiplied(rows), x)
            wanted = conv(x).relu(), point(x).relu()
            return all(torch.allclose(a, b, atol=1e-4) for a, b in zip(found, wanted, strict=True))
    except (RuntimeError, AttributeError, NotImplementedError, TypeError):
        return False
