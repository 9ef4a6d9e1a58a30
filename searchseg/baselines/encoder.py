"""What networks on a borrowed encoder have in common: the check of its name, and input of any size."""

from __future__ import annotations

import re
from types import ModuleType

import torch.nn.functional as F
from torch import Tensor, nn

# a letter first, and neither ":" nor "/": timm would fetch "hf-hub:user/name" from the network
_ENCODER = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,79}")


# what timm and segmentation-models-pytorch raise, besides ValueError, for an encoder that does not fit
MISFITS = (
    AssertionError, AttributeError, ImportError, IndexError, KeyError, NotImplementedError, RuntimeError,
    TypeError,
)  # fmt: skip


def checked(encoder: str, num_classes: int) -> None:
    """Raises ValueError for an encoder that is no plain name, or a number of classes out of 2..255."""
    if not isinstance(encoder, str) or not _ENCODER.fullmatch(encoder):
        raise ValueError(f"encoder must be a plain name such as resnet18, got {encoder!r:.100}")
    if type(num_classes) is not int or not 2 <= num_classes <= 255:
        raise ValueError(f"num_classes must be an integer from 2 to 255, got {num_classes!r:.100}")


def timm() -> ModuleType:
    """The module timm; raises ValueError with the cure where it is not installed."""
    try:
        import timm as module
    except ImportError as error:
        raise ValueError("this architecture needs timm: pip install timm") from error
    return module


def input_statistics(
    encoder: str,
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and deviation, of pixels in 0..1, that the ImageNet weights of an encoder were trained with."""
    known = timm().get_pretrained_cfg(encoder.removeprefix("tu-"), allow_unregistered=True)
    if known is not None:
        return known.mean, known.std
    from segmentation_models_pytorch.encoders import get_preprocessing_params

    found = get_preprocessing_params(encoder)
    return tuple(found["mean"]), tuple(found["std"])


class AnySize(nn.Module):
    """A network whose input must be a multiple of `stride`, made to take images of any size.

    The image (B, 3, H, W) is enlarged to the next multiple, the scores (B, num_classes, H, W) come back at
    its own size, both bilinearly.
    """

    stride: int

    def scores(self, image: Tensor) -> Tensor:
        """Class scores for a side that is a multiple of `stride`, at any size."""
        raise NotImplementedError

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[2:]
        fitting = [self.stride * max(1, -(-side // self.stride)) for side in (height, width)]
        if fitting != [height, width]:
            image = F.interpolate(image, fitting, mode="bilinear", align_corners=False)
        scores = self.scores(image)
        if scores.shape[2:] != (height, width):
            scores = F.interpolate(scores, (height, width), mode="bilinear", align_corners=False)
        return scores
