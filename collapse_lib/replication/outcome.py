"""What became of a notebook, and whether what it left behind is a result."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from collapse_lib.ledger import ClaimError, LedgerRecord, read_ledger
from collapse_lib.replication import notebook_file
from collapse_lib.replication.catalogue import Notebook
from collapse_lib.replication.notebook_file import CHECKED
from collapse_lib.replication.parameters import Value


class State(StrEnum):
    """How the run of a notebook ended, or what stands of an earlier one; its value is what a reader sees."""

    RAN = "ran"
    CACHED = "cached"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    KILLED = "killed"
    INTERRUPTED = "interrupted"
    STALE = "stale"  # not selected, and what it depends on has changed
    NOT_RUN = "not run"  # not selected, and without a result


@dataclass(frozen=True)
class Failure:
    """Why there is no result: one line, where it happened, the end of the traceback, and the files to look into."""

    state: State  # failed, timed out or killed
    error: str
    cell: str | None = None
    traceback: tuple[str, ...] = ()
    log: Path | None = None
    notebook: Path | None = None
    ledger: LedgerRecord | None = None  # what it had recorded, which may not be all


@dataclass(frozen=True)
class Outcome:
    """One line of the final table; `result` is the executed notebook, if there is one for these parameters."""

    notebook: Notebook
    state: State
    seconds: float | None = None
    ledger: LedgerRecord | None = None
    failure: Failure | None = None
    result: Path | None = None
    selected: bool = True
    device: str | None = None  # where the result was computed
    parameters: Mapping[str, Value] | None = None  # of the result

    @property
    def recorded(self) -> LedgerRecord | None:
        """The ledger of the result, or else what a run that failed had recorded."""
        return self.ledger or (self.failure.ledger if self.failure else None)

    @property
    def good(self) -> bool:
        """There is a result, and no claim fails."""
        return self.state in (State.RAN, State.CACHED) and self.ledger is not None and not self.ledger.failed


def shortcomings(executed: Mapping[str, Any], notebook: Notebook, parameters: Mapping[str, Value]) -> list[str]:
    """What an executed notebook lacks of what its entry in paper.toml promises; empty if it is a result."""
    missing = [
        f"a cell shows an error: {output.get('ename')}: {output.get('evalue')}"
        for output in notebook_file.outputs(executed)
        if output["output_type"] == "error"
    ]
    idle = [cell for cell in notebook_file.code_cells(executed) if cell.get("execution_count") is None]
    if idle:
        missing.append(f"{len(idle)} cells were not executed; first: {notebook_file.label(idle[0])}")
    if not all(cell.get("outputs") for cell in notebook_file.tagged(executed, CHECKED)):
        missing.append(f"a cell tagged {CHECKED} printed nothing")
    images = len(notebook_file.images(executed))
    if images < notebook.entry.figures:
        missing.append(f"{images} figures, but paper.toml promises at least {notebook.entry.figures}")
    try:
        ledger = read_ledger(executed)
    except ClaimError as error:
        return [*missing, str(error)]
    return missing + (
        ["no ledger; call ledger.show()"] if ledger is None else _ledger_gaps(ledger, notebook, parameters)
    )


def _ledger_gaps(ledger: LedgerRecord, notebook: Notebook, parameters: Mapping[str, Value]) -> list[str]:
    gaps = []
    ran = (notebook.key, parameters["profile"], parameters["dataset"])
    if (told := (ledger.notebook, ledger.profile, ledger.dataset)) != ran:
        gaps.append(f"the ledger is of {' '.join(told)}, the run of {' '.join(map(str, ran))}")
    recorded = {claim.id for claim in ledger.claims if claim.measured is not None or claim.verdict == "not judged"}
    if absent := [claim for claim in notebook.entry.claims if claim not in recorded]:
        gaps.append(f"claims not recorded: {', '.join(absent)}")
    return gaps
