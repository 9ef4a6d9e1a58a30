"""Proves that a search moves alpha on one half and the weights on the other, and is repeatable to the bit."""

import dataclasses
import inspect
import json
import math
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image, ImageDraw
from torch import Tensor

import training.loop
from searchseg.genotype import Genotype
from searchseg.network import USpace
from searchseg.task import TaskError, pet
from training.checkpoint import load_checkpoint
from training.darts import Darts
from training.files import read_lines
from training.presets import PRESETS, SearchSettings
from training.rows import halves
from training.search import main, search

TINY = dataclasses.replace(
    PRESETS["smoke"].search, widths=(2, 2, 2, 4), nodes=1, epochs=3, warmup_epochs=1, batch_size=4
)
SHORT = dataclasses.replace(TINY, epochs=2)  # one epoch of warm-up, one with alpha
ORIGIN = {"task": "pet", "seed": 0, "preset": "tiny"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def drawn(number: int) -> dict:
    numbers = np.random.default_rng(number)
    picture = Image.fromarray(numbers.integers(0, 120, (36, 40, 3), dtype=np.uint8))
    trimap = Image.new("L", picture.size, 2)
    box = (*numbers.integers(2, 10, 2).tolist(), *numbers.integers(20, 34, 2).tolist())
    ImageDraw.Draw(picture).ellipse(box, fill=(230, 180, 90))
    ImageDraw.Draw(trimap).ellipse(box, fill=1, outline=3)
    return {"image": picture, "label": number % 3, "segmentation_mask": trimap}


FEATURES = datasets.Features(
    image=datasets.Image(), label=datasets.Value("int64"), segmentation_mask=datasets.Image()
)


@pytest.fixture(scope="module")
def rows() -> datasets.Dataset:
    return datasets.Dataset.from_list([drawn(number) for number in range(8)], features=FEATURES)


def batch(seed: int) -> tuple[Tensor, Tensor]:
    numbers = torch.Generator().manual_seed(seed)
    return torch.randn(4, 3, 32, 32, generator=numbers), torch.randint(0, 2, (4, 32, 32), generator=numbers)


def begin(accelerator: Accelerator, **changes: object) -> Darts:
    torch.manual_seed(0)
    settings = dataclasses.replace(TINY, **changes)
    return Darts(USpace(settings.network(2)), settings, accelerator)


def values(parameters: list[Tensor]) -> list[Tensor]:
    return [p.detach().clone() for p in parameters]


def same(one: list[Tensor], two: list[Tensor]) -> bool:
    assert len(one) == len(two) > 0
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def all_moved(before: list[Tensor], after: list[Tensor]) -> bool:
    return not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_an_architecture_step_moves_every_alpha_and_no_weight(accelerator):
    run = begin(accelerator)
    weights, alphas = values(run.weights), values(run.alphas)
    for seed in range(2):
        run.architecture_step(batch(seed))
    assert same(values(run.weights), weights) and all_moved(alphas, values(run.alphas))


def test_a_weight_step_moves_the_weights_and_no_alpha(accelerator):
    run = begin(accelerator)
    weights, alphas = values(run.weights), values(run.alphas)
    for seed in range(2):
        run.weight_step(batch(seed))
    assert same(values(run.alphas), alphas)
    moved = [not torch.equal(a, b) for a, b in zip(weights, values(run.weights), strict=True)]
    assert all(moved)


@pytest.mark.parametrize(
    "still, rest, move", [("weight_lr", "weights", "alphas"), ("alpha_lr", "alphas", "weights")]
)
def test_with_a_learning_rate_of_zero_only_the_other_side_moves(accelerator, still, rest, move):
    run = begin(accelerator, **{still: 0.0})
    before = {side: values(getattr(run, side)) for side in (rest, move)}
    for seed in range(2):
        run.architecture_step(batch(seed))
        run.weight_step(batch(seed + 10))
    assert same(values(getattr(run, rest)), before[rest])
    assert all_moved(before[move], values(getattr(run, move)))


def test_looking_moves_nothing_and_builds_no_graph(accelerator):
    run = begin(accelerator)
    before = values(run.weights + run.alphas)
    loss, logits = run.look(batch(0))
    assert same(values(run.weights + run.alphas), before)
    assert not loss.requires_grad and logits.shape == (4, 2, 32, 32)


@pytest.mark.parametrize("side", ["alphas", "weights"])
def test_a_step_goes_down_the_gradient_of_its_own_batch(accelerator, side):
    run = begin(accelerator, weight_decay=0.0, alpha_weight_decay=0.0, weight_lr=1e-3, alpha_lr=1e-3)
    loss, _ = run.loss(batch(1))
    gradients = torch.autograd.grad(loss, getattr(run, side))
    before = values(getattr(run, side))
    {"alphas": run.architecture_step, "weights": run.weight_step}[side](batch(1))
    # the first step of Adam has the length of the learning rate against the sign of each gradient
    for old, new, gradient in zip(before, values(getattr(run, side)), gradients, strict=True):
        clear = gradient.abs() > 1e-4
        assert torch.equal((new - old)[clear].sign(), -gradient[clear].sign())
        assert ((new - old)[clear].abs() - 1e-3).abs().max() < 1e-4 if clear.any() else True


def test_the_loss_of_a_batch_falls_when_either_side_learns_it(accelerator):
    for step in ("architecture_step", "weight_step"):
        run = begin(accelerator, alpha_lr=0.05, weight_lr=0.01)
        losses = [getattr(run, step)(batch(3))[0].item() for _ in range(6)]
        assert losses[-1] < losses[0]


def test_gradients_are_clipped(accelerator):
    run = begin(accelerator, gradient_clip=1e-3)
    run.weight_step(batch(0))
    norm = torch.cat([p.grad.flatten() for p in run.weights]).norm().item()
    assert norm == pytest.approx(1e-3, rel=1e-2)


def run_search(
    rows, out: Path, accelerator: Accelerator, settings: SearchSettings = TINY, **origin
) -> Genotype:
    return search(settings, pet(), rows, out, {**ORIGIN, **origin}, accelerator)


def state_of(out: Path) -> dict[str, Tensor]:
    return load_checkpoint(out / "checkpoint.pt")["search"]["space"]


@pytest.fixture(scope="module")
def finished(rows, tmp_path_factory, accelerator) -> Path:
    """The folder of an undisturbed search: one epoch of warm-up and two with alpha, a step each."""
    out = tmp_path_factory.mktemp("finished")
    run_search(rows, out, accelerator)
    return out


def test_a_search_leaves_what_it_promises(finished, rows):
    history = read_lines(finished / "history.jsonl")
    assert [record["epoch"] for record in history] == [1, 2, 3]
    assert [record["phase"] for record in history] == ["warmup", "search", "search"]
    for record in history:
        assert set(record) == {
            "epoch", "phase", "weight_loss", "weight_miou", "alpha_loss", "alpha_miou", "entropy", "skips",
            "skips_per_cell", "expected_macs", "genotype", "seconds",
        }  # fmt: skip
        assert 0.99 < record["entropy"] <= 1
        assert all(math.isfinite(value) for value in record.values() if isinstance(value, float))
        assert 0 <= record["alpha_miou"] <= 1 and record["expected_macs"] > 1000
    genotype = Genotype.from_json((finished / "genotype.json").read_text())
    assert genotype.search["epochs"] == 3 and genotype.search["task"] == "pet" and genotype.search["created"]
    assert history[-1]["genotype"] == genotype.id and history[-1]["skips"] == genotype.count("skip")
    cut = json.loads((finished / "search" / "halves.json").read_text())
    assert sorted(cut["weights"] + cut["alpha"]) == list(range(len(rows)))
    alphas, genotypes = (read_lines(finished / "search" / f"{name}.jsonl") for name in ("alpha", "genotype"))
    assert [record["epoch"] for record in alphas] == [record["epoch"] for record in genotypes] == [1, 2, 3]
    assert sum(history[-1]["skips_per_cell"].values()) == genotype.count("skip")
    assert genotypes[-1]["cells"] == json.loads(genotype.to_json())["cells"]
    state = state_of(finished)
    for name, table in alphas[-1]["alpha"].items():
        for key, numbers in table.items():
            assert state[f"{name}.edges.{key}.alpha"].tolist() == numbers
    assert not list(finished.rglob("*.partial"))


def test_the_same_seed_finds_the_same_to_the_bit(finished, rows, tmp_path, accelerator):
    torch.manual_seed(123)  # whatever happened before the search
    run_search(rows, tmp_path, accelerator)
    one, two = state_of(finished), state_of(tmp_path)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert history_without_time(finished) == history_without_time(tmp_path)


def test_another_seed_searches_elsewhere(finished, rows, tmp_path, accelerator):
    settings = dataclasses.replace(TINY, epochs=1, warmup_epochs=0)
    run_search(rows, tmp_path, accelerator, settings, seed=1)
    cut = [json.loads((out / "search" / "halves.json").read_text()) for out in (finished, tmp_path)]
    assert cut[0] != cut[1]
    one, two = state_of(finished), state_of(tmp_path)
    assert not any(torch.equal(one[name], two[name]) for name in one if name.endswith("alpha"))


def test_alpha_learns_from_one_half_and_the_weights_from_the_other(tmp_path, accelerator, monkeypatch):
    _, alpha_half = halves(datasets.Dataset.from_dict({"x": list(range(8))}), seed=0)
    # pet everywhere (class 1) on the rows of alpha, background (class 0) on those of the weights
    marked = [
        {**drawn(i), "segmentation_mask": Image.new("L", (40, 36), 1 if i in alpha_half else 2)}
        for i in range(8)
    ]
    seen: dict[str, set[int]] = {"look": set(), "architecture_step": set(), "weight_step": set()}
    pictures: list[float] = []

    class Watched(Darts):
        def loss(self, given: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            (caller,) = {frame.function for frame in inspect.stack()[:5]} & set(seen)
            seen[caller] |= set(given[1].unique().tolist())
            pictures.append(given[0].sum().item())
            return super().loss(given)

    monkeypatch.setattr(training.search, "Darts", Watched)
    columns = [{key: row[key] for key in ("image", "segmentation_mask")} for row in marked]
    features = datasets.Features(image=datasets.Image(), segmentation_mask=datasets.Image())
    run_search(datasets.Dataset.from_list(columns, features=features), tmp_path, accelerator, SHORT)
    assert seen == {"look": {1}, "architecture_step": {1}, "weight_step": {0}}
    assert len(set(pictures)) == len(pictures) == 4, "every epoch crops and mirrors anew"


class Killed(Exception):
    pass


@pytest.mark.parametrize("moment", ["after the checkpoint", "before the checkpoint"])
def test_a_resumed_search_equals_the_undisturbed_one_to_the_bit(
    finished, rows, tmp_path, accelerator, monkeypatch, moment
):
    save, after = training.loop.save_checkpoint, moment == "after the checkpoint"

    def save_until_killed(path: Path, state: dict) -> None:
        if after or state["epoch"] < 2:
            save(path, state)
        if state["epoch"] == 2:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(training.loop, "save_checkpoint", save_until_killed)
        with pytest.raises(Killed):
            run_search(rows, tmp_path, accelerator)
    assert (
        len(read_lines(tmp_path / "history.jsonl")) == 2
    )  # the line of an epoch comes before its checkpoint
    assert load_checkpoint(tmp_path / "checkpoint.pt")["epoch"] == (2 if after else 1)
    torch.manual_seed(99)
    genotype = run_search(rows, tmp_path, accelerator)
    one, two = (load_checkpoint(out / "checkpoint.pt") for out in (finished, tmp_path))
    assert one["epoch"] == two["epoch"] == 3
    first, second = (list(leaves(state["search"])) for state in (one, two))
    assert len(first) == len(second) > 500
    assert all(
        torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(first, second, strict=True)
    )
    assert genotype == Genotype.from_json((finished / "genotype.json").read_text())
    assert history_without_time(finished) == history_without_time(tmp_path)
    for name in ("alpha.jsonl", "halves.json"):
        assert (finished / "search" / name).read_text() == (tmp_path / "search" / name).read_text()


def history_without_time(out: Path) -> list[dict]:
    return [{**record, "seconds": 0} for record in read_lines(out / "history.jsonl")]


def leaves(state: object):
    """Every tensor and number of a nested state."""
    if isinstance(state, dict):
        for key in state:
            yield from leaves(state[key])
    elif isinstance(state, (list, tuple)):
        for item in state:
            yield from leaves(item)
    else:
        yield state


def test_during_warm_up_alpha_rests_and_the_weights_learn(finished):
    warm, *later = (record["alpha"] for record in read_lines(finished / "search" / "alpha.jsonl"))
    torch.manual_seed(0)
    fresh = USpace(TINY.network(2))
    assert warm == fresh.alphas() and later[0] != warm and later[1] != later[0]
    losses = [record["weight_loss"] for record in read_lines(finished / "history.jsonl")]
    assert losses[1] < losses[0], "the weights learn from the first epoch on"
    trained = state_of(finished)
    assert not any(torch.equal(trained[name], p) for name, p in fresh.named_parameters())


def test_a_finished_search_that_is_resumed_changes_nothing(finished, rows, tmp_path, accelerator):
    again = shutil.copytree(finished, tmp_path / "again")
    genotype = run_search(rows, again, accelerator)
    for name in ("history.jsonl", "genotype.json", "search/alpha.jsonl", "search/genotype.jsonl"):
        assert (again / name).read_text() == (finished / name).read_text()
    assert genotype.id == read_lines(again / "history.jsonl")[-1]["genotype"]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A dataset whose validation and test pictures cannot be decoded: reading any of them raises."""
    folder, no_picture = tmp_path / "data", {"bytes": b"no picture", "path": None}
    for split in ("train", "validation", "test"):
        rows = [drawn(number) for number in range(8)]
        if split != "train":
            rows = [{**row, "image": no_picture, "segmentation_mask": no_picture} for row in rows]
        file = folder / "data" / f"{split}-00000-of-00001.parquet"
        datasets.Dataset.from_list(rows, features=FEATURES).to_parquet(file)
    return folder


def command(folder: Path, out: Path, *more: str) -> list[str]:
    return ["--data", str(folder), "--preset", "tiny", "--cpu", "--out", str(out), *more]


@pytest.fixture
def tiny_preset(monkeypatch) -> None:
    tiny = dataclasses.replace(
        PRESETS["smoke"], search=dataclasses.replace(TINY, batch_size=2, epochs=1, warmup_epochs=0)
    )
    monkeypatch.setitem(PRESETS, "tiny", tiny)


def test_validation_and_test_rows_are_never_read(folder, tmp_path, tiny_preset, capsys):
    assert main(command(folder, tmp_path / "bad", "--split", "test")) == 1  # reading them does raise
    assert "row 0 cannot be decoded" in capsys.readouterr().err
    assert main(command(folder, tmp_path / "out")) == 0
    genotype = Genotype.from_json((tmp_path / "out" / "genotype.json").read_text())
    assert genotype.search["split"] == "train" and genotype.search["dataset"] == "folder data"
    for name in ("loss.png", "miou.png", "alpha.svg", "film.svg"):
        assert (tmp_path / "out" / "search" / name).stat().st_size > 1000
    assert "search/film.svg" in (tmp_path / "out" / "report.md").read_text()


def test_too_few_rows_are_an_error_with_a_cure(rows, tmp_path, accelerator):
    with pytest.raises(TaskError, match="rows"):
        run_search(rows.select([0]), tmp_path, accelerator)


def test_a_search_that_diverges_stops_before_it_writes(rows, tmp_path, accelerator):
    with pytest.raises(Exception, match=r"diverged|finite"):
        run_search(rows, tmp_path, accelerator, dataclasses.replace(SHORT, weight_lr=1e30))
    assert all(math.isfinite(record["weight_loss"]) for record in read_lines(tmp_path / "history.jsonl"))
    assert all(tensor.isfinite().all() for tensor in state_of(tmp_path).values())


def test_a_search_resumed_on_other_rows_is_refused(finished, rows, tmp_path, accelerator):
    again = shutil.copytree(finished, tmp_path / "again")
    with pytest.raises(TaskError, match=r"rows|halves"):
        run_search(rows.select(range(6)), again, accelerator, dataclasses.replace(TINY, epochs=4))
