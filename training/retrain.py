"""Train a final network by one recipe: the SEARCH-Net of a genotype or a baseline from scratch, or a trained
one further.

recipes:
  paper    Dice loss, SGD with momentum 0.9, lr 1e-3, weight decay 5e-4, no augmentation (Zhu & Ma 2023)
  strong   Dice + cross-entropy (rare classes of three or more weigh more), AdamW with warm-up and cosine,
           averaged weights (EMA), joint augmentation, the first half of the epochs at three quarters of the
           size; python -m training.ablation shows what each part brings

examples:
  python -m training.retrain --genotype runs/pet/genotype.json --data FOLDER --recipe strong --out runs/net
  python -m training.retrain --architecture unet --data FOLDER --recipe strong --out runs/unet
  python -m training.retrain --genotype me/pets --task custom --classes a,b --data me/leaves --out runs/leaves
  python -m training.retrain --finetune me/pets --lr 5e-4 --task custom --classes a,b --data me/leaves
    --out runs/leaves   (the weights of a trained model to begin with, its last layer anew for other classes)
  python -m training.retrain --finetune runs/streets --lr 1e-3 --size 360x480 --crop 180x240
    --no-class-weights --corruptions --task camvid --data FOLDER --out runs/finer
  python -m training.retrain --resume runs/net
  accelerate launch --multi_gpu --num_processes 2 -m training.retrain --cpu --architecture unet --data FOLDER
    --out runs/unet   (two processes on a CPU)

The model saved is the one after the last epoch (of the averaged weights, where the recipe has them): no
epoch is chosen, so no row needs to be kept for choosing. --hold-out 0.1 keeps a fixed tenth of the rows out
of the training and adds its loss and mIoU to the history.

what it leaves in --out: config.json, genotype.json, model.safetensors (a model that
searchseg.from_pretrained loads), history.jsonl, loss.png, miou.png, settings.json, checkpoint.pt.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from searchseg.baselines import BASELINES
from searchseg.config import ModelConfig
from searchseg.pretrained import (
    GENOTYPE,
    WEIGHTS,
    save_pretrained,
)
from searchseg.task import Task
from training.files import replace_files, write_atomically
from training.loop import CHECKPOINT
from training.networks import baseline, begun_with, genotype_of, searchnet
from training.options import Manual, add_data_options, data_of, dataset_name, picture_size, task_of
from training.presets import RECIPES, height_width
from training.pseudo import with_pseudo_masks
from training.retrain_options import add_training_options, cropped, recipe_of_run, retrain_settings
from training.runs import (
    add_memory_options,
    add_process_options,
    add_run_options,
    memory_of,
    parse,
    perform,
    push,
    record_settings,
)
from training.source import (
    add_stream_options,
    learning_rows,
)
from training.together import normalise_together
from training.trainer import retrain


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("python -m training.retrain", description=__doc__, formatter_class=Manual)
    what = top.add_argument_group("network").add_mutually_exclusive_group()
    what.add_argument("--genotype", help="genotype.json of a search, or a Hub repository, user/name")
    what.add_argument("--architecture", choices=tuple(BASELINES), help="a baseline instead")
    what.add_argument(
        "--finetune", metavar="MODEL",
        help="a trained model, folder or user/name, with its weights and its size",
    )  # fmt: skip
    add_data_options(top, split="train")
    add_stream_options(top)
    taught = top.add_argument_group("self-training")
    taught.add_argument(
        "--pseudo", metavar="MASKS",
        help="also learn from this dataset of a teacher's masks (training.segment --sure 0.9 --with-image)",
    )  # fmt: skip
    borrowed = top.add_argument_group("encoder of a baseline")
    borrowed.add_argument("--encoder", help="such as resnet18 (default: the architecture's own)")
    borrowed.add_argument("--encoder-weights", choices=("imagenet",), help="begin with these, downloaded")
    group = add_training_options(top)
    group.add_argument(
        "--crop", type=picture_size, metavar="HEIGHTxWIDTH",
        help="learn from parts of this size of pictures of --size, which --recipe strong cuts out at random: "
        "the scale of large pictures at the cost a step of small ones. Its proportions are near the "
        "picture's; a picture shows one part an epoch, so give more epochs",
    )  # fmt: skip
    group.add_argument(
        "--lr", type=float, help="instead of the recipe's rate, of which --finetune takes a quarter"
    )
    group.add_argument(
        "--no-class-weights", action="store_true",
        help="cross-entropy of the recipe strong weighs all classes alike, also rare ones of three or more",
    )  # fmt: skip
    group.add_argument(
        "--corruptions", action="store_true",
        help="the recipe strong also darkens, blurs and compresses pictures and makes them noisy, each a "
        "fifth of them: for a network that is to meet bad photos, which training.altered has more of",
    )  # fmt: skip
    group.add_argument("--hold-out", type=float, default=0.0, help="share of the rows kept out, for curves")
    add_run_options(top, "first weights, order and augmentation", precisions=("no", "fp16", "bf16"))
    add_memory_options(top)
    add_process_options(top)
    return top


def main(argv: list[str] | None = None) -> int:
    top = parser()
    args = parse(top, argv)
    if args.pseudo and args.streaming:
        top.error("--pseudo does not go with --streaming: its rows are checked and kept")
    if not args.genotype and not args.architecture and not args.finetune:
        top.error(f"give --genotype G.json, --finetune MODEL or --architecture {'|'.join(BASELINES)}")
    if (args.encoder or args.encoder_weights) and not args.architecture:
        top.error("--encoder and --encoder-weights go with --architecture alone")
    if args.lr is not None and not 0 < args.lr < math.inf:
        top.error(f"--lr must be a positive number, got {args.lr}")
    if args.no_class_weights and not RECIPES[args.recipe].balance:
        top.error(f"--no-class-weights: the recipe {args.recipe} has none")
    if args.corruptions and RECIPES[args.recipe].augment == "none":
        top.error(f"--corruptions: the recipe {args.recipe} does not augment")
    kept = args.out / GENOTYPE  # its own copy, which is there before anything is learned
    if args.resume and args.genotype and (kept.exists() or (args.out / CHECKPOINT).exists()):
        args.genotype = str(kept)
    return perform(_run, args, argv, "training.retrain")


def _run(args: argparse.Namespace, accelerator: Accelerator, command: str) -> None:
    task = task_of(args)
    data, revision = data_of(args, task)
    changes: dict[str, Any] = {"balance": False} if args.no_class_weights else {}
    if args.corruptions:
        changes["augment"] = "corrupted"
    if args.lr or args.finetune:
        changes["lr"] = args.lr or RECIPES[args.recipe].lr / 4
    settings, recipe = retrain_settings(args), recipe_of_run(args, **changes)
    torch.manual_seed(args.seed)
    found, origin = genotype_of(args.genotype) if args.genotype else (None, {})
    if args.finetune:
        model, origin = _trained(args, task, accelerator)
        settings = dataclasses.replace(settings, size=model.config.image_size)  # type: ignore[arg-type]
    elif found:
        model = searchnet(found, settings, task)
    else:
        model = baseline(args.architecture, settings, task, args.encoder, bool(args.encoder_weights))
    settings = cropped(settings, args.crop, recipe)
    stated = dataclasses.asdict(settings)
    if args.finetune:  # its widths are those of the model
        stated = {name: stated[name] for name in ("size", "crop", "epochs", "batch_size")}
    if args.resume and (args.out / "config.json").exists():  # what it sees must not change on the way
        kept = ModelConfig.from_json((args.out / "config.json").read_bytes())
        statistics = {"image_mean": kept.image_mean, "image_std": kept.image_std}
        model.config = dataclasses.replace(model.config, **statistics)  # type: ignore[type-var, assignment]
    rows, held_out = learning_rows(args, data, revision, task, accelerator)
    taught = {}
    if args.pseudo:
        rows = with_pseudo_masks(rows, args.pseudo, task)
        taught = {"pseudo": {"dataset": dataset_name(args.pseudo), "rows": len(rows.pseudo)}}
    record_settings(
        args, accelerator, command, settings=stated, recipe=dataclasses.asdict(recipe),
        dataset=dataset_name(data), revision=revision, rows=len(rows), **taught,
        **origin,
    )  # fmt: skip
    if accelerator.is_main_process and model.genotype is not None:
        write_atomically(args.out / GENOTYPE, model.genotype.to_json())
    if accelerator.is_main_process and args.finetune and not (args.out / WEIGHTS).exists():
        replace_files(args.out, lambda aside: save_pretrained(model, aside))  # to go on without the first one
    if args.sync_batch_norm:
        normalise_together(model)
    more = {"seed": args.seed, "held_out": held_out, "workers": args.workers}
    more |= {"save_seconds": 60 * args.save_minutes, "memory": memory_of(args)}
    retrain(model, settings, recipe, task, rows, args.out, accelerator, **more)
    accelerator.print(f"model in {args.out}")
    push(args, accelerator)
    accelerator.print(
        f"next: python -m training.evaluate {args.out} --task {task.name} --data {data} --split test"
    )


def _trained(
    args: argparse.Namespace, task: Task, accelerator: Accelerator
) -> tuple[nn.Module, dict[str, Any]]:
    """The model that --finetune begins with, or the copy of it that a run keeps, and its origin."""
    source = str(args.out) if (args.out / WEIGHTS).exists() else args.finetune
    size = None if args.size is None else height_width(args.size)
    with accelerator.main_process_first():  # the others find it in the cache
        model, origin = begun_with(source, task, size)
    if fresh := origin["finetuned"]["fresh"]:
        accelerator.print(f"begin anew, for {', '.join(task.classes)}: {', '.join(fresh)}")
    return model, origin


if __name__ == "__main__":
    sys.exit(main())
