"""What of a run folder is published: an allow-list of names, read and checked before any request."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

import searchseg
from hub.card import architecture_svg, card_text, genotype_card_text, own_readme, read_metrics
from hub.export import ONNX, ExportError, check_onnx
from hub.pack import RECORD, SEARCH
from searchseg.drawing import draw
from searchseg.pretrained import CONFIG, GENOTYPE, MAX_TEXT_BYTES, WEIGHTS, PretrainedError

README, DRAWING, METRICS = "README.md", "architecture.svg", "metrics.json"
# settings.json stays here: metrics.json repeats what of it belongs to the scores
RECORDS = tuple(name for name in RECORD if name != "settings.json")
SEARCH_RECORDS = tuple(dict.fromkeys(f"search/{Path(name).name}" for name in SEARCH))
NAMES = (CONFIG, GENOTYPE, WEIGHTS, ONNX, METRICS, *RECORDS, *SEARCH_RECORDS, DRAWING, README)
MAX_RECORD_BYTES = 64 << 20
_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{20,}")


@dataclass(frozen=True)
class File:
    """One file to send: its name in the repository and its bytes, or for weights their place on disk."""

    name: str
    content: bytes | Path

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    def git_id(self) -> str:
        """The id that git gives the content, as the Hub lists it for small files."""
        digest = hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
        return self._digest(digest)

    def sha256(self) -> str:
        """The digest that the Hub lists for large files."""
        return self._digest(hashlib.sha256())

    def _digest(self, digest: Any) -> str:
        if isinstance(self.content, bytes):
            digest.update(self.content)
        else:
            with open(self.content, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()


@dataclass(frozen=True)
class Contents:
    """A checked run folder: its files without the card, and what the card is written from."""

    folder: Path
    files: tuple[File, ...]
    model: nn.Module | None  # None: a genotype without weights
    genotype: searchseg.Genotype | None
    metrics: dict[str, Any] | None

    def card(self, repo_id: str, revision: str | None, base: str | None) -> File:
        """README.md for `repo_id`; text of `base`, the README.md there, stays. Errors as in `card_text`."""
        base = base if base is not None else own_readme(self.folder)
        if self.model is None:
            text = genotype_card_text(self.genotype, repo_id, base, revision)
        else:
            search = self.folder / "search"
            text = card_text(self.model, self.metrics, repo_id, search, base, revision)
        return File(README, text.encode())


def read_model(folder: Path) -> Contents:
    """Everything of a run folder that is published. The network is loaded strictly and segments a picture.

    Raises PretrainedError when the folder holds no such model, no scores of it, a model.onnx that is not this
    model, a link or an access token.
    """
    names = (CONFIG, GENOTYPE, WEIGHTS, ONNX, METRICS, *RECORDS, *SEARCH_RECORDS)
    _refuse_links(folder, names)
    model = searchseg.from_pretrained(folder)
    _segment_a_picture(model)
    metrics = read_metrics(folder, model)
    there = [name for name in names if (folder / name).is_file()]
    if ONNX in there:
        try:
            check_onnx(model, folder / ONNX)
        except ExportError as error:
            raise PretrainedError(str(error)) from error
    if model.genotype is None:
        there.remove(GENOTYPE) if GENOTYPE in there else None
    files = [_read(folder, name) for name in there]
    files.append(File(DRAWING, architecture_svg(model).encode()))
    return Contents(folder, tuple(files), model, model.genotype, metrics)


def read_genotype(folder: Path) -> Contents:
    """genotype.json and its drawing; PretrainedError when there is no genotype, GenotypeError when it is
    broken."""
    _refuse_links(folder, (GENOTYPE,))
    if not (folder / GENOTYPE).is_file():
        raise PretrainedError(f"{folder} has no {GENOTYPE}: name the folder of a search or of a SEARCH-Net")
    if (folder / GENOTYPE).stat().st_size > MAX_TEXT_BYTES:
        raise PretrainedError(
            f"{folder / GENOTYPE} is larger than {MAX_TEXT_BYTES} bytes: this is no genotype"
        )
    file = _read(folder, GENOTYPE)
    genotype = searchseg.Genotype.from_json(file.content)
    return Contents(folder, (file, File(DRAWING, draw(genotype).encode())), None, genotype, None)


def _refuse_links(folder: Path, names: tuple[str, ...]) -> None:
    """A link could name any file of this computer, and what is sent must be what lies here."""
    for path in (folder / "search", *(folder / name for name in names)):
        if os.path.islink(path):
            raise PretrainedError(
                f"{path} is a link, and only plain files are sent: put the file itself there"
            )


def _read(folder: Path, name: str) -> File:
    path = folder / name
    if name in (WEIGHTS, ONNX):
        return File(name, path)
    if path.stat().st_size > MAX_RECORD_BYTES:
        raise PretrainedError(
            f"{path} is larger than {MAX_RECORD_BYTES >> 20} MB: this is no record of a run"
        )
    content = path.read_bytes()
    if _TOKEN.search(content):
        raise PretrainedError(f"{path} holds an access token (hf_...): take it out, and revoke the token")
    return File(name, content)


def _segment_a_picture(model: nn.Module) -> None:
    """One forward pass on a drawn picture: a network that cannot run must not be published."""
    height, width = model.config.image_size
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    mask = searchseg.Segmenter(model, device="cpu")(picture).mask
    if mask.shape != (height, width) or mask.max() >= len(model.config.classes):
        raise PretrainedError(f"the network gives no mask of {width}x{height} pixels: train it again")
