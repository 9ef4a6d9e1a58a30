"""Architectures as SVG text: a genotype or UNet as its U, one cell as its graph, alphas as a heat-map."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, repeat
from typing import Any

from searchseg.genotype import CELL_NAMES, INPUT_NODES, OPERATION_NAMES, Edge, Genotype
from searchseg.svg import Box, Point, arc, arrow, card, document, element, group, line, text

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
_FAMILIES = {"sepconv": "separable convolution", "dilconv": "dilated convolution", "mbconv": "MBConv"}

_ALSO = (("stem", "C2"), ("C1", "C3"), ("C2", "C4"), ("C3", "C5"))  # besides the main path and the skips
_LEVELS = dict(zip(CELL_NAMES, (0, 1, 2, 3, 3, 2, 1, 0), strict=True))

Size = tuple[int, int]


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
    _check_integers("widths", widths, 4, 4)
    _check_integers("stem_stride", [stem_stride], 1, 1)
    boxes = _u_shape(("stem", "C1", "C2", "C3", "C4"), ("head", "C8", "C7", "C6", "C5"))
    sizes = _sizes(image_size, stem_stride, 4)
    way = [boxes[name] for name in ("stem", *CELL_NAMES, "head")]
    head = f"1×1, up ×{stem_stride}" if stem_stride > 1 else "1×1 conv"
    shapes = [
        *(_also(boxes[a], boxes[b]) for a, b in _ALSO),
        *_flow(way, "conv, stride 2", "bilinear ×2"),
        *_skips(boxes, (("C1", "C8"), ("C2", "C7"), ("C3", "C6")), "skip connection"),
        *_ends(boxes["stem"], boxes["head"], image_size),
        _block(boxes["stem"], "stem", widths[0], sizes[0], f"3×3, stride {stem_stride}"),
        _block(boxes["head"], "head", None, image_size, head),
        *(_block(boxes[name], name, widths[k], sizes[k]) for name, k in _LEVELS.items()),
        *(_miniature(boxes[name], genotype, name) for name in CELL_NAMES),
    ]
    samples = [(partial(_operation_sample, operation), _label(operation)) for operation in OPERATION_NAMES]
    shapes.append(_legend([*samples, (_also_sample, "also receives")], boxes))
    task = str(genotype.search.get("task") or genotype.search.get("dataset") or "")[:60]
    title = f"SEARCH-Net {genotype.id}" + (f", searched on {task}" if task else "")
    levels = f"Eight cells in a U whose levels have {_listed(map(str, widths))} channels, from the top down."
    description = " ".join([levels, *(describe_cell(genotype, name) for name in CELL_NAMES)])
    return document(title, description, shapes, *_extent(boxes, 8))


def draw_unet(widths: Sequence[int], *, image_size: Size | None = None) -> str:
    """The plain UNet as a U of double convolutions, two to six levels of `widths` channels.

    `image_size`: (height, width) in pixels, adds every block's size. Raises ValueError as `draw`.
    """
    _check_integers("widths", widths, 2, 6)
    levels = len(widths)
    left, right = [f"E{k}" for k in range(1, levels)], [f"D{k}" for k in range(1, levels)]
    boxes = _u_shape(("", *left), ("head", *right), bottom=f"E{levels}")
    names = [*left, f"E{levels}", *reversed(right)]
    level = {name: int(name[1:]) - 1 for name in names}
    sizes = _sizes(image_size, 1, levels)
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
        f"A UNet of {levels} levels with {_listed(map(str, widths))} channels. "
        "Each block is two 3x3 convolutions. Max-pooling leads down, 2x2 up-convolutions lead up; each block "
        "on the way down is concatenated to its level's on the way up. The head is a 1x1 convolution."
    )
    return document(f"UNet with {levels} levels", description, shapes, *_extent(boxes, 1))


# The U: boxes step down on the left and up on the right, a level a row, below a first row for stem and head.

BLOCK_WIDTH, BLOCK_HEIGHT, END_HEIGHT, BOTTOM_WIDTH = 150, 122, 92, 200
STEP, GAP, TOP, MARGIN = 40, 48, 58, 4
MIDDLE = {True: 100, False: 58}  # between the two sides, with and without a block at the bottom
LEGEND_COLUMN, LEGEND_ROW = 165, 30


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


def _extent(boxes: Mapping[str, Box], legend_items: int) -> tuple[float, float]:
    """Width and height of a U and its legend."""
    width, bottom = (
        max(box.right for box in boxes.values()) + MARGIN,
        max(box.bottom for box in boxes.values()),
    )
    return width, bottom + 32 + LEGEND_ROW * -(-legend_items // int(width // LEGEND_COLUMN))


def _block(box: Box, name: str, channels: int | None, size: Size | None, note: str = "") -> str:
    right = box.right - 12
    return group(
        card(box),
        text(box.x + 12, box.y + 28, name, 20, font_weight="bold"),
        text(right, box.y + 26, f"{channels} ch", 18, "end") if channels else "",
        text(right, box.y + 50, _times(size), 17, "end", class_="quiet") if size else "",
        text(box.x + 12, box.bottom - 14, note, 16, class_="quiet") if note else "",
        tooltip=", ".join(
            filter(None, (name, f"{channels} channels" if channels else "", _times(size), note))
        ),
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
        text(first.x, y0 - 36, f"image {_times(image_size)}".strip(), 18),
        text(last.right, y1 - 36, "class scores", 18, "end"),
        group(arrow(((x0, y0 - 28), (x0, y0)), stroke_width=3), class_="flow"),
        group(arrow(((x1, y1), (x1, y1 - 28)), stroke_width=3), class_="flow"),
    ]


def _miniature(box: Box, genotype: Genotype, name: str) -> str:
    """The cell's nodes in a row and its edges as arches over them, input nodes hollow."""
    last = INPUT_NODES + genotype.nodes - 1
    y, step, rise = box.bottom - 16, (box.width - 36) / last, (box.height - 76) / last
    dots = [(box.x + 18 + node * step, y) for node in range(last + 1)]
    radius = min(4.5, step / 3)
    arches = [
        _coloured(
            name,
            e,
            arc(dots[e.source], dots[e.target], (e.target - e.source) * rise, **_stroke(e.operation, 0.75)),
        )
        for e in sorted(genotype.cells[name], key=lambda e: e.source - e.target)
    ]
    circles = [
        element("circle", cx=x, cy=y, r=radius, class_="pill" if node < INPUT_NODES else "solid")
        for node, (x, y) in enumerate(dots)
    ]
    return group(*arches, group(*circles, class_="flow"))


def _double_convolution(box: Box) -> str:
    middle, y = box.centre[0], box.bottom - 45
    tiles = [Box(middle - 61, y, 52, 30), Box(middle + 9, y, 52, 30)]
    names = [text(tile.centre[0], tile.centre[1] + 6, "3×3", 17, "middle") for tile in tiles]
    return group(*map(_convolution, tiles), *names, arrow(_between(*tiles)), class_="flow")


def _convolution(box: Box) -> str:
    return group(card(box, 6, "pill"), color=OPERATION_COLORS["sepconv_3x3"])


def _legend(items: Sequence[tuple[Callable[[float, float], str], str]], boxes: Mapping[str, Box]) -> str:
    """Samples, drawn at a given place, and their names, in columns below the U."""
    width, height = _extent(boxes, len(items))
    columns = int(width // LEGEND_COLUMN)
    rows = -(-len(items) // columns)
    shapes = []
    for index, (sample, label) in enumerate(items):
        x = MARGIN + index % columns * width / columns
        y = height - 14 - LEGEND_ROW * (rows - 1 - index // columns)
        shapes += [sample(x, y), text(x + 40, y + 6, label, 16)]
    return group(*shapes)


def _operation_sample(operation: str, x: float, y: float) -> str:
    return group(line(((x, y), (x + 32, y)), **_stroke(operation)), color=OPERATION_COLORS[operation])


def _also_sample(x: float, y: float) -> str:
    return group(arrow(((x, y), (x + 32, y))), class_="also")


def _convolution_sample(x: float, y: float) -> str:
    return _convolution(Box(x, y - 9, 32, 18))


# One cell: nodes in a column, above each the names of its two incoming edges, one on each side. An edge that
# passes other nodes runs down a lane of its own, outside the names.

NODE_WIDTH, NODE_HEIGHT, NAME_WIDTH, NAME_HEIGHT = 92, 44, 132, 30
NAME_OFFSET, LANE, ROUTE_GAP, INPUT_HEIGHT = 82, 22, 38, 62


@dataclass(frozen=True)
class RoutedEdge:
    """An edge, the box of its name, and the points of its way from source to target."""

    edge: Edge
    name: Box
    points: tuple[Point, ...]


@dataclass(frozen=True)
class CellLayout:
    """Where everything of a cell's drawing lies: nodes by number, edges, the output and the ways into it."""

    width: float
    height: float
    nodes: Mapping[int, Box]
    edges: tuple[RoutedEdge, ...]
    output: Box
    merges: tuple[tuple[Point, ...], ...]


def layout_cell(genotype: Genotype, name: str) -> CellLayout:
    """Places in the drawing of cell `name`: no edge's name covers another name, a node or another edge."""
    edges = genotype.cells[_known(name)]
    sides = _sides(edges)
    lanes = _lanes(edges, sides)
    outermost = NAME_OFFSET + NAME_WIDTH / 2 + LANE * (1 + max(2, 0, *lanes.values()))
    half = outermost + 30  # room for the rail that leads the nodes to the output
    last = INPUT_NODES + genotype.nodes - 1
    nodes = {
        0: Box(MARGIN, MARGIN, half - 10 - MARGIN, INPUT_HEIGHT),
        1: Box(half + 10, MARGIN, half - 10 - MARGIN, INPUT_HEIGHT),
    }
    row = 2 * ROUTE_GAP + NAME_HEIGHT + NODE_HEIGHT
    for node in range(INPUT_NODES, last + 1):
        y = MARGIN + INPUT_HEIGHT + (node - INPUT_NODES) * row + row - NODE_HEIGHT
        nodes[node] = Box(half - NODE_WIDTH / 2, y, NODE_WIDTH, NODE_HEIGHT)
    routes = tuple(_route(edge, nodes, half, sides[edge], lanes.get(edge)) for edge in edges)
    output = Box(half - 160, nodes[last].bottom + 40, 320, INPUT_HEIGHT)
    rail = half + outermost + 16
    merges = tuple(
        _merge(nodes[node], output, rail, node == INPUT_NODES, node == last)
        for node in range(INPUT_NODES, last + 1)
    )
    return CellLayout(2 * half, output.bottom + MARGIN, nodes, routes, output, merges)


def _sides(edges: Sequence[Edge]) -> dict[Edge, int]:
    """-1 (left) or 1 for every edge: input 0 keeps left, input 1 right, others change from node to node."""
    sides = {}
    for first, second in _pairs(edges):
        sides[first] = {0: -1, 1: 1}.get(first.source, -1 if first.target % 2 else 1)
        sides[second] = -sides[first]
    return sides


def _lanes(edges: Sequence[Edge], sides: Mapping[Edge, int]) -> dict[Edge, int]:
    """Lanes, 0 innermost, of the edges that pass a node: outside the lanes of their side still in use."""
    lanes: dict[Edge, int] = {}
    for edge in edges:
        start = max(edge.source, INPUT_NODES - 1)  # the inputs lie side by side
        if edge.target > start + 1:
            busy = [lanes[e] for e in lanes if sides[e] == sides[edge] and e.target > start]
            lanes[edge] = max(busy, default=-1) + 1
    return lanes


def _route(edge: Edge, nodes: Mapping[int, Box], middle: float, side: int, lane: int | None) -> RoutedEdge:
    target, x, door = nodes[edge.target], middle + side * NAME_OFFSET, middle + side * 16
    name = Box(x - NAME_WIDTH / 2, target.y - ROUTE_GAP - NAME_HEIGHT, NAME_WIDTH, NAME_HEIGHT)
    track = None if lane is None else middle + side * (NAME_OFFSET + NAME_WIDTH / 2 + LANE * (lane + 1))
    departure = _departure(edge, nodes[edge.source], x, door, track, name.centre[1])
    bend = name.bottom + 14
    return RoutedEdge(edge, name, (*departure, name.centre, (x, bend), (door, bend), (door, target.y)))


def _departure(
    edge: Edge, source: Box, x: float, door: float, track: float | None, y: float
) -> tuple[Point, ...]:
    """The way from the source to the name at (x, y): straight on, or along the lane at `track`."""
    leaves_input = edge.source < INPUT_NODES
    if track is None:
        bend = source.bottom + ROUTE_GAP / 2
        return ((x, source.bottom),) if leaves_input else ((door, source.bottom), (door, bend), (x, bend))
    if leaves_input:
        return (track, source.bottom), (track, y)
    exit_y = source.centre[1] - 8
    return (source.right if track > x else source.x, exit_y), (track, exit_y), (track, y)


def _merge(node: Box, output: Box, rail: float, first: bool, last: bool) -> tuple[Point, ...]:
    """The way into the output: the last node is above it, the way of the first is the rail others join."""
    if last:
        return (node.centre[0], node.bottom), (output.centre[0], output.y)
    y = node.centre[1] + 10
    onto_rail = (node.right, y), (rail, y)
    if not first:
        return *onto_rail, (rail, y + 24)
    return *onto_rail, (rail, output.centre[1]), (output.right, output.centre[1])


def draw_cell(genotype: Genotype, name: str) -> str:
    """The graph of cell `name`, from its inputs down to its output. Raises ValueError for an unknown cell."""
    layout = layout_cell(genotype, name)
    nodes = {node: box for node, box in layout.nodes.items() if node >= INPUT_NODES}
    shapes = [
        *(group(line(way) if len(way) == 3 else arrow(way), class_="flow") for way in layout.merges),
        *(_coloured(name, r.edge, arrow(r.points, **_stroke(r.edge.operation))) for r in layout.edges),
        *(
            _coloured(name, r.edge, _titled(r.name, _label(r.edge.operation), pill=True))
            for r in layout.edges
        ),
        *(_titled(layout.nodes[k], source, f"input {k}") for k, source in enumerate(CELL_INPUTS[name])),
        *(_titled(box, f"node {node}") for node, box in nodes.items()),
        _titled(layout.output, f"output of {name}", "all nodes concatenated, 1×1 merge"),
    ]
    return document(f"Cell {name}", describe_cell(genotype, name), shapes, layout.width, layout.height)


def _titled(box: Box, title: str, above: str = "", pill: bool = False) -> str:
    x, y = box.centre
    return group(
        card(box, box.height / 2, "pill") if pill else card(box),
        text(x, y - 6, above, 16, "middle", class_="quiet") if above else "",
        text(
            x,
            y + (16 if above else 6),
            title,
            16,
            "middle",
            font_weight="normal" if pill else "bold",
        ),
    )


def describe_cell(genotype: Genotype, name: str) -> str:
    """Cell `name` in plain words, node by node. Raises ValueError for an unknown cell."""
    plural = "s" * (genotype.nodes > 1)
    sentences = [f"{name} has {genotype.nodes} node{plural}."]
    for first, second in _pairs(genotype.cells[_known(name)]):
        sentences.append(f"Node {first.target} adds {_term(name, first)} and {_term(name, second)}.")
    merged = _listed(str(node) for node in range(INPUT_NODES, INPUT_NODES + genotype.nodes))
    return " ".join([*sentences, f"The output merges node{plural} {merged} by a 1x1 convolution."])


def _term(cell: str, edge: Edge) -> str:
    family, _, kernel = edge.operation.partition("_")
    what = f"{kernel} {_FAMILIES[family]}" if kernel else family
    if edge.source < INPUT_NODES:
        return f"a {what} of input {edge.source} ({CELL_INPUTS[cell][edge.source]})"
    return f"a {what} of node {edge.source}"


def _pairs(edges: Sequence[Edge]) -> Iterable[tuple[Edge, Edge]]:
    """The two incoming edges of every node; a genotype is sorted by target, then source."""
    return zip(edges[::2], edges[1::2], strict=True)


# Alphas: a panel for each cell, in the places of the U; rows are edges, columns operations.

SQUARE_WIDTH, SQUARE_HEIGHT, ROW_NAME, PANEL_HEAD, PANEL_GAP = 40, 24, 60, 56, 28
PANEL_WIDTH = ROW_NAME + len(OPERATION_NAMES) * SQUARE_WIDTH


def draw_alpha(alpha: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Heat-map of softmax(alpha): a panel for each cell, a row for each edge, the strongest operation framed.

    `alpha`: cell -> "source-target" -> raw alphas in the order of OPERATION_NAMES. Raises ValueError for a
    missing or unknown cell, a malformed edge, not one alpha an operation, or an alpha that is not finite.
    """
    weights = {name: _weights(name, table) for name, table in _known_cells(alpha).items()}
    top = max(max(row) for table in weights.values() for row in table.values())
    scale = next(limit for limit in (0.25, 0.5, 1) if top <= limit + 1e-9)
    rows = max(map(len, weights.values()))
    panel_height = PANEL_HEAD + rows * SQUARE_HEIGHT + PANEL_GAP
    width = 2 * (MARGIN + PANEL_WIDTH) + PANEL_GAP
    shapes = []
    for index, name in enumerate(CELL_NAMES):
        level, x = (index, MARGIN) if index < 4 else (7 - index, width - MARGIN - PANEL_WIDTH)
        shapes.append(_panel(x, level * panel_height, name, weights[name], scale))
    shapes.append(_scale(4 * panel_height, scale))
    description = " ".join(_strongest_words(name, table) for name, table in weights.items())
    title = "Weights of the operations on every edge"
    return document(title, description, shapes, width, 4 * panel_height + 56)


Weights = Mapping[tuple[int, int], Sequence[float]]


def _panel(x: float, y: float, name: str, weights: Weights, scale: float) -> str:
    columns = [x + ROW_NAME + k * SQUARE_WIDTH for k in range(len(OPERATION_NAMES))]
    shapes = [
        text(x, y + 34, name, 22, font_weight="bold"),
        *map(_column_head, columns, repeat(y), OPERATION_NAMES),
    ]
    for row, ((source, target), values) in enumerate(weights.items()):
        top, best = y + PANEL_HEAD + row * SQUARE_HEIGHT, values.index(max(values))
        shapes.append(text(x + ROW_NAME - 8, top + 18, f"{source}→{target}", 17, "end", class_="quiet"))
        for k, value in enumerate(values):
            words = f"{name} {source}→{target} {_label(OPERATION_NAMES[k])}: {value:.3f}"
            shapes.append(_square(columns[k], top, value / scale, words, marked=k == best))
    return group(*shapes)


def _column_head(x: float, y: float, operation: str) -> str:
    middle = x + SQUARE_WIDTH / 2
    family, _, kernel = _label(operation).replace("conv", "").partition(" ")
    bar = line(((x + 4, y + 49), (x + SQUARE_WIDTH - 4, y + 49)), stroke_width=5)
    lines = [
        text(middle, y + 24 + 17 * k, word, 16, "middle") for k, word in enumerate((family, kernel)) if word
    ]
    return group(*lines, bar, color=OPERATION_COLORS[operation])


def _square(x: float, y: float, strength: float, words: str = "", marked: bool = False) -> str:
    box = Box(x + 1, y + 1, SQUARE_WIDTH - 2, SQUARE_HEIGHT - 2)
    shapes = [card(box, 3, "heat", fill_opacity=f"{strength:.3f}"), *([card(box, 3, "mark")] * marked)]
    return group(*shapes, tooltip=words)


def _scale(y: float, scale: float) -> str:
    """The squares from weight 0 to `scale`, with their numbers, and the frame of the strongest."""
    places = [(MARGIN + ROW_NAME + step * 50, step / 5) for step in range(6)]
    squares = [_square(x, y, share) for x, share in places]
    numbers = [
        text(x + SQUARE_WIDTH / 2, y + 44, f"{scale * share:.3g}", 17, "middle", class_="quiet")
        for x, share in places
    ]
    x = places[-1][0] + 80
    return group(
        *squares, *numbers, _square(x, y, 0, marked=True), text(x + 50, y + 18, "strongest of its edge", 17)
    )


def _strongest_words(name: str, weights: Weights) -> str:
    rows = (
        f"{source} to {target} {_label(OPERATION_NAMES[values.index(max(values))])} {max(values):.2f}"
        for (source, target), values in weights.items()
    )
    return f"{name}: {', '.join(rows)}."


def _known_cells(alpha: Mapping[str, Any]) -> dict[str, Any]:
    missing, unknown = set(CELL_NAMES) - set(alpha), set(alpha) - set(CELL_NAMES)
    if missing or unknown:
        raise ValueError(
            f"alpha needs exactly the cells C1 to C8: missing {sorted(missing)}, unknown {sorted(unknown)}"
        )
    return {name: alpha[name] for name in CELL_NAMES}


def _weights(name: str, table: Mapping[str, Sequence[float]]) -> dict[tuple[int, int], list[float]]:
    """Softmax weights of a cell by (source, target), in the order of targets, then sources."""
    if not table:
        raise ValueError(f"alpha of {name} has no edge: give at least one 'source-target' with its alphas")
    rows = {_source_target(name, key): _softmax(f"{name} {key}", values) for key, values in table.items()}
    return dict(sorted(rows.items(), key=lambda row: row[0][::-1]))


def _source_target(name: str, key: str) -> tuple[int, int]:
    source, dash, target = str(key).partition("-")
    if not (dash and source.isdecimal() and target.isdecimal() and int(source) < int(target)):
        raise ValueError(f"alpha of {name} has the edge {key!r}: name it 'source-target', such as '0-2'")
    return int(source), int(target)


def _softmax(place: str, alphas: Sequence[float]) -> list[float]:
    if len(alphas) != len(OPERATION_NAMES):
        raise ValueError(
            f"alpha of {place} has {len(alphas)} values, wanted {len(OPERATION_NAMES)}, one an operation"
        )
    values = [float(value) for value in alphas]
    if not all(map(math.isfinite, values)):
        raise ValueError(f"alpha of {place} is not finite: {values}; look for a diverged search")
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


# Words and numbers that all drawings share.


def _known(name: str) -> str:
    if name not in CELL_NAMES:
        raise ValueError(f"unknown cell {name!r}; known: {', '.join(CELL_NAMES)}")
    return name


def _label(operation: str) -> str:
    return operation.replace("_", " ").replace("x", "×")


def _coloured(cell: str, edge: Edge, shape: str) -> str:
    """The shape in the colour of the edge's operation, with the edge in words."""
    words = f"{cell} {edge.source}→{edge.target}: {_label(edge.operation)}"
    return group(shape, tooltip=words, color=OPERATION_COLORS[edge.operation])


def _stroke(operation: str, scale: float = 1) -> dict[str, Any]:
    """Line of an operation: 5x5 thicker than 3x3, dilated convolutions with gaps, skips thin."""
    stroke = {"stroke_width": scale * (5 if "5x5" in operation else 3 if "3x3" in operation else 2.4)}
    return {**stroke, "stroke_dasharray": f"{8 * scale:g} {3.5 * scale:g}"} if "dil" in operation else stroke


def _times(size: Size | None) -> str:
    return f"{size[0]}×{size[1]}" if size else ""


def _sizes(image_size: Size | None, stride: int, levels: int) -> list[Size | None]:
    """(height, width) of every level: divided by the stem's stride, then halved, rounding up each time."""
    if image_size is None:
        return [None] * levels
    _check_integers("image_size", image_size, 2, 2)
    height, width = (-(-side // stride) for side in image_size)
    sizes: list[Size | None] = []
    for _ in range(levels):
        sizes.append((height, width))
        height, width = -(-height // 2), -(-width // 2)
    return sizes


def _check_integers(what: str, values: Sequence[int], fewest: int, most: int) -> None:
    if not fewest <= len(values) <= most or not all(type(value) is int and value > 0 for value in values):
        count = str(fewest) if fewest == most else f"{fewest} to {most}"
        raise ValueError(f"{what} needs {count} positive integer{'s' * (most > 1)}, got {values!r}")


def _listed(words: Any) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
