"""Segment every picture of a dataset; the masks become a dataset of their own, row by row.

The rows of each split are cut into shards, and the masks of each shard become one file in one step. After a
stop, --resume skips the shards that are done, with any number of processes: neither the cut nor the masks
depend on it. A picture that cannot be used has no mask, but the reason in the column `error`.

examples:
  python -m training.segment --data me/photos --model me/net --out runs/masks
  accelerate launch --multi_gpu --num_processes 2 -m training.segment --cpu --data photos --model me/net
    --out runs/masks   (two processes on a CPU)
  accelerate launch --multi_gpu --num_processes 4 -m training.segment --resume runs/masks
    --push-to-hub me/masks
  python -m training.segment --data me/photos --model me/net --sure 0.9 --with-image --out runs/pseudo
    (then python -m training.retrain --pseudo runs/pseudo ... learns from them)

what it leaves in --out: README.md and data/*.parquet, which datasets.load_dataset(OUT) opens, with columns
  row     number of the row in its split of the source
  name    what the source calls the picture, if anything
  mask    8-bit grey PNG of the upright picture's size; the value of a pixel is the id of its class, or with
          --sure 255 where the network doubts
  shares  parts of the picture, 0 to 1, that the classes cover, by id
  error   why there is no mask
and with --with-image the picture, its bytes as they were.

exit status: 0 all pictures are done; 1 some have no mask, or the data, the model or the upload is at fault;
2 wrong arguments; 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HTTPError
from tqdm import tqdm

from hub.remote import PublishError, explained
from searchseg.segmenter import Segmenter
from searchseg.task import TaskError
from training.dataset_folder import OutputError, hub_id, push
from training.files import write_atomically
from training.mask_card import MARK, mask_card
from training.mask_shards import PictureColumns, Shard, cut, features
from training.options import Manual, dataset_name
from training.rows import load_rows
from training.runs import SETTINGS, parse, perform, record_settings

FAULTS_SHOWN = 20
LONGEST_WAIT = timedelta(days=7)  # of one process for another; by default they give up after 10 minutes


def run(args: argparse.Namespace, accelerator: Accelerator, command: str) -> None:
    """Segment what is left, describe and publish it; TaskError at the end when pictures have no mask."""
    begun = contents_of(args.out)
    with accelerator.main_process_first():  # what one has downloaded the others find
        commit = begun["commit"] if begun else args.model_revision
        segmenter = Segmenter.from_pretrained(args.model, commit, accelerator.device)
    revision = begun["revision"] if begun else pinned_revision(args, accelerator)
    with accelerator.main_process_first():
        splits = load_splits(args, revision)
    contents = {
        "model": dataset_name(args.model), "commit": segmenter.commit, "fingerprint": segmenter.fingerprint,
        "data": dataset_name(args.data), "revision": revision,
        "rows": {split: len(rows) for split, rows in splits.items()}, "sure": args.sure,
    }  # fmt: skip
    refuse_mixture(begun, contents)
    record_settings(args, accelerator, command, contents=contents)
    folder = args.out / "data"
    shards = [s for split, rows in splits.items() for s in cut(split, len(rows), args.shard_rows, folder)]
    segment_shards(shards, splits, segmenter, accelerator, args)
    faults = {shard: found for shard in shards if (found := shard.faults())}
    if accelerator.is_main_process:
        describe(args, contents, segmenter, shards, faults)
        publish(args, shards)
    if faults:
        count, total = sum(map(len, faults.values())), sum(contents["rows"].values())
        raise TaskError(f"{count} of {total} pictures have no mask; everything else is done: {args.out}")


def contents_of(out: Path) -> dict[str, Any] | None:
    """What a run that has begun is made of, None for a new one."""
    path = out / SETTINGS
    return json.loads(path.read_text())["contents"] if path.is_file() else None


def refuse_mixture(begun: dict[str, Any] | None, contents: dict[str, Any]) -> None:
    """TaskError when a run would continue with another model or other data than it began with."""
    for key, value in contents.items() if begun else ():
        if begun.get(key, 0.0) != value:  # a run of before --sure had none
            raise TaskError(
                f"this run began with {key} {begun[key]}, which is now {value}: bring back the first, "
                "or start a new run with another --out"
            )


def pinned_revision(args: argparse.Namespace, accelerator: Accelerator) -> str | None:
    """The commit that the data's revision means now: every process, and a later resume, reads the same rows.

    None for a folder; the revision as given where the Hub does not answer.
    """
    found = [args.revision]
    if accelerator.is_main_process and not os.path.isdir(args.data):
        # offline the cache may do; if not, loading says what is wrong
        with contextlib.suppress(HTTPError, OSError, ValueError):
            found = [HfApi().dataset_info(args.data, revision=args.revision).sha]
    return broadcast_object_list(found)[0]


def load_splits(args: argparse.Namespace, revision: str | None) -> dict[str, Any]:
    """The pictures of --split, or of every split, by the name of the split that their masks get."""
    from datasets import get_dataset_split_names

    columns = PictureColumns(args.image_column, args.name_column)
    if args.split:
        splits = {re.sub(r"\W+", "_", args.split).strip("_"): args.split}
    else:
        try:
            splits = {str(name): str(name) for name in get_dataset_split_names(args.data, revision=revision)}
        except (OSError, ValueError) as error:
            raise TaskError(f"cannot read dataset {args.data!r}: {error.__cause__ or error}") from error
    return {
        name: columns.select(load_rows(args.data, split, revision, columns)) for name, split in splits.items()
    }


def segment_shards(
    shards: Sequence[Shard], splits: dict[str, Any], segmenter: Segmenter, accelerator: Accelerator,
    args: argparse.Namespace,
) -> None:  # fmt: skip
    """Write the shards that are not done, every process its share of them; all are done on return."""
    left = [shard for shard in shards if not shard.done]
    accelerator.wait_for_everyone()  # all have looked before the first shard is written
    folders = picture_folders(args.data)
    mine = left[accelerator.process_index :: accelerator.num_processes]
    alone = accelerator.num_processes == 1
    bar = tqdm(
        total=sum(map(len, mine)), desc="segment" if alone else f"segment (1 of {accelerator.num_processes})",
        unit="picture", disable=None if accelerator.is_main_process else True,
    )  # fmt: skip
    with bar:
        for shard in mine:
            shard.write(splits[shard.split], segmenter, args.batch_size, args.with_image, folders, args.sure)
            bar.update(len(shard))
    accelerator.wait_for_everyone()


def picture_folders(data: str) -> list[Path]:
    """Where files of the dataset may lie: its folder, or the places that downloads go to."""
    from datasets import config

    if os.path.isdir(data):
        return [Path(data)]
    return [Path(config.DOWNLOADED_DATASETS_PATH), Path(constants.HF_HUB_CACHE)]


def describe(
    args: argparse.Namespace, contents: dict[str, Any], segmenter: Segmenter, shards: Sequence[Shard],
    faults: dict[Shard, list[str]],
) -> None:  # fmt: skip
    """Write README.md; print what the run came to, with the first pictures that have no mask."""
    count: Counter[str] = Counter()
    for shard, found in faults.items():
        count[shard.split] += len(found)
    columns, place = list(features(args.with_image)), args.push_to_hub or args.out.resolve().name
    card = mask_card(contents, segmenter.config, columns, patterns(shards), count, place)
    write_atomically(args.out / "README.md", card)
    print(f"{args.out}: masks of {sum(contents['rows'].values()) - count.total()} pictures")
    sentences = [sentence for found in faults.values() for sentence in found]
    for sentence in sentences[:FAULTS_SHOWN]:
        print(f"  {sentence}", file=sys.stderr)
    if len(sentences) > FAULTS_SHOWN:
        print(f"  ... and {len(sentences) - FAULTS_SHOWN} more", file=sys.stderr)


def patterns(shards: Sequence[Shard]) -> dict[str, str]:
    """Each split with a pattern of its files, which those of another cut do not fit."""
    return {
        shard.split: f"data/{shard.split}-*-of-{shard.path.stem.rpartition('-')[2]}.parquet"
        for shard in shards
    }


def publish(args: argparse.Namespace, shards: Sequence[Shard]) -> None:
    """Upload the dataset to --push-to-hub, if given; PublishError when that fails."""
    if not args.push_to_hub:
        return
    files = ["README.md", *patterns(shards).values()]
    try:
        print(f"uploaded to {push(args.out, args.push_to_hub, args.private, files, MARK)}")
    except OutputError as error:
        raise PublishError(str(error)) from error
    except (HTTPError, OSError, RuntimeError) as error:
        raise explained(error, args.push_to_hub) from error


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def probability(text: str) -> float:
    try:
        if 0 <= (value := float(text)) < 1:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a probability from 0 to below 1")


def parser() -> argparse.ArgumentParser:
    """The command line; its help is the manual."""
    top = argparse.ArgumentParser("python -m training.segment", description=__doc__, formatter_class=Manual)
    data = top.add_argument_group("data")
    data.add_argument("--data", help="folder with a datasets repository or with pictures, or Hub id")
    data.add_argument("--revision", help="branch, tag or commit of the Hub dataset")
    data.add_argument("--split", help='split, or part of it ("test[:100]"); by default all splits')
    data.add_argument("--image-column", default="image", help="column of the pictures")
    data.add_argument("--name-column", help="column of their names; by default file_name, ... or id")
    model = top.add_argument_group("model")
    model.add_argument("--model", help="folder of a model, or its Hub id")
    model.add_argument("--model-revision", help="branch, tag or commit of the model on the Hub")
    model.add_argument("--batch-size", type=positive, default=8, help="pictures at once; a GPU likes more")
    model.add_argument("--cpu", action="store_true", help="stay on the CPU even where there is a GPU")
    result = top.add_argument_group("result")
    result.add_argument("--out", type=Path, help="folder of the masks, new or empty")
    result.add_argument(
        "--resume", type=Path, metavar="OUT", help="continue this folder with its own settings"
    )
    result.add_argument("--shard-rows", type=positive, help="rows a file; by default a 64th, 16 to 1000")
    result.add_argument(
        "--sure", type=probability, default=0.0, metavar="P",
        help="value 255 for pixels whose class has a probability below P, 0.9 say: for self-training",
    )  # fmt: skip
    result.add_argument("--with-image", action="store_true", help="keep the pictures beside their masks")
    result.add_argument("--push-to-hub", type=hub_id, metavar="USER/NAME", help="also upload it as a dataset")
    result.add_argument("--private", action="store_true", help="keep the uploaded dataset private")
    return top


def main(argv: list[str] | None = None) -> int:
    """The command; its exit status as `--help` lists it."""
    top = parser()
    top.set_defaults(epochs=None, mixed_precision="no")  # which the parts shared with the trainings ask for
    given = top.parse_args(argv)
    args = parse(top, argv)
    args.push_to_hub, args.private = given.push_to_hub or args.push_to_hub, given.private or args.private
    if not (args.data and args.model):
        top.error("say what to segment with --data, and by which network with --model")
    if args.push_to_hub == args.data:
        top.error(f"--push-to-hub {args.push_to_hub} is the source itself: name another dataset")
    if args.private and not args.push_to_hub:
        top.error("--private needs --push-to-hub USER/NAME")
    PartialState(cpu=args.cpu, timeout=LONGEST_WAIT)
    return perform(run, args, argv, "training.segment")


if __name__ == "__main__":
    sys.exit(main())
