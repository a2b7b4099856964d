"""The command line of run_all.py.

Exit status: 0 if every selected notebook has a result and every verdict is as expected, 1 if not, 2 if nothing was run
because something in the command, the notebooks or the machine has to be put right first, 130 after Ctrl-C.
"""

import argparse
import asyncio
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from collapse_lib.ledger import Entry, format_number
from collapse_lib.paper import PROFILES
from collapse_lib.replication import catalogue, plan, processes
from collapse_lib.replication.catalogue import CatalogueError, Notebook, PatternError
from collapse_lib.replication.display import Display, duration
from collapse_lib.replication.execution import Execution
from collapse_lib.replication.folder import Folder, FolderError
from collapse_lib.replication.outcome import Outcome, State
from collapse_lib.replication.plan import Planned, Settings
from collapse_lib.replication.publish import PublishError, publish
from collapse_lib.replication.report import Report


class UsageError(ValueError):
    """A command that cannot be carried out as given."""


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    given = _parser().parse_args(arguments)
    try:
        _check(given)
        notebooks = catalogue.load(given.notebooks.resolve())
        selected = catalogue.select(notebooks, given.patterns)
        if given.list:
            _show_list(_console(), selected)
            return 0
        return _run(given, arguments, notebooks, selected)
    except (CatalogueError, PatternError, UsageError, FolderError) as error:
        _say(_console(stderr=True), f"run_all.py: {error}")
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run_all.py",
        description="Execute the replication notebooks, hold their claims against the expected ranges, report.",
        epilog="A notebook whose code, parameters, library, data and device are as in its last run is not run again.",
    )
    option = parser.add_argument
    option("patterns", nargs="*", metavar="PATTERN", help="glob or part of paper/notebook (default: all)")
    option("--profile", choices=PROFILES, default="smoke", help="size of the run (default: smoke)")
    option("--jobs", type=_positive, metavar="N", help="notebooks at a time (default: one a core)")
    option("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute (default: auto)")
    option("--data", metavar="NAME", help="data set to use in place of the notebooks' own")
    option("--force", action="store_true", help="run even what is up to date")
    option("--dry-run", action="store_true", help="say what would run and why, and do nothing")
    option("--list", action="store_true", help="list the notebooks, and do nothing")
    option("--publish", action="store_true", help="put good results into the folder of the notebooks, for readers")
    default_out = catalogue.FOLDER.parent / "executed"
    option("--out", type=Path, default=default_out, metavar="DIR", help="output folder (default: executed)")
    option("--notebooks", type=Path, default=catalogue.FOLDER, metavar="DIR", help="folder of the notebooks")
    return parser


def _positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return value


def _check(given: argparse.Namespace) -> None:
    if given.publish and given.profile == "smoke":
        raise UsageError("a smoke run is not for readers; publish with --profile paper (or laptop)")
    if given.publish and given.data is not None:
        raise UsageError("published notebooks show their own data; leave out --data, or --publish")
    if given.data is not None:
        from collapse_lib.data import NAMES  # brings in torch

        if given.data not in NAMES:
            raise UsageError(f"no data set {given.data!r}; there are {', '.join(NAMES)}")


def _show_list(out: Console, notebooks: Sequence[Notebook]) -> None:
    table = Table("notebook", "title", "replicates", box=None, pad_edge=False)
    table.columns[0].overflow = "fold"
    for notebook in notebooks:
        table.add_row(notebook.key, notebook.entry.title, notebook.entry.replicates)
    out.print(table)


def _settings(given: argparse.Namespace) -> tuple[Settings, list[str]]:
    """What the options say about every notebook, and the GPUs there are to compute on."""
    gpus = [] if given.device == "cpu" else processes.gpus()
    if given.device == "cuda" and not gpus:
        raise UsageError("there is no CUDA device that torch can use; leave out --device, or say --device cpu")
    device = None if given.device == "auto" else given.device
    return Settings(given.profile, device=device, dataset=given.data, has_gpu=bool(gpus)), gpus


def _show_plan(out: Console, planned: Sequence[Planned]) -> None:
    table = Table("notebook", "would be", "because", "device", "time", "parameters", box=None, pad_edge=False)
    table.columns[0].overflow = "fold"
    for each in planned:
        about = "" if each.estimate is None else f"about {duration(each.estimate)}"
        changes = ", ".join(f"{name}={value!r}" for name, value in each.task.injected.items())
        table.add_row(each.task.key, "run" if each.why else "cached", each.why, each.task.device, about, changes)
    out.print(table)


def _run(
    given: argparse.Namespace, arguments: Sequence[str], notebooks: Sequence[Notebook], selected: Sequence[Notebook]
) -> int:
    out = _console()
    settings, gpus = _settings(given)
    folder = Folder(given.out.resolve() / given.profile)
    keys = {notebook.key for notebook in selected}

    def look_up(notebook: Notebook) -> Planned:
        return plan.look_up(plan.task(notebook, settings), folder, force=given.force and notebook.key in keys)

    if given.dry_run:
        _show_plan(out, [look_up(notebook) for notebook in selected])
        return 0
    with folder.occupied():
        planned = [look_up(notebook) for notebook in notebooks]  # all of them, since the report tells of all
        due = [each for each in planned if each.why and each.task.key in keys]
        ended, interrupted = _execute(due, folder, given.jobs, gpus, out)
        report = Report(
            given.profile,
            "cuda" if gpus else "cpu",
            _command(arguments),
            [_outcome(each, each.task.key in keys, ended) for each in planned],
            interrupted,
        )
        _tell(out, report)
        try:
            report.write(folder)
            published = interrupted or not given.publish or _publish(out, report)
        except OSError as error:
            _say(out, f"cannot write {error.filename or folder.root}: {error.strerror}; what has run is kept")
            return 1
    _say(out, f"report: {folder.report_html}")
    if interrupted:
        _say(out, f"stopped; to go on: {_command(argument for argument in arguments if argument != '--force')}")
        return 130
    return 0 if report.good and published else 1


def _execute(
    due: Sequence[Planned], folder: Folder, jobs: int | None, gpus: Sequence[str], out: Console
) -> tuple[dict[str, Outcome], bool]:
    """The outcomes by key, and whether Ctrl-C came before all had ended."""
    if not due:
        return {}, False
    cores = processes.cores()
    jobs = min(jobs or cores, len(due))
    with Display(out, due, jobs) as display:
        execution = Execution(folder, display, jobs=jobs, threads=max(1, cores // jobs), gpus=gpus)
        interrupted = False
        try:
            asyncio.run(execution.run(due))
        except KeyboardInterrupt:
            interrupted = True
    return {outcome.notebook.key: outcome for outcome in execution.outcomes}, interrupted


def _outcome(planned: Planned, selected: bool, ended: Mapping[str, Outcome]) -> Outcome:
    """What the report says of a notebook: how its run ended, or else what stands."""
    if planned.task.key in ended:
        return ended[planned.task.key]
    if selected and planned.why:
        return Outcome(planned.task.notebook, State.INTERRUPTED)
    return replace(planned.standing, selected=selected)


def _tell(out: Console, report: Report) -> None:
    out.print(report.table())
    for outcome in report.outcomes:
        key, failure = outcome.notebook.key, outcome.failure
        if failure is not None:
            _say(out, f"\n{key} {failure.state}: {failure.error}")
            where = [f"in {failure.cell}"] if failure.cell else []
            files = [f"log: {failure.log}"] if failure.log else []
            for line in (*where, *failure.traceback, *files):
                _say(out, f"  {line}".rstrip())
        if outcome.selected and outcome.ledger is not None:
            for claim in outcome.ledger.claims:
                if claim.verdict == "FAILS":
                    _say(out, f"\n{key} {claim.id} FAILS: {claim.text}\n  {_measured(claim)}")


def _measured(claim: Entry) -> str:
    measured = "not measured" if claim.measured is None else f"measured {format_number(claim.measured.mean)}"
    note = f" ({claim.note})" if claim.note else ""
    return f"{measured}, expected {claim.expected}{note}"


def _publish(out: Console, report: Report) -> bool:
    """Publishes what is good; whether that was all that was selected."""
    complete = True
    for outcome in report.outcomes:
        if outcome.selected:
            try:
                _say(out, f"published: {publish(outcome)}")
            except PublishError as error:
                _say(out, str(error))
                complete = False
    return complete


def _command(arguments: Iterable[str]) -> str:
    return shlex.join(["python", sys.argv[0], *arguments])


def _console(*, stderr: bool = False) -> Console:
    # In a log a table may be as wide as it needs; brackets are lists, not styles.
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, width=None if terminal else 160, markup=False, highlight=False)


def _say(out: Console, line: str) -> None:
    out.print(line, soft_wrap=True)
