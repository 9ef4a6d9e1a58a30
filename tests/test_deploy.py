"""Proves that the tree of a Space starts in an empty directory with `python app.py` and segments."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import gradio
import pytest
import yaml
from gradio_client import Client, handle_file
from PIL import Image

from hub.deploy import front_matter, lay_out, main
from searchseg.pretrained import PretrainedError

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "hub" / "models" / "searchnet-pet-lite"


def yaml_of(text: str) -> dict:
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.DOTALL).group(1))


def test_the_front_matter_tells_the_hub_how_to_run_it():
    facts = yaml_of(front_matter("pets"))
    assert facts["sdk"] == "gradio" and facts["sdk_version"] == gradio.__version__
    assert facts["app_file"] == "app.py" and facts["python_version"] == f"3.{sys.version_info.minor}"
    assert facts["datasets"] == ["dpdl-benchmark/oxford_iiit_pet"] and "models" not in facts
    assert len(facts["short_description"]) <= 60  # the Hub refuses more
    assert yaml_of(front_matter("leaves", "me/leaves"))["models"] == ["me/leaves"]


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
