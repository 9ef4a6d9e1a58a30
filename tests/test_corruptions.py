"""Proves that --corruptions spoils pictures as cameras do, leaves masks alone, says so, survives a stop."""

import json

import pytest
import torch
from courses import train_with_a_stop
from test_run import command, data, tiny_preset  # noqa: F401  (fixtures)
from torch import Tensor
from torchvision import tv_tensors

import training.evaluate
from hub.card import write_card
from hub.table import table
from searchseg.config import ModelConfig
from searchseg.pretrained import WEIGHTS
from searchseg.task import custom
from training import retrain
from training.rows import Augmentation, corruptions

SIZE = 48
TASK = custom(["dark", "bright"])
CONFIG = ModelConfig("unet", {"widths": [2, 4], "num_classes": 2}, TASK.classes, TASK.colors, (SIZE, SIZE))
UNET = ["--architecture", "unet"]


def scene() -> tuple[Tensor, Tensor]:
    """A smooth picture with one hard edge, and its mask."""
    ramp = torch.linspace(60, 150, SIZE).repeat(SIZE, 1)
    mask = torch.zeros(SIZE, SIZE, dtype=torch.uint8)
    mask[:, SIZE // 2 :] = 1
    return (ramp + 60 * mask).byte().repeat(3, 1, 1), mask


def test_corruptions_come_after_what_strong_does_and_leave_the_mask_alone():
    strong, corrupted = (Augmentation(CONFIG, name, 0, SIZE) for name in ("strong", "corrupted"))
    same = 0
    for row in range(300):
        (picture, mask), (spoilt, other) = strong(scene(), 0, row), corrupted(scene(), 0, row)
        assert torch.equal(mask, other) and spoilt.shape == picture.shape and spoilt.isfinite().all()
        same += torch.equal(picture, spoilt)
    assert abs(same / 300 - 0.8**4) < 0.1  # none of four in a fifth of the pictures each


def test_each_corruption_does_what_a_camera_does():
    torch.manual_seed(0)
    picture = scene()[0]
    light, blur, noise, compressed = (
        [apply.transforms[0](tv_tensors.Image(picture)).float() for _ in range(20)] for apply in corruptions()
    )

    def steepest(image: Tensor) -> Tensor:
        return image.diff(dim=-1).abs().mean((0, 1)).max()

    def roughness(image: Tensor) -> Tensor:  # against the rows beside: the scene is the same in each
        return image.diff(dim=-2).abs().mean()

    clean = picture.float()
    assert all(made.mean() < clean.mean() for made in light) and min(m.mean() for m in light) < 50
    assert all(steepest(made) <= steepest(clean) for made in blur)
    assert min(steepest(made) for made in blur) < 0.4 * steepest(clean)
    rough = sorted(round(float(roughness(made))) for made in noise)
    assert 5 < rough[0] < 12 and 30 < rough[-1] < 55  # |a - b| of two normals: 1.13 sigma of 7.6 and 41
    assert all(0 < (made - clean).abs().mean() < 30 for made in compressed)
    assert len({float((made - clean).abs().mean()) for made in compressed}) > 5  # of many qualities


def test_a_network_learns_with_them_and_says_so(data, tmp_path):  # noqa: F811
    plain, spoilt, stopped = (tmp_path / name for name in ("plain", "spoilt", "stopped"))
    assert retrain.main(command(data, plain, *UNET)) == 0
    assert retrain.main(command(data, spoilt, *UNET, "--corruptions")) == 0
    train_with_a_stop(command(data, stopped, *UNET, "--corruptions"), stopped)
    files = [(folder / WEIGHTS).read_bytes() for folder in (plain, spoilt, stopped)]
    assert files[0] != files[1] == files[2]
    settings = [json.loads((folder / "settings.json").read_text()) for folder in (plain, spoilt, stopped)]
    assert [one["recipe"]["augment"] for one in settings] == ["strong", "corrupted", "corrupted"]
    for folder, words in ((plain, "recipe strong, seed"), (spoilt, "recipe strong with corruptions, seed")):
        scored = ["--task", "custom", "--classes", "dark,light", "--data", str(data), "--device", "cpu"]
        assert training.evaluate.main([str(folder), *scored]) == 0
        write_card(folder, "me/net")
        assert words in table([folder])
    assert "augment corrupted" in (spoilt / "README.md").read_text()


def test_a_recipe_that_does_not_augment_is_told(data, tmp_path, capsys):  # noqa: F811
    with pytest.raises(SystemExit):
        retrain.main(command(data, tmp_path / "run", *UNET, "--recipe", "paper", "--corruptions"))
    assert "--corruptions: the recipe paper does not augment" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
