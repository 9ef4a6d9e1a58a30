"""Segmenter: a picture goes in, a Segmentation comes out. What the page, the commands and users call."""

from __future__ import annotations

import functools
import io
import json
import os
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageColor
from torch import Tensor, nn

from searchseg.config import REDUCING_GAP, ModelConfig
from searchseg.fast import faster
from searchseg.fold import folded
from searchseg.images import read_file, read_image, read_reduced
from searchseg.onnx import OnnxNetwork
from searchseg.pretrained import fingerprint, from_pretrained
from searchseg.task import IGNORE

BACKENDS = ("torch", "onnxruntime")
BAND_VALUES = 2**17  # of one class at full width at a time: bounds memory, and stays in the cache
GPU_BAND_VALUES = 2**22


class _Picture:
    """A field that holds a picture, or what reads it once it is asked for."""

    def __get__(self, owner: Segmentation | None, kind: object) -> Any:
        if owner is None:
            return self
        known = owner.__dict__["image"]
        if not isinstance(known, Image.Image):
            known = owner.__dict__["image"] = known()
        return known

    def __set__(self, owner: Segmentation, value: Image.Image | Callable[[], Image.Image]) -> None:
        owner.__dict__["image"] = value


@dataclass(frozen=True, eq=False)  # arrays do not compare to one truth
class Segmentation:
    """A picture with the class of every pixel.

    image: the upright RGB picture, that of a large JPEG file decoded when it is first asked for; mask: (H, W)
    uint8 class ids of the same size; classes and colors by class id; seconds: from picture to mask.
    """

    image: Image.Image
    mask: np.ndarray
    classes: tuple[str, ...]
    colors: tuple[str, ...]
    seconds: float

    @functools.cached_property
    def shares(self) -> dict[str, float]:
        """Part of the picture that each class covers, 0..1, in the order of `classes`."""
        counts = np.bincount(self.mask.ravel(), minlength=len(self.classes))
        return {name: float(count / self.mask.size) for name, count in zip(self.classes, counts, strict=True)}

    def colored(self) -> Image.Image:
        """The mask as an RGB picture in the colours of the classes."""
        picture = self.mask_image()
        picture.putpalette([value for color in self.colors for value in ImageColor.getrgb(color)])
        return picture.convert("RGB")

    def overlay(self, opacity: float = 0.5) -> Image.Image:
        """The picture with the coloured mask over it; `opacity` 0 shows the picture, 1 the mask alone."""
        if not 0 <= opacity <= 1:
            raise ValueError(f"opacity must lie between 0 and 1, got {opacity!r}")
        return Image.blend(self.image, self.colored(), opacity)

    def cutout(self, classes: Sequence[str] | None = None) -> Image.Image:
        """RGBA picture in which only `classes` are opaque; by default all but one named "background"."""
        wanted = [name for name in self.classes if name != "background"] if classes is None else list(classes)
        unknown = [name for name in wanted if name not in self.classes]
        if unknown:
            raise ValueError(f"no class {unknown[0]!r}; the classes are {', '.join(self.classes)}")
        opaque = [255 if name in wanted else 0 for name in self.classes]
        picture = self.image.convert("RGBA")
        picture.putalpha(self.mask_image().point(opaque + [0] * (256 - len(opaque))))
        return picture

    def mask_image(self) -> Image.Image:
        """The exact class ids as an 8-bit grey picture: save it as PNG, never as JPEG."""
        return Image.fromarray(self.mask)

    def to_json(self) -> str:
        """Size, classes with colour and share, and seconds; the mask itself is a picture, see
        `mask_image`."""
        height, width = self.mask.shape
        rows = [
            {"id": i, "name": name, "color": color, "share": round(self.shares[name], 6)}
            for i, (name, color) in enumerate(zip(self.classes, self.colors, strict=True))
        ]
        return json.dumps(
            {"height": height, "width": width, "classes": rows, "seconds": round(self.seconds, 4)}
        )


# behind the class, where it would be a default; a type checker sees the picture itself
Segmentation.image = _Picture()  # type: ignore[assignment]


class Segmenter:
    """Runs one network on pictures of any size.

    `model` is what `from_pretrained` gives: a module with a ModelConfig as `model.config`. What runs is a
    faster copy of it, made now: later changes of the weights do not reach it. `backend` "torch" runs what
    `searchseg.fast.faster` makes, "onnxruntime" (on a CPU, where it is installed) is faster still for a
    SEARCH-Net and takes ten seconds to start; OnnxError where it cannot run.
    """

    def __init__(
        self, model: nn.Module, device: str | torch.device | None = None, backend: str = "torch"
    ) -> None:
        config = getattr(model, "config", None)
        if not isinstance(config, ModelConfig):
            raise ValueError(
                "Segmenter needs a network with a ModelConfig as model.config, see from_pretrained"
            )
        self.config = config
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.eval().to(self.device)
        self._faster = self._ready(backend)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        revision: str | None = None,
        device: str | torch.device | None = None,
        token: str | None = None,
        local_files_only: bool = False,
        backend: str = "torch",
    ) -> Segmenter:
        """Load a folder or Hub id; arguments and errors as in `searchseg.from_pretrained`, `backend` as in
        `Segmenter`."""
        model = from_pretrained(source, revision, token, local_files_only=local_files_only)
        return cls(model, device, backend)

    def _ready(self, backend: str) -> nn.Module:
        if backend not in BACKENDS:
            raise ValueError(f"backend must be {' or '.join(BACKENDS)}, got {backend!r}")
        if backend == "onnxruntime":
            if self.device.type != "cpu":
                raise ValueError(f'backend "onnxruntime" runs on the CPU, not on {self.device}: device="cpu"')
            return OnnxNetwork(self.model, self.config.image_size)
        if self.device.type == "cpu":
            return faster(self.model)
        return folded(self.model).to(memory_format=torch.channels_last)

    @property
    def commit(self) -> str | None:
        """The commit of the Hub repository that the network came from; None for a folder."""
        return getattr(self.model, "commit", None)

    @functools.cached_property
    def fingerprint(self) -> str:
        """What tells this network from every other, see `searchseg.pretrained.fingerprint`."""
        return fingerprint(self.model)

    @torch.inference_mode()
    def __call__(self, image: Image.Image | str | os.PathLike[str] | bytes | np.ndarray) -> Segmentation:
        """Segment a PIL image, path, bytes or (H, W, 3) uint8 array; ImageError when it is not a usable
        picture.

        The network sees a large JPEG file decoded at a half, a quarter or an eighth of its sides, where that
        is twice its input or more, as `ModelConfig.tensor` reduces other large pictures.
        """
        small, size, whole = self._read(image)
        began = time.perf_counter()
        (mask,) = self.masks([small], sizes=[size])
        seconds = time.perf_counter() - began
        return Segmentation(whole, mask, self.config.classes, self.config.colors, seconds)

    def _read(
        self, image: Image.Image | str | os.PathLike[str] | bytes | np.ndarray
    ) -> tuple[Image.Image, tuple[int, int], Any]:
        """The picture for the network, the size (width, height) of the whole one, and that or its reader."""
        if isinstance(image, (str, os.PathLike)):
            image = read_file(image)
        if isinstance(image, bytes):
            small, size = read_reduced(image, round(REDUCING_GAP * max(self.config.image_size)))
            return small, size, small if small.size == size else functools.partial(read_image, image)
        picture = read_image(image)
        return picture, picture.size, picture

    @torch.inference_mode()
    def masks(
        self, pictures: Sequence[Image.Image], sure: float = 0.0,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[np.ndarray]:  # fmt: skip
        """(H, W) uint8 class ids of upright RGB pictures of any sizes, which go through the network as one
        batch, a large one in parts on a CPU; 255 where the best class has a probability below `sure`.

        `sizes`: other ones (width, height) for the masks, where the pictures are reduced.
        """
        batch = torch.stack([self.config.tensor(picture) for picture in pictures])
        scores = self._faster(batch.to(self.device, memory_format=torch.channels_last)).float()
        sizes = [picture.size for picture in pictures] if sizes is None else sizes
        masks = [class_ids(s, height, width) for s, (width, height) in zip(scores, sizes, strict=True)]
        for mask, own in zip(masks, scores, strict=True) if sure else ():
            mask[doubtful(own, mask.shape[0], mask.shape[1], sure)] = IGNORE
        return masks


def png_options(picture: Image.Image) -> dict[str, int]:
    """How `picture.save` makes a PNG of it fast.

    Class ids (modes L and P) are runs of equal values: run lengths alone take 0.6 to 0.7 of the time of
    Pillow's default and fewer bytes, unless regions repeat in a pattern. Photos take 0.4 of it, and 12 % more
    bytes.
    """
    return {"compress_type": zlib.Z_RLE} if picture.mode in ("L", "P") else {"compress_level": 1}


def png_bytes(picture: Image.Image) -> bytes:
    """The picture as a PNG file, made as `png_options` says."""
    stream = io.BytesIO()
    picture.save(stream, "PNG", **png_options(picture))
    return stream.getvalue()


def class_ids(scores: Tensor, height: int, width: int) -> np.ndarray:
    """Scores (K, h, w) to the best class of every pixel of a (height, width) picture, as uint8.

    The scores are upsampled bilinearly, a band of rows at a time: first in width, where a band has few rows,
    then in height. A band stays in the processor's cache, and the mask of a 40-megapixel photo needs no
    40-megapixel scores.
    """
    if len(scores) == 2:  # which one is larger is the sign of the difference
        scores = scores[1:] - scores[:1]
    rows = scores.shape[1]
    source = ((torch.arange(height, device=scores.device) + 0.5) * rows / height - 0.5).clamp(0, rows - 1)
    above = source.long()
    below = (above + 1).clamp_max(rows - 1)
    share = (source - above).view(-1, 1)
    values = BAND_VALUES if scores.device.type == "cpu" else GPU_BAND_VALUES
    band = max(1, values // (width * max(1, -(-rows // height))))
    mask = torch.empty((height, width), dtype=torch.uint8, device=scores.device)
    for top in range(0, height, band):
        part = slice(top, min(top + band, height))
        first, last = int(above[part.start]), int(below[part.stop - 1]) + 1
        lines = scores[None, :, first:last]
        size = (last - first, width)
        wide = F.interpolate(lines, size=size, mode="bilinear", align_corners=False)[0]
        _best(wide, above[part] - first, below[part] - first, share[part], mask[part])
    return mask.cpu().numpy()


def doubtful(scores: Tensor, height: int, width: int, sure: float) -> np.ndarray:
    """Where the best class of scores (K, h, w) has a probability below `sure`: (height, width) bool; the
    probabilities are upsampled bilinearly."""
    best = scores.softmax(0).amax(0)[None, None]
    return (
        (F.interpolate(best, (height, width), mode="bilinear", align_corners=False)[0, 0] < sure)
        .cpu()
        .numpy()
    )


def _best(wide: Tensor, above: Tensor, below: Tensor, share: Tensor, mask: Tensor) -> None:
    """Write the ids of the largest of `wide` (K, rows, W), interpolated between its rows, to `mask`; a single
    score is that of class 1 above that of class 0."""
    best = torch.lerp(wide[0, above], wide[0, below], share)
    if len(wide) == 1:
        torch.gt(best, 0, out=mask.view(torch.bool))
        return
    mask.zero_()
    for number, line in enumerate(wide[1:], start=1):
        other = torch.lerp(line[above], line[below], share)
        mask.masked_fill_(other > best, number)
        torch.maximum(best, other, out=best)
