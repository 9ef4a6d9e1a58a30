"""Untrusted pictures: bytes, a path, an array or a PIL image -> an upright RGB picture, or one ImageError.

A decoder cannot be stopped once it runs, so the work is bounded before it starts: the bytes of the file, the
passes and the metadata it asks for, its pixels and its sides. Only the first frame of an animation is read.
"""

from __future__ import annotations

import io
import os
import re
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.Image import Transpose

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
MAX_FILE_BYTES = 20 * 2**20
MAX_PIXELS = 40_000_000  # 160 MB for each decoded copy
MAX_SIDE = 20_000
MAX_JPEG_SCANS = 100  # a scan visits every pixel: a 345 KB file with thousands of them takes 40 s
# Costs of Pillow 12.3 on metadata alone, in files that the four limits above let through:
MAX_JPEG_EXIF_BYTES = 128 * 1024  # parsed at opening, and tags may share bytes: 8 MB with 60 tags take 480 MB
MAX_JPEG_SEGMENTS = 10_000  # an ordinary file has fewer than 100
MAX_PNG_COMPRESSED_CHUNKS = 100  # each may unpack to 1 MB: 20 MB of them take 40 s
MAX_HEADER_READS = 20_000  # 18 MB of GIF comment take 140,000 reads and 37 s

URL = re.compile(r"\s*([a-z][a-z0-9+.-]*://|data:)", re.IGNORECASE)
# The markers which a length follows, and the end of the image (D9). No repetition in it: linear time.
JPEG_MARKER = re.compile(rb"\xff[\xc0-\xc7\xc9-\xcf\xd9-\xef\xfe]")
JPEG_END, JPEG_SCAN, JPEG_APP1 = 0xD9, 0xDA, 0xE1
ORIENTATION_TAG = 0x0112
ORIENTATIONS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
TURNED = (Transpose.TRANSPOSE, Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90)

NO_PICTURE = (
    "This file is not a readable JPEG, PNG, WEBP, BMP or GIF picture. "
    "Open it in an image program, save it as JPEG or PNG, and try again."
)
DAMAGED = "The picture is damaged or incomplete. Download or export it again and retry."
TOO_MANY_PIXELS = (
    f"The picture has more than {MAX_PIXELS // 10**6} million pixels, or a side longer than {MAX_SIDE}. "
    "Make it smaller and try again."
)
TOO_MUCH_METADATA = (
    "The file carries far more hidden data than a picture needs. "
    "Open it in an image program, save it as a new file, and try again."
)

DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    NotImplementedError,
    OverflowError,
    # Seen with Pillow 12.3, whose load() passes on what its open() turns into a SyntaxError:
    IndexError,  # PNG with an empty iCCP chunk behind its pixels
    struct.error,  # PNG with a short gAMA, cHRM or tRNS chunk behind its pixels
    TypeError,  # an open image converted from a palette to one bit, which kept the palette's transparency
    UserWarning,  # only where warnings are errors: JPEG with broken EXIF or a broken list of further pictures
)


class ImageError(ValueError):
    """A picture that cannot be used; the message says what is wrong and what to do, never a path."""


def read_image(source: Image.Image | str | os.PathLike[str] | bytes | np.ndarray) -> Image.Image:
    """Return the picture upright, as a loaded mode "RGB" image of its own: no open file, no metadata.

    source: a PIL image, the path of a local file (a str is never a URL), the bytes of a file, or an (H, W, 3)
    uint8 array. Transparency is laid on white, 16 bits a channel become 8 by scaling, an animation gives its
    first frame. A PIL image gives the frame it stands at, and only its size is bounded (its file is already
    open). Raises ImageError, and nothing else, for whatever is not such a picture.
    """
    if isinstance(source, Image.Image):
        return _decode(source)
    if isinstance(source, np.ndarray):
        return _decode(_from_array(source), ours=True)
    if isinstance(source, (str, os.PathLike)):
        source = read_file(source)
    if not isinstance(source, bytes):
        raise ImageError(
            f"A picture must be a file, its bytes, a PIL image or an (H, W, 3) uint8 array, "
            f"but this is of type {type(source).__name__}. Give one of these."
        )
    with _open(source) as image:
        return _decode(image, ours=True)


def read_reduced(data: bytes, least: int) -> tuple[Image.Image, tuple[int, int]]:
    """The picture of a file as `read_image` gives it, and its own size (width, height).

    A JPEG comes at a half, a quarter or an eighth of its sides where both keep `least` pixels: libjpeg then
    computes no others, which takes less time and memory. ImageError as from `read_image`: it reads as much of
    the file.
    """
    with _open(data) as image:
        whole = image.size
        with _decoder_errors():
            _check_size(*whole)
            image.draft(image.mode, (least, least))  # only a JPEG does anything with it
        reduced, small = image.size != whole, _decode(image, ours=True)
        turned = ORIENTATIONS.get(_orientation(image.info.get("exif"))) in TURNED
        return small, small.size if not reduced else whole[::-1] if turned else whole


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a regular file, at most MAX_FILE_BYTES + 1 of them; ImageError where it has none."""
    if isinstance(path, str) and URL.match(path):
        raise ImageError("This is a web address, not a file. Save the picture and choose the saved file.")
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ImageError("This is a device, not a picture file. Choose a picture file.")
            return file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise ImageError("The picture file does not exist. Check its name or choose it again.") from error
    except IsADirectoryError as error:
        raise ImageError("This is a folder, not a picture file. Choose a picture file.") from error
    except ImageError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise ImageError("The picture file cannot be opened. Choose it again, or another one.") from error


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a fifo without a writer would block for ever


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        received = f"{array.shape} and {array.dtype}"
        raise ImageError(f"An array must be (H, W, 3) and uint8, but this is {received}. Convert it first.")
    _check_size(array.shape[1], array.shape[0])
    return Image.fromarray(array)


def _open(data: bytes) -> Image.Image:
    """The picture in `data`, identified and within the limits, but not yet decoded."""
    if not data:
        raise ImageError("The file is empty. Download or export the picture again and retry.")
    if len(data) > MAX_FILE_BYTES:
        raise ImageError(f"The file is larger than {MAX_FILE_BYTES // 2**20} MB. Make the picture smaller.")
    if data.startswith(b"\xff\xd8\xff"):
        _check_jpeg(data)
    elif data.startswith(b"\x89PNG"):
        _check_png(data)
    with _decoder_errors():
        file = _HeaderFile(data)
        image = Image.open(file, formats=FORMATS)
        file.opened = True
        return image


class _HeaderFile(io.BytesIO):
    """Bytes as a file of which only MAX_HEADER_READS pieces may be read until it is `opened`."""

    opened = False
    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > MAX_HEADER_READS and not self.opened:
            raise ImageError(TOO_MUCH_METADATA)
        return super().read(size)


def _check_png(data: bytes) -> None:
    # The names may stand in pixels by chance, but not a hundred times.
    if sum(data.count(name) for name in (b"iCCP", b"zTXt", b"iTXt")) > MAX_PNG_COMPRESSED_CHUNKS:
        raise ImageError(TOO_MUCH_METADATA)


def _check_jpeg(data: bytes) -> None:
    """Count what a JPEG asks of the decoder, skipping what libjpeg and Pillow skip."""
    scans = exif_bytes = 0
    for count, (marker, segment) in enumerate(_jpeg_segments(data)):
        if marker == JPEG_SCAN:
            scans += 1
        elif marker == JPEG_END and scans:  # before the first scan Pillow reads on
            break
        elif marker == JPEG_APP1 and data.startswith(b"Exif\0\0", segment.start + 2):
            exif_bytes += len(segment)
        if scans > MAX_JPEG_SCANS:
            raise ImageError(
                f"This JPEG is stored in more than {MAX_JPEG_SCANS} passes, which takes too long to read. "
                "Save it again as an ordinary (baseline) JPEG or as PNG."
            )
        if exif_bytes > MAX_JPEG_EXIF_BYTES or count > MAX_JPEG_SEGMENTS:
            raise ImageError(TOO_MUCH_METADATA)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, range]]:
    """Each marker byte with the positions of its segment (two bytes of length, then the content)."""
    position = 2
    while match := JPEG_MARKER.search(data, position):
        start, marker = match.end(), data[match.end() - 1]
        length = 0 if marker == JPEG_END else int.from_bytes(data[start : start + 2], "big")
        position = start + length
        yield marker, range(start, position)


def _check_size(width: int, height: int) -> None:
    if min(width, height) < 1:
        raise ImageError("The picture is empty, it has no pixels. Choose another one.")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise ImageError(TOO_MANY_PIXELS)


def _decode(image: Image.Image, ours: bool = False) -> Image.Image:
    """The upright RGB picture. The pixels of an image that is `ours` are taken over, not copied."""
    with _decoder_errors():
        _check_size(*image.size)
        image.load()
        plain = ours and image.mode == "RGB" and not image.has_transparency_data
        rgb = image._new(image.im) if plain else _to_rgb(image)
        orientation = ORIENTATIONS.get(_orientation(image.info.get("exif")))
        upright = rgb if orientation is None else rgb.transpose(orientation)
        upright.info = {}  # no comment, place or owner travels on into what is made of the picture
        return upright


@contextmanager
def _decoder_errors() -> Iterator[None]:
    """Turn what Pillow raises for a bad picture into an ImageError."""
    try:
        yield
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(TOO_MANY_PIXELS) from error
    except UnidentifiedImageError as error:
        raise ImageError(NO_PICTURE) from error
    except MemoryError as error:
        raise ImageError("There is too little memory for this picture. Make it smaller and retry.") from error
    except DECODER_ERRORS as error:
        raise ImageError(DAMAGED) from error


def _orientation(exif: object) -> int:
    """The orientation 1..8 in the first directory of an EXIF block, any other number if it has none.

    Not ImageOps.exif_transpose: that parses and rewrites the whole block, fails where any part is broken, and
    takes hundreds of MB for a hostile one.
    """
    if not isinstance(exif, bytes):
        return 0
    block = exif.removeprefix(b"Exif\0\0")
    order: Literal["little", "big"] = "little" if block.startswith(b"II") else "big"

    def number(start: int, size: int) -> int:  # zero beyond the end
        return int.from_bytes(block[start : start + size], order)

    directory = number(4, 4)
    for entry in range(directory + 2, directory + 2 + 12 * number(directory, 2), 12):
        if number(entry, 2) == ORIENTATION_TAG:
            return number(entry + 8, {1: 1, 3: 2, 4: 4}.get(number(entry + 2, 2), 0))  # BYTE, SHORT, LONG
    return 0


def _to_rgb(image: Image.Image) -> Image.Image:
    """A new RGB image: deep gray scaled, transparency on white."""
    if image.mode in ("LAB", "La"):  # the two modes that Pillow does not convert; none of FORMATS has them
        raise ImageError(f"The colour mode {image.mode} is not supported. Convert the picture to RGB first.")
    if image.mode == "P" and image.palette is None:  # PNG without a PLTE chunk
        raise ImageError(DAMAGED)
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_eight_bits(image)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    colours = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(colours, mask=colours)
    return white


def _eight_bits(image: Image.Image) -> np.ndarray:
    """(H, W) uint8 of a gray image: I and I;16 hold 0..65535, F holds 0..1 or else 0..255."""
    pixels = np.asarray(image)
    if image.mode == "F":
        pixels = np.nan_to_num(pixels, nan=0.0)
        scale = 255 if pixels.max() <= 1 else 1
        return np.rint(np.clip(pixels * scale, 0, 255)).astype(np.uint8)
    gray = ((np.clip(pixels, 0, 65535).astype(np.uint32) + 128) // 257).astype(np.uint8)
    if isinstance(transparent := image.info.get("transparency"), int):  # PNG: this value is transparent
        gray[pixels == transparent] = 255
    return gray
