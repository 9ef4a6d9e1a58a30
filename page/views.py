"""HTML of the page's own elements, see elements.js. Every word from outside is escaped here and only here."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from searchseg import Segmentation
from searchseg.config import REDUCING_GAP
from searchseg.segmenter import png_options

MOST_COLUMNS = 4  # of a table on a phone
DISPLAYED_SIDE = 1600  # longest side on the page; more pixels than a screen shows only cost time


def view(result: Segmentation, mode: str = "overlay") -> str:
    """A segmented picture with legend, toggles, slider and cut-out; all of it runs in the browser."""
    classes = [
        {"name": name, "color": color, "share": result.shares[name]}
        for name, color in zip(result.classes, result.colors, strict=True)
    ]
    kept = [i for i, name in enumerate(result.classes) if name != "background"]
    return picture_view(result.image, result.mask, classes, kept, mode)


def picture_view(
    image: Image.Image, mask: np.ndarray, classes: Sequence[dict[str, object]], kept: Sequence[int], mode: str
) -> str:
    """The element for any picture and ids of its pixels; both are shown at DISPLAYED_SIDE at most."""
    size = fitted(image.size)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=REDUCING_GAP)
    ids = Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)
    attributes = {
        "picture": _data(image, "JPEG", quality=88),
        "mask": _data(ids, "PNG", **png_options(ids)),
        "classes": json.dumps(classes),
        "keep": json.dumps(list(kept)),
        "mode": mode,
    }
    written = " ".join(f'{name}="{escape(value)}"' for name, value in attributes.items())
    return f"<segmentation-view {written}></segmentation-view>"


def fitted(size: tuple[int, int]) -> tuple[int, int]:
    """Width and height brought down to DISPLAYED_SIDE, at least one pixel each."""
    scale = min(1.0, DISPLAYED_SIDE / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _data(picture: Image.Image, kind: str, **options: int) -> str:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def quiet(sentence: str) -> str:
    """A line of small text."""
    return f'<p class="quiet">{escape(sentence)}</p>'


def warning(sentence: str) -> str:
    """A line that should not be overlooked."""
    return f'<p class="warning" role="alert">{escape(sentence)}</p>'


def in_words(macs: int) -> str:
    """Multiply-accumulates, such as "0.46 G" or "4.1 M"."""
    return f"{macs / 1e9:.2f} G" if macs >= 1e8 else f"{macs / 1e6:.1f} M"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table of plain text; the columns `numbers` stand to the right. On a phone every row of one with many
    columns is a list of its cells with their heads, see style.css."""

    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(
            f'<{tag}{" class=number" if place in numbers else ""} data-head="{escape(head[place])}">'
            f"{escape(cell)}</{tag}>"
            for place, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    top = f'<tr class="head">{cells(head, "th")}</tr>' if any(head) else ""
    wide = " wide" if len(head) > MOST_COLUMNS else ""
    return f'<div class="scroll"><table class="facts{wide}">{top}{body}</table></div>'
