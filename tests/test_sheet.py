"""Proves that a sheet shows the rows it names under both masks, and that the worst ones are the worst."""

import io
import json
import warnings
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

import searchseg
from searchseg.baselines import UNet
from searchseg.pretrained import save_pretrained
from searchseg.task import IGNORE, camvid, custom
from training import sheet
from training.networks import baseline
from training.presets import RetrainSettings
from training.rows import CheckedRows, load_rows

TASK = custom(["ground", "box"])
WIDTHS = (30, 5, 22, 12, 36, 2, 17, 26)  # of the boxes, of 40 columns
COMMON = ["--task", "custom", "--classes", "ground,box"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    rows = []
    for number, width in enumerate(WIDTHS):
        pixels = np.random.default_rng(number).integers(0, 256, (30, 40, 3), np.uint8)
        mask = np.zeros((30, 40), np.uint8)
        mask[:, :width] = 1
        rows.append({"image": Image.fromarray(pixels), "mask": Image.fromarray(mask)})
    folder = tmp_path_factory.mktemp("boxes")
    datasets.Dataset.from_list(rows).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A network that calls everything a box."""
    settings = RetrainSettings((2, 4, 4, 4), 2, (2, 2, 2, 4), 32, 1, 4)
    net = baseline("unet", settings, TASK)
    assert isinstance(net, UNet)
    with torch.no_grad():
        net.head.weight.zero_()
        net.head.bias.copy_(torch.tensor([0.0, 1.0]))
    save_pretrained(net, folder := tmp_path_factory.mktemp("model"))
    return folder


def test_the_worst_rows_are_those_with_the_smallest_boxes(data, model, tmp_path):
    out = tmp_path / "sheets"
    words = [*COMMON, "--data", str(data), "--split", "train", "--out", str(out), "--device", "cpu"]
    assert sheet.main([str(model), *words, "--pictures", "5", "--worst", "3"]) == 0
    rows = CheckedRows(load_rows(str(data), "train", None, TASK), TASK, None, "rows", quiet=True)
    # ground is never found: the mean of its 0 and of the share of box
    wanted = [float((mask == 1).float().mean()) / 2 for _, mask in rows]
    record = json.loads((out / "scores.json").read_text())
    assert wanted == pytest.approx([width / 80 for width in WIDTHS])
    assert record["miou"] == pytest.approx(wanted, abs=1e-4)
    assert str(tmp_path.parent) not in json.dumps(record)
    assert record["sample"] == sheet.drawn_rows(len(WIDTHS), 5, seed=0)
    assert record["worst"] == sheet.worst_rows(record["miou"], 3) == [5, 1, 3]
    assert record["fingerprint"] == searchseg.Segmenter.from_pretrained(model).fingerprint
    net = searchseg.from_pretrained(model)
    for name in ("sample", "worst"):
        cases = list(sheet.cases_of(net, rows, TASK, "cpu", record[name]))
        for case, row in zip(cases, record[name], strict=True):
            assert case.row == row and case.miou == pytest.approx(wanted[row])
            assert np.array_equal(case.picture, rows[row][0].permute(1, 2, 0))
            assert np.array_equal(case.truth, rows[row][1]) and (case.prediction == 1).all()
        shown = Image.open(io.BytesIO((out / f"{name}.png").read_bytes()))
        assert np.array_equal(shown, sheet.draw(cases, len(cases), TASK, 3))
    assert sheet.main([str(model), *words, "--pictures", "0"]) == 0
    assert not (out / "sample.png").exists(), "a sheet of an earlier call stays"


def test_rows_are_drawn_by_chance_and_seed():
    draws = [sheet.drawn_rows(60, 20, seed) for seed in range(5)]
    assert all(len(set(rows)) == 20 and rows == sorted(rows) for rows in draws)
    assert len({tuple(rows) for rows in draws}) == 5 and max(draws[0]) > 40
    assert sheet.drawn_rows(60, 20, 3) == draws[3]
    assert sheet.drawn_rows(3, 20, 0) == sheet.worst_rows([0.5] * 3, 9) == [0, 1, 2]


def test_every_case_stands_under_its_own_masks():
    picture = Image.new("RGB", (400, 200), "white")
    truth = np.zeros((200, 400), np.uint8)
    truth[:, 200:], truth[:, 360:] = 1, IGNORE
    case = sheet.Case(7, picture, truth, 1 - np.minimum(truth, 1), 0.5)
    drawn = np.array(sheet.draw([case, case], 2, TASK, 2))
    colors = [[int(color[at : at + 2], 16) for at in (1, 3, 5)] for color in TASK.colors]
    ground, box = (np.array(color) * 0.6 + 255 * 0.4 for color in colors)
    top = sheet.LINE + sheet.GAP + sheet.LINE
    for left in (0, drawn.shape[1] // 2):
        at = [drawn[top + 50, left + sheet.GAP + n * (sheet.SIDE + sheet.GAP) :] for n in range(3)]
        for place, colours in ((50, (255, ground, box)), (150, (255, box, ground)), (190, (255, 255, 255))):
            for tile, colour in zip(at, colours, strict=True):
                assert np.abs(tile[place] - np.asarray(colour)).max() <= 2


def test_a_row_without_a_pixel_that_counts_is_never_the_worst(model):
    picture = torch.zeros(3, 24, 32, dtype=torch.uint8)
    rows = [(picture, torch.full((24, 32), value, dtype=torch.uint8)) for value in (IGNORE, 1, 0)]
    net = searchseg.from_pretrained(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # numpy's, of a mean of nothing
        scores = sheet.scores_of(net, rows, TASK, "cpu")
    assert np.isnan(scores[0]) and scores[1:] == [1.0, 0.0]
    assert sheet.worst_rows(scores, 3) == [2, 1]


@pytest.mark.parametrize("size", [(1, 500), (900, 1), (20, 30)])
def test_a_picture_of_any_shape_has_its_place(size):
    masks = np.ones((2, size[1], size[0]), np.uint8)
    drawn = sheet.draw([sheet.Case(0, Image.new("RGB", size), *masks, 1.0)], 1, TASK, 1)
    assert drawn.width == 3 * (sheet.SIDE + sheet.GAP) + sheet.GAP


def test_every_class_stands_in_the_legend():
    task = camvid()
    case = sheet.Case(0, Image.new("RGB", (20, 10), "white"), *np.full((2, 10, 20), IGNORE, np.uint8), 0.5)
    narrow = np.array(sheet.draw([case], 1, task, 1))
    for color in task.colors:
        wanted = [int(color[at : at + 2], 16) for at in (1, 3, 5)]
        assert (narrow == wanted).all(-1).sum() >= (sheet.LINE - sheet.GAP) ** 2, color


def test_what_does_not_fit_is_one_sentence(data, model, tmp_path, capsys):
    words = ["--data", str(data), "--split", "train", "--out", str(tmp_path / "out"), "--device", "cpu"]
    for more, told in (
        ([str(model), "--task", "custom", "--classes", "a,b"], "knows ('ground', 'box')"),
        ([str(tmp_path), *COMMON], "config.json"),
    ):
        assert sheet.main([*more, *words]) == 1
        assert told in capsys.readouterr().err and not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    for more in (["--worst", "-1"], ["--columns", "0"], ["--out", str(tmp_path / "file")]):
        with pytest.raises(SystemExit):
            sheet.main([str(model), *COMMON, *words, *more])
