"""The loop that search and retraining share: it may end at any moment, and goes on where it was, bit for bit.

After every epoch, every few minutes and before it obeys a signal it saves one state. What is drawn at random
depends on (seed, epoch, step, process) alone, and the order of the data on (seed, epoch), so neither needs to
be saved. Steps whose loss or gradient is not finite are taken back and counted; after ten in a row, or when
the state itself is not finite, the last saved state is tried once more at half the learning rate.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from tqdm import tqdm

from searchseg.task import TaskError
from training.checkpoint import keep_as, load_checkpoint, mend_checkpoint, not_finite, save_checkpoint
from training.files import read_lines, write_lines
from training.rows import number
from training.steps import Meter

CHECKPOINT, BEST = "checkpoint.pt", "checkpoint.best.pt"
MOST_SKIPPED = 10  # steps in a row
SAVE_SECONDS = 600.0  # between saves within an epoch
LOST = "bring it back from a copy, or begin again with a new --out"


class Interrupted(Exception):
    """A signal ended the run after its state was saved; `status` is the exit status for it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.status = 128 + signum


class NotFinite(Exception):
    """A step met a loss or a gradient that is not finite, and has not followed it."""


class Course(Protocol):
    """What is different between the trainings that `Loop` runs."""

    meters: dict[str, Meter]  # of the present epoch; saved with the rest

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def buffers(self) -> list[torch.Tensor]:
        """Statistics that a forward pass changes, which a step that is taken back must not keep."""

    def finished(self, history: list[dict[str, Any]]) -> bool:
        """Whether to stop before the last epoch."""

    def begin_epoch(self, epoch: int) -> None: ...

    def batches(self, epoch: int, done: int) -> Iterable[Any]:
        """The batches of an epoch after the first `done`."""

    def step(self, index: int, batch: Any, factor: float) -> None:
        """Learn from a batch with `factor` times the scheduled rate. Raises NotFinite."""

    def rows_of(self, epoch: int, index: int) -> str:
        """The rows of a step, for a message."""

    def end_epoch(self, epoch: int) -> dict[str, list[dict[str, Any]]]:
        """Lines for the files of records, by the file's name."""

    def keep(self, records: dict[str, list[dict[str, Any]]]) -> None:
        """Write what the main process leaves after an epoch, besides records and checkpoint."""


class Loop:
    """Runs a Course in a run folder, or continues it.

    `records`: files that get a line an epoch; `best`: the entry of history.jsonl that marks the best epoch.
    """

    def __init__(
        self, course: Course, out: Path, accelerator: Accelerator, *, what: str, epochs: int, steps: int,
        seed: int, records: tuple[str, ...] = ("history.jsonl",), best: str | None = None,
        save_seconds: float = SAVE_SECONDS,
    ) -> None:  # fmt: skip
        self.course, self.out, self.accelerator, self.what = course, out, accelerator, what
        self.epochs, self.steps, self.seed, self.best = epochs, steps, seed, best
        self.save_seconds, self.main = save_seconds, accelerator.is_main_process
        self.epoch = self.step = self.skipped = self.row = 0  # `row`: skipped without a good one between
        self.factor, self.elapsed, self.signal = 1.0, 0.0, 0
        self.records: dict[str, list[dict[str, Any]]] = {name: [] for name in records}
        self.resumed = self._load()

    @property
    def history(self) -> list[dict[str, Any]]:
        return self.records["history.jsonl"]

    def run(self) -> list[dict[str, Any]]:
        """All epochs that are left; returns the history. Raises Interrupted, TaskError after divergence."""
        with self._signals(), self._bar() as bar:
            self.bar = bar
            if self.resumed:
                self._mend()
            else:
                self._save()  # the first state to go back to
            while self.epoch < self.epochs and not self.course.finished(self.history):
                if self._learn():
                    self._close()
                    self._obey()
        return self.history

    def _learn(self) -> bool:
        """The steps of an epoch that are left; False when it has to begin again from a saved state."""
        began, saved = time.monotonic() - self.elapsed, time.monotonic()
        if self.step == 0:
            self.course.meters = {name: meter.fresh() for name, meter in self.course.meters.items()}
        self.course.begin_epoch(self.epoch)
        for batch in self.course.batches(self.epoch, self.step):
            index = self.epoch * self.steps + self.step
            # for dropout: the same in a run that was interrupted, another in each process
            torch.manual_seed(number(self.seed, self.epoch, self.step, self.accelerator.process_index))
            if not self._tried(index, batch):
                return False
            self.step += 1
            self.bar.update()
            self.elapsed, last = time.monotonic() - began, self.step == self.steps
            if not last and (self._told_to_stop() or self._due(saved)):
                if not self._sound():
                    return False
                self._save()
                self._obey()
                saved = time.monotonic()
        self.elapsed = time.monotonic() - began
        return self._sound()

    def _tried(self, index: int, batch: Any) -> bool:
        """Take the step, or take it back; False after too many in a row, when the last state is loaded."""
        kept = [buffer.clone() for buffer in self.course.buffers()]
        try:
            self.course.step(index, batch, self.factor)
            self.row = 0
            return True
        except NotFinite as error:
            for buffer, before in zip(self.course.buffers(), kept, strict=True):
                buffer.copy_(before)
            self.skipped, self.row = self.skipped + 1, self.row + 1
            if self.row < min(MOST_SKIPPED, self.steps):  # an epoch has at least one step that counts
                return True
            fault = f"{error} {self.row} times in a row"
        self._back(fault, self.step)
        return False

    def _sound(self) -> bool:
        """Whether the whole state is finite in all processes; else the last one that was is loaded."""
        strange = next(not_finite(self.course.state_dict()), None)
        if not self._any(strange is not None):
            return True
        self._back(f"{strange or 'the state of another process'} is not finite", self.step - 1)
        return False

    def _back(self, fault: str, step: int) -> None:
        """Go back to the last saved state at half the learning rate, once. Raises TaskError after that."""
        place = f"epoch {self.epoch + 1}, step {step + 1} of {self.steps}"
        place += f", {self.factor:g} times the learning rate"
        rows = self.course.rows_of(self.epoch, step)
        if self.factor < 1:
            raise TaskError(f"{self.what} diverged: {fault} in {place}; last rows: {rows}")
        self.accelerator.print(f"{fault} in {place}: back, at half the rate")
        skipped = self.skipped
        self.accelerator.wait_for_everyone()
        self._load()
        self.factor, self.row, self.skipped = self.factor / 2, 0, skipped

    def _close(self) -> None:
        """Record the epoch and save."""
        lines = self.course.end_epoch(self.epoch)
        (line,) = lines["history.jsonl"]
        line["seconds"] = round(self.elapsed, 2)
        if self.skipped:
            line["skipped_steps"] = self.skipped
        for name, new in lines.items():
            self.records[name] += new
        self.epoch, self.step, self.elapsed = self.epoch + 1, 0, 0.0
        self.bar.set_postfix(
            {"epoch": self.epoch, **({"mIoU": f"{line[self.best]:.3f}"} if self.best else {})}
        )
        if self.main:
            for name, written in self.records.items():
                write_lines(self.out / name, written)
            self.course.keep(self.records)
        self._save()
        self._keep_best()

    def _keep_best(self) -> None:
        if not self.main or not self.best or self.step or not self.history:
            return
        if self.history[-1].get(self.best) == max(line[self.best] for line in self.history):
            keep_as(self.out / CHECKPOINT, self.out / BEST)

    def _mend(self) -> None:
        """Put in order what a run left that was killed while it saved."""
        self.accelerator.wait_for_everyone()  # all have read it
        if self.main:
            mend_checkpoint(self.out / CHECKPOINT)
            self._keep_best()

    def _save(self) -> None:
        # at the end of an epoch nothing of its meters is needed any more
        meters = {n: meter.state_dict() for n, meter in self.course.meters.items()} if self.step else {}
        if self.main:
            state = {
                "epoch": self.epoch, "step": self.step, "factor": self.factor, "skipped": self.skipped,
                "row": self.row, "elapsed": self.elapsed, "meters": meters,
                self.what: self.course.state_dict(),
            }  # fmt: skip
            save_checkpoint(self.out / CHECKPOINT, state)
        self.accelerator.wait_for_everyone()

    def _load(self) -> bool:
        state = load_checkpoint(self.out / CHECKPOINT)
        lines = {name: self._lines(name) for name in self.records}
        self._agree(state)
        if state is None:
            if any(lines.values()):
                raise TaskError(f"{self.out} has {', '.join(lines)} and no {CHECKPOINT}: {LOST}")
            return False
        if self.what not in state:
            raise TaskError(
                f"{self.out / CHECKPOINT} is that of another command than the {self.what}: {LOST}"
            )
        self.course.load_state_dict(state[self.what])
        self.epoch = state["epoch"]
        # absent in what earlier versions saved after whole epochs
        self.step, self.factor = state.get("step", 0), state.get("factor", 1.0)
        self.skipped, self.row = state.get("skipped", 0), state.get("row", 0)
        self.elapsed = state.get("elapsed", 0.0)
        for name, saved in state.get("meters", {}).items():
            self.course.meters[name].load_state_dict(saved)
        for name in self.records:
            self.records[name] = lines[name][: self.epoch]
            if len(self.records[name]) < self.epoch:
                raise TaskError(
                    f"{self.out / name} has {len(self.records[name])} of the {self.epoch} lines that belong "
                    f"to {CHECKPOINT}: {LOST}"
                )
        return True

    def _lines(self, name: str) -> list[dict[str, Any]]:
        try:
            return read_lines(self.out / name)
        except ValueError as error:
            raise TaskError(f"{self.out / name} cannot be read ({error}): {LOST}") from error

    def _agree(self, state: dict[str, Any] | None) -> None:
        """Raises TaskError unless all processes found the same state."""
        place = -1 if state is None else state["epoch"] * self.steps + state.get("step", 0)
        own = torch.tensor([float(place)], device=self.accelerator.device)
        found = self.accelerator.gather(own).tolist()
        if len(set(found)) > 1:
            steps = ", ".join("nothing" if f < 0 else f"step {f:.0f}" for f in found)
            raise TaskError(
                f"the processes find different states in {self.out} ({steps}): put --out where all machines "
                "see the same files"
            )

    def _obey(self) -> None:
        if self._told_to_stop():
            raise Interrupted(self.signal or signal.SIGTERM)

    def _told_to_stop(self) -> bool:
        """Whether any process was: all of them must save at the same step."""
        return self._any(bool(self.signal))

    def _due(self, saved: float) -> bool:
        """Whether it is time to save: the main process has the clock."""
        return self._any(self.main and time.monotonic() - saved > self.save_seconds)

    def _any(self, here: bool) -> bool:
        """Whether it is so in any process."""
        if self.accelerator.num_processes == 1:
            return here
        told = torch.tensor(float(here), device=self.accelerator.device)
        return bool(self.accelerator.reduce(told, "sum").item())

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT wait for the end of the step; a second one does not."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(signum: int, frame: Any) -> None:
            if self.signal:
                os._exit(128 + signum)
            self.signal = signum

        before: dict[int, Any] = {s: signal.signal(s, note) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    @contextmanager
    def _bar(self) -> Iterator[Any]:
        done = self.epoch * self.steps + self.step
        options: dict[str, Any] = {"unit": "step", "disable": not self.main, "mininterval": 1}
        with tqdm(total=self.epochs * self.steps, initial=done, desc=self.what, **options) as bar:
            yield bar


def finite(value: torch.Tensor | float, what: str) -> None:
    """Raises NotFinite, naming `what`, unless all of `value` is finite."""
    if not torch.isfinite(torch.as_tensor(value)).all():
        raise NotFinite(f"{what} is not finite")
