"""What `make test` relies on: nbval executes the prepared notebooks, and a verdict that changed is a failure."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_output
from replication_notebooks import Papers

from collapse_lib.replication import prepare

FLAGS = ["--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider", "-p", "no:xdist", "--color=no"]
LEDGER = """
class ledger:
    verdicts = lambda: print("A-1", "holds:" if n_images >= {least} else "FAILS:", "there are images")
"""


def publish(path: Path, verdict: str) -> None:
    """Stores `verdict` as what the notebook printed when it was published."""
    notebook = nbformat.read(path, as_version=4)
    cell = notebook.cells[-1]
    cell.outputs, cell.execution_count = [new_output("stream", name="stdout", text=f"{verdict}\n")], 1
    nbformat.write(notebook, path)


def test_the_verdicts_of_the_published_run_must_come_out_again(tmp_path):
    papers = Papers(tmp_path / "notebooks")
    publish(papers.add("paper/same", ledger=LEDGER.format(least=1)), "A-1 holds: there are images")
    # True at the paper's 1000 images, not at the 10 of the smoke profile.
    publish(papers.add("paper/changed", ledger=LEDGER.format(least=500)), "A-1 holds: there are images")

    out = tmp_path / "prepared"
    assert prepare.main(["--profile", "smoke", "--notebooks", str(papers.root), "--out", str(out)]) == 0
    pytest = subprocess.run(
        [sys.executable, "-m", "pytest", *FLAGS, str(out)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert pytest.returncode == 1, pytest.stdout + pytest.stderr
    assert re.findall(r"^FAILED (\S+)::", pytest.stdout, flags=re.MULTILINE) == ["prepared/paper/changed.ipynb"]
    assert "A-1 FAILS: there are images" in pytest.stdout
    assert "1 failed, 11 passed" in pytest.stdout
