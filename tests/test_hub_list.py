"""Proves that hub.list shows the searchseg models of the Hub with what their cards say, however odd."""

import json

import pytest
from huggingface_hub import ModelInfo
from run_folder import write_run

from hub.contents import read_genotype, read_model
from hub.list import HubModel, described, list_models, main, table
from hub.publish import PublishError

pytest_plugins = ["hub_fixture"]


@pytest.fixture(scope="module")
def cards(tmp_path_factory) -> dict[str, dict[str, bytes]]:
    """What publish sends of the card, by id: two networks, one of them twice, and a genotype."""
    folder = tmp_path_factory.mktemp("runs")
    net, better = write_run(folder / "net"), write_run(folder / "better", miou=0.95)
    read = {"alice/pets": read_model(net), "laboratory/pets": read_model(better)}
    read |= {"alice/found": read_genotype(better), "bob/secret": read["laboratory/pets"]}
    return {name: {"README.md": one.card(name, None, None).content} for name, one in read.items()}


@pytest.fixture
def full(hub, cards, monkeypatch):
    """The Hub with them, bob's private, and a model of another library."""
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    for name, files in cards.items():
        hub.create(name, private=name.startswith("bob"))
        hub.commit(name, files)
    hub.create("alice/bert")
    hub.commit("alice/bert", {"README.md": b"---\nlibrary_name: transformers\n---\n"})
    hub.requests.clear()
    return hub


def test_models_of_the_library_best_first(full):
    models = list_models()
    assert [model.id for model in models] == ["laboratory/pets", "alice/pets", "alice/found"]
    first, _, last = models
    assert (first.architecture, first.task, first.miou) == ("searchnet", "pet", 0.95)
    assert first.parameters > 1000 and len(first.updated) == 10 and not first.private
    assert (last.architecture, last.task, last.miou, last.parameters) == ("genotype", None, None, None)


def test_author_and_token(full):
    assert {model.id for model in list_models("alice")} == {"alice/pets", "alice/found"}
    assert list_models("nobody") == []
    (secret,) = list_models("bob", token="hf_bob")
    assert secret.private and list_models("bob") == []
    full.requests.clear()
    for name in ("../x", "a/b", "", "a b", "x" * 300):
        with pytest.raises(PublishError, match="no name of a user"):
            list_models(name)
    assert not full.requests


def test_more_than_one_page(full):
    full.page_size = 1
    assert len(list_models()) == 3


def test_faults(full, monkeypatch):
    full.fail("GET", "/api/models", 503, times=2)
    assert len(list_models()) == 3
    for status, what in ((401, "hf auth login"), (500, "fault of its own")):
        full.heal()
        full.fail("GET", "/api/models", status, times=None)
        with pytest.raises(PublishError, match=what):
            list_models()
    full.heal()
    full.fail("GET", "/api/models", 429, times=None, headers={"Retry-After": "4000"})
    with pytest.raises(PublishError, match="4000 seconds"):
        list_models()


ODD = [
    {"library_name": "searchseg"},
    {"library_name": "searchseg", "model-index": "mine"},
    {"library_name": "searchseg", "model-index": [{"name": "x"}]},
    {"library_name": "searchseg", "model-index": [{"name": "x", "results": None}]},
]
VALUES = ["92 %", float("nan"), float("inf"), -1, 7, True, None, [0.9], {"a": 1}, 10**400, "<script>"]


@pytest.mark.parametrize("card", ODD + VALUES, ids=lambda value: str(value)[:30])
def test_odd_cards_are_shown_without_numbers(card):
    if not (isinstance(card, dict) and "library_name" in card):
        metrics = [{"type": kind, "value": card} for kind in ("mean_iou", "parameters")]
        task = {"type": "image-segmentation", "name": "x\x1b[31m" + "y" * 100}
        dataset = {"type": "a/b", "name": "b"}
        results = [{"task": task, "dataset": dataset, "metrics": metrics}]
        card = {"library_name": "searchseg", "model-index": [{"name": "m", "results": results}]}
    model = described(ModelInfo(id="a/b", cardData=card, tags=["searchseg"]))
    beside = described(ModelInfo(id="a/b", tags=["searchseg"], **{"model-index": card.get("model-index")}))
    assert model == beside
    assert model.miou is None and model.id == "a/b"
    assert model.parameters in (None, 7)
    assert "\x1b" not in table([model]) and len(table([model]).splitlines()[1]) < 120


def test_the_command(full, capsys):
    assert main(["--author", "alice"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["model", "architecture", "task", "mIoU", "parameters", "updated"]
    assert lines[1].split()[:4] == ["alice/pets", "searchnet", "pet", "0.8750"]
    assert main(["--json"]) == 0
    assert HubModel(**json.loads(capsys.readouterr().out)[0]).miou == 0.95
    full.fail("GET", "/api/models", 500, times=None)
    assert main([]) == 1
    out = capsys.readouterr()
    assert "error:" in out.err and "Traceback" not in out.err and not out.out
