"""Architectures of segmentation-models-pytorch: FPN, DeepLabV3, UNet++ and whatever else it has."""

from __future__ import annotations

import copy
import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from searchseg.baselines.encoder import MISFITS, AnySize, checked

# name in config.json -> class in segmentation-models-pytorch; its Unet is left out, "unet" is our own
SMP_NAMES = {
    "fpn": "FPN", "deeplabv3": "DeepLabV3", "unetplusplus": "UnetPlusPlus", "deeplabv3plus": "DeepLabV3Plus",
    "linknet": "Linknet", "manet": "MAnet", "pan": "PAN", "pspnet": "PSPNet", "segformer": "Segformer",
    "upernet": "UPerNet", "dpt": "DPT",
}  # fmt: skip


# PAN pools its deepest feature three times, by seven, five and three
LARGER_STRIDES = {"pan": 128}
ENCODERS = {"segformer": "mit_b0", "dpt": "tu-vit_tiny_patch16_224"}  # the others stand on resnet18
PARTLY_USED = ("pspnet", "dpt")  # they build more of the encoder than they read
CHOICES: dict[str, dict[str, Any]] = {"dpt": {"dynamic_img_size": True}}


class EncodedNetwork(AnySize):
    """A segmentation-models-pytorch network: images (B, 3, H, W) of any size to (B, num_classes, H, W).

    `encoder` (by default a small one) is a name that segmentation-models-pytorch or, as "tu-NAME", timm
    knows. `pretrained` fetches ImageNet weights of the encoder to begin a training with; it is no part of
    what is saved. A training batch needs two images, as some decoders normalise over one pixel. Raises
    ValueError for an encoder that the architecture cannot stand on.
    """

    def __init__(
        self,
        architecture: str,
        encoder: str | None = None,
        num_classes: int = 2,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        encoder = ENCODERS.get(architecture, "resnet18") if encoder is None else encoder
        checked(encoder, num_classes)
        try:
            import segmentation_models_pytorch as smp
        except ImportError as error:
            needed = "pip install segmentation-models-pytorch"
            raise ValueError(f"{architecture} needs segmentation-models-pytorch: {needed}") from error
        self.architecture, self.stride = architecture, LARGER_STRIDES.get(architecture, 32)
        self.arguments = {"encoder": encoder, "num_classes": num_classes}
        make, weights = getattr(smp, SMP_NAMES[architecture]), "imagenet" if pretrained else None
        choices = CHOICES.get(architecture, {})
        try:
            with _device(encoder):
                self.network = make(encoder, encoder_weights=weights, classes=num_classes, **choices)
            stride = getattr(self.network.encoder, "output_stride", 32)
            self.stride = math.lcm(32, stride) if architecture == "dpt" else self.stride
            if architecture in PARTLY_USED:
                freeze_unused(self)
        except MISFITS as error:
            raise ValueError(f"{architecture} cannot stand on the encoder {encoder!r}: {error}") from error

    def scores(self, image: Tensor) -> Tensor:
        return self.network(image)


def freeze_unused(network: AnySize) -> None:
    """Take out of training what no gradient reaches: processes that train together wait for all of them."""
    side = 2 * network.stride
    with torch.inference_mode(False), torch.enable_grad():  # whatever the caller has switched off
        ghost = copy.deepcopy(network).to("meta").eval()
        scores = ghost(torch.empty(1, 3, side, side, device="meta"))
        found = torch.autograd.grad(scores.sum(), list(ghost.parameters()), allow_unused=True)
    for weight, gradient in zip(network.parameters(), found, strict=True):
        weight.requires_grad_(gradient is not None)


def _device(encoder: str) -> AbstractContextManager[object]:
    """The mix transformers compute with values while they are built, which the meta device has not."""
    return torch.device("cpu") if encoder.startswith("mit_") else nullcontext()
