"""The networks that a training begins with: fresh ones of a genotype or a baseline, or a trained one."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from searchseg.baselines import BASELINES
from searchseg.baselines.encoder import input_statistics
from searchseg.config import ModelConfig
from searchseg.download import DownloadError, find_snapshot
from searchseg.genotype import Genotype
from searchseg.network import UShapeConfig, config_arguments
from searchseg.pretrained import (
    ARCHITECTURES,
    GENOTYPE,
    MAX_TEXT_BYTES,
    PretrainedError,
    arguments_of,
    build,
    from_pretrained,
)
from searchseg.task import IGNORE, Task
from training.options import dataset_name
from training.presets import RetrainSettings
from training.runs import SETTINGS

# of an earlier training, in the record of one that begins with its weights
TOLD = (
    "dataset",
    "revision",
    "rows",
    "settings",
    "recipe",
    "epochs_done",
    "minutes",
    "machine",
    "base_model",
    "pseudo",
    "finetuned",
)


def searchnet(genotype: Genotype, settings: RetrainSettings, task: Task) -> nn.Module:
    """The SEARCH-Net of `genotype` at the widths of `settings`, with fresh weights and its ModelConfig."""
    shape = UShapeConfig(settings.widths, genotype.nodes, settings.stem_stride, len(task.classes))
    config = ModelConfig("searchnet", config_arguments(shape), task.classes, task.colors, settings.shape)
    return build(config, genotype)


def baseline(
    architecture: str,
    settings: RetrainSettings,
    task: Task,
    encoder: str | None = None,
    pretrained: bool = False,
    **choices: Any,
) -> nn.Module:
    """A network that a SEARCH-Net of `settings` is held against, with fresh weights and its ModelConfig.

    `encoder` and `pretrained` (ImageNet weights in it) are for architectures that stand on one; `choices`
    are further arguments of the architecture. Raises PretrainedError for an encoder that does not fit.
    """
    arguments: dict[str, Any] = {"num_classes": len(task.classes), **choices}
    if architecture == "unet":
        if encoder or pretrained:
            raise PretrainedError("unet has no encoder to choose: leave out --encoder and --encoder-weights")
        arguments["widths"] = list(settings.unet_widths)
    elif encoder:
        arguments["encoder"] = encoder
    config = ModelConfig(architecture, arguments, task.classes, task.colors, settings.shape)
    model = build(config)
    # its defaults too: what is saved must not depend on those of a later version
    full = dataclasses.replace(config, arguments=arguments_of(model))
    model.config = full  # type: ignore[assignment]
    if pretrained:
        model.load_state_dict(BASELINES[architecture](**full.arguments, pretrained=True).state_dict())
        mean, std = input_statistics(full.arguments["encoder"])
        model.config = dataclasses.replace(full, image_mean=mean, image_std=std)  # type: ignore[assignment]
    return model


def genotype_of(source: str) -> tuple[Genotype, dict[str, str]]:
    """The genotype in a file, or in a Hub repository ("user/name"), and then its origin for the record.

    FileNotFoundError, GenotypeError or PretrainedError when there is none.
    """
    if Path(source).exists() or source.endswith(".json"):
        return read_genotype(source), {}
    try:
        snapshot = find_snapshot(source, name=GENOTYPE)
        snapshot.fetch(GENOTYPE, MAX_TEXT_BYTES)
    except DownloadError as error:
        raise PretrainedError(str(error)) from error
    snapshot.remember()
    return read_genotype(snapshot.folder / GENOTYPE), {
        "base_model": source,
        "base_revision": snapshot.commit,
    }


def read_genotype(path: str | Path) -> Genotype:
    """The genotype in a file; FileNotFoundError or GenotypeError when there is none."""
    return Genotype.from_json(Path(path).read_bytes())


def begun_with(
    source: str, task: Task, size: tuple[int, int] | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """The model in the folder or Hub repository `source`, for a task and a picture size (by default its
    own), and its origin for the record.

    What follows from the classes (the last layer, as a rule) is fresh where the classes are others. Raises
    PretrainedError when there is no such model.
    """
    model = from_pretrained(source)
    before, commit = model.config, model.commit
    config = dataclasses.replace(
        before, classes=task.classes, colors=task.colors, image_size=size or before.image_size,
        arguments={**before.arguments, "num_classes": len(task.classes)}, ignore_index=IGNORE,
    )  # fmt: skip
    fresh: list[str] = []
    if before.classes != config.classes:
        model, fresh = _with_other_classes(model, config)
    model.config, model.commit = config, None  # type: ignore[assignment]
    folder = os.path.isdir(source)
    begun = {"model": dataset_name(source) if folder else source, "fresh": fresh}
    told = training_of(Path(source)) if folder else {}
    origin: dict[str, Any] = {"finetuned": begun | ({"training": told} if told else {})}
    if commit:
        origin |= {"base_model": source, "base_revision": commit}
    return model.train(), origin


def training_of(folder: Path) -> dict[str, Any]:
    """What the record of a folder's model says about its training and may be told to others: no command and
    no path; empty where there is no record. The folder need not be kept beside the new model."""
    for name, place in (("metrics.json", "training"), (SETTINGS, None)):  # the first has minutes too
        try:
            document = json.loads((folder / name).read_text())
            record = document[place] if place else document
            return {key: record[key] for key in TOLD if key in record}
        except (OSError, ValueError, TypeError, LookupError):  # no record, or none that can be read
            continue
    return {}


def _with_other_classes(model: nn.Module, config: ModelConfig) -> tuple[nn.Module, list[str]]:
    """A network for the classes of `config` with the tensors of `model`, and the names of those it has not:
    all whose shape follows from the number of classes, since equally many classes may be others too."""
    genotype: Any = model.genotype
    fresh, count = build(config, genotype), len(config.classes)
    with torch.device("meta"):  # shapes alone
        another = {**config.arguments, "num_classes": count - 1 if count > 2 else count + 1}
        shapes = {
            n: t.shape for n, t in ARCHITECTURES[config.architecture](another, genotype).state_dict().items()
        }
    tensors = fresh.state_dict()
    anew = [name for name, tensor in tensors.items() if shapes[name] != tensor.shape]
    kept = {name: tensor for name, tensor in model.state_dict().items() if name not in anew}
    fresh.load_state_dict(tensors | kept)
    return fresh, anew
