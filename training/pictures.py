"""Curves of a run as PNG, drawn from its history."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.files import write_atomically


def draw_curves(
    history: list[dict[str, Any]],
    names: dict[str, str],
    ylabel: str,
    path: Path,
    marks: Mapping[str, int] | None = None,
) -> None:
    """One line for each `names` entry (history key -> label) against the epoch; epochs without the key
    are left out. `marks`: label -> epoch, a dashed line each."""
    from matplotlib.figure import Figure  # slow to import, and only the end of a run draws
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for key, label in names.items():
        points = [(record["epoch"], record[key]) for record in history if record.get(key) is not None]
        axes.plot(*zip(*points, strict=True), marker=".", label=label) if points else None
    for number, (label, epoch) in enumerate((marks or {}).items()):
        axes.axvline(epoch, linestyle=("--", ":")[number % 2], color="0.5", label=label)
    axes.set(xlabel="epoch", ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True))  # no epoch 2.5
    axes.grid(alpha=0.3)
    if len(axes.lines) > 1:
        figure.legend(loc="outside upper center", ncols=2)  # a legend inside would lie over some curve
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    write_atomically(path, picture.getvalue())
