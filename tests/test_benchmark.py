"""Proves that the benchmarks of speed measure what they name, on small networks, and fill their tables."""

import argparse
import json
from pathlib import Path

import pytest
import torch

from searchseg import ModelConfig, save_pretrained
from searchseg.baselines import UNet
from searchseg.segmenter import Segmenter
from training import benchmark_loader, benchmark_photo, benchmark_segment
from training.benchmark import main
from training.benchmark_photo import markdown, photo, steps
from training.timing import between_marks


@pytest.fixture
def model(tmp_path) -> Path:
    folder, arguments = tmp_path / "models" / "tiny", {"widths": [2, 4], "num_classes": 2}
    config = ModelConfig("unet", arguments, ("dark", "light"), ("#000000", "#ffffff"), (16, 16))
    save_pretrained(UNet((2, 4)), folder, config)
    return folder


def test_networks_are_timed_by_way_and_threads_and_rows_are_kept(model, tmp_path, capsys, monkeypatch):
    file, page = tmp_path / "rows.json", tmp_path / "page.md"
    page.write_text("before\n<!-- segment -->\n<!-- end of segment -->\nafter\n")
    command = ["segment", "--models", str(model.parent), "--no-paper-unet", "--runs", "3", "--threads", "1"]
    command += ["--json", str(file), "--into", str(page), "--ways", "Segmenter"]
    assert main([*command, "--sizes", "16", "--pictures", "2", "--memory"]) == 0
    assert main([*command, "as trained", "--sizes", "24", "--pictures", "1", "--budget", "0"]) == 0
    document = json.loads(file.read_text())
    other = [*command[:-1], "as trained", "--sizes", "24", "--pictures", "1", "2"]
    assert main([*other, "--memory", "--runs", "0"]) == 0
    later = json.loads(file.read_text())
    assert later["rows"] == document["rows"], "it times nothing"
    kept = [(m["way"], m["size"], m["pictures"]) for m in later["memory"]]
    assert kept == [("Segmenter", 16, 2), ("as trained", 24, 1)], "it keeps all others"
    assert [(r["way"], r["size"], r["pictures"], r["seconds"] is None) for r in document["rows"]] == [
        ("Segmenter", 16, 2, False), ("Segmenter", 24, 1, True), ("as trained", 24, 1, True),
    ]  # fmt: skip
    row, (memory,) = document["rows"][0], document["memory"]
    assert row["gflops"] == pytest.approx(2 * row["macs"] * 2 / row["seconds"] / 1e9)
    assert 0 < row["gflops"] < row["product_gflops"] and row["range"][0] <= row["seconds"] <= row["range"][1]
    assert 100 < memory["peak_mb"] < 3000 and (row["threads"], row["runs"]) == (1, 3)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "| tiny | 24 | 1 |" in text
    (line,) = (line for line in text.splitlines() if line.startswith("| tiny | 16 | 2 |"))
    assert f" - / {memory['peak_mb']:.0f} / - |" in line
    monkeypatch.setattr(benchmark_segment, "_child", None)  # nothing is measured
    assert main([*command, "--sizes", "16", "--pictures", "2", "--show", "--memory"]) == 0
    assert json.loads(file.read_text()) == later
    assert "16 px x2" in capsys.readouterr().out


def test_rows_timed_before_an_interruption_are_in_the_file(model, monkeypatch, tmp_path, capsys):
    file = tmp_path / "rows.json"
    row = {"system": "tiny", "way": "Segmenter", "size": 16, "pictures": 1, "threads": 1, "runs": 2}

    def interrupted(args, threads, *what):
        yield {**row, "seconds": None, "once": 9.0}
        raise KeyboardInterrupt

    command = ["segment", "--models", str(model), "--json", str(file)]
    with monkeypatch.context() as patch:
        patch.setattr(benchmark_segment, "_child", interrupted)
        with pytest.raises(KeyboardInterrupt):
            main(command)
    (kept,) = json.loads(file.read_text())["rows"]
    assert kept["once"] == 9.0
    document = json.loads(file.read_text())
    document["machine"]["device"] = "abacus"
    file.write_text(json.dumps(document))
    with pytest.raises(SystemExit, match=r"figures of another machine \(abacus"):
        main(command)
    assert main([*command, "--show"]) == 0 and "[9000]" in capsys.readouterr().out


def test_without_models_the_unet_of_the_paper_is_alone():
    parser = argparse.ArgumentParser()
    benchmark_segment.add_segment_options(parser)
    alone = set(benchmark_segment._systems(parser.parse_args(["--models"])))
    assert alone == {(benchmark_segment.PAPER_UNET, way) for way in ("as trained", "Segmenter")}
    with pytest.raises(SystemExit, match="no model in --models"):
        main(["segment", "--models", "--no-paper-unet", "--child"])
    with pytest.raises(SystemExit, match="nothing was timed"):
        main(["segment", "--models", "--ways", "onnxruntime", "--threads", "1"])


def test_where_no_model_or_no_mark_is_the_benchmark_says_so(tmp_path):
    with pytest.raises(SystemExit, match="no model in"):
        benchmark_segment.folders([tmp_path])
    (tmp_path / "page.md").write_text("nothing")
    with pytest.raises(SystemExit, match="has no lines <!-- segment -->"):
        between_marks(tmp_path / "page.md", "segment", "text")


def test_every_step_of_a_photo_is_timed_and_a_folder_goes_through_the_command(model, monkeypatch, capsys):
    segmenter = Segmenter.from_pretrained(model, device="cpu")
    timed = steps(segmenter, photo(64, 48, seed=0))
    assert set(timed) == {*benchmark_photo.STEPS, *benchmark_photo.EXTRAS} and min(timed.values()) > 0
    monkeypatch.setattr(benchmark_photo, "CAMERA", (64, 48))
    monkeypatch.setattr(benchmark_photo, "PHONE", (96, 64))
    monkeypatch.setattr(benchmark_photo, "_peak", lambda *_: {"torch_mb": 300.0, "peak_mb": 350.0})
    assert main(["photo", "--models", str(model), "--runs", "2", "--folder", "3"]) == 0
    out = capsys.readouterr().out
    assert "| tiny | 96x64 |" in out and "3 photos of 64x48 by `python -m searchseg.segment`, tiny" in out


def test_the_rate_of_the_bare_network_counts_its_calls(model):
    segmenter, threads = Segmenter.from_pretrained(model, device="cpu"), torch.get_num_threads()
    calls = []
    segmenter._faster.register_forward_hook(lambda *_: calls.append(1))
    assert benchmark_photo.bare_rate(segmenter, 1, calls=5) > 0
    assert len(calls) == 7 and torch.get_num_threads() == threads


def test_the_folders_line_states_rates_and_shares():
    folder = {
        "model": "net",
        "photos": 101,
        "first_seconds": 2.0,
        "seconds": 7.0,
        "bare": 25.0,
        "side_by_side": 40.0,
    }
    about = {"device": "a processor", "threads": 2, "torch": "2"}
    text = markdown({"photos": [], "folders": [folder], "machine": about, "runs": 3, "backend": "torch"})
    assert "14.4 a second with its start" in text and "20.0 after it" in text
    assert "58% with the start, 80% after it" in text and "side by side (50%)" in text


def test_waiting_for_rows_is_told_from_computing(monkeypatch, tmp_path, capsys):
    real = benchmark_loader.Training.step

    def slow(*arguments):
        benchmark_loader.time.sleep(0.05)
        return real(*arguments)

    monkeypatch.setattr(benchmark_loader.Training, "step", slow)
    file = tmp_path / "loader.json"
    command = ["loader", "--preset", "smoke", "--steps", "2", "--cpu", "--json", str(file), "--workers", "0"]
    assert main(command) == 0 and main(command) == 0
    (row,) = json.loads(file.read_text())["rows"]
    assert row["step"] > 0.05 and 0 < row["share"] < 1
    assert row["share"] == pytest.approx(row["waited"] * row["rate"] / row["batch"])
    assert "smoke, 32 px, batch 8 | 0" in capsys.readouterr().out


def test_a_batch_of_the_loader_that_is_too_large_goes_in_parts(monkeypatch, tmp_path, capsys):
    seen = []
    forward = benchmark_loader.SearchNet.forward

    def noted(self, images):
        seen.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(benchmark_loader.SearchNet, "forward", noted)
    file = tmp_path / "loader.json"
    command = ["loader", "--preset", "smoke", "--steps", "1", "--cpu", "--json", str(file), "--workers", "0"]
    assert main(command) == 0
    assert main([*command, "--accumulate", "4", "--checkpoint-activations"]) == 0
    assert seen == [8, 8] + [2] * 8
    whole, parts = json.loads(file.read_text())["rows"]  # one does not take the place of the other
    assert (whole["parts"], parts["parts"], parts["batch"]) == (1, 4, 8)
    said = capsys.readouterr().out
    assert "batch 8 | 0" in said and "batch 8 in 4 parts, cells computed twice | 0" in said
    document = json.loads(file.read_text())
    del document["rows"][0]["parts"], document["rows"][0]["recompute"]  # as an earlier version wrote it
    file.write_text(json.dumps(document))
    page = tmp_path / "page.md"
    page.write_text("<!-- loader -->\n<!-- end of loader -->\n")
    assert main([*command, "--into", str(page)]) == 0 and "in 4 parts" in page.read_text()
    assert [row["parts"] for row in json.loads(file.read_text())["rows"]] == [4, 1]
    assert main([*command, "--accumulate", "0"]) == 1
    assert "--accumulate must be at least 1" in capsys.readouterr().err
