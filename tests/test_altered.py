"""Proves that alterations do what they say, move masks along, and are scored on the same rows."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_sheet import COMMON, TASK, WIDTHS, data, model  # noqa: F401  (fixtures)

import searchseg
from searchseg.task import IGNORE, TaskError
from training import altered, sheet
from training.altered import ALTERATIONS
from training.rows import CheckedRows, load_rows

MOVED = ("upside down", "close-up, the middle quarter", "four at once")


@pytest.fixture
def pair() -> tuple[Image.Image, Image.Image]:
    """A picture that shows its own mask: bright where class 1 is; not symmetric, sides of 4n."""
    mask = np.zeros((40, 64), np.uint8)
    mask[:12, :20], mask[22:34, 30:36] = 1, 1
    return Image.fromarray(np.stack([40 + 160 * mask] * 3, axis=-1)), Image.fromarray(mask)


@pytest.mark.parametrize("name", ALTERATIONS)
def test_masks_move_with_their_pictures_and_only_then(name, pair):
    before = [np.array(part) for part in pair]
    picture, mask = ALTERATIONS[name](*pair)
    assert picture.mode == "RGB" and picture.size == mask.size and set(np.unique(mask)) == {0, 1}
    assert all(np.array_equal(part, old) for part, old in zip(pair, before, strict=True)), (
        "its input is changed"
    )
    assert np.array_equal(mask, before[1]) != (name in MOVED)
    if name in MOVED or name == "as it is":  # up to the edges, where a smaller or larger picture is mixed
        assert ((np.array(picture)[..., 0] > 120) == np.array(mask)).mean() > 0.97
    assert (name == "as it is") == np.array_equal(picture, before[0]) or name == "grey"


def test_alterations_do_what_they_are_called(pair):
    before, mask = (np.array(part) for part in pair)
    made = {name: [np.array(part) for part in alter(*pair)] for name, alter in ALTERATIONS.items()}
    for name, share in (("night, 0.15 of the light", 0.15), ("dusk, 0.45 of the light", 0.45)):
        assert np.abs(made[name][0] - share * before).max() <= 1
    assert np.array_equal(made["glare, twice the light"][0], np.minimum(2 * before.astype(int), 255))
    assert np.array_equal(made["upside down"][1], mask[::-1])
    assert np.array_equal(made["close-up, the middle quarter"][1][1::2, 1::2], mask[10:30, 16:48])
    half, four = mask[1::2, 1::2], made["four at once"][1]
    assert np.array_equal(four, np.block([[half, half[:, ::-1]], [half[:, ::-1], half]]))
    assert (
        made["fog, 0.6 of grey"][0].std() == pytest.approx(0.4 * before.std(), rel=0.05)
        and made["fog, 0.6 of grey"][0].mean() > 120
    )
    lines = made["drawing"][0]
    assert min(lines[4, 4].min(), lines[0, 0].min()) > 250 and lines[11, 5].max() < 150, "lines on white"
    colour = Image.new("RGB", (8, 8), (250, 10, 10))
    grey, _ = ALTERATIONS["grey"](colour, Image.new("L", (8, 8)))
    assert np.ptp(np.array(grey)[0, 0]) == 0
    noise = made["Gaussian noise, sigma 40 of 255"][0] - before.astype(int)
    assert 20 < noise.std() < 40 and np.array_equal(
        made["Gaussian noise, sigma 40 of 255"][0], ALTERATIONS["Gaussian noise, sigma 40 of 255"](*pair)[0]
    )
    assert made["blurred, radius 3"][0].std() < before.std() and not np.array_equal(
        made["JPEG of quality 5"][0], before
    )


@pytest.fixture
def answered(monkeypatch) -> list[torch.Tensor]:
    """The pictures that the network was asked about."""
    found: list[torch.Tensor] = []
    answers = altered.answers

    def noted(net, pairs, device):
        for pixels, mask in pairs:
            found.append(pixels)
            yield from answers(net, [(pixels, mask)], device)

    monkeypatch.setattr(altered, "answers", noted)
    return found


def test_every_alteration_is_scored_on_the_same_rows(data, model, tmp_path, capsys, answered):  # noqa: F811
    out = tmp_path / "altered"
    words = [*COMMON, "--data", str(data), "--split", "train", "--out", str(out), "--device", "cpu"]
    assert altered.main([str(model), *words, "--pictures", "3", "--seed", "2"]) == 0
    record = json.loads((out / "altered.json").read_text())
    rows = CheckedRows(load_rows(str(data), "train", None, TASK), TASK, None, "rows", quiet=True)
    assert record["rows"] == sheet.drawn_rows(len(WIDTHS), 3, 2) != [0, 1, 2]
    assert list(record["miou"]) == list(ALTERATIONS) and len(answered) == 3 * len(ALTERATIONS)
    for number, name in enumerate(ALTERATIONS):
        for asked, row in zip(answered[3 * number : 3 * number + 3], record["rows"], strict=True):
            picture = Image.fromarray(rows[row][0].permute(1, 2, 0).numpy())
            wanted, _ = ALTERATIONS[name](picture, Image.new("L", picture.size))
            assert np.array_equal(asked.permute(1, 2, 0), wanted), name
    masks = [Image.fromarray(rows[row][1].numpy()) for row in record["rows"]]
    assert sum(WIDTHS[row] for row in record["rows"]) / 3 / 40 == pytest.approx(np.mean(masks))
    for name, value in record["miou"].items():
        moved = [ALTERATIONS[name](Image.new("RGB", mask.size), mask)[1] for mask in masks]
        # the network calls everything a box: the mean of 0 for the ground and of the share of box
        assert value == pytest.approx(np.mean(moved) / 2, abs=1e-4), name
    text = (out / "altered.md").read_text()
    assert capsys.readouterr().out == text and f"| grey | {record['miou']['grey']:.4f} |" in text
    assert not record["met_corruptions"] and "--corruptions" not in text
    assert f"{record['fingerprint'][:12]}) on 3 rows" in text and str(tmp_path.parent) not in text
    net = searchseg.from_pretrained(model)
    drawn = CheckedRows(load_rows(str(data), "train", None, TASK), TASK, None, "rows", True, record["rows"])
    cases = [altered.score(net, drawn, TASK, "cpu", name)[1] for name in ALTERATIONS]
    assert [case.altered for case in cases] == list(ALTERATIONS) and {case.row for case in cases} == {
        record["rows"][0]
    }
    upside = cases[list(ALTERATIONS).index("upside down")]
    assert np.array_equal(upside.picture, rows[record["rows"][0]][0].permute(1, 2, 0).flip(0))
    assert np.array_equal(Image.open(out / "altered.png"), sheet.draw(cases, len(cases), TASK, 3))


def test_what_cannot_be_scored_is_one_sentence(data, model, tmp_path, capsys):  # noqa: F811
    class Rim(list):  # nothing counts but at the rim, which a close-up does not show
        numbers = (0, 1)

    mask = torch.full((24, 32), IGNORE, dtype=torch.uint8)
    mask[0] = 1
    rows, net = Rim([(torch.zeros(3, 24, 32, dtype=torch.uint8), mask)] * 2), searchseg.from_pretrained(model)
    assert altered.score(net, rows, TASK, "cpu", "grey")[0] == 1.0
    close = "close-up, the middle quarter"
    with pytest.raises(TaskError, match=f"{close}: every pixel of the 2 rows drawn is ignored"):
        altered.score(net, rows, TASK, "cpu", close)
    words = [str(model), *COMMON, "--data", str(data), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert altered.main([*words, "--split", "nothing"]) == 1
    assert "nothing" in capsys.readouterr().err and not (tmp_path / "out").exists()
    for more in (["--pictures", "0"], ["--columns", "0"]):
        with pytest.raises(SystemExit):
            altered.main([*words, *more])


def test_a_model_that_has_met_corruptions_says_so():
    plain, spoilt = ({"recipe": {"augment": augment}} for augment in ("strong", "corrupted"))
    assert altered.met_corruptions(spoilt) and not altered.met_corruptions(plain)
    assert not altered.met_corruptions({}) and not altered.met_corruptions({"finetuned": {"model": "me/net"}})
    later = {"recipe": {"augment": "strong"}, "finetuned": {"training": {"finetuned": {"training": spoilt}}}}
    assert altered.met_corruptions(later)
    record = {"miou": {"grey": 0.5}, "model": "net", "fingerprint": "f" * 64, "rows": [1], "dataset": "data"}
    record |= {"split": "test", "seed": 0, "rule": "nothing ignored"}
    for met in (True, False):
        text = altered.markdown(record | {"met_corruptions": met})
        assert ("darkness, blur, noise and JPEG are nothing new to it" in text) == met
