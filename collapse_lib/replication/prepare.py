"""Published notebooks for nbval: parameterised to a profile with their outputs kept, to be executed and compared.

    python -m collapse_lib.replication.prepare --profile smoke --out DIR && pytest --nbval-lax DIR

nbval compares the cells tagged nbval-check-output, and passes a notebook that was never executed: so one without these
outputs is refused here.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from collapse_lib.paper import PROFILES, Profile
from collapse_lib.replication import catalogue, notebook_file
from collapse_lib.replication.catalogue import CatalogueError, Notebook
from collapse_lib.replication.notebook_file import CHECKED

if TYPE_CHECKING:
    from nbformat import NotebookNode


class UnexecutedError(ValueError):
    """Notebooks whose checked cells have no outputs to compare with, one a line."""


def prepare(notebooks: Sequence[Notebook], profile: Profile, out: Path) -> list[Path]:
    """Writes each notebook, with the parameters of `profile`, to `out`/<paper>/<slug>.ipynb, its paper.toml beside it.

    Raises UnexecutedError, before anything is written, if one was never executed.
    """
    unexecuted = [notebook for notebook in notebooks if not _was_executed(notebook.path)]
    if unexecuted:
        raise UnexecutedError("\n".join(f"{notebook.path}: {_REMEDY}" for notebook in unexecuted))
    return [_prepare(notebook, profile, out) for notebook in notebooks]


_REMEDY = f"a cell tagged {CHECKED} has no output; publish it with run_all.py --profile paper --publish"


def _was_executed(path: Path) -> bool:
    return all(cell.get("outputs") for cell in notebook_file.tagged(notebook_file.read(path), CHECKED))


def _prepare(notebook: Notebook, profile: Profile, out: Path) -> Path:
    import nbformat

    target = out / f"{notebook.key}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(notebook.path.with_name("paper.toml"), target.with_name("paper.toml"))
    nbformat.write(parameterised(notebook, profile), target)
    return target


def parameterised(notebook: Notebook, profile: Profile) -> "NotebookNode":
    """The notebook as it is published, with the parameters of `profile` in a cell of their own."""
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    node = load_notebook_node(str(notebook.path))
    node.cells = notebook_file.without_injected(node)
    if parameters := notebook.overrides[profile]:
        node = parameterize_notebook(node, parameters, kernel_name="python3", language="python")
    return node


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m collapse_lib.replication.prepare", description="Prepare the published notebooks for nbval."
    )
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", help="glob or part of paper/notebook; default all")
    parser.add_argument("--profile", choices=PROFILES, default="smoke")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--notebooks", type=Path, default=catalogue.FOLDER, metavar="DIR")
    given = parser.parse_args(arguments)
    try:
        notebooks = catalogue.select(catalogue.load(given.notebooks), given.patterns)
        for path in prepare(notebooks, given.profile, given.out):
            print(path)
    except (CatalogueError, catalogue.PatternError, UnexecutedError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
