"""Handing a notebook out: what a student gets, and that the runner grades what comes back."""

import json
from pathlib import Path

import nbformat
import pytest
from replication_notebooks import LEDGER, Papers

from collapse_lib.paper import load_paper
from collapse_lib.replication import catalogue, cli, handout, notebook_file


@pytest.fixture
def papers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Papers:
    """Three notebooks of two documents, executed as a reader finds them."""
    made = Papers(tmp_path / "notebooks")
    for key in ("one/first", "one/first_of_all", "two/other"):
        made.add(key, ledger=LEDGER)
    monkeypatch.setattr(catalogue, "FOLDER", made.root)
    return made


def test_a_student_gets_one_notebook_its_claims_and_a_size_that_runs(papers, tmp_path, capsys):
    path = papers.root / "one" / "first.ipynb"
    executed = nbformat.read(path, as_version=4)
    for cell in executed.cells:
        if cell.cell_type == "code":
            cell.update(outputs=[nbformat.v4.new_output("stream", text="seen")], execution_count=1)
    nbformat.write(executed, path)

    assert handout.main(["one/first.ipynb", "--out", str(tmp_path / "handout")]) == 0
    given = tmp_path / "handout" / "one"
    assert sorted(each.name for each in given.iterdir()) == ["first.ipynb", "paper.toml"]
    assert str(given / "first.ipynb") in capsys.readouterr().out
    everything, entries = load_paper(papers.root / "one" / "paper.toml"), load_paper(given / "paper.toml")
    assert list(entries.notebooks) == ["first"]
    assert entries.notebooks["first"] == everything.notebooks["first"]
    assert entries.paper == everything.paper
    notebook = nbformat.read(given / "first.ipynb", as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
    (sizes,) = notebook_file.tagged(notebook, notebook_file.INJECTED)
    assert "n_images = 10" in sizes.source
    assert 'profile = "smoke"' in sizes.source


def test_what_comes_back_is_graded(papers, tmp_path, capsys):
    """Right, wrong, and with a blank left blank."""
    for name, change in (
        ("right", None),
        ("wrong", ("n_images)", "-1)")),
        ("blank", ('ledger.record("A-1", n_images)', "...")),
    ):
        assert handout.main(["one/first.ipynb", "--out", str(tmp_path / name)]) == 0
        path = tmp_path / name / "one" / "first.ipynb"
        if change:
            assert change[0] in path.read_text().replace('\\"', '"')
            notebook = nbformat.read(path, as_version=4)
            for cell in notebook.cells:
                cell.source = cell.source.replace(*change)
            nbformat.write(notebook, path)
        status = cli.main(
            ["--notebooks", str(tmp_path / name), "--out", str(tmp_path / f"{name} graded"), "--jobs", "1"]
        )
        report = json.loads((tmp_path / f"{name} graded" / "smoke" / "report.json").read_text())
        (graded,) = report["notebooks"]
        verdicts = [claim["verdict"] for claim in graded["claims"]]
        if name == "blank":
            assert (status, graded["state"], verdicts) == (1, "failed", [])
            assert "not recorded in one/first: A-1" in capsys.readouterr().out
        else:
            assert (status, verdicts) == ((0, ["holds"]) if name == "right" else (1, ["FAILS"]))


def test_nothing_is_overwritten(papers, tmp_path, capsys):
    out = ["--out", str(tmp_path / "handout")]
    assert handout.main(["one/first.ipynb", *out]) == 0
    mine = tmp_path / "handout" / "one" / "first.ipynb"
    mine.write_text("blanked by hand")
    assert handout.main(["first", "other", *out]) == 2
    assert "is there already; name another folder" in capsys.readouterr().err
    assert mine.read_text() == "blanked by hand"
    assert not (tmp_path / "handout" / "two").exists()
    assert handout.main(["frist", *out]) == 2
    assert "did you mean one/first?" in capsys.readouterr().err


def test_entries_of_names_that_begin_alike_are_told_apart(papers, tmp_path):
    text = (papers.root / "one" / "paper.toml").read_text()
    assert "[notebooks.first_of_all" in text
    kept = handout.only(text, {"first_of_all"})
    assert "[notebooks.first_of_all" in kept
    assert "[notebooks.first]" not in kept
    assert "[notebooks.first." not in kept
