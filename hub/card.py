"""Write the model card (README.md) and the drawing (architecture.svg) of a run folder.

Every number of the card is read from metrics.json; what is not on record there is left out.

example:
  python -m hub.card runs/net --id hub/models/searchnet-pet-lite
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from torch import nn

import searchseg
from searchseg.drawing import draw, draw_unet
from searchseg.pretrained import PretrainedError

TITLES = {"searchnet": "SEARCH-Net", "unet": "UNet"}
ABOUT = {
    "searchnet": (
        "A U-shaped segmentation network of eight cells whose operations were found by differentiable "
        "architecture search (DARTS) in the search space of Zhu & Ma, DOI 10.12677/aam.2023.128357."
    ),
    "unet": (
        "The plain UNet of Ronneberger et al. (arXiv 1505.04597), trained by the same recipe as the "
        "SEARCH-Net that it is compared with."
    ),
}
DATA = {
    "pet": "Oxford-IIIT Pet (Parkhi et al., CVPR 2012), CC BY-SA 4.0; the pictures stay with their owners.",
    "camvid": "CamVid (Brostow et al. 2009) in the split of SegNet, for research use only.",
}
LIMITS = {
    "pet": (
        "It was trained on photos of one cat or dog that fills much of the picture. Other animals, several "
        "pets, drawings, night shots and far-away pets are outside of what it has learned, and it will then "
        "mark the wrong region without saying so. Masks are computed at {size} and enlarged: hair and "
        "whiskers are not resolved."
    ),
}
OTHER_LIMITS = (
    "It knows only pictures like those of its training data. Masks are computed at {size} and enlarged, so "
    "structures of a few pixels are not resolved."
)


def architecture_svg(model: nn.Module) -> str:
    """The drawing of a loaded network."""
    config = model.config
    if model.genotype is None:
        return draw_unet(config.arguments["widths"], image_size=config.image_size)
    widths, stride = config.arguments["widths"], config.arguments["stem_stride"]
    return draw(model.genotype, widths=widths, image_size=config.image_size, stem_stride=stride)


def card_text(model: nn.Module, metrics: dict[str, Any], name: str, search: Path) -> str:
    """The card of a loaded network as Markdown with YAML front matter.

    `search` is the folder where `hub.pack` puts the record of the search; it may be missing.
    """
    config, protocol, training = model.config, metrics["protocol"], metrics["training"]
    title = f"{TITLES.get(config.architecture, config.architecture)} for {protocol['task']}"
    height, width = config.image_size
    limits = LIMITS.get(protocol["task"], OTHER_LIMITS).format(size=f"{width}x{height} pixels")
    sections = [
        f"---\n{_front_matter(config.architecture, metrics, title)}\n---",
        f"# {title}",
        ABOUT.get(config.architecture, ""),
        "![The architecture](architecture.svg)",
        "## Use it",
        f"```python\nimport searchseg\n\nsegmenter = searchseg.Segmenter.from_pretrained({name!r})\n"
        'segmenter("photo.jpg").cutout().save("cutout.png")\n```',
        "## Scores",
        _scores(metrics),
        "## Training",
        _training(training),
        "## Architecture",
        _architecture(model) + _search_cost(search),
        "## Data",
        DATA.get(protocol["task"], f"{protocol['dataset']}."),
        "## Limits",
        limits,
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def write_card(folder: Path, name: str) -> None:
    """Write README.md and architecture.svg into `folder`; PretrainedError when it holds no model or no
    metrics."""
    model = searchseg.from_pretrained(folder)
    path = folder / "metrics.json"
    if not path.is_file():
        raise PretrainedError(
            f"{folder.name} has no metrics.json: run python -m training.evaluate on it first"
        )
    (folder / "architecture.svg").write_text(architecture_svg(model))
    (folder / "README.md").write_text(card_text(model, json.loads(path.read_text()), name, folder / "search"))


def _front_matter(architecture: str, metrics: dict[str, Any], title: str) -> str:
    protocol = metrics["protocol"]
    result = EvalResult(
        task_type="image-segmentation",
        dataset_type=protocol["dataset"],
        dataset_name=f"{protocol['task']} ({protocol['rows']} rows)",
        dataset_split=protocol["split"],
        dataset_revision=protocol["revision"],
        metric_type="mean_iou",
        metric_name=f"mIoU, {protocol['rule']}",
        metric_value=round(metrics["miou"], 4),
    )
    data = ModelCardData(
        model_name=title,
        library_name="searchseg",
        pipeline_tag="image-segmentation",
        license="apache-2.0",
        tags=["searchseg", architecture, "neural-architecture-search", "image-segmentation"],
        eval_results=[result],
    )
    return data.to_yaml()


def _scores(metrics: dict[str, Any]) -> str:
    protocol = metrics["protocol"]
    rows = [f"| mIoU | {metrics['miou']:.4f} |"]
    rows += [
        f"| IoU {name} | {'absent' if v is None else f'{v:.4f}'} |" for name, v in metrics["iou"].items()
    ]
    rows += [
        f"| Dice loss a picture | {metrics['dice_loss']:.4f} |",
        f"| pixel accuracy | {metrics['pixel_accuracy']:.4f} |",
        f"| parameters | {metrics['parameters']:,} |",
        f"| MACs at input size | {metrics['macs'] / 1e9:.3f} G |",
        f"| seconds a picture (median) | {metrics['seconds_per_picture']:.3f} |",
    ]
    height, width = protocol["input_size"]
    how = (
        f"Protocol: {protocol['dataset']}, split {protocol['split']}, {protocol['rows']} rows, "
        f"{protocol['rule']}; "
        f"input {width}x{height}, scored at the {protocol['scored_at']}; one confusion matrix over the "
        f"split; "
        f"{_machine(protocol['machine'])}.\n\n    {protocol['command']}"
    )
    return "\n".join(["| measure | value |", "|---|---|", *rows]) + "\n\n" + how


def _training(training: dict[str, Any]) -> str:
    if "recipe" not in training:
        return "Not on record."
    recipe, options = training["recipe"], training["options"]
    facts = [
        f"rows: {training['dataset']}, split {options['split']}, {training['rows']} rows",
        f"recipe {options['recipe']}: " + ", ".join(f"{key} {value}" for key, value in recipe.items()),
        f"{training['epochs_done']} epochs, batch {training['settings']['batch_size']}, "
        f"{training['settings']['size']} px, seed {options['seed']}, {training['processes']} processes",
        f"{training['minutes']} minutes on {_machine(training['machine'])}",
        "weights after the last epoch; no epoch was chosen",
    ]
    return "\n".join(f"- {fact}" for fact in facts) + f"\n\n    {training['command']}"


def _architecture(model: nn.Module) -> str:
    arguments = ", ".join(f"{key} {value}" for key, value in model.config.arguments.items())
    if model.genotype is None:
        return f"Arguments: {arguments}."
    search = ", ".join(f"{key} {value}" for key, value in model.genotype.search.items() if value is not None)
    return f"Genotype `{model.genotype.id}` (genotype.json); arguments: {arguments}.\n\nFound by: {search}."


def _search_cost(folder: Path) -> str:
    """Minutes, machine and command of the search, where `hub.pack` put its record."""
    if not (folder / "history.jsonl").is_file():
        return ""
    seconds = [json.loads(line)["seconds"] for line in (folder / "history.jsonl").read_text().splitlines()]
    settings = json.loads((folder / "settings.json").read_text())
    where = f"{settings['processes']} processes, {_machine(settings['machine'])}"
    return f" It took {sum(seconds) / 60:.0f} minutes ({where}).\n\n    {settings['command']}"


def _machine(machine: dict[str, Any]) -> str:
    return f"{machine['device']}, torch {machine['torch']}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m hub.card", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="run folder with a model and metrics.json")
    parser.add_argument("--id", help="what a reader passes to from_pretrained (default: the folder as given)")
    args = parser.parse_args(argv)
    try:
        write_card(args.folder, args.id or str(args.folder))
    except PretrainedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.folder / 'README.md'}, {args.folder / 'architecture.svg'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
