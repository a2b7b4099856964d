"""A notebook file as data: what it says, what it shows, and how it is written without ever being half there.

Notebooks are read as plain JSON: a run that finds everything up to date should not pay for importing nbformat.
The helpers take either form of a notebook, since text in JSON is a string or a list of lines and joins to the same.
"""

import base64
import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Cell = Mapping[str, Any]
NotebookJSON = dict[str, Any]

PARAMETERS = "parameters"
INJECTED = "injected-parameters"  # papermill's tag of the cell it writes after the parameters cell
CHECKED = "nbval-check-output"


class NotebookFileError(ValueError):
    """A file that is no notebook."""


def read(path: Path) -> NotebookJSON:
    """The notebook as JSON; raises NotebookFileError if it is not one of format 4."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise NotebookFileError(f"{path}: not a notebook ({error}); restore the file") from None
    match notebook:
        case {"nbformat": 4, "metadata": {}, "cells": list(cells)} if all(map(_is_cell, cells)):
            return dict(notebook)
    raise NotebookFileError(f"{path}: not a notebook of format 4; open it in Jupyter and save it")


def _is_cell(cell: object) -> bool:
    return isinstance(cell, dict) and {"cell_type", "metadata", "source"} <= cell.keys()


def write_atomically(path: Path, content: str) -> None:
    """Writes beside `path`, then renames: a reader sees the old file or the new one, and a full disk leaves the old."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(content, encoding="utf-8")
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def dumps(notebook: Mapping[str, Any]) -> str:
    """The notebook as the text of its file; the same content gives the same text."""
    return json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def text(value: str | list[str]) -> str:
    """A source or an output, which nbformat keeps as one string or as lines."""
    return "".join(value)


def tags(cell: Cell) -> list[str]:
    """The tags of a cell, none for most."""
    return list(cell["metadata"].get("tags", []))


def tagged(notebook: Mapping[str, Any], tag: str) -> list[Cell]:
    """The cells that carry `tag`."""
    return [cell for cell in notebook["cells"] if tag in tags(cell)]


def code_cells(notebook: Mapping[str, Any]) -> list[Cell]:
    """The cells that a run executes: code that is not empty."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code" and text(cell["source"]).strip()]


def without_injected(notebook: Mapping[str, Any]) -> list[Any]:
    """The cells that the author wrote, without the parameters of an earlier run."""
    return [cell for cell in notebook["cells"] if INJECTED not in tags(cell)]


def content(notebook: Mapping[str, Any]) -> list[tuple[str, list[str], str]]:
    """Kind, tags and source of every cell that the author wrote: what a change of makes a result out of date."""
    return [(cell["cell_type"], tags(cell), text(cell["source"])) for cell in without_injected(notebook)]


def outputs(notebook: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Every output of every cell, in order."""
    for cell in notebook["cells"]:
        yield from cell.get("outputs", [])


def images(notebook: Mapping[str, Any]) -> list[bytes]:
    """Every PNG that the notebook shows, in order."""
    shown = (output.get("data", {}).get("image/png") for output in outputs(notebook))
    return [base64.b64decode(text(image)) for image in shown if image]


def label(cell: Cell) -> str:
    """The first line of a cell that is code, to recognise the cell by."""
    lines = [line.strip() for line in text(cell["source"]).splitlines()]
    return next((line for line in lines if line and not line.startswith(("#", "%"))), "")
