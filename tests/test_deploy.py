"""Proves that a Space gets one whole tree, and that it starts in an empty directory and segments."""

import os
import re
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import gradio
import pytest
import yaml
from gradio_client import Client, handle_file
from huggingface_hub import HfApi
from PIL import Image
from run_folder import write_run

import hub.deploy
from hub import remote
from hub.deploy import deploy, front_matter, lay_out, main
from hub.remote import PublishError
from searchseg.pretrained import PretrainedError

pytest_plugins = ["hub_fixture"]

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "hub" / "models" / "searchnet-pet"


def yaml_of(text: str) -> dict:
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.DOTALL).group(1))


def test_the_front_matter_tells_the_hub_how_to_run_it():
    facts = yaml_of(front_matter("pets"))
    assert facts["sdk"] == "gradio" and facts["sdk_version"] == gradio.__version__
    assert facts["app_file"] == "app.py" and facts["python_version"] == f"3.{sys.version_info.minor}"
    assert facts["datasets"] == ["dpdl-benchmark/oxford_iiit_pet"] and "models" not in facts
    assert len(facts["short_description"]) <= 60  # the Hub refuses more
    assert facts["suggested_hardware"] == "cpu-basic" and "preload_from_hub" not in facts
    facts = yaml_of(front_matter("leaves", "me/leaves", "me/leaves config.json,model.safetensors"))
    assert facts["models"] == ["me/leaves"] and "datasets" not in facts
    assert facts["preload_from_hub"] == ["me/leaves config.json,model.safetensors"]


def test_a_space_that_trains_has_a_login(tmp_path):
    assert main(["me/workshop", "--training", "--dry-run", str(tmp_path / "space")]) == 0
    facts = yaml_of((tmp_path / "space" / "README.md").read_text())
    assert facts["hf_oauth"] is True and facts["hf_oauth_scopes"] == ["write-repos", "manage-repos"]
    assert (tmp_path / "space" / "training" / "run.py").is_file()
    assert "hf_oauth" not in yaml_of(front_matter("pets"))
    with pytest.raises(PublishError, match="add --private"):
        deploy("me/workshop", training=True)


def test_a_folder_that_is_no_model_is_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    with pytest.raises(PretrainedError, match=r"config\.json is missing"):
        lay_out(tmp_path / "space", "x", str(tmp_path / "empty"))
    assert main(["me/x", "--model", str(tmp_path / "empty"), "--dry-run", str(tmp_path / "other")]) == 1
    assert "config.json is missing" in capsys.readouterr().err


def test_the_tree_starts_in_an_empty_directory_and_segments(tmp_path):
    space = tmp_path / "space"
    assert main(["me/pets", "--model", str(SHIPPED), "--dry-run", str(space)]) == 0
    assert {path.name for path in space.iterdir()} == {
        "app.py", "requirements.txt", "LICENSE", "README.md", "searchseg", "hub", "page",
    }  # fmt: skip
    assert [path.name for path in (space / "hub" / "models").iterdir()] == [SHIPPED.name]
    for name in ("metrics.json", "search/genotype.jsonl", "search/alpha.jsonl"):  # the page shows them
        copy = space / "hub" / "models" / SHIPPED.name / name
        assert copy.read_bytes() == (SHIPPED / name).read_bytes()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment = {**clean, "GRADIO_SERVER_PORT": str(port), "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen([sys.executable, "app.py"], cwd=space, env=environment) as process:
        try:
            client = connect(f"http://127.0.0.1:{port}", process)
            picture = tmp_path / "picture.png"
            Image.new("RGB", (37, 53), "orange").save(picture)
            answer = client.predict(handle_file(picture), SHIPPED.name, api_name="/segment")
        finally:
            process.terminate()
    assert Image.open(answer[2]).size == (37, 53) and answer[3]["width"] == 37


def connect(url: str, process: subprocess.Popen) -> Client:
    for _ in range(240):
        assert process.poll() is None, "the page ended before it could be reached"
        try:
            return Client(url, verbose=False)
        except Exception:  # the client raises whatever its transport does while nothing listens
            time.sleep(0.5)
    raise AssertionError("the page did not come up in two minutes")


# ---- the upload

SPACE = "alice/page"


@pytest.fixture
def alice(hub, monkeypatch):
    """An empty Hub with alice logged in, and no pauses between tries."""
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    monkeypatch.setattr(remote, "time", types.SimpleNamespace(sleep=lambda seconds: None))
    return hub


@pytest.fixture
def net(alice, tmp_path) -> str:
    """A small model on the Hub, with its scores."""
    folder = write_run(tmp_path / "run")
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    alice.create("alice/net")
    alice.commit("alice/net", files)
    return "alice/net"


@pytest.fixture
def small(alice, monkeypatch) -> None:
    """A tree of three files, where only the upload counts: loading and copying a model takes a second."""

    def lay_out_little(folder: Path, *about: object) -> None:
        texts = {"app.py": "print()", "hub/models/net/config.json": "{}", "README.md": front_matter("page")}
        for name, content in texts.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content, encoding="utf-8")

    monkeypatch.setattr(hub.deploy, "lay_out", lay_out_little)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def in_space(hub) -> dict[str, bytes]:
    files = hub.files(SPACE, type="space")
    return {name: data for name, data in files.items() if name != ".gitattributes"}


def test_the_space_holds_exactly_the_tree_that_is_laid_out(alice, net, tmp_path, capsys):
    assert main([SPACE, "--model", net]) == 0
    assert f"{alice.url}/spaces/{SPACE}" in capsys.readouterr().out
    lay_out(tmp_path / "space", "page", net)
    assert in_space(alice) == tree(tmp_path / "space")
    info = HfApi().space_info(SPACE)
    assert info.sdk == "gradio" and info.private is False
    assert len(alice.log_of(SPACE, type="space")) == 2, "the Hub's first commit and ours"
    assert not any("__pycache__" in name for name in in_space(alice))


def test_the_readme_names_the_model_and_what_to_fetch_while_building(alice, net):
    deploy(SPACE, net)
    facts = yaml_of(in_space(alice)["README.md"].decode())
    sha = alice.head(net)
    assert facts["models"] == [net] and "datasets" not in facts
    assert facts["preload_from_hub"] == [f"{net} config.json,genotype.json,model.safetensors {sha}"]
    assert facts["sdk"] == "gradio" and facts["suggested_hardware"] == "cpu-basic"


def test_a_private_model_is_copied_but_not_fetched_by_a_build_without_token(alice, net):
    HfApi().update_repo_settings(net, private=True)
    deploy(SPACE, net, private=True)
    files = in_space(alice)
    assert "preload_from_hub" not in yaml_of(files["README.md"].decode())
    assert files["hub/models/net/model.safetensors"]
    assert HfApi().space_info(SPACE).private is True


def test_equal_content_makes_no_commit_and_what_is_gone_leaves(alice, net):
    deploy(SPACE, net)
    log = alice.log_of(SPACE, type="space")
    deploy(SPACE, net)
    assert alice.log_of(SPACE, type="space") == log
    ours, before = "hub/models/old/config.json", in_space(alice)
    alice.commit(SPACE, {ours: b"{}", "notes.md": b"theirs"}, type="space")
    deploy(SPACE, net)
    assert in_space(alice) == before | {"notes.md": b"theirs"}
    assert len(alice.log_of(SPACE, type="space")) == len(log) + 2


FAULTS = [
    ("repos/create", 401, "hf auth login"),
    ("repos/create", 403, "write access to alice"),
    ("repos/create", 429, "try again later"),
    ("/preupload/", 403, "write access to alice"),
    ("/commit/", 401, "hf auth login"),
    ("/commit/", 403, "write access to alice"),
    ("/commit/", 404, "check name, branch and token"),
    ("/commit/", 409, "wait a minute"),
    ("/commit/", 412, "changed by somebody else"),
    ("/commit/", 500, "fault of its own"),
    ("/commit/", 503, "fault of its own"),
]


@pytest.mark.parametrize(("path", "status", "message"), FAULTS)
def test_a_fault_of_the_hub_is_one_error_and_no_half_tree(alice, small, path, status, message, capsys):
    alice.fail("POST", path, status, times=None)
    with pytest.raises(PublishError, match=message) as caught:
        deploy(SPACE)
    assert caught.value.status == status and "hf_alice" not in str(caught.value)
    assert not alice.exists(SPACE, type="space") or in_space(alice) == {}
    assert main([SPACE]) == 1 and message in capsys.readouterr().err
    alice.heal()
    deploy(SPACE)
    assert "app.py" in in_space(alice)


def test_a_passing_fault_and_a_lost_answer_are_no_second_commit(alice, small):
    alice.fail("POST", "repos/create", 503)
    alice.lose_answer("/commit/", times=1)
    deploy(SPACE)
    assert len(alice.log_of(SPACE, type="space")) == 2


def test_who_may_not_and_what_is_public(alice, small):
    for token, status in (("hf_bob", 403), ("hf_alice_read", 403), ("hf_nobody", 401)):
        with pytest.raises(PublishError) as caught:
            deploy(SPACE, token=token)
        assert caught.value.status == status and token not in str(caught.value)
    alice.create(SPACE, type="space", sdk="gradio")
    with pytest.raises(PublishError, match="is public"):
        deploy(SPACE, private=True)
    assert in_space(alice) == {}


@pytest.mark.parametrize("space", ["../x", "a/b/c", "/etc", "a" * 300, "page", "a/..", "ä/b"])
def test_bad_ids_are_refused_before_any_request(alice, space):
    with pytest.raises(PublishError, match="wanted is user/name"):
        deploy(space)
    assert not alice.requests
