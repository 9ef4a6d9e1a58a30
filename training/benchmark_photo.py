"""Everything around the network: a photo from bytes to the PNG of its mask by steps, and folders of photos.

The photos are drawn here: smooth colours with the noise of a camera, as JPEG of quality 90. A folder is read
and written by `python -m searchseg.segment` in a process of its own; the rate of the bare network beside it
is that of Segmenter's network alone.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from searchseg.segmenter import BACKENDS, Segmentation, Segmenter, class_ids, png_bytes
from training.benchmark_segment import SHIPPED, folders
from training.files import write_atomically
from training.options import machine
from training.timing import between_marks

ROOT = Path(__file__).parent.parent
PHONE, CAMERA, SMALL = (4000, 3000), (1024, 768), (256, 192)
STEPS = ("decode", "resize", "network", "upsample", "mask PNG")
EXTRAS = ("decode whole", "overlay", "overlay PNG", "cutout", "cutout PNG")


def add_photo_options(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m training.benchmark photo`."""
    parser.add_argument(
        "--models", type=Path, nargs="+", default=[SHIPPED], help="model folders, or folders of them"
    )
    parser.add_argument("--runs", type=int, default=20, help="timed photos of each size")
    parser.add_argument("--folder", type=int, default=0, metavar="N", help="also a folder of N photos")
    parser.add_argument("--backend", choices=BACKENDS, default="torch", help="what runs the network")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--into", type=Path, help="Markdown file with marks for the tables")


def photo(width: int, height: int, seed: int) -> bytes:
    """A drawn photo as JPEG."""
    random = np.random.default_rng(seed)
    blocks = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8))
    smooth = np.asarray(blocks.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noisy = np.clip(smooth + random.integers(-6, 7, smooth.shape, np.int16), 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noisy).save(stream, "JPEG", quality=90)
    return stream.getvalue()


@torch.inference_mode()
def steps(segmenter: Segmenter, data: bytes) -> dict[str, float]:
    """Seconds of each step that Segmenter and the page take with a photo; "decode whole" is what a picture
    costs beside its mask, nothing where it was small enough to be decoded whole for the network."""
    seconds: dict[str, float] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        answer = call()
        seconds[name] = time.perf_counter() - began
        return answer

    config = segmenter.config
    small, (width, height), whole = timed("decode", lambda: segmenter._read(data))
    batch = timed("resize", lambda: config.tensor(small)[None].to(memory_format=torch.channels_last))
    (scores,) = timed("network", lambda: segmenter._faster(batch))
    mask = timed("upsample", lambda: class_ids(scores, height, width))
    result = Segmentation(whole, mask, config.classes, config.colors, 0)
    timed("mask PNG", lambda: png_bytes(result.mask_image()))
    timed("decode whole", lambda: result.image)
    overlay = timed("overlay", result.overlay)
    timed("overlay PNG", lambda: png_bytes(overlay))
    cutout = timed("cutout", result.cutout)
    timed("cutout PNG", lambda: png_bytes(cutout))
    return seconds


def benchmark_photo(args: argparse.Namespace) -> None:
    """A photo from bytes to mask, step by step; with --folder N also N of them through the command."""
    document: dict[str, Any] = {"machine": machine(), "backend": args.backend, "runs": args.runs}
    document |= {"photos": [], "folders": []}
    for folder in folders(args.models):
        segmenter = Segmenter.from_pretrained(folder, device="cpu", backend=args.backend)
        for size in (SMALL, CAMERA, PHONE):
            data = photo(*size, seed=0)
            timed = [steps(segmenter, data) for _ in range(args.runs + 2)]
            medians = {name: statistics.median(t[name] for t in timed[2:]) for name in timed[0]}
            about = {"model": folder.name, "width": size[0], "height": size[1], "bytes": len(data)}
            document["photos"].append({**about, "seconds": medians, **_peak(args, folder, size)})
        if args.folder:
            document["folders"].append({"model": folder.name, **_folder(args, folder, segmenter)})
    if args.json:
        write_atomically(args.json, json.dumps(document, indent=1) + "\n")
    print(text := markdown(document))
    if args.into:
        between_marks(args.into, "photo", text)


def _peak(args: argparse.Namespace, folder: Path, size: tuple[int, int]) -> dict[str, float]:
    """MB of a process that does nothing else: after `import torch`, and the peak from bytes to mask PNG."""
    script = (
        "import io, sys, torch\nfrom training.timing import peak_memory\nalone = peak_memory()\n"
        "from searchseg.segmenter import Segmenter, png_options\n"
        "result = Segmenter.from_pretrained(sys.argv[1], device='cpu', backend=sys.argv[2])(sys.argv[3])\n"
        "mask = result.mask_image()\nmask.save(io.BytesIO(), 'PNG', **png_options(mask))\n"
        "print(alone, peak_memory())"
    )
    with tempfile.NamedTemporaryFile(suffix=".jpg") as file:
        Path(file.name).write_bytes(photo(*size, seed=0))
        command = [sys.executable, "-c", script, str(folder), args.backend, file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    alone, peak = map(float, said.split())
    return {"torch_mb": alone, "peak_mb": peak}


def _folder(args: argparse.Namespace, folder: Path, segmenter: Segmenter) -> dict[str, Any]:
    """Seconds of the command on one photo and on all, and the rates of the bare network."""
    with tempfile.TemporaryDirectory() as place:
        photos = Path(place) / "photos"
        photos.mkdir()
        drawn = [photo(*CAMERA, seed) for seed in range(min(20, args.folder))]
        for number in range(args.folder):
            (photos / f"{number:04}.jpg").write_bytes(drawn[number % len(drawn)])
        command = [sys.executable, "-m", "searchseg.segment", "--model", str(folder), "--device", "cpu"]
        command += ["--backend", args.backend, "--out"]
        seconds = []
        for what, out in ((photos / "0000.jpg", "one"), (photos, "all")):
            began = time.perf_counter()
            subprocess.run([*command, f"{place}/{out}", str(what)], capture_output=True, check=True, cwd=ROOT)
            seconds.append(time.perf_counter() - began)
        if len(list(Path(place, "all").rglob("*.mask.png"))) != args.folder:
            raise SystemExit("not every photo has its mask")
    first, whole = seconds
    return {
        "photos": args.folder, "first_seconds": first, "seconds": whole,
        "bare": bare_rate(segmenter, 1), "side_by_side": bare_rate(segmenter, torch.get_num_threads()),
    }  # fmt: skip


def bare_rate(segmenter: Segmenter, workers: int, calls: int = 100) -> float:
    """Inputs a second through the network alone: one after the other in this thread on all threads of torch
    (a pool's thread has a team of its own and was a fifth to a quarter slower), or `workers` side by side."""
    size = segmenter.config.image_size
    image = torch.randn(1, 3, *size).to(memory_format=torch.channels_last)

    def call(_: int) -> None:
        with torch.inference_mode():
            segmenter._faster(image)

    threads = torch.get_num_threads()
    torch.set_num_threads(threads // workers)
    try:
        with ThreadPoolExecutor(workers) as pool:
            spread = map if workers == 1 else pool.map
            list(spread(call, range(2 * workers)))
            began = time.perf_counter()
            list(spread(call, range(calls)))
            return calls / (time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)


def markdown(document: dict[str, Any]) -> str:
    """Milliseconds of the steps by photo, and the rates of the folders."""
    head = ["network", "photo", *STEPS, "bytes to mask PNG", *EXTRAS, "peak memory", "of it `import torch`"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in document["photos"]:
        spent = row["seconds"]
        cells = [row["model"], f"{row['width']}x{row['height']}", *(f"{spent[n] * 1e3:.0f}" for n in STEPS)]
        cells += [f"{sum(spent[n] for n in STEPS) * 1e3:.0f}", *(f"{spent[n] * 1e3:.0f}" for n in EXTRAS)]
        cells += [f"{row['peak_mb']:.0f} MB", f"{row['torch_mb']:.0f} MB"]
        lines.append("| " + " | ".join(cells) + " |")
    about = document["machine"]
    lines += ["", f"Milliseconds, medians of {document['runs']} photos, {about['threads']} threads, backend "
              f"{document['backend']}, {about['device']}, torch {about['torch']}."]  # fmt: skip
    for row in document["folders"]:
        rate, start = row["photos"] / row["seconds"], row["first_seconds"]
        later = (row["photos"] - 1) / (row["seconds"] - start)
        lines += ["", (
            f"{row['photos']} photos of {CAMERA[0]}x{CAMERA[1]} by `python -m searchseg.segment`, "
            f"{row['model']}: {row['seconds']:.1f} s, {rate:.1f} a second with its start "
            f"({start:.1f} s for one photo), {later:.1f} after it. The bare network: "
            f"{row['bare']:.1f} a second one after the other ({rate / row['bare']:.0%} with the start, "
            f"{later / row['bare']:.0%} after it), {row['side_by_side']:.1f} side by side "
            f"({later / row['side_by_side']:.0%})."
        )]  # fmt: skip
    return "\n".join(lines) + "\n"
