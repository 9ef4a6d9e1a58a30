"""Copy what others need of a run into a folder to ship: model, record, curves and the search behind it.

The weights are loaded strictly and written again, with --half as float16; checkpoints stay behind.

example:
  python -m hub.pack runs/net hub/models/searchnet-pet --search runs/found --half
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import searchseg
from searchseg.pretrained import PretrainedError

RECORD = ("settings.json", "history.jsonl", "loss.png", "miou.png")
SEARCH = (
    "settings.json",
    "history.jsonl",
    "search/alpha.jsonl",
    "search/genotype.jsonl",
    "report.md",
    "search/loss.png",
    "search/miou.png",
    "search/entropy.png",
    "search/skips.png",
    "search/eigenvalue.png",
    "search/expected_cost.png",
    "search/alpha.svg",
    "search/film.svg",
)


def pack(run: Path, out: Path, search: Path | None = None, half: bool = False) -> list[Path]:
    """Fill `out`, new or empty, and return its files; the record of the search goes into `out`/search.

    Raises PretrainedError when `run` holds no model, or `search` is not the search of its genotype.
    """
    if out.exists() and any(out.iterdir()):
        raise PretrainedError(f"{out} is not empty: remove it first, or choose another folder")
    model = searchseg.from_pretrained(run)
    if search is not None:
        _check_search(search, model.genotype)
    searchseg.save_pretrained(model, out, half=half)
    _copy(run, RECORD, out)
    if search is not None:
        _copy(search, SEARCH, out / "search")
    return sorted(path for path in out.rglob("*") if path.is_file())


def _check_search(search: Path, genotype: searchseg.Genotype | None) -> None:
    path = search / "genotype.json"
    if not path.is_file():
        raise PretrainedError(f"{search} holds no search: it has no genotype.json")
    found = searchseg.Genotype.from_json(path.read_text())
    if genotype is None or found.id != genotype.id:
        wanted = genotype.id if genotype else "none"
        raise PretrainedError(f"{search} found genotype {found.id}, the model has {wanted}")


def _copy(source: Path, names: tuple[str, ...], target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / Path(name).name)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m hub.pack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run folder of training.retrain")
    parser.add_argument("out", type=Path, help="folder to fill, new or empty")
    parser.add_argument("--search", type=Path, help="run folder of the search that found the genotype")
    parser.add_argument("--half", action="store_true", help="store the weights as float16")
    args = parser.parse_args(argv)
    try:
        files = pack(args.run, args.out, args.search, args.half)
    except (PretrainedError, searchseg.GenotypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path in files:
        print(f"{path.stat().st_size:>12,}  {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
