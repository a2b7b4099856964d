"""The README's links to Binder and Colab point at what is there, and the cell for Colab sets the library up."""

import json
import re
import subprocess
import sys
from urllib.parse import parse_qs, urlsplit

import nbformat
import pytest
from installed import ROOT, copy_project, environment, run

from collapse_lib.replication import badges
from collapse_lib.replication.badges import AddressError, Repository

ADDRESS = "https://github.com/somebody/vae-collapse"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A copy of the project, in which the test runs."""
    monkeypatch.chdir(copy_project(tmp_path / "project"))
    return tmp_path / "project"


def links(text: str, host: str) -> list[str]:
    return re.findall(rf"\]\((https://{re.escape(host)}/[^)]+)\)", text)


def test_every_link_leads_to_a_file_of_the_repository(project):
    before = (project / "README.md").read_text()
    assert badges.main([ADDRESS, "--branch", "v1.0"]) == 0
    readme = (project / "README.md").read_text()

    colab = "https://colab.research.google.com/github/somebody/vae-collapse/blob/v1.0/"
    paths = [link.removeprefix(colab) for link in links(readme, "colab.research.google.com")]
    assert sorted(paths) == sorted(str(path.relative_to(ROOT)) for path in (ROOT / "notebooks").glob("*/*.ipynb"))

    badge, binder = (urlsplit(link) for link in links(readme, "mybinder.org"))
    assert badge.path == "/badge_logo.svg"
    assert binder.path == "/v2/gh/somebody/vae-collapse/v1.0"
    assert parse_qs(binder.query) == {"urlpath": ["lab/tree/notebooks"]}
    assert (ROOT / "environment.yml").is_file()

    # Nothing outside the markers has changed.
    begin, end = "<!-- badges:begin -->", "<!-- badges:end -->"
    assert readme.split(begin)[0] == before.split(begin)[0]
    assert readme.split(end)[1] == before.split(end)[1]


def test_a_second_run_changes_nothing_and_another_address_replaces_the_first(project):
    badges.main([ADDRESS])
    once = (project / "README.md").read_text()
    badges.main([f"{ADDRESS}.git"])
    assert (project / "README.md").read_text() == once
    badges.main(["https://github.com/else/where/"])
    assert ADDRESS not in (project / "README.md").read_text()


@pytest.mark.parametrize(
    "address",
    [
        "",
        "somebody/vae-collapse",
        "https://github.com/somebody",
        "https://github.com/somebody/vae-collapse/tree/main",
        "https://gitlab.com/somebody/vae-collapse",
        "https://github.com.example.org/somebody/vae-collapse",
        "http://github.com/somebody/vae-collapse",
        "https://github.com/somebody/..",
        "https://github.com/somebody/vae)collapse",
    ],
)
def test_another_address_is_refused(project, capsys, address):
    before = (project / "README.md").read_text()
    assert badges.main([address]) == 1
    assert "give it as https://github.com/OWNER/NAME" in capsys.readouterr().err
    assert (project / "README.md").read_text() == before


@pytest.mark.parametrize("branch", ["", "a/b", "-x", "a b", "a?b"])
def test_a_branch_that_no_link_can_name_is_refused(branch):
    with pytest.raises(AddressError, match="name a branch"):
        Repository.at(ADDRESS, branch)


def test_without_the_file_that_binder_builds_from_there_is_no_badge(project, capsys):
    (project / "environment.yml").unlink()
    assert badges.main([ADDRESS]) == 1
    assert "environment.yml: missing" in capsys.readouterr().err


def test_the_cell_for_colab_sets_up_what_a_notebook_needs(project, tmp_path):
    """Run in a kernel as it stands; only the address leads to a repository here, and the library to a folder here."""
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", "-C", str(project)]
    for command in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *command], check=True)
    content = tmp_path / "content"
    content.mkdir()
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell(source)
            for source in (
                Repository.at(ADDRESS).install_cell(),
                "from collapse_lib.claims import Ledger\n"
                'Ledger.open("linear_vae/stationary_points", profile="smoke", dataset="digits")\n'
                "import importlib.metadata, json\n"
                'print(json.dumps([importlib.metadata.version("collapse-lib"), str(Ledger.__module__)]))',
            )
        ]
    )
    nbformat.write(notebook, content / "colab.ipynb")
    here = environment() | {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{project}.insteadOf",
        "GIT_CONFIG_VALUE_0": ADDRESS,
        "PIP_TARGET": str(tmp_path / "site"),
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip's way to say that the build is not isolated
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PYTHONPATH": "",
    }
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--stdout", "colab.ipynb"]
    executed = nbformat.reads(run(command, cwd=content, env=here, timeout=300), as_version=4)
    printed = "".join(output.text for output in executed.cells[-1].outputs)
    assert json.loads(printed)[1] == "collapse_lib.claims"
    assert (tmp_path / "site" / "collapse_lib" / "claims.py").is_file()
    assert (content / "vae-collapse" / "notebooks" / "linear_vae" / "paper.toml").is_file()
