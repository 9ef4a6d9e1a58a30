"""One cell as a graph: nodes in a column, above each the names of its two incoming edges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from searchseg.drawing.notation import (
    CELL_INPUTS,
    FAMILIES,
    MARGIN,
    coloured,
    in_words,
    known_cell,
    operation_label,
    stroke,
)
from searchseg.drawing.svg import Box, Point, arrow, card, document, group, line, text
from searchseg.genotype import INPUT_NODES, Edge, Genotype

# An edge that passes other nodes runs down a lane of its own, outside the names.

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
    edges = genotype.cells[known_cell(name)]
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
        *(coloured(name, r.edge, arrow(r.points, **stroke(r.edge.operation))) for r in layout.edges),
        *(
            coloured(name, r.edge, _titled(r.name, operation_label(r.edge.operation), pill=True))
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
    for first, second in _pairs(genotype.cells[known_cell(name)]):
        sentences.append(f"Node {first.target} adds {_term(name, first)} and {_term(name, second)}.")
    merged = in_words(str(node) for node in range(INPUT_NODES, INPUT_NODES + genotype.nodes))
    return " ".join([*sentences, f"The output merges node{plural} {merged} by a 1x1 convolution."])


def _term(cell: str, edge: Edge) -> str:
    family, _, kernel = edge.operation.partition("_")
    what = f"{kernel} {FAMILIES[family]}" if kernel else family
    if edge.source < INPUT_NODES:
        return f"a {what} of input {edge.source} ({CELL_INPUTS[cell][edge.source]})"
    return f"a {what} of node {edge.source}"


def _pairs(edges: Sequence[Edge]) -> Iterable[tuple[Edge, Edge]]:
    """The two incoming edges of every node; a genotype is sorted by target, then source."""
    return zip(edges[::2], edges[1::2], strict=True)
