"""The systems of a table, each trained from every seed by one recipe, its epoch chosen on validation rows and
its test rows read once."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from searchseg.baselines import BASELINES, TITLES
from searchseg.baselines.setr import DECODERS
from searchseg.genotype import Genotype
from searchseg.pretrained import WEIGHTS, PretrainedError
from searchseg.task import Task
from training.files import write_atomically
from training.loop import SAVE_SECONDS
from training.networks import baseline, searchnet
from training.presets import Recipe, RetrainSettings
from training.table_scores import Origin, TableRows, provenance, score
from training.trainer import retrain

PAPER_SYSTEMS = ("searchnet", "unet", "fpn", "deeplabv3", "unetplusplus", "setr")
RESULT = "metrics.json"


class CannotBuild(Exception):
    """A network that some process could not build or fetch."""


@dataclasses.dataclass(frozen=True)
class System:
    """A network by name: ARCHITECTURE, ARCHITECTURE@ENCODER, SETR with another decoder as setr-mla, or a UNet
    that begins with another width as unet-8."""

    name: str

    def __post_init__(self) -> None:
        known = ("searchnet", *BASELINES, *(f"setr-{decoder}" for decoder in DECODERS if decoder != "pup"))
        found = self._base in known or re.fullmatch(r"unet-[1-9]\d{0,3}", self._base)
        alone = self.architecture in ("searchnet", "unet")
        if not found or self.name.endswith("@") or (self.encoder and alone):
            raise ValueError(
                f"no system {self.name!r}: choose from {', '.join(known)}, unet-WIDTH, or like fpn@ENCODER"
            )

    @property
    def _base(self) -> str:
        return self.name.partition("@")[0]

    @property
    def architecture(self) -> str:
        """As in config.json."""
        return self._base.partition("-")[0]

    @property
    def encoder(self) -> str | None:
        return self.name.partition("@")[2] or None

    @property
    def _variant(self) -> str:
        """The decoder of a SETR or the first width of a UNet; empty where the name says none."""
        return self._base.partition("-")[2]

    @property
    def title(self) -> str:
        """What a reader calls it."""
        title = TITLES[self.architecture] + (f"-{self._variant.upper()}" if self._variant else "")
        return title + (f" ({self.encoder})" if self.encoder else "")

    def build(
        self, settings: RetrainSettings, task: Task, genotype: Genotype, encoder_weights: bool = False
    ) -> nn.Module:
        """The network with fresh weights, or with the encoder's ImageNet weights where it has one.

        Raises PretrainedError for an encoder that does not fit.
        """
        if self.architecture == "searchnet":
            return searchnet(genotype, settings, task)
        if self.architecture == "unet":
            width = int(self._variant or settings.unet_widths[0])
            widths = tuple(width * 2**level for level in range(len(settings.unet_widths)))
            own = dataclasses.replace(settings, unet_widths=widths if self._variant else settings.unet_widths)
            return baseline("unet", own, task, self.encoder)
        decoder = {"decoder": self._variant} if self._variant else {}
        return baseline(
            self.architecture, settings, task, self.encoder, pretrained=encoder_weights, **decoder
        )


def run_system(
    name: str, seed: int, build: Callable[[], nn.Module], settings: RetrainSettings, recipe: Recipe,
    task: Task, rows: TableRows, origin: Origin, out: Path, accelerator: Accelerator, flip: bool = False,
    save_seconds: float = SAVE_SECONDS,
) -> None:  # fmt: skip
    """Train and score one network from one seed in `out` / "NAME-seedS", unless that was done before.

    What it leaves there is a run folder: the model of the chosen epoch with its metrics.json. `flip` also
    scores the average with the mirrored pictures, apart. Raises CannotBuild, in all processes.
    """
    folder = out / f"{name}-seed{seed}"
    if not (folder / RESULT).exists():
        torch.manual_seed(seed)
        model = _built(build, accelerator)
        retrain(
            model, settings, recipe, task, rows.learning, folder, accelerator, seed=seed,
            held_out=rows.validation, keep_best=True, save_seconds=save_seconds,
        )  # fmt: skip
        if rows.test is not None:
            scores = score(_chosen(folder), folder, task, rows, accelerator.device, flip)
            record = {
                "system": name,
                "seed": seed,
                **scores,
                **provenance(folder, task, rows, origin, recipe, seed, accelerator.num_processes),
            }
            _keep_chosen(folder)
            write_atomically(folder / RESULT, json.dumps(record, indent=2) + "\n")
        accelerator.wait_for_everyone()


def _built(build: Callable[[], nn.Module], accelerator: Accelerator) -> nn.Module:
    model, told = None, ""
    try:
        model = build()
    except (PretrainedError, ValueError, OSError) as error:
        told = str(error)
    failed = torch.tensor(float(model is None), device=accelerator.device)
    if accelerator.reduce(failed, "sum").item() or model is None:
        raise CannotBuild(told or "another process could not build it")
    return model


def _chosen(folder: Path) -> Path:
    """Where the model of the chosen epoch lies: apart while it may still be exchanged for a better one."""
    return folder / "best" if (folder / "best").exists() else folder


def _keep_chosen(folder: Path) -> None:
    """Let the model of the chosen epoch be that of the run folder."""
    chosen = _chosen(folder)
    if chosen != folder:
        os.replace(chosen / WEIGHTS, folder / WEIGHTS)
        shutil.rmtree(chosen)
