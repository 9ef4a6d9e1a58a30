"""Shards of a dataset of masks: how rows are cut, what a row of masks holds, and one parquet file a shard."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from searchseg.images import ImageError, read_image
from searchseg.segmenter import Segmenter, png_bytes
from searchseg.task import TaskError
from training.dataset_folder import write_parquet
from training.files import replace_whole

NAME_COLUMNS = ("file_name", "filename", "name", "image_id", "id")
FEWEST, MOST = 16, 1000  # rows of a shard: few enough to share among processes, many enough for a file


@dataclass(frozen=True)
class PictureColumns:
    """Columns of the source that are read; `load_rows` checks them as it does those of a task."""

    image: str
    name: str | None = None

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raise TaskError when a column is missing, naming those that the dataset has."""
        for option, column in (("--image-column", self.image), ("--name-column", self.name)):
            if column is not None and column not in columns:
                raise TaskError(
                    f"no column {column!r}; the dataset has {', '.join(columns)}: "
                    f"name the right one with {option}"
                )

    def select(self, rows: Any) -> Any:
        """Rows of `image` (not decoded: bytes and path) and, where the source names pictures, `name`."""
        import datasets

        feature = rows.features[self.image]
        if not isinstance(feature, datasets.Image):
            raise TaskError(
                f"column {self.image!r} holds {feature}, not pictures; the dataset has "
                f"{', '.join(rows.column_names)}: name the right one with --image-column"
            )
        name = self.name or next((name for name in NAME_COLUMNS if name in rows.column_names), None)
        columns = [self.image] if name in (None, self.image) else [self.image, name]
        rows = rows.cast_column(self.image, datasets.Image(decode=False)).select_columns(columns)
        for old, new in zip(columns, ("image", "name"), strict=False):
            rows = rows if old == new else rows.rename_column(old, new)
        return rows


@dataclass(frozen=True)
class Shard:
    """Rows `start` to `stop` of a split, and the file that their masks go to."""

    path: Path
    split: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def done(self) -> bool:
        """Whether its file is there with all rows."""
        try:
            return pq.read_metadata(self.path).num_rows == len(self)
        except (OSError, pa.ArrowException):
            return False

    def write(
        self, rows: Any, segmenter: Segmenter, batch_size: int, with_image: bool, folders: Sequence[Path],
        sure: float = 0.0,
    ) -> None:  # fmt: skip
        """Segment these rows of the split and let the file appear whole; `folders` and `sure` as in
        `segmented`."""
        numbers = range(self.start, self.stop)
        numbered = zip(numbers, rows.select(numbers), strict=True)
        results = segmented(segmenter, numbered, batch_size, with_image, folders, sure)
        schema = features(with_image).arrow_schema
        replace_whole(self.path, lambda file: write_parquet(file, results, schema))

    def faults(self) -> list[str]:
        """A sentence for every picture that has no mask."""
        columns = ["row", "name", "error"]
        rows = pq.read_table(self.path, columns=columns, page_checksum_verification=True).to_pylist()
        return [
            f"{self.split}, row {row['row']}{f' ({name})' if (name := row['name']) else ''}: {row['error']}"
            for row in rows
            if row["error"] is not None
        ]


def cut(split: str, rows: int, shard_rows: int | None, folder: Path) -> list[Shard]:
    """The shards of a split; by default a 64th of it each, but FEWEST rows at least and MOST at most."""
    size = shard_rows or min(max(-(-rows // 64), FEWEST), MOST)
    starts = range(0, rows, size)
    return [
        Shard(folder / f"{split}-{i:05d}-of-{len(starts):05d}.parquet", split, start, min(start + size, rows))
        for i, start in enumerate(starts)
    ]


def features(with_image: bool) -> Any:
    """The columns of the result."""
    from datasets import Features, Image, List, Value

    columns = {
        "row": Value("int64"), "name": Value("string"), "mask": Image(), "shares": List(Value("float32")),
        "error": Value("string"),
    }  # fmt: skip
    return Features({"image": Image(), **columns} if with_image else columns)


def segmented(
    segmenter: Segmenter,
    rows: Iterator[tuple[int, Mapping[str, Any]]],
    batch_size: int,
    with_image: bool,
    folders: Sequence[Path],
    sure: float = 0.0,
) -> Iterator[dict[str, Any]]:
    """Rows of the result for numbered rows of the source; `batch_size` of them are one batch.

    Pixels whose class has a probability below `sure` are 255 and belong to no share. A picture that is not in
    its row, but in a file, is read only where that file lies in one of `folders`.
    """
    while batch := list(islice(rows, batch_size)):
        results = [
            {"row": number, "name": _name(row), **_read(row["image"] or {}, folders)} for number, row in batch
        ]
        good = [result for result in results if result["error"] is None]
        masks = segmenter.masks([result["picture"] for result in good], sure) if good else []
        for result, mask in zip(good, masks, strict=True):
            classes = len(segmenter.config.classes)
            counts = np.bincount(mask.ravel(), minlength=classes)[:classes]
            content = png_bytes(Image.fromarray(mask))
            result |= {"mask": {"bytes": content, "path": None}, "shares": (counts / mask.size).tolist()}
        for result in results:
            del result["picture"]
            content = result.pop("content")
            if with_image:
                result["image"] = {"bytes": content, "path": result["name"]} if content else None
            yield result


def _name(row: Mapping[str, Any]) -> str | None:
    if row.get("name") is not None:
        return str(row["name"])
    path = (row["image"] or {}).get("path")
    return PurePath(path).name if path else None


def _read(image: Mapping[str, Any], folders: Sequence[Path]) -> dict[str, Any]:
    """The bytes of a row's picture as they are, and the picture itself or the reason why there is none."""
    content, picture, error = image.get("bytes") or b"", None, None
    try:
        if not content and image.get("path"):
            content = _file(Path(os.path.abspath(image["path"])), folders)
        picture = read_image(content)
    except ImageError as fault:
        error = str(fault)
    return {"content": content, "picture": picture, "error": error}


def _file(path: Path, folders: Sequence[Path]) -> bytes:
    # else a dataset from a stranger could name any file here, and --with-image would publish it
    if not any(path.is_relative_to(os.path.abspath(folder)) for folder in folders):
        raise ImageError(
            "The row names a file that does not belong to the dataset. Store the picture itself."
        )
    read_image(path)  # bounded, and from regular files only
    return path.read_bytes()
