"""Networks to hold a SEARCH-Net against, by the names that config.json knows them by.

`BASELINES` builds each from the arguments in its config.json. All but the UNet stand on timm and
segmentation-models-pytorch, which are imported when the first of them is built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from searchseg.baselines.encoded import SMP_NAMES, EncodedNetwork
from searchseg.baselines.forerunners import FCN, SegNet
from searchseg.baselines.setr import SETR
from searchseg.baselines.unet import UNet, UNetConfig

__all__ = [
    "BASELINES",
    "FCN",
    "SETR",
    "SMP_NAMES",
    "TITLES",
    "EncodedNetwork",
    "SegNet",
    "UNet",
    "UNetConfig",
]

TITLES = {
    "searchnet": "SEARCH-Net", "unet": "UNet", "fcn": "FCN", "segnet": "SegNet", "setr": "SETR",
    **SMP_NAMES,
    "unetplusplus": "UNet++", "deeplabv3": "DeepLabV3", "deeplabv3plus": "DeepLabV3+", "pspnet": "PSPNet",
}  # fmt: skip


def _unet(**arguments: Any) -> nn.Module:
    config = UNetConfig(**arguments)
    return UNet(config.widths, config.num_classes)


def _encoded(architecture: str) -> Callable[..., nn.Module]:
    return lambda **arguments: EncodedNetwork(architecture, **arguments)


BASELINES: Mapping[str, Callable[..., nn.Module]] = {
    "unet": _unet,
    "fcn": FCN,
    "segnet": SegNet,
    "setr": SETR,
    **{name: _encoded(name) for name in SMP_NAMES},
}
