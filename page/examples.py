"""Pictures to try: some that the project drew itself, and on request a few rows of the Pet dataset."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from page.uploads import refuse, save
from page.views import quiet, warning
from searchseg import task as tasks
from searchseg.task import Task

DRAWN = tuple(sorted((Path(__file__).parent / "pictures").glob("*.jpg")))
PHOTOS = 8
CREDIT = "Photos: The Oxford-IIIT Pet Dataset, Parkhi, Vedaldi, Zisserman, Jawahar 2012, CC BY-SA 4.0."


def rows_of_dataset() -> tuple[Any, str]:
    """A few photos of the dataset's test split, and whose they are; a sentence where there is no Hub."""
    try:
        return gr.Gallery(value=_photos(), visible=True), quiet(CREDIT)
    except Exception as error:  # whatever a network, a proxy or a parquet reader may raise: the page goes on
        print(f"no photos of the dataset: {type(error).__name__}")
        sentence = "The dataset cannot be reached from here. The drawn pictures work without a network."
        return gr.Gallery(visible=False), warning(sentence)


def photo(number: Any) -> str:
    """A new file with the photo of that number; a sentence for any other number."""
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < PHOTOS:
        raise refuse("There is no such photo.")
    try:
        photos = _photos()
    except Exception as error:  # as above
        raise refuse("The dataset cannot be reached any more.") from error
    return save(f"pet-{number}", {"photo": photos[number]})[0]


@functools.lru_cache(maxsize=1)
def _photos() -> list[Image.Image]:
    """The photos, streamed once and kept beside the Hub cache with a line that says whose they are."""
    from huggingface_hub import constants

    task = tasks.pet()
    place = Path(constants.HF_HOME) / "searchseg" / "examples" / str(task.revision)[:12]
    paths = [place / f"{number}.jpg" for number in range(PHOTOS)]
    try:
        return [Image.open(path).convert("RGB") for path in paths]
    except OSError:  # not all of them are there, or not whole
        photos = list(_streamed(task))
    with contextlib.suppress(OSError):  # where nothing can be written the page streams them again next time
        place.mkdir(parents=True, exist_ok=True)
        for path, photo in zip(paths, photos, strict=True):
            stream = io.BytesIO()
            photo.save(stream, "JPEG", quality=92)
            descriptor, growing = tempfile.mkstemp(dir=place)
            with os.fdopen(descriptor, "wb") as file:
                file.write(stream.getvalue())
            os.replace(growing, path)
        (place / "CREDIT.txt").write_text(CREDIT + "\n")
    return photos


def _streamed(task: Task) -> Iterator[Image.Image]:
    import datasets

    assert task.dataset is not None
    rows = datasets.load_dataset(task.dataset, split="test", revision=task.revision, streaming=True)
    for row in rows.select_columns([task.image_column]).take(PHOTOS):
        photo = row[task.image_column].convert("RGB")
        photo.thumbnail((1024, 1024))
        yield photo
