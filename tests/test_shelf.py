"""Proves that the page loads models of the Hub at their commit, lists them, and says why one cannot be."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from test_page import GENOTYPE, U, draw_photo, make_models

import app
from hub.publish import publish
from page.architecture import ArchitectureTab
from page.catalogue import CatalogueTab
from page.segment import SegmentTab
from page.shelf import Shelf
from searchseg import PretrainedError, SearchNet, UShapeConfig, save_pretrained
from searchseg.config import ModelConfig
from searchseg.pretrained import build
from searchseg.segmenter import Segmenter

pytest_plugins = ["hub_fixture"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_models(folder, draw_photo(folder / "photo.jpg"))
    return folder


@pytest.fixture
def published(hub, tmp_path: Path) -> str:
    """A SEARCH-Net on the Hub with metrics and the record of its search; returns its commit."""
    torch.manual_seed(1)
    config = ModelConfig("searchnet", U, ("background", "leaf"), ("#000000", "#00ff00"), (32, 32))
    save_pretrained(SearchNet(UShapeConfig(**U), GENOTYPE), tmp_path, config)
    metrics = json.loads((app.MODELS / "searchnet-pet" / "metrics.json").read_text())
    metrics |= {"miou": 0.625, "parameters": 62212, "iou": {"background": 0.75, "leaf": 0.5}}
    metrics["protocol"] |= {"task": "leaves", "classes": ["background", "leaf"]}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    (tmp_path / "search").mkdir()
    row = {"epoch": 1, **json.loads(GENOTYPE.to_json())}
    (tmp_path / "search" / "genotype.jsonl").write_text(json.dumps(row) + "\n")
    sent = publish(tmp_path, "alice/leaves", token="hf_alice")
    assert sent.sha is not None
    return sent.sha


def test_a_hub_model_is_used_like_a_shipped_one(hub, published: str, folder: Path) -> None:
    shelf = Shelf(folder)
    told = CatalogueTab(shelf).load("alice/leaves", "", "")
    name = f"alice/leaves@{published[:7]}"
    assert f"{name} is loaded" in told and (
        f"SEARCH-Net, alice/leaves at {published[:7]}" in shelf.choices[-1][0]
    )
    model = shelf.get(name)
    assert (model.miou, model.task, model.commit, model.source) == (0.625, "leaves", published, "Hub")
    shown, facts = SegmentTab(shelf).show(str(folder / "photo.jpg"), name)
    assert "leaf" in shown and f"commit {published}" in facts
    assert published in CatalogueTab(shelf).show()
    assert "Epoch 1: genotype" in ArchitectureTab(shelf).epoch(name, 1)[0]
    network, *_, film, _, frame, _ = ArchitectureTab(shelf).show(name)
    assert "C3" in network and "<svg" in film and "<svg" in frame


@pytest.mark.parametrize(
    ("architecture", "arguments", "title"),
    [("setr", {"width": 16, "num_classes": 2}, "SETR"), ("fcn", {"num_classes": 2}, "FCN")],
)
def test_a_baseline_is_published_and_shown_like_a_searched_network(
    hub, folder: Path, tmp_path: Path, architecture: str, arguments: dict, title: str
) -> None:
    config = ModelConfig(architecture, arguments, ("background", "leaf"), ("#000000", "#00ff00"), (32, 32))
    network = build(config)
    save_pretrained(network, tmp_path, config)
    metrics = json.loads((app.MODELS / "unet-pet" / "metrics.json").read_text())
    metrics |= {"miou": 0.5, "parameters": sum(p.numel() for p in network.parameters())}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    sent = publish(tmp_path, f"alice/{architecture}", token="hf_alice")
    shelf = Shelf(folder)
    assert "is loaded" in CatalogueTab(shelf).load(f"alice/{architecture}", "", "")
    name = f"alice/{architecture}@{sent.sha[:7]}"
    shown, facts = SegmentTab(shelf).show(str(folder / "photo.jpg"), name)
    assert "leaf" in shown and title in facts
    assert title in ArchitectureTab(shelf).show(name)[0]


def test_a_later_commit_is_another_model(hub, published: str, folder: Path, tmp_path: Path) -> None:
    shelf = Shelf(folder)
    first = shelf.add("alice/leaves")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    (tmp_path / "metrics.json").write_text(json.dumps({**metrics, "miou": 0.7}))
    second = publish(tmp_path, "alice/leaves", token="hf_alice").sha
    assert second != published
    assert shelf.add("alice/leaves").commit == second
    assert shelf.add("alice/leaves", revision=published) is first
    assert len(shelf) == 5


def test_the_cache_is_found_without_a_request(hub, published: str, folder: Path) -> None:
    Shelf(folder).add("alice/leaves")
    hub.requests.clear()
    shelf = Shelf(folder)
    assert shelf.find_cached() == [f"alice/leaves@{published[:7]}"]
    assert shelf.load(shelf.find_cached()[0]).segmenter(Image.new("RGB", (8, 8))).mask.shape == (8, 8)
    assert hub.requests == []


def test_what_cannot_be_loaded_says_why(hub, folder: Path) -> None:
    tab, before = CatalogueTab(Shelf(folder)), 3
    hub.create("alice/other")
    hub.create("bob/secret", private=True)
    for repo_id, told in (
        ("", "Type the id"), ("../etc", "nor a Hub id"), (str(folder / "unet-tiny"), "nor a Hub id"),
        ("hub/models", "nor a Hub id"), ("alice/none", "the Hub has no alice/none"),
        ("bob/secret", "the Hub has no bob/secret, or it is private"), ("alice/other", "config.json"),
        ("<b>/x", "nor a Hub id"),
    ):  # fmt: skip
        answer = tab.load(repo_id, "", "")
        assert 'class="warning"' in answer and "<b>" not in answer
        assert re.search(told, answer), answer
    assert len(tab.shelf) == before, "nothing of this may stand on the shelf"
    with pytest.raises(PretrainedError):
        tab.shelf.add("alice/none")


def test_the_hub_is_asked_for_models(hub, published: str, folder: Path) -> None:
    tab = CatalogueTab(Shelf(folder))
    answer = tab.ask("")
    assert "alice/leaves" in answer and "0.6250" in answer
    assert "There is none" in tab.ask("bob")
    assert "no name of a user" in tab.ask("<script>") and "<script>" not in tab.ask("<script>")


def test_a_model_beyond_the_bounds_is_refused_before_its_weights(hub, published: str, folder: Path) -> None:
    config = json.loads(hub.files("alice/leaves")["config.json"])
    large = json.dumps({**config, "image_size": [4096, 4096]}).encode()
    hub.commit("alice/leaves", {"config.json": large})
    hub.requests.clear()
    answer = CatalogueTab(Shelf(folder)).load("alice/leaves", "", "")
    assert "more than this page runs" in answer and 'class="warning"' in answer
    assert not [path for _, path in hub.requests if "model.safetensors" in path]


def test_nested_metrics_are_no_metrics(hub, published: str, folder: Path) -> None:
    hub.commit("alice/leaves", {"metrics.json": b"[" * 100_000})
    model = Shelf(folder).add("alice/leaves")
    assert model.miou is None and model.task is None


def test_a_visitor_does_not_borrow_the_token_of_the_page(
    hub, published: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.create("alice/secret", private=True, owner_token="hf_alice")
    files = {name: content for name, content in hub.files("alice/leaves").items() if "." in name}
    hub.commit("alice/secret", files)
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    public, own = CatalogueTab(Shelf(folder), private=False), CatalogueTab(Shelf(folder))
    assert "the Hub has no alice/secret" in public.load("alice/secret", "", "")
    assert "is loaded" in own.load("alice/secret", "", "")
    assert "alice/secret" not in public.ask("") and "alice/secret" in own.ask("")


def test_messages_hold_no_path_of_the_server(hub, published: str, folder: Path, tmp_path: Path) -> None:
    hub.commit("alice/leaves", {"model.safetensors": b"no tensors"})
    answer = CatalogueTab(Shelf(folder)).load("alice/leaves", "", "")
    assert "not a safetensors file" in answer and str(Path.home()) not in answer
    assert "/tmp/" not in answer and str(tmp_path) not in answer


def test_seconds_are_those_of_a_third_picture(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def clock() -> float:
        told.append("clock")
        return len(told)

    shelf = Shelf(folder)
    monkeypatch.setattr(Segmenter, "__call__", lambda self, picture: told.append("picture"))
    monkeypatch.setattr("page.shelf.time", SimpleNamespace(perf_counter=clock))
    shelf.warm()
    assert (
        told == ["picture", "picture", "clock", "picture", "clock"] and shelf.seconds[shelf.default.name] == 2
    )
