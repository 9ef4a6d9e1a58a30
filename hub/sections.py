"""The sections of a model card as Markdown, every number read from the records of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

import searchseg
from searchseg.baselines import TITLES

ABOUT = {
    "searchnet": (
        "A U-shaped segmentation network of eight cells whose operations were found by differentiable "
        "architecture search (DARTS) in the search space of Zhu & Ma, DOI 10.12677/aam.2023.128357."
    ),
    "unet": (
        "The plain UNet of Ronneberger et al. (arXiv 1505.04597), trained by the same recipe as the "
        "SEARCH-Net that it is compared with."
    ),
    "genotype": (
        "An architecture without weights: which operation sits on which edge of the eight cells of a "
        "U-shaped segmentation network, in the search space of Zhu & Ma, DOI 10.12677/aam.2023.128357."
    ),
}
DATA = {
    "pet": "Oxford-IIIT Pet (Parkhi et al., CVPR 2012), CC BY-SA 4.0; the pictures stay with their owners.",
    "camvid": "CamVid (Brostow et al. 2009) in the split of SegNet, for research use only.",
}
LIMITS = {
    "pet": (
        "It was trained on photos of one cat or dog that fills much of the picture. Other animals, several "
        "pets, drawings{night} and far-away pets are outside of what it has learned, and it will then mark "
        "the wrong region without saying so. Masks are computed at {size} and enlarged: hair and whiskers "
        "are not resolved."
    ),
}
OTHER_LIMITS = (
    "It knows only pictures like those of its training data. Masks are computed at {size} and enlarged, so "
    "structures of a few pixels are not resolved."
)


def model_section(
    model: nn.Module, metrics: dict[str, Any], name: str, search: Path, revision: str | None = None
) -> str:
    """The card of a network below its front matter; KeyError when a record lacks an entry."""
    config, protocol = model.config, metrics["protocol"]
    height, width = config.image_size
    night = "" if _learned_the_dark(metrics["training"]) else ", night shots"
    limits = LIMITS.get(protocol["task"], OTHER_LIMITS).format(size=f"{width}x{height} pixels", night=night)
    sections = [
        f"# {model_title(config.architecture, metrics)}",
        ABOUT.get(config.architecture, ""),
        "![The architecture](architecture.svg)",
        "## Use it",
        _code(
            "import searchseg\n\n"
            f"segmenter = searchseg.Segmenter.from_pretrained({_source(name, revision)})\n"
            'segmenter("photo.jpg").cutout().save("cutout.png")'
        ),
        "## Scores",
        _scores(metrics),
        "## Training",
        _training(metrics["training"]),
        "## Architecture",
        _architecture(model) + _search_cost(search),
        "## Data",
        DATA.get(protocol["task"], f"{protocol['dataset']}."),
        "## Limits",
        limits,
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def genotype_section(genotype: searchseg.Genotype, name: str, revision: str | None = None) -> str:
    """The card of a genotype without weights below its front matter."""
    file = f'{json.dumps(name)}, "genotype.json"' + (f", revision={json.dumps(revision)}" if revision else "")
    sections = [
        f"# {genotype_title(genotype)}",
        ABOUT["genotype"],
        "![The architecture](architecture.svg)",
        "## Use it",
        _code(
            "import searchseg\nfrom huggingface_hub import hf_hub_download\n\n"
            f"genotype = searchseg.Genotype.from_json(open(hf_hub_download({file})).read())"
        ),
        "`python -m training.retrain --genotype genotype.json` trains the network.",
        "## Architecture",
        f"Genotype `{genotype.id}` (genotype.json), {genotype.nodes} nodes a cell.{_found_by(genotype)}",
    ]
    return "\n\n".join(sections) + "\n"


def model_title(architecture: str, metrics: dict[str, Any]) -> str:
    """Name of the network and of its task."""
    return f"{TITLES.get(architecture, architecture)} for {metrics['protocol']['task']}"


def genotype_title(genotype: searchseg.Genotype) -> str:
    """Name of an architecture without weights."""
    task = genotype.search.get("task")
    return f"SEARCH-Net architecture {genotype.id}" + (f", found on {readable(task)}" if task else "")


def readable(value: Any) -> str:
    """A value from a JSON record in words: lists with commas (inner ones in brackets), true as yes."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_inner(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_inner(part) for part in value)
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return " ".join(str(value).split())


def _inner(value: Any) -> str:
    return f"({readable(value)})" if isinstance(value, list | tuple | Mapping) else readable(value)


def _code(text: str) -> str:
    return f"```python\n{text}\n```"


def _source(name: str, revision: str | None) -> str:
    return json.dumps(name) + (f", revision={json.dumps(revision)}" if revision else "")


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
    revision = f" at {protocol['revision']}" if protocol["revision"] else ""
    how = (
        f"Protocol: {protocol['dataset']}{revision}, split {protocol['split']}, {protocol['rows']} rows, "
        f"{protocol['rule']}; input {width}x{height}, scored at the {protocol['scored_at']}; one confusion "
        f"matrix over the split; {_machine(protocol['machine'])}.\n\n    {protocol['command']}"
    )
    return "\n".join(["| measure | value |", "|---|---|", *rows]) + "\n\n" + how


def _seen(settings: dict[str, Any]) -> str:
    """What a training sees of a picture."""
    whole = f"{_side(settings['size'])} px"
    return (
        f"crops of {_side(settings['crop'])} px from pictures of {whole}" if settings.get("crop") else whole
    )


def _training(training: dict[str, Any]) -> str:
    if "recipe" not in training:
        return "Not on record."
    recipe, options = training["recipe"], training["options"]
    facts = [
        f"rows: {training['dataset']}, split {options['split']}, {training['rows']} rows",
        f"recipe {options['recipe']}: {readable(recipe)}",
        f"{training['epochs_done']} epochs, batch {training['settings']['batch_size']}, "
        f"{_seen(training['settings'])}, seed {options['seed']}, "
        f"{training['processes']} processes",
        f"{training['minutes']} minutes on {_machine(training['machine'])}",
        f"weights of the epoch with the best mIoU on {training['chosen_on']}"
        if "chosen_on" in training
        else "weights after the last epoch; no epoch was chosen",
    ]
    if "pseudo" in training:
        pseudo = training["pseudo"]
        facts[0] += f", {pseudo['rows']} of them with masks that a network made ({pseudo['dataset']})"
    if "finetuned" in training:
        facts.insert(0, _finetuned(training, recipe))
    elif "base_model" in training:
        facts.insert(
            0, f"architecture of {training['base_model']} at {training.get('base_revision')}, new weights"
        )
    return "\n".join(f"- {fact}" for fact in facts) + f"\n\n    {training['command']}"


def _finetuned(training: dict[str, Any], recipe: dict[str, Any]) -> str:
    """What a training began with, and what was otherwise in the ones before than in the last one's recipe."""
    begun = training["finetuned"]
    at = f" at {training['base_revision']}" if "base_revision" in training else ""
    anew = f", but for {readable(begun['fresh'])}, which began at random" if begun["fresh"] else ""
    earlier = begun.get("training", {})
    learned = ""
    if "epochs_done" in earlier and "rows" in earlier:
        taught = (
            f", {earlier['pseudo']['rows']} of them with a network's masks" if "pseudo" in earlier else ""
        )
        seen = f" of {_seen(earlier['settings'])}" if earlier.get("settings", {}).get("size") else ""
        differs = {k: v for k, v in earlier.get("recipe", {}).items() if recipe.get(k, v) != v}
        otherwise = f"; {readable(differs)}" if differs else ""
        learned = (
            f" ({earlier['epochs_done']} epochs{seen} on {earlier['rows']} rows of {earlier['dataset']}"
            f"{taught}{otherwise})"
        )
    if "finetuned" in earlier:
        learned += f", which was {_finetuned(earlier, recipe)}"
    return f"begun with the weights of {begun['model']}{at}{learned}{anew}"


def _learned_the_dark(training: dict[str, Any]) -> bool:
    """Whether a training, or one whose weights it began with, was with --corruptions."""
    while training:
        if training.get("recipe", {}).get("augment") == "corrupted":
            return True
        training = training.get("finetuned", {}).get("training", {})
    return False


def _architecture(model: nn.Module) -> str:
    arguments = "\n".join(f"- {key}: {readable(value)}" for key, value in model.config.arguments.items())
    if model.genotype is None:
        return arguments
    return f"Genotype `{model.genotype.id}` (genotype.json).\n\n{arguments}{_found_by(model.genotype)}"


def _found_by(genotype: searchseg.Genotype) -> str:
    known = {key: value for key, value in genotype.search.items() if value is not None}
    return f"\n\nFound by: {readable(known)}." if known else ""


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


def _side(size: int | list[int]) -> str:
    return (
        str(size) if isinstance(size, int) else f"{size[1]}x{size[0]}"
    )  # width first, as everywhere in a card
