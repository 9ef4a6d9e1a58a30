"""Proves in a real Chromium that the page works on desktop and phone, and asks nobody else for anything."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from test_page import CLASSES, expected, folder, page  # noqa: F401

CHROMIUM = shutil.which("chromium")
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine"),
]

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SCREENSHOTS = Path(__file__).resolve().parent.parent / "screenshots"
MAKE_TRANSFER = """content => {
    const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], "photo.jpg", {type: "image/jpeg"}));
    return transfer;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Visit:
    """One open page, what it asked for and what went wrong on it."""

    def __init__(
        self, browser: playwright.Browser, url: str, scheme: str = "light", width: int = 1280
    ) -> None:
        self.tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.tab.set_default_timeout(120_000)
        self.hosts: set[str | None] = set()
        self.errors: list[str] = []
        self.tab.on("request", lambda request: self.hosts.add(urlsplit(request.url).hostname))
        self.tab.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.goto(url)
        self.tab.get_by_text("Drop Image Here").wait_for()

    def upload(self, path: Path) -> None:
        self.tab.locator("#picture input[type=file]").set_input_files(path)

    def drop(self, path: Path) -> None:
        content = base64.b64encode(path.read_bytes()).decode()
        transfer = {"dataTransfer": self.tab.evaluate_handle(MAKE_TRANSFER, content)}
        for event in ("dragenter", "dragover", "drop"):
            self.tab.get_by_text("Drop Image Here").dispatch_event(event, transfer)

    def overlay_size(self) -> list[int]:
        """Natural size of the overlay, once it is there with its legend."""
        self.tab.locator(".legend").wait_for()
        return self.tab.locator("#overlay img").evaluate(
            "image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])"
        )

    def leave(self, screenshot: str) -> None:
        """Take the picture and check what no visit may do."""
        SCREENSHOTS.mkdir(exist_ok=True)
        self.tab.screenshot(path=SCREENSHOTS / f"{screenshot}.png", full_page=True)
        assert self.hosts - {"127.0.0.1", None} == set()  # None: data and blob addresses
        assert self.errors == []
        width = self.tab.evaluate("document.documentElement.scrollWidth")
        assert width <= self.tab.viewport_size["width"], "the page scrolls sideways"
        self.tab.close()


def test_upload_shows_everything(browser, page: str, folder: Path, tmp_path: Path) -> None:  # noqa: F811
    visit = Visit(browser, page)
    visit.upload(folder / "photo.jpg")
    assert visit.overlay_size() == [120, 90]
    result = expected(folder, "searchnet-tiny")
    shares = [f"{name}{result.shares[name]:.1%}" for name in CLASSES]
    assert [text.replace("\n", "") for text in visit.tab.locator(".legend li").all_inner_texts()] == shares
    with visit.tab.expect_download() as download:
        visit.tab.get_by_text("Download mask").click()
    assert download.value.suggested_filename == "photo-class-ids.png"
    download.value.save_as(tmp_path / "mask.png")
    assert np.array_equal(np.array(Image.open(tmp_path / "mask.png")), result.mask)
    visit.leave("desktop-light")


def test_drop_and_other_network(browser, page: str, folder: Path) -> None:  # noqa: F811
    visit = Visit(browser, page, "dark")
    visit.drop(folder / "photo.jpg")
    assert visit.overlay_size() == [120, 90]
    visit.tab.get_by_role("radio", name="C3").check()
    visit.tab.locator("#drawing svg[aria-label='Cell C3']").wait_for()
    before = visit.tab.locator("#overlay img").get_attribute("src")
    visit.tab.get_by_role("combobox", name="Network").click()
    visit.tab.get_by_role("option", name="UNet, tiny").click()
    visit.tab.locator("#drawing svg[aria-label^=UNet]").wait_for()
    assert visit.tab.get_by_role("radio", name="C3").count() == 0  # a UNet has no cells to choose from
    visit.tab.wait_for_function(
        "before => document.querySelector('#overlay img')?.getAttribute('src') !== before", arg=before
    )
    assert visit.overlay_size() == [120, 90]
    visit.leave("desktop-dark")


def test_slider_bad_file_and_clearing_on_a_phone(browser, page: str, folder: Path, tmp_path: Path) -> None:  # noqa: F811
    visit = Visit(browser, page, width=390)
    visit.upload(folder / "photo.jpg")
    assert visit.overlay_size() == [120, 90]
    before = visit.tab.locator("#overlay img").get_attribute("src")
    visit.tab.locator("input[type=range]").press("ArrowRight")
    visit.tab.wait_for_function(
        "before => document.querySelector('#overlay img').getAttribute('src') !== before", arg=before
    )
    visit.tab.screenshot(path=SCREENSHOTS / "phone.png", full_page=True)
    visit.tab.get_by_role("button", name="Remove Image").click()
    visit.tab.locator(".legend").wait_for(state="detached")
    (tmp_path / "bad.jpg").write_text("no picture")
    visit.upload(tmp_path / "bad.jpg")
    visit.tab.get_by_text("This file is not a readable JPEG").wait_for()
    visit.leave("phone-error")
