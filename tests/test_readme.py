"""The README's table says what the published notebooks say: no more, no less, and not what they said yesterday."""

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_output
from replication_notebooks import Papers

from collapse_lib import paper
from collapse_lib.claims import Ledger
from collapse_lib.replication import readme, record
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
        (
            {"A_1": 0, "A_2": 5, "more": 'differs = "a reason"'},
            ["0 of 2", "FAILS: A-1; differs: A-2", "paper, mnist, cuda"],
        ),
        ({"A_1": 10, "profile": "laptop"}, ["1 of 1, 1 not judged", "holds", "laptop, mnist, cuda"]),
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


# ---- the documents' values beside ours -------------------------------------------------------------------------------


def numbers(project: Papers, claims: dict[str, dict], measured: dict[str, object], profile: str = "paper") -> list[str]:
    """What the row of a notebook with these claims shows of its numbers."""
    text = "".join(
        f"[notebooks.fig_1.claims.{name}]\n" + "".join(f"{key} = {value}\n" for key, value in claim.items())
        for name, claim in claims.items()
    )
    path = project.add("one/fig_1", extra=text)
    entry = paper.load_paper(project.root / "one" / "paper.toml").notebooks["fig_1"]
    ledger = Ledger("one/fig_1", entry, profile=profile, dataset="mnist")
    for name, value in {"A-1": 10, **measured}.items():
        ledger.record(name, value)
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[-2].outputs = [new_output("display_data", ledger.result()._repr_mimebundle_())]
    nbformat.write(notebook, path)
    return rows(project)[0][2].split("<br>")


def entry(reported: str, expected: str = "{ max = 9 }", *, headline: bool = False, **more: str) -> dict[str, str]:
    kind = {"kind": '"headline"', "profiles": '["paper"]'} if headline else {"kind": '"mechanism"'}
    return {"text": '"t"', "expected": expected, "reported": f'"{reported}"', **kind, **more}


def test_the_values_of_the_document_stand_beside_ours(project):
    claims = {"B-1": entry("gap < 1"), "B-2": entry("collapse", "{ is = true }"), "B-3": entry("unknown")}
    assert numbers(project, claims, {"B-1": [0.25, 0.5], "B-2": True, "B-3": 1}) == [
        "B-1: gap < 1 → 0.38 ± 0.18 (≤ 9)",
        "B-2: collapse → true",
    ]


def test_at_most_three_are_shown_the_judged_first_then_numbers_then_headlines(project):
    claims = {
        "B-1": entry("in words"),
        "B-2": entry("7"),
        "B-3": entry("8"),
        "B-4": entry("7"),  # said already
        "B-5": entry("9", headline=True),
        "B-6": entry("10", headline=True),
    }
    measured = dict.fromkeys(claims, 1)
    assert [each[:3] for each in numbers(project, claims, measured)] == ["B-2", "B-5", "B-6"]
    assert [each[:3] for each in numbers(project, claims, measured, "laptop")] == ["B-1", "B-2", "B-3"]


def test_numbers_that_do_not_count_say_why_and_long_words_are_cut(project):
    claims = {
        "B-1": entry("5", headline=True),
        "B-2": entry("6", "{ max = 0 }"),
        "B-3": entry("a word and " * 9),
    }
    assert numbers(project, claims, dict.fromkeys(claims, 1), "laptop") == [
        "B-1: 5 → 1 (≤ 9, not judged)",
        "B-2: 6 → 1 (≤ 0, FAILS)",
        "B-3: a word and a word and a word and a word and a word and a … → 1 (≤ 9)",
    ]
    claims = {"B-1": entry("5", "{ max = 0 }", differs='"a reason"')}
    assert numbers(project, claims, {"B-1": 1}) == ["B-1: 5 → 1 (≤ 0, differs)"]


def test_what_holds_against_the_document_is_no_agreement(project):
    claims = {
        "B-1": entry("7", headline=True),
        "B-2": entry("8", headline=True),
        "B-3": entry("9", headline=True),
        "B-4": entry("in words", contradicts="true"),
        "B-5": entry("it grows", "{ is = true }", contradicts="true"),
    }
    measured = dict.fromkeys(claims, 1) | {"B-5": True}
    assert numbers(project, claims, measured) == [
        "B-1: 7 → 1 (≤ 9)",
        "B-4: in words ≠ 1 (≤ 9)",
        "B-5: it grows ≠ t: true",
    ]
    assert rows(project)[0][4] == "holds, against the document: B-4, B-5"
    measured |= {"B-4": 10}
    numbers(project, claims, measured)
    assert rows(project)[0][4] == "FAILS: B-4; holds, against the document: B-5"


# ---- the run of the whole set ----------------------------------------------------------------------------------------


def record_run(project: Papers, *claims: tuple[str, str], key: str = "one/fig_1") -> None:
    """Writes results/laptop.json as it is after a run of one notebook with these claims and verdicts."""
    told = [{"id": name, "text": "t", "verdict": verdict} for name, verdict in claims]
    result = {"notebook": key, "state": "ran", "dataset": "mnist", "device": "cpu", "seconds": 90.0, "claims": told}
    made = {"commit": "0123456789ab", "collapse_lib": "0.1", "python": "3.11.7", "torch": "2.14", "platform": "Linux"}
    record.write(
        project.root.parent / "results" / "laptop.json",
        {
            "version": record.VERSION,
            "profile": "laptop",
            "written": "2026-01-02T23:00:00+00:00",
            "sum_of_seconds": 3900.0,
            "provenance": made | {"device": "cpu", "cores": 2},
            "notebooks": [result],
        },
    )


def test_without_a_record_no_whole_run_is_claimed(project):
    publish(project, "one/fig_1", A_1=10, A_2=0.5)
    assert readme.whole_run(project.root.parent) == "*No whole run is recorded yet.*"


def test_a_recorded_run_is_told_and_makes_the_readme_stale(project, capsys):
    publish(project, "one/fig_1", A_1=10, A_2=0.5)
    publish(project, "one/fig_2", A_1=10, A_2=0.5)
    assert readme.main([]) == 0
    record_run(project, ("A-1", "holds"), ("A-2", "FAILS"))
    assert readme.main(["--check"]) == 1
    assert "renew them with" in capsys.readouterr().err
    assert readme.main([]) == 0
    assert readme.main(["--check"]) == 0
    text = (project.root.parent / "README.md").read_text()
    assert "| when | 2026-01-02, commit 0123456789ab |" in text
    assert "| where | cpu, 2 cores; Python 3.11.7, torch 2.14 |" in text
    assert "| notebooks | 1 of 2 have a result; not: one/fig_2 |" in text
    assert "| claims | 1 held, 1 failed: one/fig_1 A-2, 0 differ as known, 0 not judged at this size |" in text
    assert "| time | 1 min 30 s to 1 min 30 s a notebook, 1 h 05 min in all |" in text

    record_run(project, ("A-1", "holds"), ("A-2", "not judged"))
    assert readme.main(["--check"]) == 1


@pytest.mark.parametrize(
    ("key", "claim", "told"),
    [("one/old", "A-1", "names what there is no more: one/old"), ("one/fig_1", "A-9", "no more: one/fig_1 A-9")],
)
def test_a_record_of_what_there_is_no_more_is_an_error(project, capsys, key, claim, told):
    publish(project, "one/fig_1", A_1=10, A_2=0.5)
    record_run(project, (claim, "holds"), key=key)
    assert readme.main([]) == 1
    assert told in capsys.readouterr().err
    (project.root.parent / "results" / "laptop.json").write_text("{}")
    assert readme.main([]) == 1
    assert "neither a report nor a record" in capsys.readouterr().err
