"""Any network as a column of its parts, for those that have no drawing of their own."""

from __future__ import annotations

from collections.abc import Sequence

from searchseg.drawing.notation import MARGIN, Size, in_words, size_text
from searchseg.drawing.svg import Box, arrow, card, document, group, text

WIDTH, HEIGHT, GAP, TOP = 420, 84, 40, 44


def draw_parts(title: str, parts: Sequence[tuple[str, str]], *, image_size: Size | None = None) -> str:
    """The parts in the order in which an image passes them.

    `parts`: (name, a few words on what it costs and gives). Raises ValueError for no parts.
    """
    if not parts:
        raise ValueError("a drawing needs at least one part, got none")
    boxes = [Box(MARGIN, TOP + place * (HEIGHT + GAP), WIDTH, HEIGHT) for place in range(len(parts))]
    shapes = [text(MARGIN + WIDTH / 2, 18, f"image {size_text(image_size)}".strip(), 18, "middle")]
    for box, (name, words) in zip(boxes, parts, strict=True):
        middle = box.centre[0]
        shapes += [
            group(arrow(((middle, box.y - (GAP if box.y > TOP else 20)), (middle, box.y))), class_="flow"),
            group(
                card(box),
                text(middle, box.y + 34, name, 20, "middle", font_weight="bold"),
                text(middle, box.y + 62, words, 16, "middle", class_="quiet"),
                tooltip=f"{name}: {words}",
            ),
        ]
    end = boxes[-1].bottom
    middle = boxes[-1].centre[0]
    shapes.append(group(arrow(((middle, end), (middle, end + 28))), class_="flow"))
    shapes.append(text(middle, end + 50, "class scores", 18, "middle"))
    description = f"An image passes {in_words(f'{name} ({words})' for name, words in parts)}."
    return document(title, description, shapes, WIDTH + 2 * MARGIN, end + 62)
