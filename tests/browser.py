"""A headless browser for tests, and what went wrong on the pages that it opened."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
from playwright.sync_api import Page, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = [  # as root, without a network
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
_MISSING = (
    f"needs a browser: none of {', '.join(_NAMES)} is on the PATH; install one "
    "(Debian and Ubuntu: apt install chromium; elsewhere: python -m playwright install chromium)"
)


def find() -> str:
    """A browser of the system, or else the one that Playwright has downloaded; without any the test is skipped."""
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    found = next(filter(None, map(shutil.which, _NAMES)), None) or (own if os.access(own, os.X_OK) else None)
    if found is None:
        pytest.skip(_MISSING)
    return found


@contextmanager
def opened() -> Iterator["Browser"]:
    program = find()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, headless=True, args=_FLAGS)
        page = browser.new_page()
        watched = Browser(page)
        page.on("console", lambda message: watched.note(message.type in ("error", "warning"), message.text))
        page.on("pageerror", lambda error: watched.note(True, str(error)))
        page.on("requestfailed", lambda request: watched.note(True, f"{request.url} failed: {request.failure}"))
        yield watched
        browser.close()


@dataclass
class Browser:
    """A page and the trouble that it had: console, exceptions, requests that failed or that leave the machine."""

    page: Page
    trouble: list[str] = field(default_factory=list)

    def note(self, is_trouble: bool, text: str) -> None:
        if is_trouble:
            self.trouble.append(text)

    def open(self, path: Path) -> None:
        self.page.goto(path.as_uri(), wait_until="load")
        self.page.wait_for_load_state("networkidle")

    def broken_images(self) -> list[str]:
        return self.page.eval_on_selector_all(
            "img", "images => images.filter(each => !each.complete || each.naturalWidth === 0).map(each => each.alt)"
        )

    def broken_links(self) -> list[str]:
        """Addresses on the page that lead to no file, to no place of their page, or out to the network."""
        addresses = self.page.eval_on_selector_all("a[href]", "links => links.map(each => each.href)")
        return [address for address in addresses if not self._leads_somewhere(address)]

    def _leads_somewhere(self, address: str) -> bool:
        file, anchor = urldefrag(address)
        if file == urldefrag(self.page.url)[0]:
            # As browsers do: the name as it is written, then without percent signs.
            names = [anchor, unquote(anchor)]
            there = "names => names.some(name => document.getElementById(name) !== null)"
            return not anchor or bool(self.page.evaluate(there, names))
        return file.startswith("file://") and Path(unquote(file.removeprefix("file://"))).is_file()
