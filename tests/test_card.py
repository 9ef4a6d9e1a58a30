"""Proves that a model card is valid for the Hub, says what is on record, and runs as printed."""

import json
import random
import re
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from run_folder import write_run

import searchseg
from hub.card import card_text, genotype_card_text, main, write_card
from hub.metadata import hub_ids, is_hub_id
from hub.publish import publish
from hub.readme import END, START, ReadmeError, compose, merge, split
from hub.sections import readable
from searchseg.genotype import Genotype, random_genotype
from searchseg.pretrained import PretrainedError

pytest_plugins = ["hub_fixture"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "net")


@pytest.fixture
def folder(written, tmp_path):
    """A run folder of this test."""
    return shutil.copytree(written, tmp_path / "net")


def card_of(folder, name="alice/pets") -> str:
    write_card(folder, name)
    return (folder / "README.md").read_text()


def code_of(card: str) -> str:
    """The one block of Python in a card."""
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return code


def test_the_hub_finds_it_valid_and_reads_back_what_was_written(hub, folder):
    card = ModelCard(card_of(folder))
    card.validate()
    assert hub.asked("POST", "validate-yaml")
    data = card.data
    assert (data.library_name, data.pipeline_tag, data.license) == (
        "searchseg",
        "image-segmentation",
        "apache-2.0",
    )
    assert {"searchseg", "searchnet", "image-segmentation"} <= set(data.tags)
    assert data.datasets == ["dpdl-benchmark/oxford_iiit_pet"] and data.base_model is None
    assert {result.metric_type for result in data.eval_results} == {"mean_iou", "parameters"}
    score = next(result for result in data.eval_results if result.metric_type == "mean_iou")
    assert score.metric_value == 0.875 and score.dataset_type == "dpdl-benchmark/oxford_iiit_pet"
    assert (score.task_type, score.task_name, score.dataset_split) == ("image-segmentation", "pet", "test")
    assert ModelCard(str(card)).data.to_dict() == data.to_dict(), "nothing is lost on the way"
    front = yaml.safe_load(str(card).split("---")[1])
    assert front["model-index"][0]["name"] == "SEARCH-Net for pet"


def test_datasets_and_base_model_are_hub_ids_or_left_out(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["protocol"]["dataset"] = "folder pet"
    (folder / "metrics.json").write_text(json.dumps(metrics))
    data = ModelCard(card_of(folder)).data
    assert data.datasets is None and data.base_model is None
    metrics["training"] |= {"dataset": "me/pets", "base_model": "me/older"}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    data = ModelCard(card_of(folder)).data
    assert data.datasets == ["me/pets"] and data.base_model == "me/older"


def test_the_limits_know_what_an_earlier_training_learned(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["protocol"]["task"] = "pet"
    told = []
    for augment in ("strong", "corrupted"):
        earlier = {"finetuned": {"model": "a", "fresh": [], "training": {"recipe": {"augment": augment}}}}
        metrics["training"] |= {"finetuned": {"model": "b", "fresh": [], "training": earlier}}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        told.append("night shots" in card_of(folder))
    assert told == [True, False]


@pytest.mark.parametrize(
    "name", ["folder pet", "pet", "../shared/data/pet", "/data/pet", "a/b/c", None, 3, ""]
)
def test_what_is_no_hub_id(name):
    assert not is_hub_id(name) and hub_ids(name, "a/b", "a/b") == ["a/b"]


def test_the_lines_run_as_printed(hub, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    publish(folder, "alice/pets")
    code = code_of(hub.files("alice/pets")["README.md"].decode())
    assert len([line for line in code.splitlines() if line]) == 3 and '"alice/pets"' in code
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (50, 40), "orange").save("photo.jpg")
    exec(code, {})
    assert Image.open("cutout.png").size == (50, 40)


def test_the_lines_of_a_branch_run_as_printed(hub, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    publish(folder, "alice/pets", branch="half")
    assert "model.safetensors" not in hub.files("alice/pets")
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (50, 40), "orange").save("photo.jpg")
    exec(code_of(hub.files("alice/pets", "half")["README.md"].decode()), {})


def test_the_lines_of_a_genotype_run_as_printed(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    publish(folder, "alice/found", genotype_only=True)
    card = hub.files("alice/found")["README.md"].decode()
    names = {}
    exec(code_of(card), names)
    assert names["genotype"] == Genotype.from_json((folder / "genotype.json").read_text())
    ModelCard(card).validate()
    data = ModelCard(card).data
    assert data.library_name == "searchseg" and "genotype" in data.tags and data.pipeline_tag is None


def test_arguments_and_lists_are_readable(folder):
    card = card_of(folder)
    assert "\n- widths: 4, 8, 16, 32\n" in card and "[" not in card.split("## Architecture")[1].split("##")[0]
    assert readable([1, [2, 3], None, True]) == "1, (2, 3), none, yes"
    assert readable({"lr": 0.1, "betas": [0.9, 0.99]}) == "lr 0.1, betas (0.9, 0.99)"
    assert readable("two\nlines") == "two lines"


def test_a_card_written_again_keeps_what_stands_around_it(folder):
    card = card_of(folder)
    (folder / "README.md").write_text(card.replace(START, f"By hand.\n\n{START}") + "Below.\n")
    again = card_of(folder)
    assert "By hand." in again and again.endswith(f"{END}\nBelow.\n") and again.count(START) == 1
    (folder / "README.md").write_text("# A card without marks, as older versions wrote it\n")
    assert card_of(folder) == card


def test_a_name_from_a_stranger_does_not_end_the_section():
    found = random_genotype(2, seed=0)
    evil = Genotype(2, found.cells, {"task": f"x\n{END}\n# mine", "method": "<!-- searchseg: start -->"})
    card = genotype_card_text(evil, "a/b")
    assert card.count(START) == card.count(END) == 1 and card.rstrip().endswith(END)
    assert genotype_card_text(evil, "a/b", card) == card


def test_composing_twice_changes_nothing_and_never_touches_other_text():
    """200 drawn pages: marks in any order, stray ones, line ends of Windows, front matter or none."""
    draw = random.Random(7)
    parts = [START, END, "text\n", "\r\n", "---\n", "é", "# Title\n", "`<!-- x -->`", " \n"]
    for _ in range(200):
        body = "".join(draw.choices(parts, k=draw.randrange(8)))
        head = draw.choice(["", "---\nmine: 1\n---\n", "---\r\nmine: 1\r\ntags: [x]\r\n---\r\n"])
        if not head and body.lstrip().startswith("---"):
            continue  # its own lines would be read as front matter
        ours = {"license": "mit", "tags": ["searchseg"]}
        once = compose(ours, "ours", head + body)
        assert compose(ours, "ours", once) == once
        front, text = split(once)
        assert front["license"] == "mit" and ("mine" in front) == bool(head)
        rest = text.replace(f"{START}\n\nours\n\n{END}", "", 1)
        section = f"{re.escape(START)}(?:(?!{re.escape(START)}).)*?{re.escape(END)}"
        theirs = re.sub(section, "", body, count=1, flags=re.DOTALL)
        assert rest.split() == theirs.split()


def test_front_matter_is_ours_over_theirs():
    ours = {
        "library_name": "searchseg",
        "license": "apache-2.0",
        "tags": ["searchseg", "unet"],
        "model-index": [1],
    }
    theirs = {
        "library_name": "other", "model-index": [2], "tags": ["cats", "searchnet", "unet", 3],
        "language": "en", "license": "other", "license_name": "mine",
    }  # fmt: skip
    merged = merge(ours, theirs)
    assert (
        merged["library_name"] == "searchseg" and merged["model-index"] == [1] and merged["language"] == "en"
    )
    assert merged["tags"] == ["searchseg", "unet", "cats"], "the tag of another architecture goes"
    assert (merged["license"], merged["license_name"]) == ("other", "mine"), (
        "a licence is the author's choice"
    )


@pytest.mark.parametrize(
    "text", ["---\n- a\n---\n", "---\na: [\n---\n", "---\na: 1\n a: 2\n---\n", "---\nx\n---\n"]
)
def test_front_matter_that_is_none(text):
    with pytest.raises(ReadmeError, match="front matter"):
        split(text)


def test_the_command(folder, capsys):
    assert main([str(folder), "--id", "me/net"]) == 0
    assert '"me/net"' in (folder / "README.md").read_text() and "README.md" in capsys.readouterr().out
    (folder / "README.md").write_text(f"---\na: [\n---\n{START}{END}")
    assert main([str(folder)]) == 1 and "mend the lines" in capsys.readouterr().err
    (folder / "metrics.json").unlink()
    assert main([str(folder)]) == 1 and "training.evaluate" in capsys.readouterr().err


def test_an_incomplete_record_is_named(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    for name in ("protocol", "macs", "iou", "training"):
        (folder / "metrics.json").write_text(json.dumps({k: v for k, v in metrics.items() if k != name}))
        with pytest.raises(PretrainedError, match=f"{name}.*training.evaluate"):
            write_card(folder, "a/b")


def test_the_shipped_models_have_cards():
    least = {"pet": 0.85, "camvid": 0.5}  # mIoU
    for path in sorted((Path(__file__).parent.parent / "hub" / "models").glob("*/metrics.json")):
        model = searchseg.from_pretrained(path.parent)
        text = card_text(model, json.loads(path.read_text()), "me/x", path.parent / "search")
        task = path.parent.name.split("-")[1]
        assert ModelCard(text).data.eval_results[0].metric_value > least[task]
