"""Curves of a run as PNG, drawn from its history."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from training.files import write_atomically


def draw_curves(history: list[dict[str, Any]], names: dict[str, str], ylabel: str, path: Path) -> None:
    """One line for each `names` entry (history key -> label) against the epoch; epochs without the key are
    left out."""
    from matplotlib.figure import Figure  # slow to import, and only the end of a run draws

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for key, label in names.items():
        points = [(record["epoch"], record[key]) for record in history if record.get(key) is not None]
        axes.plot(*zip(*points, strict=True), marker=".", label=label) if points else None
    axes.set(xlabel="epoch", ylabel=ylabel)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    write_atomically(path, picture.getvalue())
