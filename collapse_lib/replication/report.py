"""The report of a run: a table for the terminal, report.json for programs, report.html to read without a network."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

from collapse_lib.checkout import library_commit
from collapse_lib.ledger import LedgerRecord
from collapse_lib.replication import display, notebook_file, page, processes, record
from collapse_lib.replication.folder import Folder
from collapse_lib.replication.outcome import Failure, Outcome


@dataclass(frozen=True)
class Report:
    """What a run under one profile came to; `outcomes` has the notebooks that were not selected, too."""

    profile: str
    device: str
    command: str
    outcomes: Sequence[Outcome]
    interrupted: bool = False

    @property
    def good(self) -> bool:
        """Every selected notebook has a result, and no claim of theirs fails."""
        return not self.interrupted and all(outcome.good for outcome in self.outcomes if outcome.selected)

    @property
    def sum_of_seconds(self) -> float:
        """What the results took: each in the call that it came from, those side by side counted one after the other."""
        return round(sum(outcome.seconds or 0.0 for outcome in self.outcomes if outcome.result is not None), 2)

    def write(self, folder: Folder) -> dict[str, Any]:
        """Writes both files, each as a whole or not at all, and returns the content of report.json; OSError if not."""
        data = self.to_json(folder.root, datetime.now(UTC).isoformat(timespec="seconds"))
        notebook_file.write_atomically(folder.report_json, json.dumps(data, indent=1, ensure_ascii=False) + "\n")
        page.write(folder, data, self.outcomes)
        return data

    def table(self) -> Table:
        """What was selected, a row a notebook."""
        table = Table("notebook", "state", "time", "claims", box=None, pad_edge=False)
        table.columns[0].overflow = "fold"
        for outcome in self.outcomes:
            if outcome.selected:
                seconds = "" if outcome.seconds is None else display.duration(outcome.seconds)
                table.add_row(outcome.notebook.key, display.state(outcome), seconds, display.claims(outcome))
        return table

    def to_json(self, root: Path, written: str) -> dict[str, Any]:
        commit = library_commit()
        return {
            "format": record.REPORT,
            "version": record.VERSION,
            "written": written,
            "profile": self.profile,
            "good": self.good,
            "interrupted": self.interrupted,
            "sum_of_seconds": self.sum_of_seconds,
            "provenance": {
                "command": self.command,
                "commit": f"{commit.sha[:12]}{'-dirty' if commit.dirty else ''}" if commit else None,
                "collapse_lib": version("collapse-lib"),
                "python": platform.python_version(),
                "torch": version("torch"),
                "platform": platform.platform(),
                "device": self.device,
                "cores": processes.cores(),
            },
            "notebooks": [_outcome_json(outcome, root) for outcome in self.outcomes],
        }


def _outcome_json(outcome: Outcome, root: Path) -> dict[str, Any]:
    ledger = _ledger_json(outcome.ledger)
    return {
        "notebook": outcome.notebook.key,
        "title": outcome.notebook.entry.title,
        "replicates": outcome.notebook.entry.replicates,
        "selected": outcome.selected,
        "state": outcome.state.value,
        "seconds": outcome.seconds,
        "result": _relative(outcome.result, root),
        "dataset": ledger.get("dataset"),
        "device": outcome.device,
        "parameters": outcome.parameters,
        "claims": ledger.get("claims", []),
        "failure": _failure_json(outcome.failure, root) if outcome.failure else None,
    }


def _ledger_json(ledger: LedgerRecord | None) -> dict[str, Any]:
    return ledger.model_dump(mode="json", by_alias=True, exclude_none=True) if ledger else {}


def _failure_json(failure: Failure, root: Path) -> dict[str, Any]:
    return {
        "error": failure.error,
        "cell": failure.cell,
        "traceback": list(failure.traceback),
        "log": _relative(failure.log, root),
        "notebook": _relative(failure.notebook, root),
        "claims": _ledger_json(failure.ledger).get("claims", []),  # recorded before it failed; no result
    }


def _relative(path: Path | None, root: Path) -> str | None:
    return None if path is None else Path(os.path.relpath(path, root)).as_posix()
