"""Proves that a comparison trains every genotype once, scores it on rows kept out, and tells the result."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image, ImageDraw

import training.compare
from searchseg.cost import parameters
from searchseg.genotype import random_genotype
from searchseg.pretrained import from_pretrained
from searchseg.task import TaskError, pet
from training.compare import candidates, compare, main, markdown, summary
from training.evaluate import Evaluation
from training.networks import searchnet
from training.presets import PRESETS, RetrainSettings
from training.rows import hold_out

TINY = RetrainSettings(
    widths=(2, 2, 2, 4), stem_stride=2, unet_widths=(2, 2, 2, 4), size=32, epochs=1, batch_size=4
)
WIDE = dataclasses.replace(TINY, widths=(8, 16, 16, 16))


def drawn(number: int) -> dict:
    numbers = np.random.default_rng(number)
    picture = Image.fromarray(numbers.integers(0, 120, (36, 40, 3), dtype=np.uint8))
    trimap = Image.new("L", picture.size, 2)
    box = (*numbers.integers(2, 10, 2).tolist(), *numbers.integers(20, 34, 2).tolist())
    ImageDraw.Draw(picture).ellipse(box, fill=(230, 180, 90))
    ImageDraw.Draw(trimap).ellipse(box, fill=1, outline=3)
    return {"image": picture, "segmentation_mask": trimap}


FEATURES = datasets.Features(image=datasets.Image(), segmentation_mask=datasets.Image())


def numbered(count: int) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"number": list(range(count))})


# rows kept out


@pytest.mark.parametrize("count, share, kept", [(10, 0.2, 2), (7, 0.5, 4), (8, 0.01, 1), (200, 0.1, 20)])
def test_the_share_is_kept_out_and_no_row_is_in_both(count, share, kept):
    learning, out = (part["number"] for part in hold_out(numbered(count), share))
    assert len(out) == kept and sorted([*learning, *out]) == list(range(count))


def test_the_same_rows_are_kept_out_whatever_the_seed():
    cuts = []
    for seed in (0, 1):
        torch.manual_seed(seed), np.random.seed(seed)  # noqa: NPY002
        cuts.append(list(hold_out(numbered(50), 0.2)[1]["number"]))
    assert cuts[0] == cuts[1] != list(range(10)), "and not just the first ones"


def test_nothing_is_kept_out_for_a_share_of_zero():
    learning, out = hold_out(numbered(5), 0.0)
    assert list(learning["number"]) == list(range(5)) and out is None


@pytest.mark.parametrize("count, share", [(5, 1.0), (5, 1.5), (5, -0.2), (1, 0.5), (5, 0.95)])
def test_a_share_that_leaves_nothing_to_learn_from_is_an_error_with_a_cure(count, share):
    with pytest.raises(TaskError, match=r"--hold-out .* rows leaves none to learn from: take"):
        hold_out(numbered(count), share)


# the table


def record(kind: str, name: str, seed: int, miou: float, **more: float) -> dict:
    sizes = {"parameters": 1_500_000, "macs": 2_000_000_000}
    return {
        "kind": kind,
        "name": name,
        "genotype": f"id of {name}",
        "seed": seed,
        "miou": miou,
        **sizes,
        **more,
    }


RECORDS = [
    record("searched", "found", 0, 0.60),
    record("random", "random 1", 0, 0.50),
    record("random", "random 2", 0, 0.40, parameters=2_500_000),
    record("searched", "found", 1, 0.66),
    record("random", "random 1", 1, 0.54),
    record("random", "random 2", 1, 0.56, parameters=2_500_000),
]


def test_summary_has_mean_deviation_and_improvement():
    rows = {row["name"]: row for row in summary(RECORDS)}
    assert list(rows) == ["found", "random 1", "random 2", "random, all"]
    assert {name: row["trainings"] for name, row in rows.items()} == {
        "found": 2, "random 1": 2, "random 2": 2, "random, all": 4,
    }  # fmt: skip
    assert [row["mean"] for row in rows.values()] == pytest.approx([0.63, 0.52, 0.48, 0.50])
    # of a sample: the sum of squares divided by n - 1
    deviations = [0.06 / 2**0.5, 0.04 / 2**0.5, 0.16 / 2**0.5, (0.0152 / 3) ** 0.5]
    assert [row["deviation"] for row in rows.values()] == pytest.approx(deviations)
    assert rows["found"]["improvement"] == pytest.approx(26.0)  # 100 * (0.63 - 0.50) / 0.50
    assert [rows[name]["improvement"] for name in ("random 1", "random 2", "random, all")] == [None] * 3
    assert [row["parameters"] for row in rows.values()] == [1_500_000, 1_500_000, 2_500_000, 2_000_000]
    assert rows["found"]["genotype"] == "id of found" and rows["random, all"]["genotype"] is None


def test_a_loss_against_random_is_negative():
    worse = [record("searched", "found", 0, 0.4), record("random", "random 1", 0, 0.5)]
    assert summary(worse)[0]["improvement"] == pytest.approx(-20.0)


def test_one_training_has_no_deviation_and_without_random_ones_there_is_no_improvement():
    (row,) = summary([record("searched", "found", 0, 0.6)])
    assert row["deviation"] is None and row["improvement"] is None and row["mean"] == 0.6


def cells(text: str) -> list[list[str]]:
    table = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_markdown_holds_the_numbers_the_best_first_and_the_protocol():
    text = markdown(RECORDS, {"split": "train", "held out": 0.2})
    head, line, *rows = cells(text)
    assert "test mIoU" not in head and set(line) == {"---"} and {len(row) for row in rows} == {len(head)}
    assert [row[0] for row in rows] == ["found", "random 1", "random, all", "random 2"]
    assert rows[0] == ["found", "`id of found`", "2", "0.6300", "0.0424", "+26.00 %", "1.50 M", "2.00 G"]
    assert rows[2] == ["random, all", "", "4", "0.5000", "0.0712", "", "2.00 M", "2.00 G"]
    assert "Protocol: split train, held out 0.2." in text


def test_markdown_has_the_test_split_when_every_training_was_scored_on_it():
    tested = [{**r, "test_miou": r["miou"] / 2} for r in RECORDS]
    head, _, *rows = cells(markdown(tested, {}))
    assert head[-1] == "test mIoU" and [row[-1] for row in rows] == ["0.3150", "0.2600", "0.2500", "0.2400"]
    assert "test mIoU" not in cells(markdown([*tested[:-1], RECORDS[-1]], {}))[0]


# the genotypes


def write_genotype(path: Path, seed: int, nodes: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(random_genotype(nodes, seed).to_json())
    return path


def test_random_genotypes_are_as_large_as_the_first_searched_one(tmp_path):
    searched = [write_genotype(tmp_path / f"{seed}" / "genotype.json", seed) for seed in (77, 78)]
    found = candidates(searched, 3, 0.05, 0, WIDE, pet())
    assert [(entry.kind, entry.name) for entry in found] == [
        ("searched", "77"), ("searched", "78"), ("random", "random 1"), ("random", "random 2"),
        ("random", "random 3"),
    ]  # fmt: skip
    sizes = [parameters(searchnet(entry.genotype, WIDE, pet())) for entry in found]
    assert all(abs(size - sizes[0]) <= 0.05 * sizes[0] for size in sizes[2:])
    free = candidates(searched, 12, None, 0, WIDE, pet())[2:]
    sizes_of_free = [parameters(searchnet(entry.genotype, WIDE, pet())) for entry in free]
    assert any(abs(size - sizes[0]) > 0.05 * sizes[0] for size in sizes_of_free), "or nothing was proved"


def test_random_genotypes_have_the_nodes_of_the_first_and_depend_on_the_seed(tmp_path):
    searched = [write_genotype(tmp_path / "genotype.json", 0, nodes=2)]
    one, same, other = (candidates(searched, 2, None, seed, TINY, pet()) for seed in (0, 0, 1))
    assert one == same and not {e.genotype.id for e in one[1:]} & {e.genotype.id for e in other[1:]}
    assert all(entry.genotype.nodes == 2 for entry in one)


# a whole comparison


@pytest.fixture(scope="module", autouse=True)
def tiny_preset(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setitem(PRESETS, "tiny", dataclasses.replace(PRESETS["smoke"], retrain=TINY))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    for split, numbers in (("train", range(10)), ("test", range(100, 104))):
        rows = datasets.Dataset.from_list([drawn(number) for number in numbers], features=FEATURES)
        rows.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def noting(splits: list[str]) -> Callable:
    """`load_rows` that writes down every split it is asked for."""
    load = training.compare.load_rows

    def noted(data, split, *more):
        splits.append(split)
        return load(data, split, *more)

    return noted


@pytest.fixture(scope="module")
def splits() -> list[str]:
    """The splits that were loaded so far."""
    return []


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory, splits) -> Path:
    """A searched and a random genotype, trained from one seed for one epoch."""
    folder = tmp_path_factory.mktemp("comparison")
    genotype = write_genotype(folder / "mine" / "genotype.json", 500)
    words = ["--searched", genotype, "--random", 1, "--seeds", 1, "--data", data, "--preset", "tiny", "--cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.compare, "load_rows", noting(splits))
        assert main([str(word) for word in (*words, "--recipe", "paper", "--out", folder / "out")]) == 0
    return folder / "out"


@pytest.fixture
def again(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "again")


@pytest.fixture
def trained(monkeypatch) -> list[str]:
    """Names of the folders that are trained from now on."""
    names, retrain = [], training.compare.retrain

    def noted(model, settings, recipe, task, rows, out, *more, **options):
        names.append(out.name)
        return retrain(model, settings, recipe, task, rows, out, *more, **options)

    monkeypatch.setattr(training.compare, "retrain", noted)
    return names


def read(out: Path) -> dict:
    return json.loads((out / "compare.json").read_text())


def test_a_comparison_leaves_its_numbers_its_protocol_and_a_folder_for_every_training(finished, data, splits):
    document = read(finished)
    assert set(document) == {"protocol", "command", "summary", "trainings"}
    searched, random = document["trainings"]
    assert (searched["kind"], searched["name"]) == ("searched", "mine")
    assert (random["kind"], random["name"]) == ("random", "random 1")
    assert searched["genotype"] == random_genotype(1, 500).id != random["genotype"]
    for training_record in document["trainings"]:
        folder = finished / f"{training_record['genotype']}-seed0"
        model = from_pretrained(folder)
        assert model.genotype.id == training_record["genotype"]
        assert training_record["parameters"] == parameters(model) and training_record["macs"] > 1000
        assert 0 <= training_record["miou"] <= 1 and training_record["minutes"] > 0
        assert "test_miou" not in training_record
        assert json.loads((folder / "result.json").read_text())["miou"] == training_record["miou"]
    assert document["summary"] == summary(document["trainings"])
    assert document["protocol"] | {
        "data": f"folder {data.name}", "split": "train", "rows": 10, "held out": 0.2, "preset": "tiny",
        "recipe": "paper", "epochs": 1, "size": 32, "retraining seeds": 1, "rule": "border ignored",
    } == document["protocol"]  # fmt: skip
    assert (finished / "compare.md").read_text() == markdown(document["trainings"], document["protocol"])
    assert splits == ["train"], "the test split is read with --test alone"


def test_scores_are_of_the_rows_kept_out_and_no_training_sees_these(data, tmp_path, monkeypatch):
    rows = datasets.Dataset.from_list([{**drawn(n), "number": n} for n in range(10)])
    entries = candidates([write_genotype(tmp_path / "g" / "genotype.json", 500)], 1, None, 0, TINY, pet())
    seen, scored = [], []

    def train(model, settings, recipe, task, rows, out, accelerator, *, seed, workers):
        seen.append((seed, list(rows["number"])))
        return model

    def score(model, checked, *_, **__):
        scored.append(list(checked.rows["number"]))
        return Evaluation(iou=(0.5, 0.5), miou=0.5, accuracy=0.5, dice_loss=0.5, seconds=0.1)

    monkeypatch.setattr(training.compare, "retrain", train)
    monkeypatch.setattr(training.compare, "evaluate_rows", score)
    records = compare(entries, 2, TINY, "paper", pet(), rows, 0.2, tmp_path / "out", Accelerator(cpu=True))
    learning, kept = (list(part["number"]) for part in hold_out(rows, 0.2))
    assert seen == [(0, learning), (0, learning), (1, learning), (1, learning)] and scored == [kept] * 4
    assert [(r["name"], r["seed"]) for r in records] == [("g", 0), ("random 1", 0), ("g", 1), ("random 1", 1)]


def test_a_comparison_without_rows_kept_out_is_refused(data, tmp_path, capsys):
    genotype = write_genotype(tmp_path / "genotype.json", 0)
    words = ["--searched", genotype, "--data", data, "--preset", "tiny", "--cpu", "--out", tmp_path / "out"]
    assert main([str(word) for word in (*words, "--hold-out", 0)]) == 1
    assert "error: a comparison needs rows that no network was trained on" in capsys.readouterr().err


def test_without_a_searched_genotype_there_is_nothing_to_compare(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path / "out")])
    assert "give --searched G.json" in capsys.readouterr().err
    assert main(["--searched", str(tmp_path / "none.json"), "--cpu", "--out", str(tmp_path / "out")]) == 1
    assert "none.json" in capsys.readouterr().err


def test_resuming_repeats_no_finished_training(again, trained):
    before = read(again)
    results = {path: path.stat().st_mtime_ns for path in again.glob("*/model.safetensors")}
    (again / "compare.json").unlink()
    assert main(["--resume", str(again)]) == 0
    assert trained == [] and {path: path.stat().st_mtime_ns for path in results} == results
    after = read(again)
    for part in ("protocol", "summary", "trainings"):
        assert after[part] == before[part]


def test_resuming_trains_what_is_missing(again, trained):
    before, missing = read(again), f"{random_genotype(1, 500).id}-seed0"
    shutil.rmtree(again / missing)
    assert main(["--resume", str(again)]) == 0
    assert trained == [missing]
    scores = [[record["miou"] for record in document["trainings"]] for document in (before, read(again))]
    assert scores[0] == scores[1], "a training depends on its seed alone"


def test_resuming_takes_one_more_searched_genotype(again, trained, tmp_path):
    other = write_genotype(tmp_path / "other" / "genotype.json", 501)
    assert main(["--resume", str(again), "--searched", str(other)]) == 0
    assert trained == [f"{random_genotype(1, 501).id}-seed0"]
    assert [record["name"] for record in read(again)["trainings"]] == ["mine", "other", "random 1"]
    assert "| other |" in (again / "compare.md").read_text()


def test_a_genotype_taken_in_later_stays(again, tmp_path):
    other = write_genotype(tmp_path / "other" / "genotype.json", 501)
    assert main(["--resume", str(again), "--searched", str(other)]) == 0
    assert main(["--resume", str(again)]) == 0
    assert "other" in [record["name"] for record in read(again)["trainings"]]


def test_two_genotypes_of_one_folder_are_two_lines_of_the_table(tmp_path):
    searched = [write_genotype(tmp_path / "genotypes" / f"{seed}.json", seed) for seed in (1, 2)]
    found = candidates(searched, 0, None, 0, TINY, pet())
    assert len({entry.genotype.id for entry in found}) == 2
    records = [{**record(e.kind, e.name, 0, 0.5), "genotype": e.genotype.id} for e in found]
    assert len(summary(records)) == 2


def test_the_test_split_is_scored_when_asked_for_without_any_training(again, trained, monkeypatch):
    splits = []
    monkeypatch.setattr(training.compare, "load_rows", noting(splits))
    before = read(again)["trainings"]
    assert main(["--resume", str(again), "--test", "test"]) == 0
    assert splits == ["train", "test"] and trained == []
    after = read(again)["trainings"]
    assert all(0 <= record["test_miou"] <= 1 for record in after)
    assert [{k: v for k, v in record.items() if k != "test_miou"} for record in after] == before
    head, _, *rows = cells((again / "compare.md").read_text())
    assert head[-1] == "test mIoU"
    assert {row[0]: row[-1] for row in rows} | {r["name"]: f"{r['test_miou']:.4f}" for r in after} == {
        row[0]: row[-1] for row in rows
    }
