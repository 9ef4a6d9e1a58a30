"""Data that the page itself brings to train on: a zip of images and masks, or shapes drawn here."""

from __future__ import annotations

import io
import json
import lzma
import re
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from searchseg import ImageError, read_image
from searchseg.segmenter import png_bytes

SHAPES = ("background", "disc", "square")
DRAWN = {"train": 96, "test": 24}
DRAWN_SIDE = 64
MOST_PAIRS, MOST_BYTES, MOST_FILE_BYTES = 2000, 512 * 2**20, 20 * 2**20
MOST_ALL_PIXELS = 1_000_000_000
MOST_PIXELS, FEWEST_PAIRS, TEST_EVERY = 40_000_000, 10, 5
_ENTRY = re.compile(r"(?:[^/\\]+/)?(images|masks)/([^/\\]+)\.([A-Za-z]+)")


class DataError(ValueError):
    """A zip that is no training data; the message says what is wrong and what is wanted."""


def draw_shapes(folder: Path, seed: int = 0) -> None:
    """Write splits train and test of drawn discs and squares, with exact masks, as an imagefolder."""
    random = np.random.default_rng(seed)
    for split, count in DRAWN.items():
        for number in range(count):
            image, mask = _shapes(random)
            _keep(folder, split, number, png_bytes(image), png_bytes(mask), "png")
        _close(folder, split, count, ["png"] * count)


def _shapes(random: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    side = DRAWN_SIDE
    noise = random.normal(random.integers(60, 200, 3), 25, (side // 8, side // 8, 3)).clip(0, 255)
    image = Image.fromarray(noise.astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    mask = Image.new("L", (side, side))
    for kind in random.permutation([1, 2]):
        radius, color = int(random.integers(7, 15)), tuple(int(v) for v in random.integers(0, 256, 3))
        x, y = (int(v) for v in random.integers(radius, side - radius, 2))
        box = (x - radius, y - radius, x + radius, y + radius)
        for picture, fill in ((image, color), (mask, int(kind))):
            pen = ImageDraw.Draw(picture)
            (pen.ellipse if kind == 1 else pen.rectangle)(box, fill)
    return image.filter(ImageFilter.GaussianBlur(0.6)), mask


def unpack(archive: Path, folder: Path) -> tuple[set[int], int]:
    """Turn images/NAME.jpg with masks/NAME.png in a zip into an imagefolder; returns the values in the masks
    and the number of pairs.

    Every fifth pair, in the order of the names, goes to the split test. No name of the zip becomes a path.
    Raises DataError for what is not pairs of pictures and masks of equal size, or exceeds the bounds.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            return _unpack(packed, folder)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError, EOFError,
            OSError) as error:  # fmt: skip
        raise DataError(
            "This is no readable zip. Zip two folders, images and masks, without a password."
        ) from error


def _unpack(packed: zipfile.ZipFile, folder: Path) -> tuple[set[int], int]:
    pairs: dict[str, dict[str, zipfile.ZipInfo]] = {}
    for entry in packed.infolist():
        found = _ENTRY.fullmatch(entry.filename)
        if found and not found[2].startswith("."):  # macOS adds ._NAME
            pairs.setdefault(found[2], {})[found[1]] = entry
    whole = {name: pair for name, pair in sorted(pairs.items()) if len(pair) == 2}
    if len(whole) < FEWEST_PAIRS:
        raise DataError(
            f"The zip has {len(whole)} pictures with a mask, wanted are {FEWEST_PAIRS} or more: "
            "images/NAME.jpg with masks/NAME.png of the same name."
        )
    total = sum(entry.file_size for pair in whole.values() for entry in pair.values())
    if len(whole) > MOST_PAIRS or total > MOST_BYTES:
        raise DataError(f"At most {MOST_PAIRS} pairs and {MOST_BYTES >> 20} MB unpacked; use a Hub dataset.")
    counts, kinds, values = {"train": 0, "test": 0}, {"train": [], "test": []}, set()
    pixels = 0
    for place, (name, pair) in enumerate(whole.items()):
        split = "test" if place % TEST_EVERY == TEST_EVERY - 1 else "train"
        image, content, kind = _image(packed, pair["images"], name)
        mask = _mask(packed, pair["masks"], name, image)
        values |= set(np.unique(mask).tolist())
        pixels += mask.size
        if pixels > MOST_ALL_PIXELS:
            raise DataError(f"More than {MOST_ALL_PIXELS // 10**6} megapixels in all; use a Hub dataset.")
        _keep(folder, split, counts[split], content, png_bytes(Image.fromarray(mask)), kind)
        kinds[split].append(kind)
        counts[split] += 1
    for split, count in counts.items():
        _close(folder, split, count, kinds[split])
    return values, len(whole)


def _read(packed: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> bytes:
    with packed.open(entry) as file:
        content = file.read(MOST_FILE_BYTES + 1)
    if len(content) > MOST_FILE_BYTES:
        raise DataError(f"{name}: larger than {MOST_FILE_BYTES >> 20} MB.")
    return content


def _image(packed: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> tuple[Image.Image, bytes, str]:
    """The upright picture, and the bytes to keep with their kind: a JPEG as it is, all else as PNG."""
    content = _read(packed, entry, name)
    try:
        image = read_image(content)
    except ImageError as error:
        raise DataError(f"images, {name}: {error}") from error
    return (image, content, "jpg") if content.startswith(b"\xff\xd8") else (image, png_bytes(image), "png")


def _mask(packed: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str, image: Image.Image) -> np.ndarray:
    """Class ids, (H, W) uint8, of a grey or palette PNG."""
    try:
        with Image.open(io.BytesIO(_read(packed, entry, name)), formats=["PNG"]) as picture:
            if picture.width * picture.height > MOST_PIXELS or picture.mode not in ("L", "P", "1"):
                raise DataError(
                    f"masks, {name}: wanted is an 8-bit grey or palette PNG, value i for class i."
                )
            mask = np.array(picture).astype(np.uint8)
    except DataError:
        raise
    # what Pillow raises for hostile files, as in searchseg.images
    except (OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, struct.error, MemoryError,
            OverflowError, Image.DecompressionBombError) as error:  # fmt: skip
        raise DataError(f"masks, {name}: wanted is an 8-bit grey or palette PNG.") from error
    if mask.shape != (image.height, image.width):
        sizes = f"{mask.shape[1]} x {mask.shape[0]}, its picture {image.width} x {image.height}"
        raise DataError(f"{name}: the mask is {sizes}.")
    return mask


def _keep(folder: Path, split: str, number: int, image: bytes, mask: bytes, kind: str) -> None:
    place = folder / split
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{number:05d}.{kind}").write_bytes(image)
    (place / f"{number:05d}-mask.png").write_bytes(mask)


def _close(folder: Path, split: str, count: int, kinds: list[str]) -> None:
    rows = ({"file_name": f"{n:05d}.{kinds[n]}", "mask_file_name": f"{n:05d}-mask.png"} for n in range(count))
    (folder / split / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
