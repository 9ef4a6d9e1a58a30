"""Proves that drawings of any genotype are well formed, complete, inside their frame and free of overlaps."""

import math
import random
import re
from itertools import combinations, pairwise
from xml.etree import ElementTree

import pytest

from searchseg.drawing import (
    CELL_INPUTS,
    OPERATION_COLORS,
    describe_cell,
    draw,
    draw_alpha,
    draw_cell,
    draw_unet,
    layout_cell,
)
from searchseg.drawing.svg import STYLE, Box
from searchseg.genotype import CELL_NAMES, OPERATION_NAMES, Edge, Genotype, possible_edges

SVG = "{http://www.w3.org/2000/svg}"
CHARACTER = 0.6  # width of a character by font size: the mean of a wide sans-serif (DejaVu Sans)


def some_genotype(nodes: int, seed: int = 0, **search: str) -> Genotype:
    dice = random.Random(seed)
    cells = {
        name: tuple(
            Edge(source, target, dice.choice(OPERATION_NAMES))
            for target in range(2, 2 + nodes)
            for source in dice.sample(range(target), 2)
        )
        for name in CELL_NAMES
    }
    return Genotype(nodes, cells, search)


def some_alpha(nodes: int = 3) -> dict[str, dict[str, list[float]]]:
    dice = random.Random(nodes)
    return {
        name: {f"{s}-{t}": [dice.gauss(0, 1) for _ in OPERATION_NAMES] for s, t in possible_edges(nodes)}
        for name in CELL_NAMES
    }


DRAWINGS = {
    **{
        f"u of {n} nodes": draw(some_genotype(n, n), image_size=(1080, 1920), stem_stride=2)
        for n in (1, 2, 3, 4, 16)
    },
    **{f"cell of {n} nodes": draw_cell(some_genotype(n, n), f"C{n % 8 or 8}") for n in (1, 2, 3, 4, 16)},
    **{f"unet of {n} levels": draw_unet((1024,) * n, image_size=(1024, 1024)) for n in range(2, 7)},
    **{f"alpha of {n} nodes": draw_alpha(some_alpha(n)) for n in (1, 2, 4)},
    "alpha of far nodes": draw_alpha({name: {"10-11": [0.0] * 7} for name in CELL_NAMES}),
    "u of wide cells": draw(some_genotype(4), widths=(8192,) * 4),
}
every_drawing = pytest.mark.parametrize("svg", DRAWINGS.values(), ids=DRAWINGS)


def texts(svg: str) -> list[str]:
    return [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def tooltips(svg: str) -> list[str]:
    return [
        title.text
        for group in ElementTree.fromstring(svg).iter(f"{SVG}g")
        for title in group.findall(f"{SVG}title")
    ]


def numbers(element: ElementTree.Element, *names: str) -> list[float]:
    return [float(element.get(name)) for name in names]


def text_box(element: ElementTree.Element) -> Box:
    x, y, size = numbers(element, "x", "y", "font-size")
    width = CHARACTER * size * len(element.text)
    left = x - width * {"start": 0, "middle": 0.5, "end": 1}[element.get("text-anchor")]
    return Box(left, y - 0.8 * size, width, size)


def coordinates(path: ElementTree.Element) -> list[float]:
    assert set(re.findall("[A-Za-z]", path.get("d"))) <= set("MLCQZ")  # absolute pairs only
    return [float(value) for value in re.findall(r"-?[\d.]+", path.get("d"))]


def places(svg: str) -> dict[str, list[Box]]:
    """The boxes that the texts, rectangles, circles and paths of a drawing occupy."""
    found: dict[str, list[Box]] = {"text": [], "rect": [], "circle": [], "path": []}
    for element in ElementTree.fromstring(svg).iter():
        kind = element.tag.removeprefix(SVG)
        if kind == "text":
            found[kind].append(text_box(element))
        elif kind == "rect":
            found[kind].append(Box(*numbers(element, "x", "y", "width", "height")))
        elif kind == "circle":
            x, y, r = numbers(element, "cx", "cy", "r")
            found[kind].append(Box(x - r, y - r, 2 * r, 2 * r))
        elif kind == "path":
            values = coordinates(element)
            margin = float(element.get("stroke-width", 0)) / 2
            xs, ys = values[::2], values[1::2]
            if "C" in element.get("d"):  # a cubic reaches three quarters of the way to its control points
                ys = [ys[0], ys[0] + 0.75 * (ys[1] - ys[0])]
            left, top = min(xs) - margin, min(ys) - margin
            found[kind].append(Box(left, top, max(xs) + margin - left, max(ys) + margin - top))
    return found


@every_drawing
def test_is_a_standalone_image_with_a_name_and_no_id(svg):
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg" and root.get("role") == "img" and root.get("width") == "100%"
    assert root.find(f"{SVG}title").text == root.get("aria-label")
    assert len(root.find(f"{SVG}desc").text) > 60
    assert not any(element.get("id") for element in root.iter())  # several drawings may stand in one page


@every_drawing
def test_nothing_leaves_the_frame(svg):
    _, _, width, height = map(float, ElementTree.fromstring(svg).get("viewBox").split())
    for kind, boxes in places(svg).items():
        for box in boxes:
            assert box.x >= 0 and box.y >= 0 and box.right <= width and box.bottom <= height, (kind, box)


@every_drawing
def test_texts_do_not_overlap(svg):
    overlapping = [pair for pair in combinations(places(svg)["text"], 2) if pair[0].overlaps(pair[1])]
    assert not overlapping


@every_drawing
def test_texts_fit_their_boxes_or_stay_outside(svg):
    found = places(svg)
    for text in found["text"]:
        for rect in found["rect"]:
            inside = (
                rect.x <= text.x
                and rect.y <= text.y
                and text.right <= rect.right
                and text.bottom <= rect.bottom
            )
            assert inside or not text.overlaps(rect), (text, rect)


@pytest.mark.parametrize("svg", [svg for name, svg in DRAWINGS.items() if name.startswith("u")])
def test_lines_of_a_u_cross_no_text(svg):
    found = places(svg)
    arcs, lines = [], []
    for path, box in zip(ElementTree.fromstring(svg).iter(f"{SVG}path"), found["path"], strict=True):
        values = coordinates(path)
        arcs += [box] * ("C" in path.get("d"))
        lines += [] if "C" in path.get("d") else stretches(list(zip(values[::2], values[1::2], strict=True)))
    assert not [(text, line) for text in found["text"] for line in arcs + lines if text.overlaps(line)]


def test_style_follows_the_system_and_the_page():
    assert "@media (prefers-color-scheme:dark)" in STYLE and ".dark .searchseg-drawing" in STYLE
    selectors = [rule.split("}")[-1].strip() for rule in STYLE.split("{")[:-1]]
    assert all("searchseg-drawing" in selector or selector.startswith("@media") for selector in selectors)


@pytest.mark.parametrize("nodes", [1, 2, 3, 4])
def test_u_has_every_edge_of_every_cell_in_its_colour(nodes):
    genotype = some_genotype(nodes, 7)
    edges = {
        (group.find(f"{SVG}title").text, group.get("color"))
        for group in ElementTree.fromstring(draw(genotype)).iter(f"{SVG}g")
        if group.get("color") and group.find(f"{SVG}title") is not None
    }
    assert edges == {
        (f"{name} {e.source}→{e.target}: {label(e.operation)}", OPERATION_COLORS[e.operation])
        for name in CELL_NAMES
        for e in genotype.cells[name]
    }


def label(operation: str) -> str:
    return operation.replace("_", " ").replace("3x3", "3×3").replace("5x5", "5×5")


def test_u_has_cells_widths_and_sizes_that_round_up():
    svg = draw(some_genotype(3), widths=(8, 16, 24, 32), image_size=(97, 130), stem_stride=2)
    assert {"stem", "head", *CELL_NAMES} <= set(texts(svg))
    assert {f"{name}, {width} channels, {size}" for name, width, size in zip(
        CELL_NAMES,
        (8, 16, 24, 32, 32, 24, 16, 8),
        ("49×65", "25×33", "13×17", "7×9", "7×9", "13×17", "25×33", "49×65"),
        strict=True,
    )} <= set(tooltips(svg))  # fmt: skip
    assert texts(svg).count("97×130") == 1 and "image 97×130" in texts(svg)


def test_u_legend_names_every_operation():
    assert {label(operation) for operation in OPERATION_NAMES} <= set(texts(draw(some_genotype(2))))


def test_u_has_the_skip_and_second_connections():
    svg = draw(some_genotype(2))
    also = [g for g in ElementTree.fromstring(svg).iter(f"{SVG}g") if g.get("class") == "also"]
    assert len(also) == 4 + 1  # into C2, C3, C4, C5, and in the legend
    flow = [
        g
        for g in ElementTree.fromstring(svg).iter(f"{SVG}g")
        if g.get("class") == "flow" and g.find(f"{SVG}path") is not None
    ]
    assert len(flow) == 9 + 3 + 2  # from stem to head, skips, image in and scores out


def test_strangers_text_is_escaped():
    svg = draw(some_genotype(2, task='<script>alert("&")</script>\x00'))
    assert "<script" not in svg
    assert (
        ElementTree.fromstring(svg)
        .get("aria-label")
        .endswith('searched on <script>alert("&")</script>\N{REPLACEMENT CHARACTER}')
    )


@pytest.mark.parametrize("nodes", [2, 3, 4, 7])
def test_cell_layout_keeps_names_apart_from_names_nodes_and_other_edges(nodes):
    for seed in range(25 if nodes < 5 else 5):  # times eight cells
        for name in CELL_NAMES:
            layout = layout_cell(some_genotype(nodes, seed), name)
            solid = [*layout.nodes.values(), layout.output, *(edge.name for edge in layout.edges)]
            assert not [pair for pair in combinations(solid, 2) if pair[0].overlaps(pair[1])]
            for edge, other in ((a, b) for a in layout.edges for b in layout.edges if a is not b):
                assert not any(other.name.overlaps(stretch) for stretch in stretches(edge.points))
            for edge in layout.edges:
                own = {edge.edge.source, edge.edge.target}
                strangers = [box for node, box in layout.nodes.items() if node not in own]
                assert not [
                    box for box in strangers for stretch in stretches(edge.points) if box.overlaps(stretch)
                ]


def stretches(points) -> list[Box]:
    """The straight parts of a way, as boxes as thick as the thickest line."""
    return [
        Box(min(a[0], b[0]) - 2.5, min(a[1], b[1]) - 2.5, abs(a[0] - b[0]) + 5, abs(a[1] - b[1]) + 5)
        for a, b in pairwise(points)
    ]


@pytest.mark.parametrize("nodes", [2, 3, 4])
def test_no_two_edges_share_a_lane(nodes):
    for seed in range(50):
        layout = layout_cell(some_genotype(nodes, seed), "C3")
        vertical = [
            [stretch for stretch in stretches(edge.points) if stretch.height > 60] for edge in layout.edges
        ]
        for ours, theirs in combinations(vertical, 2):
            assert not [pair for pair in ((a, b) for a in ours for b in theirs) if pair[0].overlaps(pair[1])]


def test_cell_layout_runs_from_source_to_target():
    for edge in (layout := layout_cell(some_genotype(4, 3), "C8")).edges:
        source, target = layout.nodes[edge.edge.source], layout.nodes[edge.edge.target]
        (x, y), (end_x, end_y) = edge.points[0], edge.points[-1]
        assert source.x <= x <= source.right and source.y <= y <= source.bottom
        assert target.x <= end_x <= target.right and end_y == target.y
        assert edge.name.centre in edge.points
        assert all(above[1] <= below[1] for above, below in pairwise(edge.points))


@pytest.mark.parametrize("name", CELL_NAMES)
def test_cell_shows_inputs_nodes_and_operations(name):
    genotype = some_genotype(4, 5)
    shown = texts(draw_cell(genotype, name))
    assert {*CELL_INPUTS[name], "node 2", "node 3", "node 4", "node 5", f"output of {name}"} <= set(shown)
    names = {label(operation) for operation in OPERATION_NAMES}
    assert sorted(text for text in shown if text in names) == sorted(
        label(e.operation) for e in genotype.cells[name]
    )


def test_cell_in_words():
    edges = (
        Edge(0, 2, "mbconv_3x3"),
        Edge(1, 2, "skip"),
        Edge(1, 3, "dilconv_5x5"),
        Edge(2, 3, "sepconv_3x3"),
    )
    genotype = Genotype(2, dict.fromkeys(CELL_NAMES, edges))
    words = (
        "C5 has 2 nodes. Node 2 adds a 3x3 MBConv of input 0 (C3 brought down) and a skip of input 1 (C4). "
        "Node 3 adds a 5x5 dilated convolution of input 1 (C4) and a 3x3 separable convolution of node 2. "
        "The output merges nodes 2 and 3 by a 1x1 convolution."
    )
    assert describe_cell(genotype, "C5") == words
    assert ElementTree.fromstring(draw_cell(genotype, "C5")).find(f"{SVG}desc").text == words


@pytest.mark.parametrize("levels", range(2, 7))
def test_unet_has_every_block_with_width_and_size(levels):
    svg = draw_unet([10 + k for k in range(levels)], image_size=(100, 130))
    sizes = ["100×130", "50×65", "25×33", "13×17", "7×9", "4×5"]
    blocks = [(f"E{k + 1}", k) for k in range(levels)] + [(f"D{k + 1}", k) for k in range(levels - 1)]
    assert {f"{name}, {10 + k} channels, {sizes[k]}" for name, k in blocks} < set(tooltips(svg))
    shown = texts(svg)
    assert shown.count("3×3") == 2 * len(blocks)
    assert shown.count("max-pool 2×2") == shown.count("up-conv 2×2") == levels - 1


def test_alpha_shows_softmax_weights_and_frames_the_strongest():
    alpha = {name: {f"{s}-{t}": [0.0] * 7 for s, t in possible_edges(3)} for name in CELL_NAMES}
    alpha["C4"]["1-3"] = [5, 5, 5, 5, 5 + math.log(4), 5, 5]
    groups = {
        g.find(f"{SVG}title").text: g.findall(f"{SVG}rect")
        for g in ElementTree.fromstring(draw_alpha(alpha)).iter(f"{SVG}g")
        if g.find(f"{SVG}title") is not None
    }
    assert len(groups) == 8 * 9 * 7
    heat, mark = groups["C4 1→3 mbconv 3×3: 0.400"]
    assert float(heat.get("fill-opacity")) == pytest.approx(0.8, abs=1e-3)  # the scale ends at 0.5
    assert mark.get("class") == "mark"
    (heat,) = groups["C4 1→3 skip: 0.100"]
    assert float(heat.get("fill-opacity")) == pytest.approx(0.2, abs=1e-3)
    assert sum(len(rects) == 2 for rects in groups.values()) == 8 * 9


@pytest.mark.parametrize("top, scale", [(0, "0.25"), (1.5, "0.5"), (900, "1")])
def test_alpha_scale_covers_the_largest_weight(top, scale):
    alpha = {name: {"0-2": [top, 0, 0, 0, 0, 0, 0], "1-2": [0] * 7} for name in CELL_NAMES}
    svg = draw_alpha(alpha)
    assert texts(svg)[-2] == scale
    assert all(
        0 <= float(r.get("fill-opacity", 0)) <= 1 for r in ElementTree.fromstring(svg).iter(f"{SVG}rect")
    )


def test_operations_have_colours_that_everyone_can_tell_apart():
    assert tuple(OPERATION_COLORS) == OPERATION_NAMES
    for a, b in combinations(OPERATION_COLORS.values(), 2):
        for vision in VISIONS.values():
            assert math.dist(oklab(seen(a, vision)), oklab(seen(b, vision))) > 0.06, (a, b)
    for colour in OPERATION_COLORS.values():
        assert min(contrast(colour, "#ffffff"), contrast(colour, "#0b0f19")) > 2.9, colour


VISIONS = {  # Machado et al. 2009, severity 1, on linear RGB
    "normal": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protan": ((0.152, 1.053, -0.205), (0.115, 0.786, 0.099), (-0.004, -0.048, 1.052)),
    "deutan": ((0.367, 0.861, -0.228), (0.280, 0.673, 0.047), (-0.012, 0.043, 0.969)),
    "tritan": ((1.256, -0.077, -0.179), (-0.078, 0.931, 0.148), (0.005, 0.691, 0.304)),
}


def linear(colour: str) -> list[float]:
    shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]


def seen(colour: str, vision) -> list[float]:
    return [min(1, max(0, sum(a * b for a, b in zip(row, linear(colour), strict=True)))) for row in vision]


def oklab(rgb: list[float]) -> tuple[float, float, float]:
    r, g, b = rgb
    long = (0.41222 * r + 0.53633 * g + 0.05145 * b) ** (1 / 3)
    medium = (0.21190 * r + 0.68070 * g + 0.10740 * b) ** (1 / 3)
    short = (0.08830 * r + 0.28172 * g + 0.62998 * b) ** (1 / 3)
    return (
        0.21045 * long + 0.79362 * medium - 0.00407 * short,
        1.97800 * long - 2.42859 * medium + 0.45059 * short,
        0.02590 * long + 0.78277 * medium - 0.80868 * short,
    )


def contrast(a: str, b: str) -> float:
    low, high = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in (linear(a), linear(b)))
    return (high + 0.05) / (low + 0.05)


def without(name: str):
    return {cell: table for cell, table in some_alpha().items() if cell != name}


def alpha_with(cell: str, table):
    return draw_alpha(some_alpha() | {cell: table})


WRONG = {
    "missing cell": (lambda: draw_alpha(without("C3")), r"missing \['C3'\]"),
    "unknown cell": (lambda: alpha_with("C9", {}), r"unknown \['C9'\]"),
    "no edge": (lambda: alpha_with("C2", {}), "C2 has no edge"),
    "length": (lambda: alpha_with("C2", {"0-2": [0.0] * 6}), "C2 0-2 has 6 values, wanted 7"),
    "not a number": (lambda: alpha_with("C2", {"0-2": [math.nan] * 7}), "C2 0-2 is not finite"),
    "infinite": (lambda: alpha_with("C2", {"0-2": [math.inf] * 7}), "C2 0-2 is not finite"),
    "edge": (lambda: alpha_with("C2", {"2-0": [0.0] * 7}), "C2 has the edge '2-0'"),
    "cell": (lambda: draw_cell(some_genotype(2), "C9"), "unknown cell 'C9'; known: C1"),
    "words": (lambda: describe_cell(some_genotype(2), "c1"), "unknown cell 'c1'"),
    "widths": (lambda: draw(some_genotype(2), widths=(1, 2, 3)), "widths needs 4 positive integers"),
    "width": (lambda: draw(some_genotype(2), widths=(1, 2, 3, "<b>")), "widths needs 4 positive integers"),
    "size": (lambda: draw(some_genotype(2), image_size=(0, 9)), "image_size needs 2 positive integers"),
    "stride": (lambda: draw(some_genotype(2), stem_stride=0), "stem_stride needs 1 positive integer"),
    "levels": (lambda: draw_unet((8,)), "widths needs 2 to 6 positive integers"),
    "seven levels": (lambda: draw_unet((8,) * 7), "widths needs 2 to 6 positive integers"),
}


@pytest.mark.parametrize("call, message", WRONG.values(), ids=WRONG)
def test_errors_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
