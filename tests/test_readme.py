"""The README's table says what the published notebooks say: no more, no less, and not what they said yesterday."""

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_output
from replication_notebooks import Papers

from collapse_lib import paper
from collapse_lib.claims import Ledger
from collapse_lib.replication import readme
from collapse_lib.results import Results, read_results

BEGIN, END = readme.markers("coverage")
RESULTS = "\n".join(marker for name in ("results", "whole-run") for marker in readme.markers(name))
README = f"# Title\n\n{BEGIN}\n{END}\n\n{RESULTS}\n\nThe end.\n"
HEADLINE = """
[notebooks.{slug}.claims.A-2]
text = "this much"
kind = "headline"
profiles = ["paper"]
expected = {{ max = 1 }}
{more}
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with a README, in which the test runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text(README)
    return Papers(tmp_path / "notebooks")


def publish(project: Papers, key: str, *, profile: str = "paper", more: str = "", **measured: float) -> None:
    """Adds a notebook that shows the ledger of a run that measured so."""
    folder, slug = key.split("/")
    path = project.add(key, extra=HEADLINE.format(slug=slug, more=more))
    entry = paper.load_paper(project.root / folder / "paper.toml").notebooks[slug]
    ledger = Ledger(key, entry, profile=profile, dataset="mnist")
    for claim, value in measured.items():
        ledger.record(claim.replace("_", "-"), value)
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[-2].outputs = [new_output("display_data", ledger.result()._repr_mimebundle_())]
    notebook.metadata["collapse_lib"] = {"profile": profile, "device": "cuda"}
    nbformat.write(notebook, path)


def rows(project: Papers) -> list[list[str]]:
    lines = readme.coverage_table(project.root.parent).splitlines()[4:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_a_row_tells_figure_question_outcome_and_run(project):
    publish(project, "one/fig_1", A_1=10, A_2=0.5)
    assert rows(project) == [
        [
            "[nothing](notebooks/one/fig_1.ipynb)",
            "Test of fig_1",
            "–",
            "2 of 2",
            "holds",
            "paper, mnist, cuda",
        ]
    ]


def test_each_document_has_a_table_of_its_own(project):
    for key in ("one/fig_1", "two/fig_1", "one/fig_2"):
        publish(project, key, A_1=10, A_2=0.5)
    one, two = readme.coverage_table(project.root.parent).split("\n\n**")
    assert one.startswith("**d** ([R](u))\n\n| Figure, notebook | Question |")
    assert [part.count("](notebooks/") for part in (one, two)] == [2, 1]
    assert "notebooks/two/fig_1.ipynb" in two


@pytest.mark.parametrize(
    ("run", "outcome"),
    [
        ({"A_1": 10, "A_2": 5}, ["1 of 2", "FAILS: A-2", "paper, mnist, cuda"]),
        ({"A_1": 0, "A_2": 5}, ["0 of 2", "FAILS: A-1, A-2", "paper, mnist, cuda"]),
        ({"A_1": 10, "A_2": 5, "more": 'differs = "a reason"'}, ["1 of 2", "differs: A-2", "paper, mnist, cuda"]),
        ({"A_1": 0, "A_2": 5, "more": 'differs = "a reason"'}, ["0 of 2", "FAILS: A-1; differs: A-2", "paper, mnist, cuda"]),
        ({"A_1": 10, "profile": "laptop"}, ["1 of 1", "holds", "laptop, mnist, cuda"]),
    ],
    ids=["failed", "all failed", "differs", "both", "not judged"],
)
def test_the_outcome_hides_nothing(project, run, outcome):
    publish(project, "one/fig_1", **run)
    assert rows(project)[0][3:] == outcome


def test_a_notebook_that_was_never_executed_claims_nothing(project):
    project.add("one/fig_1")
    assert rows(project)[0][2:] == ["–", "–", "not executed", "–"]


def test_writing_freshens_and_a_changed_notebook_makes_it_stale(project, capsys):
    publish(project, "one/fig_1", A_1=10, A_2=0.5)
    assert readme.main(["--check"]) == 1
    assert "renew them with" in capsys.readouterr().err

    assert readme.main([]) == 0
    assert readme.main(["--check"]) == 0
    text = (project.root.parent / "README.md").read_text()
    assert text.startswith("# Title\n\n")
    assert text.endswith("\n\nThe end.\n")
    assert "| 2 of 2 |" in text

    publish(project, "one/fig_2", A_1=0, A_2=5)
    assert readme.main(["--check"]) == 1


def test_a_cell_cannot_break_the_table(project):
    publish(project, "one/fig_1", A_1=10, A_2=0.5)
    project.entries["one"]["fig_1"] = project.entries["one"]["fig_1"].replace("Test of", "a | b")
    project.write_toml()
    assert r"| a \| b fig_1 |" in readme.coverage_table(project.root.parent)


@pytest.mark.parametrize("text", ["no markers", README + BEGIN, f"{END}\n{BEGIN}\n{RESULTS}\n"])
def test_a_readme_without_one_place_for_the_table_is_an_error(project, capsys, text):
    publish(project, "one/fig_1", A_1=10, A_2=0.5)
    (project.root.parent / "README.md").write_text(text)
    assert readme.main([]) == 1
    assert BEGIN in capsys.readouterr().err
    assert (project.root.parent / "README.md").read_text() == text


def test_the_wrong_folder_and_wrong_notebooks_are_told(project, capsys, monkeypatch, tmp_path_factory):
    assert readme.main([]) == 1
    assert "no */paper.toml" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert readme.main([]) == 1
    assert "top folder" in capsys.readouterr().err


def test_tables_of_methods_are_copied_from_the_notebooks_that_show_them(project):
    assert readme.results_tables(publish_results(project)) == "\n".join(
        [
            "**mnist**, profile laptop: [Test of fig_1](notebooks/one/fig_1.ipynb)",
            "",
            "| method | KL | NLL |",
            "| --- | --- | --- |",
            "| VAE | 1.50 ± 0.71 | 100.00 ± 0.00 |",
            "| a \\| b | 3.00 | – |",
        ]
    )
    assert readme.main([]) == 0
    assert "| VAE | 1.50 ± 0.71 |" in (project.root.parent / "README.md").read_text()
    assert readme.main(["--check"]) == 0


def publish_results(project):
    """One notebook with a ledger and a table of two methods, the second with one seed and a diverged NLL."""
    publish(project, "one/fig_1", A_1=10, A_2=0.5)
    index = pd.MultiIndex.from_tuples([("VAE", 0), ("VAE", 1), ("a | b", 0)], names=["method", "seed"])
    table = pd.DataFrame({"kl": [1.0, 2.0, 3.0], "nll": [100.0, 100.0, float("nan")], "more": 0.0}, index=index)
    results = Results.of(table, {"kl": "KL", "nll": "NLL"}, dataset="mnist", profile="laptop")
    assert str(results).splitlines()[1].split() == ["VAE", "1.50", "±", "0.71", "100.00", "±", "0.00"]
    path = project.root / "one" / "fig_1.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[-3].outputs.append(new_output("display_data", results._repr_mimebundle_()))
    nbformat.write(notebook, path)
    assert read_results(nbformat.read(path, as_version=4)) == [results]
    with pytest.raises(ValueError, match="no column"):
        Results.of(table, {"mi": "MI"}, dataset="mnist", profile="laptop")
    return project.root.parent


def test_without_tables_the_section_says_so(project):
    publish(project, "one/fig_1", A_1=10, A_2=0.5)
    assert "No table of methods" in readme.results_tables(project.root.parent)


def test_results_of_another_version_are_told(project, capsys):
    path = publish_results(project) / "notebooks" / "one" / "fig_1.ipynb"
    path.write_text(path.read_text().replace('"labels"', '"headings"'))
    assert readme.main([]) == 1
    assert "run the notebook again" in capsys.readouterr().err
