"""Options of the commands that train final networks, and what they say."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from searchseg.task import TaskError
from training.options import picture_size
from training.presets import PRESETS, RECIPES, Recipe, RetrainSettings, Size, height_width
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


def cropped(settings: RetrainSettings, crop: Size | None, recipe: Recipe) -> RetrainSettings:
    """The settings with what --crop says; TaskError where it does not fit."""
    if crop is None:
        return settings
    if recipe.augment == "none":
        raise TaskError("--crop goes with --recipe strong: the other one shows whole pictures")
    try:
        return dataclasses.replace(settings, crop=height_width(crop))
    except ValueError as error:
        raise TaskError(f"--crop: {error}") from error


def recipe_of_run(args: argparse.Namespace, **changes: Any) -> Recipe:
    """The recipe that --recipe names with `changes` of its fields; of a run that is continued the one that it
    began with."""
    recipe, path = dataclasses.replace(RECIPES[args.recipe], **changes), args.out / SETTINGS
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
