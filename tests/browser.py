"""A headless browser for tests: the machine's own Chromium or Chrome, driven by Playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
from playwright.sync_api import Page, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = [  # as root, without a network
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


class Browser(NamedTuple):
    page: Page


def find() -> str:
    """The program; a test that needs it is skipped without."""
    for name in _NAMES:
        if found := shutil.which(name):
            return found
    pytest.skip(f"needs a browser: none of {', '.join(_NAMES)} is on the PATH; install one")


@contextmanager
def opened() -> Iterator[Browser]:
    program = find()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, headless=True, args=_FLAGS)
        yield Browser(browser.new_page())
        browser.close()
