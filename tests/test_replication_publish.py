"""Reports, publishing and preparing for nbval, from one real run of two notebooks."""

import base64
import contextlib
import copy
import html.parser
import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_output
from PIL import Image
from replication_notebooks import LEDGER, Papers

from collapse_lib.ledger import read_ledger
from collapse_lib.replication import catalogue, cli, display, notebook_file, page, prepare, publish
from collapse_lib.replication.folder import Folder
from collapse_lib.replication.outcome import Outcome, State
from collapse_lib.replication.publish import PublishError

LAPTOP = "[notebooks.{slug}.profiles.laptop]\nn_images = 20\n"
NOISY = """
import sys, warnings
print("kept")
print("50 %", file=sys.stderr)
display({"application/vnd.jupyter.widget-view+json": {"model_id": "x"}, "text/plain": "0%"}, raw=True)
"""


@dataclass
class Run:
    """A project whose notebooks have run under the laptop profile: one is good, one fails a claim."""

    papers: Papers
    folder: Folder
    status: int
    said: str

    def main(self, *more: str) -> int:
        out = self.folder.root.parent
        return cli.main(["--notebooks", str(self.papers.root), "--out", str(out), "--profile", "laptop", *more])


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("template")
    papers = Papers(root / "notebooks")
    papers.add("one/good", NOISY, ledger=LEDGER, extra=LAPTOP.format(slug="good"))
    papers.add("two/fails", ledger=LEDGER, value="-n_images", extra=LAPTOP.format(slug="fails"))
    papers.add("two/other", extra=LAPTOP.format(slug="other"))
    run = Run(papers, Folder(root / "out" / "laptop"), 0, "")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        run.status = run.main("good", "fails")
    run.said = said.getvalue()
    return run


@pytest.fixture
def run(template: Run, tmp_path: Path) -> Run:
    """A copy that a test may change."""
    shutil.copytree(template.papers.root.parent, tmp_path / "project")
    papers = Papers(tmp_path / "project" / "notebooks", copy.deepcopy(template.papers.entries))
    return Run(papers, Folder(tmp_path / "project" / "out" / "laptop"), template.status, template.said)


def outcome(run: Run, key: str) -> Outcome:
    """What the command line hands to publish for `key`, from what lies in the folder."""
    (notebook,) = catalogue.select(catalogue.load(run.papers.root), [key])
    result = run.folder.result(key)
    return Outcome(notebook, State.RAN, 1.0, read_ledger(notebook_file.read(result)), result=result)


# ---- the report ------------------------------------------------------------------------------------------------------


def test_a_claim_that_fails_is_a_failure_of_the_run(template: Run) -> None:
    assert template.status == 1
    assert "two/fails A-1 FAILS: there are images\n  measured -20, expected ≥ 1" in template.said


def test_the_report_for_programs(run: Run) -> None:
    report = json.loads(run.folder.report_json.read_text())
    assert (report["version"], report["profile"], report["good"]) == (2, "laptop", False)
    assert {"command", "commit", "python", "torch", "device", "cores"} <= report["provenance"].keys()
    good, fails, other = report["notebooks"]
    assert report["sum_of_seconds"] == pytest.approx(good["seconds"] + fails["seconds"])
    assert (good["device"], other["device"]) == ("cpu", None)
    assert [each["state"] for each in (good, fails, other)] == ["ran", "ran", "not run"]
    assert [each["selected"] for each in (good, fails, other)] == [True, True, False]
    assert good["result"] == "one/good.ipynb"
    assert good["claims"][0]["verdict"] == "holds"
    assert good["claims"][0]["measured"]["mean"] == 20
    assert fails["claims"][0]["verdict"] == "FAILS"
    assert other["claims"] == []


class Page(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)
        given = dict(attributes)
        self.links += [given["href"] or ""] if "href" in given else []
        self.sources += [given["src"] or ""] if "src" in given else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_for_readers_is_one_page_that_needs_no_network(run: Run) -> None:
    text = run.folder.report_html.read_text()
    parsed = Page(text)
    assert parsed.open == []
    assert len(parsed.sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in parsed.sources)
    outside = [link for link in parsed.links if not link.startswith(("#", "data:"))]
    told = [[f"{key}.html", f"{key}.ipynb", f"{key}.html"] for key in ("one/good", "two/fails")]
    assert outside == [link for links in told for link in links]
    assert all((run.folder.root / link).exists() for link in outside)
    assert text.count("<caption>") == 3
    assert re.findall(r'<h2 id="(.*?)"', text) == [
        "one/good",
        "two/fails",
    ]  # the third has not run
    assert ">two/other</td>" in text
    assert "1 FAILS" in text
    assert "http" not in text
    seconds = json.loads(run.folder.report_json.read_text())["sum_of_seconds"]
    assert f"The results took {display.duration(seconds)} (sum of the notebooks' own times" in text


def test_the_page_says_of_how_many_it_speaks_and_begins_with_results(run: Run) -> None:
    assert run.main("good") == 0
    text = run.folder.report_html.read_text()
    assert "Every selected notebook ran (1 of 3) and every verdict is as expected." in text
    run.papers.add("two/fails", "raise ValueError", extra=LAPTOP.format(slug="fails"))
    assert run.main("fails", "other") == 1
    text = run.folder.report_html.read_text()
    assert re.findall(r'<h2 id="(.*?)"', text) == ["one/good", "two/other", "two/fails"]
    run.papers.add("two/fails", extra=LAPTOP.format(slug="fails"))
    assert run.main() == 0
    assert "Every notebook ran and every verdict is as expected." in run.folder.report_html.read_text()


def test_the_thumbnail_is_of_the_largest_figure(tmp_path: Path) -> None:
    papers = Papers(tmp_path / "notebooks")
    path = papers.add("one/only")
    assert page.thumbnail(path) is None
    notebook = nbformat.read(path, as_version=4)
    pictures = [picture(*size) for size in ((30, 20), (1120, 560), (600, 600))]
    pictures.append(base64.b64encode(b"no picture").decode())
    whole = base64.b64decode(picture(2000, 2000))
    pictures.append(base64.b64encode(whole[: len(whole) // 2]).decode())  # the largest, but cut off
    notebook.cells[2].outputs = [new_output("display_data", {"image/png": each}) for each in pictures]
    nbformat.write(notebook, path)
    uri = page.thumbnail(path)
    assert uri is not None
    shown = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))
    assert shown.size == (560, 280)


def test_a_page_that_cannot_be_made_costs_its_link_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("nbconvert is not well")

    monkeypatch.setattr(page, "write_notebook", fail)
    assert run.main("good", "--publish") == 0
    text = run.folder.report_html.read_text()
    assert 'href="one/good.ipynb"' in text
    assert "good.html" not in text
    assert not (run.folder.root / "one" / "good.html").exists()


@pytest.mark.parametrize(("verdicts", "rank"), [(["FAILS", "holds"], -999), (["holds"], 1), (["holds"] * 9, 9)])
def test_the_column_of_claims_is_sorted_with_failures_first(run: Run, verdicts: list[str], rank: int) -> None:
    told = outcome(run, "one/good")
    assert told.ledger is not None
    claim = told.ledger.claims[0]
    claims = [claim.model_copy(update={"verdict": verdict}) for verdict in verdicts]
    assert page._rank(replace(told, ledger=told.ledger.model_copy(update={"claims": claims}))) == rank


def test_an_interrupted_run_is_not_recorded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = run.papers.root.parent / "results" / "laptop.json"
    kept.parent.mkdir()
    kept.write_text("the last whole run")
    monkeypatch.setattr(cli, "_execute", lambda *_: ({}, True))
    assert run.main("--record") == 130
    assert kept.read_text() == "the last whole run"


def picture(width: int, height: int) -> str:
    png = io.BytesIO()
    Image.new("RGB", (width, height)).save(png, "PNG")
    return base64.b64encode(png.getvalue()).decode()


def test_an_executed_notebook_becomes_a_page_that_fetches_nothing_by_itself(run: Run) -> None:
    text = (run.folder.root / "one" / "good.html").read_text()
    assert "A test" in text
    assert "A-1" in text
    assert '<a href="../report.html">' in text
    assert re.findall(r"""<(?:script|link|img|iframe)[^>]*(?:src|href)="(?!data:)[^"]*""", text) == []
    assert re.findall(r"@import|url\((?!['\"]?data:)[^)]*\)", text) == []
    assert "mathjax" not in text.lower()  # it has no formula

    path = run.folder.result("one/good")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source = "$x^2$"
    nbformat.write(notebook, path)
    page.write_notebook(path, "A <title>")
    text = path.with_suffix(".html").read_text()
    assert "Typeset the formulas" in text
    assert "<title>A &lt;title&gt;</title>" in text


def test_the_page_of_a_notebook_is_made_anew_only_if_something_changed(run: Run) -> None:
    result = run.folder.result("one/good")
    made = result.with_suffix(".html")

    def is_made_anew(title: str) -> bool:
        before = made.stat().st_mtime_ns
        page.write_notebook(result, title)
        return made.stat().st_mtime_ns != before

    assert not is_made_anew("Test of good")
    assert is_made_anew("Another title")
    assert not is_made_anew("Another title")
    result.write_text(result.read_text().replace("# A test", "# Another test"))
    assert is_made_anew("Another title")
    assert "Another test" in made.read_text()
    made.write_text("cut off")
    assert is_made_anew("Another title")


def test_the_report_escapes_what_notebooks_say(run: Run) -> None:
    entry = run.papers.entries["two"]["other"]
    run.papers.entries["two"]["other"] = entry.replace("Test of other", "a < b & <script>")
    run.papers.write_toml()
    run.main("other")
    text = run.folder.report_html.read_text()
    assert "a &lt; b &amp; &lt;script&gt;" in text
    assert text.count("<script") == 1  # the page's own, which sorts


# ---- publishing ------------------------------------------------------------------------------------------------------


def test_a_published_notebook_shows_its_outputs_without_what_changes_from_run_to_run(run: Run) -> None:
    path = publish.publish(outcome(run, "one/good"))
    assert path == run.papers.root / "one" / "good.ipynb"
    published = nbformat.read(path, as_version=4)
    nbformat.validate(published)
    assert set(published.metadata) == {"collapse_lib", "kernelspec", "language_info"}
    assert set(published.metadata.collapse_lib) == {"profile", "parameters", "device"}
    assert all(set(cell.metadata) <= {"tags"} for cell in published.cells)
    assert [cell.id for cell in published.cells if cell.id.startswith("cell-")] == [f"cell-{n}" for n in range(6)]
    assert [cell.execution_count for cell in notebook_file.code_cells(published)] == [1, 2, 3, 4, 5, 6]
    # The sizes that the outputs belong to stay in sight.
    (injected,) = notebook_file.tagged(published, "injected-parameters")
    assert "n_images = 20" in injected.source
    assert injected.id == "injected-parameters"
    assert not injected.source.endswith("\n")  # as the formatter wants it
    (noisy,) = [cell for cell in published.cells if "50 %" in cell.source]
    assert [output.get("text") for output in noisy.outputs] == ["kept\n"]
    assert notebook_file.images(published)
    assert published.cells[-1].outputs[0].text == "A-1 holds: there are images\n"


def test_publishing_the_same_run_twice_gives_the_same_bytes(run: Run) -> None:
    before = (run.papers.root / "one" / "good.ipynb").read_bytes()
    first = publish.publish(outcome(run, "one/good")).read_bytes()
    assert publish.publish(outcome(run, "one/good")).read_bytes() == first != before


def test_a_published_notebook_is_still_the_one_that_ran(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main("good", "--publish") == 0
    assert f"published: {run.papers.root / 'one' / 'good.ipynb'}" in capsys.readouterr().out
    assert run.main("good", "--dry-run") == 0
    assert "cached" in capsys.readouterr().out


def test_a_failing_claim_is_not_published(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    path = run.papers.root / "two" / "fails.ipynb"
    before = path.read_bytes()
    assert run.main("fails", "--publish") == 1
    assert "two/fails is not published, claims that fail: A-1" in capsys.readouterr().out
    assert path.read_bytes() == before


def not_a_result(given: Outcome) -> Outcome:
    return Outcome(given.notebook, State.FAILED)


def edited_since(given: Outcome) -> Outcome:
    given.notebook.path.write_text(given.notebook.path.read_text().replace("# A test", "# Another test"))
    return given


@pytest.mark.parametrize(("change", "told"), [(not_a_result, "it failed"), (edited_since, "was edited since it ran")])
def test_what_is_not_published(run: Run, change: Callable[[Outcome], Outcome], told: str) -> None:
    given = change(outcome(run, "one/good"))
    before = given.notebook.path.read_bytes()
    with pytest.raises(PublishError, match=f"one/good is not published, .*{told}"):
        publish.publish(given)
    assert given.notebook.path.read_bytes() == before


# ---- preparing for nbval ---------------------------------------------------------------------------------------------


def test_prepared_notebooks_have_the_parameters_of_the_profile_and_the_published_outputs(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish.publish(outcome(run, "one/good"))
    out = tmp_path / "prepared"
    arguments = ["--notebooks", str(run.papers.root), "--out", str(out)]
    assert prepare.main(["good", *arguments]) == 0
    assert capsys.readouterr().out == f"{out / 'one' / 'good.ipynb'}\n"
    assert (out / "one" / "paper.toml").read_text() == (run.papers.root / "one" / "paper.toml").read_text()
    prepared = nbformat.read(out / "one" / "good.ipynb", as_version=4)
    published = nbformat.read(run.papers.root / "one" / "good.ipynb", as_version=4)
    (injected,) = notebook_file.tagged(prepared, "injected-parameters")
    assert "n_images = 10\n" in injected.source
    assert 'profile = "smoke"' in injected.source
    kept = notebook_file.without_injected(published)
    assert [cell.get("outputs") for cell in notebook_file.without_injected(prepared)] == [
        cell.get("outputs") for cell in kept
    ]

    assert prepare.main(["good", "--profile", "paper", *arguments]) == 0
    prepared = nbformat.read(out / "one" / "good.ipynb", as_version=4)
    assert notebook_file.tagged(prepared, "injected-parameters") == []


def test_a_notebook_that_was_never_executed_is_not_prepared(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish.publish(outcome(run, "one/good"))
    out = tmp_path / "prepared"
    assert prepare.main(["--notebooks", str(run.papers.root), "--out", str(out)]) == 2
    told = capsys.readouterr().err
    assert str(run.papers.root / "two" / "fails.ipynb") in told
    assert "two/other.ipynb" in told
    assert "good" not in told
    assert not out.exists()
