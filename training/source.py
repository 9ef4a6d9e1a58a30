"""What a run learns from: a table that is checked once and kept, or with --streaming a stream."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any, Protocol

from accelerate import Accelerator
from torch import Tensor

from searchseg.task import Task, TaskError
from training.presets import Size
from training.rows import (
    Augmentation,
    CheckedRows,
    Examples,
    divided_evenly,
    halves,
    hold_out,
    load_rows,
    loader,
)
from training.stream import StreamedPairs, StreamedRows, open_stream


class Batches(Protocol):
    """Batches (images, masks) on the device of the process; set `epoch` before each epoch, and `skip` to the
    number of its batches to leave out at the beginning."""

    epoch: int
    skip: int

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


class Source(Protocol):
    """Rows at one size: cut in halves, and given out in augmented batches.

    `pixels` has how many pixels of every class there are, (256,), as far as that is known.
    """

    pixels: Any

    def __len__(self) -> int: ...

    def halves(self, seed: int) -> tuple[Any, Any]:
        """Two parts that never overlap: for the weights, and for alpha."""

    def record(self, weights: Any, alpha: Any) -> dict[str, Any]:
        """The halves as they go into search/halves.json."""

    def batches(self, part: Any, augment: Augmentation, batch_size: int) -> Batches:
        """Batches of a part, or of everything (None), over all processes together."""


class Table:
    """All rows checked at birth; every process knows them, and takes its share of each batch."""

    def __init__(self, rows: Any, task: Task, size: Size, accelerator: Accelerator, workers: int = 0) -> None:
        self.rows, self.accelerator, self.workers = rows, accelerator, workers
        self.checked = CheckedRows(rows, task, size, "rows", quiet=not accelerator.is_main_process)
        self.pixels = self.checked.pixels

    def __len__(self) -> int:
        return len(self.rows)

    def halves(self, seed: int) -> tuple[list[int], list[int]]:
        return halves(self.rows, seed)

    def record(self, weights: list[int], alpha: list[int]) -> dict[str, Any]:
        return {"weights": weights, "alpha": alpha}

    def batches(self, part: list[int] | None, augment: Augmentation, batch_size: int) -> TableBatches:
        examples = Examples(self.checked, augment)
        indices = range(len(self.rows)) if part is None else part
        divided_evenly(batch_size, self.accelerator.num_processes)
        return TableBatches(
            loader(examples, indices, augment.seed, batch_size, self.workers), self.accelerator
        )


class TableBatches:
    """A loader prepared once (accelerate keeps every loader it has seen), and its sampler."""

    def __init__(self, plain: Any, accelerator: Accelerator) -> None:
        self.sampler, self.prepared = plain.sampler, accelerator.prepare(plain)
        self.batch_size, self.skip = plain.batch_size, 0

    @property
    def epoch(self) -> int:
        return self.sampler.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self.sampler.epoch = epoch

    def __len__(self) -> int:
        return len(self.prepared)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.sampler.skip = self.skip * self.batch_size
        return iter(self.prepared)

    def rows_of(self, step: int) -> str:
        """The rows that a step of the present epoch sees, all processes together."""
        order = self.sampler.order()[step * self.batch_size : (step + 1) * self.batch_size]
        return ", ".join(map(str, order))


def open_source(
    rows: Any, task: Task, size: Size, accelerator: Accelerator, workers: int = 0
) -> Table | StreamedRows:
    """The rows as a Source at `size`; those of a table are checked now, those of a stream as they come.

    A Table is given back: who trains several networks checks and decodes its rows once.
    """
    if isinstance(rows, Table):
        return rows
    if isinstance(rows, StreamedRows):
        return rows.at(size).on(accelerator.device, workers)
    return Table(rows, task, size, accelerator, workers)


def scored_rows(rows: Any, task: Task, what: str, quiet: bool = False) -> CheckedRows | StreamedPairs:
    """The rows at their own size, to be scored one by one; rows that were checked before stay as they are."""
    if isinstance(rows, CheckedRows):
        return rows
    if isinstance(rows, StreamedRows):
        return StreamedPairs(rows.at(None))
    return CheckedRows(rows, task, None, what, quiet)


def share_of(
    rows: CheckedRows | StreamedPairs, process: int, processes: int
) -> CheckedRows | StreamedPairs | Iterator[tuple[Tensor, Tensor]]:
    """The pairs that one of several processes scores: every n-th row of a table, where each has one.

    The pairs of a stream are divided among the processes already.
    """
    if isinstance(rows, CheckedRows) and len(rows) >= processes:
        return (rows[place] for place in range(process, len(rows), processes))
    return rows


def add_stream_options(parser: argparse.ArgumentParser) -> None:
    """--streaming and --rows."""
    group = parser.add_argument_group("data larger than the disk")
    group.add_argument(
        "--streaming", action="store_true", help="read rows as they are needed, every epoch again; keep none"
    )
    group.add_argument("--rows", type=int, metavar="N", help="their number, if the dataset does not state it")


def read_rows(
    args: argparse.Namespace, data: str, revision: str | None, task: Task, process: int, processes: int
) -> Any:
    """The rows that the options name: a table, or with --streaming the share of a process in a stream."""
    if args.rows is not None and (args.rows < 1 or not args.streaming):
        raise TaskError(f"--rows {args.rows}: wanted is 1 or more, together with --streaming")
    if args.streaming:
        return open_stream(data, args.split, revision, task, args.rows, process, processes)
    return load_rows(data, args.split, revision, task)


def learning_rows(
    args: argparse.Namespace, data: str, revision: str | None, task: Task, accelerator: Accelerator
) -> tuple[Any, Any]:
    """Rows to learn from, and those that --hold-out keeps out (None without it)."""
    place = accelerator.process_index, accelerator.num_processes
    rows = read_rows(args, data, revision, task, *place)
    return rows.hold_out(args.hold_out) if args.streaming else hold_out(rows, args.hold_out)
