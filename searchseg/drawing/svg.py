"""The pen of the drawings: SVG elements as text, with one look on light and on dark pages."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

Point = tuple[float, float]

ROOT = "searchseg-drawing"
_LIGHT = "--ink:#1d2430;--quiet:#5a6475;--rule:#b9c0cc;--light:#a9b1be;--card:#ffffff;--heat:#08458c"
_DARK = "--ink:#e9ecf2;--quiet:#a5aebc;--rule:#4d5768;--light:#6c7789;--card:#1a2230;--heat:#7cc0ff"
# A page that chooses its theme itself (class dark or light; gradio sets only dark) beats the system's theme.
STYLE = f"""
.{ROOT}{{{_LIGHT};display:block;margin:auto;font-family:system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}}
@media (prefers-color-scheme:dark){{.{ROOT}:not(:is(.light,.gradio-container) *){{{_DARK}}}}}
.dark .{ROOT}{{{_DARK}}}
svg.{ROOT}:root{{color-scheme:light dark}}
.{ROOT} text{{fill:var(--ink)}} .{ROOT} text.quiet{{fill:var(--quiet)}}
.{ROOT} .card{{fill:var(--card);stroke:var(--rule);stroke-width:1.5}}
.{ROOT} .pill{{fill:var(--card);stroke:currentColor;stroke-width:1.5}}
.{ROOT} .line{{fill:none;stroke:currentColor}} .{ROOT} .solid{{fill:currentColor}}
.{ROOT} .flow{{color:var(--quiet)}} .{ROOT} .also{{color:var(--light)}}
.{ROOT} .heat{{fill:var(--heat);stroke:var(--rule);stroke-width:1}}
.{ROOT} .mark{{fill:none;stroke:var(--ink);stroke-width:2.5}}
"""
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Box:
    """A rectangle in the drawing's units, y growing downwards."""

    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.x + self.width

    @property
    def bottom(self) -> float:
        return self.y + self.height

    @property
    def centre(self) -> Point:
        return self.x + self.width / 2, self.y + self.height / 2

    def overlaps(self, other: Box) -> bool:
        """Whether the two rectangles share any area."""
        return (
            self.x < other.right and other.x < self.right and self.y < other.bottom and other.y < self.bottom
        )


def document(title: str, description: str, shapes: Sequence[str], width: float, height: float) -> str:
    """A whole SVG: as wide as its place up to 1.25 pixels a unit, named for screen readers, without ids."""
    return element(
        "svg",
        element("title", plain(title)),
        element("desc", plain(description)),
        element("style", STYLE),
        *shapes,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {_value(width)} {_value(height)}",
        width="100%",
        style=f"max-width:{_value(width * 1.25)}px",
        role="img",
        class_=ROOT,
        aria_label=title,
    )


def element(name: str, *content: str, **attributes: Any) -> str:
    """One element: attributes by keyword (`class_`, `stroke_width`) are escaped, `content` is SVG already."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"' for key, value in attributes.items()
    )
    return f"<{name}{written}>{''.join(content)}</{name}>" if content else f"<{name}{written}/>"


def group(*content: str, tooltip: str = "", **attributes: Any) -> str:
    """Elements that belong together, with the text a pointer resting on them shows."""
    return element("g", *([element("title", plain(tooltip))] if tooltip else []), *content, **attributes)


def plain(content: str) -> str:
    """Any text, made safe to stand inside an element or attribute."""
    return escape(_NOT_XML.sub("\N{REPLACEMENT CHARACTER}", content))


def text(x: float, y: float, content: str, size: float = 16, anchor: str = "start", **attributes: Any) -> str:
    """One line of text with its baseline at y."""
    return element("text", plain(content), x=x, y=y, font_size=size, text_anchor=anchor, **attributes)


def card(box: Box, radius: float = 10, class_: str = "card", **attributes: Any) -> str:
    """A rectangle with round corners."""
    place = {"x": box.x, "y": box.y, "width": box.width, "height": box.height}
    return element("rect", **place, rx=radius, class_=class_, **attributes)


def line(points: Sequence[Point], radius: float = 18, stroke_width: float = 2, **attributes: Any) -> str:
    """A line through `points` in the current colour, its bends rounded."""
    return element("path", d=_rounded(points, radius), class_="line", stroke_width=stroke_width, **attributes)


def arrow(points: Sequence[Point], radius: float = 18, stroke_width: float = 2, **attributes: Any) -> str:
    """A `line` with a head at its end."""
    (x0, y0), (x1, y1) = points[-2:]
    length, half = 7 + 1.4 * stroke_width, 3 + 0.9 * stroke_width
    dx, dy = (x1 - x0) / math.dist((x0, y0), (x1, y1)), (y1 - y0) / math.dist((x0, y0), (x1, y1))
    neck = (x1 - length * dx, y1 - length * dy)
    corners = (
        (x1, y1),
        (neck[0] - half * dy, neck[1] + half * dx),
        (neck[0] + half * dy, neck[1] - half * dx),
    )
    head = element("path", d=f"M {' L '.join(map(_point, corners))} Z", class_="solid")
    return line([*points[:-1], neck], radius, stroke_width, **attributes) + head


def arc(start: Point, end: Point, height: float, **attributes: Any) -> str:
    """An arch from `start` to `end` in the current colour, `height` at its top."""
    rise = height * 4 / 3  # a cubic reaches three quarters of the way to its control points
    over = _point((start[0], start[1] - rise)), _point((end[0], end[1] - rise))
    path = f"M {_point(start)} C {' '.join(over)} {_point(end)}"
    return element("path", d=path, class_="line", **attributes)


def _rounded(points: Sequence[Point], radius: float) -> str:
    path, last = f"M {_point(points[0])}", len(points) - 2
    for index, (before, corner, after) in enumerate(
        zip(points, points[1:], points[2:], strict=False), start=1
    ):
        room = (
            math.dist(before, corner) / (1 + (index > 1)),
            math.dist(corner, after) / (1 + (index < last)),
        )
        start, end = (_towards(corner, neighbour, min(radius, *room)) for neighbour in (before, after))
        path += f" L {_point(start)} Q {_point(corner)} {_point(end)}"
    return f"{path} L {_point(points[-1])}"


def _towards(start: Point, end: Point, distance: float) -> Point:
    share = distance / (math.dist(start, end) or 1)
    return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])


def _point(point: Point) -> str:
    return f"{_value(point[0])} {_value(point[1])}"


def _value(value: Any) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else plain(str(value))
