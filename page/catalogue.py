"""The tab of models: what is shipped, in the cache and on the Hub, and how to load one by its id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from hub.list import HubModel, list_models
from hub.remote import PublishError
from page.shelf import Model, Shelf
from page.uploads import without_paths
from page.views import in_words, quiet, table, warning
from searchseg import PretrainedError

HEAD = ("name", "from", "network", "task", "mIoU", "parameters", "MACs", "seconds here")
NUMBERS = (4, 5, 6, 7)
HUB_HEAD = ("id", "network", "task", "mIoU", "parameters", "updated")
MOST_ROWS = 200  # of the Hub's answer


@dataclass(frozen=True)
class CatalogueTab:
    """What happens when something on the tab is used."""

    shelf: Shelf
    private: bool = True  # whether this machine's own token may be used

    def show(self) -> str:
        """The models that this page can run now, with what the Hub cache of this machine holds."""
        self.shelf.find_cached()
        rows = [
            (
                model.name if model.commit is None else f"{model.name.partition('@')[0]} at {model.commit}",
                model.source,
                model.title.partition(",")[0],
                model.task or "",
                "" if model.miou is None else f"{model.miou:.4f}",
                f"{model.parameters:,}",
                *self._costs(model),
            )
            for model in self.shelf.models
        ]
        told = quiet("Seconds: one picture at the size the network sees, measured on this machine.")
        return table(HEAD, rows, NUMBERS) + told

    def load(self, repo_id: str, revision: str, token: str) -> str:
        """Load a model of the Hub; what cannot be loaded says why."""
        if not (repo_id or "").strip():
            return warning("Type the id of a model first, such as user/name.")
        try:
            own = None if self.private else False  # a visitor must not read what the owner of this page can
            model = self.shelf.add(repo_id, (revision or "").strip() or None, (token or "").strip() or own)
        except (PretrainedError, OSError, ValueError, RuntimeError) as error:
            return warning(without_paths(str(error)))
        return quiet(f"{model.name} is loaded: choose it in the other tabs.")

    def ask(self, author: str) -> str:
        """The searchseg models on the Hub."""
        try:
            found = list_models((author or "").strip() or None, None if self.private else False)
        except PublishError as error:
            return warning(str(error))
        if not found:
            return quiet("There is none.")
        return table(HUB_HEAD, [_row(model) for model in found[:MOST_ROWS]], (3, 4))

    def _costs(self, model: Model) -> tuple[str, str]:
        """MACs, and seconds on this machine where the network has run or is one of the page's own."""
        try:
            macs = in_words(model.macs)
            if model.source != "Hub" and model.name not in self.shelf.seconds:
                self.shelf.load(model.name)
        except (PretrainedError, RuntimeError, MemoryError):  # one bad model is one row, not the end of all
            return "", "cannot be loaded"
        seconds = self.shelf.seconds.get(model.name)
        return macs, "" if seconds is None else f"{seconds:.3f}"


def _row(model: HubModel) -> tuple[str, ...]:
    return (
        model.id + (" (private)" if model.private else ""),
        model.architecture or "",
        model.task or "",
        "" if model.miou is None else f"{model.miou:.4f}",
        "" if model.parameters is None else f"{model.parameters:,}",
        model.updated or "",
    )


def lay_out(shelf: Shelf, tab_item: gr.Tab, network: dict[str, Any], private_models: bool) -> list[Any]:
    """Components and events; returns the events after which the choosers of other tabs have to be filled.

    `private_models`: whether a token may be typed. A model on the shelf is seen by everybody who uses the
    page, so a public one offers no way to put private models there.
    """
    tab = CatalogueTab(shelf, private_models)
    models = gr.HTML(elem_id="models")
    with gr.Row():
        repo_id = gr.Textbox(label="Hub id", placeholder="user/name", elem_id="hub-id")
        revision = gr.Textbox(label="Revision", placeholder="branch, tag or commit; empty for main")
        token = gr.Textbox(label="Token, for private models", type="password", visible=private_models)
    load = gr.Button("Load", variant="primary")
    told = gr.HTML(elem_id="loaded")
    with gr.Accordion("On the Hub", open=False):
        author = gr.Textbox(label="Only of this author", placeholder="empty for all")
        ask = gr.Button("Ask the Hub")
        found = gr.HTML()
    private: dict[str, Any] = {"api_visibility": "private"}
    selected = tab_item.select(tab.show, None, models, **network, **private)
    loaded = gr.on(
        [load.click, repo_id.submit], tab.load, [repo_id, revision, token], told,
        concurrency_id="download", **private,
    )  # fmt: skip
    loaded.then(lambda: "", None, token, queue=False, **private)
    ask.click(tab.ask, author, found, **private)
    return [selected, loaded.then(tab.show, None, models, **network, **private)]
