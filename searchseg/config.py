"""ModelConfig: the contents of config.json, which is all that is needed to run a network besides its
weights."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from searchseg.genotype import no_duplicates

SCHEMA = 1
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
REDUCING_GAP = 2.0  # how much larger than its goal a picture stays when whole pixels are averaged first
LARGEST_SIDE = 4096  # of a network's input; bounds what a strange config.json can cost


class ConfigError(ValueError):
    """A config.json that does not describe a model; the message names the entry and what was expected."""


@dataclass(frozen=True)
class ModelConfig:
    """Architecture and its constructor arguments, classes with colours, and how a picture becomes an
    input tensor."""

    architecture: str
    arguments: Mapping[str, Any]
    classes: tuple[str, ...]
    colors: tuple[str, ...]
    image_size: tuple[int, int]
    image_mean: tuple[float, float, float] = IMAGENET_MEAN
    image_std: tuple[float, float, float] = IMAGENET_STD
    ignore_index: int = 255

    def __post_init__(self) -> None:
        for name in ("classes", "colors", "image_size", "image_mean", "image_std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _expect(isinstance(self.architecture, str), "architecture", self.architecture, "a name")
        _expect(isinstance(self.arguments, Mapping), "arguments", self.arguments, "an object")
        _expect(
            2 <= len(self.classes) <= 255
            and all(isinstance(c, str) and c for c in self.classes)
            and len(set(self.classes)) == len(self.classes),
            "id2label",
            self.classes,
            "names for the classes 0, 1, ... (two to 255 of them, all different)",
        )
        _expect(
            len(self.colors) == len(self.classes) and all(_is_color(c) for c in self.colors),
            "colors",
            self.colors,
            "one #rrggbb a class",
        )
        _expect(
            len(self.image_size) == 2
            and all(type(n) is int and 1 <= n <= LARGEST_SIDE for n in self.image_size),
            "image_size",
            self.image_size,
            f"[height, width] from 1 to {LARGEST_SIDE}",
        )
        for name, values in (("image_mean", self.image_mean), ("image_std", self.image_std)):
            _expect(
                len(values) == 3 and all(_is_finite(v) for v in values), name, values, "three finite numbers"
            )
        _expect(all(v > 1e-6 for v in self.image_std), "image_std", self.image_std, "three positive numbers")
        _expect(
            type(self.ignore_index) is int and len(self.classes) <= self.ignore_index <= 255,
            "ignore_index",
            self.ignore_index,
            "a value above the classes, at most 255",
        )

    def tensor(self, image: Image.Image) -> Tensor:
        """An RGB picture as the network wants it: (3, H, W) float32, resized to `image_size` and
        normalised."""
        height, width = self.image_size
        small = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=REDUCING_GAP)
        return self.normalise(torch.from_numpy(np.array(small)).permute(2, 0, 1))

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 (..., 3, H, W) in 0..255 to float32 with the mean and deviation of the training pictures
        removed."""
        mean = torch.tensor(self.image_mean, device=pixels.device).view(3, 1, 1)
        std = torch.tensor(self.image_std, device=pixels.device).view(3, 1, 1)
        return (pixels.float() / 255 - mean) / std

    def to_json(self) -> str:
        """The text of config.json (schema 1)."""
        fields = asdict(self)
        classes = fields.pop("classes")
        document = {
            "schema": SCHEMA,
            "architecture": fields.pop("architecture"),
            "arguments": dict(fields.pop("arguments")),
            "id2label": {str(i): name for i, name in enumerate(classes)},
            "label2id": {name: i for i, name in enumerate(classes)},
            **fields,
        }
        return json.dumps(document, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> ModelConfig:
        """Read config.json; raises ConfigError naming the first entry that is wrong."""
        try:
            document = json.loads(text, object_pairs_hook=no_duplicates)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"config.json is not JSON: {error}") from error
        if not isinstance(document, dict) or "architecture" not in document:
            raise ConfigError("config.json has no 'architecture': this is not a searchseg model")
        if document.get("schema") != SCHEMA:
            raise ConfigError(
                f"config.json has schema {document.get('schema')!r}, this version reads {SCHEMA}: "
                "upgrade searchseg"
            )
        names: Any = document.get("id2label")
        _expect(isinstance(names, dict), "id2label", names, 'an object {"0": "name", ...}')
        _expect(
            set(names) == {str(i) for i in range(len(names))},
            "id2label",
            names,
            "the keys 0, 1, ... without gap",
        )
        wanted = ("arguments", "colors", "image_size", "image_mean", "image_std")
        for name in wanted:
            kind = dict if name == "arguments" else list
            _expect(isinstance(document.get(name), kind), name, document.get(name), f"a JSON {kind.__name__}")
        return cls(
            document["architecture"],
            classes=tuple(names[str(i)] for i in range(len(names))),
            ignore_index=document.get("ignore_index", 255),
            **{name: document[name] for name in wanted},
        )


def _expect(condition: bool, name: str, value: Any, wanted: str) -> None:
    if not condition:
        raise ConfigError(f"config: {name} must be {wanted}, got {value!r:.200}")


def _is_color(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", value) is not None


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
