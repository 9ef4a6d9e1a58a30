"""Proves the whole line on drawn rows: search, genotype, retraining, save, load, Segmenter, card, page."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image, ImageDraw

import searchseg
from hub.card import main as write_card
from training import evaluate, loop, retrain, search

SIZE = (48, 40)  # width, height


def drawn_row(number: int) -> dict:
    """A bright ellipse on noise, with a trimap as Oxford-IIIT Pet has it: 1 pet, 2 background, 3 border."""
    draw = np.random.default_rng(number)
    picture = Image.fromarray(draw.integers(0, 120, (SIZE[1], SIZE[0], 3), np.uint8))
    trimap = Image.new("L", SIZE, 2)
    left, top = draw.integers(2, 12), draw.integers(2, 10)
    box = (left, top, left + draw.integers(18, 28), top + draw.integers(16, 24))
    ImageDraw.Draw(picture).ellipse(box, fill=(230, 180, 90))
    ImageDraw.Draw(trimap).ellipse(box, fill=1, outline=3)
    return {"image": picture, "label": number % 3, "file_name": f"{number}.png", "segmentation_mask": trimap}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A dataset of drawn rows in the columns of Oxford-IIIT Pet, on disk."""
    folder = tmp_path_factory.mktemp("drawn")
    features = datasets.Features(
        image=datasets.Image(), label=datasets.Value("int64"), file_name=datasets.Value("string"),
        segmentation_mask=datasets.Image(),
    )  # fmt: skip
    for split, numbers in (("train", range(96)), ("test", range(100, 110))):
        rows = datasets.Dataset.from_list([drawn_row(n) for n in numbers], features=features)
        rows.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def run(main, *words) -> None:
    assert main([str(word) for word in words]) == 0


def test_from_rows_to_the_page(data, tmp_path):
    gradio_client = pytest.importorskip("gradio_client")
    found, net = tmp_path / "search", tmp_path / "models" / "net"
    smoke = ("--task", "pet", "--data", data, "--preset", "smoke", "--cpu")

    # two steps an epoch, the second epoch with alpha
    run(search.main, *smoke, "--epochs", 2, "--split", "train[:32]", "--out", found)
    genotype = searchseg.Genotype.from_json((found / "genotype.json").read_text())
    history = [json.loads(line) for line in (found / "history.jsonl").read_text().splitlines()]
    assert [record["phase"] for record in history] == ["warmup", "search"]
    assert history[-1]["genotype"] == genotype.id
    for name in ("loss.png", "miou.png", "alpha.svg", "halves.json"):
        assert (found / "search" / name).stat().st_size > 0
    halves = json.loads((found / "search" / "halves.json").read_text())
    assert sorted(halves["weights"] + halves["alpha"]) == list(range(32))

    run(retrain.main, *smoke, "--genotype", found / "genotype.json", "--epochs", 15, "--out", net)
    run(evaluate.main, net, "--task", "pet", "--data", data, "--split", "test", "--device", "cpu")
    metrics = json.loads((net / "metrics.json").read_text())
    assert metrics["protocol"]["rows"] == 10 and metrics["protocol"]["rule"] == "border ignored"
    assert metrics["miou"] > 0.8, "a bright ellipse on dark noise must be learned"

    run(write_card, net, "--id", "net")
    card = (net / "README.md").read_text()
    assert (
        f"{metrics['miou']:.4f}" in card
        and genotype.id in card
        and "pipeline_tag: image-segmentation" in card
    )

    picture = tmp_path / "ellipse.png"
    drawn_row(200)["image"].save(picture)
    result = searchseg.Segmenter.from_pretrained(net, device="cpu")(picture)
    assert result.mask.shape == SIZE[::-1]

    from app import build_demo

    demo = build_demo(tmp_path / "models")
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False)
    try:
        client = gradio_client.Client(url, verbose=False)
        answer = client.predict(gradio_client.handle_file(picture), "net", api_name="/segment")
    finally:
        demo.close()
    masks = [part for part in answer if isinstance(part, str) and part.endswith(".png")]
    shown = [np.array(Image.open(path)) for path in masks]
    assert any(np.array_equal(mask, result.mask) for mask in shown), "the page gives the Segmenter's mask"


def test_bad_data_stops_before_training_with_row_and_cure(data, tmp_path, capsys):
    bad = tmp_path / "bad"
    row = drawn_row(0)
    row["segmentation_mask"] = Image.new("L", SIZE, 9)
    datasets.Dataset.from_list([drawn_row(1), row]).to_parquet(bad / "data" / "train-00000-of-00001.parquet")
    out = tmp_path / "out"
    words = ["--task", "pet", "--data", str(bad), "--preset", "smoke", "--cpu", "--out", str(out)]
    assert search.main(words) == 1
    message = capsys.readouterr().err
    assert "row 1" in message and "0.png" in message and "9" in message
    assert not (out / "history.jsonl").exists()


def test_a_stopped_retraining_continues_bit_equal(data, tmp_path):
    smoke = (
        "--task",
        "pet",
        "--data",
        data,
        "--preset",
        "smoke",
        "--cpu",
        "--architecture",
        "unet",
        "--split",
        "train[:32]",
        "--epochs",
        2,
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(retrain.main, *smoke, "--out", whole)

    class Stop(Exception):
        pass

    real, calls = loop.save_checkpoint, []

    def save_then_stop(path, state):
        real(path, state)
        if state["epoch"]:
            calls.append(path)
            raise Stop

    loop.save_checkpoint = save_then_stop
    try:
        with pytest.raises(Stop):
            retrain.main([str(word) for word in (*smoke, "--out", parts)])
    finally:
        loop.save_checkpoint = real
    assert len(calls) == 1
    run(retrain.main, "--resume", parts)
    one, two = (searchseg.from_pretrained(folder).state_dict() for folder in (whole, parts))
    assert all((one[name] == two[name]).all() for name in one)
