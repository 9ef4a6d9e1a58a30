"""Proves that a table scores every system alike, chooses epochs on validation, grows, and knows its doubt."""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from hub import card
from searchseg.config import ModelConfig
from searchseg.genotype import random_genotype
from searchseg.loss import dice_cross_entropy_loss
from searchseg.pretrained import from_pretrained
from searchseg.task import pet
from training import ablation, compare, table_scores, timing
from training.bootstrap import miou, paired_bootstrap
from training.evaluate import answers, evaluate_rows
from training.files import read_lines
from training.options import hardware_of, machine
from training.presets import PARTS, PRESETS, RECIPES, Preset, RetrainSettings, recipe_of
from training.retrain_options import recipe_of_run
from training.rows import CheckedRows, load_rows
from training.source import share_of
from training.systems import System
from training.table_figures import pareto
from training.table_report import PAPER, intervals_of
from training.table_scores import picture_counts
from training.trainer import Training, _balance


def counts_of(truth: list[list[int]], answer: list[list[int]], classes: int = 2) -> np.ndarray:
    """Confusion counts of pictures given as flat lists of class ids."""
    found = np.zeros((len(truth), classes, classes), np.int64)
    for picture, (t, a) in enumerate(zip(truth, answer, strict=True)):
        np.add.at(found[picture], (t, a), 1)
    return found


def test_miou_by_hand() -> None:
    counts = counts_of([[0, 0, 1, 1]], [[0, 1, 1, 1]])
    assert miou(counts[0]) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert miou(counts_of([[0, 0]], [[0, 0]])[0]) == 1  # class 1 occurs nowhere


def test_bootstrap_knows_luck_from_merit() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 2, (60, 50))
    flip = random.random((2, 60, 50))
    good, bad = (np.where(flip[k] < rate, 1 - truth, truth) for k, rate in enumerate((0.05, 0.2)))
    one, other = counts_of(truth, good)[None], counts_of(truth, bad)[None]
    found = paired_bootstrap(one, other)
    both = paired_bootstrap(np.concatenate([one, other]), np.concatenate([other, one]))
    assert both.difference == pytest.approx(0) and not both.decided  # the mean of two seeds each
    assert found.decided and found.low < found.difference < found.high
    assert found.difference == pytest.approx(miou(one[0].sum(0)) - miou(other[0].sum(0)))
    same = paired_bootstrap(one, one)
    assert (same.low, same.difference, same.high) == (0, 0, 0) and not same.decided
    again = np.where(random.random(truth.shape) < 0.05, 1 - truth, truth)
    lucky = paired_bootstrap(one, counts_of(truth, again)[None])
    assert lucky.low < 0 < lucky.high and not lucky.decided
    assert paired_bootstrap(one, other) == found  # one seed, one answer
    with pytest.raises(ValueError, match="equal shapes"):
        paired_bootstrap(one, other[:, :-1])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pet rows in miniature: a light box on dark noise, its rim marked as border in the trimap."""
    folder, numbers = tmp_path_factory.mktemp("pet"), np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 5)):
        rows = []
        for number in range(count):
            pixels, trimap = numbers.integers(0, 90, (40, 40, 3), np.uint8), np.full((40, 40), 2, np.uint8)
            left, top = numbers.integers(2, 16, 2)
            trimap[top : top + 18, left : left + 18] = 3
            trimap[top + 2 : top + 16, left + 2 : left + 16] = 1
            pixels[top : top + 18, left : left + 18] = 220
            image, mask = Image.fromarray(pixels), Image.fromarray(trimap)
            rows.append({"image": image, "label": number % 2, "segmentation_mask": mask})
        found = datasets.Dataset.from_list(rows)
        found.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(autouse=True)
def tiny_preset(tmp_path, monkeypatch):
    final = RetrainSettings((2, 4, 4, 4), 2, (2, 2, 2, 4), 32, 3, 8)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(PRESETS, "tiny", Preset(PRESETS["smoke"].search, final))
    monkeypatch.setattr(timing, "REST", 0.0)


def run(data: Path, out: Path, *more: str) -> int:
    genotype = out.parent / "genotype.json"
    genotype.write_text(random_genotype(1, seed=0).to_json())
    words = ["--table", "pet", "--data", str(data), "--preset", "tiny", "--cpu", "--hold-out", "0.2"]
    place = ["--resume", str(out)] if out.exists() else ["--out", str(out), "--genotype", str(genotype)]
    return compare.main([*words, *place, *more])


def test_a_table_from_rows(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "table"
    assert run(data, out, "--systems", "unet,searchnet") == 0
    document = json.loads((out / "table.json").read_text())
    assert [(r["system"], r["seed"]) for r in document["trainings"]] == [("searchnet", 0), ("unet", 0)]
    for record in document["trainings"]:
        folder = out / f"{record['system']}-seed0"
        history = read_lines(folder / "history.jsonl")
        assert record["validation_miou"] == max(row["held_out_miou"] for row in history)
        assert history[record["epoch"] - 1]["held_out_miou"] == record["validation_miou"]
        best = from_pretrained(folder)
        assert not (folder / "best").exists(), "the model of the chosen epoch is that of the run folder"
        for rule, score in (("ignore", record["miou"]), ("pet", None)):
            task = pet(rule)
            rows = CheckedRows(load_rows(str(data), "test", None, task), task, None, "rows", quiet=True)
            scores = evaluate_rows(best, rows, task, "cpu", quiet=True)
            if score is None:
                assert record["foreground_iou_border_as_pet"] == pytest.approx(scores.iou[1], abs=1e-6)
            else:
                assert score == pytest.approx(scores.miou, abs=1e-6)
                assert record["dice_loss"] == pytest.approx(scores.dice_loss, abs=1e-6)
    text = (out / "table.md").read_text()
    assert (
        "| SEARCH-Net | 1 |" in text and "| UNet | 1 |" in text and "Protocol: task pet, data folder" in text
    )
    assert f"mIoU {PAPER['pet']['unet'][1]} %" in text and "protocol unknown" in text
    for name in ("loss.png", "miou.png", "cost.png", "pictures.png"):
        with Image.open(out / name) as figure:
            assert min(figure.size) > 300
    assert set(document["seconds in turns"]["systems"]) == {"searchnet", "unet"}
    assert f"| {document['seconds in turns']['systems']['unet']:.3f} |" in text and "in turns" in text
    assert card.main([str(out / "unet-seed0")]) == 0  # a run folder like any other
    told = (out / "unet-seed0" / "README.md").read_text()
    assert "the best mIoU on held-out part of the training rows, 4 rows" in told and "no epoch" not in told
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table table -->\nold\n<!-- end of table table -->\nafter\n")
    assert compare.main(["--show", str(out), "--into", str(page)]) == 0
    shown = page.read_text()
    assert "old" not in shown and "| SEARCH-Net | 1 |" in shown and shown.startswith("before\n")
    assert shown.endswith("<!-- end of table table -->\nafter\n") and "IoU of each class" not in shown
    page.write_text("no marks\n")
    assert compare.main(["--show", str(out), "--into", str(page)]) == 1 and page.read_text() == "no marks\n"
    against = intervals_of(document["trainings"], out)
    assert document["against searchnet"] == against and set(against) == {"unet"}

    about = machine()
    place = f"1 process of 1 thread on {about['device']}, torch"
    assert f"hardware {place} {about['torch']}." in text
    monkeypatch.setattr(table_scores, "machine", lambda: {**about, "torch": "9.9"})
    settings = json.loads((out / "settings.json").read_text())
    (out / "settings.json").write_text(json.dumps({**settings, "processes": 2}))  # as if two had begun it
    before = (out / "unet-seed0" / "model.safetensors").stat().st_mtime_ns
    assert run(data, out, "--systems", "fcn") == 0
    told = f"hardware {place} {about['torch']} (SEARCH-Net, UNet); {place} 9.9 (FCN)."
    assert told in (out / "table.md").read_text(), "it grew on another machine than it began on"
    grown = json.loads((out / "table.json").read_text())["trainings"]
    assert [record["system"] for record in grown] == ["searchnet", "unet", "fcn"]
    assert (out / "unet-seed0" / "model.safetensors").stat().st_mtime_ns == before, "trained twice"
    assert grown[:2] == document["trainings"]
    (out / "fcn-seed0" / "model.safetensors").unlink()  # as in results/, which keeps records alone
    assert compare.main(["--resume", str(out)]) == 0  # the cure that an interrupted table prints
    assert json.loads((out / "table.json").read_text())["trainings"] == grown
    capsys.readouterr()


def test_wrong_systems_are_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(data, tmp_path / "other", "--systems", "vgg")
    assert "no system 'vgg'" in capsys.readouterr().err
    assert run(data, tmp_path / "none", "--hold-out", "0") == 1
    assert "rows to choose the epoch on" in capsys.readouterr().err


def test_counts_ignore_what_the_task_ignores(data: Path, tmp_path: Path) -> None:
    task = pet()
    rows = CheckedRows(load_rows(str(data), "test", None, task), task, None, "rows", quiet=True)

    class Always(torch.nn.Module):
        """Says pet for every pixel."""

        def __init__(self) -> None:
            super().__init__()
            self.config = ModelConfig("unet", {}, task.classes, task.colors, (32, 32))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            ones = torch.ones(len(image), 1, *image.shape[2:])
            return torch.cat([-ones, ones], 1)

    counts, losses, _ = picture_counts(Always(), rows, task, "cpu")
    assert counts.shape == (5, 2, 2) and (counts[:, :, 0] == 0).all() and len(losses) == 5
    assert (counts[:, 1, 1] == 14 * 14).all() and (counts[:, 0, 1] == 40 * 40 - 18 * 18).all()


def test_processes_share_the_rows_that_choose_the_epoch(data: Path) -> None:
    task = pet()
    rows = CheckedRows(load_rows(str(data), "test", None, task), task, None, "rows", quiet=True)
    parts = [list(share_of(rows, process, 2)) for process in range(2)]
    assert [len(part) for part in parts] == [3, 2]
    for place, (pixels, mask) in enumerate(rows):
        found = parts[place % 2][place // 2]
        assert torch.equal(found[0], pixels) and torch.equal(found[1], mask)
    assert share_of(rows, 0, 6) is rows  # too few for six: each scores all of them


def test_names_of_systems() -> None:
    found = [System(name) for name in ("setr-mla", "fpn@tu-efficientnet_lite0", "searchnet", "unet")]
    assert [system.title for system in found] == [
        "SETR-MLA", "FPN (tu-efficientnet_lite0)", "SEARCH-Net", "UNet"
    ]  # fmt: skip
    assert [system.architecture for system in found] == ["setr", "fpn", "searchnet", "unet"]
    settings = PRESETS["tiny"].retrain
    model = found[0].build(settings, pet(), random_genotype(1, seed=0))
    assert model.config.arguments["decoder"] == "mla"
    narrow = System("unet-8").build(settings, pet(), random_genotype(1, seed=0))
    assert narrow.config.arguments["widths"] == [8, 16, 32, 64] and System("unet-8").title == "UNet-8"
    wrong_names = "vgg", "setr-large", "unet@resnet18", "", "fpn@", "searchnet@", "setr-pup", "unet-0"
    for wrong in (*wrong_names, "unet-8@resnet18"):
        with pytest.raises(ValueError, match="no system"):
            System(wrong)


def test_a_system_that_cannot_be_built_leaves_the_others(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table"
    assert run(data, out, "--systems", "fpn@no_such_encoder,unet", "--flip") == 1
    said = capsys.readouterr().err
    assert "FPN (no_such_encoder) cannot be built" in said and "not in the table: FPN" in said
    document = json.loads((out / "table.json").read_text())
    assert [record["system"] for record in document["trainings"]] == ["unet"]
    assert "no_such_encoder" in document["not run"]["fpn@no_such_encoder"]
    text = (out / "table.md").read_text()
    assert "FPN (no_such_encoder) could not be run" in text and "mirrored" in text
    best, task = from_pretrained(out / "unet-seed0"), pet()
    rows = CheckedRows(load_rows(str(data), "test", None, task), task, None, "rows", quiet=True)
    plain, flipped = (evaluate_rows(best, rows, task, "cpu", quiet=True, flip=f) for f in (False, True))
    (record,) = document["trainings"]
    assert record["miou_averaged_with_mirrored"] == pytest.approx(flipped.miou, abs=1e-6)
    assert record["miou"] == pytest.approx(plain.miou, abs=1e-6) and plain.dice_loss != flipped.dice_loss


def test_the_average_with_the_mirror_is_the_same_for_a_mirrored_picture(data: Path) -> None:
    task = pet()

    class Lopsided(torch.nn.Module):
        """Compares every pixel with the one on its left."""

        config = ModelConfig("unet", {}, task.classes, task.colors, (32, 32))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.cat([image[:, :1], image[:, :1].roll(1, -1)], 1)

    best = Lopsided()
    rows = CheckedRows(load_rows(str(data), "test", None, task), task, 32, "rows", quiet=True)
    turned = [(pixels.flip(-1), mask.flip(-1)) for pixels, mask in rows]
    for flip, equal in ((True, True), (False, False)):
        pairs = zip(answers(best, rows, "cpu", flip), answers(best, turned, "cpu", flip), strict=True)
        same = [np.array_equal(one.prediction, other.prediction[:, ::-1]) for one, other in pairs]
        assert all(same) == equal


def test_pareto_front() -> None:
    points = [(3.0, 0.9), (1.0, 0.5), (2.0, 0.4), (1.0, 0.6), (4.0, 0.9)]
    assert pareto(points) == [(1.0, 0.6), (3.0, 0.9)]


def test_ablation_adds_a_part_at_a_time(data: Path, tmp_path: Path) -> None:
    assert "rare classes weigh more" not in [label[2:] for label, _ in ablation.steps(2)]
    rows = ablation.steps(3)
    assert [len(parts) for _, parts in rows] == list(range(len(PARTS) + 1))
    recipes = [recipe_of(parts) for _, parts in rows]
    assert recipes[-1] == RECIPES["strong"] and len(set(map(repr, recipes))) == len(rows)
    out = tmp_path / "ablation"
    words = ["--data", str(data), "--preset", "tiny", "--cpu", "--hold-out", "0.2", "--architecture", "unet"]
    assert (
        ablation.main([*words, "--size", "32x48", "--batch-size", "4", "--epochs", "1", "--out", str(out)])
        == 0
    )
    document = json.loads((out / "ablation.json").read_text())
    rows = ablation.steps(2)
    assert [record["system"] for record in document["trainings"]] == [str(n) for n in range(len(rows))]
    assert document["protocol"]["size"] == "32x48" and document["protocol"]["batch"] == 4
    text = (out / "ablation.md").read_text()
    assert all(f"| {label} |" in text for label, _ in rows) and text.count(" [") == len(rows) - 1
    assert from_pretrained(out / "0-seed0").config.image_size == (32, 48)
    assert "seeds held fixed" in text and "hardware 1 process of 1 thread on" in text
    assert not (out / "genotype.json").exists(), "a UNet has none"
    before = (out / "0-seed0" / "model.safetensors").stat().st_mtime_ns
    assert ablation.main(["--resume", str(out)]) == 0
    assert (out / "0-seed0" / "model.safetensors").stat().st_mtime_ns == before, "trained twice"
    assert (out / "ablation.md").read_text().split("Command")[0] == text.split("Command")[0]


def test_hardware_is_told_by_name_where_it_differs() -> None:
    def on(device: str, processes: int, threads: int) -> dict[str, object]:
        return {"machine": {"device": device, "threads": threads, "torch": "9"}, "processes": processes}

    first, other = on("abacus", 2, 1), on("slide rule", 1, 4)
    assert hardware_of([("a", first), ("b", first)]) == "2 processes of 1 thread on abacus, torch 9"
    assert hardware_of([("a", first), ("b", other), ("c", first), ("d", {})]) == (
        "2 processes of 1 thread on abacus, torch 9 (a, c); "
        "1 process of 4 threads on slide rule, torch 9 (b); not on record (d)"
    )


def test_only_three_classes_or_more_are_balanced(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.zeros(256, np.int64)
    pixels[:3] = 80, 15, 5
    strong = RECIPES["strong"]
    weights = _balance(strong, pixels, 3)
    assert weights is not None and weights.argsort().tolist() == [0, 1, 2]
    assert _balance(strong, pixels, 2) is None and _balance(strong, None, 3) is None
    assert _balance(recipe_of([]), pixels, 3) is None
    training = Training(torch.nn.Conv2d(3, 3, 1), strong, Accelerator(cpu=True), weights)
    logits, target = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 4, 4))
    assert training.criterion(logits, target) == dice_cross_entropy_loss(logits, target, weight=weights)


def test_a_run_that_goes_on_keeps_its_recipe(tmp_path: Path) -> None:
    args = argparse.Namespace(recipe="strong", out=tmp_path, resume=None)
    assert recipe_of_run(args) == RECIPES["strong"]
    args.resume = tmp_path
    (tmp_path / "settings.json").write_text("{}")
    assert recipe_of_run(args) == replace(RECIPES["strong"], balance=False)  # of before it was on record
    kept = {**asdict(RECIPES["strong"]), "lr": 0.5}
    (tmp_path / "settings.json").write_text(json.dumps({"recipe": kept}))
    assert recipe_of_run(args).lr == 0.5
