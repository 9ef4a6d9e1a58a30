"""Alphas as heat-maps: a panel for each cell, in the places of the U; rows are edges, columns operations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any

from searchseg.drawing.notation import (
    MARGIN,
    OPERATION_COLORS,
    operation_label,
)
from searchseg.drawing.svg import Box, card, document, group, line, text
from searchseg.genotype import CELL_NAMES, OPERATION_NAMES

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
            words = f"{name} {source}→{target} {operation_label(OPERATION_NAMES[k])}: {value:.3f}"
            shapes.append(_square(columns[k], top, value / scale, words, marked=k == best))
    return group(*shapes)


def _column_head(x: float, y: float, operation: str) -> str:
    middle = x + SQUARE_WIDTH / 2
    family, _, kernel = operation_label(operation).replace("conv", "").partition(" ")
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
        f"{source} to {target} "
        f"{operation_label(OPERATION_NAMES[values.index(max(values))])} {max(values):.2f}"
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
