"""List the searchseg models on the Hugging Face Hub with what their cards say: task, mIoU and parameters.

A card is what its author wrote: the numbers are shown, not checked. A genotype without weights has no score.

examples:
  python -m hub.list
  python -m hub.list --author me --json
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from huggingface_hub import EvalResult, HfApi, ModelCardData, ModelInfo
from huggingface_hub.errors import HTTPError

from hub.metadata import LIBRARY, MIOU, PARAMETERS
from hub.remote import PublishError, bounded_waits, explained
from searchseg.pretrained import ARCHITECTURES

ASKED: list[Any] = ["cardData", "model-index", "tags", "private", "lastModified"]
LONGEST_NAME = 40  # of a task; the card of a stranger must not flood a table
_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


@dataclass(frozen=True)
class HubModel:
    """A model on the Hub as its card describes it; None where the card says nothing usable.

    architecture: "searchnet", "unet", ..., or "genotype" for one without weights; updated: the day of the
    last commit, YYYY-MM-DD.
    """

    id: str
    architecture: str | None = None
    task: str | None = None
    miou: float | None = None
    parameters: int | None = None
    private: bool = False
    updated: str | None = None


def list_models(author: str | None = None, token: str | Literal[False] | None = None) -> list[HubModel]:
    """The models that carry the library tag searchseg, best mIoU first, those without a score last.

    `author` is a user or an organization; `token` False asks as nobody.
    Raises PublishError when the Hub cannot be asked.
    """
    if author is not None and not _OWNER.fullmatch(author):
        raise PublishError(
            f"{author!r:.120} is no name of a user: wanted are letters, digits, '-', '_' and '.'"
        )
    try:
        with bounded_waits():
            found = list(HfApi(token=token).list_models(filter=LIBRARY, author=author, expand=ASKED))
    except (HTTPError, OSError) as error:
        raise explained(error, author or "the list of models") from error
    models = [described(info) for info in found]
    return sorted(models, key=lambda model: (model.miou is None, -(model.miou or 0), model.id))


def described(info: ModelInfo) -> HubModel:
    """What the Hub's record of one model says; whatever a stranger wrote in a card, this does not fail."""
    results = _results(info)
    scores = [result for result in results if result.metric_type == MIOU]
    sizes = [result for result in results if result.metric_type == PARAMETERS]
    miou = next((v for r in scores if (v := _number(r.metric_value)) is not None and v <= 1), None)
    parameters = next((v for r in sizes if (v := _number(r.metric_value)) is not None), None)
    tags = info.tags or []
    return HubModel(
        id=info.id,
        architecture=next((name for name in (*ARCHITECTURES, "genotype") if name in tags), None),
        task=next((name for r in scores if (name := _name(r.task_name))), None),
        miou=miou,
        parameters=None if parameters is None else int(parameters),
        private=bool(info.private),
        updated=info.last_modified.date().isoformat() if info.last_modified else None,
    )


def table(models: Iterable[HubModel]) -> str:
    """The models as columns of text."""
    rows = [("model", "architecture", "task", "mIoU", "parameters", "updated")]
    rows += [
        (
            model.id + (" (private)" if model.private else ""),
            model.architecture or "",
            model.task or "",
            "" if model.miou is None else f"{model.miou:.4f}",
            "" if model.parameters is None else f"{model.parameters:,}",
            model.updated or "",
        )
        for model in models
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = {3, 4}
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _results(info: ModelInfo) -> list[EvalResult]:
    """The scores of the card, which the Hub gives within the card or beside it."""
    beside = ModelCardData(ignore_metadata_errors=True, **{"model-index": info.model_index})
    return getattr(info.card_data, "eval_results", None) or beside.eval_results or []


def _number(value: Any) -> float | None:
    """A finite number that is not negative, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if 0 <= value < 1e15 else None


def _name(value: Any) -> str | None:
    """A short printable name, else None."""
    if not isinstance(value, str):
        return None
    return "".join(c for c in value if c.isprintable())[:LONGEST_NAME].strip() or None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m hub.list", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--author", help="only the models of this user or organization")
    parser.add_argument("--json", action="store_true", help="as a JSON list instead of a table")
    args = parser.parse_args(argv)
    try:
        models = list_models(args.author)
    except PublishError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(json.dumps([asdict(model) for model in models], indent=2) if args.json else table(models))
    return 0


if __name__ == "__main__":
    sys.exit(main())
