"""The notebooks away from the checkout: a copy of a folder anywhere, the library installed from its wheel."""

import json
import re
import shutil
import sys

import nbformat
import pytest
from installed import ROOT, environment, install_wheel, run

from collapse_lib.replication import catalogue, notebook_file, prepare
from collapse_lib.replication.notebook_file import CHECKED

FASTEST = "linear_vae/stationary_points"

# One child a notebook, forked before any of the library is imported: each starts fresh, what is slow is loaded once.
FIRST_CELLS = """
import json, os, sys, traceback
import IPython.display, matplotlib.pyplot, pandas, pydantic, scipy.stats, sklearn.decomposition, torch, torchvision

cells = json.load(sys.stdin)
assert not [name for name in sys.modules if name.startswith("collapse_lib")]
failed = []
for key, source in cells.items():
    if not os.fork():
        try:
            exec(compile(source, key, "exec"), {"__name__": "__main__"})
            print(json.dumps([key, sys.modules["collapse_lib"].__file__]), flush=True)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if os.wait()[1]:
        failed.append(key)
sys.exit(" ".join(failed) or 0)
"""


def first_cell(notebook: catalogue.Notebook) -> str:
    cells = nbformat.read(notebook.path, as_version=4).cells
    return str(next(cell.source for cell in cells if cell.cell_type == "code"))


def verdicts(notebook: nbformat.NotebookNode) -> str:
    (cell,) = notebook_file.tagged(notebook, CHECKED)
    return str(cell.outputs[0].text)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder that the library is installed in."""
    return install_wheel(tmp_path_factory.mktemp("wheel"))


def test_the_first_cell_of_every_notebook_works_with_the_installed_library(site, tmp_path):
    cells = {notebook.key: first_cell(notebook) for notebook in catalogue.load(ROOT / "notebooks")}
    printed = run(
        [sys.executable, "-c", FIRST_CELLS], input=json.dumps(cells), cwd=tmp_path, env=environment(site), timeout=300
    )
    ran = dict(json.loads(line) for line in printed.splitlines())
    assert ran == dict.fromkeys(cells, str(site / "collapse_lib" / "__init__.py"))


def test_a_copied_folder_runs_with_the_installed_library(site, tmp_path):
    """Its paper.toml comes along; nothing is looked for in the checkout, which the installed library does not know."""
    paper, slug = FASTEST.split("/")
    (notebook,) = catalogue.select(catalogue.load(ROOT / "notebooks"), [FASTEST])
    prepare.prepare([notebook], "smoke", tmp_path / "prepared")
    folder = tmp_path / paper
    shutil.copytree(tmp_path / "prepared" / paper, folder)
    before = {path.name for path in folder.iterdir()}

    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--stdout", f"{slug}.ipynb"]
    executed = nbformat.reads(run(command, cwd=folder, env=environment(site), timeout=300), as_version=4)

    assert verdicts(executed) == verdicts(nbformat.read(notebook.path, as_version=4))
    assert len(re.findall(r"^\S+ holds: ", verdicts(executed), flags=re.MULTILINE)) > 5
    assert {path.name for path in folder.iterdir()} == before
