"""Puts an executed notebook back among the notebooks, for readers: its outputs without what changes from run to run."""

from pathlib import Path
from typing import Any

from collapse_lib.replication import notebook_file
from collapse_lib.replication.outcome import Outcome
from collapse_lib.replication.plan import METADATA

_KEPT = ("profile", "parameters", "device")  # of the runner's metadata: how the outputs came about, not when


class PublishError(ValueError):
    """A result that must not be published."""


def publish(outcome: Outcome) -> Path:
    """Writes the result of `outcome` over its notebook; the same result gives the same bytes.

    Raises PublishError for what is no good result, and if the notebook was edited since it ran; OSError if the notebook
    cannot be written, which then is as it was.
    """
    notebook = outcome.notebook
    if outcome.result is None or not outcome.good:
        failing = f"claims that fail: {', '.join(outcome.ledger.failed)}" if outcome.ledger else f"it {outcome.state}"
        raise PublishError(f"{notebook.key} is not published, {failing}")
    executed = notebook_file.read(outcome.result)
    if notebook_file.content(executed) != notebook_file.content(notebook_file.read(notebook.path)):
        raise PublishError(f"{notebook.key} is not published, {notebook.path} was edited since it ran; run again")
    notebook_file.write_atomically(notebook.path, notebook_file.dumps(cleaned(executed)))
    return notebook.path


def cleaned(executed: dict[str, Any]) -> dict[str, Any]:
    """`executed` without timestamps, kernel details, progress bars and what went to stderr.

    Cell ids, tags and execution counts stay, and so does the cell of injected parameters: a reader must see the sizes
    that the outputs belong to. The next run takes that cell out before it puts in its own.
    """
    kept = executed["metadata"].get(METADATA, {})
    return executed | {
        "cells": [_cleaned_cell(cell) for cell in executed["cells"]],
        "metadata": {
            METADATA: {name: kept[name] for name in _KEPT if name in kept},
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
    }


def _cleaned_cell(cell: dict[str, Any]) -> dict[str, Any]:
    tags = notebook_file.tags(cell)
    cell = cell | {"metadata": {"tags": tags} if tags else {}}
    if notebook_file.INJECTED in tags:
        cell["id"] = notebook_file.INJECTED  # papermill draws a new one for every run
        cell["source"] = "".join(cell["source"]).rstrip("\n").splitlines(keepends=True)  # as the formatter wants it
    if "outputs" in cell:
        cell["outputs"] = [output for output in cell["outputs"] if not _is_noise(output)]
    return cell


def _is_noise(output: dict[str, Any]) -> bool:
    is_progress_bar = "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    return is_progress_bar or output.get("name") == "stderr"
