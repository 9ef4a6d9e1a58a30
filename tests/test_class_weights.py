"""Proves that a training without class weights is one without, also when it goes on, and says so."""

import json

import pytest
import torch
from courses import train_with_a_stop
from test_run import command, data, tiny_preset  # noqa: F401  (fixtures)

import training.evaluate
from hub.card import write_card
from hub.table import table
from searchseg.pretrained import WEIGHTS
from training import retrain, trainer

THREE = ["--classes", "dark,light,other", "--architecture", "unet"]


@pytest.fixture
def weights(monkeypatch) -> list[torch.Tensor | None]:
    """The class weights of every training."""
    found: list[torch.Tensor | None] = []
    begin = trainer.Training.__init__

    def noted(self, model, recipe, accelerator, class_weights=None, memory=None):
        found.append(class_weights)
        begin(self, model, recipe, accelerator, class_weights, memory)

    monkeypatch.setattr(trainer.Training, "__init__", noted)
    return found


def test_all_classes_weigh_alike_where_asked(data, tmp_path, weights):  # noqa: F811
    plain, alike, stopped = (tmp_path / name for name in ("plain", "alike", "stopped"))
    assert retrain.main(command(data, plain, *THREE)) == 0
    assert retrain.main(command(data, alike, *THREE, "--no-class-weights")) == 0
    train_with_a_stop(command(data, stopped, *THREE, "--no-class-weights"), stopped)
    balanced, *others = weights
    assert balanced is not None and balanced[0] < balanced[1] < balanced[2]
    assert others == [None, None, None]
    files = [(folder / WEIGHTS).read_bytes() for folder in (plain, alike, stopped)]
    assert files[0] != files[1] == files[2]
    told = [
        json.loads((folder / "settings.json").read_text())["recipe"] for folder in (plain, alike, stopped)
    ]
    assert [recipe["balance"] for recipe in told] == [True, False, False]
    assert told[0] == {**told[1], "balance": True}
    for folder, words in (
        (plain, "recipe strong, seed"),
        (alike, "recipe strong without class weights, seed"),
    ):
        scored = ["--task", "custom", *THREE[:2], "--data", str(data), "--device", "cpu"]
        assert training.evaluate.main([str(folder), *scored]) == 0
        write_card(folder, "me/net")
        assert words in table([folder])
    assert "balance no" in (alike / "README.md").read_text()


def test_a_recipe_that_has_none_is_told(data, tmp_path, capsys):  # noqa: F811
    words = [*THREE, "--recipe", "paper", "--no-class-weights"]
    with pytest.raises(SystemExit):
        retrain.main(command(data, tmp_path / "run", *words))
    assert "--no-class-weights: the recipe paper has none" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
