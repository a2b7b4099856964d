"""What stays of a run: results/<profile>.json, which is report.json without texts, figures and paths of the machine.

The models below read either file: a record is a report in which only what can be compared is left.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, ValidationError

from collapse_lib.ledger import Measured, Verdict
from collapse_lib.paper import PROFILES, Profile
from collapse_lib.replication import notebook_file
from collapse_lib.replication.catalogue import Notebook
from collapse_lib.replication.outcome import State
from collapse_lib.replication.parameters import Value

REPORT, RECORD = "collapse-lib replication report", "collapse-lib replication record"

VERSION = 2
"""Of the form of both files; raised whenever a reader of one form would stumble over the other."""

DIGITS = 7
"""Significant digits of a measured number in a record, those of single precision."""


class RecordError(ValueError):
    """A file that is no report and no record of this version; the text says what to do."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Claim(_Part):
    """A claim with its verdict; `measured` is None where nothing was recorded for it."""

    id: str
    verdict: Verdict
    measured: Measured | None = None


class NotebookResult(_Part):
    """What a run left of one notebook; without a result it has no claims, and the state says why."""

    notebook: str
    state: State
    dataset: str | None = None
    device: str | None = None
    seconds: NonNegativeFloat | None = None
    parameters: dict[str, Value] | None = None
    claims: list[Claim]


class Provenance(_Part):
    """With what a run was made; the platform is left out, since a kernel can be one machine's own."""

    commit: str | None = None
    collapse_lib: str
    python: str
    torch: str
    device: str
    cores: int  # of the machine, whatever the device


class Record(_Part):
    """A run of all notebooks under one profile."""

    format: Literal["collapse-lib replication report", "collapse-lib replication record"]
    version: Literal[2]
    profile: Profile
    written: datetime
    sum_of_seconds: NonNegativeFloat
    provenance: Provenance
    notebooks: list[NotebookResult]

    def count(self, verdict: Verdict) -> int:
        return sum(claim.verdict == verdict for each in self.notebooks for claim in each.claims)


def read(path: Path) -> Record:
    """The record or report at `path`, or the report in the folder `path`; raises RecordError.

    In a folder without a report it may be that of the one profile below it that has one.
    """
    file = _report_in(path) if path.is_dir() else path
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecordError(
            f"{file}: no such file; name a report.json, a folder with one, or a file of results/"
        ) from None
    except OSError as error:
        raise RecordError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise RecordError(f"{file}: not JSON; name a report.json that run_all.py wrote") from None
    if not isinstance(data, dict) or data.get("format") not in (REPORT, RECORD):
        raise RecordError(f"{file}: neither a report nor a record; name a report.json that run_all.py wrote")
    if data.get("version") != VERSION:
        raise RecordError(
            f"{file}: of version {data.get('version')}, and this library reads version {VERSION}; "
            "write it anew with this library: its run_all.py reuses results that still stand"
        )
    try:
        return Record.model_validate(data)
    except ValidationError as error:
        wrong = ", ".join(".".join(map(str, each["loc"])) for each in error.errors()[:5])
        raise RecordError(f"{file}: damaged (see {wrong}); write it anew with run_all.py") from None


def _report_in(folder: Path) -> Path:
    if (folder / "report.json").exists():
        return folder / "report.json"
    below = [folder / profile for profile in PROFILES if (folder / profile / "report.json").exists()]
    if len(below) > 1:
        raise RecordError(f"{folder}: has several reports; name one of {', '.join(map(str, below))}")
    return (below[0] if below else folder) / "report.json"


def write(path: Path, report: Mapping[str, Any]) -> None:
    """Writes the record of a run from the content of its report.json; OSError if that cannot be."""
    record = Record.model_validate({**report, "format": RECORD}).model_dump(mode="json", exclude_none=True)
    for notebook in record["notebooks"]:
        for claim in notebook["claims"]:
            if "measured" in claim:
                claim["measured"] = {name: _rounded(value) for name, value in claim["measured"].items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    notebook_file.write_atomically(path, _dumps(record) + "\n")


def strangers(record: Record, notebooks: Sequence[Notebook]) -> list[str]:
    """Notebooks and claims of a record that are not among `notebooks`: then the record is out of date."""
    claims = {notebook.key: notebook.entry.claims for notebook in notebooks}
    return [
        name
        for each in record.notebooks
        for name in ([each.notebook] if each.notebook not in claims else _unknown(each, claims[each.notebook]))
    ]


def _unknown(result: NotebookResult, claims: Mapping[str, object]) -> list[str]:
    return [f"{result.notebook} {claim.id}" for claim in result.claims if claim.id not in claims]


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _dumps(record: Mapping[str, Any]) -> str:
    """JSON with a line for each claim and for all parameters, so that the difference of two records can be read."""
    lines: list[str] = []

    def line(value: object) -> str:
        lines.append(json.dumps(value))
        return f"line {len(lines) - 1}"

    notebooks = [
        each
        | ({"parameters": line(each["parameters"])} if "parameters" in each else {})
        | {"claims": [line(claim) for claim in each["claims"]]}
        for each in record["notebooks"]
    ]
    text = json.dumps({**record, "notebooks": notebooks}, indent=1)
    return re.sub(r'"line (\d+)"', lambda place: lines[int(place[1])], text)
