"""Proves that one scan finds every kind of bad row, names it with its cure, and lets odd good rows pass."""

from __future__ import annotations

import io
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from searchseg import task as tasks
from searchseg.loss import dice_cross_entropy_loss, dice_loss
from training import check, retrain

CLASSES = "ground,box,tree"


def png(picture: Image.Image) -> dict:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


def good(number: int) -> dict:
    pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), np.uint8)
    mask = np.zeros((20, 30), np.uint8)
    mask[5:15, 5:15], mask[:3] = 1, 2
    return {"image": png(Image.fromarray(pixels)), "mask": png(Image.fromarray(mask))}


def masked(array: np.ndarray, mode: str | None = None) -> dict:
    image = Image.fromarray(array)
    return {**good(99), "mask": png(image.convert(mode) if mode else image)}


def palette() -> dict:
    image = Image.fromarray(np.zeros((20, 30), np.uint8)).convert("P")
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putpixel((3, 3), 1)
    return {**good(98), "mask": png(image)}


def write(folder: Path, **splits: list[dict]) -> Path:
    kinds = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    for name, rows in splits.items():
        path = folder / "data" / f"{name}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(rows, features=kinds).to_parquet(path)
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def run(data: Path, *more: str) -> int:
    return check.main(["--task", "custom", "--classes", CLASSES, "--data", str(data), *more])


ROWS = [good(n) for n in range(4)]
ZEROS = np.zeros((20, 30), np.uint8)
TEN = np.full((20, 30), 10, np.uint8)


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (masked(TEN), "row 2: mask value 10 is not declared"),
        (masked(np.zeros((21, 30), np.uint8)), "row 2: the picture is 30x20, its mask 30x21"),
        (masked(ZEROS, "RGB"), "row 2: the mask has 3 channels"),
        (masked(ZEROS, "LA"), "row 2: the mask has 2 channels"),
        (
            {**good(5), "image": {"bytes": b"\xff\xd8\xff no picture", "path": None}},
            "row 2 cannot be decoded",
        ),
        ({**good(5), "mask": {"bytes": good(5)["mask"]["bytes"][:60], "path": None}}, "row 2"),
    ],
    ids=["out of range", "size", "RGB mask", "alpha mask", "unreadable", "truncated mask"],
)
def test_a_bad_row_is_named_and_the_others_are_read(tmp_path: Path, capsys, bad: dict, told: str) -> None:
    rows = [*ROWS[:2], bad, *ROWS[2:]]
    assert run(write(tmp_path / "data", train=rows)) == 1
    said = capsys.readouterr().out
    assert told in said and "1 faults" in said and "train: 5 rows, sides of 20 to 30 pixels" in said


def test_a_missing_file_is_named() -> None:
    kinds = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    lost = {**good(5), "image": {"bytes": None, "path": "/nowhere/a.png"}}
    rows = datasets.Dataset.from_list([ROWS[0], lost], features=kinds)
    found = check.scan(rows, tasks.custom(CLASSES.split(",")), "train", quiet=True)
    (fault,) = found.faults
    assert "row 1 cannot be decoded" in fault and "/nowhere/a.png" in fault and "replace or remove" in fault


def test_a_palette_is_read_by_its_indices(tmp_path: Path, capsys) -> None:
    assert run(write(tmp_path / "data", train=[*ROWS, palette()])) == 0
    assert "0 faults\n0 doubts" in capsys.readouterr().out


def test_an_absent_class_and_blank_rows_are_doubts(tmp_path: Path, capsys) -> None:
    nothing = np.full((20, 30), 200, np.uint8)
    two = [masked(nothing), {**masked(np.minimum(ZEROS + 1, 1)), "image": good(7)["image"]}]
    assert run(write(tmp_path / "data", train=two), "--ignore-value", "200") == 0
    said = capsys.readouterr().out
    assert (
        "no mask has ground, tree" in said
        and "every pixel is ignored in row 0" in said
        and "2 doubts" in said
    )


def test_only_ignored_pixels_are_a_fault(tmp_path: Path, capsys) -> None:
    blank = [masked(np.full((20, 30), 200, np.uint8)) for _ in range(2)]
    assert run(write(tmp_path / "data", train=blank), "--ignore-value", "200") == 1
    assert "every pixel of every mask is ignored" in capsys.readouterr().out


def test_equal_pictures_within_and_across_splits(tmp_path: Path, capsys) -> None:
    data = write(tmp_path / "data", train=[*ROWS, ROWS[0]], test=[good(50), ROWS[1]])
    assert run(data, "--splits", "train,test", "--json", str(tmp_path / "report.json")) == 0
    said = capsys.readouterr().out
    assert "train, row 4 has the picture of row 0" in said
    assert "train and test share 1 pictures (rows 1 and 1)" in said and "2 doubts" in said
    document = json.loads((tmp_path / "report.json").read_text())
    assert [split["rows"] for split in document["splits"]] == [5, 2] and len(document["shared"]) == 1
    assert document["splits"][0]["pixels"]["box"] == 5 * 100


def test_what_is_wrong_with_a_whole_split(tmp_path: Path, capsys) -> None:
    data = write(tmp_path / "data", train=ROWS)
    assert run(data, "--splits", "train,dev") == 1
    assert "dev" in capsys.readouterr().out
    assert run(data, "--split", "train[:0]") == 1
    said = capsys.readouterr().out  # datasets says it itself, but not of what it has in its cache
    assert "corresponds to no data" in said or "is empty" in said
    path = data / "data" / "train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:200])
    assert run(data) == 1
    assert "Parquet magic bytes not found" in capsys.readouterr().out
    assert check.main(["--task", "custom", "--data", str(data)]) == 1
    assert "--classes" in capsys.readouterr().err


def test_many_faults_are_counted_and_the_first_are_shown(tmp_path: Path, capsys) -> None:
    assert run(write(tmp_path / "data", train=[masked(TEN) for _ in range(30)])) == 1
    said = capsys.readouterr().out
    assert "30 faults" in said and said.count("is not declared") == check.MOST_SHOWN and "10 more" in said


def test_a_training_stops_at_the_same_row_before_it_begins(tmp_path: Path, capsys) -> None:
    data = write(tmp_path / "data", train=[*ROWS[:2], masked(TEN), *ROWS[2:]])
    words = ["--task", "custom", "--classes", CLASSES, "--data", str(data), "--preset", "smoke", "--cpu"]
    assert retrain.main([*words, "--architecture", "unet", "--out", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert "row 2: mask value 10 is not declared" in said and "training.check" in said
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_a_batch_without_a_counted_pixel_is_no_nan() -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    for loss in (dice_loss, dice_cross_entropy_loss):
        value = loss(logits, torch.full((2, 4, 4), tasks.IGNORE))
        value.backward()
        assert value == 0 and logits.grad.isfinite().all()
