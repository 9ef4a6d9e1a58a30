"""Task: what the columns of a dataset mean, and how a row becomes a picture and a mask of class ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from searchseg.images import ImageError, read_image

IGNORE = 255
PET_REVISION = "18515194612b584bf54692372ac035ef773a5b41"
CAMVID_CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree",
    "sign", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
CAMVID_COLORS = (
    "#80c8ff", "#b04848", "#e8d080", "#7a5c90", "#3c50c8", "#508c32",
    "#e0a0a0", "#e08c28", "#a01e6e", "#f0e03c", "#28c8b4",
)  # fmt: skip
PALETTE = (  # for tasks that bring no colours: Okabe and Ito's colour-blind-safe set, then tints of it
    "#303030", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7",
    "#999999", "#7f5200", "#b3e0ff", "#66d9b8", "#8a8000", "#66b3ff", "#ffb380", "#ffcce6",
)  # fmt: skip


class TaskError(ValueError):
    """Rows that do not fit the task; the message names the row and the cure."""


@dataclass(frozen=True)
class Task:
    """Columns, classes with colours, and the class id of every mask value (IGNORE = 255 counts for
    nothing)."""

    name: str
    classes: tuple[str, ...]
    ids: Mapping[int, int]
    image_column: str = "image"
    mask_column: str = "mask"
    name_column: str | None = None
    colors: tuple[str, ...] = ()
    dataset: str | None = None
    revision: str | None = None
    note: str = ""
    _table: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 2 <= len(self.classes) <= 255 or len(set(self.classes)) != len(self.classes):
            raise TaskError(f"a task needs 2 to 255 classes with different names, got {self.classes!r}")
        table = np.full(256, -1, np.int16)
        for value, class_id in self.ids.items():
            if not 0 <= value <= 255 or not (0 <= class_id < len(self.classes) or class_id == IGNORE):
                raise TaskError(
                    f"mask value {value} -> class {class_id}: want 0..255 -> a class id or {IGNORE}"
                )
            table[value] = class_id
        colors = self.colors or tuple(PALETTE[i % len(PALETTE)] for i in range(len(self.classes)))
        if len(colors) != len(self.classes):
            raise TaskError(f"{len(self.classes)} classes need as many colours, got {len(colors)}")
        object.__setattr__(self, "colors", colors)
        object.__setattr__(self, "ids", MappingProxyType(dict(self.ids)))
        object.__setattr__(self, "_table", table)

    def __reduce__(self) -> tuple[Any, ...]:
        # a mapping proxy cannot be pickled; workers that are spawned get the task by pickle
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        return _rebuild, ({**values, "ids": dict(self.ids)},)

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raise TaskError when the dataset lacks the image or mask column, naming those it has."""
        for option, column in (("--image-column", self.image_column), ("--mask-column", self.mask_column)):
            if column not in columns:
                raise TaskError(
                    f"no column {column!r}; the dataset has {', '.join(columns)}: "
                    f"name the right one with {option}"
                )

    def read(self, row: Mapping[str, Any], where: str = "row") -> tuple[Image.Image, np.ndarray]:
        """Picture (RGB) and mask ((H, W) uint8 class ids, 255 ignored) of a row, both at their full size.

        `where` names the row in errors. Raises TaskError when the mask has another size than the picture,
        more than one channel, or a value that the task does not declare.
        """
        if self.name_column is not None and self.name_column in row:
            where = f"{where} ({row[self.name_column]})"
        image, mask = row[self.image_column], row[self.mask_column]
        for column, value in ((self.image_column, image), (self.mask_column, mask)):
            if not isinstance(value, Image.Image):
                raise TaskError(f"{where}: column {column!r} holds {type(value).__name__}, not a picture")
        if image.size != mask.size:
            raise TaskError(
                f"{where}: the picture is {image.width}x{image.height}, its mask {mask.width}x{mask.height}: "
                "make them equal (decoding turns photos upright by their EXIF tag; masks have none)"
            )
        try:
            picture = read_image(image)
        except ImageError as error:
            raise TaskError(f"{where}: {error}") from error
        return picture, self._class_ids(np.array(mask), where)

    def _class_ids(self, values: np.ndarray, where: str) -> np.ndarray:
        if values.ndim != 2:
            raise TaskError(
                f"{where}: the mask has {values.shape[-1]} channels: save it with one (class ids, 8 bits)"
            )
        if values.dtype.kind == "f":
            raise TaskError(f"{where}: the mask holds {values.dtype} numbers: save it with class ids, 8 bits")
        values = values.astype(np.int64)  # of one bit, numpy would take True and False for a selection
        present = np.unique(values)
        unknown = [v for v in present.tolist() if not 0 <= v <= 255 or self._table[v] < 0]
        if unknown:
            raise TaskError(
                f"{where}: mask value {unknown[0]} is not declared (declared: {sorted(self.ids)}); "
                "add a class for it with --classes or leave it out with --ignore-value"
            )
        return self._table[values].astype(np.uint8)


def _rebuild(values: dict[str, Any]) -> Task:
    return Task(**values)


def pet(border: str = "ignore") -> Task:
    """Oxford-IIIT Pet, trimap 1 pet, 2 background, 3 border; `border` is "ignore", "pet" or "class" (a
    third class)."""
    rules = {"ignore": IGNORE, "pet": 1, "class": 2}
    if border not in rules:
        raise TaskError(f"border must be one of {', '.join(rules)}, got {border!r}")
    three = border == "class"
    return Task(
        name="pet",
        classes=("background", "pet", "border") if three else ("background", "pet"),
        colors=("#303030", "#f08a24", "#56b4e9")[: 3 if three else 2],
        ids={1: 1, 2: 0, 3: rules[border]},
        mask_column="segmentation_mask",
        name_column="file_name",
        dataset="dpdl-benchmark/oxford_iiit_pet",
        revision=PET_REVISION,
        note={"ignore": "border ignored", "pet": "border counted as pet", "class": "border is a class"}[
            border
        ],
    )


def camvid() -> Task:
    """CamVid with the 11 classes of SegNet; label 11 (void) is ignored."""
    ids = {i: i for i in range(len(CAMVID_CLASSES))} | {11: IGNORE}
    return Task(
        "camvid", CAMVID_CLASSES, ids, mask_column="label", name_column="file_name", colors=CAMVID_COLORS,
        note="void ignored",
    )  # fmt: skip


def custom(
    classes: Sequence[str],
    *,
    image_column: str = "image",
    mask_column: str = "mask",
    ignore_value: int | None = None,
) -> Task:
    """A task on a user's own dataset: mask value i is class i, `ignore_value` (if any) counts for nothing."""
    ids = {i: i for i in range(len(classes))}
    if ignore_value in ids:
        raise TaskError(f"--ignore-value {ignore_value} is the mask value of class {classes[ignore_value]!r}")
    if ignore_value is not None:
        ids[ignore_value] = IGNORE
    note = "every pixel counts" if ignore_value is None else f"value {ignore_value} ignored"
    return Task("custom", tuple(classes), ids, image_column, mask_column, note=note)
