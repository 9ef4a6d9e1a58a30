"""Self-training: rows whose masks a network made, beside those that people made.

A teacher labels pictures without masks (`python -m training.segment --sure 0.9 --with-image`), pixels of
which it is not sure count for nothing, and a student learns from both (Lee 2013, Pseudo-Label; Xie et al.,
arXiv 1911.04252).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from searchseg.task import IGNORE, Task, TaskError
from training.rows import load_rows

COLUMNS = ("image", "mask", "error")  # what training.segment --with-image writes
CURE = "make them with python -m training.segment --with-image"


class PseudoColumns:
    """The columns of a dataset of masks; `load_rows` checks them as it does those of a task."""

    def check_columns(self, columns: list[str]) -> None:
        """Raise TaskError when the dataset was not written by training.segment with its pictures."""
        missing = [name for name in COLUMNS if name not in columns]
        if missing:
            raise TaskError(f"pseudo-masks have no column {missing[0]!r}, but {', '.join(columns)}: {CURE}")


class WithPseudoMasks:
    """Rows of a task, then rows of pseudo-masks as if they were rows of it.

    `pseudo` has pictures in `image` and class ids, 255 where the teacher was not sure, in `mask`. Raises
    TaskError when the task has no mask value that is ignored, but pixels would need one.
    """

    def __init__(self, rows: Any, pseudo: Any, task: Task) -> None:
        self.rows, self.pseudo, self.task = rows, pseudo, task
        self.values = np.full(256, -1, np.int16)  # mask value of every class id
        for value, class_id in task.ids.items():
            self.values[class_id] = value

    def __len__(self) -> int:
        return len(self.rows) + len(self.pseudo)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < len(self.rows):
            return self.rows[index]
        row = self.pseudo[index - len(self.rows)]
        values = self.values[np.array(row["mask"])]
        if (values < 0).any():
            unknown = int(np.array(row["mask"])[values < 0].flat[0])
            cure = "give --ignore-value" if unknown == IGNORE else "was the teacher one of another task?"
            raise TaskError(f"pseudo-mask {index - len(self.rows)} has class id {unknown}: {cure}")
        mask = Image.fromarray(values.astype(np.uint8))
        return {self.task.image_column: row["image"], self.task.mask_column: mask}


def with_pseudo_masks(rows: Any, data: str, task: Task) -> WithPseudoMasks:
    """`rows` and all rows of the dataset `data` that have a mask, in every split of it."""
    import datasets

    splits = [str(name) for name in datasets.get_dataset_split_names(data)]
    pseudo = load_rows(data, "+".join(splits), None, PseudoColumns())
    kept = [place for place, error in enumerate(pseudo["error"]) if error is None]
    if not kept:
        raise TaskError(f"no row of {data!r} has a mask: {CURE}")
    return WithPseudoMasks(rows, pseudo.select(kept), task)
