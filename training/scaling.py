"""What a training step costs: measured on this machine, fitted, and predicted for GPUs.

A step is described by what its network does, counted on torch's meta device without computing anything:
multiply-accumulates, bytes that its operations read and write, and their number, forward and backward.
Seconds are fitted as a sum of these three with coefficients that are not negative, memory as what the graph
keeps plus what weights, gradients and optimiser take. Every third point is kept out of the fit and tells its
error.

examples:
  python -m training.scaling --measure --json docs/scaling/points.json
  python -m training.scaling --json docs/scaling/points.json --into docs/scaling.md

The prediction for GPUs rests on the data sheet and on the shares of it that the options assume.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np

from training.files import write_atomically
from training.options import Manual, machine
from training.presets import PRESETS
from training.scaling_points import MEASURED, cost_of, measure, measure_exchange
from training.timing import between_marks

GIB = 2**30
FEATURES = ("macs", "bytes", "calls")
ROWS = 3680  # of the training split of Oxford-IIIT Pet
GPUS = 8  # of a machine; within it they exchange gradients over NVLink


def fit(points: list[dict[str, Any]]) -> dict[str, Any]:
    """Coefficients of seconds and memory, and the errors on the points that were kept out of the fit."""
    kept = [p for place, p in enumerate(points) if place % 3 != 1]
    seconds = nonnegative([[p["cost"][f] for f in FEATURES] for p in kept], [p["seconds"] for p in kept])
    memory = nonnegative(
        [[1.0, p["cost"]["kept"], p["cost"]["weights"]] for p in kept], [p["peak"] for p in kept]
    )
    model = {"seconds": dict(zip(FEATURES, seconds, strict=True)),
             "memory": dict(zip(("base", "kept", "weights"), memory, strict=True))}  # fmt: skip
    out = [p for place, p in enumerate(points) if place % 3 == 1]
    for name, predict, wanted in (("seconds", seconds_of, "seconds"), ("memory", memory_of, "peak")):
        errors = [abs(predict(model, p["cost"]) / p[wanted] - 1) for p in out]
        model[f"{name}_error"] = {"median": statistics.median(errors), "largest": max(errors)}
    return {**model, "fitted": len(kept), "kept_out": len(out)}


def nonnegative(rows: list[list[float]], wanted: list[float]) -> list[float]:
    """Coefficients >= 0 with the least relative errors squared: the best of all subsets of the columns."""
    matrix = np.array(rows) / np.array(wanted)[:, None]
    scale = np.abs(matrix).max(0)
    best, least = np.zeros(matrix.shape[1]), np.inf
    for size in range(1, matrix.shape[1] + 1):
        for columns in map(list, itertools.combinations(range(matrix.shape[1]), size)):
            found = np.linalg.lstsq(matrix[:, columns] / scale[columns], np.ones(len(rows)), rcond=None)[0]
            error = ((matrix[:, columns] / scale[columns] @ found - 1) ** 2).sum()
            if (found >= 0).all() and error < least:
                best, least = np.zeros(matrix.shape[1]), error
                best[columns] = found / scale[columns]
    return best.tolist()


def seconds_of(model: dict[str, Any], cost: dict[str, float]) -> float:
    """Seconds of a step on the machine that was measured."""
    return sum(model["seconds"][name] * cost[name] for name in FEATURES)


def memory_of(model: dict[str, Any], cost: dict[str, float]) -> float:
    """Peak bytes of a process that takes such steps."""
    parts = model["memory"]
    return parts["base"] + parts["kept"] * cost["kept"] + parts["weights"] * cost["weights"]


@functools.cache
def _cost(*shape: Any) -> dict[str, float]:
    return cost_of(*shape)


def predict(args: argparse.Namespace, what: str, gpus: int, partial: int = 1) -> dict[str, Any]:
    """A step of the preset paper on `gpus` GPUs: its batch of 8, or a picture a GPU where they are more."""
    preset = PRESETS["paper"]
    settings = preset.search if what == "search" else preset.retrain
    pictures = max(1, settings.batch_size // gpus)
    size, stride = settings.size, settings.stem_stride
    cost = _cost(what, settings.widths, preset.search.nodes, size, pictures, partial, stride)
    macs = cost["macs"] / (args.tflops * 1e12 / 2 * args.efficiency)
    moved = cost["bytes"] / (args.bandwidth * 1e9 * args.bandwidth_efficiency)
    link = args.nvlink if gpus <= GPUS else args.network
    exchange = 0.0 if gpus == 1 else 2 * (gpus - 1) / gpus * cost["weights"] / (link * 1e9) + 1e-4
    seconds = max(macs + moved, cost["calls"] * args.launch * 1e-6) + exchange
    rows = ROWS // 2 if what == "search" else ROWS
    steps = rows // (pictures * gpus) * settings.epochs
    return {"what": what, "partial": partial, "gpus": gpus, "batch": pictures * gpus, "seconds": seconds,
            "exchange": exchange, "memory": cost["kept"] + 4 * cost["weights"], "steps": steps,
            "hours": steps * seconds / 3600}  # fmt: skip


def predictions(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Search, search with a quarter of the channels, and retraining, on 1, 8 and 64 GPUs."""
    kinds = (("search", 1), ("search", 4), ("retrain", 1))
    return [predict(args, what, gpus, partial) for what, partial in kinds for gpus in (1, 8, 64)]


def text_of(document: dict[str, Any], rows: list[dict[str, Any]], args: argparse.Namespace) -> str:
    """The part of the document that comes from the figures, as markdown."""
    model, points = document["fit"], document["points"]
    seconds, memory = model["seconds"], model["memory"]
    lines = [
        f"{len(points)} points, {model['fitted']} fitted, {model['kept_out']} kept out, on "
        f"{document['machine']['device']}, {document['machine']['threads']} thread, torch "
        f"{document['machine']['torch']}:",
        "",
        f"- seconds = {seconds['macs'] * 1e9:.3g} x GMACs + {seconds['bytes'] * 1e9:.3g} x GB moved + "
        f"{seconds['calls'] * 1e3:.3g} x thousand operations; on the points kept out the error is "
        f"{model['seconds_error']['median']:.0%} in the median, {model['seconds_error']['largest']:.0%} at "
        "most",
        f"- peak bytes = {memory['base'] / 1e6:.0f} MB + {memory['kept']:.2f} x what the graph keeps + "
        f"{memory['weights']:.2f} x weights; error {model['memory_error']['median']:.0%} and "
        f"{model['memory_error']['largest']:.0%}",
        "",
        "| step | widths | nodes | px | pictures | seconds | fit | peak MB | fit |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for p in points:
        lines.append(
            f"| {p['what']}{' partial 4' if p['partial'] > 1 else ''} | {p['widths'][0]}-{p['widths'][3]} | "
            f"{p['nodes']} | {p['size']} | {p['pictures']} | {p['seconds']:.2f} | "
            f"{seconds_of(model, p['cost']):.2f} | {p['peak'] / 1e6:.0f} | "
            f"{memory_of(model, p['cost']) / 1e6:.0f} |"
        )
    if document.get("exchange"):
        told = ", ".join(f"{e['mb']:g} MB {e['seconds'] * 1e3:.1f} ms" for e in document["exchange"])
        lines += ["", f"Gradients of two processes of this machine (gloo), averaged: {told}."]
    lines += [
        "",
        f"Preset paper, predicted for GPUs of {args.tflops:g} TFLOP/s, {args.bandwidth:g} GB/s, of which "
        f"{args.efficiency:.0%} and {args.bandwidth_efficiency:.0%} are assumed to be reached, "
        f"{args.launch:g} us an operation, gradients over {args.nvlink:g} GB/s within a machine of {GPUS} "
        f"and {args.network:g} GB/s between machines, {ROWS:,} rows:",
        "",
        "| stage | GPUs | batch | seconds a step | of it exchange | GB a GPU | steps | hours |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        name = r["what"] + (f", partial {r['partial']}" if r["partial"] > 1 else "")
        lines.append(
            f"| {name} | {r['gpus']} | {r['batch']} | {r['seconds']:.3f} | {r['exchange']:.4f} | "
            f"{r['memory'] / 1e9:.1f} | {r['steps']:,} | {r['hours']:.1f} |"
        )
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("python -m training.scaling", description=__doc__, formatter_class=Manual)
    top.add_argument("--measure", action="store_true", help="take the points again on this machine")
    top.add_argument("--runs", type=int, default=3, help="timed steps of each point, in turns")
    top.add_argument("--json", type=Path, required=True, help="file of the points and the fit")
    top.add_argument("--into", type=Path, help="document whose part between marks is replaced")
    gpu = top.add_argument_group("a GPU; the defaults are the H100 SXM of NVIDIA's data sheet, TF32")
    gpu.add_argument("--tflops", type=float, default=494.0, help="dense, at the precision that is used")
    gpu.add_argument("--efficiency", type=float, default=0.3, help="share of it in convolutions")
    gpu.add_argument("--bandwidth", type=float, default=3350.0, help="of its memory, GB/s")
    gpu.add_argument("--bandwidth-efficiency", type=float, default=0.6, help="share of it")
    gpu.add_argument("--launch", type=float, default=8.0, help="microseconds until the next operation starts")
    gpu.add_argument("--nvlink", type=float, default=450.0, help="GB/s of a GPU to those of its machine")
    gpu.add_argument("--network", type=float, default=50.0, help="GB/s of a GPU to other machines")
    return top


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    document = {} if args.measure else json.loads(args.json.read_text())
    if args.measure:
        document = {"points": measure(MEASURED, args.runs), "exchange": measure_exchange(args.runs)}
        document["machine"] = machine()
        write_atomically(args.json, json.dumps(document, indent=1) + "\n")  # counting takes a minute more
    for point in document["points"]:
        if "cost" not in point:
            point["cost"] = cost_of(**{name: point[name] for name in MEASURED[0]})
    rows = predictions(args)
    document |= {"fit": fit(document["points"]), "predictions": rows}
    write_atomically(args.json, json.dumps(document, indent=1) + "\n")
    text = text_of(document, rows, args)
    print(text)
    if args.into:
        between_marks(args.into, "scaling", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
