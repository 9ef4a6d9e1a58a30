"""Proves that a run of the page survives kill and restart, takes only honest data, and leaks no token."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import datasets
import gradio as gr
import numpy as np
import pytest
from accelerate import Accelerator
from PIL import Image

from page import training_run, workshop
from page.curves import draw_curves
from page.data import DRAWN, DataError, draw_shapes, unpack
from page.shelf import Shelf
from page.training_run import RunError, TrainingRun, resume
from page.workshop import HUB_CHOICE, SHAPES_CHOICE, ZIP_CHOICE, WorkshopTab
from training.checkpoint import load_checkpoint
from training.plan import LOADING, MOST, SEARCH_SHARE, make_plan
from training.presets import PRESETS

pytest_plugins = ["hub_fixture"]


def wait(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "this takes too long"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("runs")
    yield folder
    for run in TrainingRun.all(folder):
        run.stop()


def form(name: str, source: str = SHAPES_CHOICE, **more) -> dict:
    fields = {"dataset": "", "revision": "", "task": "pet", "columns": "", "classes": "", "ignored": ""}
    rest = {"archive": None, "preset": "smoke", "minutes": 0.05}
    return {"name": name, "source": source, **fields, **rest, **more}


@pytest.fixture(scope="module")
def finished(runs: Path) -> TrainingRun:
    """A run on drawn shapes whose child was killed in the middle and continued by another server."""
    tab = WorkshopTab(runs)
    tab.start(**form("shapes"))
    run = TrainingRun(runs, "shapes")
    with pytest.raises(gr.Error, match="one at a time"):
        tab.start(**form("second"))
    assert [run.name for run in TrainingRun.all(runs)] == ["shapes"] and not (runs / "second").exists()
    history = run.folder / "search" / "history.jsonl"
    wait(lambda: (load_checkpoint(run.folder / "search" / "checkpoint.pt") or {"epoch": 0})["epoch"] > 0)
    assert run.state == "running" and run.progress().seconds_left is not None
    record = json.loads((run.folder / "page.json").read_text())
    os.killpg(record["pid"], signal.SIGKILL)
    wait(lambda: not run.running)
    wait(lambda: run.state == "failed")
    # a machine that loses its power leaves no exit status
    (run.folder / "page.json").write_text(json.dumps({**record, "exit": None}))
    assert run.state == "interrupted"
    done = history.read_text().splitlines()[0]
    assert resume(runs) == run
    wait(lambda: run.state in ("finished", "failed"))
    assert run.state == "finished", run.progress().log
    assert history.read_text().startswith(done), "the epoch that was done is done again"
    return run


def test_a_killed_run_goes_on_to_a_model(finished: TrainingRun, runs: Path) -> None:
    assert resume(runs) is None, "a finished run is not begun again"
    progress = finished.progress()
    assert progress.epoch == progress.epochs == len(progress.retrain) and progress.seconds_left is None
    assert str(runs) not in progress.log and "shapes" in progress.log
    shown = WorkshopTab(runs).show("shapes")
    points = 2 * len(progress.search) + len(progress.retrain)  # of three curves, drawn for loss and mIoU
    assert shown[3].count('r="3.5"') == 2 * points
    shelf = Shelf(runs / "nothing", runs)
    assert [model.name for model in shelf.models] == ["shapes"]
    result = shelf.load("shapes").segmenter(Image.new("RGB", (40, 30)))
    assert result.mask.shape == (30, 40) and result.classes == ("background", "disc", "square")


def test_publish_hands_the_token_on_and_keeps_it_nowhere(
    finished: TrainingRun, runs: Path, hub, capfd
) -> None:
    tab = WorkshopTab(runs)
    told = tab.publish("shapes", "alice/shapes", True, "hf_alice")
    assert "Published" in told and "model.safetensors" in hub.files("alice/shapes")
    assert "Already there" in tab.publish("shapes", "alice/shapes", True, "hf_alice")
    refused = tab.publish("shapes", "alice/shapes", True, "hf_nobody_s_secret")
    assert 'class="warning"' in refused and "secret" not in refused and str(runs) not in refused
    written = b"".join(path.read_bytes() for path in runs.rglob("*") if path.is_file())
    assert b"hf_alice" not in written and b"secret" not in written
    assert "hf_alice" not in "".join(capfd.readouterr())
    with pytest.raises(gr.Error, match="Choose a run"):
        tab.publish("../shapes", "alice/shapes", True, "hf_alice")


def test_the_child_gets_no_token(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    class Child:
        pid = 0

        def __init__(self, command, env, cwd, **_):
            seen.update(env=env, cwd=cwd, command=command)

        def wait(self):
            return 1

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(training_run.subprocess, "Popen", Child)
    run = TrainingRun.create(runs, "no-token", ["--task", "pet"])
    run.start()
    assert "hf_secret" not in seen["env"].values() and seen["cwd"] == run.folder
    wait(lambda: run.state == "failed")


def test_curves_show_the_first_epoch_and_where_each_value_lies() -> None:
    """A plot of lines alone shows nothing of a run until its second epoch."""
    one = draw_curves("Loss", {"weights": [(1, 1.8)], "alpha": [(1, 1.6)], "retraining": []})
    heights = [float(y) for y in re.findall(r'cy="([\d.]+)" r="3.5"', one)]
    assert len(heights) == 2 and heights[0] < heights[1], "the larger value stands higher"
    assert 'aria-label="Loss by epoch, at last weights 1.800, alpha 1.600"' in one and "retraining" not in one
    more = draw_curves("mIoU", {"<b>": [(1, 0.1), (2, 0.2), (4, float("nan")), (5, 0.4)]})
    places = [float(x) for x in re.findall(r'cx="([\d.]+)" cy="[\d.]+" r="3.5"', more)]
    assert places[1] - places[0] == pytest.approx((places[2] - places[1]) / 3, abs=0.1)
    assert "&lt;b&gt;" in more and "<b>" not in more
    assert draw_curves("Loss", {"weights": []}) == ""


@pytest.mark.parametrize("name", ["", "../x", "a/b", "A", "a b", "-a", "a" * 41, "ä", None])
def test_names_of_runs_are_no_paths(tmp_path: Path, name: str | None) -> None:
    with pytest.raises(RunError, match="a-z"):
        TrainingRun(tmp_path, name)
    with pytest.raises(gr.Error, match="a-z"):
        WorkshopTab(tmp_path).start(**form(name))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"preset": "other"}, "Choose a preset"),
        ({"minutes": 0}, "minutes"),
        ({"minutes": 10**6}, "minutes"),
        ({"source": HUB_CHOICE, "dataset": "../x"}, "user/name"),
        ({"source": HUB_CHOICE, "dataset": "--data=/etc"}, "user/name"),
        ({"source": HUB_CHOICE, "task": "custom"}, "user/name"),
        ({"source": HUB_CHOICE, "dataset": "a/b", "revision": "-x"}, "revision"),
        ({"source": HUB_CHOICE, "dataset": "a/b", "task": "custom", "classes": "one"}, "Name the classes"),
        ({"source": HUB_CHOICE, "dataset": "a/b", "task": "custom", "classes": "a\0b, c"}, "printable"),
        (
            {"source": HUB_CHOICE, "dataset": "a/b", "task": "custom", "classes": "a, " + 99 * "b"},
            "printable",
        ),
        ({"source": ZIP_CHOICE}, "Upload a zip"),
        ({"ignored": "256"}, "from 0 to 255"),
        ({"ignored": "-1"}, "from 0 to 255"),
        ({"ignored": "9" * 5000}, "from 0 to 255"),
    ],
)
def test_wrong_forms_are_refused(tmp_path: Path, fields: dict, told: str) -> None:
    with pytest.raises(gr.Error, match=told):
        WorkshopTab(tmp_path).start(**form("right", **fields))
    assert TrainingRun.all(tmp_path) == [] and not (tmp_path / "right").exists()


def test_words_of_a_form_stay_values() -> None:
    options = workshop._hub_options("a/b", "main", "custom", "--out, --cpu", "--preset,paper", None)
    assert "--image-column=--out" in options and "--mask-column=--cpu" in options
    assert "--classes=--preset,paper" in options and "--revision=main" in options


def png(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def make_zip(path: Path, pairs: int = 12, size: int = 20, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as packed:
        for number in range(pairs):
            packed.writestr(f"data/images/{number}.png", png(np.full((size, size, 3), number, np.uint8)))
            packed.writestr(f"data/masks/{number}.png", png(np.full((size, size), number % 3, np.uint8)))
        for name, content in entries.items():
            packed.writestr(name, content)
    return path


def test_a_zip_becomes_rows(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", **{"data/images/lonely.png": b"x", "../../evil.png": b"x"})
    assert unpack(archive, tmp_path / "data") == ({0, 1, 2}, 12)
    found = datasets.load_dataset(str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in found.items()} == {"train": 10, "test": 2}
    names = sorted(map(str, range(12)))
    taught = [name for place, name in enumerate(names) if place % 5 != 4]
    for row, name in zip(found["train"], taught, strict=True):
        assert (np.array(row["image"]) == int(name)).all() and (np.array(row["mask"]) == int(name) % 3).all()
    inside = {path.relative_to(tmp_path / "data").parts[0] for path in (tmp_path / "data").rglob("*")}
    assert inside == {"train", "test"} and not (tmp_path.parent / "evil.png").exists()


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ({"data/masks/3.png": png(np.zeros((5, 7), np.uint8))}, "3: the mask is 7 x 5, its picture 20 x 20"),
        ({"data/masks/3.png": png(np.zeros((20, 20, 3), np.uint8))}, "grey or palette PNG"),
        ({"data/masks/3.png": b"no picture"}, "grey or palette PNG"),
        ({"data/images/3.png": b"<svg/>"}, "images, 3: This file is not a readable JPEG"),
    ],
)
def test_a_zip_with_a_bad_pair_names_it(tmp_path: Path, entries: dict, told: str) -> None:
    with pytest.raises(DataError, match=told), pytest.warns(UserWarning, match="Duplicate name"):
        unpack(make_zip(tmp_path / "a.zip", **entries), tmp_path / "data")


def test_values_without_a_class_are_named(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", **{"x/images/last.png": png(np.zeros((9, 9, 3), np.uint8))})
    with zipfile.ZipFile(archive, "a") as packed:
        packed.writestr("x/masks/last.png", png(np.full((9, 9), 7, np.uint8)))
    more = {"source": ZIP_CHOICE, "archive": str(archive), "classes": "a, b", "ignored": "2"}
    with pytest.raises(gr.Error, match="also hold 7"):
        WorkshopTab(tmp_path / "runs").start(**form("zipped", **more))
    assert not (tmp_path / "runs" / "zipped").exists()


def test_stop_gets_firmer_with_every_press(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []
    monkeypatch.setattr(training_run.os, "killpg", lambda pid, kind: sent.append(kind))
    monkeypatch.setattr(TrainingRun, "running", property(lambda run: True))
    run = TrainingRun.create(runs, "stubborn", [])
    run._note(pid=1)
    for _ in range(4):
        run.stop()
    assert sent == [signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGKILL]


def test_a_command_that_cannot_be_started_says_so(runs: Path) -> None:
    run = TrainingRun.create(runs, "too-long", ["x" * 10_000_000])
    with pytest.raises(RunError, match="cannot be started"):
        run.start()
    assert run.state == "stopped" and resume(runs) is None


def test_what_is_no_zip_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(DataError, match="no readable zip"):
        unpack(tmp_path / "a.zip", tmp_path / "data")
    with pytest.raises(DataError, match="has 3 pictures with a mask"):
        unpack(make_zip(tmp_path / "b.zip", pairs=3), tmp_path / "data")
    damaged = bytearray(make_zip(tmp_path / "d.zip", size=200).read_bytes())
    damaged[60:90] = bytes(30)
    (tmp_path / "d.zip").write_bytes(damaged)
    with pytest.raises(DataError, match=r"no readable zip|readable JPEG|damaged"):
        unpack(tmp_path / "d.zip", tmp_path / "data")
    monkeypatch.setattr("page.data.MOST_BYTES", 100)
    with pytest.raises(DataError, match="At most"):
        unpack(make_zip(tmp_path / "c.zip"), tmp_path / "data")


def test_drawn_shapes_have_exact_masks(tmp_path: Path) -> None:
    draw_shapes(tmp_path)
    found = datasets.load_dataset(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in found.items()} == DRAWN
    values = {int(v) for row in found["test"] for v in np.unique(np.array(row["mask"]))}
    assert values == {0, 1, 2}


@pytest.mark.parametrize(
    ("environment", "trains"),
    [
        ({}, True),
        ({"GRADIO_SERVER_NAME": "0.0.0.0"}, False),
        ({"SPACE_ID": "a/b"}, False),
        ({"SPACE_ID": "a/b", "SEARCHSEG_ALLOW_TRAINING": "1"}, True),
        ({"SEARCHSEG_ALLOW_TRAINING": "0"}, False),
        ({"GRADIO_SERVER_NAME": "127.0.0.1"}, True),
    ],
)
def test_training_is_off_in_public(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], trains: bool
) -> None:
    for name in ("GRADIO_SERVER_NAME", "SPACE_ID", "SEARCHSEG_ALLOW_TRAINING"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert workshop.allowed() is trains


def test_plan_fills_the_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.plan._seconds", lambda step: 0.5)
    accelerator, smoke = Accelerator(cpu=True), PRESETS["smoke"]
    plan = make_plan(2, 160, "smoke", "strong", 2, accelerator)
    assert plan.search_epoch_seconds == pytest.approx(LOADING * 0.5 * (80 // 8))
    assert plan.search_epochs == int(SEARCH_SHARE * 120 / plan.search_epoch_seconds)
    assert plan.retrain_epochs == int((1 - SEARCH_SHARE) * 120 / plan.retrain_epoch_seconds)
    least = make_plan(0.001, 160, "smoke", "strong", 2, accelerator)
    assert (least.search_epochs, least.retrain_epochs) == (smoke.search.warmup_epochs + 1, 1)
    most = make_plan(10**6, 160, "smoke", "strong", 2, accelerator)
    assert most.retrain_epochs == MOST * smoke.retrain.epochs
    with pytest.raises(ValueError, match="--minutes"):
        make_plan(0, 160, "smoke", "strong", 2, accelerator)


def test_a_run_can_be_stopped_where_interrupts_are_ignored(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under nohup, or when a script has started the server in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        WorkshopTab(runs).start(**form("under-nohup", minutes=5))
    finally:
        signal.signal(signal.SIGINT, before)
    run = TrainingRun(runs, "under-nohup")
    wait(lambda: "search: begins" in run.progress().log)
    run.stop()
    wait(lambda: not run.running, seconds=30)
    assert run.state == "stopped"
