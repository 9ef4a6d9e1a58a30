"""Proves that searches on shared weights train one architecture at a time and keep the best of the last
draws."""

import dataclasses
import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image, ImageDraw
from torch import Tensor

import training.loop
from searchseg.genotype import OPERATION_NAMES, Genotype
from searchseg.mixed import ALL
from searchseg.network import USpace
from searchseg.task import pet
from training.checkpoint import load_checkpoint, save_checkpoint
from training.files import read_lines
from training.presets import PRESETS, SearchMethod
from training.search import search
from training.shared_search import ByController, RandomShared
from training.supernet import Supernet

TINY = dataclasses.replace(
    PRESETS["smoke"].search, widths=(2, 2, 2, 4), nodes=1, epochs=2, warmup_epochs=0, batch_size=4
)
KINDS = {"random-shared": RandomShared, "reinforce": ByController}
ORIGIN = {"task": "pet", "seed": 0, "preset": "tiny"}
both = pytest.mark.parametrize("name", list(KINDS))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def begin(
    name: str, accelerator: Accelerator, seed: int = 0, chance: int = 0, nodes: int = 1
) -> RandomShared:
    """A search with `seed` on a supernet whose first weights, and all later chance, come from `chance`."""
    torch.manual_seed(chance)
    settings = dataclasses.replace(TINY, nodes=nodes)
    run = KINDS[name](USpace(settings.network(2)), settings, accelerator, SearchMethod(name, samples=4), seed)
    torch.manual_seed(chance)
    return run


def batch(seed: int) -> tuple[Tensor, Tensor]:
    numbers = torch.Generator().manual_seed(seed)
    return torch.randn(4, 3, 32, 32, generator=numbers), torch.randint(0, 2, (4, 32, 32), generator=numbers)


def state(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def of_operations(genotype: Genotype) -> set[str]:
    """Where the state of the operations of `genotype` begins in that of the supernet."""
    return {
        f"{cell}.edges.{edge.source}-{edge.target}.operations.{OPERATION_NAMES.index(edge.operation)}."
        for cell, edges in genotype.cells.items()
        for edge in edges
    }


@both
def test_a_weight_step_moves_what_runs_and_nothing_else(name, accelerator):
    run = begin(name, accelerator, nodes=2)  # a fifth of the edges is closed
    # in the second step, operations of the first must rest although Adam has a momentum for them
    for step in range(2):
        before = state(run.space)
        run.weight_step(batch(step))
        changed, chosen = moved(before, state(run.space)), of_operations(run.present)
        shared = {key for key in before if ".edges." not in key}
        assert {key for key in changed if not key.startswith(tuple(chosen))} <= shared
        for prefix in chosen:
            inside = {key for key in before if key.startswith(prefix)}
            assert not inside or inside & changed, f"{prefix} runs but does not learn"
        assert {"stem.0.weight", "head.weight", "C1.merge.0.weight", "down_C3.0.weight"} <= changed
        assert not [key for key in changed if key.endswith("alpha")]


@both
def test_every_weight_step_draws_anew(name, accelerator):
    run, seen = begin(name, accelerator), []
    for step in range(4):
        run.weight_step(batch(step))
        seen.append(run.present.id)
    assert len(set(seen)) == 4


def test_only_the_chosen_operations_run(accelerator):
    run = begin("random-shared", accelerator, nodes=2)
    run.look(batch(0))
    running = {
        f"{cell}.edges.{source}-{target}.operations.{index}."
        for cell, source, target, mixed in run.space.edges()
        for index in mixed.candidates
    }
    assert running == of_operations(run.present)


@both
def test_draws_depend_on_the_seed_alone(name, accelerator):
    one = begin(name, accelerator, seed=5, chance=1)
    two = begin(name, accelerator, seed=5, chance=2)
    torch.rand(7)
    two.weight_step(batch(9))  # draws once
    first, second = [one.present, *draws(one, 5)], [two.present, *draws(two, 4)]
    assert first[1:] == second and len({genotype.id for genotype in first}) == 6
    other = begin(name, accelerator, seed=6, chance=1)
    assert not {g.id for g in first} & {g.id for g in [other.present, *draws(other, 5)]}


def draws(run: RandomShared, number: int) -> list[Genotype]:
    return [run.draw() for _ in range(number)]


@both
def test_finish_returns_the_first_of_the_best_and_puts_its_score_on_record(name, accelerator, monkeypatch):
    run, scored, numbers = begin(name, accelerator), [], iter([0.2, 0.7, 0.1, 0.7])

    def score(batches: list) -> float:
        assert batches == ["held out"]
        scored.append(run.present)
        return next(numbers)

    monkeypatch.setattr(run, "score", score)
    found = run.finish({"task": "pet"}, ["held out"])
    assert len(scored) == len({genotype.id for genotype in scored}) == 4
    assert found == scored[1] and dict(found.search) == {"task": "pet", "samples": 4, "score": 0.7}
    assert all(mixed.candidates == ALL for *_, mixed in run.space.edges()), "the mixture runs again"


@both
def test_the_score_is_that_of_the_candidate_on_the_held_out_batches(name, accelerator):
    run, batches = begin(name, accelerator), [batch(1)]
    weights = {key: value.clone() for key, value in run.space.named_parameters()}
    found = run.finish({}, batches)
    assert not moved(weights, dict(run.space.named_parameters()))
    run.present = found
    assert 0 < found.search["score"] == run.score(batches)
    run.present = begin(name, accelerator, seed=8).present
    assert run.score(batches) != found.search["score"]


@both
def test_a_resumed_run_continues_with_the_same_draws_to_the_bit(name, accelerator, tmp_path):
    whole = begin(name, accelerator)
    advance(whole, range(1))
    save_checkpoint(tmp_path / "checkpoint.pt", whole.state_dict())
    resumed = begin(name, accelerator, chance=77)
    resumed.load_state_dict(load_checkpoint(tmp_path / "checkpoint.pt"))
    assert resumed.present == whole.present
    assert advance(resumed, range(1, 3)) == advance(whole, range(1, 3))
    assert same(whole.state_dict(), resumed.state_dict())
    ends = [run.finish({}, [batch(6)]) for run in (whole, resumed)]
    assert ends[0] == ends[1] and ends[0].search == ends[1].search


def advance(run: RandomShared, steps: range) -> list[str]:
    """Both kinds of step for each of `steps`; the architectures that ran."""
    seen = []
    for step in steps:
        run.architecture_step(batch(step + 100), batch(step))
        seen.append(run.present.id)
        run.weight_step(batch(step))
        seen.append(run.present.id)
    return seen


def same(one: object, two: object) -> bool:
    first, second = list(leaves(one)), list(leaves(two))
    assert len(first) == len(second) > 500
    return all(
        torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(first, second, strict=True)
    )


def leaves(state: object) -> Iterator[object]:
    """Every tensor and number of a nested state."""
    if isinstance(state, dict):
        for key in state:
            yield from leaves(state[key])
    elif isinstance(state, (list, tuple)):
        for item in state:
            yield from leaves(item)
    else:
        yield state


def test_random_search_learns_nothing_about_the_architecture_before_its_end(accelerator):
    run = begin("random-shared", accelerator)
    weights = {key: value.clone() for key, value in run.space.named_parameters()}
    present, drawn = run.present, run.drawn
    loss, logits = run.architecture_step(batch(0), batch(1))
    assert not moved(weights, dict(run.space.named_parameters()))
    assert (run.present, run.drawn) == (present, drawn)
    assert loss.isfinite() and not loss.requires_grad and logits.shape == (4, 2, 32, 32)


def test_an_architecture_step_moves_the_controller_and_the_weights_rest(accelerator):
    run = begin("reinforce", accelerator, nodes=2)  # with one node there is no choice of sources
    controller = run.learner.controller
    weights = {key: value.clone() for key, value in run.space.named_parameters()}
    for step in range(2):
        before = state(controller)
        loss, logits = run.architecture_step(batch(step), batch(step + 10))
        assert {"lstm.weight_hh", "operation_head.weight", "source_head.weight", "places.weight"} <= moved(
            before, state(controller)
        )
        assert loss.isfinite() and not loss.requires_grad and logits.shape == (4, 2, 32, 32)
    assert not moved(weights, dict(run.space.named_parameters()))


def test_a_weight_step_moves_no_controller(accelerator):
    run = begin("reinforce", accelerator)
    before = state(run.learner.controller)
    run.weight_step(batch(0))
    assert not moved(before, state(run.learner.controller))


def test_the_reward_is_the_score_of_the_drawn_architecture_on_the_held_out_batch(accelerator):
    run = begin("reinforce", accelerator)
    run.architecture_step(batch(4), batch(5))
    assert run.learner.baseline == pytest.approx(run.score([batch(4)]))  # the first reward
    assert run.learner.baseline != pytest.approx(run.score([batch(5)]))


FEATURES = datasets.Features(
    image=datasets.Image(), label=datasets.Value("int64"), segmentation_mask=datasets.Image()
)


def drawn(number: int) -> dict:
    numbers = np.random.default_rng(number)
    picture = Image.fromarray(numbers.integers(0, 120, (36, 40, 3), dtype=np.uint8))
    trimap = Image.new("L", picture.size, 2)
    box = (*numbers.integers(2, 10, 2).tolist(), *numbers.integers(20, 34, 2).tolist())
    ImageDraw.Draw(picture).ellipse(box, fill=(230, 180, 90))
    ImageDraw.Draw(trimap).ellipse(box, fill=1, outline=3)
    return {"image": picture, "label": number % 3, "segmentation_mask": trimap}


@pytest.fixture(scope="module")
def rows() -> datasets.Dataset:
    return datasets.Dataset.from_list([drawn(number) for number in range(8)], features=FEATURES)


@pytest.fixture(autouse=True, scope="module")
def counted_once():
    """All searches here are for networks of one size; to count its MACs takes longer than the search."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.search, "count_macs", functools.cache(training.search.count_macs))
        yield


def run_search(name: str, rows: datasets.Dataset, out: Path, accelerator: Accelerator) -> Genotype:
    method = SearchMethod(name, samples=3)
    return search(TINY, pet(), rows, out, {**ORIGIN, "method": name}, accelerator, method=method)


@pytest.fixture(scope="module")
def finished(rows, tmp_path_factory, accelerator) -> dict[str, Path]:
    """The folders of undisturbed searches, two epochs of one step each."""
    folders = {name: tmp_path_factory.mktemp(name) for name in KINDS}
    for name, out in folders.items():
        run_search(name, rows, out, accelerator)
    return folders


def read_genotype(out: Path) -> Genotype:
    return Genotype.from_json((out / "genotype.json").read_text())


def without_time(genotype: Genotype) -> dict:
    return {key: value for key, value in genotype.search.items() if key != "created"}


@both
def test_a_search_leaves_samples_and_score_on_record(finished, name):
    found, history = read_genotype(finished[name]), read_lines(finished[name] / "history.jsonl")
    assert found.search["samples"] == 3 and 0 < found.search["score"] < 1
    assert found.search["method"] == name and found.search["epochs"] == found.search["epoch_kept"] == 2
    assert [record["epoch"] for record in history] == [1, 2]
    assert history[0]["genotype"] != history[1]["genotype"]
    genotypes = read_lines(finished[name] / "search" / "genotype.jsonl")
    assert [record["epoch"] for record in genotypes] == [1, 2]
    assert not (finished[name] / "search" / "alpha.jsonl").exists(), "there is no alpha to tell of"


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    "name, epoch", [("reinforce", 1), ("random-shared", 2)]
)  # 2: only the end is missing
def test_a_search_that_is_resumed_finds_the_same(
    finished, rows, tmp_path, accelerator, monkeypatch, name, epoch
):
    save = training.loop.save_checkpoint

    def save_and_die(path: Path, state: dict) -> None:
        save(path, state)
        if state["epoch"] == epoch:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(training.loop, "save_checkpoint", save_and_die)
        with pytest.raises(Killed):
            run_search(name, rows, tmp_path, accelerator)
    assert "score" not in read_genotype(tmp_path).search
    torch.manual_seed(99)
    found, whole = run_search(name, rows, tmp_path, accelerator), read_genotype(finished[name])
    assert found == whole == read_genotype(tmp_path) and without_time(found) == without_time(whole)
    one, two = (load_checkpoint(out / "checkpoint.pt") for out in (finished[name], tmp_path))
    assert one["epoch"] == two["epoch"] == 2 and same(one, two)


@both
def test_a_finished_search_that_is_resumed_changes_nothing(
    finished, rows, tmp_path, accelerator, name, monkeypatch
):
    again = shutil.copytree(finished[name], tmp_path / "again")
    monkeypatch.setattr(Supernet, "look", lambda *_: pytest.fail("a finished search has no more to look at"))
    assert run_search(name, rows, again, accelerator) == read_genotype(finished[name])
    files = [path.relative_to(again) for path in again.rglob("*") if path.is_file()]
    assert len(files) > 5
    for file in files:
        assert (again / file).read_bytes() == (finished[name] / file).read_bytes(), file


@both
def test_halves_are_those_of_any_search_with_the_seed(finished, rows, name):
    cut = json.loads((finished[name] / "search" / "halves.json").read_text())
    assert cut == json.loads((finished["random-shared"] / "search" / "halves.json").read_text())
    assert sorted(cut["weights"] + cut["alpha"]) == list(range(len(rows)))
