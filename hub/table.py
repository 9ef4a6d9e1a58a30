"""Compare model folders in one Markdown table, every number read from their metrics.json.

examples:
  python -m hub.table hub/models/*
  python -m hub.table hub/models/* --into README.md    replaces what stands between the two result marks
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

START, END = "<!-- results: python -m hub.table hub/models/* --into README.md -->", "<!-- end of results -->"


def table(folders: list[Path]) -> str:
    """Markdown: a row a folder, best mIoU first, and the protocol of each under the table."""
    documents = {folder.name: json.loads((folder / "metrics.json").read_text()) for folder in folders}
    ranked = sorted(documents.items(), key=lambda item: -item[1]["miou"])
    names = ("model", "mIoU", "Dice loss", "parameters", "MACs", "seconds a picture", "training")
    head = f"| {' | '.join(names)} |\n|{'---|' * len(names)}"
    protocols = dict.fromkeys(_protocol(document) for _, document in ranked)
    return "\n".join([head, *(_row(*item) for item in ranked), "", *protocols])


def _minutes(training: dict[str, Any]) -> float:
    """With those of the trainings whose weights it began with."""
    earlier = training.get("finetuned", {}).get("training")
    return training.get("minutes", 0) + (_minutes(earlier) if earlier else 0)


def _row(name: str, document: dict[str, Any]) -> str:
    cells = [
        f"[{name}](hub/models/{name})",
        f"{document['miou']:.4f}",
        f"{document['dice_loss']:.4f}",
        f"{document['parameters'] / 1e6:.2f} M",
        f"{document['macs'] / 1e9:.2f} G",
        f"{document['seconds_per_picture']:.3f}",
        f"{_minutes(document['training']):.0f} min",
    ]
    return f"| {' | '.join(cells)} |"


def _protocol(document: dict[str, Any]) -> str:
    protocol, training = document["protocol"], document["training"]
    height, width = protocol["input_size"]
    options = training["options"]
    taught = f", {training['pseudo']['rows']} of them with a network's masks" if "pseudo" in training else ""
    # what the trainings before were stands in the card
    begun = f", begun with {training['finetuned']['model']}, then" if "finetuned" in training else ","
    cut = training.get("settings", {}).get("crop")
    crops = f", crops of {cut[1]}x{cut[0]}" if cut else ""
    recipe = f"recipe {options['recipe']}"
    recipe += " without class weights" if options.get("no_class_weights") else ""
    recipe += " with corruptions" if options.get("corruptions") else ""
    return (
        f"Protocol: scored on {protocol['dataset']}, split {protocol['split']}, {protocol['rows']} rows, "
        f"{len(protocol['classes'])} classes, {protocol['rule']}, input {width}x{height}, at the "
        f"{protocol['scored_at']}; trained on split {options['split']}, {training['rows']} rows"
        f"{taught}{begun} {training['epochs_done']} epochs{crops}, {recipe}, "
        f"seed {options['seed']}, "
        f"{training['processes']} processes of {training['machine']['threads']} thread on "
        f"{training['machine']['device']}, torch {training['machine']['torch']}."
    )


def insert(page: str, content: str) -> str:
    """`page` with `content` between the result marks; ValueError when the marks are missing."""
    if START not in page or END not in page:
        raise ValueError(f"the page needs the lines {START!r} and {END!r}")
    before, rest = page.split(START, 1)
    return f"{before}{START}\n\n{content}\n\n{END}{rest.split(END, 1)[1]}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m hub.table", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", help="model folders with metrics.json")
    parser.add_argument("--into", type=Path, help="Markdown page with the result marks")
    args = parser.parse_args(argv)
    content = table(args.folders)
    if args.into:
        args.into.write_text(insert(args.into.read_text(), content))
    else:
        print(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
