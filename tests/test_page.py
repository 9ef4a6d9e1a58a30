"""Proves that the page's API gives what the Segmenter gives and refuses the rest in a plain sentence."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import datasets
import gradio as gr
import httpx
import numpy as np
import pytest
import torch
from gradio.blocks import BlocksConfig
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from hub_fixture import run_with_hub
from huggingface_hub import constants
from PIL import Image, ImageDraw
from torch import nn

import app
from page import examples, segment, uploads
from page.shelf import Shelf
from page.uploads import NO_FILE
from page.views import view
from searchseg import (
    Edge,
    Genotype,
    ImageError,
    ModelConfig,
    SearchNet,
    Segmentation,
    Segmenter,
    UNet,
    UShapeConfig,
    read_image,
    save_pretrained,
    task,
)
from searchseg.cost import macs
from searchseg.genotype import CELL_NAMES

pytest_plugins = ["hub_fixture"]

CLASSES, COLORS = ("background", "cat & <dog> ${7*7} {{7*7}}"), ("#303030", "#e69f00")
EDGES = (Edge(0, 2, "sepconv_3x3"), Edge(1, 2, "skip"), Edge(0, 3, "mbconv_3x3"), Edge(2, 3, "dilconv_3x3"))
GENOTYPE = Genotype(2, dict.fromkeys(CELL_NAMES, EDGES))
U = {"widths": [4, 8, 16, 32], "nodes": 2, "stem_stride": 2, "num_classes": 2}
UPLOAD = {"meta": {"_type": "gradio.FileData"}}


def draw_photo(path: Path) -> Path:
    """A picture of 120 x 90 pixels, stored lying on its side as phones do."""
    photo = Image.new("RGB", (120, 90), "#7fb2e5")
    ImageDraw.Draw(photo).rectangle((0, 60, 120, 90), "#4f8f4f")
    ImageDraw.Draw(photo).ellipse((35, 20, 85, 75), "#b5651d")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=95)
    return path


def save_model(folder: Path, network: nn.Module, arguments: dict, photo: Path, miou: float) -> None:
    """A network with random weights, its head shifted so that half of the photo falls to either class."""
    config = ModelConfig(network.architecture, arguments, CLASSES, COLORS, (32, 32))
    with torch.no_grad():
        scores = network.eval()(config.tensor(read_image(photo))[None])[0]
        network.head.bias[1] -= (scores[1] - scores[0]).median()
    save_pretrained(network, folder, config)
    (folder / "metrics.json").write_text(json.dumps({"miou": miou}))


def make_models(folder: Path, photo: Path) -> None:
    """A SEARCH-Net, a UNet with a better score, one whose weights are damaged and one that says nothing."""
    torch.manual_seed(0)
    save_model(folder / "searchnet-tiny", SearchNet(UShapeConfig(**U), GENOTYPE), U, photo, 0.5)
    widths = {"widths": [4, 8], "num_classes": 2}
    save_model(folder / "unet-tiny", UNet(**widths), widths, photo, 0.75)
    save_model(folder / "unet-damaged", UNet(**widths), widths, photo, 0.25)
    (folder / "unet-damaged" / "model.safetensors").write_bytes(b"no tensors")
    (folder / "nonsense").mkdir()
    (folder / "nonsense" / "config.json").write_text("{}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_models(folder, draw_photo(folder / "photo.jpg"))
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Iterator[str]:
    """Address of a running page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "uploads"))
        demo = app.build_demo(folder, folder / "runs")
        _, url, _ = demo.launch(**app.LAUNCH, prevent_thread_lock=True, quiet=True)
        yield url
        demo.close()


@pytest.fixture(scope="module")
def client(page: str, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(page, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


def expected(folder: Path, name: str) -> Segmentation:
    return Segmenter.from_pretrained(folder / name)(folder / "photo.jpg")


def pixels(path: str) -> np.ndarray:
    return np.array(Image.open(path))


@pytest.mark.parametrize("name", ["searchnet-tiny", "unet-tiny"])
def test_results_are_the_segmenters(client: Client, folder: Path, name: str) -> None:
    overlay, cutout, mask, report = client.predict(
        handle_file(folder / "photo.jpg"), name, api_name="/segment"
    )
    result = expected(folder, name)
    assert set(np.unique(result.mask)) == {0, 1}, "a mask of one class proves nothing"
    assert Image.open(mask).mode == "L" and Path(mask).name == "photo-class-ids.png"
    assert pixels(mask).shape == (90, 120)  # upright, although the file lies on its side
    assert np.array_equal(pixels(mask), result.mask)
    assert np.array_equal(pixels(overlay), np.array(result.overlay(0.5)))
    assert np.array_equal(pixels(cutout), np.array(result.cutout()))
    assert {**report, "seconds": 0} == {**json.loads(result.to_json()), "seconds": 0}
    assert report["seconds"] > 0


def test_opacity_and_size_of_the_overlay(
    client: Client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment, "DISPLAYED_SIDE", 60)
    overlay, *_ = client.predict(handle_file(folder / "photo.jpg"), "unet-tiny", 0, api_name="/segment")
    small = expected(folder, "unet-tiny").image
    small.thumbnail((60, 60))
    assert np.array_equal(pixels(overlay), np.array(small))


@pytest.mark.parametrize(
    "content", [b"no picture", b"\x89PNG\r\n\x1a\n", b"<svg xmlns='http://www.w3.org'/>"]
)
def test_bad_upload_gives_our_sentence(client: Client, tmp_path: Path, content: bytes) -> None:
    for name in ("bad.jpg", "bad.svg"):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ImageError) as ours:
            read_image(path)
        with pytest.raises(AppError) as shown:
            client.predict(handle_file(path), "unet-tiny", api_name="/segment")
        assert shown.value.message == str(ours.value)


def test_nothing_is_no_picture(client: Client) -> None:
    with pytest.raises(AppError, match="Choose a picture first"):
        client.predict(None, "unet-tiny", api_name="/segment")


@pytest.mark.parametrize("name", ["other", "../unet-tiny", "nonsense", None, ["unet-tiny"]])
def test_unknown_model_is_refused(client: Client, folder: Path, name: object) -> None:
    for refused in (name, str(folder / "unet-tiny")):
        with pytest.raises(AppError, match=r"no such model"):
            client.predict(handle_file(folder / "photo.jpg"), refused, api_name="/segment")


def test_damaged_model_says_so_without_a_path(client: Client, folder: Path) -> None:
    with pytest.raises(AppError) as shown:
        client.predict(handle_file(folder / "photo.jpg"), "unet-damaged", api_name="/segment")
    assert "model.safetensors is not a safetensors file" in shown.value.message
    assert str(folder) not in shown.value.message


@pytest.mark.parametrize("meta", [UPLOAD, {}])
@pytest.mark.parametrize("source", ["path", "web address", "data"])
def test_only_uploads_are_read(page: str, folder: Path, source: str, meta: dict) -> None:
    payload = {
        "path": {"path": str(folder / "photo.jpg")},
        "web address": {"path": "http://127.0.0.1:9/photo.jpg"},
        "data": {"path": None, "url": "data:image/png;base64,iVBORw0KGgo="},
    }[source]
    call = f"{page}gradio_api/call/segment"
    event = httpx.post(call, json={"data": [{**payload, **meta}, "unet-tiny", 0.5]}).json()["event_id"]
    answer = httpx.get(f"{call}/{event}", timeout=60).text
    assert answer.startswith("event: error")
    assert str(folder) not in answer
    if (source, bool(meta)) != ("path", True):  # there gradio refuses first, without a word
        assert NO_FILE in answer


def test_server_keeps_its_files_and_its_bounds(page: str, folder: Path) -> None:
    config = folder / "unet-tiny" / "config.json"
    assert httpx.get(f"{page}gradio_api/file={config}").status_code == 403
    assert httpx.get(f"{page}monitoring").status_code == 403
    large = {"files": ("large.png", bytes(20 * 2**20 + 1))}
    assert httpx.post(f"{page}gradio_api/upload", files=large, timeout=60).status_code == 413


def test_api_page_lists_three_endpoints(client: Client) -> None:
    api = client.view_api(return_format="dict", print_info=False)
    assert sorted(api["named_endpoints"]) == ["/architecture", "/compare", "/segment"]
    assert not api["unnamed_endpoints"]
    endpoint = api["named_endpoints"]["/segment"]
    assert endpoint["description"].startswith("Find the class of every pixel")
    assert [p["parameter_name"] for p in endpoint["parameters"]] == ["picture", "model", "opacity"]
    assert endpoint["parameters"][1]["parameter_default"] == "searchnet-tiny"
    example = endpoint["parameters"][0]["example_input"]
    assert example["url"] == "picture.jpg"  # which the page shows as handle_file('picture.jpg')
    for endpoint in api["named_endpoints"].values():
        told = [part["python_type"]["description"] for part in endpoint["parameters"] + endpoint["returns"]]
        assert all(len(words) > 20 and "publicly available" not in words for words in told), told
    assert api["named_endpoints"]["/compare"]["parameters"][1]["python_type"]["type"] == "list[str]"


def test_models_are_listed_best_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = Shelf(folder).models
    assert [model.name for model in models] == ["unet-tiny", "searchnet-tiny", "unet-damaged"]
    assert "nonsense is left out: config.json" in capsys.readouterr().out
    assert models[0].label == "UNet, tiny – 0.0 M parameters, mIoU 0.75"
    (folder / "unet-damaged" / "metrics.json").write_text("[]")
    assert Shelf(folder).models[-1].label == "UNet, damaged – 0.0 M parameters"


def test_views_escape_names(folder: Path) -> None:
    shown = view(expected(folder, "unet-tiny"))
    assert "<dog>" not in shown and "cat &amp; &lt;dog&gt;" in shown
    about = segment.SegmentTab(Shelf(folder)).describe("searchnet-tiny")
    assert "cat &amp; &lt;dog&gt;" in about and "mIoU 0.500" in about


def test_compare_names_what_differs(client: Client, folder: Path) -> None:
    names = ["searchnet-tiny", "unet-tiny"]
    path, report = client.predict(handle_file(folder / "photo.jpg"), names, api_name="/compare")
    one, two = (expected(folder, name).mask for name in names)
    assert (one != two).any(), "two equal masks prove nothing"
    assert np.array_equal(pixels(path), np.where(one != two, 255, 0))
    assert report["differing"] == pytest.approx((one != two).mean())
    assert report["agreement"] == {"searchnet-tiny / unet-tiny": pytest.approx((one == two).mean())}
    assert [row["model"] for row in report["models"]] == names
    assert [row["published_miou"] for row in report["models"]] == [0.5, 0.75]
    for name, network in zip(names, (SearchNet(UShapeConfig(**U), GENOTYPE), UNet([4, 8], 2)), strict=True):
        row = next(row for row in report["models"] if row["model"] == name)
        assert row["parameters"] == sum(p.numel() for p in network.parameters())
        assert row["macs"] == macs(network, (1, 3, 32, 32))


@pytest.mark.parametrize("names", [[], ["unet-tiny"], ["unet-tiny", "unet-tiny"], None])
def test_compare_wants_two_networks(client: Client, folder: Path, names: list[str] | None) -> None:
    with pytest.raises(AppError, match="two to 6 networks"):
        client.predict(handle_file(folder / "photo.jpg"), names, api_name="/compare")


def test_architecture_adds_up(client: Client) -> None:
    drawing, found = client.predict("searchnet-tiny", api_name="/architecture")
    assert drawing.startswith("<svg") and GENOTYPE.id in drawing
    assert found["genotype"]["cells"]["C1"][0] == {"source": 0, "target": 2, "operation": "sepconv_3x3"}
    network = SearchNet(UShapeConfig(**U), GENOTYPE)
    cells = {name: sum(p.numel() for p in cell.parameters()) for name, cell in network.cells().items()}
    assert {name: part["parameters"] for name, part in found["parts"].items() if name in cells} == cells
    assert found["parts"]["C4"]["shape"] == [32, 2, 2]  # 32 px, halved by the stem and three times more
    assert sum(part["macs"] for part in found["parts"].values()) < found["macs"]  # links count besides
    assert found["parameters"] == sum(p.numel() for p in network.parameters())
    _, found = client.predict("unet-tiny", api_name="/architecture")
    assert found["genotype"] is None and len(found["parts"]) > 2


def test_empty_folders_of_old_results_go(tmp_path: Path) -> None:
    for name in ("old", "new", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "mask.png").write_bytes(b"x")
    for name in ("old", "full"):
        os.utime(tmp_path / name, (0, 0))
    uploads.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "new"]


def test_the_oldest_results_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for age, name in enumerate(("newest", "newer", "older", "oldest")):
        (tmp_path / f"{name}.png").write_bytes(bytes(100))
        os.utime(tmp_path / f"{name}.png", (1e9 - age, 1e9 - age))
    monkeypatch.setattr(uploads, "MOST_BYTES", 250)
    uploads.sweep(tmp_path)
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["newer", "newest"]


def test_photos_of_the_dataset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "empty"))
    gallery, told = examples.rows_of_dataset()  # offline
    assert gallery.visible is False and "cannot be reached" in told
    rows = [{"image": Image.new("RGB", (2000, 10 + n)), "label": n} for n in range(20)]
    stream = datasets.Dataset.from_list(rows).to_iterable_dataset()
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: asked.append(args) or stream)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    for _ in range(2):  # a second page, or the next start of this one, has them already
        gallery, told = examples.rows_of_dataset()
        assert "CC BY-SA 4.0" in told and len(gallery.value) == examples.PHOTOS
        examples._photos.cache_clear()
    assert len(asked) == 1
    (kept,) = tmp_path.rglob("CREDIT.txt")
    assert "CC BY-SA 4.0" in kept.read_text() and len(list(kept.parent.glob("*.jpg"))) == examples.PHOTOS


def test_photos_come_from_a_hub(hub, tmp_path: Path) -> None:
    rows = [{"image": Image.new("RGB", (60 + n, 40), "orange"), "label": n} for n in range(12)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "test.parquet")
    hub.create(task.pet().dataset, type="dataset")
    files = {"data/test-00000-of-00001.parquet": (tmp_path / "test.parquet").read_bytes()}
    commit = hub.commit(task.pet().dataset, files, type="dataset")
    script = (
        f"from page import examples; from searchseg import task; task.PET_REVISION = {commit!r}; "
        "gallery, told = examples.rows_of_dataset(); print(len(gallery.value or ()), told, examples.photo(3))"
    )
    done = run_with_hub(hub, ["python", "-c", script], GRADIO_TEMP_DIR=str(tmp_path / "uploads"))
    assert done.stdout.startswith(f"{examples.PHOTOS} ") and "CC BY-SA 4.0" in done.stdout, done.stderr
    assert Image.open(done.stdout.split()[-1]).size == (63, 40)


def test_equal_requests_have_files_of_their_own(page: str, folder: Path) -> None:
    """gradio would copy equal results to one place, where one request overwrites what another one reads."""
    clients = [Client(page, verbose=False, download_files=False) for _ in range(4)]
    jobs = [
        c.submit(handle_file(folder / "photo.jpg"), "unet-tiny", 0.5, api_name="/segment")
        for c in clients * 3
    ]
    masks = [job.result()[2] for job in jobs]
    paths = {mask["path"] if isinstance(mask, dict) else mask for mask in masks}
    assert len(paths) == len(jobs)
    wanted = expected(folder, "unet-tiny").mask
    for path in paths:
        found = httpx.get(f"{page}gradio_api/file={path}")
        assert np.array_equal(np.array(Image.open(io.BytesIO(found.content))), wanted)


def test_old_files_are_looked_for_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    swept, now = [], [1000.0]
    monkeypatch.setattr(uploads, "sweep", swept.append)
    monkeypatch.setattr(uploads, "_swept", 0.0)
    monkeypatch.setattr(uploads.time, "monotonic", lambda: now[0])
    for seconds in (0, 1, uploads.SWEEP_SECONDS + 1, 1):
        now[0] += seconds
        uploads.new_folder()
    assert len(swept) == 2


@pytest.mark.parametrize("number", [-1, examples.PHOTOS, "0", None, [0], True, "/etc/passwd"])
def test_a_click_names_a_photo_by_number_alone(number: object) -> None:
    event = gr.SelectData(None, {"index": number, "value": {"image": {"path": "/etc/passwd"}}})
    with pytest.raises(gr.Error, match="no such photo"):
        segment._chosen(event)


def test_messages_keep_the_places_of_the_server() -> None:
    cache, home = constants.HF_HUB_CACHE, str(Path.home())
    told = uploads.without_paths(f"delete {cache}/models--a--b, see {home}/notes")
    assert cache not in told and home not in told and "the Hub cache/models--a--b" in told


@pytest.mark.parametrize("names", [5, [["unet-tiny", "x"]], {"a": 1}, "unet-tiny"])
def test_compare_refuses_what_is_no_list_of_names(client: Client, folder: Path, names: object) -> None:
    with pytest.raises(AppError, match="two to 6 networks"):
        client.predict(handle_file(folder / "photo.jpg"), names, api_name="/compare")


def test_a_picture_that_was_deleted_says_so(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(gr.Error, match="no longer on the server"):
        segment.SegmentTab(Shelf(folder)).run(str(tmp_path / "gone.jpg"), "unet-tiny")


def test_a_call_describes_no_component_that_it_does_not_touch(page: str, folder: Path, monkeypatch) -> None:
    """gradio would describe all of them for every call, 12 ms of the loop that serves everybody."""
    described = []
    describe = BlocksConfig.config_for_block
    monkeypatch.setattr(
        BlocksConfig,
        "config_for_block",
        staticmethod(lambda *args: described.append(args[0]) or describe(*args)),
    )
    client = Client(page, verbose=False, download_files=False)
    client.predict(handle_file(folder / "photo.jpg"), "unet-tiny", 0.5, api_name="/segment")
    assert len(described) <= 7, "three inputs and four outputs"


def test_page_without_models_says_so(tmp_path: Path) -> None:
    components = app.build_demo(tmp_path, tmp_path / "runs").get_config_file()["components"]
    assert any("There is no model to run yet" in str(c["props"].get("value")) for c in components)
