"""The page: a picture goes in, its classes come out, and below stands the network that found them.

python app.py, then open http://127.0.0.1:7860 (GRADIO_SERVER_NAME and GRADIO_SERVER_PORT change the address).
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import gradio as gr
import torch
from gradio.data_classes import ImageData
from gradio.utils import get_upload_folder
from PIL import Image

import searchseg
from searchseg import Genotype, ImageError, ModelConfig, PretrainedError, Segmentation, Segmenter
from searchseg.cost import parameters
from searchseg.drawing import draw_cell, draw_unet
from searchseg.genotype import CELL_NAMES
from searchseg.pretrained import build

MODELS = Path(__file__).resolve().parent / "hub" / "models"
NAMES = {"searchnet": "SEARCH-Net", "unet": "UNet", "fpn": "FPN", "deeplabv3": "DeepLabV3", "setr": "SETR"}
DISPLAYED_SIDE = 1600  # longest side of the overlay; a PNG of twelve megapixels takes 2 s and 24 MB
WHOLE = "Whole network"

INTRO = """# SearchSeg
Drop a picture: a small network, designed by a search instead of by hand, tells what every pixel shows."""
NO_MODEL = """### There is no model to run yet
Put one, a folder with `config.json` and `model.safetensors`, into `hub/models` and start the page again."""
NOTHING_YET = '<p class="quiet">The classes and their shares of the picture appear here.</p>'
NO_PICTURE = "Choose a picture first: upload one, take a photo or paste it."
NO_FILE = "Send the picture as an uploaded file, not as a web address or a path."

CSS = """
.gradio-container { width: 100%; max-width: 1240px !important; margin: auto; }
.quiet { color: var(--body-text-color-subdued); font-size: var(--text-sm); line-height: 1.5; margin: 0; }
.legend { list-style: none; margin: 0 0 8px; padding: 0; }
.legend li { display: grid; grid-template-columns: 16px 1fr auto; gap: 5px 10px; margin: 0 0 9px; }
.legend li::before, .legend li::after { content: ""; border-radius: 4px; background: var(--color); }
.legend li::before { height: 16px; align-self: center; border: 1px solid var(--body-text-color-subdued); }
.legend li::after { height: 5px; grid-column: 2 / 4;
  background: linear-gradient(to right, var(--color) var(--share), var(--border-color-primary) 0); }
input[role=combobox] { text-overflow: ellipsis; padding-right: 28px; }
#picture img, #overlay img, #cutout img { object-fit: contain; }
#picture img::after { content: "This file cannot be shown."; position: absolute; inset: 0; display: grid;
  place-items: center; background: var(--block-background-fill); } /* drawn only where the image is broken */
#cutout img { background: repeating-conic-gradient(#c4c9d1 0 25%, #eef0f3 0 50%) 0 0 / 20px 20px; }
#drawing svg { max-width: min(100%, 780px) !important; }
"""
THEME = gr.themes.Default(
    primary_hue="indigo", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["monospace"]
)
LAUNCH: dict[str, Any] = {
    "theme": THEME, "css": CSS, "footer_links": ["api", "settings"], "run_history": False, "ssr_mode": False,
    "allowed_paths": [], "max_file_size": "20mb", "enable_monitoring": False, "share": False,
}  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A model folder and what the page says about it; the weights are not loaded yet."""

    folder: Path
    config: ModelConfig
    genotype: Genotype | None
    parameters: int
    miou: float | None

    @classmethod
    def read(cls, folder: Path) -> Model:
        """Raises OSError or ValueError (ConfigError, GenotypeError, PretrainedError) for a damaged folder."""
        config, genotype = ModelConfig.from_json((folder / "config.json").read_bytes()), None
        if config.architecture == "searchnet":
            genotype = Genotype.from_json((folder / "genotype.json").read_bytes())
        with torch.device("meta"):
            count = parameters(build(config, genotype))
        return cls(folder, config, genotype, count, mean_iou(folder))

    @property
    def label(self) -> str:
        """Such as "SEARCH-Net, pet lite – 1.2 M parameters, mIoU 0.87"."""
        architecture = self.config.architecture
        trained_for = self.folder.name.removeprefix(architecture).replace("-", " ").strip()
        name = ", ".join(filter(None, (NAMES.get(architecture, architecture), trained_for)))
        score = "" if self.miou is None else f", mIoU {self.miou:.2f}"
        return f"{name} – {self.parameters / 1e6:.1f} M parameters{score}"

    def describe(self) -> str:
        """HTML: the classes that the network tells apart, and the numbers behind its label."""
        height, width = self.config.image_size
        facts = [f"{self.parameters:,} parameters", f"sees {width} × {height} pixels"]
        if self.genotype is not None:
            facts.insert(0, f"genotype <code>{self.genotype.id}</code>")
        if self.miou is not None:
            facts.append(f"mIoU {self.miou:.3f} on test pictures (1 is perfect overlap)")
        classes = escape(", ".join(self.config.classes))
        return f'<p class="quiet">Tells apart: {classes}.<br>{" · ".join(facts)}</p>'

    def draw(self, part: str = WHOLE) -> str:
        """SVG of the whole network or, for a SEARCH-Net, of one cell."""
        size = self.config.image_size
        if self.genotype is not None and part in CELL_NAMES:
            return draw_cell(self.genotype, part)
        if self.genotype is not None:
            u = searchseg.UShapeConfig(**self.config.arguments)
            return searchseg.draw(self.genotype, widths=u.widths, image_size=size, stem_stride=u.stem_stride)
        if self.config.architecture == "unet":
            return draw_unet(searchseg.UNetConfig(**self.config.arguments).widths, image_size=size)
        return '<p class="quiet">There is no drawing of this architecture.</p>'


def mean_iou(folder: Path) -> float | None:
    """The mIoU in metrics.json, None where there is none."""
    try:
        return float(json.loads((folder / "metrics.json").read_bytes())["miou"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def read_models(folder: Path) -> list[Model]:
    """The models in the sub-folders of `folder`, best mIoU first; a damaged one is named in the log."""
    models = []
    for path in sorted(folder.glob("*/config.json")):
        try:
            models.append(Model.read(path.parent))
        except (OSError, ValueError) as error:
            print(f"{path.parent.name} is left out: {error}")
    return sorted(models, key=lambda model: -1 if model.miou is None else model.miou, reverse=True)


@functools.lru_cache(maxsize=8)
def load_segmenter(folder: Path) -> Segmenter:
    """The network of a folder, kept in memory; its first run, several times slower, lies behind it."""
    segmenter = Segmenter.from_pretrained(folder)
    segmenter(Image.new("RGB", (64, 64)))
    return segmenter


@functools.lru_cache(maxsize=2)  # at most 160 MB each; another opacity needs no run of the network
def segmentation(folder: Path, picture: str) -> Segmentation:
    """A picture segmented by the model in `folder`; the path of an upload names its contents (by a hash)."""
    return load_segmenter(folder)(picture)


def refuse(sentence: str) -> gr.Error:
    """An error that the page shows as it is, and the log not at all."""
    return gr.Error(escape(sentence, quote=False), print_exception=False)


@dataclass(frozen=True)
class Page:
    """What the page does when something on it is used."""

    models: list[Model]

    def model(self, name: str) -> Model:
        """The model of a name that came from outside: it is compared, never used as a path."""
        for model in self.models:
            if model.folder.name == name:
                return model
        raise refuse(f"There is no such model. Known: {', '.join(m.folder.name for m in self.models)}.")

    def run(self, picture: str | None, name: str) -> Segmentation:
        """Segment; a fault of the picture or the model becomes the sentence that the page shows."""
        folder = self.model(name).folder
        if picture is None:
            raise refuse(NO_PICTURE)
        try:
            return segmentation(folder, picture)
        except (ImageError, PretrainedError) as error:
            raise refuse(str(error).replace(str(folder), folder.name)) from error

    def segment(self, picture: str | None, model: str, opacity: float = 0.5) -> tuple[Any, ...]:
        """Find the class of every pixel of a JPEG, PNG, WEBP, BMP or GIF of up to 20 MB and 40 megapixels.

        Parameters:
            picture: the picture as an uploaded file
            model: name of the network that segments it
            opacity: of the colours in the overlay, from 0 (picture only) to 1 (colours only)
        Returns:
            overlay: PNG of the picture under the colours of its classes, at most 1600 pixels wide and high
            cutout: PNG of the upright picture at full size, transparent where the class is "background"
            mask: 8-bit grey PNG of the upright picture's size; the value of a pixel is the id of its class
            report: height, width, classes (id, name, color, share of the picture from 0 to 1) and seconds
        """
        result = self.run(picture, model)
        cutout, mask = save(picture, {"cutout": result.cutout(), "class-ids": result.mask_image()})
        return self.blend(picture, model, opacity), cutout, mask, json.loads(result.to_json())

    def update(self, picture: str | None, model: str, opacity: float) -> tuple[Any, ...]:
        """What `segment` gives, or nothing when the picture was taken away."""
        return self.segment(picture, model, opacity) if picture else (None, None, None, None)

    def blend(self, picture: str | None, model: str, opacity: float) -> str | None:
        """The overlay alone; the segmentation is still in memory."""
        if picture is None:
            return None
        overlay = self.run(picture, model).overlay(opacity)
        overlay.thumbnail((DISPLAYED_SIDE, DISPLAYED_SIDE))
        return save(picture, {"overlay": overlay})[0]

    def architecture(self, model: str, part: str) -> tuple[str, str, Any]:
        """Description, drawing, and whether there are cells to choose from."""
        chosen = self.model(model)
        return chosen.describe(), chosen.draw(part), gr.Radio(visible=chosen.genotype is not None)


def save(source: str | None, pictures: dict[str, Image.Image]) -> list[str]:
    """Write PNGs, named after source and content, where gradio serves and in time deletes them."""
    os.makedirs(get_upload_folder(), exist_ok=True)
    folder = tempfile.mkdtemp(dir=get_upload_folder())  # of its own: no two requests write one file
    paths = [os.path.join(folder, f"{Path(source or '').stem[:60]}-{what}.png") for what in pictures]
    for path, picture in zip(paths, pictures.values(), strict=True):
        picture.save(path, compress_level=1)  # 2.5 times faster than the default, 12 % larger
    return paths


def show_report(report: dict[str, Any] | None) -> tuple[str, Any]:
    """The legend, and a download button that can be pressed when there is something to download."""
    if report is None:
        return NOTHING_YET, gr.DownloadButton(interactive=False)
    rows = "".join(
        f'<li style="--color:{escape(row["color"])};--share:{row["share"]:.1%}">'
        f"{escape(row['name'])}<b>{row['share']:.1%}</b></li>"
        for row in report["classes"]
    )
    facts = f"{report['width']} × {report['height']} pixels, segmented in {report['seconds']:.2f} s"
    return f'<ul class="legend">{rows}</ul><p class="quiet">{facts}</p>', gr.DownloadButton(interactive=True)


def nothing() -> tuple[Any, ...]:
    """An empty page instead of the last result, which does not belong to the picture shown now."""
    return None, None, None, None, *show_report(None)


def only_uploads(picture: gr.Image) -> gr.Image:
    """Make an image input hand over the path of an upload, unopened.

    gradio's own way opens it with every decoder of Pillow, before searchseg.read_image has bounded the work
    and without a usable message, fetches web addresses of any size, and takes any path sent without "meta".
    """
    move = picture.async_move_resource_to_block_cache

    async def move_file(path: str | Path | None) -> str | None:
        if str(path).startswith(("http:", "https:")):
            raise refuse(NO_FILE)
        return await move(path)

    def path_of(upload: ImageData | None) -> str | None:
        uploads = Path(get_upload_folder()).resolve()
        if upload and not (upload.path and Path(upload.path).resolve().is_relative_to(uploads)):
            raise refuse(NO_FILE)
        return upload.path if upload else None

    picture.async_move_resource_to_block_cache, picture.preprocess = move_file, path_of
    picture.example_payload = lambda: {"path": "picture.jpg", "meta": {"_type": "gradio.FileData"}}
    return picture


def lay_out(page: Page) -> None:
    """Components and events of a page that has models."""
    default = next((model for model in page.models if model.genotype is not None), page.models[0])
    choices = [(model.label, model.folder.name) for model in page.models]
    has_cells = default.genotype is not None
    look: dict[str, Any] = {"height": 380, "show_label": False}
    shown: dict[str, Any] = {"format": "png", "buttons": ["download", "fullscreen"], **look}
    with gr.Row():
        with gr.Column(min_width=280):
            with gr.Tab("Picture"):
                sources: Any = ["upload", "webcam", "clipboard"]
                picture = only_uploads(
                    gr.Image(type="filepath", sources=sources, label="Picture", elem_id="picture", **look)
                )
            model = gr.Dropdown(choices, value=default.folder.name, label="Network", filterable=False)
            about = gr.HTML(default.describe(), padding=True)
            button = gr.Button("Segment", variant="primary")
        with gr.Column(min_width=280):
            with gr.Tab("Overlay"):
                overlay = gr.Image(label="Overlay", elem_id="overlay", **shown)
                opacity = gr.Slider(0, 1, 0.5, step=0.05, label="Strength of the colours", buttons=[])
            with gr.Tab("Cut-out"):
                cutout = gr.Image(label="Cut-out", elem_id="cutout", **shown)
            legend = gr.HTML(NOTHING_YET, padding=True)
            mask = gr.DownloadButton("Download mask (PNG)", interactive=False)
    with gr.Tab("Inside the network"):
        part = gr.Radio([WHOLE, *CELL_NAMES], value=WHOLE, show_label=False, visible=has_cells)
        drawing = gr.HTML(default.draw(), elem_id="drawing", apply_default_css=False)
    with gr.Tab("Result as JSON"):
        report = gr.JSON(label="Report", show_label=False, open=True)

    inputs, results = [picture, model, opacity], [overlay, cutout, mask, report]
    private: dict[str, Any] = {"api_visibility": "private"}
    network: dict[str, Any] = {
        "concurrency_id": "network",
        "concurrency_limit": 1,
        "show_progress_on": overlay,
    }
    live: dict[str, Any] = {"trigger_mode": "always_last", **network, **private}
    asked = button.click(page.segment, inputs, results, api_name="segment", **network)
    changed = gr.on([picture.change, model.input], page.update, inputs, results, **live)
    for event in (asked, changed):
        event.success(show_report, report, [legend, mask], **private)
        event.failure(nothing, None, [*results, legend, mask], **private)
    opacity.input(page.blend, inputs, overlay, show_progress="hidden", **live)
    gr.on([model.input, part.input], page.architecture, [model, part], [about, drawing, part], **private)


def build_demo(models_folder: Path = MODELS) -> gr.Blocks:
    """The page for the models in the sub-folders of `models_folder`; launch it with **LAUNCH."""
    models = read_models(Path(models_folder).resolve())
    with gr.Blocks(title="SearchSeg", analytics_enabled=False, delete_cache=(1800, 7200)) as demo:
        gr.Markdown(INTRO)
        if models:
            lay_out(Page(models))
        else:
            gr.Markdown(NO_MODEL)
    return demo.queue(max_size=16, default_concurrency_limit=1)


if __name__ == "__main__":
    build_demo().launch(**LAUNCH)
