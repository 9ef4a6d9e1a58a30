"""Proves that a training may end at any step and goes on bit for bit, and that nothing broken is saved."""

from __future__ import annotations

import copy
import itertools
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from searchseg.task import TaskError
from training.checkpoint import CheckpointError, load_checkpoint, previous, save_checkpoint
from training.files import DiskFullError, read_lines, write_atomically
from training.loop import BEST, CHECKPOINT, Interrupted, Loop, NotFinite
from training.steps import Meter

EPOCHS, STEPS = 3, 4
STATE = {"weights": torch.arange(6.0), "epoch": 2, "words": ["a", 1, None]}


class Learning:
    """A course that adds up what it is given, with everything that a real one saves."""

    def __init__(self, accelerator: Accelerator, broken: dict[int, int] | None = None) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(
            torch.nn.Conv2d(3, 2, 1), torch.nn.BatchNorm2d(2), torch.nn.Dropout(0.5)
        )
        self.optimizer = torch.optim.Adam(self.model.parameters(), 0.1)
        self.meters = {"train": Meter(2, accelerator)}
        self.broken = dict(broken or {})  # step -> how many times it fails
        self.seen: list[tuple[int, float]] = []
        self.after: Any = None
        self.kept = 0

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def buffers(self) -> list[torch.Tensor]:
        return list(self.model.buffers())

    def finished(self, history: list[dict[str, Any]]) -> bool:
        return False

    def begin_epoch(self, epoch: int) -> None:
        self.model.train()

    def batches(self, epoch: int, done: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for step in range(done, STEPS):
            generator = torch.Generator().manual_seed(100 * epoch + step)
            images = torch.randn(2, 3, 4, 4, generator=generator)
            yield images, torch.randint(0, 2, (2, 4, 4), generator=generator)

    def step(self, index: int, batch: Any, factor: float) -> None:
        images, masks = batch
        for group in self.optimizer.param_groups:
            group["lr"] = 0.1 * factor
        scores = self.model(images)
        loss = torch.nn.functional.cross_entropy(scores, masks)
        if self.broken.get(index, 0) > 0:
            self.broken[index] -= 1
            raise NotFinite("a gradient is not finite")
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.meters["train"].add((loss.detach(), scores.detach()), masks)
        self.seen.append((index, factor))
        if self.after:
            self.after(index)

    def rows_of(self, epoch: int, index: int) -> str:
        return f"row {index}"

    def end_epoch(self, epoch: int) -> dict[str, list[dict[str, Any]]]:
        return {"history.jsonl": [{"epoch": epoch + 1, **self.meters["train"].result("train")}]}

    def keep(self, records: dict[str, list[dict[str, Any]]]) -> None:
        self.kept += 1


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def loop_of(course: Learning, out: Path, accelerator: Accelerator, **more: Any) -> Loop:
    options = {"what": "training", "epochs": EPOCHS, "steps": STEPS, "seed": 5, "best": "train_miou"}
    return Loop(course, out, accelerator, **{**options, **more})


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for key in value:
            yield from leaves(value[key])
    elif isinstance(value, list | tuple):
        for part in value:
            yield from leaves(part)
    else:
        yield value


def equal(one: Any, other: Any) -> bool:
    pairs = list(itertools.zip_longest(leaves(one), leaves(other)))
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def history(out: Path) -> list[dict[str, Any]]:
    return [{**line, "seconds": 0} for line in read_lines(out / "history.jsonl")]


@pytest.fixture(scope="module")
def undisturbed(accelerator: Accelerator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    loop_of(Learning(accelerator), out, accelerator).run()
    return out


@pytest.mark.parametrize("moment", range(EPOCHS * STEPS))
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_at_any_step_saves_and_the_rest_is_the_same(
    accelerator: Accelerator, undisturbed: Path, tmp_path: Path, moment: int, signum: int
) -> None:
    course = Learning(accelerator)
    course.after = lambda index: os.kill(os.getpid(), signum) if index == moment else None
    before = signal.getsignal(signum)
    with pytest.raises(Interrupted) as stop:
        loop_of(course, tmp_path, accelerator).run()
    assert stop.value.status == 128 + signum and signal.getsignal(signum) is before
    assert len(course.seen) == moment + 1, "the step in which it came is the last"
    state = load_checkpoint(tmp_path / CHECKPOINT)
    assert state["epoch"] * STEPS + state["step"] == moment + 1
    rest = Learning(accelerator)
    torch.manual_seed(99)
    loop_of(rest, tmp_path, accelerator).run()
    assert [index for index, _ in rest.seen] == list(range(moment + 1, EPOCHS * STEPS))
    one, other = (load_checkpoint(out / CHECKPOINT) for out in (undisturbed, tmp_path))
    assert equal(one, other) and history(undisturbed) == history(tmp_path)


SAVED = ["model", "optimizer", "step", "meters", "epoch"]


@pytest.mark.parametrize("item", SAVED)
def test_whatever_is_not_saved_is_missed(
    accelerator: Accelerator, undisturbed: Path, tmp_path: Path, item: str
) -> None:
    """A mutation: each saved item in turn is put back to what it is at the start of a run."""
    fresh = Learning(accelerator)
    first = {"step": 0, "epoch": 0, "meters": {}}
    course = Learning(accelerator)
    course.after = lambda index: os.kill(os.getpid(), signal.SIGTERM) if index == STEPS + 1 else None
    with pytest.raises(Interrupted):
        loop_of(course, tmp_path, accelerator).run()
    state = load_checkpoint(tmp_path / CHECKPOINT)
    if item in first:
        state[item] = first[item]
    else:
        state["training"][item] = copy.deepcopy(fresh.state_dict()[item])
    save_checkpoint(tmp_path / CHECKPOINT, state)
    loop_of(Learning(accelerator), tmp_path, accelerator).run()
    one, other = (load_checkpoint(out / CHECKPOINT) for out in (undisturbed, tmp_path))
    assert not (equal(one, other) and history(undisturbed) == history(tmp_path)), f"{item} is not needed"


def test_time_saves_within_an_epoch(accelerator: Accelerator, tmp_path: Path, monkeypatch) -> None:
    seen = []

    def note(path: Path, state: dict[str, Any]) -> None:
        seen.append((state["epoch"], state["step"]))
        save_checkpoint(path, state)

    monkeypatch.setattr("training.loop.save_checkpoint", note)
    loop_of(Learning(accelerator), tmp_path, accelerator, save_seconds=0).run()
    assert seen == [divmod(done, STEPS) for done in range(EPOCHS * STEPS + 1)]


def test_steps_that_are_not_finite_leave_no_trace(
    accelerator: Accelerator, undisturbed: Path, tmp_path: Path
) -> None:
    course = Learning(accelerator, broken={1: 1, 6: 1})
    before = [buffer.clone() for buffer in course.buffers()]
    loop = loop_of(course, tmp_path, accelerator, epochs=2)
    loop.run()
    assert [index for index, _ in course.seen] == [0, 2, 3, 4, 5, 7] and loop.skipped == 2
    assert [line["skipped_steps"] for line in history(tmp_path)] == [1, 2]
    # six batches went into the statistics of batch norm, not eight
    assert next(b for b in course.buffers() if b.dtype == torch.int64).item() == 6 != before[2]


def test_many_in_a_row_go_back_once_and_then_stop(accelerator: Accelerator, tmp_path: Path, capsys) -> None:
    course = Learning(accelerator, broken=dict.fromkeys(range(STEPS, 2 * STEPS), 1))
    loop_of(course, tmp_path / "once", accelerator).run()
    assert [f for i, f in course.seen] == [1.0] * STEPS + [0.5] * (2 * STEPS)
    assert "half the rate" in capsys.readouterr().out and len(history(tmp_path / "once")) == EPOCHS
    course = Learning(accelerator, broken=dict.fromkeys(range(STEPS, 2 * STEPS), 9))
    with pytest.raises(
        TaskError, match=r"epoch 2, step 4 of 4, 0\.5 times the learning rate; last rows: row 3"
    ):
        loop_of(course, tmp_path / "twice", accelerator).run()
    assert len(history(tmp_path / "twice")) == 1


def test_the_best_epoch_stays(accelerator: Accelerator, undisturbed: Path) -> None:
    scores = [line["train_miou"] for line in history(undisturbed)]
    assert load_checkpoint(undisturbed / BEST)["epoch"] == scores.index(max(scores)) + 1
    assert load_checkpoint(previous(undisturbed / CHECKPOINT))["epoch"] == EPOCHS - 1


def test_a_record_that_lost_lines_is_not_begun_anew(
    accelerator: Accelerator, undisturbed: Path, tmp_path: Path
) -> None:
    (tmp_path / CHECKPOINT).write_bytes((undisturbed / CHECKPOINT).read_bytes())
    with pytest.raises(TaskError, match="0 of the 3 lines"):
        loop_of(Learning(accelerator), tmp_path, accelerator)


def test_a_run_never_begins_anew_in_silence(
    accelerator: Accelerator, undisturbed: Path, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed, tmp_path / "gone")
    for path in (tmp_path / "gone").glob("*.pt"):
        path.unlink()
    with pytest.raises(TaskError, match=r"history.jsonl and no checkpoint.pt: bring it back from a copy"):
        loop_of(Learning(accelerator), tmp_path / "gone", accelerator)
    with pytest.raises(TaskError, match="another command than the search"):
        loop_of(Learning(accelerator), undisturbed, accelerator, what="search")
    shutil.copytree(undisturbed, tmp_path / "rubbish")
    (tmp_path / "rubbish" / "history.jsonl").write_text("{no json")
    with pytest.raises(TaskError, match=r"history\.jsonl cannot be read"):
        loop_of(Learning(accelerator), tmp_path / "rubbish", accelerator)


def test_a_damaged_state_never_takes_the_place_of_the_one_before(
    accelerator: Accelerator, undisturbed: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(undisturbed, tmp_path / "run")
    (out / CHECKPOINT).write_bytes(b"torn")
    (out / BEST).unlink()
    course = Learning(accelerator)
    course.after = lambda index: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(Interrupted):
        loop_of(course, out, accelerator).run()
    states = [load_checkpoint(path) for path in (out / CHECKPOINT, previous(out / CHECKPOINT))]
    assert [(state["epoch"], state["step"]) for state in states] == [(EPOCHS - 1, 1), (EPOCHS - 1, 0)]
    scores = [line["train_miou"] for line in history(undisturbed)[: EPOCHS - 1]]
    # a kill between the save of an epoch and its link as the best one is made good
    assert (out / BEST).exists() == (scores[-1] == max(scores))


@pytest.mark.parametrize("last", [True, False])
def test_a_state_that_is_not_finite_is_neither_saved_nor_the_end(
    accelerator: Accelerator, tmp_path: Path, last: bool
) -> None:
    index = 2 * STEPS - 1 if last else STEPS + 1

    def poison(times: int) -> Learning:
        course, left = Learning(accelerator), [times]

        def spoil(now: int) -> None:
            if now == index and left[0]:
                left[0] -= 1
                with torch.no_grad():
                    course.model[0].weight[0] = float("inf")

        course.after = spoil
        return course

    loop_of(poison(1), tmp_path / "once", accelerator, save_seconds=0).run()
    assert len(history(tmp_path / "once")) == EPOCHS
    assert load_checkpoint(tmp_path / "once" / CHECKPOINT)["factor"] == 0.5
    with pytest.raises(TaskError, match=r"diverged: model|diverged: .* is not finite in epoch 2, step"):
        loop_of(poison(2), tmp_path / "twice", accelerator, save_seconds=0).run()
    assert load_checkpoint(tmp_path / "twice" / CHECKPOINT)["epoch"] == 1


@pytest.mark.parametrize("item", ["factor", "skipped", "row"])
def test_what_faults_leave_in_the_state_is_needed_too(
    accelerator: Accelerator, tmp_path: Path, item: str
) -> None:
    def end(name: str, **changes: float) -> Any:
        course = Learning(accelerator)
        course.after = lambda index: os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted):
            loop_of(course, tmp_path / name, accelerator).run()
        state = load_checkpoint(tmp_path / name / CHECKPOINT)
        state |= {"factor": 0.5, "skipped": 3, "row": 3, **changes}
        save_checkpoint(tmp_path / name / CHECKPOINT, state)
        # of steps that are not finite the fourth in a row is one too many
        rest = Learning(accelerator, {1: 1} if item == "row" else {})
        try:
            loop_of(rest, tmp_path / name, accelerator).run()
        except TaskError as error:
            return str(error)
        return [history(tmp_path / name), list(leaves(load_checkpoint(tmp_path / name / CHECKPOINT)))]

    assert not equal(end("kept"), end("dropped", **{item: 1.0 if item == "factor" else 0}))


# ---- the file


def test_a_checkpoint_is_plain_and_sealed(tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT
    assert load_checkpoint(path) is None
    save_checkpoint(path, STATE)
    assert equal(torch.load(path, weights_only=True), STATE) and equal(load_checkpoint(path), STATE)
    save_checkpoint(path, {**STATE, "epoch": 3})
    assert load_checkpoint(path)["epoch"] == 3 and load_checkpoint(previous(path))["epoch"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.previous.pt", CHECKPOINT]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "gone"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, damage: str) -> None:
    path = tmp_path / CHECKPOINT
    for epoch in (1, 2):
        save_checkpoint(path, {**STATE, "epoch": epoch})
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "gone":
        path.unlink()
        assert load_checkpoint(path)["epoch"] == 1
        return
    path.write_bytes({"cut": data[:-9], "flipped": bytes(data), "empty": b""}[damage])
    with pytest.warns(UserWarning, match="damaged"):
        assert load_checkpoint(path)["epoch"] == 1
    previous(path).write_bytes(b"x")
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match="begin with a new --out"):
        load_checkpoint(path)


def test_a_checkpoint_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT
    torch.save(STATE, path)
    assert equal(load_checkpoint(path), STATE)
    path.write_bytes(path.read_bytes()[:200] + path.read_bytes()[260:])
    with pytest.warns(UserWarning), pytest.raises(CheckpointError):
        load_checkpoint(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nothing_that_is_not_finite_is_saved(tmp_path: Path, value: float) -> None:
    path = tmp_path / CHECKPOINT
    save_checkpoint(path, STATE)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="exp_avg holds a number that is not finite"):
        save_checkpoint(path, {"optimizer": {"state": [{"exp_avg": torch.tensor([1.0, value])}]}})
    assert path.read_bytes() == before and not previous(path).exists()


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
@pytest.mark.parametrize("name", [CHECKPOINT, "history.jsonl", "genotype.json"])
def test_a_full_disk_keeps_what_was_there(tmp_path: Path, share: float, name: str) -> None:
    path, size = tmp_path / name, 40_000
    write_atomically(path, b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * size), hard))
        with pytest.raises(DiskFullError, match=f"cannot write .*{name}: it needs 40,000 bytes"):
            write_atomically(path, bytes(size))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.read_bytes() == b"before" and [p.name for p in tmp_path.iterdir()] == [name]
