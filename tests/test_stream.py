"""Proves that a stream gives every row once, to one half and one process, in an order of (seed, epoch)."""

import dataclasses
import json
import shutil
import socket
from itertools import chain
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hub_fixture import start_with_hub
from PIL import Image

import searchseg
from searchseg.config import ModelConfig
from searchseg.task import TaskError, custom
from training import evaluate, loop, retrain, search
from training.presets import PRESETS, RetrainSettings
from training.rows import Augmentation, CheckedRows, load_rows
from training.stream import StreamedRows, open_stream

pytest_plugins = ["hub_fixture"]

TASK = custom(["dark", "light"])
CONFIG = ModelConfig("unet", {"widths": [2, 4], "num_classes": 2}, TASK.classes, TASK.colors, (32, 32))
PER_SHARD = (9, 4, 6, 5)  # no shard is like another
EVERY = [(shard, index) for shard, count in enumerate(PER_SHARD) for index in range(count)]


def box(number: int) -> dict:
    """Dark noise with a light box, of the size and colour that belong to its number."""
    numbers = np.random.default_rng(number)
    height, width = numbers.integers(24, 40, 2)
    pixels = numbers.integers(0, 90, (height, width, 3), np.uint8)
    mask = np.zeros((height, width), np.uint8)
    pixels[6:20, 4:18], mask[6:20, 4:18] = 130 + number, 1
    return {"image": Image.fromarray(pixels), "mask": Image.fromarray(mask), "label": number % 3}


def write_shards(folder: Path, split: str, rows: list[dict], counts: tuple[int, ...]) -> None:
    features = datasets.Features(image=datasets.Image(), mask=datasets.Image(), label=datasets.Value("int64"))
    for shard, count in enumerate(counts):
        part = datasets.Dataset.from_list(rows[sum(counts[:shard]) :][:count], features=features)
        part.to_parquet(folder / "data" / f"{split}-{shard:05}-of-{len(counts):05}.parquet")


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    small = dataclasses.replace(
        PRESETS["smoke"].search, widths=(2, 2, 2, 4), nodes=1, epochs=2, warmup_epochs=1, batch_size=4
    )
    final = RetrainSettings((2, 4, 4, 4), 2, (2, 2, 2, 4), 32, 3, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setitem(PRESETS, "tiny", dataclasses.replace(PRESETS["smoke"], search=small, retrain=final))
        datasets.disable_progress_bars()
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("boxes")
    write_shards(folder, "train", [box(number) for number in range(sum(PER_SHARD))], PER_SHARD)
    write_shards(folder, "test", [box(number) for number in range(30, 36)], (4, 2))
    return folder


def stream(data: Path, process: int = 0, processes: int = 1, split: str = "train") -> StreamedRows:
    return open_stream(str(data), split, None, TASK, 24, process, processes)


def positions(rows: StreamedRows, seed: int = 0, epoch: int = 0) -> list[tuple[int, int]]:
    return [(row["shard"], row["index"]) for row in rows.shuffled(seed, epoch)]


def batches(rows: StreamedRows, epoch: int = 0, part: object = None, size: int = 4, seed: int = 0) -> list:
    loader = rows.batches(part, Augmentation(CONFIG, "strong", seed, 32), batch_size=size)
    loader.epoch = epoch
    return list(loader)


def equal(one: list, two: list) -> bool:
    assert len(one) == len(two) > 0
    return all(
        torch.equal(a, b)
        for left, right in zip(one, two, strict=True)
        for a, b in zip(left, right, strict=True)
    )


# ---- which rows, and in which order ------------------------------------------------------------------------


def test_every_row_comes_once_and_as_it_is_stored(data):
    rows = stream(data)
    table = CheckedRows(load_rows(str(data), "train", None, TASK), TASK, None, "rows", quiet=True)
    assert equal(list(rows.in_order()), list(table))
    assert len(rows) == 24 and all(sorted(positions(rows, 1, epoch)) == EVERY for epoch in range(3))


def test_several_splits_are_one_stream(data):
    rows = open_stream(str(data), "train+test", None, TASK, None)
    assert len(list(rows.in_order())) == 30 and len(set(positions(rows))) == 30


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (1, 0), (1, 5)])
def test_halves_cover_everything_and_never_overlap_in_any_epoch_or_process(data, seed, epoch):
    parts = {}
    for process in range(2):
        rows = stream(data, process, 2)
        for name, half in zip(("weights", "alpha"), rows.halves(seed), strict=True):
            parts[name, process] = positions(rows.only(half), seed, epoch)
    assert sorted(chain(*parts.values())) == EVERY
    weights = {name: set(parts[name, 0] + parts[name, 1]) for name in ("weights", "alpha")}
    alone = stream(data)
    for name, half in zip(("weights", "alpha"), alone.halves(seed), strict=True):
        assert set(positions(alone.only(half))) == weights[name], "one process cuts as two do"
        assert 4 <= len(weights[name]) <= 20


def test_halves_are_those_of_the_seed(data):
    rows = stream(data)
    cuts = {tuple(sorted(positions(rows.only(rows.halves(seed)[0])))) for seed in range(6)}
    assert len(cuts) == 6


def test_held_out_rows_are_the_same_for_every_seed_and_never_in_a_half(data):
    learning, kept = stream(data).hold_out(0.25)
    assert sorted(positions(learning) + positions(kept)) == EVERY and 1 <= len(positions(kept)) <= 12
    assert len(learning) + len(kept) == 24
    for seed in range(3):
        halves = [positions(learning.only(half)) for half in learning.halves(seed)]
        assert sorted(chain(*halves)) == sorted(positions(learning)) and all(halves)
    assert stream(data).hold_out(0.0)[1] is None
    with pytest.raises(TaskError, match=r"take 0 to 0\.5"):
        stream(data).hold_out(1.0)


@pytest.mark.parametrize("processes", [2, 3, 4])  # 4 shards go into 2 and 4 processes, and not into 3
def test_processes_see_disjoint_rows_that_cover_everything(data, processes):
    for epoch in (0, 3):
        parts = [positions(stream(data, process, processes), 7, epoch) for process in range(processes)]
        assert sorted(chain(*parts)) == EVERY and all(parts)
    read = [list(stream(data, process, processes).in_order()) for process in range(processes)]
    assert sum(map(len, read)) == 24


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_process_has_the_same_number_of_full_batches(data, processes):
    learning = [stream(data, process, processes).hold_out(0.2)[0] for process in range(processes)]
    for half in (None, *learning[0].halves(0)):
        taken = [batches(rows, part=half, size=12) for rows in learning]
        assert len({len(part) for part in taken}) == 1
        assert {len(images) for part in taken for images, _ in part} == {12 // processes}


def test_the_order_depends_on_seed_and_epoch_alone(data):
    orders = {(seed, epoch): positions(stream(data), seed, epoch) for seed in range(3) for epoch in range(3)}
    assert len({tuple(order) for order in orders.values()}) == 9
    for (seed, epoch), order in orders.items():
        torch.manual_seed(epoch)
        np.random.seed(epoch)  # noqa: NPY002
        assert positions(stream(data), seed, epoch) == order != EVERY


def test_batches_depend_on_seed_and_epoch_alone(data):
    first = batches(stream(data), epoch=3)
    used = stream(data).batches(None, Augmentation(CONFIG, "strong", 0, 32), 4)
    for used.epoch in range(4):
        last = list(used)
    assert equal(first, last), "an epoch does not need the earlier ones"
    assert equal(first, batches(stream(data).on("cpu", threads=3), epoch=3)), "nor does it matter who decodes"
    others = [batches(stream(data), epoch=4), batches(stream(data), epoch=3, seed=1)]
    assert not any(equal(first, other) for other in others)
    for images, masks in first:
        assert images.shape == (4, 3, 32, 32) and images.dtype == torch.float32
        assert masks.shape == (4, 32, 32) and masks.dtype == torch.int64


def test_rows_come_again_in_another_order_when_there_are_too_few(data):
    rows = open_stream(str(data), "train", None, TASK, 48)  # twice as many as there are
    taken = batches(rows, size=24)
    images = [sorted(image.sum().item() for image in images) for images, _ in taken]
    assert len(taken) == 2 and images[0] != images[1], "and augmented otherwise"


# ---- what is refused ---------------------------------------------------------------------------------------


def test_a_bad_row_is_named_by_its_position(data, tmp_path):
    rows = [box(number) for number in range(9)]
    rows[7]["mask"] = Image.fromarray(np.full((5, 5), 1, np.uint8))
    rows[8]["image"] = {"bytes": b"no picture", "path": None}
    write_shards(tmp_path, "train", rows, (4, 5))
    read = open_stream(str(tmp_path), "train", None, TASK, None).in_order()
    assert len([next(read) for _ in range(7)]) == 7
    with pytest.raises(TaskError, match=r"^row 3 of shard 1: the picture is \d+x\d+, its mask 5x5"):
        next(read)
    for threads in (0, 2):
        with pytest.raises(TaskError, match=r"row [34] of shard 1"):
            batches(open_stream(str(tmp_path), "train", None, TASK, 9).on("cpu", threads), size=9)
    write_shards(tmp_path, "valid", [rows[0], rows[8]], (2,))
    with pytest.raises(TaskError, match=r"^row 1 cannot be decoded"):
        list(open_stream(str(tmp_path), "valid", None, TASK, None).in_order())


def test_a_file_cut_short_is_named(data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    path = tmp_path / "data" / "data" / "train-00002-of-00004.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:100] + bytes(len(content) - 200) + content[-100:])
    with pytest.raises(TaskError, match=r"^row 0 of shard 2 cannot be (read|decoded)"):
        list(open_stream(str(tmp_path / "data"), "train", None, TASK, 24).in_order())


def test_what_cannot_be_streamed_is_told(data, tmp_path):
    for split, fault in (("train[:5]", "a stream has no slices"), ("valid", "train")):
        with pytest.raises(TaskError, match=fault):
            open_stream(str(data), split, None, TASK, None)
    with pytest.raises(TaskError, match="cannot read dataset"):
        open_stream(str(tmp_path / "none"), "train", None, TASK, None)
    with pytest.raises(TaskError, match="no column 'masks'"):
        open_stream(str(data), "train", None, custom(["a", "b"], mask_column="masks"), None)


def test_a_number_of_rows_that_nobody_states_is_asked_for(data, capsys, tmp_path):
    unknown = StreamedRows(stream(data).parts, TASK, None)
    assert len(list(unknown.in_order())) == 24, "to evaluate no number is needed"
    with pytest.raises(TaskError, match="say it with --rows N"):
        len(unknown)
    assert retrain.main(command(data, tmp_path / "a", "--architecture", "unet", "--rows", "8")) == 1
    assert "together with --streaming" in capsys.readouterr().err


def test_a_batch_that_cannot_be_shared_evenly_is_refused(data):
    with pytest.raises(TaskError, match="batch of 4 cannot be shared by 3 processes"):
        batches(stream(data, 0, 3))


def test_a_part_without_rows_is_told(data):
    rows = stream(data)
    none = dataclasses.replace(rows.halves(0)[0], low=0.0, high=1e-9)
    with pytest.raises(TaskError, match="finds no row of its part"):
        batches(rows, part=none)


# ---- runs --------------------------------------------------------------------------------------------------


def command(data: object, out: Path, *more: str) -> list[str]:
    words = ["--task", "custom", "--classes", "dark,light", "--data", str(data), "--preset", "tiny", "--cpu"]
    return [*words, "--out", str(out), *more]


STREAMED = ("--streaming", "--rows", "24", "--hold-out", "0.2")


@pytest.fixture(scope="module")
def found(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("search")
    assert search.main(command(data, out, *STREAMED)) == 0
    return out


@pytest.fixture(scope="module")
def net(data, found, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("net")
    genotype = ("--genotype", str(found / "genotype.json"))
    assert retrain.main(command(data, out, *STREAMED, *genotype)) == 0
    return out


def test_a_streamed_search_ends_with_a_genotype_and_tells_its_rule(found):
    genotype = searchseg.Genotype.from_json((found / "genotype.json").read_text())
    assert genotype.search["epoch_kept"] == 2
    kept = json.loads((found / "search" / "halves.json").read_text())
    assert kept["weights"] == {"seed": "halves 0", "low": 0.0, "high": 0.5}
    assert kept["alpha"] == {"seed": "halves 0", "low": 0.5, "high": 1.0}
    assert kept["shards"] == 4 and kept["rows"] == 24 and kept["within"][0]["low"] == 0.2
    assert "sha256" in kept["rule"]


def test_a_streamed_training_ends_with_a_model_that_segments(net):
    result = searchseg.Segmenter.from_pretrained(net, device="cpu")(box(40)["image"])
    assert result.mask.max() < 2
    lines = [json.loads(line) for line in (net / "history.jsonl").read_text().splitlines()]
    assert len(lines) == 3 and all(0 <= line["held_out_miou"] <= 1 for line in lines)
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]


@pytest.mark.parametrize("what", [search, retrain], ids=["search", "retrain"])
def test_a_resumed_run_equals_an_undisturbed_one(what, data, found, net, tmp_path, monkeypatch):
    save = loop.save_checkpoint

    def save_then_stop(path: Path, state: dict) -> None:
        save(path, state)
        if state["epoch"]:
            raise KeyboardInterrupt

    more = ("--genotype", str(found / "genotype.json")) if what is retrain else ()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", save_then_stop)
        assert what.main(command(data, tmp_path / "run", *STREAMED, *more)) == 130
    opened, shuffled = [], StreamedRows.shuffled

    def noted(self, seed: int, epoch: int) -> object:
        opened.append(epoch)
        return shuffled(self, seed, epoch)

    monkeypatch.setattr(StreamedRows, "shuffled", noted)
    assert what.main(["--resume", str(tmp_path / "run")]) == 0
    assert opened == {retrain: [1, 2], search: [1, 1, 0, 1]}[what], "the first epoch is not trained again"
    if what is retrain:
        weights = [(folder / "model.safetensors").read_bytes() for folder in (net, tmp_path / "run")]
        assert weights[0] == weights[1]
    else:
        lines = [(folder / "search" / "alpha.jsonl").read_text() for folder in (found, tmp_path / "run")]
        assert lines[0] == lines[1]


def test_a_search_is_not_resumed_with_other_rows(data, found, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(found, run)
    settings = json.loads((run / "settings.json").read_text())
    settings["options"]["rows"] = 20
    (run / "settings.json").write_text(json.dumps(settings))
    assert search.main(["--resume", str(run)]) == 1
    assert "resume with the same rows" in capsys.readouterr().err


def scores(folder: Path, data: object, *more: str) -> dict:
    words = ["--task", "custom", "--classes", "dark,light", "--data", str(data), "--device", "cpu", *more]
    assert evaluate.main([str(folder), *words]) == 0
    metrics = json.loads((folder / "metrics.json").read_text())
    return {
        **{key: metrics[key] for key in ("miou", "iou", "dice_loss")},
        "rows": metrics["protocol"]["rows"],
    }


def test_a_streamed_evaluation_equals_that_of_the_table(data, net):
    assert scores(net, data) == scores(net, data, "--streaming")
    assert scores(net, data, "--split", "train+test")["rows"] == 30


def test_two_processes_score_every_row_of_a_private_hub_dataset_once_and_store_none(hub, data, net, tmp_path):
    hub.create("alice/boxes", type="dataset", private=True)
    files = {str(path.relative_to(data)): path.read_bytes() for path in sorted(data.rglob("*.parquet"))}
    hub.commit("alice/boxes", files, type="dataset")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    copy, home = tmp_path / "net", tmp_path / "home"
    shutil.copytree(net, copy)
    (copy / "metrics.json").unlink(missing_ok=True)
    words = ["--task", "custom", "--classes", "dark,light", "--data", "alice/boxes", "--device", "cpu"]
    argv = ["python", "-m", "training.evaluate", str(copy), *words, "--streaming", "--split", "train+test"]
    together = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    both = [
        start_with_hub(
            hub, argv, token="hf_alice", home=home, RANK=str(process), LOCAL_RANK=str(process), **together
        )
        for process in range(2)
    ]
    told = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], told[0][-2000:]
    metrics, alone = (
        json.loads((copy / "metrics.json").read_text()),
        scores(net, data, "--split", "train+test"),
    )
    assert metrics["protocol"]["rows"] == 30 and metrics["iou"] == alone["iou"]
    assert metrics["dice_loss"] == pytest.approx(alone["dice_loss"])
    assert hub.asked("GET", r"resolve/[0-9a-f]{40}/data/train"), "from one commit"
    assert not [path for path in home.rglob("*") if path.suffix in (".parquet", ".arrow")]
