"""The tab that lays several networks side by side on one picture, and the endpoint /compare."""

from __future__ import annotations

import json
from dataclasses import dataclass
from html import escape
from itertools import combinations
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from page.programs import documented
from page.segment import SegmentTab
from page.shelf import Model, Shelf
from page.uploads import only_uploads, refuse, save, stays
from page.views import in_words, picture_view, quiet, table, view
from searchseg import Segmentation

MOST_MODELS = 6
NOTHING_YET = quiet("Choose a picture: every network segments it, and a map shows where they differ.")
AGREE, DIFFER = "#dfe3e8", "#d1495b"


@dataclass(frozen=True)
class Comparison:
    """Results of several models on one picture, in the same order."""

    models: list[Model]
    results: list[Segmentation]

    @property
    def differs(self) -> np.ndarray:
        """(H, W) bool: where the names of the classes are not all the same."""
        names = sorted({name for result in self.results for name in result.classes})
        number = {name: place for place, name in enumerate(names)}
        common = [np.array([number[n] for n in r.classes], np.int16)[r.mask] for r in self.results]
        return np.logical_or.reduce([common[0] != other for other in common[1:]])

    def agreement(self) -> dict[str, float]:
        """Share of the pixels to which two models give the same class, for every pair."""
        pairs = combinations(zip(self.models, self.results, strict=True), 2)
        return {
            f"{a.name} / {b.name}": float(1 - Comparison([a, b], [one, two]).differs.mean())
            for (a, one), (b, two) in pairs
        }

    def report(self) -> dict[str, Any]:
        """What /compare answers: a row a model, and how far they agree."""
        rows = [
            {
                "model": model.name,
                "commit": model.commit,
                "parameters": model.parameters,
                "macs": model.macs,
                "published_miou": model.miou,
                **json.loads(result.to_json()),
            }
            for model, result in zip(self.models, self.results, strict=True)
        ]
        return {"models": rows, "agreement": self.agreement(), "differing": float(self.differs.mean())}


@dataclass(frozen=True)
class CompareTab:
    """What happens when something on the tab is used."""

    shelf: Shelf

    def run(self, picture: str | None, names: list[str]) -> Comparison:
        """Every model on the picture; each of `names` once."""
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            names = []
        segment, chosen = SegmentTab(self.shelf), list(dict.fromkeys(names))
        if not 2 <= len(chosen) <= MOST_MODELS:
            raise refuse(f"Choose two to {MOST_MODELS} networks to compare.")
        return Comparison(
            [segment.model(name) for name in chosen], [segment.run(picture, name) for name in chosen]
        )

    def compare(self, picture: str | None, models: list[str]) -> tuple[str, Any]:
        """Segment one picture with several networks and tell where they differ.

        Parameters:
            picture: the picture as an uploaded file, or over MCP as a data: URL; no web address is fetched
            models: names of two to six networks; a wrong one is answered with those there are
        Returns:
            difference: 8-bit grey PNG of the upright picture's size, 255 where the networks differ, else 0
            report: commit, parameters, macs, published_miou, seconds, classes per model; agreement; differing
        """
        found = self.run(picture, models)
        difference = Image.fromarray(np.where(found.differs, 255, 0).astype(np.uint8))
        return save(picture, {"difference": difference})[0], found.report()

    def show(self, picture: str | None, names: list[str]) -> str:
        """The views side by side, the map of differences, and the table."""
        if picture is None:
            return NOTHING_YET
        found = self.run(picture, names)
        share = float(found.differs.mean())
        classes = [
            {"name": "all say the same", "color": AGREE, "share": 1 - share},
            {"name": "they differ", "color": DIFFER, "share": share},
        ]
        views = [
            f"<div><h3>{escape(model.title)}</h3>{view(result)}</div>"
            for model, result in zip(found.models, found.results, strict=True)
        ]
        ids = found.differs.astype(np.uint8)
        map_of = picture_view(found.results[0].image, ids, classes, [1], "overlay")
        views.append(f"<div><h3>Where they differ</h3>{map_of}</div>")
        head = ("network", "parameters", "MACs", "seconds, this picture", "published mIoU")
        rows = [
            (m.title, f"{m.parameters:,}", in_words(m.macs), f"{r.seconds:.3f}",
             "" if m.miou is None else f"{m.miou:.4f}")
            for m, r in zip(found.models, found.results, strict=True)
        ]  # fmt: skip
        return f'<div class="side-by-side">{"".join(views)}</div>{table(head, rows, (1, 2, 3, 4))}'


def lay_out(shelf: Shelf, network: dict[str, Any]) -> gr.Dropdown:
    """Components and events; returns the chooser of models."""
    tab = CompareTab(shelf)
    with gr.Row():
        sources: Any = ["upload", "webcam", "clipboard"]
        picture = only_uploads(
            gr.Image(
                type="filepath", sources=sources, label="Picture", elem_id="compared-picture", height=260
            )
        )
        with gr.Column():
            models = gr.Dropdown(
                shelf.choices, value=first_two(shelf), multiselect=True, max_choices=MOST_MODELS,
                label="Networks", elem_id="compared-models",
            )  # fmt: skip
            button = gr.Button("Compare", variant="primary")
    shown = gr.HTML(NOTHING_YET, elem_id="comparison", min_height=120)
    live: dict[str, Any] = {"trigger_mode": "always_last", "show_progress_on": shown, **network}
    asked = gr.on(
        [button.click, picture.change], tab.show, [picture, models], shown, api_visibility="private", **live
    )
    asked.failure(lambda: NOTHING_YET, None, shown, queue=False, api_visibility="private")
    with gr.Row(visible=False):
        source = only_uploads(gr.Image(type="filepath", label="Picture"))
        names: Any = gr.JSON(first_two(shelf), label="Networks")
        difference, report = stays(gr.File(label="Difference")), gr.JSON(label="Report")
        run = gr.Button()
    names.api_info = lambda: {"type": "array", "items": {"type": "string"}}
    documented(tab.compare, [source, names], [difference, report])
    run.click(tab.compare, [source, names], [difference, report], api_name="compare", **network)
    return models


def first_two(shelf: Shelf) -> list[str]:
    """A SEARCH-Net and a UNet where there are both, else the first two models."""
    wanted = [
        next((m.name for m in shelf.models if m.config.architecture == kind), None)
        for kind in ("searchnet", "unet")
    ]
    names = [name for name in wanted if name] + [model.name for model in shelf.models]
    return list(dict.fromkeys(names))[:2]
