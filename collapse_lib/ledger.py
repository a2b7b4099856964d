"""The ledger of an executed notebook: what was measured, what was expected, what follows; stored, read back and shown.

`collapse_lib.claims` fills it in. Shown in a notebook it is one output with the table for readers (HTML, plain text)
and the same content as JSON, so that the executed notebook is the only record of its run.
"""

import html
import io
import math
from collections.abc import Mapping
from typing import Any, Literal

import rich.box
import rich.console
import rich.table
from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from collapse_lib.paper import Expected, Kind, Profile

MIME = "application/vnd.collapse-lib.ledger+json"

Verdict = Literal["holds", "FAILS", "differs", "not judged"]

# About 4.3:1 against white and against JupyterLab's dark page alike; the word carries the meaning, the colour helps.
_COLOURS: dict[Verdict, str] = {"holds": "#2b8a57", "FAILS": "#d9453d", "differs": "#a66a00", "not judged": "#7b7b7b"}


class ClaimError(ValueError):
    """A claim that does not exist, was not measured, or was measured wrongly; the text names the claims there are."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Measured(_Entry):
    """A value over `n` seeds: mean, standard deviation (n - 1 in the denominator; None for one seed), extremes.

    Truth values are kept as 0 and 1, so that the mean is the share that is true.
    """

    n: int
    mean: FiniteFloat
    sd: FiniteFloat | None = None
    min: FiniteFloat
    max: FiniteFloat


class Entry(_Entry):
    """One claim with its measurement (None if not recorded) and its verdict, which `note` explains where it must."""

    id: str
    text: str
    kind: Kind
    expected: Expected
    judge: Literal["every", "mean"]
    verdict: Verdict
    note: str | None = None
    measured: Measured | None = None
    reported: str | None = None
    source: str | None = None
    why: str | None = None


class LedgerRecord(_Entry):
    """All claims of one notebook's run, in the order of `paper.toml`."""

    notebook: str
    profile: Profile
    dataset: str
    claims: list[Entry]

    @property
    def failed(self) -> list[str]:
        """Ids of the claims that fail."""
        return [claim.id for claim in self.claims if claim.verdict == "FAILS"]

    def verdict_lines(self) -> list[str]:
        """One line a mechanism claim, the same in every profile if the same follows: nothing measured is in it."""
        return [f"{claim.id} {claim.verdict}: {claim.text}" for claim in self.claims if claim.kind == "mechanism"]

    def __str__(self) -> str:
        return _as_text(self)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        stored = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return {"text/html": _as_html(self), "text/plain": _as_text(self), MIME: stored}


def read_ledger(notebook: Mapping[str, Any]) -> LedgerRecord | None:
    """The ledger that an executed notebook (as nbformat reads it) shows; None if it shows none.

    Raises ClaimError if it shows more than one, or one of another version of this library.
    """
    outputs = (output for cell in notebook["cells"] for output in cell.get("outputs", ()))
    stored = [output["data"][MIME] for output in outputs if MIME in output.get("data", {})]
    if not stored:
        return None
    if len(stored) > 1:
        raise ClaimError(f"the notebook shows {len(stored)} ledgers; call show() once")
    try:
        return LedgerRecord.model_validate(stored[0])
    except ValidationError as error:
        wrong = ", ".join(".".join(map(str, each["loc"])) for each in error.errors())
        raise ClaimError(f"the notebook's ledger cannot be read (see {wrong}); run the notebook again") from error


def format_number(value: float, expected: Expected | None = None, spread: float | None = None) -> str:
    """`value` with as many digits as matter: four, or one below the tolerance, or as the second digit of the spread.

    More are shown where it takes more for the printed number to be judged as the true one: 1.50001 against <= 1.5.
    """
    if value == 0:
        return "0"
    if value == round(value) and abs(value) < 1e15 and not spread:
        return f"{value:.0f}"
    magnitude = _magnitude(value)
    if spread:
        digits = magnitude - _magnitude(spread) + 2
    elif expected is not None and expected.tolerance:
        digits = max(4, magnitude - _magnitude(expected.tolerance) + 2)
    else:
        digits = 4
    for count in range(min(max(digits, 2), 17), 18):
        shown = _with_digits(value, count, magnitude)
        if expected is None or expected.holds(float(shown)) == expected.holds(value):
            break
    return shown


def _magnitude(value: float) -> int:
    return math.floor(math.log10(abs(value)))


def _with_digits(value: float, digits: int, magnitude: int) -> str:
    if -4 <= magnitude < 7:
        return f"{value:.{max(0, digits - 1 - magnitude)}f}"
    return f"{value:.{digits - 1}e}"


def measured_words(claim: Entry) -> tuple[str, str]:
    """What was measured, with its spread, and a remark: the extremes over seeds."""
    value, expected = claim.measured, claim.expected
    if value is None:
        return "–", ""
    if expected.is_ is not None:
        return (
            str(value.mean == 1).lower() if value.n == 1 else f"{round(value.mean * value.n)} of {value.n} true"
        ), ""
    if value.sd is None:
        return format_number(value.mean, expected), ""
    extremes = f"{value.n} seeds, {format_number(value.min, expected)} to {format_number(value.max, expected)}"
    return f"{format_number(value.mean, expected, value.sd)} ± {value.sd:.2g}", extremes


_HEADINGS = ("claim", "document", "measured (± sd over seeds)", "expected", "verdict")


def _cells(claim: Entry) -> list[tuple[str, str]]:
    """What a row says: of each column, the main words and the remark below them."""
    expected = str(claim.expected) + (", mean over seeds" if claim.judge == "mean" else "")
    return [
        (claim.id, claim.text),
        (claim.reported or "–", claim.source or ""),
        measured_words(claim),
        (expected, claim.why or ""),
        (claim.verdict, claim.note or ""),
    ]


def _caption(record: LedgerRecord) -> str:
    return f"{record.notebook}, profile {record.profile}, data set {record.dataset}"


def _as_text(record: LedgerRecord) -> str:
    table = rich.table.Table(*_HEADINGS, title=_caption(record), box=rich.box.ASCII2, show_lines=True)
    for claim in record.claims:
        table.add_row(*("\n".join(filter(None, cell)) for cell in _cells(claim)))
    out = io.StringIO()
    # Inside a kernel rich would display the table by itself.
    console = rich.console.Console(
        file=out, width=120, force_jupyter=False, color_system=None, markup=False, emoji=False
    )
    console.print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _as_html(record: LedgerRecord) -> str:
    """A table in the page's own colours: it inherits the text colour and has no background, light or dark."""
    style = "text-align:left; vertical-align:top; padding:0.4em 0.8em; border-bottom:1px solid rgba(128,128,128,0.4)"
    rows = ["<tr>" + "".join(f'<th style="{style}">{heading}</th>' for heading in _HEADINGS) + "</tr>"]
    for claim in record.claims:
        cells = []
        for heading, (words, remark) in zip(_HEADINGS, _cells(claim), strict=True):
            words = html.escape(words)
            if heading == "verdict":
                words = f'<b style="color:{_COLOURS[claim.verdict]}">{words}</b>'
            elif heading == "claim":
                words = f"<b>{words}</b>"
            remark = f"<br><small>{html.escape(remark)}</small>" if remark else ""
            cells.append(f'<td style="{style}">{words}{remark}</td>')
        rows.append("<tr>" + "".join(cells) + "</tr>")
    return f"<table><caption>{html.escape(_caption(record))}</caption>{''.join(rows)}</table>"
