"""The figures of a table: curves, cost against score, confusion, and pictures, from saved records."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageColor

from searchseg.pretrained import WEIGHTS, from_pretrained
from searchseg.segmenter import class_ids
from searchseg.task import IGNORE, Task
from training.bootstrap import miou
from training.files import read_lines, write_atomically
from training.rows import CheckedRows
from training.systems import System
from training.table_scores import COUNTS

CASES = ("best", "median", "worst")


def draw_figures(
    records: list[dict[str, Any]], task: Task, test: CheckedRows, out: Path, seconds: Mapping[str, float]
) -> None:
    """Every figure of the table in `out`, as PNG; `seconds` a picture of every system, measured in turns."""
    for key, label in (("loss", "loss on validation rows"), ("miou", "mIoU on validation rows")):
        _figure(
            out / f"{key}.png", lambda axes, key=key, label=label: _curves(axes, records, out, key, label)
        )
    _figure(out / "cost.png", lambda axes: _costs(axes, records, seconds), columns=3)
    if len(task.classes) > 2:
        systems = list(dict.fromkeys(record["system"] for record in records))
        _figure(
            out / "confusion.png",
            lambda axes: _confusion(axes, _folders(records, out), task),
            columns=min(3, len(systems)),
            rows=-(-len(systems) // 3),
            side=5,
        )
    _pictures(records, task, test, out)


def _folders(records: list[dict[str, Any]], out: Path) -> dict[str, Path]:
    """The first training of every system that is done."""
    seeds: dict[str, int] = {}
    for record in records:
        seeds[record["system"]] = min(record["seed"], seeds.get(record["system"], record["seed"]))
    return {system: out / f"{system}-seed{seed}" for system, seed in seeds.items()}


def _figure(
    path: Path, draw: Callable[[Any], None], columns: int = 1, rows: int = 1, side: float = 4.4
) -> None:
    """Let `draw` fill the axes, one or a flat array of them."""
    from matplotlib.figure import Figure  # slow to import, and only the end of a table draws

    single = columns * rows == 1
    figure = Figure(figsize=((1.45 if single else columns) * side, side * rows), layout="constrained")
    draw(figure.subplots() if single else figure.subplots(rows, columns, squeeze=False).ravel())
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=140, bbox_inches="tight")
    write_atomically(path, stream.getvalue())


def _curves(axes: Any, records: list[dict[str, Any]], out: Path, key: str, label: str) -> None:
    for system, folder in _folders(records, out).items():
        history = read_lines(folder / "history.jsonl")
        values = [row[f"held_out_{key}"] for row in history]
        bold = 2.4 if system == "searchnet" else 1.2
        axes.plot(range(1, len(values) + 1), values, label=System(system).title, linewidth=bold)
    axes.set(xlabel="epoch", ylabel=label)
    axes.grid(alpha=0.3)
    axes.legend(ncols=2, fontsize="small")


def _costs(axes: Any, records: list[dict[str, Any]], seconds: Mapping[str, float]) -> None:
    costs: tuple[tuple[str, Callable[[dict[str, Any]], float]], ...] = (
        ("MACs, 10⁹", lambda row: row["macs"] / 1e9),
        ("parameters, 10⁶", lambda row: row["parameters"] / 1e6),
        ("milliseconds a picture", lambda row: 1e3 * seconds[row["system"]]),
    )
    for chart, (label, cost) in zip(axes, costs, strict=True):
        points = {}
        for system in dict.fromkeys(record["system"] for record in records):
            rows = [record for record in records if record["system"] == system]
            points[system] = cost(rows[0]), float(np.mean([row["miou"] for row in rows]))
        spread = sorted(x for x, _ in points.values())
        for system, point in points.items():
            chart.scatter(*point, marker="*" if system == "searchnet" else "o", s=90, zorder=3)
            right = point[0] ** 2 > spread[0] * spread[-1]  # of the middle: names grow inwards
            place = {"ha": "right", "xytext": (-7, 4)} if right else {"ha": "left", "xytext": (7, 4)}
            chart.annotate(System(system).title, point, textcoords="offset points", fontsize=8, **place)
        front = pareto(list(points.values()))
        chart.plot(*zip(*front, strict=True), color="0.6", linewidth=1, label="Pareto front")
        chart.legend(fontsize="small", loc="best")
        chart.set(xlabel=label, ylabel="mIoU on test rows", xscale="log")
        chart.margins(x=0.4)
        chart.grid(alpha=0.3)


def pareto(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (cost, score) that no other beats in both, from cheap to dear."""
    front: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or score > front[-1][1]:
            front.append((cost, score))
    return front


def _confusion(axes: Any, systems: dict[str, Path], task: Task) -> None:
    for place, (system, folder) in enumerate(systems.items()):
        total = np.load(folder / COUNTS)["counts"].sum(0)
        shares = total / np.maximum(1, total.sum(1, keepdims=True))
        chart = axes[place] if len(systems) > 1 else axes
        chart.imshow(shares, vmin=0, vmax=1, cmap="Blues")
        ticks = range(len(task.classes))
        chart.set_xticks(ticks, task.classes, rotation=90, fontsize=8)
        chart.set_yticks(ticks, task.classes, fontsize=8)
        for row in ticks:
            for column in ticks:
                share = shares[row, column]
                color = "white" if share > 0.5 else "black"
                chart.text(
                    column,
                    row,
                    f"{share:.2f}".removeprefix("0"),
                    ha="center",
                    va="center",
                    color=color,
                    fontsize=6,
                )
        chart.set(title=System(system).title, xlabel="predicted", ylabel="true")
    for chart in axes[len(systems) :] if len(systems) > 1 else ():
        chart.axis("off")


def _pictures(records: list[dict[str, Any]], task: Task, test: CheckedRows, out: Path) -> None:
    """Image, truth and every system's answer, for the best, the median and the worst picture of the first."""
    folders = {s: folder for s, folder in _folders(records, out).items() if (folder / WEIGHTS).exists()}
    systems = list(folders)
    if not systems:
        return
    scores = miou(np.load(folders[systems[0]] / COUNTS)["counts"])
    order = np.argsort(scores)[: np.isfinite(scores).sum()]  # a picture that is all ignored has no score
    chosen = dict(zip(CASES, (order[-1], order[len(order) // 2], order[0]), strict=True))
    models = {system: from_pretrained(folder) for system, folder in folders.items()}

    def draw(axes: Any) -> None:
        for row, (case, place) in enumerate(chosen.items()):
            pixels, mask = test[int(place)]
            image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            shown = {f"{case}: image": np.array(image), "truth": palette(task)[mask.numpy()]}
            for system, model in models.items():
                with torch.inference_mode():
                    scores = model(model.config.tensor(image)[None]).float()[0]
                shown[System(system).title] = palette(task)[class_ids(scores, *mask.shape)]
            for chart, (title, picture) in zip(axes[row], shown.items(), strict=True):
                chart.imshow(picture)
                chart.set_title(title, fontsize=8)
                chart.axis("off")

    from matplotlib.figure import Figure

    columns = 2 + len(systems)
    figure = Figure(figsize=(1.8 * columns, 5.4), layout="constrained")
    draw(figure.subplots(len(CASES), columns, squeeze=False))
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=140, bbox_inches="tight")
    write_atomically(out / "pictures.png", stream.getvalue())


def palette(task: Task) -> np.ndarray:
    """RGB of every value of a mask, (256, 3) uint8: the colours of the classes, and white."""
    colors = np.full((256, 3), 255, np.uint8)
    for place, color in enumerate(task.colors):
        colors[place] = ImageColor.getrgb(color)
    colors[IGNORE] = 255
    return colors
