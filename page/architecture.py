"""The tab that shows the network: the U, every cell in words and numbers, and the search that found it."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import torch

import searchseg
from page.programs import documented
from page.segment import SegmentTab
from page.shelf import Model, Shelf
from page.views import quiet, table, warning
from searchseg import Genotype
from searchseg.drawing import describe_cell, draw_alpha, draw_cell, draw_film
from searchseg.genotype import CELL_NAMES
from searchseg.portrait import costs_of_parts, portrait
from searchseg.pretrained import build

MOST_EPOCHS = 500  # of a search that the page reads
NO_SEARCH = quiet("The folder of this model holds no record of a search.")


@dataclass(frozen=True)
class SearchRecord:
    """What a search left: epochs, the genotype of each, and its alphas where the method has any."""

    genotypes: list[tuple[int, Genotype]]
    alphas: dict[int, Any]

    @classmethod
    def read(cls, folder: Path) -> SearchRecord:
        """Raises OSError or ValueError (GenotypeError) where there is none, or it is damaged."""
        genotypes = []
        for row in _lines(folder / "search" / "genotype.jsonl"):
            epoch = row.pop("epoch")
            genotypes.append((int(epoch), Genotype.from_json(json.dumps(row))))
        if not genotypes:
            raise ValueError("search/genotype.jsonl has no line")
        path = folder / "search" / "alpha.jsonl"
        alphas = {int(row["epoch"]): row["alpha"] for row in _lines(path)} if path.exists() else {}
        return cls(genotypes, alphas)

    def at(self, epoch: int) -> tuple[int, Genotype]:
        """The frame of the last epoch that is not after `epoch`, else the first."""
        return next((frame for frame in reversed(self.genotypes) if frame[0] <= epoch), self.genotypes[0])


def _lines(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()[:MOST_EPOCHS] if line.strip()]
    if not all(isinstance(row, dict) and "epoch" in row for row in rows):
        raise ValueError(f"{path.name} has a line without an epoch")
    return rows


@dataclass(frozen=True)
class ArchitectureTab:
    """What happens when something on the tab is used."""

    shelf: Shelf

    def __post_init__(self) -> None:
        object.__setattr__(self, "page_of", functools.lru_cache(maxsize=16)(self._page_of))
        object.__setattr__(self, "record", functools.lru_cache(maxsize=4)(self._record))

    def model(self, name: str) -> Model:
        return SegmentTab(self.shelf).model(name)

    def architecture(self, model: str) -> tuple[str, Any]:
        """Describe a network.

        Parameters:
            model: name of the network; a wrong one is answered with those there are
        Returns:
            drawing: SVG of the whole network
            description: parameters, macs at image_size (height, width), the same of all parts, genotype
        """
        chosen = self.model(model)
        network = network_of(chosen)
        parts = {
            name: {"parameters": cost.parameters, "macs": cost.macs, "shape": list(cost.shape)}
            for name, cost in costs_of_parts(network).items()
        }
        genotype = json.loads(chosen.genotype.to_json()) if chosen.genotype else None
        description = {
            "model": chosen.name, "commit": chosen.commit, "architecture": chosen.config.architecture,
            "arguments": chosen.config.arguments, "parameters": chosen.parameters, "macs": chosen.macs,
            "image_size": list(chosen.config.image_size), "genotype": genotype, "parts": parts,
        }  # fmt: skip
        return portrait(network), description

    def show(self, name: str) -> tuple[Any, ...]:
        """Everything of the tab for one model: network, genotype.json, the search's film and its slider."""
        model = self.model(name)
        code = model.genotype.to_json() if model.genotype else ""
        try:
            record = self.record(name)
            epochs = [epoch for epoch, _ in record.genotypes]
            last = self.epoch(name, epochs[-1])
            shape = searchseg.UShapeConfig(**model.config.arguments)
            film = draw_film(record.genotypes, shape.widths, stem_stride=shape.stem_stride)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            missing = isinstance(error, FileNotFoundError)
            told = NO_SEARCH if missing else warning("The record of this search cannot be read.")
            network = self.page_of(name), gr.Code(value=code, visible=bool(code))
            return *network, told, gr.Slider(visible=False), "", ""
        slider = gr.Slider(
            minimum=epochs[0], maximum=max(epochs[-1], epochs[0] + 1), value=epochs[-1], step=1, visible=True
        )
        return (
            self.page_of(name), gr.Code(value=code, visible=bool(code)), film, slider,
            *last,
        )  # fmt: skip

    def epoch(self, name: str, epoch: int) -> tuple[str, str]:
        """The genotype and the alphas of one epoch of the search."""
        model, record = self.model(name), self.record(name)
        at, genotype = record.at(int(epoch))
        shape = searchseg.UShapeConfig(**model.config.arguments)
        drawn = searchseg.draw(genotype, widths=shape.widths, stem_stride=shape.stem_stride)
        skips = genotype.count("skip")
        told = f"Epoch {at}: genotype {genotype.id}, {skips} skip{'s' * (skips != 1)}."
        if at not in record.alphas:
            return quiet(told) + drawn, ""
        heading = quiet("How strongly every edge leans to each operation (softmax of alpha):")
        return quiet(told) + drawn, heading + draw_alpha(record.alphas[at])

    def _record(self, name: str) -> SearchRecord:
        return SearchRecord.read(self.model(name).folder)

    def _page_of(self, name: str) -> str:
        model = self.model(name)
        network = network_of(model)
        rows = [
            (part, f"{cost.parameters:,}", f"{cost.macs / 1e6:,.1f} M", " × ".join(map(str, cost.shape)))
            for part, cost in costs_of_parts(network).items()
        ]
        seen = " × ".join(map(str, model.config.image_size))
        facts = f"{model.parameters:,} parameters, {model.macs / 1e9:.3f} GMACs for a picture of {seen}."
        numbers = table(("part", "parameters", "MACs", "C × H × W"), rows, (1, 2, 3))
        shown = f"{quiet(facts)}{portrait(network)}{_cells(model)}{numbers}"
        return f"<architecture-view>{shown}</architecture-view>"


def network_of(model: Model) -> torch.nn.Module:
    """The network without weights, for its drawing and its numbers."""
    with torch.device("meta"):
        return build(model.config, model.genotype)


def _cells(model: Model) -> str:
    """Buttons for the cells, and behind each its drawing and its words; elements.js opens them."""
    if model.genotype is None:
        return ""
    buttons = "".join(
        f'<button type="button" data-cell="{name}" aria-pressed="false">{name}</button>'
        for name in CELL_NAMES
    )
    sections = "".join(
        f'<section data-cell="{name}" hidden>{draw_cell(model.genotype, name)}'
        f"<p>{escape(describe_cell(model.genotype, name))}</p></section>"
        for name in CELL_NAMES
    )
    hint = quiet("Open a cell: click it in the drawing or here.")
    return f'{hint}<div class="cells" role="group" aria-label="Cells">{buttons}</div>{sections}'


def lay_out(shelf: Shelf) -> tuple[gr.Dropdown, Any]:
    """Components and events; returns the chooser of models and what fills the tab when the page is loaded."""
    tab, default = ArchitectureTab(shelf), shelf.default
    model = gr.Dropdown(
        shelf.choices, value=default.name, label="Network", filterable=False, elem_id="drawn-model"
    )
    network = gr.HTML(elem_id="network", elem_classes="drawing", apply_default_css=False)
    with gr.Accordion("The search that found it", open=False):
        epoch = gr.Slider(1, 2, 1, step=1, label="Epoch of the search", visible=False, elem_id="epoch")
        drawn: dict[str, Any] = {"elem_classes": "drawing", "apply_default_css": False}
        with gr.Row():
            with gr.Column(min_width=300):
                frame = gr.HTML(elem_id="frame", **drawn)
            with gr.Column(min_width=300):
                gr.HTML(quiet("The whole search as a film; a pointer on it stops it."))
                film = gr.HTML(elem_id="film", **drawn)
        alphas = gr.HTML(elem_id="alphas", **drawn)
    with gr.Accordion("genotype.json", open=False):
        code = gr.Code(language="json", label="genotype.json", interactive=False, max_lines=20)
    outputs = [network, code, film, epoch, frame, alphas]
    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
    model.change(tab.show, model, outputs, **private)
    epoch.input(tab.epoch, [model, epoch], [frame, alphas], trigger_mode="always_last", **private)
    with gr.Row(visible=False):
        name = gr.Textbox(default.name, label="Network")
        drawing, description = gr.Textbox(label="Drawing"), gr.JSON(label="Description")
        run = gr.Button()
    documented(tab.architecture, [name], [drawing, description])
    run.click(tab.architecture, name, [drawing, description], api_name="architecture", queue=False)
    return model, lambda demo: demo.load(tab.show, model, outputs, **private)
