"""Proves that a training goes on from a trained model, on the same classes or on others, and says so."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from test_run import command, data, tiny_preset  # noqa: F401  (fixtures)

import searchseg
import training.evaluate
from hub.card import write_card
from hub.publish import publish
from searchseg.genotype import random_genotype
from searchseg.pretrained import WEIGHTS, PretrainedError, save_pretrained
from searchseg.task import Task, camvid, custom, pet
from training import retrain
from training.networks import baseline, begun_with, searchnet
from training.presets import RetrainSettings

pytest_plugins = ["hub_fixture"]
SMALL = RetrainSettings((2, 4, 4, 4), 2, (2, 2, 2, 4), 32, 1, 4)


def trained(folder: Path, kind: str, task: Task) -> torch.nn.Module:
    """A model none of whose tensors is as a fresh one has it, saved in `folder`."""
    torch.manual_seed(1)
    choices = {"encoder": "resnet18"} if kind in ("fcn", "fpn") else {}
    net = searchnet(random_genotype(1, seed=3), SMALL, task) if kind == "searchnet" else None
    net = net or baseline(kind, SMALL, task, **choices)
    net.train()(torch.rand(2, 3, 64, 64))
    with torch.no_grad():
        for parameter in net.parameters():  # some biases begin as zeros
            parameter.add_(torch.rand_like(parameter), alpha=0.01)
    save_pretrained(net, folder)
    return net


@pytest.mark.parametrize("kind", ["searchnet", "unet"])
def test_the_same_classes_keep_every_weight(kind, tmp_path):
    before = trained(tmp_path, kind, pet())
    config = dataclasses.replace(before.config, image_mean=(0.1, 0.2, 0.3))
    save_pretrained(before, tmp_path, config)
    net, origin = begun_with(str(tmp_path), pet(), (48, 64))
    assert net.training and origin == {"finetuned": {"model": f"folder {tmp_path.name}", "fresh": []}}
    assert net.config == dataclasses.replace(config, image_size=(48, 64))
    for name, tensor in before.state_dict().items():
        assert torch.equal(net.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("kind", "heads"),
    [
        ("searchnet", ["head.weight", "head.bias"]),
        ("unet", ["head.weight", "head.bias"]),
        ("fcn", [f"heads.{n}.{part}" for n in range(3) for part in ("weight", "bias")]),
        ("fpn", ["network.segmentation_head.0.weight", "network.segmentation_head.0.bias"]),
    ],
)
@pytest.mark.parametrize("task", [camvid(), custom(["shadow", "light"])], ids=["more", "others"])
def test_other_classes_begin_with_a_fresh_last_layer_alone(kind, heads, task, tmp_path):
    before = trained(tmp_path, kind, pet())
    net, origin = begun_with(str(tmp_path), task, (64, 64))
    assert origin["finetuned"]["fresh"] == heads
    assert net.config.classes == task.classes and net.config.arguments["num_classes"] == len(task.classes)
    for name, tensor in before.state_dict().items():
        assert torch.equal(net.state_dict()[name], tensor) != (name in heads), name
    assert net(torch.rand(1, 3, 64, 64)).shape == (1, len(task.classes), 64, 64)


def test_no_model_is_one_sentence(tmp_path, data, capsys):  # noqa: F811
    with pytest.raises(PretrainedError, match=r"config\.json"):
        begun_with(str(tmp_path), pet(), (32, 32))
    assert retrain.main(command(data, tmp_path / "run", "--finetune", str(tmp_path))) == 1
    assert "error: " in capsys.readouterr().err
    for words in (["--lr", "-1"], ["--lr", "nan"], ["--architecture", "unet"]):
        with pytest.raises(SystemExit):
            retrain.main(command(data, tmp_path / "run", "--finetune", str(tmp_path), *words))


def test_a_run_begins_where_the_other_ended_and_goes_on_without_it(data, tmp_path, monkeypatch):  # noqa: F811
    first = tmp_path / "first"
    assert retrain.main(command(data, first, "--architecture", "unet", "--epochs", "1")) == 0
    words = ["--finetune", str(first), "--lr", "1e-30", "--epochs", "2", "--size", "48"]
    assert retrain.main(command(data, tmp_path / "same", *words)) == 0
    settings = json.loads((tmp_path / "same" / "settings.json").read_text())
    assert settings["recipe"]["lr"] == 1e-30 and settings["finetuned"]["model"] == "folder first"
    assert settings["finetuned"]["training"] == json.loads((first / "settings.json").read_text())
    before, after = (searchseg.from_pretrained(tmp_path / name) for name in ("first", "same"))
    assert after.config.image_size == (48, 48)
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(new, old, msg=name)  # a rate of nothing has changed nothing

    save = training.loop.save_checkpoint

    def save_then_stop(path: Path, state: dict) -> None:
        save(path, state)
        if state["epoch"] == 1:
            raise KeyboardInterrupt

    words[3] = "1e-3"
    assert retrain.main(command(data, tmp_path / "whole", *words)) == 0
    with monkeypatch.context() as patch:
        patch.setattr(training.loop, "save_checkpoint", save_then_stop)
        assert retrain.main(command(data, tmp_path / "stopped", *words)) == 130
    shutil.rmtree(first)
    assert retrain.main(["--resume", str(tmp_path / "stopped")]) == 0
    ends = [(tmp_path / name / WEIGHTS).read_bytes() for name in ("whole", "stopped")]
    assert ends[0] == ends[1]


def test_a_model_of_the_hub_is_named_as_the_base(data, tmp_path, hub, monkeypatch):  # noqa: F811
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    scored = ["--task", "custom", "--classes", "dark,light", "--data", str(data), "--device", "cpu"]
    assert retrain.main(command(data, tmp_path / "base", "--architecture", "unet", "--epochs", "1")) == 0
    assert training.evaluate.main([str(tmp_path / "base"), *scored]) == 0
    publish(tmp_path / "base", "alice/base")
    assert retrain.main(command(data, tmp_path / "net", "--finetune", "alice/base", "--epochs", "1")) == 0
    assert training.evaluate.main([str(tmp_path / "net"), *scored]) == 0
    publish(tmp_path / "net", "alice/net")
    card = ModelCard(hub.files("alice/net")["README.md"].decode())
    assert card.data.base_model == "alice/base"
    assert "new weights" not in card.text
    assert f"begun with the weights of alice/base at {hub.head('alice/base')}" in card.text


def test_the_card_names_the_training_of_a_folder(data, tmp_path):  # noqa: F811
    assert retrain.main(command(data, tmp_path / "base", "--architecture", "unet", "--epochs", "1")) == 0
    words = ["--finetune", str(tmp_path / "base"), "--epochs", "1", "--classes", "night,day"]
    assert retrain.main(command(data, tmp_path / "net", *words)) == 0
    scored = ["--task", "custom", "--classes", "night,day", "--data", str(data), "--device", "cpu"]
    assert training.evaluate.main([str(tmp_path / "net"), *scored]) == 0
    write_card(tmp_path / "net", "net")
    card = (tmp_path / "net" / "README.md").read_text()
    first = json.loads((tmp_path / "base" / "settings.json").read_text())["command"]
    assert (
        f"begun with the weights of folder base, which `{first}` trained, but for head.weight, head.bias"
        in card
    )
