"""Curves of a search and a training as SVG: also of a single epoch, on light and dark pages, with words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from searchseg.drawing.svg import document, element, group, line, text

Point = tuple[float, float]
# apart in every kind of colour vision, and readable on white and on dark
COLORS = ("#4a96e0", "#c5851f", "#e354aa")
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 560, 236, 54, 34, 12, 40


def draw_curves(title: str, curves: Mapping[str, Sequence[Point]]) -> str:
    """An SVG of `curves`, each a name and its points (epoch, value) in order; "" where there is no point."""
    curves = {name: [p for p in points if math.isfinite(p[1])] for name, points in curves.items()}
    points = [point for line_of in curves.values() for point in line_of]
    if not points:
        return ""
    across = _range([x for x, _ in points], whole=True)
    up = _range([y for _, y in points])
    shown = {name: [_place(point, across, up) for point in of] for name, of in curves.items() if of}
    drawn = [_curve(name, of, COLORS[at % len(COLORS)]) for at, (name, of) in enumerate(shown.items())]
    last = ", ".join(f"{name} {of[-1][1]:.3f}" for name, of in curves.items() if of)
    words = f"{title} by epoch, at last {last}"
    return document(words, words, [*_frame(title, across, up), *_legend(shown), *drawn], WIDTH, HEIGHT)


def _range(values: Sequence[float], whole: bool = False) -> Point:
    low, high = min(values), max(values)
    if whole:
        return low, max(high, low + 1)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1
    return low - room, high + room


def _place(point: Point, across: Point, up: Point) -> Point:
    x, y = ((value - low) / (high - low) for value, (low, high) in zip(point, (across, up), strict=True))
    return LEFT + x * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y * (HEIGHT - TOP - BOTTOM)


def _curve(name: str, places: Sequence[Point], color: str) -> str:
    dots = [
        element("circle", cx=x, cy=y, r=3.5 if len(places) < 40 else 1.5, class_="solid") for x, y in places
    ]
    lines = [line(places, radius=0, stroke_width=2.5)] if len(places) > 1 else []
    return group(*lines, *dots, tooltip=name, color=color)


def _frame(title: str, across: Point, up: Point) -> list[str]:
    shapes = [text(LEFT, 18, title, 15, font_weight="bold")]
    for value in _round_values(*up):
        _, y = _place((across[0], value), across, up)
        shapes.append(group(line([(LEFT, y), (WIDTH - RIGHT, y)], stroke_width=0.6), class_="also"))
        shapes.append(text(LEFT - 8, y + 4, f"{value:g}", 12, "end", class_="quiet"))
    step = max(1, math.ceil((across[1] - across[0]) / 8))
    for epoch in range(math.ceil(across[0]), math.floor(across[1]) + 1, step):
        x, _ = _place((epoch, up[0]), across, up)
        shapes.append(text(x, HEIGHT - BOTTOM + 18, str(epoch), 12, "middle", class_="quiet"))
    return [*shapes, text(WIDTH - RIGHT, HEIGHT - 5, "epoch", 12, "end", class_="quiet")]


def _round_values(low: float, high: float) -> list[float]:
    """Three to six multiples of 1, 2 or 5 times a power of ten between two values."""
    power = 10 ** math.floor(math.log10((high - low) / 3))
    step = next(power * times for times in (1, 2, 5, 10) if (high - low) / (power * times) <= 6)
    return [round(at * step, 9) for at in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _legend(shown: Mapping[str, Sequence[Point]]) -> list[str]:
    shapes, x = [], float(WIDTH - RIGHT)
    for at, name in reversed(list(enumerate(shown))):
        x -= 8 * len(name) + 30
        dot = element("circle", cx=x, cy=13, r=5, class_="solid")
        shapes += [group(dot, color=COLORS[at % len(COLORS)]), text(x + 11, 18, name, 13)]
    return shapes
