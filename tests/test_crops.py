"""Proves that a training on crops sees crops, ends as it would have undisturbed, and says what it saw."""

import json

import pytest
import torch
from courses import train_with_a_stop
from test_run import command, data, tiny_preset  # noqa: F401  (fixtures)

import searchseg
import training.evaluate
from hub.card import write_card
from hub.table import table
from searchseg.pretrained import WEIGHTS
from training import retrain, trainer
from training.presets import RetrainSettings

WORDS = ["--epochs", "2", "--size", "64x96", "--crop", "32x48"]


@pytest.fixture
def seen(monkeypatch) -> list[tuple[int, ...]]:
    """Shapes of the batches of every step."""
    shapes: list[tuple[int, ...]] = []
    step = trainer.Training.step

    def noted(self, images: torch.Tensor, masks: torch.Tensor, factor: float):
        assert masks.shape == (len(images), *images.shape[2:])
        shapes.append(tuple(images.shape))
        return step(self, images, masks, factor)

    monkeypatch.setattr(trainer.Training, "step", noted)
    return shapes


def test_the_network_learns_from_crops_and_is_for_whole_pictures(data, tmp_path, seen):  # noqa: F811
    out = tmp_path / "run"
    assert retrain.main(command(data, out, "--architecture", "unet", *WORDS)) == 0
    # two steps an epoch, the first epoch at three quarters, in multiples of 16
    assert seen == [(4, 3, 32, 32)] * 2 + [(4, 3, 32, 48)] * 2
    assert searchseg.from_pretrained(out).config.image_size == (64, 96)
    record = json.loads((out / "settings.json").read_text())["settings"]
    assert record["size"] == [64, 96] and record["crop"] == [32, 48]
    scored = ["--task", "custom", "--classes", "dark,light", "--data", str(data), "--device", "cpu"]
    assert training.evaluate.main([str(out), *scored]) == 0
    write_card(out, "me/net")
    assert "crops of 48x32 px from pictures of 96x64 px" in (out / "README.md").read_text()
    assert "input 96x64" in table([out]) and "2 epochs, crops of 48x32, recipe strong" in table([out])


def test_a_stopped_training_of_a_trained_network_goes_on_with_crops(data, tmp_path, seen):  # noqa: F811
    first = tmp_path / "first"
    assert retrain.main(command(data, first, "--architecture", "unet", "--epochs", "1")) == 0
    words = ["--finetune", str(first), *WORDS]
    assert retrain.main(command(data, tmp_path / "whole", *words)) == 0
    seen.clear()
    train_with_a_stop(command(data, tmp_path / "stopped", *words), tmp_path / "stopped")
    assert seen == [(4, 3, 32, 32)] * 2 + [(4, 3, 32, 48)] * 2
    assert (tmp_path / "stopped" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()
    assert json.loads((tmp_path / "stopped" / "settings.json").read_text())["settings"]["crop"] == [32, 48]


def test_a_stream_is_cropped_too(data, tmp_path, seen):  # noqa: F811
    words = ["--architecture", "unet", *WORDS, "--streaming", "--rows", "8"]
    assert retrain.main(command(data, tmp_path / "run", *words)) == 0
    assert seen[-1] == (4, 3, 32, 48)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--crop", "65x96"], "--crop: a crop of 65x96 is larger than the picture, 64x96"),
        (["--crop", "16x96"], "other proportions"),
        (["--crop", "32x48", "--recipe", "paper"], "--crop goes with --recipe strong"),
    ],
)
def test_what_does_not_fit_is_one_sentence(more, told, data, tmp_path, capsys):  # noqa: F811
    words = ["--architecture", "unet", "--size", "64x96", *more]
    assert retrain.main(command(data, tmp_path / "run", *words)) == 1
    assert told in capsys.readouterr().err and not (tmp_path / "run" / WEIGHTS).exists()


def test_settings_of_a_crop_are_checked_at_birth():
    def settings(size: object, crop: object) -> RetrainSettings:
        return RetrainSettings((2, 4, 4, 4), 2, (2, 2), size, 1, 4, crop)

    assert settings((360, 480), None).crop_share == 1 and settings((360, 480), (180, 240)).crop_share == 0.25
    assert settings((360, 480), 224).crop_share == pytest.approx(224**2 / (360 * 480))
    for size, crop in ((100, 101), (100, (50, 76)), ((50, 100), 50)):
        with pytest.raises(ValueError, match="a crop of"):
            settings(size, crop)
