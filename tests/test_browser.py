"""Proves in a real Chromium that the page works on desktop and phone, and asks nobody else for anything."""

from __future__ import annotations

import http.server
import io
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from browser_fixture import BROWSER, Visit
from PIL import Image
from test_page import CLASSES, GENOTYPE, draw_photo, expected, make_models

import app
from page.training_run import TrainingRun
from searchseg.genotype import CELL_NAMES, OPERATION_NAMES

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
pytest_plugins = ["browser_fixture"]
pytestmark = BROWSER


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, one of them with the record of a search of two epochs, and a photo."""
    folder = tmp_path_factory.mktemp("models")
    make_models(folder, draw_photo(folder / "photo.jpg"))
    search = folder / "searchnet-tiny" / "search"
    search.mkdir()
    rows = [{"epoch": epoch, **json.loads(GENOTYPE.to_json())} for epoch in (1, 2)]
    (search / "genotype.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    edges = {f"{s}-{t}": [0.1] * len(OPERATION_NAMES) for t in (2, 3) for s in range(t)}
    rows = [{"epoch": epoch, "alpha": dict.fromkeys(CELL_NAMES, edges)} for epoch in (1, 2)]
    (search / "alpha.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[str]:
    """Address of a running page that also trains."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "uploads"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        demo = app.build_demo(folder, folder / "runs", training=True)
        _, url, _ = demo.launch(**app.LAUNCH, prevent_thread_lock=True, quiet=True)
        yield url
        demo.close()


Open = Callable[..., Visit]


@pytest.fixture
def open_tab(browser: playwright.Browser, site: str) -> Open:
    return lambda tab="Segment", scheme="light", width=1280: Visit(browser, site, tab, scheme, width)


def test_upload_shows_everything(open_tab: Open, folder: Path, tmp_path: Path) -> None:
    visit, result = open_tab(), expected(folder, "searchnet-tiny")
    visit.upload(folder / "photo.jpg")
    rows = visit.view().locator("li").all_inner_texts()
    shares = [f"{name}{result.shares[name]:.1%}" for name in CLASSES]
    assert [text.replace("\n", "").replace(" %", "%") for text in rows] == shares  # names stay mere text
    visit.page.get_by_role("button", name="Mask (class ids)").and_(visit.page.locator(":enabled")).wait_for()
    for button, name in (("Mask (class ids)", "photo-class-ids.png"), ("Mask (colours)", "photo-colors.png")):
        with visit.page.expect_download() as download:
            visit.page.get_by_text(button).click()
        assert download.value.suggested_filename == name
        download.value.save_as(tmp_path / name)
        # the colours are a palette over the same ids
        assert np.array_equal(np.array(Image.open(tmp_path / name)), result.mask)
    with visit.page.expect_download() as download:
        visit.page.get_by_text("JSON", exact=True).click()
    assert json.loads(Path(download.value.path()).read_text())["model"] == "searchnet-tiny"
    assert "120 × 90 pixels" in visit.page.locator("#facts").inner_text()
    visit.leave("segment-desktop-light")


def test_looking_closer_needs_no_new_run(open_tab: Open, folder: Path) -> None:
    visit, result = open_tab(), expected(folder, "searchnet-tiny")
    visit.upload(folder / "photo.jpg")
    before = visit.pixels()
    visit.page.get_by_role("button", name="Mask (class ids)").and_(visit.page.locator(":enabled")).wait_for()
    visit.page.wait_for_timeout(500)
    visit.calls.clear()
    view = visit.view()
    view.get_by_label("Strength of the colours").fill("1")
    assert (visit.pixels() != before).any()
    colors = np.array([[int(c[at : at + 2], 16) for at in (1, 3, 5)] for c in result.colors])
    assert np.array_equal(visit.pixels()[..., :3], colors[result.mask])
    view.locator("li input").nth(1).uncheck()
    hidden = visit.pixels()[..., :3]
    assert np.array_equal(hidden[result.mask == 0], colors[result.mask][result.mask == 0])
    assert (hidden[result.mask == 1] != colors[1]).any()
    view.get_by_text("Cut-out").click()
    assert np.array_equal(visit.pixels()[..., 3] > 0, result.mask == 1)
    with visit.page.expect_download() as download:
        view.get_by_role("button", name="Save view").click()
    assert download.value.suggested_filename == "segmented-cutout.png"
    assert np.array_equal(np.array(Image.open(download.value.path())), visit.pixels())
    view.get_by_text("Before / after").click()
    view.get_by_label("Place of the dividing line").fill("1")
    whole = visit.pixels()[:, :100, :3].astype(int) - np.array(result.image, int)[:, :100]
    assert abs(whole).max() < 60  # the picture alone, as JPEG
    y, x = np.argwhere(result.mask == 1)[0]
    box = view.locator("canvas").bounding_box()
    scale = min(box["width"] / 120, box["height"] / 90)
    left = box["x"] + (box["width"] - 120 * scale) / 2
    visit.page.mouse.move(left + (x + 0.5) * scale, box["y"] + (y + 0.5) * scale)
    assert view.locator(".tip").inner_text() == CLASSES[1]
    assert [call for call in visit.calls if "/queue/" in call] == []
    visit.leave("segment-before-after")


def test_drop_other_network_and_clear_in_the_dark(open_tab: Open, folder: Path) -> None:
    visit = open_tab(scheme="dark")
    visit.drop(folder / "photo.jpg")
    before = visit.pixels()
    visit.page.get_by_role("combobox", name="Network").first.click()
    visit.page.get_by_role("option", name="UNet, tiny").click()
    visit.page.get_by_text("by UNet, tiny").wait_for()
    assert (visit.pixels() != before).any()
    visit.shoot("segment-desktop-dark")
    visit.page.get_by_role("button", name="Remove Image").click()
    visit.page.locator("segmentation-view").wait_for(state="detached")
    visit.leave("segment-cleared")


def test_bad_file_on_a_phone(open_tab: Open, folder: Path, tmp_path: Path) -> None:
    visit = open_tab(width=390)
    visit.upload(folder / "photo.jpg")
    visit.view()
    visit.shoot("segment-phone")
    visit.page.get_by_role("button", name="Remove Image").click()
    visit.page.locator("segmentation-view").wait_for(state="detached")
    (tmp_path / "bad.jpg").write_text("no picture")
    visit.upload(tmp_path / "bad.jpg")
    visit.page.get_by_text("This file is not a readable JPEG").wait_for()
    assert visit.page.get_by_role("button", name="Mask (class ids)").is_disabled()
    visit.leave("segment-phone-error")


def test_example_at_a_click(open_tab: Open) -> None:
    visit = open_tab()
    visit.page.locator("button.gallery-item, .gallery-item, td img").first.click()
    assert visit.pixels().shape[1] > 120
    visit.leave("segment-example")


def test_several_pictures_and_one_zip(open_tab: Open, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("no picture")
    visit = open_tab()
    visit.page.get_by_text("Several pictures at once").click()
    files = [folder / "photo.jpg", tmp_path / "bad.png", folder / "photo.jpg"]
    visit.page.locator("#files input[type=file]").set_input_files(files)
    visit.page.locator("#files").get_by_text("bad").first.wait_for()
    visit.page.get_by_role("button", name="Segment them all").click()
    visit.page.get_by_text("2 of 3 pictures").wait_for()
    visit.page.get_by_text("bad.png: This file is not a readable JPEG").wait_for()
    with visit.page.expect_download() as download:
        visit.page.get_by_text("All masks and cut-outs").click()
    with zipfile.ZipFile(download.value.path()) as packed:
        assert len(packed.namelist()) == 6 and "03-photo-class-ids.png" in packed.namelist()
        mask = np.array(Image.open(io.BytesIO(packed.read("01-photo-class-ids.png"))))
    assert np.array_equal(mask, expected(folder, "searchnet-tiny").mask)
    visit.leave("segment-several")


class Shared(http.server.SimpleHTTPRequestHandler):
    """A site that lets other pages read its pictures."""

    def end_headers(self) -> None:
        self.send_header("Access-Control-Allow-Origin", "*")
        super().end_headers()

    def log_message(self, *args: object) -> None:
        """Nothing on stderr."""


def test_the_browser_fetches_an_address(open_tab: Open, folder: Path) -> None:
    site = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *args: Shared(*args, directory=str(folder))
    )
    threading.Thread(target=site.serve_forever, daemon=True).start()
    visit = open_tab()
    visit.page.get_by_text("Picture at a web address").click()
    address, fetch = visit.page.get_by_label("Address"), visit.page.get_by_role("button", name="Fetch")
    for wrong, told in (
        ("cat.jpg", "Type a whole web address"),
        ("file:///etc/hosts", "Only http and https"),
    ):
        address.fill(wrong)
        fetch.click()
        visit.page.get_by_text(told).wait_for()
    address.fill(f"http://127.0.0.1:{site.server_port}/photo.jpg")
    fetch.click()
    assert visit.pixels().shape == (90, 120, 4)
    site.shutdown()
    visit.leave("segment-address")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_compare(open_tab: Open, folder: Path, scheme: str, width: int) -> None:
    visit = open_tab("Compare", scheme, width)
    visit.upload(folder / "photo.jpg", "#compared-picture")
    visit.page.locator("#comparison segmentation-view[ready]").nth(2).wait_for()
    headings = visit.page.locator("#comparison h3").all_inner_texts()
    assert headings == ["SEARCH-Net, tiny", "UNet, tiny", "Where they differ"]
    assert visit.page.locator("#comparison table tr").count() == 3
    visit.leave(f"compare-{scheme}-{width}")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_architecture_opens_cells_and_the_search(open_tab: Open, scheme: str, width: int) -> None:
    visit = open_tab("Architecture", scheme, width)
    network = visit.page.locator("#network")
    network.locator("svg [data-cell=C3] .card").first.click(position={"x": 6, "y": 6})
    network.locator("section[data-cell=C3] svg[aria-label='Cell C3']").wait_for()
    assert "Node 2 adds" in network.locator("section[data-cell=C3]").inner_text()
    network.get_by_role("button", name="Open cell C5").press("Enter")
    network.locator("section[data-cell=C5] svg").wait_for()
    assert not network.locator("section[data-cell=C3]").is_visible()
    visit.page.get_by_text("The search that found it").click()
    visit.page.get_by_text("Epoch 2: genotype").wait_for()
    visit.page.locator("#epoch input[type=range]").press("ArrowLeft")
    visit.page.get_by_text("Epoch 1: genotype").wait_for()
    assert visit.page.locator("#film svg").count() == 1 and visit.page.locator("#alphas svg").count() == 1
    for drawing in visit.page.locator("#network svg, #film svg, #alphas svg").all():
        assert drawing.get_attribute("aria-label"), "a drawing without words"
    visit.leave(f"architecture-{scheme}-{width}")
    if width == 1280:
        visit = open_tab("Architecture")
        visit.page.locator("#drawn-model input").click()
        visit.page.get_by_role("option", name="UNet, tiny").click()
        visit.page.locator("#network svg[aria-label^=UNet]").wait_for()
        assert visit.page.locator("#network section").count() == 0
        visit.leave("architecture-unet")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_models(open_tab: Open, scheme: str, width: int) -> None:
    visit = open_tab("Models", scheme, width)
    table = visit.page.locator("#models table")
    table.wait_for()
    names = table.locator("td:first-child").all_inner_texts()
    assert [name.split()[-1] for name in names] == ["unet-tiny", "searchnet-tiny", "unet-damaged"]
    for wrong, told in (
        ("", "Type the id"),
        ("../x", "nor a Hub id"),
        ("a/b", "not in the cache"),
    ):
        visit.page.get_by_label("Hub id").last.fill(wrong)
        visit.page.get_by_role("button", name="Load").click()
        visit.page.locator("#loaded").get_by_text(told).wait_for()
    room = table.evaluate("table => table.parentElement.scrollWidth - table.parentElement.clientWidth")
    assert room == 0, "a part of the table is out of sight"
    assert visit.contrast("#models .quiet") >= 4.5  # WCAG 2, level AA
    visit.leave(f"models-{scheme}-{width}")


def test_search_survives_a_reload_and_stops(open_tab: Open, folder: Path) -> None:
    visit = open_tab("Search and publish")
    visit.page.locator("#run-name input, #run-name textarea").fill("shapes")
    visit.page.get_by_role("button", name="Search and train").click()
    visit.page.get_by_text("shapes is running").wait_for()
    visit.page.close()
    visit = open_tab("Search and publish")
    visit.page.get_by_text("shapes is running").wait_for()
    visit.page.locator("#growing svg").wait_for()
    visit.shoot("workshop-light-1280-running")
    visit.page.get_by_role("button", name="Stop").click()
    visit.page.get_by_text("shapes is stopped").wait_for()
    assert TrainingRun(folder / "runs", "shapes").state == "stopped"
    visit.leave("workshop-light-1280")
    phone = open_tab("Search and publish", "dark", 390)
    phone.page.get_by_text("shapes is stopped").wait_for()
    assert phone.page.get_by_role("button", name="Continue").is_enabled()
    assert phone.page.get_by_role("button", name="Stop").is_disabled()
    phone.leave("workshop-dark-390")
