"""Options of the commands that train final networks, and what they say."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from searchseg.task import TaskError
from training.options import picture_size
from training.presets import PRESETS, RECIPES, Recipe, RetrainSettings, height_width
from training.runs import SETTINGS


def add_training_options(parser: argparse.ArgumentParser, recipe: bool = True) -> Any:
    """--recipe, --size and --batch-size; returns their group."""
    group = parser.add_argument_group("training")
    if recipe:
        group.add_argument("--recipe", choices=tuple(RECIPES), default="strong", help="how to train")
    wanted = "side of square pictures, or HEIGHTxWIDTH, instead of the preset's, pixels"
    group.add_argument("--size", type=picture_size, help=wanted)
    group.add_argument("--batch-size", type=int, help="of all processes together, instead of the preset's")
    return group


def crop_of(args: argparse.Namespace, recipe: Recipe, settings: RetrainSettings) -> tuple[int, int] | None:
    """What --crop says; TaskError where it does not fit."""
    if args.crop is None:
        return None
    height, width = height_width(args.crop)
    if recipe.augment != "strong":
        raise TaskError(f"--crop goes with --recipe strong: {args.recipe} shows whole pictures")
    if height > settings.shape[0] or width > settings.shape[1]:
        whole = "x".join(map(str, settings.shape))
        raise TaskError(f"--crop {height}x{width} is larger than the picture, {whole}")
    return height, width


def recipe_of_run(args: argparse.Namespace, lr: float | None = None) -> Recipe:
    """The recipe that --recipe names, at another rate where `lr` is given; of a run that is continued the one
    that it began with."""
    recipe, path = RECIPES[args.recipe], args.out / SETTINGS
    recipe = dataclasses.replace(recipe, lr=lr or recipe.lr)
    if not args.resume or not path.is_file():
        return recipe
    kept = json.loads(path.read_text()).get("recipe")  # runs before it was on record did not balance classes
    return Recipe(**{"balance": False, **kept}) if kept else dataclasses.replace(recipe, balance=False)


def retrain_settings(args: argparse.Namespace) -> RetrainSettings:
    """Those of the preset, with what the options change."""
    size = None if args.size is None else args.size if isinstance(args.size, int) else tuple(args.size)
    given = {"epochs": args.epochs, "size": size, "batch_size": args.batch_size}
    if args.batch_size is not None and args.batch_size < 1:
        raise TaskError(f"--batch-size must be at least 1, got {args.batch_size}")
    return dataclasses.replace(PRESETS[args.preset].retrain, **{k: v for k, v in given.items() if v})
