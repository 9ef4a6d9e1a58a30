"""The tab where a picture becomes its classes, and the endpoint /segment."""

from __future__ import annotations

import json
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image, ImageOps

from page.examples import DRAWN, photo, rows_of_dataset
from page.programs import documented
from page.shelf import Model, Shelf
from page.uploads import (
    GONE,
    NO_PICTURE,
    new_folder,
    only_uploaded_files,
    only_uploads,
    refuse,
    save,
    stays,
    stem,
    without_paths,
)
from page.views import DISPLAYED_SIDE, quiet, view, warning
from searchseg import ImageError, PretrainedError, Segmentation
from searchseg.segmenter import png_options

NOTHING_YET = quiet("The result appears here: colours over the picture, a slider, a cut-out.")
MOST_FILES = 50  # in one request of "Several pictures"
THUMBNAIL = 512
FETCH = "async (address) => window.fetchPicture(address)"


def find(shelf: Shelf, name: str) -> Model:
    """The model of a name that came from outside; a sentence for any other."""
    try:
        return shelf.get(name)
    except KeyError as error:
        raise refuse(error.args[0]) from error


def shown_error(error: Exception, model: Model) -> str:
    """The words of an error, with the model's name in place of its folder."""
    return without_paths(str(error).replace(str(model.folder), model.name))


@dataclass(frozen=True)
class SegmentTab:
    """What happens when something on the tab is used."""

    shelf: Shelf

    def model(self, name: str) -> Model:
        """The model of a name that came from outside."""
        return find(self.shelf, name)

    def run(self, picture: str | None, name: str) -> Segmentation:
        """Segment; a fault of the picture or the model becomes the sentence that the page shows."""
        model = self.model(name)
        if picture is None:
            raise refuse(NO_PICTURE)
        try:
            return self.shelf.segmentation(model.name, picture)
        except (ImageError, PretrainedError) as error:
            if not Path(picture).exists():
                raise refuse(GONE) from error
            raise refuse(shown_error(error, model)) from error

    def segment(self, picture: str | None, model: str, opacity: float = 0.5) -> tuple[Any, ...]:
        """Find the class of every pixel of a JPEG, PNG, WEBP, BMP or GIF of up to 20 MB and 40 megapixels.

        Parameters:
            picture: the picture as an uploaded file, or over MCP as a data: URL; no web address is fetched
            model: name of the network that segments it; a wrong one is answered with those there are
            opacity: of the colours in the overlay, from 0 (picture only) to 1 (colours only)
        Returns:
            overlay: PNG of the picture under the colours of its classes, at most 1600 pixels wide and high
            cutout: PNG of the upright picture at full size, transparent where the class is "background"
            mask: 8-bit grey PNG of the upright picture's size; the value of a pixel is the id of its class
            report: height, width, classes (id, name, color, share of the picture from 0 to 1) and seconds
        """
        result = self.run(picture, model)
        try:
            overlay = result.overlay(opacity)
        except (ValueError, TypeError) as error:
            raise refuse("The opacity is a number from 0 to 1.") from error
        overlay.thumbnail((DISPLAYED_SIDE, DISPLAYED_SIDE))
        names = {"overlay": overlay, "cutout": result.cutout(), "class-ids": result.mask_image()}
        return *save(picture, names), json.loads(result.to_json())

    def show(self, picture: str | None, name: str) -> tuple[str, str]:
        """The view of the result and a line of facts; both empty when the picture was taken away."""
        if picture is None:
            return NOTHING_YET, ""
        result, model = self.run(picture, name), self.model(name)
        height, width = result.mask.shape
        seen = " × ".join(map(str, reversed(model.config.image_size)))
        facts = f"{width} × {height} pixels, seen at {seen}, segmented in {result.seconds:.2f} s"
        facts += f" by {model.title}"
        return view(result), quiet(f"{facts}, {self.version(model)}")

    def version(self, model: Model) -> str:
        """The commit of a Hub model, the fingerprint of any other."""
        if model.commit:
            return f"commit {model.commit}"
        return f"fingerprint {self.shelf.load(model.name).segmenter.fingerprint}"

    def downloads(self, picture: str | None, name: str) -> list[gr.DownloadButton]:
        """Files of the result just shown: class ids, colours, cut-out, and the numbers as JSON."""
        if picture is None:
            return no_downloads()
        result, model = self.run(picture, name), self.model(name)
        shown = {"class-ids": result.mask_image(), "colors": palette(result), "cutout": result.cutout()}
        paths = save(picture, shown)
        report = Path(paths[0]).with_name(f"{stem(picture)}-report.json")
        about = {"model": model.name, "version": self.version(model)}
        report.write_text(json.dumps({**about, **json.loads(result.to_json())}, indent=2) + "\n")
        return [gr.DownloadButton(value=path, interactive=True) for path in [*paths, str(report)]]

    def segment_several(
        self,
        files: list[str] | None,
        name: str,
        progress: Any = gr.Progress(),  # noqa: B008 - the way gradio is told to pass one
    ) -> tuple[Any, Any, str]:
        """A gallery, one zip of masks and cut-outs, and a sentence for every file that is no picture."""
        if not files:
            raise refuse("Choose some pictures first.")
        if len(files) > MOST_FILES:
            raise refuse(f"At most {MOST_FILES} pictures at once, got {len(files)}.")
        model, folder, shown, faults = self.model(name), new_folder(), [], []
        archive = folder / "segmented.zip"
        began = time.perf_counter()
        with zipfile.ZipFile(archive, "w") as packed:
            for number, path in enumerate(progress.tqdm(files, desc="segment", unit="picture"), start=1):
                try:
                    result = self.shelf.load(model.name).segmenter(path)
                except ImageError as error:
                    faults.append(f"{Path(path).name}: {error}")
                    continue
                except PretrainedError as error:
                    raise refuse(shown_error(error, model)) from error
                called = f"{number:02d}-{stem(path)}"  # two files may have one name
                _pack(packed, called, result)
                thumbnail = ImageOps.contain(result.overlay(), (THUMBNAIL, THUMBNAIL))
                thumbnail.save(place := folder / f"{called}.png", compress_level=1)
                shown.append((str(place), _caption(Path(path).name, result)))
        seconds = time.perf_counter() - began
        told = quiet(f"{len(shown)} of {len(files)} pictures in {seconds:.1f} s by {model.title}")
        button = gr.DownloadButton(value=str(archive) if shown else None, interactive=bool(shown))
        return shown, button, told + "".join(map(warning, faults))

    def describe(self, name: str) -> str:
        """The classes that the network tells apart, and the numbers behind its label."""
        model = self.model(name)
        score = "" if model.miou is None else f" · mIoU {model.miou:.3f} on test pictures (1 is perfect)"
        classes = ", ".join(model.config.classes)
        return quiet(f"Tells apart: {classes}. {model.parameters:,} parameters{score}")


def palette(result: Segmentation) -> Image.Image:
    """The mask in the colours of its classes; the palette's indices are the class ids."""
    picture = Image.fromarray(result.mask).convert("P")
    picture.putpalette([int(c[at : at + 2], 16) for c in result.colors for at in (1, 3, 5)])
    return picture


def _pack(packed: zipfile.ZipFile, called: str, result: Segmentation) -> None:
    for what, picture in (("class-ids", result.mask_image()), ("cutout", result.cutout())):
        with packed.open(f"{called}-{what}.png", "w") as file:
            picture.save(file, "PNG", **png_options(picture))
    packed.writestr(f"{called}.json", result.to_json())


def _caption(name: str, result: Segmentation) -> str:
    shares = sorted(result.shares.items(), key=lambda item: (item[0] == "background", -item[1]))
    return f"{', '.join(f'{key} {share:.0%}' for key, share in shares if share > 0)} · {name[:40]}"


def no_downloads() -> list[gr.DownloadButton]:
    """Buttons that wait for a result."""
    return [gr.DownloadButton(interactive=False) for _ in range(4)]


def nothing() -> tuple[Any, ...]:
    """An empty tab instead of the last result, which does not belong to the picture shown now."""
    return NOTHING_YET, "", *no_downloads()


def lay_out(shelf: Shelf, network: dict[str, Any]) -> gr.Dropdown:
    """Components and events; `network`: what events that run a network share. Returns the model chooser."""
    tab, default = SegmentTab(shelf), shelf.default
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            sources: Any = ["upload", "webcam", "clipboard"]
            picture = only_uploads(
                gr.Image(type="filepath", sources=sources, label="Picture", elem_id="picture", height=360)
            )
            model = gr.Dropdown(
                shelf.choices, value=default.name, label="Network", filterable=False, elem_id="model"
            )
            about = gr.HTML(tab.describe(default.name), padding=True)
            button = gr.Button("Segment", variant="primary")
        with gr.Column(scale=3, min_width=300):
            shown = gr.HTML(NOTHING_YET, elem_id="result", min_height=120, padding=False)
            facts = gr.HTML(elem_id="facts", padding=False)
            with gr.Row():
                buttons = [
                    stays(gr.DownloadButton(text, interactive=False, size="sm", min_width=120))
                    for text in ("Mask (class ids)", "Mask (colours)", "Cut-out", "JSON")
                ]
    _examples(picture)
    with gr.Accordion("Picture at a web address", open=False):
        told_address = "Your browser fetches it, not this server."
        address = gr.Textbox(label="Address", placeholder="https://…", info=told_address)
        fetched = gr.HTML()
        fetch = gr.Button("Fetch")
    with gr.Accordion("Several pictures at once", open=False):
        files = only_uploaded_files(
            gr.File(file_count="multiple", label=f"Up to {MOST_FILES} pictures", elem_id="files")
        )
        several = gr.Button("Segment them all")
        told = gr.HTML()
        gallery = stays(
            gr.Gallery(
                label="Results",
                columns=4,
                object_fit="contain",
                height="auto",
                interactive=False,
                format="png",
            )
        )
        archive = stays(gr.DownloadButton("All masks and cut-outs (zip)", interactive=False))

    private: dict[str, Any] = {"api_visibility": "private"}
    inputs, results = [picture, model], [shown, facts]
    live: dict[str, Any] = {"trigger_mode": "always_last", "show_progress_on": shown, **network, **private}
    asked = gr.on([button.click, picture.change, model.input], tab.show, inputs, results, **live)
    asked.success(tab.downloads, inputs, buttons, show_progress="hidden", **network, **private)
    # cheap events stay out of the queue: it is one for all, and pictures may have filled it
    asked.failure(nothing, None, [*results, *buttons], queue=False, **private)
    model.change(tab.describe, model, about, show_progress="hidden", queue=False, **private)
    gr.on([fetch.click, address.submit], None, address, fetched, js=FETCH, **private)
    several.click(
        tab.segment_several, [files, model], [gallery, archive, told], show_progress_on=gallery, **network,
        **private,
    )  # fmt: skip
    _endpoint(tab, default.name, network)
    return model


def _examples(picture: gr.Image) -> None:
    with gr.Accordion("Examples", open=True):
        gr.Examples([[str(path)] for path in DRAWN], picture, label="Drawn for this page")
        more = gr.Button("Photos from Oxford-IIIT Pet", size="sm")
        photos = gr.Gallery(
            visible=False, format="jpeg", columns=4, height=150, label="Click one", allow_preview=False
        )
        credit = gr.HTML(padding=False)
    more.click(rows_of_dataset, None, [photos, credit], api_visibility="private")
    photos.select(_chosen, None, picture, api_visibility="private")


def _chosen(event: gr.SelectData) -> str:
    """The photo that was clicked, by its number: a path in the event may be anybody's."""
    return photo(event.index)


def _endpoint(tab: SegmentTab, default: str, network: dict[str, Any]) -> None:
    """/segment for programs; its components are never shown."""
    with gr.Row(visible=False):
        picture = only_uploads(gr.Image(type="filepath", label="Picture"))
        model, opacity = gr.Textbox(default, label="Network"), gr.Number(0.5, label="Opacity")
        overlay = stays(gr.Image(label="Overlay", format="png"))
        cutout, mask = stays(gr.Image(label="Cut-out", format="png")), stays(gr.File(label="Mask"))
        report, run = gr.JSON(label="Report"), gr.Button()
    inputs, outputs = [picture, model, opacity], [overlay, cutout, mask, report]
    documented(tab.segment, inputs, outputs)
    run.click(tab.segment, inputs, outputs, api_name="segment", **network)
