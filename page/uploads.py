"""What comes in and goes out as files: uploads stay unopened until they are checked, results are PNGs."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import gradio as gr
from gradio.data_classes import ImageData
from gradio.utils import get_upload_folder
from PIL import Image

from searchseg.segmenter import png_options

NO_PICTURE = "Choose a picture first: upload one, take a photo or paste it."
NO_FILE = "Send the picture as an uploaded file, not as a web address or a path."
GONE = "This picture is no longer on the server: choose it again."
SWEEP_SECONDS, EMPTY_SECONDS, MOST_BYTES = 30, 600, 4 * 2**30
_swept = 0.0  # when, by time.monotonic()
LONGEST_STEM = 60  # of a name that came with an upload and goes out with its results


def without_paths(sentence: str) -> str:
    """A sentence without the places of this server: the Hub cache, the uploads, its home."""
    from huggingface_hub import constants

    places = {constants.HF_HUB_CACHE: "the Hub cache", get_upload_folder(): "uploads", str(Path.home()): "~"}
    for place, words in places.items():
        sentence = sentence.replace(place, words) if len(place) > 1 else sentence
    return sentence


def refuse(sentence: str) -> gr.Error:
    """An error that the page shows as it is, and the log not at all."""
    return gr.Error(escape(sentence, quote=False), print_exception=False)


def only_uploads(picture: gr.Image) -> gr.Image:
    """Make an image input hand over the path of an upload, unopened.

    gradio's own way opens it with every decoder of Pillow, before searchseg.read_image has bounded the work
    and without a usable message, fetches web addresses of any size, and takes any path sent without "meta".
    """

    def path_of(upload: ImageData | None) -> str | None:
        return _uploaded(upload.path) if upload else None

    _move_files_only(picture)
    picture.preprocess = path_of
    example = {"path": "picture.jpg", "url": "picture.jpg", "meta": {"_type": "gradio.FileData"}}
    picture.example_payload = lambda: (
        example
    )  # the page "Use via API" turns it into handle_file('picture.jpg')
    return picture


def only_uploaded_files(files: gr.File) -> gr.File:
    """Make a file input hand over the paths of uploads and of nothing else."""
    preprocess = files.preprocess

    def paths_of(payload: Any) -> Any:
        for entry in getattr(payload, "root", [payload] if payload else []):
            _uploaded(entry.path)
        return preprocess(payload)

    _move_files_only(files)
    files.preprocess = paths_of
    return files


def _move_files_only(component: gr.Image | gr.File) -> None:
    move = component.async_move_resource_to_block_cache

    async def move_file(path: str | Path | None) -> str | None:
        if str(path).startswith(("http:", "https:")):
            path = _own_file(str(path))
        return await move(path)

    component.async_move_resource_to_block_cache = move_file


def _own_file(address: str) -> str:
    """The upload that an address of this page names, as MCP clients send it back; no address is fetched."""
    return _uploaded(unquote(address.partition("/gradio_api/file=")[2]))


def stays(component: Any) -> Any:
    """Let the files of an output stay where they are: `new_folder` has made a place of their own for them.

    gradio would copy them to a place named after their content, where two requests with equal results write
    one file at once, and a reader may find it half written.
    """
    move = component.async_move_resource_to_block_cache

    async def keep(path: str | Path | None) -> str | None:
        uploads = Path(get_upload_folder()).resolve()
        if path is None or not Path(path).resolve().is_relative_to(uploads):
            return await move(path)
        component.temp_files.add(str(path))  # served, and in time deleted, as gradio's own copies are
        return str(path)

    component.async_move_resource_to_block_cache = keep
    return component


def _uploaded(path: str | None) -> str:
    """The path of an upload; anything else is refused."""
    uploads = Path(get_upload_folder()).resolve()
    try:
        inside = bool(path) and Path(path or "").resolve().is_relative_to(uploads)
    except (ValueError, OSError):  # a NUL, or a name that is too long
        inside = False
    if not path or not inside or Path(path).is_dir():
        raise refuse(NO_FILE)
    return path


def stem(path: str | None) -> str:
    """The name of an upload without its ending, for the names of its results."""
    return Path(path or "picture").stem[:LONGEST_STEM] or "picture"


def new_folder() -> Path:
    """A folder that no other request writes to, where gradio serves files and in time deletes them."""
    global _swept
    os.makedirs(get_upload_folder(), exist_ok=True)
    if time.monotonic() - _swept > SWEEP_SECONDS:
        _swept = time.monotonic()
        sweep(Path(get_upload_folder()))
    return Path(tempfile.mkdtemp(dir=get_upload_folder()))


def sweep(root: Path) -> None:
    """Keep uploads and results within MOST_BYTES, the oldest go first, and remove folders long empty.

    gradio deletes by age, and files only: neither bounds what a busy hour of large pictures leaves.
    """
    files = []
    for folder, _, names in os.walk(root):
        for name in names:
            with contextlib.suppress(OSError):  # deleted meanwhile
                facts = os.stat(path := os.path.join(folder, name))
                files.append((facts.st_mtime, facts.st_size, path))
    kept = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if kept <= MOST_BYTES:
            break
        with contextlib.suppress(OSError):
            os.unlink(path)
        kept -= size
    for entry in os.scandir(root):
        with contextlib.suppress(OSError):  # not empty, or swept by somebody else
            if entry.is_dir() and time.time() - entry.stat().st_mtime > EMPTY_SECONDS:
                os.rmdir(entry.path)


def save(source: str | None, pictures: Mapping[str, Image.Image]) -> list[str]:
    """Write PNGs named after the source and after what they show; returns their paths."""
    folder = new_folder()
    paths = [str(folder / f"{stem(source)}-{what}.png") for what in pictures]
    for path, picture in zip(paths, pictures.values(), strict=True):
        picture.save(path, **png_options(picture))
    return paths
