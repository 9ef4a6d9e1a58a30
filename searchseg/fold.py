"""Batch norm folded into the convolution before it: the same function, with fewer passes over memory."""

from __future__ import annotations

import copy
import itertools
from collections import Counter

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def folded(model: nn.Module) -> nn.Module:
    """A copy of `model` in eval mode that runs faster; scores differ by rounding alone.

    In every plain nn.Sequential a BatchNorm2d right after a Conv2d goes into its kernels and bias (in eval
    mode it is a fixed scale and shift of each channel); subclasses of either, and layers that stand in
    several places, stay as they are. `model` itself is not changed.
    """
    faster = copy.deepcopy(model).eval()
    places = Counter(id(child) for module in faster.modules() for child in module._modules.values())
    for chain in [m for m in faster.modules() if type(m).forward is nn.Sequential.forward]:
        for (place, conv), (after, norm) in itertools.pairwise(list(chain._modules.items())):
            if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
                continue
            plain = type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d
            if plain and norm.running_mean is not None and places[id(conv)] == places[id(norm)] == 1:
                setattr(chain, place, fuse_conv_bn_eval(conv, norm))
                setattr(chain, after, nn.Identity())
    return faster
