"""Proves that training.segment maps a whole dataset once, the same after a kill and with other processes."""

import io
import json
import shutil
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hub_fixture import run_with_hub, start_with_hub
from PIL import Image
from test_segment_command import save_model

import searchseg
from training import mask_shards, segment
from training.dataset_folder import write_parquet

pytest_plugins = ["hub_fixture"]
FEATURES = datasets.Features(image=datasets.Image(), file_name=datasets.Value("string"))
TURNED, BAD, NOTHING = 3, 5, 11  # rows of the split train
REASON = "This file is not a readable JPEG, PNG, WEBP, BMP or GIF picture."


def picture(seed: int) -> bytes:
    """A JPEG of 64x48 pixels; that of row TURNED is to be shown upright."""
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6 if seed == TURNED else 1
    Image.fromarray(blocks).resize((64, 48), Image.Resampling.BILINEAR).save(file, "JPEG", exif=exif)
    return file.getvalue()


def write_data(folder: Path, train: int, test: int = 0) -> Path:
    """A datasets repository with a bad picture, a missing one, and one to be turned."""
    for split, seeds in (("train", range(train)), ("test", range(1000, 1000 + test))):
        rows = [{"image": {"bytes": picture(n), "path": None}, "file_name": f"{n}.jpg"} for n in seeds]
        if split == "train":
            rows[BAD]["image"], rows[NOTHING]["image"] = {"bytes": b"no picture", "path": None}, None
        if rows:
            path = folder / "data" / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_parquet(path, iter(rows), FEATURES.arrow_schema)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "net", 0)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "photos", 40, 10)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def run(*words: object) -> int:
    return segment.main([*map(str, words), "--cpu"])


def shards(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "data").glob("*.parquet"))}


def loaded(out: Path, tmp_path: Path) -> datasets.DatasetDict:
    return datasets.load_dataset(str(out), cache_dir=str(tmp_path / "loaded"))


def test_every_row_has_the_mask_of_the_segmenter_or_a_reason(model, data, tmp_path, capsys):
    out = tmp_path / "masks"
    assert run("--data", data, "--model", model, "--out", out, "--batch-size", 1, "--with-image") == 1
    dataset, segmenter = loaded(out, tmp_path), searchseg.Segmenter.from_pretrained(model, device="cpu")
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 40, "test": 10}
    assert dataset["train"].column_names == ["image", "row", "name", "mask", "shares", "error"]
    raw = dataset["train"].cast_column("image", datasets.Image(decode=False))
    for number, row in enumerate(raw):
        assert (row["row"], row["name"]) == (number, f"{number}.jpg")
        if number in (BAD, NOTHING):
            assert row["mask"] is None and row["shares"] is None
            continue
        assert row["error"] is None and row["image"]["bytes"] == picture(number)
        result = segmenter(picture(number))
        assert row["mask"].mode == "L" and np.array_equal(row["mask"], result.mask)
        assert row["shares"] == pytest.approx(list(result.shares.values()))
    assert raw[TURNED]["mask"].size == (48, 64)
    assert raw[BAD]["error"].startswith(REASON) and raw[BAD]["image"]["bytes"] == b"no picture"
    assert raw[NOTHING]["error"].startswith("The file is empty") and raw[NOTHING]["image"] is None
    errors = capsys.readouterr().err
    assert f"train, row {BAD} ({BAD}.jpg): {REASON}" in errors and f"train, row {NOTHING}" in errors
    assert "error: 2 of 50 pictures have no mask" in errors


def test_where_the_network_doubts_the_value_is_255(model, data, tmp_path, capsys):
    words = ["--data", data, "--model", model, "--split", "test[:3]"]
    assert run(*words, "--out", tmp_path / "all") == 0
    segmenter = searchseg.Segmenter.from_pretrained(model, device="cpu")
    with torch.inference_mode():
        image = segmenter.config.tensor(Image.open(io.BytesIO(picture(1000))))[None]
        best = segmenter.model(image).softmax(1).amax(1, keepdim=True)
    wide = torch.nn.functional.interpolate(best, (48, 64), mode="bilinear")[0, 0].numpy()
    sure = round(float(np.median(wide)), 4)
    assert run(*words, "--out", tmp_path / "sure", "--sure", sure) == 0
    rows = [loaded(tmp_path / name, tmp_path / name)["test_3"][0] for name in ("all", "sure")]
    every, certain = (np.array(row["mask"]) for row in rows)
    doubt = certain == 255
    assert 0.3 < doubt.mean() < 0.7 and np.array_equal(every[~doubt], certain[~doubt])
    assert np.mean(doubt != (wide < sure)) < 0.01
    assert sum(rows[1]["shares"]) == pytest.approx(1 - doubt.mean()) and len(rows[1]["shares"]) == 3
    assert f"a probability below {sure}" in (tmp_path / "sure" / "README.md").read_text()
    with pytest.raises(SystemExit):
        run(*words, "--out", tmp_path / "none", "--sure", "1.5")
    assert "'1.5' is not a probability" in capsys.readouterr().err


def test_without_bad_pictures_the_status_is_zero(model, data, tmp_path):
    assert run("--data", data, "--model", model, "--out", tmp_path / "out", "--split", "test[:3]") == 0
    assert len(loaded(tmp_path / "out", tmp_path)["test_3"]) == 3


def test_batches_change_no_more_than_a_tie(model, data, tmp_path):
    for size in (1, 8):
        run("--data", data, "--model", model, "--out", tmp_path / str(size), "--batch-size", size)
    one, eight = (loaded(tmp_path / str(size), tmp_path)["train"] for size in (1, 8))
    pairs = [(np.array(a["mask"]), np.array(b["mask"])) for a, b in zip(one, eight, strict=True) if a["mask"]]
    assert len(pairs) == 38 and sum((a != b).sum() for a, b in pairs) <= 1e-4 * sum(a.size for a, _ in pairs)
    assert one["error"][:] == eight["error"][:] and one["row"][:] == eight["row"][:]


def test_the_card_tells_model_source_columns_and_classes(model, data, tmp_path):
    run("--data", data, "--model", model, "--out", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    segmenter = searchseg.Segmenter.from_pretrained(model)
    parts = [
        f"| model | folder net, fingerprint `{segmenter.fingerprint}` |", "| source | folder photos |",
        "| train | 40 | 2 |", "| test | 10 | 0 |", "| 1 | cat | `#ff8000` |", "| `shares` |",
        "license: unknown", "licence of the source is not known", 'load_dataset("out")',
        '{"0": "background", "1": "cat", "2": "dog"}',
    ]  # fmt: skip
    for part in parts:
        assert part in text
    assert "| `image` |" not in text and str(tmp_path) not in text


def test_resume_makes_only_what_is_missing(model, data, tmp_path, monkeypatch, capsys):
    out, asked = tmp_path / "out", []
    run("--data", data, "--model", model, "--out", out, "--shard-rows", 7)
    before = shards(out)
    assert sum(name.startswith("train-") for name in before) == 6
    (out / "data" / "train-00002-of-00006.parquet").unlink()
    cut_short = out / "data" / "test-00001-of-00002.parquet"
    cut_short.write_bytes(before[cut_short.name][:-9])
    write = mask_shards.Shard.write
    monkeypatch.setattr(
        mask_shards.Shard, "write", lambda s, *rest: asked.append(s.path.name) or write(s, *rest)
    )
    assert run("--resume", out) == 1
    assert sorted(asked) == ["test-00001-of-00002.parquet", "train-00002-of-00006.parquet"]
    assert shards(out) == before
    with pytest.raises(SystemExit):
        run("--data", data, "--model", model, "--out", out)
    assert f"--resume {out}" in capsys.readouterr().err


def test_a_flipped_bit_is_found(model, data, tmp_path):
    out = tmp_path / "out"
    run("--data", data, "--model", model, "--out", out, "--split", "test")
    (path,) = (out / "data").glob("*.parquet")
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 9] ^= 1
    path.write_bytes(content)
    with pytest.raises(OSError, match=r"(?i)crc|checksum"):
        pq.read_table(path, page_checksum_verification=True)


def test_two_models_or_two_states_of_the_data_are_not_mixed(model, data, tmp_path, capsys):
    net, photos, out = tmp_path / "net", tmp_path / "photos", tmp_path / "out"
    shutil.copytree(model, net)
    shutil.copytree(data, photos)
    run("--data", photos, "--model", net, "--out", out)
    before = shards(out)
    save_model(net, 1)
    assert run("--resume", out) == 1
    assert "began with fingerprint" in capsys.readouterr().err
    shutil.copytree(model, net, dirs_exist_ok=True)
    write_data(photos, 41, 10)
    assert run("--resume", out) == 1
    assert "began with rows {'train': 40, 'test': 10}" in capsys.readouterr().err and shards(out) == before


def test_a_folder_of_pictures_keeps_their_names(model, tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in (1, 2):
        (folder / f"{number}.jpg").write_bytes(picture(number))
    assert run("--data", folder, "--model", model, "--out", tmp_path / "out", "--with-image") == 0
    rows = loaded(tmp_path / "out", tmp_path)["train"]
    assert rows["name"][:] == ["1.jpg", "2.jpg"]
    assert np.array_equal(rows[1]["image"], Image.open(folder / "2.jpg"))


def test_a_row_cannot_name_a_file_outside_of_the_dataset(model, tmp_path, capsys):
    secret, folder = tmp_path / "secret.jpg", tmp_path / "photos"
    secret.write_bytes(picture(1))
    paths = (secret, folder / ".." / "secret.jpg")
    rows = [{"image": {"bytes": None, "path": str(path)}, "file_name": "a.jpg"} for path in paths]
    (folder / "data").mkdir(parents=True)
    write_parquet(folder / "data" / "train-00000-of-00001.parquet", iter(rows), FEATURES.arrow_schema)
    assert run("--data", folder, "--model", model, "--out", tmp_path / "out", "--with-image") == 1
    for row in loaded(tmp_path / "out", tmp_path)["train"]:
        assert row["image"] is None and row["mask"] is None and "does not belong" in row["error"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--image-column", "photo"], "no column 'photo'; the dataset has image, file_name"),
        (["--image-column", "file_name"], "column 'file_name' holds Value('string'), not pictures"),
        (["--name-column", "id"], "name the right one with --name-column"),
        (["--split", "valid"], "split 'valid'"),
    ],
)
def test_wrong_columns_and_splits_are_named(model, data, tmp_path, capsys, words, sentence):
    assert run("--data", data, "--model", model, "--out", tmp_path / "out", *words) == 1
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--out new", "say what to segment with --data"),
        ("--resume nothing", "nothing is no run folder"),
        ("--data me/a --model m --out new --push-to-hub me/a", "is the source itself"),
        ("--data me/a --model m --out new --push-to-hub a--b", "Wanted is NAME or OWNER/NAME"),
        ("--data me/a --model m --out new --private", "--private needs --push-to-hub"),
        ("--data me/a --model m --out new --batch-size 0", "'0' is not a number from 1"),
    ],
)
def test_wrong_arguments_stop_before_any_work(tmp_path, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        segment.main(words.split())
    assert stopped.value.code == 2 and not Path("new").exists()
    assert sentence in capsys.readouterr().err


def test_the_cut_depends_on_the_rows_alone():
    for rows in (1, 16, 17, 366, 3669, 100_000):
        shards = mask_shards.cut("test", rows, None, Path("data"))
        assert [(s.start, s.stop) for s in shards[1:]] == [
            (a.stop, min(a.stop + len(shards[0]), rows)) for a in shards[:-1]
        ]
        assert (shards[0].start, shards[-1].stop) == (0, rows) and len(shards[0]) <= 1000
    assert len(mask_shards.cut("test", 100_000, None, Path("data"))) == 100
    assert mask_shards.cut("test", 366, 400, Path("data"))[0].path.name == "test-00000-of-00001.parquet"


def test_push_tries_again_and_replaces_only_its_own(hub, model, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    monkeypatch.setattr("hub.remote.WAITS", (0.01, 0.01))
    hub.fail("POST", "/api/repos/create", times=1)
    hub.fail("POST", "/commit/", times=1)
    out, words = tmp_path / "out", ("--data", data, "--model", model, "--split", "test")
    assert run(*words, "--out", out, "--shard-rows", 4, "--push-to-hub", "alice/masks") == 0
    sent = hub.files("alice/masks", type="dataset")
    assert {name: sent[f"data/{name}"] for name in shards(out)} == shards(out) and len(shards(out)) == 3
    assert sent["README.md"] == (out / "README.md").read_bytes() and "settings.json" not in sent
    assert b'load_dataset("alice/masks")' in sent["README.md"]
    assert "uploaded to" in capsys.readouterr().out

    again = tmp_path / "again"  # by another cut: the old shards go
    assert run(*words, "--out", again, "--push-to-hub", "alice/masks") == 0
    sent = hub.files("alice/masks", type="dataset")
    assert {name for name in sent if name.startswith("data/")} == {f"data/{name}" for name in shards(again)}

    hub.create("alice/photos", type="dataset", owner_token="hf_alice")
    head = hub.commit("alice/photos", {"data/a.parquet": b"rows"}, type="dataset")
    assert run("--resume", again, "--push-to-hub", "alice/photos") == 1
    assert hub.head("alice/photos", type="dataset") == head
    errors = capsys.readouterr().err
    assert "alice/photos holds another dataset" in errors and f"training.segment --resume {again}" in errors


def test_killed_it_continues_on_two_processes_from_the_same_commit(hub, model, tmp_path):
    for name, kind, folder in (("alice/photos", "dataset", write_data(tmp_path / "photos", 240)),
                               ("alice/net", "model", model)):  # fmt: skip
        hub.create(name, type=kind)
        files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        head = hub.commit(name, files, type=kind)
    whole, out = tmp_path / "whole", tmp_path / "out"
    cut = ("--shard-rows", "4")
    assert run("--data", tmp_path / "photos", "--model", model, "--out", whole, *cut) == 1

    words = [
        "-m",
        "training.segment",
        "--data",
        "alice/photos",
        "--model",
        "alice/net",
        "--out",
        str(out),
        "--cpu",
    ]
    with start_with_hub(hub, ["python", *words, *cut]) as killed:
        while len(shards(out)) < 3 and killed.poll() is None:
            time.sleep(0.002)
        killed.kill()
    done = {name: (out / "data" / name).stat().st_mtime_ns for name in shards(out)}
    assert 3 <= len(done) < 60
    contents = json.loads((out / "settings.json").read_text())["contents"]
    assert contents["commit"] == head and len(contents["revision"]) == 40

    hub.commit("alice/photos", {"README.md": b"---\nlicense: mit\n---\n"}, type="dataset")  # main moves on
    launch = ["python", "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "-m"]
    ended = run_with_hub(hub, [*launch, "training.segment", "--resume", str(out), "--cpu"])
    assert ended.returncode == 1 and "error: 2 of 240 pictures have no mask" in ended.stderr, ended.stderr
    assert "local_rank: 1" in ended.stderr, "one process did it all"
    assert shards(out) == shards(whole) and len(shards(out)) == 60
    assert {name: (out / "data" / name).stat().st_mtime_ns for name in done} == done
    assert contents["revision"] in (out / "README.md").read_text()


def test_the_help_is_a_manual(capsys):
    with pytest.raises(SystemExit) as stopped:
        segment.main(["--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    assert all(word in text for word in ("accelerate launch", "exit status:", "--resume", "(default: image)"))
