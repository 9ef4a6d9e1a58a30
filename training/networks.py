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
from searchseg.task import Task
from training.options import dataset_name
from training.presets import RetrainSettings
from training.runs import SETTINGS


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


def begun_with(source: str, task: Task, size: tuple[int, int]) -> tuple[nn.Module, dict[str, Any]]:
    """The model in the folder or Hub repository `source`, for a task and a picture size, and its origin for
    the record.

    What follows from the classes (the last layer, as a rule) is fresh where the classes are others. Raises
    PretrainedError when there is no model, or none of its layers would be kept.
    """
    model = from_pretrained(source)
    before, commit = model.config, model.commit
    config = dataclasses.replace(
        before, classes=task.classes, colors=task.colors, image_size=size,
        arguments={**before.arguments, "num_classes": len(task.classes)},
    )  # fmt: skip
    fresh: list[str] = []
    if tuple(before.classes) != tuple(task.classes):
        model, fresh = _with_other_classes(model, config)
    model.config = config  # type: ignore[assignment]
    name = dataset_name(source) if os.path.isdir(source) else source
    origin = {"finetuned": {"model": name, "fresh": fresh, **_training_of(Path(source))}}
    if commit:
        origin |= {"base_model": source, "base_revision": commit}  # type: ignore[dict-item]
    return model.train(), origin


def _training_of(folder: Path) -> dict[str, Any]:
    """The record of the training that a folder's model comes from: it may not be kept beside the new one."""
    settings, metrics = folder / SETTINGS, folder / "metrics.json"
    if metrics.is_file():  # it has minutes too, and a shipped model may have it alone
        return {"training": json.loads(metrics.read_text()).get("training", {})}
    return {"training": json.loads(settings.read_text())} if settings.is_file() else {}


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
