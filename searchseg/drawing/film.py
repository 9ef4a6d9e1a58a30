"""A search as a film: the U of `draw`, whose cells change from epoch to epoch, as one animated SVG."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from searchseg.drawing.network import (
    arch,
    describe_network,
    extent,
    network_title,
    node_dots,
    u_of_cells,
    widest_first,
)
from searchseg.drawing.notation import Size, in_words
from searchseg.drawing.svg import Box, document, element, group, line, text
from searchseg.genotype import CELL_NAMES, Genotype

Frames = Sequence[tuple[int, Genotype]]
Shown = tuple[bool, ...]  # for every frame, whether it has the element

HOLD = 4  # the last frame stands this many frames longer
FADE = 0.15  # seconds, at most a quarter of a frame
TIME_LINE = 220


def draw_film(
    frames: Frames,
    widths: Sequence[int],
    *,
    image_size: Size | None = None,
    stem_stride: int = 1,
    seconds: float = 0.6,
) -> str:
    """The whole U with the genotype of every frame in turn, over and over, the last frame longest.

    `frames`: (epoch, genotype) in the order of the film; `seconds`: how long a frame stands; the others as
    in `draw`. An edge is drawn once, however many epochs have it. Where motion is not wanted, or styles are
    not followed, the last frame stands still; a pointer on the film stops it. Raises ValueError for no
    frames, genotypes of different node counts, a time that is not positive, and as `draw`.
    """
    _check(frames, seconds)
    boxes, shapes = u_of_cells(widths, image_size, stem_stride)
    projector = _Projector(frames, seconds)
    shapes += (_moving_cell(boxes[name], frames, name, projector) for name in CELL_NAMES)
    shapes.append(_caption((boxes["stem"].right + boxes["head"].x) / 2, boxes["stem"].y, frames, projector))
    film = group(projector.style(), *shapes, class_=projector.name)
    last = frames[-1][1]
    title = f"Film of a search, from epoch {frames[0][0]} to {frames[-1][0]}: {network_title(last)}"
    description = f"{_changes_in_words(frames)} The last frame: {describe_network(last, widths)}"
    return document(title, description, [film], *extent(boxes))


class _Projector:
    """Shows elements in the frames that have them: one CSS animation for all elements of the same frames."""

    def __init__(self, frames: Frames, seconds: float) -> None:
        self.frames, self.seconds = len(frames), seconds
        self.total = (self.frames + HOLD) * seconds
        content = repr([seconds, *((epoch, genotype.id) for epoch, genotype in frames)])
        self.name = f"film-{hashlib.sha256(content.encode()).hexdigest()[:8]}"  # several may stand in a page
        self.animations: dict[Shown, str] = {}

    def show(self, shown: Shown, *content: str, class_: str = "shot") -> str:
        """`content`, seen in the frames marked in `shown`; outside of any animation, if in the last."""
        if all(shown):
            return group(*content)
        name = self.animations.setdefault(shown, f"s{len(self.animations)}")
        still = {} if shown[-1] else {"visibility": "hidden"}
        return group(*content, class_=f"{class_} {name}", **still)

    def style(self) -> str:
        """The animations of everything shown so far; a single frame has none."""
        if self.frames == 1:
            return ""
        film = f".{self.name}"
        keyframes = (_keyframes(f"{self.name}-{name}", self._turns(s)) for s, name in self.animations.items())
        # the marker of time steps with the frames: gliding would have the whole film painted without pause
        arrival = self._percent(self.frames - 1, 0)
        start = f"0%{{transform:translateX(-{TIME_LINE}px)}}"
        walk = f"@keyframes {self.name}-marker{{{start}{arrival},100%{{transform:none}}}}"
        rules = (f"{film} .{name}{{animation-name:{self.name}-{name}}}" for name in self.animations.values())
        motion = (
            f"{film} :is(.shot,.cut,.marker){{animation:{self.total:g}s linear infinite}}",
            f"{film} .cut{{animation-timing-function:step-end}}",
            *rules,
            f"{film} .marker{{animation-name:{self.name}-marker;"
            f"animation-timing-function:steps({self.frames - 1})}}",
            f"svg:hover>{film} *{{animation-play-state:paused}}",
        )
        wanted = "@media (prefers-reduced-motion:no-preference)"
        return element("style", "\n".join((*keyframes, walk, f"{wanted}{{", *motion, "}")))

    def _turns(self, shown: Shown) -> Mapping[bool, list[str]]:
        """The moments, in percent of the film, at which an element is wholly seen, or wholly gone."""
        fade = min(FADE, self.seconds / 4)
        turns: dict[bool, list[str]] = {True: [], False: []}
        turns[shown[0]].append("0%")
        for frame, (before, after) in enumerate(pairwise(shown), start=1):
            if before != after:
                turns[before].append(self._percent(frame, 0))
                turns[after].append(self._percent(frame, fade))
        turns[shown[-1]].append("100%")
        return turns

    def _percent(self, frame: int, later: float) -> str:
        return f"{100 * (frame * self.seconds + later) / self.total:.3f}".rstrip("0").rstrip(".") + "%"


def _keyframes(name: str, turns: Mapping[bool, list[str]]) -> str:
    # what is hidden, and not only transparent, is out of a pointer's and a screen reader's way
    seen, gone = "opacity:1;visibility:visible", "opacity:0;visibility:hidden"
    return f"@keyframes {name}{{{','.join(turns[True])}{{{seen}}}{','.join(turns[False])}{{{gone}}}}}"


def _moving_cell(box: Box, frames: Frames, name: str, projector: _Projector) -> str:
    """The miniature of cell `name` with every edge that any frame gives it."""
    nodes = frames[0][1].nodes
    edges = {edge for _, genotype in frames for edge in genotype.cells[name]}
    arches = []
    for edge in sorted(edges, key=lambda edge: (widest_first(edge), edge)):
        shown = tuple(edge in genotype.cells[name] for _, genotype in frames)
        arches.append(projector.show(shown, arch(box, nodes, name, edge)))
    return group(*arches, node_dots(box, nodes))


def _caption(middle: float, y: float, frames: Frames, projector: _Projector) -> str:
    """Epoch and genotype id of the frame, and a line of time with a tick for every new genotype."""
    epochs, ids = [f"epoch {epoch}" for epoch, _ in frames], [genotype.id for _, genotype in frames]
    left, right, base = middle - TIME_LINE / 2, middle + TIME_LINE / 2, y + 70
    places = [left + TIME_LINE * frame / max(1, len(frames) - 1) for frame in range(len(frames))]
    ticks = [line(((places[frame], base - 5), (places[frame], base + 5))) for frame in _changes(frames)]
    marker = element("circle", cx=right, cy=base, r=6, class_="solid")
    if len(frames) > 1:
        marker = group(marker, class_="marker")
    return group(
        _changing_text(middle, y + 16, epochs, 26, projector, font_weight="bold"),
        _changing_text(middle, y + 44, ids, 18, projector, class_="quiet", font_family="monospace"),
        group(line(((left, base), (right, base))), *ticks, class_="also"),
        group(marker, class_="flow"),
    )


def _changing_text(
    x: float, y: float, lines: Sequence[str], size: float, projector: _Projector, **attributes: str
) -> str:
    """One line of text for every frame; equal lines are drawn once."""
    return group(
        *(
            projector.show(
                tuple(other == words for other in lines),
                text(x, y, words, size, "middle", **attributes),
                class_="cut",
            )
            for words in dict.fromkeys(lines)
        )
    )


def _changes(frames: Frames) -> list[int]:
    """The frames whose genotype is not that of the frame before."""
    return [k for k, ((_, a), (_, b)) in enumerate(pairwise(frames), start=1) if a != b]


def _changes_in_words(frames: Frames) -> str:
    epochs = [str(frames[k][0]) for k in _changes(frames)]
    changed = f"The genotype changed in epoch{'s' * (len(epochs) > 1)} {in_words(epochs)}." if epochs else ""
    return f"{len(frames)} frame{'s' * (len(frames) > 1)}. {changed or 'The genotype never changed.'}"


def _check(frames: Frames, seconds: float) -> None:
    if not frames:
        raise ValueError("a film needs at least one frame (epoch, genotype), got none")
    nodes = sorted({genotype.nodes for _, genotype in frames})
    if len(nodes) > 1:
        raise ValueError(f"the genotypes of a film need one node count, got {in_words(map(str, nodes))}")
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"seconds needs a positive time for each frame, got {seconds!r}")
