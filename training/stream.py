"""Rows of a dataset larger than the disk: read as they come, checked as they are read, never kept.

A row is known by its position: the number of its shard (a file of the dataset) and its number within.
`datasets` counts rows as they come, and after a shuffle or a split by node they come otherwise; the position
stays. It decides what must not change with the epoch or the number of processes: to which part of the data
the row belongs, and with the epoch its augmentation.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import HTTPError
from torch import Tensor

from searchseg.task import Task, TaskError
from training.presets import Size
from training.rows import HOLD_OUT_SEED, Augmentation, divided_evenly, number, read_pair

BUFFER = 512  # rows that wait, still encoded, to be drawn in random order
PASS = 1_000_003  # added to the epoch when a process begins its rows again within it


@dataclass(frozen=True)
class Cut:
    """A share of all rows, [low, high) of 0 to 1: a row falls where the hash of (seed, its position) says.

    The rows of equal `seed` and disjoint ranges never overlap, in whatever order they come.
    """

    seed: str
    low: float
    high: float

    def holds(self, shard: int, index: int) -> bool:
        """Whether the row at this position belongs to it."""
        return self.low <= number(self.seed, shard, index) / 2**63 < self.high


def open_stream(
    data: str, split: str, revision: str | None, task: Task, rows: int | None, process: int = 0,
    processes: int = 1,
) -> StreamedRows:  # fmt: skip
    """The rows of `split` ("train", "train+train_extra") of a folder or Hub id, none of them read yet.

    `rows` is their number, needed only where the dataset does not state it. Raises TaskError when the data,
    the split or a column is missing.
    """
    import datasets

    names = [name.strip() for name in split.split("+")]
    if any("[" in name for name in names):
        raise TaskError(f"split {split!r}: a stream has no slices, leave out [...] or --streaming")
    try:
        parts = [datasets.load_dataset(data, split=s, revision=revision, streaming=True) for s in names]
    except (OSError, HTTPError, datasets.exceptions.DatasetsError, NotImplementedError) as error:
        raise TaskError(f"cannot read dataset {data!r}: {error.__cause__ or error}") from error
    except ValueError as error:  # datasets names the known splits in it
        raise TaskError(f"dataset {data!r}, split {split!r}: {error}") from error
    parts = [part if part.features else part._resolve_features() for part in parts]
    for part in parts:
        task.check_columns(list(part.features or ()))
    stated = [(part.info.splits or {}).get(name) for part, name in zip(parts, names, strict=True)]
    known = sum(info.num_examples for info in stated) if all(stated) else 0
    return StreamedRows(parts, task, rows or known or None, process, processes)


class StreamedRows:
    """Rows of a stream for one of `processes` processes, each checked by its Task as it is read.

    `rows` is the number of rows of all processes before any `cuts`, or None; a pair is (3, H, W) and (H, W)
    uint8 at `size` (None keeps each row's own size). A broken row raises TaskError with its position.
    """

    pixels = None  # they are not counted before they come

    def __init__(
        self, parts: list[Any], task: Task, rows: int | None, process: int = 0, processes: int = 1,
        size: Size | None = None, cuts: tuple[Cut, ...] = (), device: Any = "cpu", threads: int = 0,
    ) -> None:  # fmt: skip
        self.parts, self.task, self.rows, self.size, self.cuts = parts, task, rows, size, cuts
        self.process, self.processes, self.device, self.threads = process, processes, device, threads
        self.shards = [(p, s) for p, part in enumerate(parts) for s in range(part.num_shards)]

    def __len__(self) -> int:
        """Rows of all processes; of a cut the share that the hash gives on average."""
        if self.rows is None:
            raise TaskError("the dataset does not state how many rows it has: say it with --rows N")
        return round(self.rows * math.prod(cut.high - cut.low for cut in self.cuts))

    def at(self, size: Size | None) -> StreamedRows:
        """The same rows at another size."""
        return self._with(size=size)

    def on(self, device: Any, threads: int = 0) -> StreamedRows:
        """The same rows, their batches on `device`, decoded ahead by `threads` threads."""
        return self._with(device=device, threads=threads)

    def only(self, cut: Cut) -> StreamedRows:
        """Those of the rows that fall into `cut`."""
        return self._with(cuts=(*self.cuts, cut))

    def _with(self, **changes: Any) -> StreamedRows:
        names = ("parts", "task", "rows", "process", "processes", "size", "cuts", "device", "threads")
        return StreamedRows(**{**{name: getattr(self, name) for name in names}, **changes})

    def hold_out(self, share: float) -> tuple[StreamedRows, StreamedRows | None]:
        """Rows to learn from, and a `share` of about all kept out, the same for every seed of a run."""
        if not share:
            return self, None
        if not 0 < share < 1:
            raise TaskError(f"--hold-out {share} leaves no row to learn from: take 0 to 0.5")
        seed = f"held out {HOLD_OUT_SEED}"
        return self.only(Cut(seed, share, 1.0)), self.only(Cut(seed, 0.0, share))

    def halves(self, seed: int) -> tuple[Cut, Cut]:
        """Two halves that never overlap, for the weights and for alpha.

        A coin decides for every row, so they differ in size by chance, and a class may have more rows in
        one: classes cannot be counted before they are read, as the halves of a table are.
        """
        return Cut(f"halves {seed}", 0.0, 0.5), Cut(f"halves {seed}", 0.5, 1.0)

    def record(self, weights: Cut, alpha: Cut) -> dict[str, Any]:
        """The rule of the halves, and what it is applied to, for search/halves.json."""
        rule = "low <= sha256(repr((seed, shard, index))), first 63 bits / 2^63, < high"
        cuts = {"weights": weights, "alpha": alpha}
        before = [dataclasses.asdict(cut) for cut in self.cuts]
        halves = {name: dataclasses.asdict(cut) for name, cut in cuts.items()}
        return {"rule": rule, **halves, "within": before, "shards": len(self.shards), "rows": self.rows}

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Picture and mask of every row of this process, once, in the order of the dataset."""
        return (pair for _, pair in self.pairs(self._stream()))

    def batches(self, part: Cut | None, augment: Augmentation, batch_size: int) -> StreamBatches:
        """Batches of all rows, or of a part of them; `batch_size` is that of all processes together."""
        rows = self if part is None else self.only(part)
        return StreamBatches(rows, augment, batch_size)

    def shuffled(self, seed: int, epoch: int) -> Any:
        """The rows of this process in an order of (seed, epoch): of the shards, and through a buffer."""
        stream = self._stream().shuffle(seed=number(seed, "order") % 2**32, buffer_size=BUFFER)
        stream.set_epoch(epoch)
        return stream

    def pairs(self, rows: Iterable[dict[str, Any]]) -> Iterator[tuple[Any, Any]]:
        """(position, pair) of each of the rows, in their order."""
        if not self.threads:
            yield from map(self._read, rows)
            return
        with ThreadPoolExecutor(self.threads) as pool:
            ahead: deque[Any] = deque()
            for row in rows:
                ahead.append(pool.submit(self._read, row))
                if len(ahead) > 2 * self.threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _stream(self) -> Any:
        """The encoded rows of this process with their positions, as a datasets.IterableDataset.

        Shards are dealt to the processes when they can be dealt evenly; else every process reads all of them
        and takes every n-th row.
        """
        from datasets import IterableDataset
        from datasets.distributed import split_dataset_by_node

        rows = IterableDataset.from_generator(
            self._encoded, gen_kwargs={"shards": list(range(len(self.shards)))}
        )
        return split_dataset_by_node(rows, self.process, self.processes) if self.processes > 1 else rows

    def _encoded(self, shards: list[int]) -> Iterator[dict[str, Any]]:
        names = (self.task.image_column, self.task.mask_column, self.task.name_column)
        for shard in shards:
            part, within = self.shards[shard]
            rows = self.parts[part].decode(False)
            source = iter(rows.shard(num_shards=rows.num_shards, index=within))
            index = 0
            while (row := self._next(source, shard, index)) is not None:
                if all(cut.holds(shard, index) for cut in self.cuts):
                    wanted = {name: row[name] for name in names if name in row}
                    yield {"shard": shard, "index": index, "row": wanted}
                index += 1

    def _next(self, source: Iterator[dict[str, Any]], shard: int, index: int) -> dict[str, Any] | None:
        try:
            return next(source, None)
        except (OSError, HTTPError, ValueError) as error:  # also of a broken file: pyarrow's is a ValueError
            raise TaskError(f"{self._where(shard, index)} cannot be read: {error}") from error

    def _read(self, found: dict[str, Any]) -> tuple[tuple[int, int], tuple[Tensor, Tensor]]:
        shard, index = found["shard"], found["index"]
        where, features = self._where(shard, index), self.parts[self.shards[shard][0]].features
        try:
            row = features.decode_example(found["row"])
        except (OSError, ValueError, SyntaxError) as error:
            raise TaskError(f"{where} cannot be decoded: {error}; replace or remove it") from error
        return (shard, index), read_pair(self.task, row, where, self.size)

    def _where(self, shard: int, index: int) -> str:
        return f"row {index}" + (f" of shard {shard}" if len(self.shards) > 1 else "")


@dataclass(frozen=True)
class StreamedPairs:
    """Pictures and masks of a stream to be scored: no length, since it need not be known for that."""

    rows: StreamedRows

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.rows.in_order()


class StreamBatches:
    """Batches of a stream for one process: the same number of them in every epoch and every process.

    Set `epoch` before each. A process that has fewer rows than its steps need, since shards differ and cuts
    vary, begins its rows again in another order; one that has more leaves the rest to later epochs, whose
    order is another.
    """

    def __init__(self, rows: StreamedRows, augment: Augmentation, batch_size: int) -> None:
        divided_evenly(batch_size, rows.processes)
        self.rows, self.augment = rows, augment
        self.batch, self.steps = batch_size // rows.processes, max(1, len(rows) // batch_size)
        self.epoch = self.skip = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        examples = self._examples(self.epoch)
        for _ in range(
            self.skip * self.batch
        ):  # they must be read, as nobody knows where the next ones begin
            next(examples)
        for _ in range(self.skip, self.steps):
            images, masks = zip(*(next(examples) for _ in range(self.batch)), strict=True)
            yield torch.stack(images).to(self.rows.device), torch.stack(masks).to(self.rows.device)

    def rows_of(self, step: int) -> str:
        """Where in the stream a step of the present epoch lies."""
        first = step * self.batch
        return f"{first} to {first + self.batch - 1} of the stream in the order of epoch {self.epoch + 1}"

    def _examples(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented rows, without end."""
        while True:
            position = None
            for position, pair in self.rows.pairs(self.rows.shuffled(self.augment.seed, epoch)):
                yield self.augment(pair, epoch, *position)
            if position is None:
                raise TaskError(
                    f"process {self.rows.process} of {self.rows.processes} finds no row of its part: "
                    "take fewer processes, or more data"
                )
            epoch += PASS
