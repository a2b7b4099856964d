"""Executes one notebook in a process of its own: `python -m collapse_lib.replication.worker`, a job on standard input.

The job is a line of JSON (see `Job`). Standard output carries events, a line of JSON each:

    {"event": "started", "cells": 7}                               the kernel is up; so many cells will be executed
    {"event": "cell", "number": 3, "code": "sweep = ..."}          cell 3 of these begins
    {"event": "failed", "error": "...", "traceback": ["...", ...]} and nothing more
    {"event": "done"}

The executed notebook is written to the job's `output` after every cell; whether it is a result, the parent decides.
Standard input stays open: its end means that the parent is gone, and then nothing of this run may go on computing.
"""

import json
import logging
import os
import re
import sys
import threading
import traceback
from dataclasses import asdict, dataclass
from typing import IO, Any

from collapse_lib.replication import notebook_file, processes
from collapse_lib.replication.parameters import Value

TRACEBACK_LINES = 12

_ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Job:
    """What a worker is told: paths as strings, `parameters` only those that are to be injected."""

    notebook: str
    output: str
    cwd: str
    parameters: dict[str, Value]

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class Events:
    """The way back to the parent."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def send(self, event: str, **more: object) -> None:
        print(json.dumps({"event": event} | more), file=self._stream, flush=True)


def execute(job: Job, events: Events) -> None:
    """Executes the notebook of `job` with papermill; raises what papermill raises."""
    # jsonschema, which nbformat imports, has an optional check of IRIs that compiles a grammar for seconds when it is
    # imported. A notebook has no IRIs.
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    import nbformat
    import papermill

    notebook = nbformat.read(job.notebook, as_version=4)
    # Without parameters papermill would leave those of an earlier run where they are.
    notebook.cells = notebook_file.without_injected(notebook)
    nbformat.write(notebook, job.output)

    # The parameters add a cell.
    total, begun = len(notebook_file.code_cells(notebook)) + bool(job.parameters), 0

    def on_notebook_start(**_: Any) -> None:
        events.send("started", cells=total)

    def on_cell_execute(cell: notebook_file.Cell, **_: Any) -> None:
        nonlocal begun
        begun += 1
        events.send("cell", number=begun, code=notebook_file.label(cell))

    # papermill takes braces in a path for its own placeholders
    output = job.output.replace("{", "{{").replace("}", "}}")
    papermill.execute_notebook(
        output,
        output,
        parameters=job.parameters,
        kernel_name="python3",
        language="python",
        cwd=job.cwd,
        progress_bar=False,
        log_output=True,
        # on a busy machine; the limit of time of the whole run is the parent's
        start_timeout=600,
        iopub_timeout=600,
        on_notebook_start=on_notebook_start,
        on_cell_execute=on_cell_execute,
    )


def explain(error: Exception) -> dict[str, Any]:
    """An exception as the report tells it: one line, and the last lines of the traceback."""
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    lines: list[str] = []
    if isinstance(error, PapermillExecutionError):
        told = f"{error.ename}: {error.evalue}"
        lines = _ANSI.sub("", "\n".join(error.traceback)).splitlines()
    elif isinstance(error, DeadKernelError):
        told = "the kernel died: it was killed (out of memory?) or crashed"
    elif isinstance(error, OSError):
        told = str(error)
    else:
        told = f"{type(error).__name__}: {error}"
        lines = "".join(traceback.format_exception(error)).splitlines()
    return {"error": told[:1000], "traceback": [line[:300] for line in lines[-TRACEBACK_LINES:]]}


def _end_with_parent() -> None:
    os.read(0, 1)  # below sys.stdin, whose lock would outlive this thread and abort the interpreter's exit
    processes.end_marked(os.environ.get(processes.MARK, ""))
    os._exit(1)


def main() -> int:
    """A job from standard input; exit status 1 if the notebook did not finish."""
    # Events keep the pipe to themselves: whatever a library or the kernel prints goes to the log.
    events = Events(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    job = Job(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        execute(job, events)
    except Exception as error:
        logging.exception("the notebook did not finish")
        events.send("failed", **explain(error))
        return 1
    events.send("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
