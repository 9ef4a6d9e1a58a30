"""Proves that searchseg.segment makes every mask that can be made, exactly, once, and says which cannot."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import searchseg
from searchseg import segment
from searchseg.pretrained import build, save_pretrained

CONFIG = {"classes": ("background", "cat", "dog"), "colors": ("#303030", "#ff8000", "#0080ff")}


def save_model(folder: Path, seed: int) -> Path:
    """A tiny network whose untrained scores differ from pixel to pixel."""
    torch.manual_seed(seed)
    arguments = {"widths": [2, 4], "num_classes": 3}
    model = build(searchseg.ModelConfig("unet", arguments, image_size=(24, 32), **CONFIG))
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1
    model.train()(torch.randn(4, 3, 24, 32))
    nn.init.zeros_(model.head.bias)
    save_pretrained(model, folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), 0)


def draw(path: Path, width: int = 53, height: int = 37, seed: int = 0, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize((width, height), Image.Resampling.BILINEAR).save(path, **options)
    return path


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    """A folder with two names that differ in the ending alone, a turned photo, a bad file, and others."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    draw(folder / "a.jpg", seed=1)
    draw(folder / "a.png", seed=2)
    exif = Image.Exif()
    exif[0x0112] = 6
    draw(folder / "day" / "turned.JPG", seed=3, exif=exif)
    (folder / "bad.png").write_bytes(b"not a picture")
    (folder / "notes.txt").write_text("notes")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


def run(model: Path, *arguments: object) -> int:
    return segment.main([*map(str, arguments), "--model", str(model), "--device", "cpu"])


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_masks_are_those_of_the_segmenter_under_names_that_never_meet(model, photos, capsys):
    draw(Path("one.webp"), seed=4)
    assert run(model, "one.webp", "./one.webp", "photos/", "--out", "masks") == 1
    wanted = ["one.webp", "photos/a.jpg", "photos/a.png", "photos/day/turned.JPG"]
    assert sorted(tree(Path("masks"))) == [f"{name}.mask.png" for name in wanted]
    segmenter, seen = searchseg.Segmenter.from_pretrained(model), set()
    for name in wanted:
        with Image.open(f"masks/{name}.mask.png") as mask:
            assert (mask.format, mask.mode) == ("PNG", "L")
            assert np.array_equal(mask, segmenter(name).mask)
            seen.add(np.asarray(mask).tobytes())
    assert len(seen) == 4
    assert Image.open("masks/photos/day/turned.JPG.mask.png").size == (37, 53)
    captured = capsys.readouterr()
    assert "masks: 4 segmented, 1 not done" in captured.out
    assert "photos/bad.png: This file is not a readable JPEG" in captured.err
    assert "by ending: .txt (1)\n" in captured.err and "hidden" not in captured.err


def test_overlay_cutout_and_json_lie_beside_the_mask(model, photos):
    assert run(model, "photos/a.jpg", "--out", "out", "--overlay", "--cutout", "--json") == 0
    result = searchseg.Segmenter.from_pretrained(model)("photos/a.jpg")
    assert np.array_equal(Image.open("out/a.jpg.overlay.png"), result.overlay())
    assert np.array_equal(Image.open("out/a.jpg.cutout.png"), result.cutout())
    document = json.loads(Path("out/a.jpg.json").read_text())
    assert document["classes"] == json.loads(result.to_json())["classes"]


def test_what_is_there_is_kept_and_what_is_missing_is_added(model, photos, capsys):
    assert run(model, "photos/a.jpg", "photos/a.png", "--out", "out") == 0
    before = tree(Path("out"))
    times = {path: os.stat(f"out/{path}").st_mtime_ns for path in before}
    Path("out/a.png.mask.png").unlink()
    assert run(model, "photos/a.jpg", "photos/a.png", "--out", "out") == 0
    assert tree(Path("out")) == before
    assert os.stat("out/a.jpg.mask.png").st_mtime_ns == times["a.jpg.mask.png"]
    assert "out: 1 segmented, 1 were there already" in capsys.readouterr().out
    assert run(model, "photos/a.jpg", "--out", "out", "--json") == 0
    assert os.stat("out/a.jpg.mask.png").st_mtime_ns == times["a.jpg.mask.png"]
    assert Path("out/a.jpg.json").exists()
    assert run(model, "photos/a.jpg", "--out", "out", "--overwrite") == 0
    assert os.stat("out/a.jpg.mask.png").st_mtime_ns > times["a.jpg.mask.png"]


@pytest.mark.parametrize("stranger", ["a.jpg.mask.png", "a.jpg.json"])
def test_results_of_another_model_are_never_taken_for_ours(model, photos, tmp_path, capsys, stranger):
    assert run(model, "photos/a.jpg", "--out", "other", "--json") == 0
    (tmp_path / "out").mkdir()
    (tmp_path / "other" / stranger).rename(tmp_path / "out" / stranger)
    before = tree(Path("out"))
    another = save_model(tmp_path / "another", 1)
    assert run(another, "photos/a.jpg", "--out", "out", "--json") == 1
    assert tree(Path("out")) == before and "a result of another model" in capsys.readouterr().err
    assert run(another, "photos/a.jpg", "--out", "out", "--json", "--overwrite") == 0
    assert tree(Path("out"))[stranger] != before[stranger]


def test_one_name_for_two_files_is_refused_before_any_work(model, photos, capsys):
    draw(Path("more/a.jpg"), seed=5)
    with pytest.raises(SystemExit) as stopped:
        run(model, "photos/a.jpg", "more/a.jpg", "--out", "out")
    assert stopped.value.code == 2 and not Path("out").exists()
    assert "photos/a.jpg and more/a.jpg would have results of one name" in capsys.readouterr().err


def test_results_within_the_folder_are_not_segmented_again(model, photos):
    for _ in range(2):
        assert run(model, "photos", "--out", "photos/masks") == 1
    assert len(tree(Path("photos/masks"))) == 3
    with pytest.raises(SystemExit) as stopped:
        run(model, "photos", "--out", "photos")
    assert stopped.value.code == 2


def test_a_result_that_cannot_be_written_costs_no_other(model, photos, capsys):
    Path("out").mkdir()
    draw(Path(f"{'n' * 250}.png"))  # with the ending of a mask longer than a name may be
    assert run(model, f"{'n' * 250}.png", "photos/a.jpg", "gone.jpg", "--out", "out") == 1
    assert list(tree(Path("out"))) == ["a.jpg.mask.png"]
    errors = capsys.readouterr().err
    assert (
        "cannot be written: File name too long" in errors and "gone.jpg: The picture file does not" in errors
    )


@pytest.mark.parametrize(
    "arguments", [["empty", "--model", "{model}"], ["photos/a.jpg", "--model", "nothing/"]]
)
def test_no_picture_and_no_model_are_faults(model, photos, capsys, arguments):
    Path("empty").mkdir()
    Path("nothing").mkdir()
    assert segment.main([a.format(model=model) for a in arguments] + ["--out", "out"]) == 1
    errors = capsys.readouterr().err
    assert "no file that ends in .jpg" in errors or "config.json is missing" in errors
    assert not Path("out").exists()


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there_is_a_wrong_argument(model, photos, capsys, device):
    with pytest.raises(SystemExit) as stopped:
        segment.main(["photos/a.jpg", "--model", str(model), "--out", "out", "--device", device])
    assert stopped.value.code == 2 and device in capsys.readouterr().err


def test_killed_half_way_it_continues_and_gives_the_same(model, photos):
    for seed in range(60):
        draw(photos / f"{seed:02}.png", 400, 300, seed)
    command = [sys.executable, "-m", "searchseg.segment", "photos", "--model", str(model), "--out", "out"]
    environment = os.environ | {"PYTHONPATH": str(Path(segment.__file__).parent.parent)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as killed:
        while len(done := list(Path("out").rglob("*.mask.png"))) < 5 and killed.poll() is None:
            time.sleep(0.002)
        killed.kill()
    assert 5 <= len(done) < 60
    times = {path: path.stat().st_mtime_ns for path in done}
    assert run(model, "photos", "--out", "out") == 1  # bad.png
    assert run(model, "photos", "--out", "whole") == 1
    assert {path: path.stat().st_mtime_ns for path in done} == times
    masks = {name: data for name, data in tree(Path("out")).items() if not name.endswith(".partial")}
    assert masks == tree(Path("whole")) and len(masks) == 63


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_no_half_of_a_result(model, photos, monkeypatch, capsys, step):
    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(segment.os, step, full)
    assert run(model, "photos/a.jpg", "--out", "out") == 1
    assert tree(Path("out")) == {} and "written: No space left on device." in capsys.readouterr().err


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_keeps_what_is_done(model, photos, monkeypatch, capsys, threads):
    real = segment.write_atomically

    def stop(path: Path, content: bytes) -> None:
        real(path, content)
        if path.name.startswith("a.jpg"):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(0.1)  # until the main thread has heard it

    for seed in range(20):
        draw(photos / f"z{seed:02}.png", seed=seed)
    monkeypatch.setattr(segment, "write_atomically", stop)
    monkeypatch.setattr(segment.torch, "get_num_threads", lambda: threads)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    try:
        assert run(model, "photos", "--out", "out") == 130
    finally:
        signal.signal(signal.SIGINT, before)
    done = sorted(tree(Path("out")))
    assert 1 <= len(done) <= 2 if threads == 1 else len(done) < 20
    told = capsys.readouterr()
    assert f"out: {len(done)} segmented" in told.out and "run the same command again" in told.err
    assert run(model, "photos", "--out", "out") == 1 and len(tree(Path("out"))) == 23


def test_pictures_side_by_side_give_the_same_and_faults_in_order(model, photos, capsys):
    for seed in range(12):
        draw(photos / f"{seed:02}.png", seed=seed)
    (photos / "05.png").write_bytes(b"not a picture")
    told, threads = [], torch.get_num_threads()
    for workers, out in ((1, "one"), (3, "three")):
        torch.set_num_threads(workers)
        assert run(model, "photos", "--out", out) == 1 and torch.get_num_threads() == workers
        torch.set_num_threads(threads)
        told.append(capsys.readouterr().err)
    assert tree(Path("one")) == tree(Path("three")) and len(tree(Path("one"))) == 14
    assert told[0] == told[1] and told[0].index("05.png") < told[0].index("bad.png")


def test_two_pictures_are_really_under_way_at_a_time(model, photos, monkeypatch):
    meeting, real = threading.Barrier(2), segment.write_atomically

    def meet(path: Path, content: bytes) -> None:
        meeting.wait(timeout=20)
        real(path, content)

    monkeypatch.setattr(segment, "write_atomically", meet)
    monkeypatch.setattr(segment.torch, "get_num_threads", lambda: 2)
    assert run(model, "photos/a.jpg", "photos/a.png", "--out", "out") == 0


def test_the_manual_names_endings_statuses_and_the_token(capsys):
    with pytest.raises(SystemExit) as stopped:
        segment.main(["--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    assert all(
        word in text for word in ("a.png.mask.png", "exit status:", "HF_TOKEN", "--overwrite", "examples:")
    )
