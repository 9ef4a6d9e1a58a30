"""What all drawings share: colours and strokes of the operations, words, and sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from searchseg.drawing.svg import group
from searchseg.genotype import CELL_NAMES, Edge

# One hue a family, 5x5 darker than 3x3; apart in every kind of colour vision, contrast 2.9 on white and dark.
OPERATION_COLORS: dict[str, str] = {
    "sepconv_3x3": "#4a96e0",
    "sepconv_5x5": "#1f57c6",
    "dilconv_3x3": "#c5851f",
    "dilconv_5x5": "#a5501c",
    "mbconv_3x3": "#e354aa",
    "mbconv_5x5": "#874a92",
    "skip": "#71757c",
}
CELL_INPUTS: dict[str, tuple[str, str]] = {
    "C1": ("stem", "stem"),
    "C2": ("stem brought down", "C1 brought down"),
    "C3": ("C1 brought down twice", "C2 brought down"),
    "C4": ("C2 brought down twice", "C3 brought down"),
    "C5": ("C3 brought down", "C4"),
    "C6": ("C3 skip", "C5 upsampled"),
    "C7": ("C2 skip", "C6 upsampled"),
    "C8": ("C1 skip", "C7 upsampled"),
}
FAMILIES = {"sepconv": "separable convolution", "dilconv": "dilated convolution", "mbconv": "MBConv"}

MARGIN = 4  # around every drawing

Size = tuple[int, int]


def known_cell(name: str) -> str:
    if name not in CELL_NAMES:
        raise ValueError(f"unknown cell {name!r}; known: {', '.join(CELL_NAMES)}")
    return name


def operation_label(operation: str) -> str:
    return operation.replace("_", " ").replace("x", "×")


def coloured(cell: str, edge: Edge, shape: str) -> str:
    """The shape in the colour of the edge's operation, with the edge in words."""
    words = f"{cell} {edge.source}→{edge.target}: {operation_label(edge.operation)}"
    return group(shape, tooltip=words, color=OPERATION_COLORS[edge.operation])


def stroke(operation: str, scale: float = 1) -> dict[str, Any]:
    """Line of an operation: 5x5 thicker than 3x3, dilated convolutions with gaps, skips thin."""
    stroke = {"stroke_width": scale * (5 if "5x5" in operation else 3 if "3x3" in operation else 2.4)}
    return {**stroke, "stroke_dasharray": f"{8 * scale:g} {3.5 * scale:g}"} if "dil" in operation else stroke


def size_text(size: Size | None) -> str:
    return f"{size[0]}×{size[1]}" if size else ""


def level_sizes(image_size: Size | None, stride: int, levels: int) -> list[Size | None]:
    """(height, width) of every level: divided by the stem's stride, then halved, rounding up each time."""
    if image_size is None:
        return [None] * levels
    check_integers("image_size", image_size, 2, 2)
    height, width = (-(-side // stride) for side in image_size)
    sizes: list[Size | None] = []
    for _ in range(levels):
        sizes.append((height, width))
        height, width = -(-height // 2), -(-width // 2)
    return sizes


def check_integers(what: str, values: Sequence[int], fewest: int, most: int) -> None:
    if not fewest <= len(values) <= most or not all(type(value) is int and value > 0 for value in values):
        count = str(fewest) if fewest == most else f"{fewest} to {most}"
        raise ValueError(f"{what} needs {count} positive integer{'s' * (most > 1)}, got {values!r}")


def in_words(words: Any) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
