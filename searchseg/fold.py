"""Batch norm folded into the convolution before it: the same function, with fewer passes over memory."""

from __future__ import annotations

import copy
import itertools

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def folded(model: nn.Module) -> nn.Module:
    """A copy of `model` in eval mode that runs faster; scores differ by rounding alone.

    In every nn.Sequential a BatchNorm2d right after a Conv2d goes into its kernels and bias (in eval mode it
    is a fixed scale and shift of each channel); others stay as they are. `model` itself is not changed.
    """
    faster = copy.deepcopy(model).eval()
    for chain in [module for module in faster.modules() if isinstance(module, nn.Sequential)]:
        for (place, conv), (after, norm) in itertools.pairwise(list(chain.named_children())):
            if (
                isinstance(conv, nn.Conv2d)
                and isinstance(norm, nn.BatchNorm2d)
                and norm.running_mean is not None
            ):
                setattr(chain, place, fuse_conv_bn_eval(conv, norm))
                setattr(chain, after, nn.Identity())
    return faster
