"""Proves that a training goes on from a trained model, on the same classes or on others, and says so."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from courses import stop_after
from huggingface_hub import ModelCard
from test_run import command, data, tiny_preset  # noqa: F401  (fixtures)

import searchseg
import training.bootstrap
import training.evaluate
from hub.card import write_card
from hub.publish import publish
from hub.table import table
from searchseg.genotype import random_genotype
from searchseg.pretrained import WEIGHTS, PretrainedError, save_pretrained
from searchseg.task import Task, camvid, custom, pet
from training import retrain
from training.networks import baseline, begun_with, searchnet
from training.presets import RECIPES, RetrainSettings

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
    rate, alone = "--lr must be a positive number", "--encoder and --encoder-weights go with --architecture"
    for words, told in (
        (["--lr", "-1"], rate),
        (["--lr", "nan"], rate),
        (["--architecture", "unet"], "not allowed with argument"),
        (["--encoder", "resnet18"], alone),
    ):
        with pytest.raises(SystemExit):
            retrain.main(command(data, tmp_path / "new", "--finetune", str(tmp_path), *words))
        assert told in capsys.readouterr().err


def test_a_run_begins_where_the_other_ended_and_goes_on_without_it(data, tmp_path, monkeypatch):  # noqa: F811
    first = tmp_path / "first"
    assert retrain.main(command(data, first, "--architecture", "unet", "--epochs", "1")) == 0
    words = ["--finetune", str(first), "--lr", "1e-30", "--epochs", "2", "--size", "48"]
    assert retrain.main(command(data, tmp_path / "same", *words)) == 0
    settings = json.loads((tmp_path / "same" / "settings.json").read_text())
    assert settings["recipe"]["lr"] == 1e-30 and settings["finetuned"]["model"] == "folder first"
    told = settings["finetuned"]["training"]
    assert told["rows"] == 8 and told["recipe"]["lr"] == RECIPES["strong"].lr
    assert str(tmp_path) not in json.dumps(told)
    before, after = (searchseg.from_pretrained(tmp_path / name) for name in ("first", "same"))
    assert after.config.image_size == (48, 48)
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(new, old, msg=name)  # a rate of nothing has changed nothing

    words = ["--finetune", str(first), "--epochs", "2"]
    assert retrain.main(command(data, tmp_path / "whole", *words)) == 0
    with monkeypatch.context() as patch:
        for epoch, name in enumerate(("at once", "later")):
            patch.setattr(training.loop, "save_checkpoint", stop_after(epoch))
            assert retrain.main(command(data, tmp_path / name, *words)) == 130
    shutil.rmtree(first)
    for name in ("at once", "later"):
        assert retrain.main(["--resume", str(tmp_path / name)]) == 0
        assert (tmp_path / name / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()
    settings = json.loads((tmp_path / "later" / "settings.json").read_text())
    assert settings["recipe"]["lr"] == RECIPES["strong"].lr / 4 and settings["settings"]["size"] == [32, 32]


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


def test_the_card_names_the_training_of_a_folder_and_no_place(data, tmp_path):  # noqa: F811
    def scored(name: str, classes: str) -> list[str]:
        words = ["--task", "custom", "--classes", classes, "--data", str(data), "--device", "cpu"]
        return [str(tmp_path / name), *words]

    assert retrain.main(command(data, tmp_path / "base", "--architecture", "unet", "--epochs", "1")) == 0
    assert training.evaluate.main(scored("base", "dark,light")) == 0
    words = ["--finetune", str(tmp_path / "base"), "--epochs", "1", "--classes", "night,day"]
    assert retrain.main(command(data, tmp_path / "net", *words)) == 0
    assert training.evaluate.main(scored("net", "night,day")) == 0
    write_card(tmp_path / "net", "net")
    card = (tmp_path / "net" / "README.md").read_text()
    rows = f"1 epochs of 32 px on 8 rows of folder {data.name}; lr 0.002"
    assert f"begun with the weights of folder base ({rows}), but for head.weight, head.bias" in card
    record = json.loads((tmp_path / "net" / "metrics.json").read_text())["training"]["finetuned"]
    assert record["training"]["rows"] == 8 and str(tmp_path) not in json.dumps(record)
    lines = table([tmp_path / "net"]).splitlines()
    assert "trained on split train, 8 rows, begun with folder base, then 1 epochs" in lines[-1]
    document = json.loads((tmp_path / "net" / "metrics.json").read_text())
    document["training"]["minutes"] = 7.0
    earlier = document["training"]["finetuned"]["training"]
    first = {"dataset": "folder old", "rows": 4, "epochs_done": 9, "minutes": 2.0}
    first |= {"recipe": {**earlier["recipe"], "lr": 0.0005, "balance": False}}  # lr as in the last training
    first |= {"pseudo": {"dataset": "folder masks", "rows": 3}}
    earlier |= {"minutes": 5.0, "finetuned": {"model": "folder older", "fresh": [], "training": first}}
    (tmp_path / "net" / "metrics.json").write_text(json.dumps(document))
    assert table([tmp_path / "net"]).splitlines()[2].endswith("| 14 min |")
    write_card(tmp_path / "net", "net")
    card = (tmp_path / "net" / "README.md").read_text()
    before = "9 epochs on 4 rows of folder old, 3 of them with a network's masks; balance no"
    older = f"which was begun with the weights of folder older ({before})"
    assert f"begun with the weights of folder base ({rows}), {older}, but for head.weight" in card


@pytest.mark.parametrize("record", ["{", "[]", '{"training": null}'])
def test_an_unreadable_record_is_none(record, tmp_path):
    trained(tmp_path, "unet", pet())
    (tmp_path / "metrics.json").write_text(record)
    assert "training" not in begun_with(str(tmp_path), pet())[1]["finetuned"]
    earlier = {"model": "folder a", "fresh": []}
    (tmp_path / "settings.json").write_text(
        json.dumps({"rows": 3, "command": "secret", "finetuned": earlier})
    )
    assert begun_with(str(tmp_path), pet())[1]["finetuned"]["training"] == {"rows": 3, "finetuned": earlier}


def test_two_models_are_held_against_each_other(data, tmp_path, capsys):  # noqa: F811
    words = ["--task", "custom", "--classes", "dark,light", "--data", str(data), "--device", "cpu"]
    folders = [str(tmp_path / kind) for kind in ("searchnet", "unet")]
    scores = []
    for folder in folders:
        trained(Path(folder), Path(folder).name, custom(["dark", "light"]))
        assert training.evaluate.main([folder, *words]) == 0
        scores.append(json.loads((Path(folder) / "metrics.json").read_text())["miou"])
    capsys.readouterr()
    assert training.bootstrap.main([*folders, *words, "--json", str(tmp_path / "difference.json")]) == 0
    found = json.loads((tmp_path / "difference.json").read_text())
    assert list(found["miou"].values()) == pytest.approx(scores) and found["pictures"] == 2
    assert found["difference"] == pytest.approx(scores[0] - scores[1])
    assert found["low"] <= found["difference"] <= found["high"]
    assert f"difference {found['difference']:+.4f}, 95% interval" in capsys.readouterr().out
    assert training.bootstrap.main([*folders, *words[:2], "--classes", "a,b", *words[4:]]) == 1
    assert "error: " in capsys.readouterr().err
