"""Segment picture files and whole folders of them.

examples:
  python -m searchseg.segment photo.jpg --model me/net --out masks
  python -m searchseg.segment photo.jpg holidays/ --model hub/models/searchnet-pet --out masks --cutout

what it writes: for every picture a mask, an 8-bit grey PNG of the upright picture's size. The value of a
pixel is the id of its class, so the mask looks black: --overlay is for looking at. Names say what they were
made from, and folders keep their structure, as `cp -r` would copy them:
  photo.jpg            masks/photo.jpg.mask.png
  holidays/day1/a.png  masks/holidays/day1/a.png.mask.png
Beside each mask: a.png.overlay.png with --overlay, a.png.cutout.png with --cutout, a.png.json with --json.

what it reads: every file that is named; of a folder, and of the folders in it, every file that ends in .jpg,
.jpeg, .png, .webp, .bmp or .gif, in sorted order, except hidden ones and what lies in --out.

after a stop, run the same command again: every file is there whole or not at all, and what is there is kept.
Results know the model that made them; those of another model are replaced only with --overwrite. The mask
of a picture that was changed since is kept as well: --overwrite makes everything anew.

Pictures that cannot be used are listed at the end, with the reason; all others are done then.

A private model on the Hub needs the variable HF_TOKEN, or `hf auth login`.

exit status: 0 all pictures are done, 1 some are not (or the model cannot be loaded), 2 wrong arguments,
130 stopped with Ctrl-C.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image, PngImagePlugin
from tqdm import tqdm

from searchseg.images import ImageError
from searchseg.onnx import OnnxError
from searchseg.pretrained import PretrainedError
from searchseg.segmenter import BACKENDS, Segmentation, Segmenter, png_options

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
MODEL = "model"  # under this key every result holds the fingerprint of the network that made it
OTHER_MODEL = "There is a result of another model already. Choose another --out, or give --overwrite."
MOST_WORKERS = 8  # each holds a picture, up to 40 megapixels


class NameClash(ValueError):
    """Two different files whose results would have one name."""


@dataclass(frozen=True)
class Picture:
    """A picture file, and the path below --out that the names of its results begin with."""

    path: Path
    name: Path


@dataclass
class Outcome:
    """What became of the pictures: counts, and a sentence for each that is not done."""

    written: int = 0
    kept: int = 0
    faults: list[tuple[Path, str]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)  # by ending: other files in the folders


def find_pictures(inputs: Sequence[Path], out: Path, outcome: Outcome) -> list[Picture]:
    """The pictures that `inputs` name, each once; folders in sorted order, without `out`.

    Raises NameClash.
    """
    found: dict[str, Picture] = {}
    for path in inputs:
        name = Path(path.name if path.name not in ("", "..") else os.path.basename(os.path.realpath(path)))
        for picture in _walk(path, name, out, outcome) if os.path.isdir(path) else [Picture(path, name)]:
            first = found.setdefault(os.path.normcase(picture.name), picture)
            if not _same(first.path, picture.path):
                raise NameClash(
                    f"{shown(first.path)} and {shown(picture.path)} would have results of one name: "
                    "segment them one after the other, each with an --out of its own"
                )
    return list(found.values())


def _walk(folder: Path, name: Path, out: Path, outcome: Outcome) -> Iterator[Picture]:
    def unreadable(error: OSError) -> None:
        outcome.faults.append((Path(error.filename), "This folder cannot be read. Check its permissions."))

    for here, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and not _same(Path(here, f), out))
        for path in (Path(here, file) for file in sorted(files) if not file.startswith(".")):
            if path.suffix.lower() in SUFFIXES:
                yield Picture(path, name / path.relative_to(folder))
            else:
                outcome.left_out[path.suffix.lower() or "none"] += 1


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def segment_files(
    segmenter: Segmenter,
    pictures: Sequence[Picture],
    out: Path,
    kinds: Sequence[str],
    outcome: Outcome,
    overwrite: bool = False,
    workers: int = 1,
) -> None:
    """Write the results `kinds` (see RESULTS) of every picture; a fault of one of them goes to `outcome`.

    `workers` pictures are under way at a time, in a thread each: while one is read or written, another one is
    computed. Whatever stops this, Ctrl-C too, waits until they are done and begins no others.
    """
    model = segmenter.fingerprint  # before the threads, which would all compute it

    def segment(picture: Picture) -> bool:
        paths = {kind: out / picture.name.with_name(picture.name.name + RESULTS[kind][0]) for kind in kinds}
        missing = list(kinds) if overwrite else _missing(paths, model)
        if missing:
            result = segmenter(picture.path)
            for kind in missing:
                write_atomically(paths[kind], RESULTS[kind][1](result, model))
        return bool(missing)

    noted = 0
    with ThreadPoolExecutor(workers) as pool:
        tasks = [(picture, pool.submit(segment, picture)) for picture in pictures]
        try:
            for picture, task in tqdm(tasks, desc="segment", unit="picture", disable=None):
                _note(outcome, picture.path, task.result)
                noted += 1
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            for picture, task in tasks[noted:]:  # none, unless stopped
                if not task.cancelled():
                    _note(outcome, picture.path, task.result)


def _note(outcome: Outcome, path: Path, result: Callable[[], bool]) -> None:
    try:
        if result():
            outcome.written += 1
        else:
            outcome.kept += 1
    except ImageError as error:
        outcome.faults.append((path, str(error)))
    except MemoryError:
        outcome.faults.append((path, "There is too little memory. Make it smaller and retry."))
    except OSError as error:
        outcome.faults.append((path, f"Its results cannot be written: {error.strerror}."))


@contextmanager
def shared_processor() -> Iterator[int]:
    """How many pictures to have under way, with the threads of torch divided among them until the end.

    Pictures side by side, one thread each, cost less than one after the other on all of them: no thread waits
    for another at the end of every layer.
    """
    threads = torch.get_num_threads()
    workers = min(threads, MOST_WORKERS)
    torch.set_num_threads(threads // workers)
    try:
        yield workers
    finally:
        torch.set_num_threads(threads)


def _missing(paths: Mapping[str, Path], model: str) -> list[str]:
    """The kinds of results that are not there yet; ImageError when one is there that `model` did not make."""
    there = {kind for kind, path in paths.items() if os.path.lexists(path)}
    if any(model_of(paths[kind]) != model for kind in there):
        raise ImageError(OTHER_MODEL)
    return [kind for kind in paths if kind not in there]


def model_of(result: Path) -> str | None:
    """The fingerprint of the network that made a result; None when the file does not say."""
    try:
        if result.suffix == ".json":
            return json.loads(result.read_bytes())[MODEL]
        with Image.open(result, formats=("PNG",)) as image:
            return image.info.get(MODEL)
    except (OSError, ValueError, TypeError, KeyError, SyntaxError, Image.DecompressionBombError):
        return None


def _png(image: Image.Image, model: str) -> bytes:
    text, file = PngImagePlugin.PngInfo(), io.BytesIO()
    text.add_text(MODEL, model)
    image.save(file, "PNG", pnginfo=text, **png_options(image))
    return file.getvalue()


def _json(result: Segmentation, model: str) -> bytes:
    return json.dumps({**json.loads(result.to_json()), MODEL: model}).encode() + b"\n"


# Ending and content. A name with one of the endings has no other one: results of two pictures never meet.
RESULTS: dict[str, tuple[str, Callable[[Segmentation, str], bytes]]] = {
    "mask": (".mask.png", lambda result, model: _png(result.mask_image(), model)),
    "overlay": (".overlay.png", lambda result, model: _png(result.overlay(), model)),
    "cutout": (".cutout.png", lambda result, model: _png(result.cutout(), model)),
    "json": (".json", _json),
}


def write_atomically(path: Path, content: bytes) -> None:
    """Let `path` appear whole or not at all, also when the program or the machine stops in between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # of its own: threads and commands may share a folder
    partial = path.with_name(f".{os.getpid()}-{threading.get_native_id()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def shown(path: Path) -> str:
    """A path as a terminal can show it: a name may hold any byte."""
    return str(path) if str(path).isprintable() else ascii(str(path))


def report(outcome: Outcome, out: Path) -> int:
    """Print what became of the pictures; the exit status."""
    if outcome.left_out:
        endings = ", ".join(f"{ending} ({count})" for ending, count in outcome.left_out.most_common(5))
        print(f"left out of the folders, by ending: {endings}", file=sys.stderr)
    for path, sentence in outcome.faults:
        print(f"{shown(path)}: {sentence}", file=sys.stderr)
    parts = [f"{outcome.written} segmented"]
    parts += [f"{outcome.kept} were there already"] if outcome.kept else []
    parts += [f"{len(outcome.faults)} not done, listed above"] if outcome.faults else []
    print(f"{shown(out)}: {', '.join(parts)}")
    return 1 if outcome.faults else 0


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # unknown, not in this machine, not in this build
        raise argparse.ArgumentTypeError(f"{text!r}: {str(error).splitlines()[0]}") from error
    return device


def parser() -> argparse.ArgumentParser:
    """The command line; its help is the manual."""
    manual = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser("python -m searchseg.segment", description=__doc__, formatter_class=manual)
    top.add_argument(
        "inputs", type=Path, nargs="+", metavar="PICTURE", help="picture file, or folder of them"
    )
    top.add_argument("--model", required=True, help="folder of a model, or its Hub id")
    top.add_argument("--revision", help="branch, tag or commit of the model on the Hub (default: main)")
    top.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the results go")
    top.add_argument("--overlay", action="store_true", help="also the picture under its classes' colours")
    top.add_argument("--cutout", action="store_true", help="also the picture without its background")
    top.add_argument(
        "--json", action="store_true", help="also size, classes, and their shares of the picture"
    )
    top.add_argument("--overwrite", action="store_true", help="make anew what is there already")
    top.add_argument(
        "--backend", choices=BACKENDS, default=BACKENDS[0],
        help="onnxruntime, where it is installed: starts later, then computes faster on a CPU",
    )  # fmt: skip
    top.add_argument("--device", type=_device, help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    return top


def main(argv: list[str] | None = None) -> int:
    """The command; its exit status as `--help` lists it."""
    top, outcome = parser(), Outcome()
    args = top.parse_args(argv)
    if os.path.exists(args.out) and not os.path.isdir(args.out):
        top.error(f"{shown(args.out)} is a file: choose another --out")
    if args.backend == "onnxruntime" and args.device is not None and args.device.type != "cpu":
        top.error("--backend onnxruntime runs on the CPU: leave --device out, or give --device cpu")
    if any(_same(path, args.out) for path in args.inputs):
        top.error(f"{shown(args.out)} is where the pictures are: choose another --out")
    kinds = ["mask", *(kind for kind in ("overlay", "cutout", "json") if getattr(args, kind))]
    try:
        pictures = find_pictures(args.inputs, args.out, outcome)
        if not pictures and not outcome.faults:
            outcome.faults.append((args.inputs[0], f"There is no file that ends in {', '.join(SUFFIXES)}."))
        with shared_processor() as workers:
            segmenter = Segmenter.from_pretrained(
                args.model, args.revision, args.device, backend=args.backend
            )
            segment_files(segmenter, pictures, args.out, kinds, outcome, args.overwrite, workers)
    except (PretrainedError, OnnxError) as error:
        print(f"error: {args.model}: {error}", file=sys.stderr)
        return 1
    except NameClash as error:
        top.error(str(error))
    except KeyboardInterrupt:
        report(outcome, args.out)
        print("stopped; run the same command again to continue", file=sys.stderr)
        return 130
    return report(outcome, args.out)


if __name__ == "__main__":
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # a plain `kill`, too, leaves nothing half written
    sys.exit(main())
