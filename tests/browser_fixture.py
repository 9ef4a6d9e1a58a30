"""An open page in a real Chromium, for every test that clicks.

In a test module: `pytest_plugins = ["browser_fixture"]`, `pytestmark = BROWSER`, Visit(browser, url, tab).
"""

from __future__ import annotations

import base64
import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

CHROMIUM = shutil.which("chromium")
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
BROWSER = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine"),
]

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
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


def luminance(color: str) -> float:
    """Relative luminance of "rgb(r, g, b)"."""
    red, green, blue = (int(part) / 255 for part in re.findall(r"\d+", color)[:3])
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


class Visit:
    """One open page, what it asked for and what went wrong on it."""

    def __init__(
        self, browser: playwright.Browser, url: str, tab: str, scheme: str = "light", width: int = 1280,
        permissions: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        look: dict[str, Any] = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
        self.page = browser.new_page(**look, permissions=list(permissions))
        self.page.set_default_timeout(60_000)
        self.hosts: set[str | None] = set()
        self.calls: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", self._note)
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)
        self.page.get_by_text("Drop Image Here").first.wait_for()
        if tab != "Segment":
            self.enter(tab)

    def enter(self, tab: str) -> None:
        """Go to another tab."""
        overflow = self.page.get_by_role("button", name="More tabs")
        if not self.page.get_by_role("tab", name=tab).is_visible() and overflow.count():
            overflow.click()  # on a phone the last tabs are behind a button
            self.page.get_by_role("button", name=tab).click()
        else:
            self.page.get_by_role("tab", name=tab).click()

    def _note(self, request: playwright.Request) -> None:
        self.hosts.add(urlsplit(request.url).hostname)
        self.calls.append(request.url)

    def upload(self, path: Path, where: str = "#picture") -> None:
        self.page.locator(f"{where} input[type=file]").set_input_files(path)

    def drop(self, path: Path) -> None:
        content = base64.b64encode(path.read_bytes()).decode()
        transfer = {"dataTransfer": self.page.evaluate_handle(MAKE_TRANSFER, content)}
        for event in ("dragenter", "dragover", "drop"):
            self.page.get_by_text("Drop Image Here").first.dispatch_event(event, transfer)

    def view(self, where: str = "#result") -> playwright.Locator:
        """The segmented picture, once it is painted."""
        found = self.page.locator(f"{where} segmentation-view[ready]").first
        found.wait_for()
        return found

    def pixels(self, where: str = "#result") -> np.ndarray:
        """What the canvas shows, (H, W, 4)."""
        address = self.view(where).evaluate("view => view.canvas.toDataURL()")
        return np.array(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGBA"))

    def contrast(self, where: str) -> float:
        """Of a text against the page behind it, as WCAG 2 defines it."""
        found = "e => [getComputedStyle(e).color, getComputedStyle(document.body).backgroundColor]"
        light = sorted(map(luminance, self.page.locator(where).first.evaluate(found)))
        return (light[1] + 0.05) / (light[0] + 0.05)

    def shoot(self, screenshot: str) -> None:
        SCREENSHOTS.mkdir(exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{screenshot}.png", full_page=True)

    def leave(self, screenshot: str) -> None:
        """Take the picture and check what no visit may do."""
        self.shoot(screenshot)
        assert self.hosts - {"127.0.0.1", None} == set()  # None: data and blob addresses
        assert self.errors == []
        width = self.page.evaluate("document.documentElement.scrollWidth")
        assert width <= self.page.viewport_size["width"], "the page scrolls sideways"
        self.page.close()
