"""Proves that everything a real search or retraining saves is needed: whatever is dropped changes the end."""

from __future__ import annotations

import copy
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from courses import METHODS, begin, draw_table, in_memory, without_extras

from training.checkpoint import load_checkpoint
from training.faults import equal, result
from training.loop import CHECKPOINT, Interrupted
from training.search import Searching
from training.trainer import Retraining

STOP = 2  # the step within which the signal comes, of 2 in an epoch: the first of the second epoch
NOTHING = {"losses": torch.empty(0), "counts": None, "state": {}}  # at the beginning, where it is absent
PARTS = ("alpha", "beta", "running_mean", "running_var", "num_batches_tracked")


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture(scope="module")
def rows() -> Any:
    return draw_table()


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with without_extras():
        yield


# a second-order search saves what a first-order one does (its SGD is that of the paper recipe), and is slow
@pytest.fixture(
    scope="module",
    params=[*(name for name in METHODS if name != "second order"), "retraining", "paper recipe"],
)
def stopped(
    request: pytest.FixtureRequest, rows: Any, accelerator: Accelerator, tmp_path_factory: Any
) -> tuple[str, Path, Path, dict[str, Any]]:
    """A course: its name, the undisturbed run, the one that was stopped, and the state at its beginning."""
    name, folder = request.param, tmp_path_factory.mktemp("courses")
    begin(name, rows, folder / "whole", accelerator)
    first: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        for course in (Searching, Retraining):
            patch.setattr(course, "step", _stopping(course.step, folder / "cut", first))
        with pytest.raises(Interrupted):
            begin(name, rows, folder / "cut", accelerator)
    return name, folder / "whole", folder / "cut", first


def _stopping(step: Callable[..., None], out: Path, first: dict[str, Any]) -> Callable[..., None]:
    def stopping(self: Any, index: int, batch: Any, factor: float) -> None:
        if index == 0:
            first.update(copy.deepcopy(load_checkpoint(out / CHECKPOINT)))
        step(self, index, batch, factor)
        if index == STOP:
            os.kill(os.getpid(), signal.SIGTERM)

    return stopping


def paths(state: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Places of the items of a state: entries of its dictionaries down to the networks and optimisers."""
    for key, value in state.items():
        if isinstance(value, dict) and key not in ("space", "network", "ema", "state", "controller"):
            yield from paths(value, (*above, key))
        else:
            yield (*above, key)


def dropped(state: dict[str, Any], first: dict[str, Any], place: tuple[Any, ...], part: str) -> bool:
    """Put back what stands at a place (of a network: one kind of its tensors); False if nothing changes."""
    *above, last = place
    for key in above:
        state, first = state[key], first.get(key, {})
    was = first.get(last, NOTHING.get(last, 0))
    if last not in ("space", "network", "ema"):
        changed = not same(list(leaves(state[last])), list(leaves(was)))
        state[last] = copy.deepcopy(was)
        return changed
    names = [n for n in state[last] if (n.split(".")[-1] if n.split(".")[-1] in PARTS else "weight") == part]
    changed = any(not torch.equal(state[last][n], was[n]) for n in names)
    state[last].update({n: was[n].clone() for n in names})
    return changed


def same(one: list[Any], other: list[Any]) -> bool:
    if len(one) != len(other) or [type(a) for a in one] != [type(b) for b in other]:
        return False
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(one, other, strict=True)
    )


def leaves(value: Any) -> Iterator[Any]:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else None
    if parts is None:
        yield value
    else:
        for part in parts:
            yield from leaves(part)


WANTED = {
    "darts": {"epoch", "step", "losses", "counts", "space.weight", "space.alpha", "space.beta",
              "space.running_mean", "space.running_var", "space.num_batches_tracked",
              "weight_optimizer.state", "alpha_optimizer.state"},
    "random-shared": {"drawn", "present"},
    "reinforce": {"learner.controller", "optimizer.state", "learner.baseline", "learner.generator"},
    "retraining": {"epoch", "step", "losses", "counts", "network.weight", "network.running_mean",
                   "network.running_var", "network.num_batches_tracked", "ema.weight", "ema.running_mean",
                   "ema.running_var", "optimizer.state"},
    "paper recipe": {"optimizer.state"},
}  # fmt: skip
ALL = ("darts", "retraining")  # of the others only what they have of their own
# times; rates and settings of the optimisers that every step sets anew; counts that are 0 without a fault
DERIVED = ("elapsed", "param_groups", "factor", "skipped", "row", "ema.num_batches_tracked", "scaler")


def test_a_stopped_course_ends_as_the_whole_one_and_nothing_of_its_state_can_be_dropped(
    stopped: Any, rows: Any, accelerator: Accelerator, tmp_path: Path
) -> None:
    name, whole, cut, first = stopped
    wanted, state, red = result(whole), load_checkpoint(cut / CHECKPOINT), set()
    assert (state["epoch"], state["step"]) == (1, 1)
    assert equal(resumed(name, rows, accelerator, cut, tmp_path / "same", copy.deepcopy(state)), wanted)
    shutil.copytree(cut, tmp_path / "file")
    begin(name, rows, tmp_path / "file", accelerator)
    assert equal(result(tmp_path / "file"), wanted)
    for place in paths(state):
        for part in ("weight", *PARTS) if place[-1] in ("space", "network", "ema") else ("",):
            told = ".".join(str(word) for word in (*place[-2:], part) if word)
            other = copy.deepcopy(state)
            if told.endswith(DERIVED) or (name not in ALL and not told.endswith(tuple(WANTED[name]))):
                continue
            if not dropped(other, first, place, part):
                continue
            out = tmp_path / told
            try:
                found = resumed(name, rows, accelerator, cut, out, other)
                assert not equal(found, wanted), f"{told} is not needed"
            except (AttributeError, KeyError, TypeError, ValueError):
                pass  # it does not even start
            red.add(told)
    missed = {w for w in WANTED[name] if not any(told.endswith(w) for told in red)}
    assert not missed, f"{missed} is not saved, or had not changed; seen {sorted(red)}"


def resumed(
    name: str, rows: Any, accelerator: Accelerator, cut: Path, out: Path, state: dict[str, Any]
) -> list[Any]:
    """The result of the course that goes on from a state."""
    for path in cut.rglob("*.json*"):
        (out / path.relative_to(cut)).parent.mkdir(parents=True, exist_ok=True)
        (out / path.relative_to(cut)).write_bytes(path.read_bytes())
    with in_memory() as kept:
        kept[out / CHECKPOINT] = state
        (out / CHECKPOINT).touch()
        begin(name, rows, out, accelerator)
    return result(out, kept[out / CHECKPOINT])
