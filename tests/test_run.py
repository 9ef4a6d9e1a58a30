"""Proves that one command takes rows to a model on the Hub, and that it goes on where it stopped."""

import dataclasses
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image

import searchseg
import training.evaluate
import training.loop
from hub.publish import publish
from training import search
from training.presets import PRESETS, RetrainSettings
from training.run import main

pytest_plugins = ["hub_fixture"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Eight rows to learn from and two to test on: a light box on dark noise."""
    folder = tmp_path_factory.mktemp("boxes")
    for split, numbers in (("train", range(8)), ("test", range(8, 10))):
        rows = datasets.Dataset.from_list([box(number) for number in numbers])
        rows.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def box(number: int) -> dict:
    numbers = np.random.default_rng(number)
    pixels, mask = numbers.integers(0, 90, (36, 36, 3), np.uint8), np.zeros((36, 36), np.uint8)
    left, top = numbers.integers(2, 14, 2)
    pixels[top : top + 16, left : left + 16], mask[top : top + 16, left : left + 16] = 220, 1
    return {"image": Image.fromarray(pixels), "mask": Image.fromarray(mask)}


@pytest.fixture(autouse=True)
def tiny_preset(tmp_path, monkeypatch):
    small = dataclasses.replace(
        PRESETS["smoke"].search, widths=(2, 2, 2, 4), nodes=1, epochs=2, warmup_epochs=1, batch_size=4
    )
    final = RetrainSettings((2, 4, 4, 4), 2, (2, 2, 2, 4), 32, 2, 4)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(PRESETS, "tiny", dataclasses.replace(PRESETS["smoke"], search=small, retrain=final))


def command(data: Path, out: Path, *more: str) -> list[str]:
    words = ["--task", "custom", "--classes", "dark,light", "--data", str(data), "--preset", "tiny", "--cpu"]
    return [*words, "--out", str(out), *more]


def test_from_rows_to_a_model_on_the_hub(data, tmp_path, hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    out = tmp_path / "run"
    asked = command(data, out, "--search", "--partial 2", "--push-to-hub", "alice/boxes")
    assert main(asked) == 0
    assert (
        "partial-2"
        in searchseg.Genotype.from_json((out / "search" / "genotype.json").read_text()).search["method"]
    )
    segmenter = searchseg.Segmenter.from_pretrained("alice/boxes")
    assert segmenter(Image.new("RGB", (37, 53))).mask.shape == (53, 37)
    assert segmenter.config.classes == ("dark", "light")
    published = hub.files("alice/boxes")
    assert published["genotype.json"] == (out / "model" / "genotype.json").read_bytes()
    assert b"checkpoint" not in b" ".join(name.encode() for name in published)

    before = hub.head("alice/boxes")
    capsys.readouterr()
    assert main(asked) == 0  # everything is done already, and nothing has changed
    assert capsys.readouterr().out.count("done already") == 5
    assert hub.head("alice/boxes") == before


def test_a_stopped_stage_continues_and_ends_like_an_undisturbed_one(data, tmp_path, monkeypatch):
    assert main(command(data, tmp_path / "whole")) == 0
    save = training.loop.save_checkpoint

    def save_then_stop(path: Path, state: dict) -> None:
        save(path, state)
        if state["epoch"] and "training" in state:
            raise KeyboardInterrupt

    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(training.loop, "save_checkpoint", save_then_stop)
        assert main(command(data, stopped)) == 130
    assert len((stopped / "net" / "history.jsonl").read_text().splitlines()) == 1
    assert not (stopped / "model").exists()
    assert main(command(data, stopped)) == 0
    assert len((stopped / "net" / "history.jsonl").read_text().splitlines()) == 2
    weights = [
        (tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "stopped")
    ]
    assert weights[0] == weights[1]


def test_a_failed_publication_leaves_a_whole_run_and_says_how_to_try_again(
    data, tmp_path, hub, monkeypatch, capsys
):
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    hub.fail("POST", "/commit/", status=403, times=None)
    out = tmp_path / "found"
    words = command(data, out, "--push-to-hub", "alice/found")
    assert search.main(words) == 1
    assert f"--resume {out}" in capsys.readouterr().err
    assert "epoch_kept" in searchseg.Genotype.from_json((out / "genotype.json").read_text()).search
    hub.heal()
    assert search.main(["--resume", str(out)]) == 0
    assert set(hub.files("alice/found")) >= {"genotype.json", "README.md"}


def test_a_published_genotype_is_trained_and_named_as_its_base(data, tmp_path, hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    found, net = tmp_path / "found", tmp_path / "net"
    assert search.main(command(data, found, "--push-to-hub", "alice/found")) == 0
    words = ["--recipe", "paper", "--epochs", "1", "--genotype"]
    assert training.retrain.main(command(data, net, *words, "alice/found")) == 0
    assert json.loads((net / "settings.json").read_text())["base_revision"] == hub.head("alice/found")
    assert (net / "genotype.json").read_bytes() == hub.files("alice/found")["genotype.json"]
    words = ["--task", "custom", "--classes", "dark,light", "--data", str(data), "--device", "cpu"]
    assert training.evaluate.main([str(net), *words]) == 0
    publish(net, "alice/net")
    card = ModelCard(hub.files("alice/net")["README.md"].decode())
    assert card.data.base_model == "alice/found"
    assert f"architecture of alice/found at {hub.head('alice/found')}" in card.text
    missing = command(data, tmp_path / "none", "--genotype", "alice/none")
    assert training.retrain.main(missing) == 1
    assert "the Hub has no alice/none" in capsys.readouterr().err
