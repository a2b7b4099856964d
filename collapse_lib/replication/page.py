"""report.html, and each executed notebook as a page beside it: all of it can be read without a network.

The pages carry their pictures and their style. Formulas stay TeX until the reader asks for MathJax, which is the one
thing that a notebook's page would fetch.
"""

import base64
import hashlib
import io
import logging
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from collapse_lib.replication import display, notebook_file
from collapse_lib.replication.folder import Folder
from collapse_lib.replication.outcome import Outcome

THUMBNAIL_WIDTH = 560  # pixels

_TEMPLATES = Path(__file__).with_name("templates")


def write(folder: Folder, data: dict[str, Any], outcomes: Sequence[Outcome]) -> None:
    """Writes report.html from the content of report.json, and the pages that it links to; OSError if that cannot be.

    A notebook of which no page can be made costs the report no more than the links to it.
    """
    for outcome in outcomes:
        if outcome.result is not None:
            try:
                write_notebook(outcome.result, outcome.notebook.entry.title)
            except OSError:
                raise
            except Exception:
                logging.exception("%s: no page of it can be made", outcome.notebook.key)
                outcome.result.with_suffix(".html").unlink(missing_ok=True)
    notebook_file.write_atomically(folder.report_html, render(data, outcomes))


def render(data: dict[str, Any], outcomes: Sequence[Outcome]) -> str:
    """One page that needs nothing but itself; only links to executed notebooks, their pages and logs lead out of it."""
    notebooks = [
        told
        | {
            "time": "" if outcome.seconds is None else display.duration(outcome.seconds),
            "summary": display.claims(outcome),
            "rank": _rank(outcome),
            "good": outcome.good,
            "section": outcome.selected or outcome.result is not None,
            "page": _page(outcome.result, told["result"]),
            # escaped where it is made
            "ledger": Markup(outcome.recorded._repr_mimebundle_()["text/html"]) if outcome.recorded else None,
            "figure": thumbnail(outcome.result) if outcome.result else None,
        }
        for outcome, told in zip(outcomes, data["notebooks"], strict=True)
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # Results first; what was neither run nor asked for is no more than its row.
    sections = sorted((each for each in notebooks if each["section"]), key=lambda each: each["result"] is None)
    more = {
        "notebooks": notebooks,
        "sections": sections,
        "selected": sum(outcome.selected for outcome in outcomes),
        "total": display.duration(data["sum_of_seconds"]),
    }
    return environment.get_template("report.html.j2").render(data | more)


def _page(result: Path | None, told: str | None) -> str | None:
    """Where a notebook's page lies, by the path that report.json tells of its result; None if there is no page."""
    if result is None or told is None or not result.with_suffix(".html").exists():
        return None
    return Path(told).with_suffix(".html").as_posix()


def _rank(outcome: Outcome) -> int | None:
    """Where the column of claims is sorted: those with the most failures first, then those with few that hold."""
    if outcome.recorded is None:
        return None
    verdicts = [claim.verdict for claim in outcome.recorded.claims]
    return verdicts.count("holds") - 1000 * verdicts.count("FAILS")


def thumbnail(result: Path) -> str | None:
    """The main figure of an executed notebook, which is its largest, made smaller, as a data URI."""
    from PIL import Image

    pictures = []
    for figure in notebook_file.images(notebook_file.read(result)):
        try:
            picture = Image.open(io.BytesIO(figure))
            picture.load()
        except (OSError, Image.DecompressionBombError):  # no image, half an image, far too large an image
            continue
        pictures.append(picture)
    if not pictures:
        return None
    image = max(pictures, key=lambda picture: picture.width * picture.height)
    image.thumbnail((THUMBNAIL_WIDTH, 2 * THUMBNAIL_WIDTH))
    small = io.BytesIO()
    image.save(small, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(small.getvalue()).decode()}"


def write_notebook(result: Path, title: str) -> None:
    """Writes the executed notebook `result` as a page beside it, unless the one that is there is of the same content.

    Making a page takes nbconvert about a second, and importing nbconvert two more.
    """
    page = result.with_suffix(".html")
    stamp = _stamp(result, title)
    if page.exists() and _last_line(page) == stamp:
        return
    import nbformat
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(raw_template=_notebook_template(), exclude_anchor_links=True)
    exporter.log.setLevel("ERROR")  # it asks for an alternative text of every figure
    notebook = nbformat.read(result, as_version=4)
    with warnings.catch_warnings():
        # An output that a page cannot show, such as a progress bar, is left out.
        warnings.filterwarnings("ignore", "Your element with mimetype", UserWarning)
        body, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": title}})
    notebook_file.write_atomically(page, f"{body.rstrip()}\n{stamp}\n")


def _stamp(result: Path, title: str) -> str:
    """Of all that a page is made from."""
    parts = [result.read_bytes(), title.encode(), _notebook_template().encode(), version("nbconvert").encode()]
    return f"<!-- made from {hashlib.sha256(b'|'.join(parts)).hexdigest()} -->"


def _notebook_template() -> str:
    return (_TEMPLATES / "notebook.html.j2").read_text(encoding="utf-8")


def _last_line(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 200))
        return file.read().decode("utf-8", errors="replace").rstrip("\n").rpartition("\n")[2]
