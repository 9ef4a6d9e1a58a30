"""Write the model card (README.md) and the drawing (architecture.svg) of a run folder.

Every number of the card is read from metrics.json; what is not on record there is left out. The card stands
between two marks, and a card that is written again keeps what somebody wrote around them.

example:
  python -m hub.card runs/net --id hub/models/searchnet-pet
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from torch import nn

import searchseg
from hub.metadata import genotype_metadata, model_metadata
from hub.readme import ReadmeError, compose, has_marks
from hub.sections import genotype_section, model_section, model_title
from searchseg.cost import parameters
from searchseg.portrait import portrait
from searchseg.pretrained import PretrainedError


def architecture_svg(model: nn.Module) -> str:
    """The drawing of a loaded network."""
    return portrait(model)


def card_text(
    model: nn.Module,
    metrics: dict[str, Any],
    name: str,
    search: Path,
    base: str | None = None,
    revision: str | None = None,
) -> str:
    """The card of a loaded network as Markdown with YAML front matter.

    `name` and `revision` are what a reader passes to from_pretrained; `search` is the folder where `hub.pack`
    puts the record of the search, it may be missing; `base` is an earlier README.md whose own text stays.
    Raises PretrainedError when a record lacks an entry, ReadmeError when `base` cannot be read.
    """
    try:
        title = model_title(model.config.architecture, metrics)
        front = model_metadata(model.config.architecture, metrics, title)
        section = model_section(model, metrics, name, search, revision)
    except (KeyError, TypeError, AttributeError, OSError, ValueError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else f"cannot be read ({error})"
        raise PretrainedError(
            f"the record of this run {what}: run python -m training.evaluate on its folder again"
        ) from error
    return compose(front, section, base)


def genotype_card_text(
    genotype: searchseg.Genotype, name: str, base: str | None = None, revision: str | None = None
) -> str:
    """The card of a genotype that is published without weights; errors as in `card_text`."""
    section = genotype_section(genotype, name, revision)
    return compose(genotype_metadata(dict(genotype.search)), section, base)


def read_metrics(folder: Path, model: nn.Module) -> dict[str, Any]:
    """metrics.json of `folder`; PretrainedError when it is missing, broken or another network's."""
    path, again = folder / "metrics.json", "run python -m training.evaluate on it"
    if not path.is_file():
        raise PretrainedError(f"{folder.name} has no metrics.json: {again} first")
    try:
        metrics = json.loads(path.read_bytes())
        score, size = metrics["miou"], metrics["parameters"]
    except (ValueError, KeyError, TypeError) as error:
        raise PretrainedError(f"{folder.name} has a broken metrics.json ({error!r:.120}): {again}") from error
    if not isinstance(score, int | float) or not math.isfinite(score) or not 0 <= score <= 1:
        raise PretrainedError(f"metrics.json has miou {score!r:.80}, wanted is a number from 0 to 1: {again}")
    if size != parameters(model):
        raise PretrainedError(
            f"metrics.json counts {size!r:.80} parameters, the network has {parameters(model)}: {again}"
        )
    return metrics


def write_card(folder: Path, name: str) -> None:
    """Write README.md and architecture.svg into `folder`; PretrainedError when it holds no model or no
    metrics."""
    model = searchseg.from_pretrained(folder)
    metrics = read_metrics(folder, model)
    card = card_text(model, metrics, name, folder / "search", own_readme(folder))
    (folder / "architecture.svg").write_text(architecture_svg(model), encoding="utf-8")
    (folder / "README.md").write_bytes(card.encode())


def own_readme(folder: Path) -> str | None:
    """README.md of a run folder when it has our marks, else None: without marks it is a card to replace."""
    path = folder / "README.md"
    try:
        text = path.read_bytes().decode() if path.is_file() else ""
    except UnicodeDecodeError as error:
        raise PretrainedError(f"{path} is not UTF-8: save it as UTF-8, or remove it") from error
    return text if has_marks(text) else None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m hub.card", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="run folder with a model and metrics.json")
    parser.add_argument("--id", help="what a reader passes to from_pretrained (default: the folder as given)")
    args = parser.parse_args(argv)
    try:
        write_card(args.folder, args.id or str(args.folder))
    except (PretrainedError, ReadmeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.folder / 'README.md'}, {args.folder / 'architecture.svg'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
