"""The page: pictures go in, their classes come out, beside the networks that found them and their search.

python app.py, then open http://127.0.0.1:7860 (GRADIO_SERVER_NAME and GRADIO_SERVER_PORT change the address,
GRADIO_MCP_SERVER=True serves the endpoints as MCP tools where gradio[mcp] is installed,
SEARCHSEG_ALLOW_TRAINING=0 or 1 turns the tab for training off or on).
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

# ruff: noqa: E402 - what stands before the imports is for them
# no analytics, and a short record of events, as gradio tabulates all of it anew after every request (19 ms at
# its default of 10,000); a backend of matplotlib, which gradio would look for at the first request (0.4 s)
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")
os.environ.setdefault("MPLBACKEND", "agg")
gc.disable()  # what is imported stays: looking through it again and again took 1.5 of 7 seconds

import gradio as gr
import torch

from page import architecture, catalogue, compare, segment, sessions, workshop
from page.shelf import Shelf
from page.training_run import resume

gc.enable()

HERE = Path(__file__).resolve().parent
MODELS, RUNS = HERE / "hub" / "models", HERE / "runs" / "page"

INTRO = """# SearchSeg
Drop a picture: a small network, designed by a search instead of by hand, tells what every pixel shows."""
NO_MODEL = """### There is no model to run yet
Put one, a folder with `config.json` and `model.safetensors`, into `hub/models` and start the page again."""

THEME = gr.themes.Default(
    primary_hue="indigo", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["monospace"]
).set(  # gradio's small text has a contrast of 2.6 on white; WCAG wants 4.5
    body_text_color_subdued="*neutral_500",
    block_info_text_color="*neutral_500",
    input_placeholder_color="*neutral_500",
    input_placeholder_color_dark="*neutral_400",
)
# around the page, where style.css, which gradio bounds to what is inside, does not reach
FRAME = """@media (max-width: 640px) {
  .main.fillable.app { padding: 16px 12px !important; }
  footer .divider { display: none; } /* the link to the API, left of it, is not shown here */
}"""
LAUNCH: dict[str, Any] = {
    "theme": THEME, "css_paths": [HERE / "page" / "style.css"],
    "head": f"<style>{FRAME}</style><script>{(HERE / 'page' / 'elements.js').read_text()}</script>",
    "footer_links": ["api", "settings"], "run_history": False, "ssr_mode": False,
    # every call of the API is a session, and what has changed in it is kept
    "state_session_capacity": 200,
    "allowed_paths": [], "max_file_size": "20mb", "enable_monitoring": False, "share": False,
}  # fmt: skip
# two pictures at a time, each with half of the cores: a picture that comes while another is segmented need
# not wait, and small networks gain little from more threads
AT_ONCE = 2
NETWORK: dict[str, Any] = {"concurrency_id": "network", "concurrency_limit": AT_ONCE}


def lay_out(shelf: Shelf, runs: Path, training: bool) -> None:
    """The tabs of a page that has models, and what they have in common: the models to choose from."""
    with gr.Tab("Segment"):
        segmenting = segment.lay_out(shelf, NETWORK)
    with gr.Tab("Compare"):
        comparing = compare.lay_out(shelf, NETWORK)
    with gr.Tab("Architecture"):
        drawing, fill = architecture.lay_out(shelf)
    grown = []
    if training:
        with gr.Tab("Search and publish"):
            grown.append(workshop.lay_out(runs))
    with gr.Tab("Models") as models_tab:
        # on a Space the token is its owner's, and everybody looks
        own = training and "SPACE_ID" not in os.environ
        grown += catalogue.lay_out(shelf, models_tab, NETWORK, private_models=own)
    choosers = [segmenting, comparing, drawing]

    def choices() -> list[gr.Dropdown]:
        shelf.refresh()
        return [gr.Dropdown(choices=shelf.choices) for _ in choosers]

    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
    demo = gr.context.Context.root_block
    demo.load(choices, None, choosers, **private)
    for event in grown:
        event.then(choices, None, choosers, **private)
    fill(demo)


def build_demo(
    models_folder: Path = MODELS, runs_folder: Path = RUNS, training: bool = False, warm: bool = False
) -> gr.Blocks:
    """The page for the models in the sub-folders of `models_folder`; launch it with **LAUNCH.

    `training`: whether the page has the tab that searches and trains, with its runs in `runs_folder`; `warm`:
    load the default network now, beside everything else, so that the first picture need not wait for it.
    """
    sessions.use()
    shelf = Shelf(Path(models_folder).resolve(), Path(runs_folder).resolve())
    if warm and len(shelf):
        threading.Thread(target=shelf.warm, daemon=True).start()
    with gr.Blocks(title="SearchSeg", analytics_enabled=False, delete_cache=(300, 3600)) as demo:
        gr.Markdown(INTRO)
        if len(shelf):
            lay_out(shelf, Path(runs_folder).resolve(), training)
        else:
            gr.Markdown(NO_MODEL)
    return demo.queue(max_size=16, default_concurrency_limit=1)


if __name__ == "__main__":
    train = workshop.allowed()
    if train:
        resume(RUNS)
    # a folder of its own, also inside of GRADIO_TEMP_DIR: what lies there is swept, and gone with the server
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    place = os.environ.get("GRADIO_TEMP_DIR")
    if place:
        os.makedirs(place, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="searchseg-", dir=place) as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        if "gradio.mcp" in sys.modules:  # it has read the variable already
            sys.modules["gradio.mcp"].DEFAULT_TEMP_DIR = uploads  # type: ignore[attr-defined]
        torch.set_num_threads(max(1, torch.get_num_threads() // AT_ONCE))
        gc.freeze()  # what is imported stays: a full collection of it stops every request for a moment
        build_demo(training=train, warm=True).launch(**LAUNCH)
