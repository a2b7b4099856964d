"""The worked example of notebooks/README.md, written out: a paper of one's own to begin with.

    python -m collapse_lib.replication.example notebooks/two_directions

The last part of the folder is the paper's name. What is there already is not overwritten.
"""

import argparse
import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from collapse_lib.replication import catalogue

GUIDE = catalogue.FOLDER / "README.md"
NAME = "two_directions"  # of the paper, in the guide


def write(folder: Path, guide: str) -> list[Path]:
    """Writes the paper.toml and the notebook of `guide` to `folder`; their paths.

    Raises FileExistsError, before anything is written, if one is there already; OSError if one cannot be written.
    """
    toml, cells = (_block(guide, language) for language in ("toml", "python"))
    (slug,) = tomllib.loads(toml)["notebooks"]
    paths = [folder / "paper.toml", folder / f"{slug}.ipynb"]
    for path in paths:
        if path.exists():
            raise FileExistsError(f"{path}: is there already; name another folder, or move it away")
    folder.mkdir(parents=True, exist_ok=True)
    paths[0].write_text(toml, encoding="utf-8")
    nbformat.write(notebook(cells.replace(NAME, folder.name)), paths[1])
    return paths


def notebook(cells: str) -> NotebookNode:
    """The notebook of a text in which `# %%` begins a cell and names its tag, or says that it is markdown."""
    made = new_notebook()
    for cell in re.split(r"^# %%", cells, flags=re.MULTILINE)[1:]:
        kind, _, source = cell.partition("\n")
        if kind.strip() == "[markdown]":
            made.cells.append(new_markdown_cell(re.sub(r"^# ?", "", source.strip(), flags=re.MULTILINE)))
        else:
            made.cells.append(new_code_cell(source.strip(), metadata={"tags": kind.split()} if kind.strip() else {}))
    return made


def _block(guide: str, language: str) -> str:
    (text,) = re.findall(rf"^```{language}\n(.*?)^```$", guide, flags=re.DOTALL | re.MULTILINE)
    return str(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m collapse_lib.replication.example", description="Write the example of notebooks/README.md."
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of the new paper, as notebooks/two_directions")
    folder = parser.parse_args(arguments).folder.resolve()
    try:
        for path in write(folder, GUIDE.read_text(encoding="utf-8")):
            print(path)
    except OSError as error:
        print(f"{error.filename}: {error.strerror}" if error.strerror else error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
