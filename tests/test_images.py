"""Proves that whatever arrives as a picture becomes an upright RGB image or one ImageError fit for a page."""

from __future__ import annotations

import io
import os
import random
import struct
import threading
import time
import warnings
import zlib
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image, ImageFile

from searchseg import images
from searchseg.images import ImageError, read_image, read_reduced

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
NOISE = np.random.default_rng(0).integers(0, 256, (13, 17, 3), dtype=np.uint8)


def encode(image: Image.Image, file_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def orientation_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010E] = "a description"  # comes before the orientation in the directory
    exif[0x0112] = orientation
    return exif


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(
    width: int, height: int, depth: int, colour: int, rows: bytes, *before: bytes, after: bytes = b""
) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + pixels + after + chunk(b"IEND", b"")


def jpeg_segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def with_jpeg_segments(data: bytes, *segments: bytes) -> bytes:
    return data[:2] + b"".join(segments) + data[2:]


def progressive_jpeg(scans: int, data: bytes = b"") -> bytes:
    """A progressive JPEG (`data`, or a small one) whose last scan is repeated until it has so many."""
    data = data or encode(Image.fromarray(NOISE), "JPEG", progressive=True)
    starts = [place for place in range(len(data)) if data.startswith(b"\xff\xda", place)]
    return data[:-2] + data[starts[-1] : -2] * (scans - len(starts)) + data[-2:]


def pixels(source) -> list[tuple[int, ...]]:
    image = read_image(source)
    assert image.mode == "RGB" and type(image) is Image.Image
    return [tuple(row) for row in np.asarray(image).reshape(-1, 3).tolist()]


def refusal(source, *words: str) -> str:
    """The message with which `source` is refused; it holds the words, and no path."""
    with pytest.raises(ImageError) as caught:
        read_image(source)
    message = str(caught.value)
    assert message.endswith(".") and len(message) < 250
    assert "/" not in message and "\\" not in message and "pytest" not in message
    assert "0x" not in message and "Error" not in message
    for word in words:
        assert word in message
    return message


@contextmanager
def no_decoding():
    """Fails the test when a picture is decoded inside, not only opened."""

    def load(self):
        raise AssertionError("decoded a picture that had to be refused before")

    with pytest.MonkeyPatch.context() as patch:
        for plugin in [Image.Image, ImageFile.ImageFile, *ImageFile.ImageFile.__subclasses__()]:
            patch.setattr(plugin, "load", load)
        yield


# --- what comes in


@pytest.mark.parametrize("file_format", ["PNG", "BMP"])
def test_path_bytes_and_open_image_give_the_same_exact_pixels(tmp_path, file_format):
    data = encode(Image.fromarray(NOISE), file_format)
    path = tmp_path / "picture.jpg"  # a wrong extension does not matter
    path.write_bytes(data)
    link = tmp_path / "link"
    link.symlink_to(path)
    for source in (path, str(path), link, data, Image.open(io.BytesIO(data)), Image.fromarray(NOISE), NOISE):
        assert np.array_equal(np.asarray(read_image(source)), NOISE)


@pytest.mark.parametrize(("file_format", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95})])
def test_lossy_formats_come_close(file_format, options):
    smooth = Image.fromarray(np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))).convert("RGB")
    difference = np.asarray(read_image(encode(smooth, file_format, **options)), int) - np.asarray(smooth, int)
    assert np.abs(difference).max() < 12


def test_the_result_is_independent_of_its_source(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(NOISE).save(path, exif=orientation_exif(1), pnginfo=None)
    with Image.open(path) as opened:
        result = read_image(opened)
    array = NOISE.copy()
    from_array = read_image(array)
    array[:] = 0
    for image in (result, from_array):
        image.putpixel((0, 0), (1, 2, 3))  # loaded and writable, though the file is closed
        assert np.array_equal(np.asarray(image)[1:], NOISE[1:])
        assert image.info == {} and not image.getexif()


def test_an_open_image_is_not_changed():
    source = Image.new("RGBA", (2, 3), (255, 0, 0, 0))
    source.info["exif"] = orientation_exif(6).tobytes()
    before = source.tobytes(), dict(source.info), source.size
    assert read_image(source).size == (3, 2)
    assert (source.tobytes(), dict(source.info), source.size) == before


def test_one_pixel_is_a_picture():
    for file_format in ("PNG", "BMP", "GIF"):
        assert pixels(encode(Image.new("RGB", (1, 1), RED), file_format)) == [RED]
    assert read_image(encode(Image.new("RGB", (1, 1)), "JPEG")).size == (1, 1)
    assert read_image(encode(Image.new("RGB", (1, 1)), "WEBP")).size == (1, 1)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.int64),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((), np.uint8),
    ],
)
def test_other_arrays_are_refused_by_shape_and_type(array):
    refusal(array, str(array.shape), str(array.dtype), "(H, W, 3)")


def test_nothing_is_no_picture():
    for source in (np.zeros((0, 4, 3), np.uint8), np.zeros((4, 0, 3), np.uint8), Image.new("F", (0, 3))):
        refusal(source, "no pixels")


def test_an_array_need_not_be_contiguous():
    assert np.array_equal(np.asarray(read_image(NOISE[::2, ::-1])), NOISE[::2, ::-1])


@pytest.mark.parametrize(
    "source", [None, 3, ["a.png"], {"path": "a.png"}, io.BytesIO(b""), bytearray(b"abc")]
)
def test_other_types_are_refused_by_name(source):
    refusal(source, type(source).__name__)


# --- files


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/a.png",
        "HTTPS://example.com/a.png",
        " file:///etc/passwd",
        "data:image/png;base64,AA",
    ],
)
def test_a_string_is_never_a_url(url):
    refusal(url, "web address")


def test_missing_files_folders_and_odd_names(tmp_path):
    refusal(tmp_path / "missing.png", "does not exist")
    refusal(str(tmp_path / "missing.png"), "does not exist")
    refusal("", "does not exist")
    refusal(tmp_path, "folder")
    refusal(str(tmp_path / "null\0byte"), "cannot be opened")
    refusal(str(tmp_path / ("long" * 1000)), "cannot be opened")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    refusal(loop, "cannot be opened")


def test_a_broken_file_is_refused_without_its_path(tmp_path):
    path = tmp_path / "broken.png"
    for data in (b"", b"\x89PNG\r\n\x1a\n", b"no picture", encode(Image.fromarray(NOISE), "PNG")[:-60]):
        path.write_bytes(data)
        refusal(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs fifos")
def test_fifos_and_devices_do_not_block(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    caught: list[str] = []
    for path in (fifo, "/dev/zero"):
        thread = threading.Thread(
            target=lambda path=path: caught.append(refusal(path, "device")), daemon=True
        )
        thread.start()
        thread.join(timeout=5)
    assert len(caught) == 2


def test_a_large_file_is_refused_and_not_read_whole(tmp_path):
    refusal(b"\xff\xd8\xff" + bytes(images.MAX_FILE_BYTES), "20 MB")
    sparse = tmp_path / "sparse.bmp"
    with open(sparse, "wb") as file:
        file.truncate(50 * 2**30)  # reading it all would fail or take minutes
    refusal(sparse, "20 MB")


# --- no pictures, other formats, damage


@pytest.mark.parametrize(
    "data",
    [
        b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>',
        b"<!DOCTYPE html><html><body>404</body></html>",
        random.Random(0).randbytes(5000),
        b"\0" * 100,
        b"x",
        encode(Image.fromarray(NOISE), "TIFF"),
        encode(Image.fromarray(NOISE), "ICO", sizes=[(13, 13)]),
        encode(Image.fromarray(NOISE), "JPEG2000"),
        encode(Image.fromarray(NOISE), "EPS"),
    ],
    ids=["svg", "html", "random", "zeros", "one byte", "tiff", "ico", "jpeg2000", "eps"],
)
def test_other_formats_are_refused_whatever_their_name(tmp_path, data):
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    assert refusal(path, "JPEG, PNG, WEBP, BMP or GIF") == refusal(data)


def test_an_empty_file_is_refused():
    refusal(b"", "empty")


@pytest.mark.parametrize("file_format", images.FORMATS)
def test_truncated_pictures_are_refused(file_format):
    data = encode(Image.fromarray(np.tile(NOISE, (20, 20, 1))), file_format)
    for part in (0.4, 0.7, 0.95):
        refusal(data[: int(part * len(data))])
    refusal(data[:20])


@pytest.mark.parametrize(
    "data",
    [
        png(1, 1, 8, 0, b"\0\0", after=chunk(b"iCCP", b"")),
        png(1, 1, 8, 0, b"\0\0", after=chunk(b"gAMA", b"")),
        png(1, 1, 8, 0, b"\0\0", chunk(b"pHYs", b"")),
        png(1, 1, 8, 3, b"\0\0"),  # a palette image without its palette
        b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(10),
        b"BM"
        + struct.pack(
            "<IHHIIiiHHIIIIII", 0, 0, 0, 54, 40, 4, 4, 1, 24, 9, 0, 0, 0, 0, 0
        ),  # no such compression
    ],
    ids=["IndexError", "struct.error", "ValueError", "no palette", "webp", "bmp"],
)
def test_damage_that_decoders_report_in_odd_ways_is_refused(data):
    refusal(data, "again")


# --- limits, each before decoding


def test_too_many_pixels_are_refused_before_decoding():
    blank = encode(Image.fromarray(np.zeros((6500, 6500), bool)), "PNG")  # 42 million pixels in few bytes
    bitmap = encode(Image.new("1", (10, 10)), "BMP")
    claim = bitmap.replace(struct.pack("<ii", 10, 10), struct.pack("<ii", 9000, 9000))
    assert len(blank) < 10_000 and claim != bitmap
    with no_decoding():
        for data in (blank, claim, png(30_000, 30_000, 8, 2, b"")):
            refusal(data, "40 million", "20000")


def test_a_side_too_long_is_refused_and_the_longest_is_not():
    refusal(png(20_001, 1, 1, 0, bytes(2502)), "20000")
    refusal(png(1, 20_001, 1, 0, bytes(2 * 20_001)), "20000")
    assert read_image(png(20_000, 1, 1, 0, bytes(2501))).size == (20_000, 1)


def test_limits_hold_for_open_images_and_arrays():
    refusal(Image.new("1", (6500, 6500)), "40 million")
    refusal(Image.new("1", (20_001, 1)), "20000")
    refusal(np.broadcast_to(np.zeros(3, np.uint8), (10**6, 10**6, 3)), "40 million")


@pytest.mark.parametrize("action", ["error", "ignore"])
def test_limits_do_not_hang_on_pillow_settings(monkeypatch, action):
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        for side in (10_000, 30_000):  # Pillow warns from 89 million pixels and raises from 179 million
            refusal(png(side, side, 8, 2, b""), "40 million")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        refusal(png(30_000, 30_000, 8, 2, b""), "40 million")


def test_jpeg_scans_are_limited_before_decoding():
    picture = encode(Image.new("RGB", (1500, 1500)), "JPEG", progressive=True)
    many, one_more = progressive_jpeg(150, picture), progressive_jpeg(101)
    with no_decoding():
        start = time.perf_counter()
        refusal(many, "100", "JPEG")
        refusal(one_more, "100", "JPEG")
        assert time.perf_counter() - start < 0.5


def test_only_the_scans_of_the_picture_are_counted():
    picture = progressive_jpeg(100)
    hidden = jpeg_segment(0xE1, b"thumbnail" + b"\xff\xda\0\x02" * 500)
    expected = read_image(picture).tobytes()
    assert read_image(with_jpeg_segments(picture, hidden)).tobytes() == expected
    assert read_image(picture + b"\xff\xda\0\x02" * 500).tobytes() == expected


@pytest.mark.parametrize(
    "filler", [b"\xff", b"\xff\0", b"\xff\xe5\0\x02", b"\xff\xe5\0\0", b"\xff\xd9", b"\0", b"\xff\xd0"]
)
def test_a_hostile_jpeg_is_walked_in_linear_time(filler):
    data = encode(Image.fromarray(NOISE), "JPEG")
    start = time.perf_counter()
    refusal(with_jpeg_segments(data, filler * (10**7 // len(filler))))
    assert time.perf_counter() - start < 2


def test_metadata_is_limited():
    picture = Image.fromarray(NOISE)
    exif = jpeg_segment(0xE1, b"Exif\0\0" + bytes(60_000))
    jpeg, packed = encode(picture, "JPEG"), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10)))
    refusal(with_jpeg_segments(jpeg, *[exif] * 3), "hidden data")
    refusal(
        with_jpeg_segments(jpeg, b"\xff\xd9", *[exif] * 3), "hidden data"
    )  # Pillow does not stop at this end
    refusal(png(1, 1, 8, 0, b"\0\0", after=packed * 101), "hidden data")
    gif = encode(picture, "GIF")
    image = gif.index(b",", 13 + 768)
    refusal(gif[:image] + b"!\xfe" + b"\x01a" * 30_000 + b"\0" + gif[image:], "hidden data")


def test_ordinary_metadata_is_welcome():
    picture = Image.fromarray(NOISE)
    profile = random.Random(0).randbytes(300_000)
    exif = orientation_exif(1).tobytes()
    assert read_image(
        encode(picture, "JPEG", icc_profile=profile, exif=exif, comment=b"a" * 60_000)
    ).size == (17, 13)
    assert read_image(encode(picture, "PNG", icc_profile=profile, exif=exif)).size == (17, 13)
    assert read_image(encode(picture, "WEBP", icc_profile=profile, exif=exif)).size == (17, 13)
    assert read_image(encode(picture, "GIF", comment=b"a" * 60_000)).size == (17, 13)


# --- the first frame only


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "MPO"])
def test_an_animation_gives_its_first_frame_and_is_not_searched(monkeypatch, file_format):
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    data = encode(frames[0], file_format, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 3

    def seek(self, frame):
        raise AssertionError("looked for another frame")

    for plugin in [Image.Image, *Image.Image.__subclasses__(), *ImageFile.ImageFile.__subclasses__()]:
        monkeypatch.setattr(plugin, "seek", seek)
    red, green, blue = read_image(data).getpixel((8, 8))
    assert red > 250 and green < 5 and blue < 5


def test_a_malformed_list_of_further_pictures_is_no_crash():
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN)]
    data = encode(frames[0], "MPO", save_all=True, append_images=frames[1:])
    broken = data.replace(b"MPF\0II*\0", b"MPF\0II*\1").replace(b"MPF\0MM\0*", b"MPF\0MM\1*")
    assert broken != data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert read_image(broken).size == (16, 16)
        warnings.simplefilter("error")
        refusal(broken)


# --- upright

UPRIGHT = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),  # a quarter clockwise
    7: lambda stored: np.rot90(stored.swapaxes(0, 1), 2),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_puts_every_pixel_in_its_place(orientation):
    expected = UPRIGHT[orientation](NOISE)
    options = {"exif": orientation_exif(orientation)}
    assert np.array_equal(read_image(encode(Image.fromarray(NOISE), "PNG", **options)), expected)
    assert np.array_equal(
        read_image(encode(Image.fromarray(NOISE), "WEBP", lossless=True, **options)), expected
    )
    blocks = np.array([[RED, GREEN, BLUE], [WHITE, BLACK, RED]], np.uint8).repeat(16, 0).repeat(16, 1)
    jpeg = np.asarray(
        read_image(encode(Image.fromarray(blocks), "JPEG", subsampling=0, quality=95, **options)), int
    )
    assert np.abs(jpeg - UPRIGHT[orientation](blocks)).max() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_large_jpeg_can_come_reduced_and_tells_its_own_size(orientation):
    smooth = Image.fromarray(NOISE).resize((800, 600), Image.Resampling.BICUBIC)
    data = encode(smooth, "JPEG", quality=95, exif=orientation_exif(orientation))
    whole = read_image(data)
    for least, part in ((75, 8), (76, 4), (150, 4), (151, 2), (300, 2), (301, 1), (5000, 1)):
        small, size = read_reduced(data, least)
        assert size == whole.size and small.size == (whole.width // part, whole.height // part)
        assert small.mode == "RGB" and small.info == {}
        difference = np.asarray(small, int) - np.asarray(whole.reduce(part), int)
        assert abs(difference).mean() < 1.5  # of 256: the same picture, the same way up
    for file_format in ("PNG", "WEBP", "BMP", "GIF"):
        small, size = read_reduced(encode(smooth, file_format), 75)
        assert small.size == size == (800, 600)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_reduced_jpegs_of_other_modes_have_their_colours(mode):
    picture = Image.new("RGB", (160, 160), (200, 120, 40)).convert(mode)
    data = encode(picture, "JPEG", quality=95)
    small, _ = read_reduced(data, 20)
    assert small.size == (20, 20)
    assert np.abs(np.asarray(small, int) - np.asarray(read_image(data), int)[:20, :20]).max() <= 2


def test_a_reduced_jpeg_is_bounded_and_read_to_its_end():
    picture = Image.fromarray(NOISE).resize((640, 480))
    data = encode(picture, "JPEG")
    for broken in (data[: len(data) // 2], data[:200], b""):
        with pytest.raises(ImageError):
            read_reduced(broken, 60)
    huge = bytearray(encode(Image.new("RGB", (16, 16)), "JPEG"))
    start = huge.index(b"\xff\xc0") + 5
    huge[start : start + 4] = struct.pack(">HH", 8000, 8000)  # 64 megapixels
    with pytest.raises(ImageError, match="million pixels"):
        read_reduced(bytes(huge), 8)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "I;16", "CMYK"])
def test_orientation_holds_for_every_mode(mode):
    source = Image.new("L", (2, 3)) if mode == "I;16" else Image.fromarray(NOISE[:3, :2])
    source = source.convert(mode)
    upright = read_image(source)
    source.info["exif"] = orientation_exif(6).tobytes()
    assert np.array_equal(read_image(source), np.rot90(np.asarray(upright), -1))


def test_orientation_in_either_byte_order_and_as_a_long():
    for order, mark in (("<", b"II*\0"), (">", b"MM\0*")):
        for kind, value in (("HH2x", 3), ("HL", 4)):
            number = kind[1] + kind[2:]
            entry = struct.pack(order + "HHL", 0x0112, value, 1) + struct.pack(order + number, 6)
            exif = mark + struct.pack(order + "LH", 8, 1) + entry + bytes(4)
            image = Image.new("RGB", (2, 3))
            image.info["exif"] = b"Exif\0\0" + exif
            assert read_image(image).size == (3, 2)


@pytest.mark.filterwarnings("ignore")  # Pillow warns while it opens such a JPEG
def test_broken_exif_does_not_fail_the_picture():
    whole = orientation_exif(6).tobytes()
    random_blocks = [random.Random(seed).randbytes(seed) for seed in range(1, 60)]
    cut = [whole[:length] for length in range(len(whole))]
    endless = b"Exif\0\0II*\0\x08\0\0\0\xff\xff"
    for exif in [*random_blocks, *cut, endless, endless[:-6] + b"\xff" * 6]:
        data = with_jpeg_segments(
            encode(Image.fromarray(NOISE), "JPEG"), jpeg_segment(0xE1, b"Exif\0\0" + exif)
        )
        assert read_image(data).width in (13, 17)
        image = Image.fromarray(NOISE)
        image.info["exif"] = exif
        assert read_image(image).width in (13, 17)


def test_a_picture_is_upright_though_another_tag_is_broken():
    whole = orientation_exif(6).tobytes()
    broken = whole.replace(struct.pack(">HHL", 0x010E, 2, 14), struct.pack(">HHL", 0x010E, 2, 2**31))
    assert broken != whole
    image = Image.new("RGB", (2, 3))
    image.info["exif"] = broken
    assert read_image(image).size == (3, 2)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_out_of_range_is_none(orientation):
    data = encode(Image.fromarray(NOISE), "PNG", exif=orientation_exif(orientation))
    assert np.array_equal(read_image(data), NOISE)


# --- colours


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 257, 32896, 65535, 200, 128]], np.uint16)
    expected = [(gray,) * 3 for gray in (0, 1, 128, 255, 1, 0)]
    assert pixels(encode(Image.fromarray(values), "PNG")) == expected
    assert pixels(Image.fromarray(values)) == expected
    assert pixels(Image.fromarray(values.astype(np.int32))) == expected
    assert pixels(Image.frombytes("I;16B", (6, 1), values.astype(">u2").tobytes())) == expected
    assert pixels(Image.fromarray(np.array([[-5, 70_000]], np.int32))) == [BLACK, WHITE]


def test_sixteen_bit_colour_is_scaled():
    row = b"\0" + struct.pack(">6H", 0, 0x8000, 0xFFFF, 0x0100, 0x4000, 0xFF00)
    assert pixels(png(2, 1, 16, 2, row)) == [(0, 128, 255), (1, 64, 255)]


def test_float_images_are_read_in_their_range():
    assert pixels(Image.fromarray(np.array([[0, 0.5, 1]], np.float32))) == [BLACK, (128,) * 3, WHITE]
    assert pixels(Image.fromarray(np.array([[0, 7, 300]], np.float32))) == [BLACK, (7,) * 3, WHITE]
    odd = np.array([[np.nan, -np.inf, np.inf]], np.float32)
    assert pixels(Image.fromarray(odd)) == [BLACK, BLACK, WHITE]
    assert pixels(Image.fromarray(np.array([[np.nan, 0.5]], np.float32))) == [BLACK, (128,) * 3]


@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_alpha_lies_on_white(file_format):
    image = Image.new("RGBA", (3, 1), (200, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    image.putpixel((2, 0), (0, 0, 0, 51))  # a fifth of black on white
    options = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
    assert pixels(encode(image, file_format, **options)) == [(200, 0, 0), WHITE, (204, 204, 204)]


def test_gray_with_alpha_lies_on_white():
    image = Image.new("LA", (2, 1), (100, 255))
    image.putpixel((1, 0), (0, 0))
    assert pixels(encode(image, "PNG")) == pixels(image) == [(100,) * 3, WHITE]


@pytest.mark.parametrize("file_format", ["PNG", "GIF"])
def test_a_transparent_palette_entry_lies_on_white(file_format):
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putpixel((1, 0), 1)
    assert pixels(encode(image, file_format)) == [RED, GREEN]
    assert pixels(encode(image, file_format, transparency=1)) == [RED, WHITE]


def test_partly_transparent_palettes_lie_on_white():
    image = Image.new("P", (2, 1))
    image.putpalette([*BLACK, *GREEN])
    image.putpixel((1, 0), 1)
    assert pixels(encode(image, "PNG", transparency=bytes([51, 255]))) == [(204, 204, 204), GREEN]
    image = Image.new("P", (1, 1))
    image.putpalette([0, 0, 0, 51], "RGBA")
    assert pixels(image) == [(204, 204, 204)]
    assert pixels(Image.new("PA", (1, 1))) == [WHITE]


def test_a_transparent_colour_lies_on_white():
    rgb = png(2, 1, 8, 2, bytes([0, *BLUE, *RED]), chunk(b"tRNS", struct.pack(">3H", *BLUE)))
    assert pixels(rgb) == [WHITE, RED]
    gray = png(2, 1, 8, 0, bytes([0, 7, 8]), chunk(b"tRNS", struct.pack(">H", 7)))
    assert pixels(gray) == [WHITE, (8, 8, 8)]
    deep = png(2, 1, 16, 0, b"\0" + struct.pack(">2H", 2570, 2571), chunk(b"tRNS", struct.pack(">H", 2570)))
    assert pixels(deep) == [WHITE, (10, 10, 10)]


def test_one_bit_images_are_black_and_white():
    image = Image.fromarray(np.array([[True, False]]))
    for file_format in ("PNG", "BMP", "GIF"):
        assert pixels(encode(image, file_format)) == [WHITE, BLACK]
    assert pixels(image) == [WHITE, BLACK]


@pytest.mark.parametrize(
    ("ink", "colour"), [((0, 255, 255, 0), RED), ((0, 0, 0, 0), WHITE), ((0, 0, 0, 255), BLACK)]
)
def test_cmyk_jpegs_have_the_right_colours(ink, colour):
    data = encode(Image.new("CMYK", (16, 16), ink), "JPEG", quality=95)
    assert b"Adobe" in data
    assert np.abs(np.asarray(read_image(data), int) - colour).max() < 6
    assert pixels(Image.new("CMYK", (1, 1), ink)) == [colour]


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "RGBX", "RGBa"])
def test_rarer_modes_of_open_images_are_converted(mode):
    image = Image.new("RGBA", (1, 1), "white").convert("RGB" if mode != "RGBa" else "RGBA").convert(mode)
    assert pixels(image) == [WHITE]


@pytest.mark.parametrize("mode", ["LAB", "La"])
def test_modes_without_a_conversion_are_refused_by_name(mode):
    refusal(Image.new(mode, (2, 2)), mode, "RGB")


def test_an_open_image_with_leftovers_of_another_mode_is_no_crash():
    image = Image.new("1", (2, 2))
    image.info["transparency"] = b"\5\xff"  # what convert("1") leaves of a palette's transparency
    refusal(image)


def test_a_closed_image_is_refused():
    image = Image.open(io.BytesIO(encode(Image.fromarray(NOISE), "PNG")))
    image.close()
    refusal(image)


# --- everything else


def small_files() -> list[bytes]:
    """Small pictures of every format and of the modes that take different ways through the decoders."""
    colour, exif = Image.fromarray(NOISE), orientation_exif(6)
    alpha, palette, turned = colour.convert("RGBA"), colour.quantize(20), colour.rotate(180)
    alpha.putalpha(colour.getchannel("R"))
    palette.info["transparency"] = 3
    files = [
        encode(image, file_format)
        for image in (colour, palette, colour.convert("1"), colour.convert("L"))
        for file_format in ("PNG", "BMP", "GIF")
    ]
    files += [encode(colour, file_format, exif=exif) for file_format in ("JPEG", "PNG", "WEBP")]
    files += [encode(alpha, "PNG"), encode(alpha, "BMP"), encode(alpha, "WEBP", lossless=True)]
    files += [encode(colour.convert("CMYK"), "JPEG"), encode(colour, "JPEG", progressive=True)]
    files += [encode(Image.fromarray(NOISE.astype(np.uint16)[..., 0] * 257), "PNG")]
    files += [encode(colour, f, save_all=True, append_images=[turned]) for f in ("GIF", "WEBP", "PNG", "MPO")]
    return files


def damaged(data: bytes, chance: random.Random) -> bytes:
    broken = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 8])):
        place = chance.randrange(chance.choice([60, len(broken)])) % len(broken)
        broken[place] = chance.choice(
            [broken[place] ^ (1 << chance.randrange(8)), 0, 255, chance.randrange(256)]
        )
    return bytes(broken[: chance.randrange(1, len(broken))] if chance.random() < 0.2 else broken)


def test_damaged_files_give_an_rgb_image_or_an_image_error():
    chance, files = random.Random(7), small_files()
    outcomes = {"read": 0, "refused": 0}
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(400):
            try:
                image = read_image(damaged(files[number % len(files)], chance))
            except ImageError as error:
                outcomes["refused"] += 1
                assert "/" not in str(error)
            else:
                outcomes["read"] += 1
                assert image.mode == "RGB" and image.getpixel((0, 0)) is not None
    assert min(outcomes.values()) > 50  # both ways are taken
    assert time.perf_counter() - start < 5
