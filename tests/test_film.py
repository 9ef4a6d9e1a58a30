"""Proves that a film shows in each of its frames exactly that frame's genotype, small, still where wanted."""

import re
from xml.etree import ElementTree

import pytest
from test_drawing import SVG, some_genotype

from searchseg.drawing import draw, draw_film
from searchseg.drawing.film import HOLD
from searchseg.genotype import CELL_NAMES

WIDTHS = (8, 16, 32, 64)
A, B, C = (some_genotype(3, seed) for seed in range(3))
FRAMES = [(1, A), (2, A), (3, B), (4, A), (5, C)]


def keyframes(svg: str) -> dict[str, list[tuple[float, bool]]]:
    """Of every animation that hides: the moments in percent, rising, and whether the element is seen then."""
    found = {}
    for name, body in re.findall(r"@keyframes (\S+?)\{((?:[^{}]*\{[^{}]*\})*)\}", svg):
        moments = []
        for at, rule in re.findall(r"([^{}]*)\{([^{}]*)\}", body):
            if "visibility" in rule:
                seen = rule == "opacity:1;visibility:visible"
                assert seen or rule == "opacity:0;visibility:hidden"
                moments += [(float(moment.strip("%")), seen) for moment in at.split(",")]
        found[name] = sorted(moments)
    return found


def classes(group: ElementTree.Element) -> list[str]:
    return (group.get("class") or "").split()


def seen_at(svg: str, percent: float) -> list[ElementTree.Element]:
    """The innermost groups that a viewer sees at that moment of the film."""
    root, moments = ElementTree.fromstring(svg), keyframes(svg)
    names = dict(re.findall(r"\.(s\d+)\{animation-name:([^}]*)\}", svg))

    def visible(group: ElementTree.Element) -> bool:
        animated = [name for name in classes(group) if name in names]
        if not animated:
            return group.get("visibility") != "hidden"
        return [seen for at, seen in moments[names[animated[0]]] if at <= percent][-1]

    def walk(element: ElementTree.Element) -> list[ElementTree.Element]:
        if not visible(element):
            return []
        return [element, *(found for child in element for found in walk(child))]

    return walk(root)


def edges_and_words(elements: list[ElementTree.Element]) -> tuple[set[str], set[str]]:
    titles = {
        e.find(f"{SVG}title").text for e in elements if e.get("color") and e.find(f"{SVG}title") is not None
    }
    return titles, {e.text for e in elements if e.tag == f"{SVG}text"}


def edges(genotype) -> set[str]:
    return edges_and_words(list(ElementTree.fromstring(draw(genotype)).iter()))[0]


@pytest.mark.parametrize("frame", range(len(FRAMES)))
@pytest.mark.parametrize("moment", [0.3, 0.9])  # the fade takes a quarter of a frame at most
def test_each_frame_shows_its_genotype_epoch_and_id_and_no_other(frame, moment):
    epoch, genotype = FRAMES[frame]
    svg = draw_film(FRAMES, WIDTHS)
    shown, words = edges_and_words(seen_at(svg, 100 * (frame + moment) / (len(FRAMES) + HOLD)))
    assert shown == edges(genotype) and len(shown) == 8 * 6
    assert {word for word in words if word.startswith("epoch")} == {f"epoch {epoch}"}
    assert {A.id, B.id, C.id} & words == {genotype.id}


def test_the_last_frame_stands_until_the_loop_begins_again():
    svg = draw_film(FRAMES, WIDTHS, seconds=0.5)
    assert edges_and_words(seen_at(svg, 100))[0] == edges(C)
    assert f"animation:{0.5 * (len(FRAMES) + HOLD):g}s linear infinite" in svg


def test_where_motion_is_unwanted_or_styles_are_dropped_the_last_frame_stands():
    svg = draw_film(FRAMES, WIDTHS)
    plain, wanted, motion = svg.partition("@media (prefers-reduced-motion:no-preference){")
    assert wanted and "animation" not in plain  # all motion lies behind the wish
    assert "animation-play-state:paused" in motion
    bare = re.sub("<style>.*?</style>", "", svg, flags=re.DOTALL)
    shown, words = edges_and_words(seen_at(bare, 0))
    assert shown == edges(C) and "epoch 5" in words and "epoch 4" not in words


def test_is_one_named_image_without_ids_scripts_or_links():
    svg = draw_film(FRAMES, WIDTHS, image_size=(96, 96), stem_stride=2)
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img" and root.find(f"{SVG}title").text == root.get("aria-label")
    assert f"from epoch 1 to 5: SEARCH-Net {C.id}" in root.get("aria-label")
    assert "The genotype changed in epochs 3, 4 and 5." in root.find(f"{SVG}desc").text
    assert not any(element.get("id") for element in root.iter())
    assert not re.search(r"<script|href|url\(|@import", svg)


def test_films_of_one_page_do_not_move_each_other():
    names = [set(keyframes(draw_film(frames, WIDTHS))) for frames in (FRAMES, FRAMES[1:])]
    assert names[0] and names[1] and not names[0] & names[1]


def test_equal_genotypes_cost_one_drawing_and_twenty_different_ones_stay_small():
    still, twice = draw_film([(1, A)], WIDTHS), draw_film([(1, A), (2, A)], WIDTHS)
    assert "animation" not in still and twice.count("<path") == still.count("<path")
    assert twice.count(f">{A.id}</text>") == 1
    assert len(keyframes(twice)) == 3  # two epoch numbers, and the marker of time
    film = draw_film([(k, some_genotype(3, k)) for k in range(20)], WIDTHS)
    assert len(film) < 250_000
    for name in CELL_NAMES:
        assert film.count(f"<title>{name} 0→2: skip</title>") <= 1


def test_the_u_is_that_of_draw():
    words = {element.text for element in ElementTree.fromstring(draw(A, widths=WIDTHS)).iter(f"{SVG}text")}
    assert words < {
        element.text for element in ElementTree.fromstring(draw_film(FRAMES, WIDTHS)).iter(f"{SVG}text")
    }


@pytest.mark.parametrize(
    "frames, seconds, words",
    [
        ([], 1, "at least one frame"),
        ([(1, A), (2, some_genotype(2))], 1, "one node count, got 2 and 3"),
        (FRAMES, 0, "positive time"),
        (FRAMES, float("nan"), "positive time"),
    ],
)
def test_refuses_what_is_no_film(frames, seconds, words):
    with pytest.raises(ValueError, match=words):
        draw_film(frames, WIDTHS, seconds=seconds)
