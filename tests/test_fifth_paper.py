"""What a newcomer does: the example of notebooks/README.md, as it stands there, from nothing to a row of the README."""

import json
import subprocess
import sys
from pathlib import Path

import hygiene
import nbformat
import pytest

from collapse_lib import paper
from collapse_lib.ledger import read_ledger
from collapse_lib.replication import cli, example, notebook_file, readme

ROOT = Path(__file__).parents[1]
GUIDE = example.GUIDE.read_text()
FOLDER, SLUG = "two_directions", "one_latent_collapses"


def write(root: Path, folder: str = FOLDER, *, change: tuple[str, str] = ("", "")) -> None:
    """The two files of the guide in a folder of their own, with one replacement."""
    assert change[0] in GUIDE
    example.write(root / folder, GUIDE.replace(*change))


def run_all(root: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "run_all.py", "--notebooks", root, "--out", root.parent / "out", *more]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def report(root: Path, profile: str) -> dict[str, dict]:
    told = json.loads((root.parent / "out" / profile / "report.json").read_text())
    return {each["notebook"].partition("/")[0]: each for each in told["notebooks"]}


def test_the_example_of_the_guide_runs_is_published_and_is_fit_to_be_read(tmp_path, monkeypatch):
    root = tmp_path / "notebooks"
    command = [sys.executable, "-m", "collapse_lib.replication.example", root / FOLDER]
    assert subprocess.run(command, check=False).returncode == 0
    small = run_all(root, FOLDER)
    assert small.returncode == 0, small.stdout + small.stderr
    path = root / FOLDER / f"{SLUG}.ipynb"
    assert read_ledger(notebook_file.read(path)) is None, "a run without --publish has written into notebooks/"
    verdicts = {claim["id"]: claim["verdict"] for claim in report(root, "smoke")[FOLDER]["claims"]}
    assert verdicts == {"TD-1": "holds", "TD-2": "not judged"}

    large = run_all(root, FOLDER, "--profile", "laptop", "--publish")
    assert large.returncode == 0, large.stdout + large.stderr
    assert f"published: {path}" in large.stdout
    published = nbformat.read(path, as_version=4)
    entry = paper.load_paper(path.parent / "paper.toml").notebooks[SLUG]
    assert hygiene.problems(published, entry) == []
    assert [claim.verdict for claim in read_ledger(published).claims] == ["holds", "holds"]
    for command in (["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--config", ROOT / "pyproject.toml", path]
        assert subprocess.run(ruff, check=False).returncode == 0

    monkeypatch.chdir(tmp_path)
    marks = "\n".join(line for table in readme.TABLES for line in readme.markers(table))
    Path("README.md").write_text(marks + "\n")
    assert readme.main([]) == 0
    assert "(notebooks/two_directions/one_latent_collapses.ipynb) | Which of two" in Path("README.md").read_text()


def test_a_claim_that_fails_and_one_that_was_forgotten_are_told(tmp_path):
    root = tmp_path / "notebooks"
    write(root, "fails", change=("min = 1, max = 1", "min = 2, max = 2"))
    write(root, "forgets", change=('ledger.record("TD-1", optimum.active)\n', ""))
    ended = run_all(root)
    assert ended.returncode == 1
    assert "TD-1 FAILS: a latent is active exactly if" in ended.stdout
    assert "measured 1, expected 2 to 2" in ended.stdout
    assert f"not recorded in forgets/{SLUG}: TD-1; record every claim first" in ended.stdout
    told = report(root, "smoke")
    assert [told[folder]["state"] for folder in ("fails", "forgets")] == ["ran", "failed"]


def test_of_a_run_that_forgot_a_claim_the_others_are_told_but_are_no_result(tmp_path):
    root = tmp_path / "notebooks"
    write(root, change=('ledger.record("TD-1", optimum.active)\n', ""))
    assert run_all(root, "--profile", "laptop").returncode == 1
    told = report(root, "laptop")[FOLDER]
    assert (told["state"], told["claims"]) == ("failed", [])
    assert [(claim["id"], claim["verdict"]) for claim in told["failure"]["claims"]] == [("TD-2", "holds")]
    page = (root.parent / "out" / "laptop" / "report.html").read_text()
    assert "the first direction carries 17 % of the variance" in page
    assert not (root.parent / "out" / "laptop" / FOLDER).exists()
    assert run_all(root, "--profile", "laptop", "--publish").returncode == 1
    assert read_ledger(notebook_file.read(root / FOLDER / f"{SLUG}.ipynb")) is None


def test_the_example_overwrites_nothing(tmp_path, capsys):
    folder = tmp_path / "my_paper"
    folder.mkdir()
    (folder / f"{SLUG}.ipynb").write_text("mine")
    assert example.main([str(folder)]) == 1
    assert f"{folder / SLUG}.ipynb: is there already; name another folder" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == [f"{SLUG}.ipynb"]
    (folder / f"{SLUG}.ipynb").unlink()
    assert example.main([str(folder)]) == 0
    assert f"my_paper/{SLUG}" in (folder / f"{SLUG}.ipynb").read_text()


def test_the_guide_lists_the_titles_in_their_order():
    assert ", ".join(f"*{title}*" for title in hygiene.SECTIONS) in " ".join(GUIDE.split())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("smoke = { n_images", "smoke = { images"), "smoke.images: reaches no parameter; the notebook has"),
        (('kind = "mechanism"', 'kind = "main"'), "use 'mechanism' or 'headline'"),
        (("# %% parameters", "# %%"), "0 cells are tagged 'parameters'; tag exactly one code cell"),
        (("# %% nbval-check-output", "# %%"), "tag the one that prints the verdicts"),
    ],
    ids=["override", "kind", "parameters", "verdicts"],
)
def test_what_is_wrong_with_the_two_files_is_told_before_anything_runs(tmp_path, capsys, change, told):
    write(tmp_path / "notebooks", change=change)
    assert cli.main(["--notebooks", str(tmp_path / "notebooks"), "--out", str(tmp_path / "out")]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
