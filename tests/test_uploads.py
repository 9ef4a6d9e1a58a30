"""Proves that a running page says what is wrong with a bad picture, unharmed, and shows odd ones upright."""

from __future__ import annotations

import io
import json
import os
import random
import re
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from test_images import (
    chunk,
    encode,
    jpeg_segment,
    orientation_exif,
    png,
    progressive_jpeg,
    with_jpeg_segments,
)
from test_page import UPLOAD, save_model

from searchseg import Segmenter, UNet
from training.client import is_sentence
from training.load import Server, started

SECONDS = 1.0  # of processor time; by the clock the same on an idle machine
CODE = "import app, sys; from pathlib import Path; app.build_demo(Path(sys.argv[1])).launch(**app.LAUNCH)"
SVG = b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'><rect width='9' height='9'/></svg>"
HTML = b"<!doctype html><html><body><script>alert(1)</script></body></html>"


def base() -> np.ndarray:
    """(44, 60, 3): a picture that looks different from every side."""
    y, x = np.mgrid[:44, :60]
    channels = (4 * x, 5 * y, 250 * ((x < 20) & (y < 12)))
    return np.stack([np.clip(c, 0, 255) for c in channels], -1).astype(np.uint8)


BASE = base()
PICTURE = Image.fromarray(BASE)
INDEXED = PICTURE.quantize(16, dither=Image.Dither.NONE)
GRAY = np.asarray(PICTURE.convert("L"))


@dataclass(frozen=True)
class Answer:
    """What the page sent for one call, and what it cost."""

    kind: str
    data: object
    seconds: float
    processor: float
    log: str  # what the page wrote meanwhile

    @property
    def message(self) -> str:
        assert self.kind == "error", f"answered {self.data}"
        assert isinstance(self.data, dict), "an error without a word"
        return self.data["error"]


@dataclass(frozen=True)
class Page:
    """A page in a process of its own, with one tiny network."""

    server: Server
    model: Path
    segmenter: Segmenter  # the same network in this process
    memory: float  # MB when it had answered for the first time

    def ask(self, send: Callable[[], object]) -> Answer:
        """Call the endpoint with what `send` returns, which may upload a file first."""
        log = len(self.server.log.read_text())
        began, spent = time.perf_counter(), self.processor()
        address = f"{self.server.url}/gradio_api/call/segment"
        response = httpx.post(address, json={"data": [send(), "tiny", 0.5]}, timeout=60)
        text = self.stream(f"{address}/{response.json()['event_id']}", began + 30)
        seconds, processor = time.perf_counter() - began, self.processor() - spent
        kind, data = re.findall(r"event: (complete|error)\ndata: (.*)", text)[-1]
        return Answer(kind, json.loads(data), seconds, processor, self.server.log.read_text()[log:])

    def stream(self, address: str, end: float) -> str:
        """The events of a call; a stuck page still sends heartbeats, so a read alone never times out."""
        text = ""
        with httpx.stream("GET", address, timeout=20) as response:
            for part in response.iter_text():
                text += part
                assert time.perf_counter() < end, "no answer in 30 seconds"
        return text

    def upload(self, name: str, data: bytes) -> Answer:
        def send() -> dict:
            files = {"files": (name, data)}
            (path,) = httpx.post(f"{self.server.url}/gradio_api/upload", files=files, timeout=60).json()
            return {"path": path, **UPLOAD}

        return self.ask(send)

    def picture(self, file: dict) -> Image.Image:
        return Image.open(io.BytesIO(httpx.get(file["url"]).content))

    def segment(self, name: str, data: bytes) -> tuple[np.ndarray, Image.Image, Image.Image, dict]:
        answer = self.upload(name, data)
        assert answer.kind == "complete", answer.data
        assert "Traceback" not in answer.log
        overlay, cutout, mask, report = answer.data
        return np.array(self.picture(mask)), self.picture(overlay), self.picture(cutout), report

    def expected(self, upright: np.ndarray) -> np.ndarray:
        return self.segmenter(upright).mask

    def processor(self) -> float:
        """Seconds of processor time that the page has taken."""
        fields = Path(f"/proc/{self.server.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak(self) -> float:
        """Most memory that it ever had, MB."""
        status = Path(f"/proc/{self.server.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024

    def check_unharmed(self) -> None:
        mask, *_ = self.segment("good.png", encode(PICTURE, "PNG"))
        assert np.array_equal(mask, self.expected(BASE))
        assert self.server.memory() - self.memory < 150
        assert self.peak() - self.memory < 350

    def check_message(self, message: str) -> None:
        assert is_sentence(message) and len(message) < 250
        for private in (self.server.uploads, self.model, Path(__file__).parent.parent, Path.home()):
            assert str(private) not in message


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("models")
    PICTURE.save(photo := folder / "photo.png")
    torch.manual_seed(0)
    widths = {"widths": [4, 8], "num_classes": 2}
    save_model(folder / "tiny", UNet(**widths), widths, photo, 0.5)
    with started([sys.executable, "-c", CODE, str(folder)]) as server:
        page = Page(server, folder / "tiny", Segmenter.from_pretrained(folder / "tiny"), 0)
        page.segment("photo.png", photo.read_bytes())
        yield replace(page, memory=server.memory())


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("photo.jpg", encode(PICTURE, "JPEG"))
    return buffer.getvalue()


def resized(data: bytes, marker: bytes, width: int, height: int) -> bytes:
    """A JPEG whose header promises another size."""
    place = data.index(marker) + 5
    return data[:place] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + data[place + 4 :]


def exif_bomb() -> bytes:
    block = jpeg_segment(0xE1, b"Exif\0\0" + orientation_exif(6).tobytes().ljust(60_000, b"\0"))
    return with_jpeg_segments(encode(PICTURE, "JPEG"), *[block] * 100)


def gif_of_comments() -> bytes:
    data = encode(PICTURE.quantize(256), "GIF")
    start = data.index(b",", 13 + 768)
    return data[:start] + b"!\xfe" + b"\x01a" * 5_000_000 + b"\0" + data[start:]


# what it is: name of the file, its content, words of the sentence
BAD: dict[str, tuple[str, bytes, str]] = {
    "zero bytes": ("photo.jpg", b"", "empty"),
    "random bytes": ("photo.jpg", random.Random(0).randbytes(5000), "not a readable"),
    "truncated JPEG": ("photo.jpg", encode(PICTURE, "JPEG")[:-300], "damaged or incomplete"),
    "truncated PNG": ("photo.png", encode(PICTURE, "PNG")[:-100], "damaged or incomplete"),
    "truncated GIF": ("photo.gif", encode(PICTURE, "GIF")[:-500], "damaged or incomplete"),
    "truncated WEBP": ("photo.webp", encode(PICTURE, "WEBP", lossless=True)[:-60], "damaged or incomplete"),
    "start of a PNG": ("photo.png", b"\x89PNG\r\n\x1a\n", "not a readable"),
    "start of a JPEG": ("photo.jpg", b"\xff\xd8\xff\xe0", "not a readable"),
    "PNG with a broken header": ("a.png", encode(PICTURE, "PNG").replace(b"IHDR", b"IHDr"), "not a readable"),
    "SVG named .png": ("drawing.png", SVG, "not a readable"),
    "SVG": ("drawing.svg", SVG, "not a readable"),
    "HTML named .png": ("page.png", HTML, "not a readable"),
    "PostScript named .png": ("a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9", "not a readable"),
    "PDF named .jpg": ("a.jpg", b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n", "not a readable"),
    "zip named .jpg": ("a.jpg", zipped(), "not a readable"),
    "TIFF": ("photo.tiff", encode(PICTURE, "TIFF"), "not a readable"),
    "ICO named .bmp": ("photo.bmp", encode(PICTURE, "ICO"), "not a readable"),
    "data URL in a file": ("photo.png", b"data:image/png;base64,iVBORw0KGgoAAAANSUhEUg==", "not a readable"),
    "PNG bomb": ("bomb.png", png(20_000, 20_000, 1, 0, bytes(20_000 * 2_501)), "million pixels"),
    "PNG bomb that Pillow would open": ("a.png", png(8000, 8000, 1, 0, bytes(8000 * 1001)), "million pixels"),
    "PNG of 2147483647 x 2147483647": ("bomb.png", png(2**31 - 1, 2**31 - 1, 8, 2, b""), "million pixels"),
    "PNG of 20001 x 1": ("long.png", png(20_001, 1, 8, 0, bytes(20_002)), "side longer than 20000"),
    "PNG with 200 packed texts": (
        "bomb.png",
        png(1, 1, 8, 0, b"\0\0", chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000))) * 200),
        "hidden data",
    ),
    "progressive JPEG bomb": ("bomb.jpg", progressive_jpeg(5000), "passes"),
    "progressive JPEG of 65000 x 65000": (
        "bomb.jpg",
        resized(encode(PICTURE, "JPEG", progressive=True), b"\xff\xc2", 65_000, 65_000),
        "million pixels",
    ),
    "JPEG with 6 MB of EXIF": ("bomb.jpg", exif_bomb(), "hidden data"),
    "GIF of 65535 x 65535": ("bomb.gif", b"GIF89a" + b"\xff" * 4 + b"\0\0\0", "not a readable"),
    "GIF with endless comments": ("bomb.gif", gif_of_comments(), "hidden data"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_bad_picture_gets_a_sentence_and_does_no_harm(page: Page, what: str):
    name, data, words = BAD[what]
    answer = page.upload(name, data)
    page.check_message(answer.message)
    assert words in answer.message and "Traceback" not in answer.log
    assert answer.processor < SECONDS, f"{answer.processor:.2f} s of processor time"
    assert answer.seconds < 5 * SECONDS  # the machine may be busy
    page.check_unharmed()


@pytest.mark.parametrize("meta", [UPLOAD, {}])
@pytest.mark.parametrize(
    "payload",
    [
        {"path": None, "url": "data:image/png;base64,iVBORw0KGgo="},
        {"path": "data:image/png;base64,iVBORw0KGgo="},
        {"path": "http://127.0.0.1:9/photo.jpg"},
        {"path": "file:///etc/passwd"},
        {"path": "/etc/passwd"},
        {"path": "../../../../etc/passwd"},
    ],
)
def test_what_is_no_upload_is_not_read(page: Page, payload: dict, meta: dict):
    answer = page.ask(lambda: {**payload, **meta})
    assert answer.kind == "error"
    if answer.data is not None and answer.data["error"] is not None:
        page.check_message(answer.message)
    assert answer.processor < SECONDS and answer.seconds < 5 * SECONDS
    page.check_unharmed()


@pytest.mark.parametrize("meta", [UPLOAD, {}])
def test_a_picture_elsewhere_on_the_server_is_not_read(page: Page, meta: dict):
    photo = page.model.parent / "photo.png"
    assert Image.open(photo).size == PICTURE.size
    answer = page.ask(lambda: {"path": str(photo), **meta})
    assert answer.kind == "error" and str(photo) not in json.dumps(answer.data)


def test_a_file_that_is_too_large_is_refused_at_the_door(page: Page):
    files = {"files": ("large.png", bytes(20 * 2**20 + 1))}
    response = httpx.post(f"{page.server.url}/gradio_api/upload", files=files, timeout=60)
    assert response.status_code == 413
    assert "maximum allowed size" in response.text and "/" not in response.text
    page.check_unharmed()


def test_the_picture_looks_different_from_every_side(page: Page):
    mask = page.expected(BASE)
    assert 0.2 < mask.mean() < 0.8
    for other in (np.fliplr(mask), np.flipud(mask), np.rot90(mask, 2)):
        assert (mask == other).mean() < 0.85


def stored(orientation: int) -> Image.Image:
    """The picture as a camera stores it that writes this orientation."""
    turns = [lambda a: a, np.fliplr, lambda a: np.rot90(a, 2), np.flipud]
    turns += [lambda a: a.swapaxes(0, 1), lambda a: np.rot90(a, 1)]
    turns += [lambda a: np.rot90(a.swapaxes(0, 1), 2), lambda a: np.rot90(a, -1)]
    return Image.fromarray(np.ascontiguousarray(turns[orientation - 1](BASE)))


def turned(file_format: str, orientation: int, **options) -> bytes:
    return encode(stored(orientation), file_format, exif=orientation_exif(orientation), **options)


def moving(file_format: str, **options) -> bytes:
    frames = [Image.new("RGB", PICTURE.size, colour) for colour in ("red", "blue")]
    first = INDEXED if file_format == "GIF" else PICTURE
    return encode(first, file_format, save_all=True, append_images=frames, **options)


def palette() -> tuple[bytes, np.ndarray]:
    """A palette whose first colour is transparent, and what it shows on white."""
    upright = np.array(INDEXED.convert("RGB"))
    upright[np.array(INDEXED) == 0] = 255
    return encode(INDEXED, "PNG", transparency=0), upright


def half_transparent() -> tuple[bytes, np.ndarray]:
    alpha = np.where(np.arange(60) < 30, 255, 0).astype(np.uint8)[None].repeat(44, 0)
    upright = np.where(alpha[..., None] == 255, BASE, 255).astype(np.uint8)
    return encode(Image.fromarray(np.dstack([BASE, alpha])), "PNG"), upright


def deep_gray() -> bytes:
    return encode(Image.fromarray(GRAY.astype(np.uint16) * 257), "PNG")


def deep_colour() -> bytes:
    rows = BASE.astype(">u2") * 257
    return png(60, 44, 16, 2, b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows))


def plain_rows(array: np.ndarray) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in array)


GRAY_PICTURE = GRAY[..., None].repeat(3, -1)
BLACK_WHITE = np.asarray(PICTURE.convert("1").convert("RGB"))
PLAIN = encode(PICTURE, "PNG")
# what it is: name of the file, its content, what it shows, the share of the mask's pixels that must agree
ODD: dict[str, tuple[str, bytes, np.ndarray, float]] = {
    "PNG named .jpg": ("photo.jpg", PLAIN, BASE, 1),
    "PNG named .svg": ("photo.svg", PLAIN, BASE, 1),
    "JPEG named .png": ("photo.png", encode(PICTURE, "JPEG", quality=95), BASE, 0.9),
    "no extension": ("photo", PLAIN, BASE, 1),
    "name with markup": ('"><img src=x onerror=alert(1)>.png', PLAIN, BASE, 1),
    "name with a path": ("../../../etc/photo.png", PLAIN, BASE, 1),
    "long name": ("ä日本 " * 60 + ".png", PLAIN, BASE, 1),
    "CMYK JPEG": ("print.jpg", encode(PICTURE.convert("CMYK"), "JPEG", quality=95), BASE, 0.9),
    "progressive JPEG": ("photo.jpg", encode(PICTURE, "JPEG", quality=95, progressive=True), BASE, 0.9),
    "JPEG of several pictures": ("photo.jpg", moving("MPO", quality=95), BASE, 0.9),
    "16-bit gray": ("scan.png", deep_gray(), GRAY_PICTURE, 1),
    "16-bit colour": ("scan.png", deep_colour(), BASE, 1),
    "8-bit gray": ("scan.png", encode(PICTURE.convert("L"), "PNG"), GRAY_PICTURE, 1),
    "one bit": ("scan.bmp", encode(PICTURE.convert("1"), "BMP"), BLACK_WHITE, 1),
    "palette with transparency": ("icon.png", *palette(), 1),
    "half transparent": ("icon.png", *half_transparent(), 1),
    "WEBP without loss": ("photo.webp", encode(PICTURE, "WEBP", lossless=True), BASE, 1),
    "BMP": ("photo.bmp", encode(PICTURE, "BMP"), BASE, 1),
    "animated GIF": ("moving.gif", moving("GIF"), np.asarray(INDEXED.convert("RGB")), 1),
    "animated WEBP": ("moving.webp", moving("WEBP", lossless=True), BASE, 1),
    "animated PNG": ("moving.png", moving("PNG"), BASE, 1),
    "100 MB behind the pixels": ("photo.png", png(60, 44, 8, 2, plain_rows(BASE) + bytes(10**8)), BASE, 1),
    "JPEG rotated by EXIF": ("phone.jpg", turned("JPEG", 6, quality=95), BASE, 0.9),
    "WEBP rotated by EXIF": ("phone.webp", turned("WEBP", 8, lossless=True), BASE, 1),
    **{f"PNG with orientation {n}": ("phone.png", turned("PNG", n), BASE, 1) for n in range(1, 9)},
    "1x1": ("dot.png", encode(Image.new("RGB", (1, 1), "red"), "PNG"), np.uint8([[[255, 0, 0]]]), 1),
    "20000x1": ("line.png", png(20_000, 1, 8, 0, bytes(20_001)), np.zeros((1, 20_000, 3), np.uint8), 1),
    "1x20000": ("line.png", png(1, 20_000, 8, 0, bytes(40_000)), np.zeros((20_000, 1, 3), np.uint8), 1),
}  # fmt: skip


@pytest.mark.parametrize("what", ODD)
def test_an_odd_picture_is_segmented_as_it_is_displayed(page: Page, what: str):
    name, data, upright, agreement = ODD[what]
    mask, overlay, cutout, report = page.segment(name, data)
    height, width = upright.shape[:2]
    assert mask.shape == (height, width) == (report["height"], report["width"])
    assert cutout.size == (width, height)
    assert overlay.size == (min(width, 1600), min(height, 1600))
    assert (mask == page.expected(upright)).mean() >= agreement


def test_no_odd_name_becomes_a_file_elsewhere(page: Page):
    page.segment("../../../escaped.png", PLAIN)
    page.segment("/escaped.png", PLAIN)
    assert len(set(page.server.uploads.rglob("*escaped*"))) >= 2
    assert not list(page.server.uploads.parent.glob("*escaped*")) and not Path("/escaped.png").exists()
