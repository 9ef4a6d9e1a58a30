"""Proves that training.prepare keeps every byte and class id of a classic folder, and refuses bad ones."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard
from PIL import Image

from searchseg import task
from training import dataset_folder, prepare
from training.classic_folders import LAYOUTS

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
NUMBERS = np.random.default_rng(0)
CAMVID_SPLITS = {"train": ("train", 3), "validation": ("val", 2), "test": ("test", 1)}
PET_LISTS = {
    "trainval": "# name class species breed\nAbyssinian_1 1 1 1\npug_12 26 2 18\n\nAbyssinian_34 1 1 1\n",
    "test": "Egyptian_Mau_14 12 1 5\nyorkshire_terrier_9 37 2 25\n",
}


def noise(width: int = 12, height: int = 8, channels: int = 3) -> Image.Image:
    return Image.fromarray(NUMBERS.integers(0, 256, (height, width, channels), dtype=np.uint8))


def class_ids(low: int, high: int, width: int = 12, height: int = 8) -> np.ndarray:
    return NUMBERS.integers(low, high + 1, (height, width), dtype=np.uint8)


def save(path: Path, picture: Image.Image | np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    picture.save(path, **options)


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    """A SegNet folder without lists; the first training label has all twelve ids."""
    folder = tmp_path / "CamVid"
    for name, count in CAMVID_SPLITS.values():
        for number in range(count):
            save(folder / name / f"{name}_{number}.png", noise())
            save(folder / f"{name}annot" / f"{name}_{number}.png", class_ids(0, 11))
    save(folder / "trainannot" / "train_0.png", np.arange(96, dtype=np.uint8).reshape(8, 12) % 12)
    (folder / "train" / "._train_0.png").write_bytes(b"macOS")
    return folder


@pytest.fixture
def pet(tmp_path: Path) -> Path:
    """The official oddities: comments, a PNG with alpha and a GIF named .jpg, a palette trimap."""
    folder = tmp_path / "oxford-iiit-pet"
    for name in ("Abyssinian_1", "pug_12", "yorkshire_terrier_9"):
        save(folder / "images" / f"{name}.jpg", noise(), format="JPEG")
    save(folder / "images" / "Egyptian_Mau_14.jpg", noise(channels=4), format="PNG")
    save(folder / "images" / "Abyssinian_34.jpg", noise().quantize(), format="GIF")
    for name in ("Abyssinian_1", "pug_12", "yorkshire_terrier_9", "Egyptian_Mau_14", "Abyssinian_34"):
        trimap = Image.fromarray(class_ids(1, 3))
        if name == "pug_12":
            trimap.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
        save(folder / "annotations" / "trimaps" / f"{name}.png", trimap)
    for name, text in PET_LISTS.items():
        (folder / "annotations" / f"{name}.txt").write_text(text)
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "results" / "out"


def loaded(out: Path, tmp_path: Path) -> datasets.DatasetDict:
    return datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))


def stored(out: Path, split: str) -> list[dict]:
    return pq.read_table(out / "data" / f"{split}-00000-of-00001.parquet").to_pylist()


def refused(arguments: list, out: Path, capsys) -> str:
    """The message of a run that must fail with status 1 and leave nothing behind."""
    assert prepare.main([str(argument) for argument in arguments]) == 1
    assert not out.exists() and not (out.parent.exists() and any(out.parent.iterdir()))
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    return message


def test_camvid_comes_back_as_it_was(camvid, out, tmp_path, capsys):
    assert prepare.main(["camvid", str(camvid), str(out)]) == 0
    dataset = loaded(out, tmp_path)
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 3, "validation": 2, "test": 1}
    for split, (name, count) in CAMVID_SPLITS.items():
        assert dataset[split].features == LAYOUTS["camvid"].features
        assert dataset[split]["file_name"][:] == [f"{name}_{number}.png" for number in range(count)]
        for row, raw in zip(dataset[split], stored(out, split), strict=True):
            assert raw["image"]["bytes"] == (camvid / name / row["file_name"]).read_bytes()
            assert row["label"].mode == "L" and row["label"].format == "PNG"
            label = np.array(Image.open(camvid / f"{name}annot" / row["file_name"]))
            np.testing.assert_array_equal(np.array(row["label"]), label)
    assert "train 3 (the official split has 367)" in capsys.readouterr().out


def test_camvid_lists_choose_and_order(camvid, out):
    lines = [f"/SegNet/CamVid/train/train_{n}.png /SegNet/CamVid/trainannot/train_{n}.png" for n in (2, 0)]
    (camvid / "train.txt").write_text("\r\n".join(lines) + "\r\n")
    assert prepare.main(["camvid", str(camvid), str(out)]) == 0
    assert [row["file_name"] for row in stored(out, "train")] == ["train_2.png", "train_0.png"]
    assert len(stored(out, "validation")) == 2


def test_pet_comes_back_as_it_was(pet, out, tmp_path, monkeypatch):
    monkeypatch.chdir(pet / "images")  # where `datasets` would keep a path instead of the bytes
    assert prepare.main(["pet", str(pet), str(out)]) == 0
    dataset = loaded(out, tmp_path)
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 3, "test": 2}
    train, test = dataset["train"], dataset["test"]
    assert train.features == test.features == LAYOUTS["pet"].features
    assert train["file_name"][:] == ["Abyssinian_1.jpg", "pug_12.jpg", "Abyssinian_34.jpg"]
    assert train["label"][:] == [0, 25, 0] and test["label"][:] == [11, 36]
    assert train.features["label"].int2str([0, 25]) == ["Abyssinian", "pug"]
    assert train["species"][:] == [0, 1, 0] and test["species"][:] == [0, 1]
    for split in dataset:
        for row, raw in zip(dataset[split], stored(out, split), strict=True):
            source = pet / "images" / row["file_name"]
            if row["file_name"] != "Abyssinian_34.jpg":
                assert raw["image"]["bytes"] == source.read_bytes()
            trimap = Image.open(pet / "annotations" / "trimaps" / f"{source.stem}.png")
            assert row["segmentation_mask"].mode == "L"
            np.testing.assert_array_equal(np.array(row["segmentation_mask"]), np.array(trimap))
    gif = train[2]["image"]
    assert (gif.format, gif.mode) == ("PNG", "RGB")
    with Image.open(pet / "images" / "Abyssinian_34.jpg") as source:
        np.testing.assert_array_equal(np.array(gif), np.array(source.convert("RGB")))


@pytest.mark.parametrize("name", ["pet", "camvid"])
def test_columns_are_those_of_the_project_data(name):
    files = sorted((SHARED / name / "data").glob("*.parquet"))
    if not files:
        pytest.skip(f"no real data in {SHARED / name}")
    for file in files:
        assert datasets.Features.from_arrow_schema(pq.read_schema(file)) == LAYOUTS[name].features
        assert pq.read_schema(file).names == list(LAYOUTS[name].features)


@pytest.mark.parametrize("name", ["pet", "camvid"])
def test_the_task_of_that_name_reads_the_same_classes(name):
    layout, known = LAYOUTS[name], getattr(task, name)()
    known.check_columns(list(layout.features))
    assert (known.mask_column, set(known.ids)) == (layout.mask_column, set(layout.classes))
    for value, class_id in known.ids.items():
        assert class_id == task.IGNORE or known.classes[class_id] == layout.classes[value]


def test_several_row_groups_lose_no_row(camvid, out, monkeypatch):
    monkeypatch.setattr(dataset_folder, "ROWS_PER_GROUP", 2)
    assert prepare.main(["camvid", str(camvid), str(out)]) == 0
    file = pq.ParquetFile(out / "data" / "train-00000-of-00001.parquet")
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [2, 1]
    assert [row["file_name"] for row in stored(out, "train")] == [f"train_{n}.png" for n in range(3)]


def test_a_flipped_bit_is_found(camvid, out):
    assert prepare.main(["camvid", str(camvid), str(out)]) == 0
    file = out / "data" / "test-00000-of-00001.parquet"
    content = bytearray(file.read_bytes())
    pq.read_table(file, page_checksum_verification=True)
    content[content.index((camvid / "test" / "test_0.png").read_bytes()) + 100] ^= 1
    file.write_bytes(content)
    with pytest.raises((OSError, pa.ArrowException), match=r"(?i)crc|checksum"):
        pq.read_table(file, page_checksum_verification=True)


def break_value(folder: Path) -> None:
    save(folder / "trainannot" / "train_1.png", np.full((8, 12), 12, np.uint8))


def break_size(folder: Path) -> None:
    save(folder / "trainannot" / "train_1.png", class_ids(0, 11, width=8, height=12))


def break_mode(folder: Path) -> None:
    save(folder / "trainannot" / "train_1.png", noise())


def break_depth(folder: Path) -> None:
    save(folder / "trainannot" / "train_1.png", np.ones((8, 12), np.uint16))


def break_label(folder: Path) -> None:
    (folder / "trainannot" / "train_1.png").unlink()


def break_image(folder: Path) -> None:
    (folder / "train" / "train_1.png").unlink()


def break_picture(folder: Path) -> None:
    path = folder / "train" / "train_1.png"
    path.write_bytes(path.read_bytes()[:150])


def break_label_format(folder: Path) -> None:
    save(folder / "trainannot" / "train_1.png", class_ids(0, 11), format="JPEG")


@pytest.mark.parametrize(
    ("damage", "file", "sentence"),
    [
        (
            break_value,
            "trainannot/train_1.png",
            "holds the values 12, wanted is one 8-bit channel of class ids 0..11",
        ),
        (break_size, "trainannot/train_1.png", "is 8x12"),
        (break_mode, "trainannot/train_1.png", "has Pillow mode RGB"),
        (break_depth, "trainannot/train_1.png", "has Pillow mode I;16"),
        (break_label, "trainannot/train_1.png", "is missing"),
        (break_image, "train/train_1.png", "is missing"),
        (break_picture, "train/train_1.png", "is no readable"),
        (break_label_format, "trainannot/train_1.png", "is no readable PNG"),
    ],
)
def test_a_bad_row_is_named_and_nothing_written(camvid, out, capsys, damage, file, sentence):
    damage(camvid)
    message = refused(["camvid", camvid, out], out, capsys)
    assert "1 problem, so nothing was written" in message
    assert f"{camvid / file} {sentence}" in message


def test_all_problems_are_counted_and_twenty_shown(camvid, out, capsys):
    for number in range(25):
        save(camvid / "val" / f"extra_{number}.png", noise())
    message = refused(["camvid", camvid, out], out, capsys)
    assert "25 problems" in message and "... and 5 more" in message
    assert message.count("is missing") == 20


def turn(picture: Image.Image, orientation: int) -> dict:
    exif = picture.getexif()
    exif[0x0112] = orientation
    return {"format": "JPEG", "exif": exif}


@pytest.mark.parametrize(
    ("orientation", "mask_size", "accepted"),
    [(1, (12, 8), True), (6, (8, 12), True), (6, (12, 8), False), (3, (12, 8), False)],
)
def test_a_turned_image_needs_a_turned_mask(pet, out, tmp_path, capsys, orientation, mask_size, accepted):
    picture = noise()
    save(pet / "images" / "pug_12.jpg", picture, **turn(picture, orientation))
    save(pet / "annotations" / "trimaps" / "pug_12.png", class_ids(1, 3, *mask_size))
    if not accepted:
        message = refused(["pet", pet, out], out, capsys)
        assert "pug_12.jpg" in message and "exiftool" in message
        return
    assert prepare.main(["pet", str(pet), str(out)]) == 0
    row = loaded(out, tmp_path)["train"][1]
    assert row["image"].size == row["segmentation_mask"].size == mask_size


def test_a_picture_in_two_splits_is_refused(pet, out, capsys):
    (pet / "annotations" / "test.txt").write_text(PET_LISTS["test"] + "pug_12 26 2 18\n")
    message = refused(["pet", pet, out], out, capsys)
    assert "pug_12.jpg is named twice, in train and test" in message


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("trainval", "# only a comment\n", "names no image"),
        ("test", None, "is missing"),
        ("test", "pug_12 25 2 18\n", "line 1: 'pug_12 25 2 18' is not 'NAME CLASS-ID"),
        ("test", "\nunicorn_1 38 2 18\n", "line 2: 'unicorn_1 38 2 18' is not"),
        ("test", "pug_12 26 3 18\n", "is not 'NAME"),
        ("test", "pug_12\n", "is not 'NAME"),
    ],
)
def test_a_bad_pet_list_is_named(pet, out, capsys, name, text, sentence):
    listed = pet / "annotations" / f"{name}.txt"
    listed.unlink() if text is None else listed.write_text(text)
    message = refused(["pet", pet, out], out, capsys)
    assert str(listed) in message and sentence in message


def test_a_bad_camvid_folder_is_named(camvid, out, capsys, tmp_path):
    (camvid / "val.txt").write_text("val/val_0.png\n")
    assert "val.txt, line 1: 'val/val_0.png' is not" in refused(["camvid", camvid, out], out, capsys)
    (camvid / "val.txt").write_text("\n")
    assert "val.txt names no image" in refused(["camvid", camvid, out], out, capsys)
    (camvid / "valannot").rename(camvid / "val_labels")
    assert f"{camvid / 'valannot'} is missing" in refused(["camvid", camvid, out], out, capsys)
    brostow = tmp_path / "brostow"
    (brostow / "LabeledApproved_full").mkdir(parents=True)
    message = refused(["camvid", brostow, out], out, capsys)
    assert "Brostow" in message and "wanted is the SegNet layout" in message


def test_a_used_out_is_left_alone(camvid, out, capsys):
    out.mkdir(parents=True)
    assert prepare.main(["camvid", str(camvid), str(out)]) == 0  # empty: welcome
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert prepare.main(["camvid", str(camvid), str(out)]) == 1
    assert "is there already: name a new or empty folder" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_ctrl_c_leaves_nothing(camvid, out, capsys, monkeypatch):
    def interrupted(row, layout):
        if row.image.name == "val_1.png":
            assert [path.name[:13] for path in out.parent.iterdir()] == [".out.partial-"]
            raise KeyboardInterrupt
        return read_row(row, layout)

    read_row = prepare.read_row
    monkeypatch.setattr(prepare, "read_row", interrupted)
    assert prepare.main(["camvid", str(camvid), str(out)]) == 130
    assert not any(out.parent.iterdir())
    assert "stopped" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "license"), [("camvid", "other"), ("pet", "cc-by-sa-4.0")])
def test_the_card_says_what_the_folder_holds(name, license, out, request):
    assert prepare.main([name, str(request.getfixturevalue(name)), str(out)]) == 0
    card = DatasetCard.load(out / "README.md")
    assert card.data.license == license and card.data.task_categories == ["image-segmentation"]
    for entry in card.data.to_dict()["configs"][0]["data_files"]:
        rows = pq.read_metadata(out / entry["path"]).num_rows
        assert f"| {entry['split']} | {rows} | {LAYOUTS[name].official_rows[entry['split']]} |" in card.text
    for value, label in LAYOUTS[name].classes.items():
        assert f"| {value} | {label} |" in card.text
    for column in LAYOUTS[name].features:
        assert f"| `{column}` |" in card.text
    assert 'load_dataset("out")' in card.text
    assert f"python -m training.search --task {name} --data out" in card.text


@pytest.mark.parametrize(
    "arguments", [["--push-to-hub", "datasets/me/pet"], ["--push-to-hub", "a--b"], ["--private"]]
)
def test_wrong_arguments_stop_before_any_work(camvid, out, capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        prepare.main(["camvid", str(camvid), str(out), *arguments])
    assert stopped.value.code == 2 and not out.parent.exists()
    assert "--push-to-hub" in capsys.readouterr().err


def test_help_draws_both_layouts(capsys):
    with pytest.raises(SystemExit) as stopped:
        prepare.main(["--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    assert "trainannot/  0001TP_006690.png" in text and "annotations/trimaps/Abyssinian_1.png" in text


class HubDouble(BaseHTTPRequestHandler):
    """The five requests of an upload, on a real socket; keeps the files of the commit."""

    def do_GET(self) -> None:
        self.answer({"id": "me/camvid", "private": self.server.private})

    def do_POST(self) -> None:
        body = self.body()
        if self.path == "/api/repos/create":
            self.server.created = json.loads(body)
            self.answer({"url": f"{self.server.address}/datasets/me/camvid"})
        elif "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        elif "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            files = (line["value"] for line in lines if line["key"] == "file")
            self.server.files |= {file["path"]: base64.b64decode(file["content"]) for file in files}
            url = f"{self.server.address}/datasets/me/camvid/commit/{'0' * 40}"
            self.answer({"commitUrl": url, "commitOid": "0" * 40})
        else:
            self.answer({})

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = BytesIO()
        while size := int(self.rfile.readline(), 16):
            body.write(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return body.getvalue()

    def answer(self, content: dict) -> None:
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), HubDouble)
    server.address, server.files, server.created, server.private = (
        f"http://127.0.0.1:{server.server_port}",
        {},
        None,
        False,
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def pushed(server, folder: Path, out: Path, *options: str) -> subprocess.CompletedProcess:
    environment = os.environ | {
        "HF_ENDPOINT": server.address,
        "HF_TOKEN": "hf_none",
        "HF_HUB_DISABLE_XET": "1",
    }
    environment |= {"HF_HOME": str(out.parent / "home"), "NO_PROXY": "127.0.0.1", "HF_HUB_OFFLINE": "0"}
    command = [
        sys.executable,
        "-m",
        "training.prepare",
        "camvid",
        folder,
        out,
        "--push-to-hub",
        "me/camvid",
        *options,
    ]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_push_uploads_the_finished_folder(camvid, out, hub):
    run = pushed(hub, camvid, out)
    assert run.returncode == 0, run.stderr
    assert f"uploaded to {hub.address}/datasets/me/camvid" in run.stdout
    assert (hub.created["type"], hub.created["organization"], hub.created["name"]) == (
        "dataset",
        "me",
        "camvid",
    )
    local = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert hub.files == local and len(local) == 4
    assert 'load_dataset("me/camvid")' in (out / "README.md").read_text()


def test_private_is_not_pushed_into_a_public_repository(camvid, out, hub):
    run = pushed(hub, camvid, out, "--private")
    assert run.returncode == 1 and hub.files == {}
    assert "private" in json.dumps(hub.created)
    assert f"{out} is complete, but was not uploaded" in run.stderr and "is public" in run.stderr
    assert (out / "README.md").exists()
