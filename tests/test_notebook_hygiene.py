"""The published notebooks are fit to be read, and each check of `hygiene` sees what it is there to see."""

import base64
import copy
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hygiene
import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from paper_files import HEAD

from collapse_lib import paper
from collapse_lib.claims import Ledger
from collapse_lib.ledger import MIME
from collapse_lib.replication import catalogue, readme

ROOT = Path(__file__).parents[1]
PUBLISHED = sorted((ROOT / "notebooks").glob("*/*.ipynb"))


# ---- the published notebooks -----------------------------------------------------------------------------------------


def test_every_entry_has_its_notebook_and_there_are_some():
    assert sorted(notebook.path for notebook in catalogue.load(ROOT / "notebooks")) == PUBLISHED
    assert PUBLISHED


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_published_notebook(path):
    entry = paper.load_paper(path.parent / "paper.toml").notebooks[path.stem]
    assert hygiene.problems(nbformat.read(path, as_version=4), entry) == []


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=" ".join)
def test_published_notebooks_are_linted_like_code(command):
    ruff = subprocess.run(
        [sys.executable, "-m", "ruff", *command, ROOT / "notebooks"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ruff.returncode == 0, ruff.stdout + ruff.stderr


def test_the_readme_table_is_fresh(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert readme.main(["--check"]) == 0, capsys.readouterr().err


# ---- the checks ------------------------------------------------------------------------------------------------------

PAPER = (
    HEAD
    + """
[notebooks.tiny]
title = "Is it so?"
replicates = "Fig. 1"
figures = 1
timeout_s = { smoke = 60, laptop = 60, paper = 60 }

[notebooks.tiny.claims.T-1]
text = "it is so"
kind = "mechanism"
expected = { max = 1 }

[notebooks.tiny.claims.T-2]
text = "and this much"
kind = "headline"
profiles = ["paper"]
expected = { max = 1 }
"""
)
PIXEL = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()


@pytest.fixture
def entry(tmp_path) -> paper.Notebook:
    (tmp_path / "paper.toml").write_text(PAPER)
    return paper.load_paper(tmp_path / "paper.toml").notebooks["tiny"]


@pytest.fixture
def notebook(entry) -> NotebookNode:
    return published(entry, value=0.5)


def published(entry: paper.Notebook, value: float) -> NotebookNode:
    """A small notebook as it would be published, had it measured `value`."""
    ledger = Ledger("paper/tiny", entry, profile="paper", dataset="digits")
    ledger.record("T-1", value)
    ledger.record("T-2", value)
    record = ledger.result()

    def code(source: str, *outputs: NotebookNode, tag: str | None = None) -> NotebookNode:
        return new_code_cell(source, outputs=list(outputs), metadata={"tags": [tag]} if tag else {})

    parameters = (
        'profile = "paper"  # size of the run\ndataset = "digits"  # embedded\n# "auto" takes a GPU\ndevice = "auto"'
    )
    cells = [
        new_markdown_cell("# Tiny\n\nIs it so? The document says yes."),
        new_markdown_cell("## Parameters"),
        code(parameters, tag="parameters"),
        new_markdown_cell("## What theory predicts\n\n$1 = 1$\n\n```\n# no heading\n```"),
        new_markdown_cell("## Run"),
        code("from pathlib import Path\n\nmeasured = 0.5"),
        new_markdown_cell("## Figures"),
        code("plot(measured)", new_output("display_data", {"image/png": PIXEL, "text/plain": "<Figure>"})),
        new_markdown_cell("## Ledger"),
        code("ledger.show()", new_output("display_data", record._repr_mimebundle_())),
        code(
            "ledger.verdicts()",
            new_output("stream", name="stdout", text="\n".join(record.verdict_lines()) + "\n"),
            tag="nbval-check-output",
        ),
        new_markdown_cell("## Deviations and corrections\n\nNone."),
        new_markdown_cell("## Provenance"),
        code("watch.report()", new_output("display_data", {"text/plain": "Python 3"})),
    ]
    for count, cell in enumerate((cell for cell in cells if cell.cell_type == "code"), start=1):
        cell.execution_count = count
    return new_notebook(cells=cells, metadata={"collapse_lib": {"profile": "paper"}})


def test_a_notebook_as_it_should_be_has_no_problem(notebook, entry):
    assert hygiene.problems(notebook, entry) == []


def cell_with(notebook: NotebookNode, source: str) -> NotebookNode:
    return next(cell for cell in notebook.cells if source in cell.source)


def replace(old: str, new: str) -> Callable[[NotebookNode], None]:
    def change(notebook: NotebookNode) -> None:
        cell = cell_with(notebook, old)
        cell.source = cell.source.replace(old, new)

    return change


def output(source: str, **changes: object) -> Callable[[NotebookNode], None]:
    return lambda notebook: cell_with(notebook, source).outputs[0].update(changes)


def drop(source: str) -> Callable[[NotebookNode], None]:
    return lambda notebook: notebook.cells.remove(cell_with(notebook, source))


def swap(notebook: NotebookNode, one: str, other: str) -> None:
    cells = notebook.cells
    i, j = cells.index(cell_with(notebook, one)), cells.index(cell_with(notebook, other))
    cells[i], cells[j] = cells[j], cells[i]


def append(source: str) -> Callable[[NotebookNode], None]:
    return replace("measured = 0.5", f"measured = 0.5\n{source}")


def inject(notebook: NotebookNode) -> None:
    notebook.cells.append(new_code_cell("seed = 1", metadata={"tags": ["injected-parameters"]}, execution_count=7))


def swap_tags(notebook: NotebookNode) -> None:
    shown, printed = cell_with(notebook, ".show()"), cell_with(notebook, ".verdicts()")
    shown.metadata, printed.metadata = printed.metadata, shown.metadata


LONG = "def draw():\n" + "    plot()\n" * hygiene.LONGEST_FUNCTION
TRACE = [new_output("error", ename="ValueError", evalue="no", traceback=[])]
WARNING = [new_output("stream", name="stderr", text="UserWarning: no")]

BREAKAGES: list[tuple[str, Callable[[NotebookNode], object]]] = [
    ("not a valid notebook", lambda nb: nb.cells[2].pop("outputs")),
    ("executed as", lambda nb: nb.cells[2].update(execution_count=9)),
    ("executed as", lambda nb: nb.cells[5].update(execution_count=None)),
    ("a code cell is empty", lambda nb: nb.cells[5].update(source="  ")),
    ("does not begin with a title", replace("# Tiny", "Tiny")),
    ("has the headings", drop("## Provenance")),
    ("has the headings", lambda nb: swap(nb, "## Run", "## Figures")),
    ("has the headings", replace("## Run", "## Training")),
    ("says nothing below its title", lambda nb: nb.cells[0].update(source="# Tiny")),
    ("says nothing under Deviations", replace("None.", "")),
    ("has no code .verdicts", replace("ledger.verdicts()", "print()")),
    ("has no code .report", replace("watch.report()", "print()")),
    ("has no code under Run", drop("measured = 0.5")),
    ("shows no image under Figures", drop("plot(measured)")),
    ("parameters in another section", lambda nb: swap(nb, "profile =", "measured =")),
    ("injected parameters that do not follow", inject),
    ("0 cells tagged parameters", lambda nb: nb.cells[2].metadata.clear()),
    ("n is no number", replace('device = "auto"', 'device = "auto"\nn = 2 * 3  # twice')),
    ("without a unit or reason: dataset", replace("  # embedded", "")),
    ("without a unit or reason: device", replace('# "auto" takes a GPU\n', "")),
    ("defines the class", append("class Model:\n    pass")),
    ("defines draw in 13 lines", append(LONG)),
    ("trains by itself", append("loss.backward()")),
    ("shows the path /home/someone", append('Path("/home/someone/data")')),
    ("shows the path /tmp/ipykernel_3/4.py", output("watch.report()", data={"text/plain": "/tmp/ipykernel_3/4.py:1"})),
    (r"shows the path C:\\\\Users", append(r'Path("C:\\Users\\me")')),
    ("volatile metadata: papermill", lambda nb: nb.metadata.update(papermill={})),
    ("volatile metadata: execution", lambda nb: nb.cells[5].metadata.update(execution={})),
    ("shows an error, ValueError", lambda nb: nb.cells[5].update(outputs=TRACE)),
    ("meant for a terminal", lambda nb: nb.cells[5].update(outputs=WARNING)),
    ("shows 0 images of 1", output("plot(measured)", data={"text/plain": "<Figure>"})),
    ("no cell tagged nbval-check-output", lambda nb: cell_with(nb, ".verdicts()").metadata.clear()),
    ("checked cell without output", lambda nb: cell_with(nb, ".verdicts()").update(outputs=[])),
    ("no cell tagged nbval-check-output that prints", swap_tags),
    ("shows no ledger", lambda nb: cell_with(nb, ".show()").outputs[0].data.pop(MIME)),
    ("prints other verdicts", output(".verdicts()", text="T-1 holds: it is otherwise")),
    ("prints other verdicts", output(".verdicts()", text="")),
    ("from a smoke run", lambda nb: cell_with(nb, ".show()").outputs[0].data[MIME].update(profile="smoke")),
]


@pytest.mark.parametrize(("told", "damage"), BREAKAGES)
def test_each_breakage_is_told(notebook, entry, told, damage):
    damage(notebook)
    assert re.search(told, "\n".join(hygiene.problems(notebook, entry)))


def test_a_failed_claim_is_not_published(entry):
    assert hygiene.problems(published(entry, value=2.0), entry) == [
        "was published with claims that fail: T-1, T-2",
    ]


@pytest.mark.parametrize(
    "edit",
    [("it is so", "it is so indeed"), ("expected = { max = 1 }", "expected = { max = 2 }"), ("T-2", "T-3")],
    ids=["text", "range", "id"],
)
def test_a_notebook_is_held_to_the_paper_file_of_today(notebook, tmp_path, edit):
    (tmp_path / "paper.toml").write_text(PAPER.replace(*edit))
    entry = paper.load_paper(tmp_path / "paper.toml").notebooks["tiny"]
    assert any("judged by another paper.toml" in problem for problem in hygiene.problems(notebook, entry))


def test_what_is_no_machine_path_is_none(notebook, entry):
    untouched = copy.deepcopy(notebook)
    append('url = "https://example.org/home/work/x"\nfolder = "~/data/usr/x"\nratio = a /home/ b')(untouched)
    assert hygiene.problems(untouched, entry) == []
