"""The whole network as its U: boxes step down on the left and up on the right, a level a row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise

from searchseg.drawing.cell import describe_cell
from searchseg.drawing.notation import (
    MARGIN,
    OPERATION_COLORS,
    Size,
    check_integers,
    coloured,
    in_words,
    level_sizes,
    operation_label,
    size_text,
    stroke,
)
from searchseg.drawing.svg import Box, Point, arc, arrow, card, document, element, group, line, text
from searchseg.genotype import CELL_NAMES, INPUT_NODES, OPERATION_NAMES, Edge, Genotype

_ALSO = (("stem", "C2"), ("C1", "C3"), ("C2", "C4"), ("C3", "C5"))  # besides the main path and the skips
_LEVELS = dict(zip(CELL_NAMES, (0, 1, 2, 3, 3, 2, 1, 0), strict=True))

# Stem and head have a first row of their own above the levels.

BLOCK_WIDTH, BLOCK_HEIGHT, END_HEIGHT, BOTTOM_WIDTH = 150, 122, 92, 200
STEP, GAP, TOP = 40, 48, 58
MIDDLE = {True: 100, False: 58}  # between the two sides, with and without a block at the bottom
LEGEND_COLUMN, LEGEND_ROW = 165, 30


def draw(
    genotype: Genotype,
    *,
    widths: Sequence[int] = (64, 128, 256, 512),
    image_size: Size | None = None,
    stem_stride: int = 1,
) -> str:
    """The whole U of a genotype with a miniature of every cell.

    `widths`: channels of the four levels; `image_size`: (height, width) in pixels, adds every cell's size.
    Raises ValueError for widths, sizes or strides that are not positive integers.
    """
    boxes, shapes = u_of_cells(widths, image_size, stem_stride)
    shapes += (_miniature(boxes[name], genotype, name) for name in CELL_NAMES)
    return document(network_title(genotype), describe_network(genotype, widths), shapes, *extent(boxes))


def u_of_cells(
    widths: Sequence[int], image_size: Size | None, stem_stride: int
) -> tuple[dict[str, Box], list[str]]:
    """The boxes of the blocks by name, and all of the U that is the same for every genotype, with a legend.

    Raises ValueError as `draw`.
    """
    check_integers("widths", widths, 4, 4)
    check_integers("stem_stride", [stem_stride], 1, 1)
    boxes = _u_shape(("stem", "C1", "C2", "C3", "C4"), ("head", "C8", "C7", "C6", "C5"))
    sizes = level_sizes(image_size, stem_stride, 4)
    way = [boxes[name] for name in ("stem", *CELL_NAMES, "head")]
    head = f"1×1, up ×{stem_stride}" if stem_stride > 1 else "1×1 conv"
    samples = [
        (partial(_operation_sample, operation), operation_label(operation)) for operation in OPERATION_NAMES
    ]
    shapes = [
        *(_also(boxes[a], boxes[b]) for a, b in _ALSO),
        *_flow(way, "conv, stride 2", "bilinear ×2"),
        *_skips(boxes, (("C1", "C8"), ("C2", "C7"), ("C3", "C6")), "skip connection"),
        *_ends(boxes["stem"], boxes["head"], image_size),
        _block(boxes["stem"], "stem", widths[0], sizes[0], f"3×3, stride {stem_stride}"),
        _block(boxes["head"], "head", None, image_size, head),
        *(_block(boxes[name], name, widths[k], sizes[k]) for name, k in _LEVELS.items()),
        _legend([*samples, (_also_sample, "also receives")], boxes),
    ]
    return boxes, shapes


def network_title(genotype: Genotype) -> str:
    """The name of a network, with the task or dataset it was searched on where that is on record."""
    task = str(genotype.search.get("task") or genotype.search.get("dataset") or "")[:60]
    return f"SEARCH-Net {genotype.id}" + (f", searched on {task}" if task else "")


def describe_network(genotype: Genotype, widths: Sequence[int]) -> str:
    """The U and each of its cells in plain words."""
    levels = f"Eight cells in a U whose levels have {in_words(map(str, widths))} channels, from the top down."
    return " ".join([levels, *(describe_cell(genotype, name) for name in CELL_NAMES)])


def draw_unet(widths: Sequence[int], *, image_size: Size | None = None) -> str:
    """The plain UNet as a U of double convolutions, two to six levels of `widths` channels.

    `image_size`: (height, width) in pixels, adds every block's size. Raises ValueError as `draw`.
    """
    check_integers("widths", widths, 2, 6)
    levels = len(widths)
    left, right = [f"E{k}" for k in range(1, levels)], [f"D{k}" for k in range(1, levels)]
    boxes = _u_shape(("", *left), ("head", *right), bottom=f"E{levels}")
    names = [*left, f"E{levels}", *reversed(right)]
    level = {name: int(name[1:]) - 1 for name in names}
    sizes = level_sizes(image_size, 1, levels)
    shapes = [
        *_flow([boxes[name] for name in (*names, "head")], "max-pool 2×2", "up-conv 2×2"),
        *_skips(boxes, zip(left, right, strict=True), "concat"),
        *_ends(boxes["E1"], boxes["head"], image_size),
        _block(boxes["head"], "head", None, image_size, "1×1 conv"),
        *(_block(boxes[name], name, widths[k], sizes[k]) for name, k in level.items()),
        *(_double_convolution(boxes[name]) for name in names),
        _legend([(_convolution_sample, "3×3 conv, norm, ReLU")], boxes),
    ]
    description = (
        f"A UNet of {levels} levels with {in_words(map(str, widths))} channels. "
        "Each block is two 3x3 convolutions. Max-pooling leads down, 2x2 up-convolutions lead up; each block "
        "on the way down is concatenated to its level's on the way up. The head is a 1x1 convolution."
    )
    return document(f"UNet with {levels} levels", description, shapes, *extent(boxes, 1))


def _u_shape(left: Sequence[str], right: Sequence[str], bottom: str = "") -> dict[str, Box]:
    """Boxes of the named blocks, each side from top to bottom; an empty name leaves its place free."""
    width = 2 * (MARGIN + (len(left) - 1) * STEP + BLOCK_WIDTH) + MIDDLE[bool(bottom)]
    boxes: dict[str, Box] = {}
    for row, names in enumerate(zip(left, right, strict=True)):
        x = MARGIN + row * STEP
        boxes |= {
            name: _row_box(at, row)
            for name, at in zip(names, (x, width - x - BLOCK_WIDTH), strict=True)
            if name
        }
    if bottom:
        boxes[bottom] = _row_box((width - BOTTOM_WIDTH) / 2, len(left), BOTTOM_WIDTH)
    return boxes


def _row_box(x: float, row: int, width: float = BLOCK_WIDTH) -> Box:
    if row == 0:
        return Box(x, TOP, width, END_HEIGHT)
    return Box(x, TOP + END_HEIGHT + GAP + (row - 1) * (BLOCK_HEIGHT + GAP), width, BLOCK_HEIGHT)


def extent(boxes: Mapping[str, Box], legend_items: int = len(OPERATION_NAMES) + 1) -> tuple[float, float]:
    """Width and height of a U and its legend, by default the one of the operations and lighter ways."""
    width, bottom = (
        max(box.right for box in boxes.values()) + MARGIN,
        max(box.bottom for box in boxes.values()),
    )
    return width, bottom + 32 + LEGEND_ROW * -(-legend_items // int(width // LEGEND_COLUMN))


def _block(box: Box, name: str, channels: int | None, size: Size | None, note: str = "") -> str:
    right = box.right - 12
    cell = {"data_cell": name} if name in CELL_NAMES else {}  # so that a page can open what is clicked
    return group(
        card(box),
        text(box.x + 12, box.y + 28, name, 20, font_weight="bold"),
        text(right, box.y + 26, f"{channels} ch", 18, "end") if channels else "",
        text(right, box.y + 50, size_text(size), 17, "end", class_="quiet") if size else "",
        text(box.x + 12, box.bottom - 14, note, 16, class_="quiet") if note else "",
        tooltip=", ".join(
            filter(None, (name, f"{channels} channels" if channels else "", size_text(size), note))
        ),
        **cell,
    )


def _flow(way: Sequence[Box], down: str, up: str) -> list[str]:
    """The main path: arrows from box to box, named `down` or `up` between levels."""
    shapes = []
    for a, b in pairwise(way):
        (x, y0), (_, y1) = _between(a, b)
        shapes.append(group(arrow(_between(a, b), stroke_width=3), class_="flow"))
        if y0 != y1 and END_HEIGHT not in (a.height, b.height):
            shapes.append(text(x + 12, (y0 + y1) / 2 + 5, down if y0 < y1 else up, 17, class_="quiet"))
    return shapes


def _between(a: Box, b: Box) -> tuple[Point, Point]:
    """A straight way from a to b: sideways on one level, else in the middle of what they share."""
    if a.y == b.y:
        return (a.right, a.centre[1]), (b.x, b.centre[1])
    x = (max(a.x, b.x) + min(a.right, b.right)) / 2
    return ((x, a.bottom), (x, b.y)) if a.y < b.y else ((x, a.y), (x, b.bottom))


def _skips(boxes: Mapping[str, Box], pairs: Iterable[tuple[str, str]], label: str) -> list[str]:
    ways = [_between(boxes[a], boxes[b]) for a, b in pairs]
    (x0, y), (x1, _) = ways[0]
    name = text((x0 + x1) / 2, y - 10, label, 17, "middle", class_="quiet")
    return [*(group(arrow(way), class_="flow") for way in ways), name]


def _also(a: Box, b: Box) -> str:
    """The lighter way to the second cell after a: down and into its side, or sideways and into its top."""
    if b.x > a.right:
        points = ((a.right, a.bottom - 22), (b.x + STEP / 2, a.bottom - 22), (b.x + STEP / 2, b.y))
    else:
        points = ((a.x + STEP / 2, a.bottom), (a.x + STEP / 2, b.centre[1]), (b.x, b.centre[1]))
    return group(arrow(points), class_="also")


def _ends(first: Box, last: Box, image_size: Size | None) -> list[str]:
    """The image above the first box and the class scores above the last."""
    (x0, y0), (x1, y1) = (first.centre[0], first.y), (last.centre[0], last.y)
    return [
        text(first.x, y0 - 36, f"image {size_text(image_size)}".strip(), 18),
        text(last.right, y1 - 36, "class scores", 18, "end"),
        group(arrow(((x0, y0 - 28), (x0, y0)), stroke_width=3), class_="flow"),
        group(arrow(((x1, y1), (x1, y1 - 28)), stroke_width=3), class_="flow"),
    ]


def _miniature(box: Box, genotype: Genotype, name: str) -> str:
    """The cell's nodes in a row and its edges as arches over them."""
    edges = sorted(genotype.cells[name], key=widest_first)
    arches = (arch(box, genotype.nodes, name, edge) for edge in edges)
    return group(*arches, node_dots(box, genotype.nodes), data_cell=name)


def widest_first(edge: Edge) -> int:
    """The order in which a miniature's edges are drawn, so that no arch lies over a narrower one."""
    return edge.source - edge.target


def arch(box: Box, nodes: int, cell: str, edge: Edge) -> str:
    """One edge of the miniature in `box`, of a cell with `nodes` intermediate nodes."""
    dots = _dots(box, nodes)
    rise = (edge.target - edge.source) * (box.height - 76) / (len(dots) - 1)
    return coloured(
        cell, edge, arc(dots[edge.source], dots[edge.target], rise, **stroke(edge.operation, 0.75))
    )


def node_dots(box: Box, nodes: int) -> str:
    """The nodes of the miniature in `box`, input nodes hollow."""
    dots = _dots(box, nodes)
    radius = min(4.5, (dots[1][0] - dots[0][0]) / 3)
    circles = [
        element("circle", cx=x, cy=y, r=radius, class_="pill" if node < INPUT_NODES else "solid")
        for node, (x, y) in enumerate(dots)
    ]
    return group(*circles, class_="flow")


def _dots(box: Box, nodes: int) -> list[Point]:
    count = INPUT_NODES + nodes
    step = (box.width - 36) / (count - 1)
    return [(box.x + 18 + node * step, box.bottom - 16) for node in range(count)]


def _double_convolution(box: Box) -> str:
    middle, y = box.centre[0], box.bottom - 45
    tiles = [Box(middle - 61, y, 52, 30), Box(middle + 9, y, 52, 30)]
    names = [text(tile.centre[0], tile.centre[1] + 6, "3×3", 17, "middle") for tile in tiles]
    return group(*map(_convolution, tiles), *names, arrow(_between(*tiles)), class_="flow")


def _convolution(box: Box) -> str:
    return group(card(box, 6, "pill"), color=OPERATION_COLORS["sepconv_3x3"])


def _legend(items: Sequence[tuple[Callable[[float, float], str], str]], boxes: Mapping[str, Box]) -> str:
    """Samples, drawn at a given place, and their names, in columns below the U."""
    width, height = extent(boxes, len(items))
    columns = int(width // LEGEND_COLUMN)
    rows = -(-len(items) // columns)
    shapes = []
    for index, (sample, label) in enumerate(items):
        x = MARGIN + index % columns * width / columns
        y = height - 14 - LEGEND_ROW * (rows - 1 - index // columns)
        shapes += [sample(x, y), text(x + 40, y + 6, label, 16)]
    return group(*shapes)


def _operation_sample(operation: str, x: float, y: float) -> str:
    return group(line(((x, y), (x + 32, y)), **stroke(operation)), color=OPERATION_COLORS[operation])


def _also_sample(x: float, y: float) -> str:
    return group(arrow(((x, y), (x + 32, y))), class_="also")


def _convolution_sample(x: float, y: float) -> str:
    return _convolution(Box(x, y - 9, 32, 18))
