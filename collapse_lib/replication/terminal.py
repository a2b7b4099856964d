"""What run_all.py says on a terminal or in a log, apart from the progress of a run."""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from collapse_lib.ledger import Entry, format_number
from collapse_lib.replication.catalogue import Notebook
from collapse_lib.replication.compare import Comparison
from collapse_lib.replication.display import duration
from collapse_lib.replication.plan import Planned
from collapse_lib.replication.record import Record
from collapse_lib.replication.report import Report


def console(*, stderr: bool = False) -> Console:
    """Where to print: colours on a terminal, plain and wide lines in a log."""
    # In a log a table may be as wide as it needs; brackets are lists, not styles.
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, width=None if terminal else 160, markup=False, highlight=False)


def say(out: Console, line: str) -> None:
    """One line, wrapped by the terminal alone."""
    out.print(line, soft_wrap=True)


def show_list(out: Console, notebooks: Sequence[Notebook]) -> None:
    """What there is."""
    table = Table("notebook", "title", "replicates", box=None, pad_edge=False)
    table.columns[0].overflow = "fold"
    for notebook in notebooks:
        table.add_row(notebook.key, notebook.entry.title, notebook.entry.replicates)
    out.print(table)


def show_plan(out: Console, planned: Sequence[Planned]) -> None:
    """What a run would do, and why."""
    table = Table("notebook", "would be", "because", "device", "time", "parameters", box=None, pad_edge=False)
    table.columns[0].overflow = "fold"
    for each in planned:
        about = "" if each.estimate is None else f"about {duration(each.estimate)}"
        changes = ", ".join(f"{name}={value!r}" for name, value in each.task.injected.items())
        table.add_row(each.task.key, "run" if each.why else "cached", each.why, each.task.device, about, changes)
    out.print(table)


def show_report(out: Console, report: Report) -> None:
    """How each notebook ended, then every failure and every claim that fails."""
    out.print(report.table())
    for outcome in report.outcomes:
        key, failure = outcome.notebook.key, outcome.failure
        if failure is not None:
            say(out, f"\n{key} {failure.state}: {failure.error}")
            where = [f"in {failure.cell}"] if failure.cell else []
            files = [f"log: {failure.log}"] if failure.log else []
            for line in (*where, *failure.traceback, *files):
                say(out, f"  {line}".rstrip())
        if outcome.selected and outcome.recorded is not None:
            for claim in outcome.recorded.claims:
                if claim.verdict == "FAILS":
                    say(out, f"\n{key} {claim.id} FAILS: {claim.text}\n  {_measured(claim)}")


def _measured(claim: Entry) -> str:
    measured = "not measured" if claim.measured is None else f"measured {format_number(claim.measured.mean)}"
    note = f" ({claim.note})" if claim.note else ""
    return f"{measured}, expected {claim.expected}{note}"


def show_comparison(out: Console, old: Record, new: Record, comparison: Comparison) -> None:
    """Both runs, then what changed between them."""
    for name, record in (("old", old), ("new", new)):
        made = record.provenance
        say(
            out,
            f"{name}: profile {record.profile}, {made.device}, {record.written:%Y-%m-%d %H:%M} UTC, "
            f"commit {made.commit or 'unknown'}, {duration(record.sum_of_seconds)} in all",
        )
    if old.profile != new.profile:
        say(
            out,
            "the profiles differ, so other sizes and other claims are judged: compare runs of one profile if you can",
        )
    if comparison.changes:
        out.print()
        out.print(comparison.table())
    if comparison.parameters:
        say(out, "\nparameters that differ")
    for key, differing in comparison.parameters.items():
        say(out, f"{key}  {', '.join(differing)}")
    say(out, f"\n{comparison.summary()}")
