"""Proves that an architecture found for two classes is trained, saved and used for a task of eleven."""

import dataclasses
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

import searchseg
from searchseg.genotype import Genotype
from searchseg.task import CAMVID_CLASSES
from training import evaluate, retrain, search
from training.presets import PRESETS, RetrainSettings

SIZE = (48, 36)  # width, height


def pet_row(number: int) -> dict:
    """Noise, with a trimap of a box: 1 pet, 2 background."""
    picture = Image.fromarray(np.random.default_rng(number).integers(0, 255, (36, 48, 3), np.uint8))
    trimap = Image.new("L", SIZE, 2)
    trimap.paste(1, (10, 8, 30, 28))
    return {"image": picture, "segmentation_mask": trimap}


def street_row(number: int) -> dict:
    """Twelve grey stripes in an order of the picture's own; the mask has the values 0..10 and 11, void."""
    order = np.random.default_rng(number).permutation(12).astype(np.uint8)
    values = np.tile(np.repeat(order, SIZE[0] // 12), (SIZE[1], 1))
    picture = np.repeat(values[:, :, None] * 20, 3, axis=2)
    return {"image": Image.fromarray(picture), "label": Image.fromarray(values), "file_name": f"{number}.png"}


@pytest.fixture(scope="module", autouse=True)
def tiny_preset(tmp_path_factory):
    settings = dataclasses.replace(
        PRESETS["smoke"].search, widths=(2, 2, 2, 4), nodes=1, epochs=1, warmup_epochs=0, batch_size=2
    )
    final = RetrainSettings((2, 4, 4, 4), 2, (2, 2, 2, 4), 32, 2, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setitem(PRESETS, "tiny", dataclasses.replace(PRESETS["smoke"], search=settings, retrain=final))
        yield


def run(main, *words) -> None:
    assert main([str(word) for word in words]) == 0


def write_rows(folder: Path, split: str, rows: list[dict]) -> Path:
    datasets.Dataset.from_list(rows).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> Path:
    """The genotype of a search for pet and background."""
    folder = tmp_path_factory.mktemp("pets")
    data = write_rows(folder / "data", "train", [pet_row(number) for number in range(4)])
    run(search.main, "--task", "pet", "--data", data, "--preset", "tiny", "--cpu", "--out", folder / "run")
    return folder / "run" / "genotype.json"


@pytest.fixture(scope="module")
def streets(tmp_path_factory) -> Path:
    folder = write_rows(tmp_path_factory.mktemp("streets"), "train", [street_row(n) for n in range(8)])
    return write_rows(folder, "test", [street_row(n) for n in range(20, 22)])


@pytest.fixture(scope="module")
def net(found, streets, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("net")
    run(
        retrain.main, "--genotype", found, "--task", "camvid", "--data", streets, "--preset", "tiny",
        "--recipe", "paper", "--cpu", "--out", out,
    )  # fmt: skip
    return out


def test_the_model_has_the_architecture_of_the_search_and_the_classes_of_the_task(found, net):
    genotype = Genotype.from_json(found.read_text())
    model = searchseg.from_pretrained(net)
    assert model.genotype.id == genotype.id and model.genotype == genotype
    assert model.head.out_channels == 11 and model.config.classes == CAMVID_CLASSES
    config = json.loads((net / "config.json").read_text())
    assert config["arguments"]["num_classes"] == 11
    assert config["id2label"] == {str(i): name for i, name in enumerate(CAMVID_CLASSES)}


def test_the_genotype_still_says_what_it_was_found_for(found, net):
    assert (net / "genotype.json").read_text() == found.read_text()
    assert Genotype.from_json((net / "genotype.json").read_text()).search["task"] == "pet"
    settings = json.loads((net / "settings.json").read_text())
    assert settings["options"]["task"] == "camvid" and settings["rows"] == 8


def test_the_network_learned_from_all_eleven_classes(net):
    history = [json.loads(line) for line in (net / "history.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in history] == [1, 2]
    assert history[1]["train_loss"] < history[0]["train_loss"]
    assert 0 < history[1]["train_miou"] < 1


def test_it_segments_a_picture_of_any_size(net):
    segmenter = searchseg.Segmenter.from_pretrained(net, device="cpu")
    picture = street_row(30)["image"].resize((70, 45))
    result = segmenter(picture)
    assert result.mask.shape == (45, 70) and result.mask.max() < 11
    assert tuple(result.classes) == CAMVID_CLASSES and tuple(result.shares) == CAMVID_CLASSES
    assert sum(result.shares.values()) == pytest.approx(1)


def test_it_is_scored_on_its_own_task_and_refused_on_the_other(net, streets, capsys):
    run(evaluate.main, net, "--task", "camvid", "--data", streets, "--split", "test", "--device", "cpu")
    metrics = json.loads((net / "metrics.json").read_text())
    assert tuple(metrics["iou"]) == CAMVID_CLASSES and metrics["protocol"]["rule"] == "void ignored"
    assert None not in metrics["iou"].values(), "every class is in the split"
    assert evaluate.main([str(net), "--task", "pet", "--data", str(streets), "--device", "cpu"]) == 1
    assert "task pet has ('background', 'pet')" in capsys.readouterr().err
