"""The report of a run in a real browser, from the disk: it is whole, and its table sorts."""

import json
from collections.abc import Iterator
from pathlib import Path

import browser
import nbformat
import pytest
from browser import Browser
from nbformat.v4 import new_markdown_cell, new_notebook
from playwright.sync_api import expect
from replication_notebooks import FIGURE, Papers

from collapse_lib.replication import cli, page
from collapse_lib.replication.folder import Folder

SECONDS = {"one/good": 100.0, "one/quick": 9.5}  # as words, 100.0 comes first


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The report of a run with two good notebooks, one that fails and one that has not run."""
    browser.find()
    root = tmp_path_factory.mktemp("a run & more")
    papers = Papers(root / "notebooks")
    for key in SECONDS:
        papers.add(key)
    papers.add("two/raises", "raise ValueError('<b>no such thing</b>')", figure=FIGURE)
    papers.add("two/other")
    folder = Folder(root / "out" / "smoke")
    run = ["--notebooks", str(papers.root), "--out", str(folder.root.parent), "--device", "cpu"]
    assert cli.main([*run, "good", "quick"]) == 0
    for key, seconds in SECONDS.items():
        notebook = json.loads(folder.result(key).read_text())
        notebook["metadata"]["collapse_lib"]["seconds"] = seconds
        folder.result(key).write_text(json.dumps(notebook))
    assert cli.main([*run, "good", "quick", "raises"]) == 1
    return folder


@pytest.fixture(scope="module")
def opened(folder: Folder) -> Iterator[Browser]:
    # Only after the run: Playwright keeps an event loop in this thread, and a run needs to start its own.
    assert folder.report_html.exists()
    with browser.opened() as watched:
        yield watched


@pytest.fixture
def report(opened: Browser, folder: Folder) -> Browser:
    opened.trouble.clear()
    opened.open(folder.report_html)
    return opened


def test_the_report_is_whole(report: Browser) -> None:
    assert report.page.title() == "Replication report, smoke"
    assert report.page.locator("img").count() == 2
    assert report.page.locator("#notebooks tbody a").count() == 3  # the fourth has not run
    assert report.broken_images() == []
    assert report.broken_links() == []
    assert report.trouble == []
    assert report.page.get_by_text("ValueError: <b>no such thing</b>").first.is_visible()


def test_a_figure_leads_to_the_executed_notebook_and_that_back_to_the_report(report: Browser, folder: Folder) -> None:
    report.page.locator("figure a").first.click()
    report.page.wait_for_load_state("load")
    assert report.page.url == (folder.root / "one" / "good.html").as_uri()
    assert report.page.get_by_role("heading", name="A test").is_visible()
    assert report.broken_images() == []
    assert report.broken_links() == []
    report.page.get_by_role("link", name="report of the run").click()
    report.page.wait_for_load_state("load")
    assert report.page.url == folder.report_html.as_uri()
    assert report.trouble == []


def test_formulas_are_typeset_on_demand_and_a_missing_network_is_told(opened: Browser, tmp_path: Path) -> None:
    path = tmp_path / "formula.ipynb"
    nbformat.write(new_notebook(cells=[new_markdown_cell("Here $x^2$.")]), path)
    page.write_notebook(path, "A formula")
    opened.trouble.clear()
    opened.open(path.with_suffix(".html"))
    assert opened.trouble == []
    button = opened.page.locator("#typeset")
    opened.page.route("**/mathjax/**", lambda route: route.abort())
    button.click()
    expect(button).to_have_text("MathJax could not be fetched; try again")
    opened.page.unroute("**/mathjax/**")
    opened.page.route("**/mathjax/**", lambda route: route.fulfill(body="document.title = MathJax.tex2jax.inlineMath"))
    button.click()
    expect(button).to_have_count(0)
    assert opened.page.title() == "$,$"
    opened.page.unroute("**/mathjax/**")


def test_what_is_broken_is_seen(opened: Browser, tmp_path: Path) -> None:
    """Else the tests above could not fail."""
    broken = tmp_path / "page.html"
    broken.write_text(
        '<a href="#nowhere">1</a><a href="absent.html">2</a><a href="http://localhost:9/">3</a>'
        '<a href="page.html">4</a><a id="here" href="#here">5</a><img alt="lost" src="absent.png">'
        '<script>throw new Error("thrown")</script>'
    )
    opened.trouble.clear()
    opened.open(broken)
    assert [address.rpartition("/")[2] for address in opened.broken_links()] == ["page.html#nowhere", "absent.html", ""]
    assert opened.broken_images() == ["lost"]
    told = "\n".join(opened.trouble)
    assert "thrown" in told
    assert "absent.png failed" in told


# ---- sorting ---------------------------------------------------------------------------------------------------------

BY_NAME = ["one/good", "one/quick", "two/other", "two/raises"]


def order(report: Browser) -> list[str]:
    return report.page.locator("#notebooks tbody tr td:first-child").all_inner_texts()


def directions(report: Browser) -> list[str | None]:
    return [each.get_attribute("aria-sort") for each in report.page.locator("#notebooks thead th").all()]


def click(report: Browser, heading: str) -> list[str]:
    report.page.get_by_role("button", name=heading).click()
    return order(report)


def test_sorting_by_time_is_by_number_and_what_has_no_time_stays_last(report: Browser) -> None:
    assert directions(report) == [None] * 4
    up = click(report, "time")
    took = [key for key in up if key in SECONDS]
    assert took == ["one/quick", "one/good"]
    assert up[-1] == "two/other"
    assert directions(report) == [None, None, "ascending", None]
    down = click(report, "time")
    assert down == [*reversed(up[:-1]), "two/other"]
    assert directions(report) == [None, None, "descending", None]


def test_sorting_by_the_other_headings(report: Browser) -> None:
    assert click(report, "notebook") == BY_NAME
    assert click(report, "notebook") == BY_NAME[::-1]
    # Equals stay in the order of before, and those without claims come last.
    assert click(report, "claims") == ["one/quick", "one/good", "two/raises", "two/other"]
    assert click(report, "state") == ["one/quick", "one/good", "two/raises", "two/other"]  # cached, failed, not run
    assert click(report, "state") == ["two/other", "two/raises", "one/quick", "one/good"]
    assert directions(report) == [None, "descending", None, None]


def test_sorting_works_by_keyboard(report: Browser) -> None:
    report.page.get_by_role("button", name="notebook").focus()
    report.page.keyboard.press("Enter")
    report.page.keyboard.press("Enter")
    assert order(report) == BY_NAME[::-1]
