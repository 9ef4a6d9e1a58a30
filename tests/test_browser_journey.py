"""Proves in a real Chromium: camera, clipboard, a Hub model; own zip, stop, continue, publish, by login."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from browser_fixture import BROWSER, Visit
from hub_fixture import client_at
from PIL import Image, ImageOps
from run_folder import write_run
from test_page import draw_photo, expected, make_models

import app
from page.data import _shapes
from page.training_run import TrainingRun

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
pytest.importorskip("itsdangerous", reason="the login needs gradio[oauth]")
pytest_plugins = ["browser_fixture", "hub_fixture"]
pytestmark = BROWSER

LOGIN = "mock-oauth-token-for-local-dev"  # what gradio gives outside of a Space
COPY_PICTURE = """async content => {
    const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
    const blob = new Blob([bytes], {type: "image/png"});
    await navigator.clipboard.write([new ClipboardItem({"image/png": blob})]);
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_models(folder, draw_photo(folder / "photo.jpg"))
    return folder


@pytest.fixture(scope="module")
def hub(hub_server, tmp_path_factory: pytest.TempPathFactory):
    """A Hub that holds one model; this machine is logged in as alice."""
    hub_server.reset(tmp_path_factory.mktemp("hub_state"))
    with client_at(hub_server, tmp_path_factory.mktemp("hf_home"), token="hf_alice"):
        net = write_run(tmp_path_factory.mktemp("net") / "run")
        hub_server.tokens[LOGIN] = hub_server.tokens["hf_alice"]
        hub_server.create("bob/leaves")
        files = {str(p.relative_to(net)): p.read_bytes() for p in net.rglob("*") if p.is_file()}
        hub_server.commit("bob/leaves", files)
        yield hub_server


@pytest.fixture(scope="module")
def site(folder: Path, hub) -> Iterator[str]:
    """A page that trains and has a login, as on a Space (gradio plays the login elsewhere)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "uploads"))
        patch.setenv("OAUTH_CLIENT_ID", "a-space")
        with pytest.warns(UserWarning, match="outside of a Space"):
            demo = app.build_demo(folder, folder / "runs", training=True)
            _, url, _ = demo.launch(**app.LAUNCH, prevent_thread_lock=True, quiet=True)
        yield url
        demo.close()
        for run in TrainingRun.all(folder / "runs"):
            run.stop()


Open = Callable[..., Visit]


@pytest.fixture
def open_tab(browser: playwright.Browser, site: str) -> Open:
    return lambda tab="Segment", **more: Visit(browser, site, tab, **more)


def test_a_photo_of_the_camera(open_tab: Open) -> None:
    visit = open_tab(permissions=("camera",))
    visit.page.get_by_label("Capture from camera").first.click()
    visit.page.get_by_text("Click to Access Webcam").click()
    showing = "() => [...document.querySelectorAll('video')].some(v => v.readyState >= 2 && v.videoWidth)"
    visit.page.wait_for_function(showing)
    visit.page.get_by_label("capture photo").first.click()
    height, width = visit.pixels().shape[:2]
    assert min(height, width) >= 200  # of Chromium's own test picture
    visit.leave("segment-camera")


def test_a_picture_of_the_clipboard(open_tab: Open, folder: Path) -> None:
    visit = open_tab(permissions=("clipboard-read", "clipboard-write"))
    stream = io.BytesIO()
    ImageOps.exif_transpose(Image.open(folder / "photo.jpg")).save(stream, "PNG")
    visit.page.evaluate(COPY_PICTURE, base64.b64encode(stream.getvalue()).decode())
    visit.page.get_by_label("Paste from clipboard").first.click()
    assert visit.pixels().shape == (90, 120, 4)
    visit.leave("segment-clipboard")


def test_compare_shows_where_and_what_it_costs(open_tab: Open, folder: Path) -> None:
    visit = open_tab("Compare")
    visit.upload(folder / "photo.jpg", "#compared-picture")
    visit.page.locator("#comparison segmentation-view[ready]").nth(2).wait_for()
    results = [expected(folder, name) for name in ("searchnet-tiny", "unet-tiny")]
    share = (results[0].mask != results[1].mask).mean()
    told = visit.page.locator("#comparison segmentation-view").nth(2).locator("li").all_inner_texts()
    assert told[1].replace("\n", "").replace(" %", "%") == f"they differ{share:.1%}"
    rows = visit.page.locator("#comparison table tr").all_inner_texts()
    assert all(" M\t" in row and len(row.split("\t")) == 5 for row in rows[1:]), rows
    visit.leave("compare-numbers")


def test_genotype_to_copy_and_download(open_tab: Open, folder: Path) -> None:
    visit = open_tab("Architecture", permissions=("clipboard-read", "clipboard-write"))
    wanted = json.loads((folder / "searchnet-tiny" / "genotype.json").read_text())
    visit.page.get_by_role("button", name="genotype.json").click()
    with visit.page.expect_download() as download:
        visit.page.get_by_label("Download").locator("visible=true").first.click()
    assert json.loads(Path(download.value.path()).read_text()) == wanted
    visit.page.get_by_label("Copy").locator("visible=true").first.click()
    visit.page.wait_for_timeout(300)
    assert json.loads(visit.page.evaluate("navigator.clipboard.readText()")) == wanted
    visit.leave("architecture-genotype")


def test_a_model_of_the_hub_segments(open_tab: Open, folder: Path) -> None:
    visit = open_tab("Models")
    visit.page.get_by_label("Hub id").last.fill("bob/leaves")
    visit.page.get_by_role("button", name="Load").click()
    visit.page.locator("#loaded").get_by_text("is loaded").wait_for()
    visit.page.locator("#models table").get_by_text("bob/leaves").wait_for()
    visit.shoot("models-hub")
    visit.enter("Segment")
    visit.upload(folder / "photo.jpg")
    visit.view()
    visit.page.get_by_role("combobox", name="Network").first.click()
    visit.page.get_by_role("option", name="bob/leaves").click()
    visit.page.locator("#facts").get_by_text("bob/leaves at").wait_for()
    assert "commit" in visit.page.locator("#facts").inner_text()
    visit.leave("segment-hub-model")


def zip_of_shapes(path: Path, count: int = 24) -> Path:
    random = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(count):
            for folder, picture in zip(("images", "masks"), _shapes(random), strict=True):
                stream = io.BytesIO()
                picture.save(stream, "PNG")
                archive.writestr(f"{folder}/{number}.png", stream.getvalue())
    return path


def test_from_an_own_zip_to_a_published_network(open_tab: Open, folder: Path, hub, tmp_path: Path) -> None:
    visit = open_tab("Search and publish")
    page = visit.page
    page.get_by_label("Zip of my own").check()
    page.locator("input[type=file][accept*=zip]").set_input_files(zip_of_shapes(tmp_path / "mine.zip"))
    page.get_by_text("mine").first.wait_for()
    page.get_by_label("Classes, by mask value").fill("background, disc, square")
    page.get_by_label("Minutes, about").fill("1")
    page.locator("#run-name input, #run-name textarea").fill("mine")
    page.get_by_role("button", name="Search and train").click()
    page.get_by_text("mine is running").wait_for()
    page.locator("#growing svg").wait_for()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("mine is stopped").wait_for()
    page.get_by_role("button", name="Continue").click()
    page.get_by_text("mine is running").wait_for()
    page.get_by_text("mine is finished").wait_for(timeout=180_000)
    visit.shoot("workshop-finished")
    run = TrainingRun(folder / "runs", "mine").progress()
    curves = page.locator("#curves svg").all()
    assert [curve.locator("title").first.text_content().split()[0] for curve in curves] == ["Loss", "mIoU"]
    for curve in curves:  # they grew while the page was open
        assert curve.locator("circle[r='3.5']").count() == 2 * len(run.search) + len(run.retrain)
    page.get_by_role("button", name="Publish on the Hub").click()
    page.get_by_label("Hub id").first.fill("alice/mine")
    page.get_by_role("button", name="Publish", exact=True).click()
    published = page.locator("#sent").get_by_text("alice/mine")
    published.wait_for()
    assert "model.safetensors" in hub.files("alice/mine")
    visit.enter("Segment")
    visit.upload(folder / "photo.jpg")
    visit.view()
    page.get_by_role("combobox", name="Network").first.click()
    page.get_by_role("option", name="mine").last.click()
    page.locator("#facts").get_by_text("SEARCH-Net, mine").wait_for()
    visit.leave("segment-own-network")


def test_the_token_of_a_login_publishes(open_tab: Open, folder: Path, hub, monkeypatch) -> None:
    """As on a Space, where the machine has no token of its own."""
    assert (folder / "runs" / "mine").is_dir(), "the run of the test before is published once more"
    monkeypatch.delenv("HF_TOKEN")
    visit = open_tab("Search and publish")
    page = visit.page
    page.get_by_role("button", name="Publish on the Hub").click()
    with contextlib.suppress(playwright.Error):  # the page is left for the login and comes back
        page.get_by_role("button", name="Sign in with Hugging Face").click()
    page.get_by_text("Drop Image Here").first.wait_for()
    visit.enter("Search and publish")
    page.get_by_role("button", name="Publish on the Hub").click()
    page.get_by_label("Hub id").first.fill("alice/by-login")
    page.get_by_role("button", name="Publish", exact=True).click()
    page.locator("#sent").get_by_text("alice/by-login").wait_for()
    assert "model.safetensors" in hub.files("alice/by-login")
    visit.leave("workshop-login")
