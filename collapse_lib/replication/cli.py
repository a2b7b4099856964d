"""The command line of run_all.py.

Exit status: 0 if every selected notebook has a result and every verdict is as expected, 1 if not, 2 if nothing was run
because something in the command, the notebooks or the machine has to be put right first, 130 after Ctrl-C.
With --compare: 0 if no verdict got worse, 1 if one did, 2 if a file cannot be used.
"""

import argparse
import asyncio
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from collapse_lib.replication import catalogue, options, plan, processes, record
from collapse_lib.replication.catalogue import CatalogueError, Notebook, PatternError
from collapse_lib.replication.compare import compare
from collapse_lib.replication.display import Display
from collapse_lib.replication.execution import Execution
from collapse_lib.replication.folder import Folder, FolderError
from collapse_lib.replication.options import UsageError
from collapse_lib.replication.outcome import Outcome, State
from collapse_lib.replication.plan import Planned, Settings
from collapse_lib.replication.publish import PublishError, publish
from collapse_lib.replication.record import RecordError
from collapse_lib.replication.report import Report
from collapse_lib.replication.terminal import console, say, show_comparison, show_list, show_plan, show_report


def main(arguments: Sequence[str] | None = None) -> int:
    """run_all.py; its exit status (above)."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    given = options.parser().parse_args(arguments)
    try:
        options.check(given)
        if given.compare:
            return _compare(*given.compare)
        notebooks = catalogue.load(given.notebooks.resolve())
        selected = catalogue.select(notebooks, given.patterns)
        if given.list:
            show_list(console(), selected)
            return 0
        return _run(given, arguments, notebooks, selected)
    except (CatalogueError, PatternError, UsageError, FolderError, RecordError) as error:
        say(console(stderr=True), f"run_all.py: {error}")
        return 2
    except KeyboardInterrupt:
        return 130


def _compare(old: Path, new: Path) -> int:
    one, other = record.read(old), record.read(new)
    comparison = compare(one, other)
    show_comparison(console(), one, other, comparison)
    return 1 if comparison.worse else 0


def _settings(given: argparse.Namespace) -> tuple[Settings, list[str]]:
    """What the options say about the selected notebooks, and the GPUs there are to compute on."""
    gpus = [] if given.device == "cpu" else processes.gpus()
    if given.device == "cuda" and not gpus:
        if not given.dry_run:
            raise UsageError("there is no CUDA device that torch can use; leave out --device, or say --device cpu")
        say(console(stderr=True), "run_all.py: no CUDA device here that torch can use; this is the plan where one is")
    device = None if given.device == "auto" else given.device
    return Settings(given.profile, device=device, dataset=given.data, has_gpu=bool(gpus), values=dict(given.set)), gpus


def _run(
    given: argparse.Namespace, arguments: Sequence[str], notebooks: Sequence[Notebook], selected: Sequence[Notebook]
) -> int:
    out = console()
    options.check_values(dict(given.set), selected)
    settings, gpus = _settings(given)
    others = replace(settings, values={})  # values are for what is selected alone
    folder = Folder(given.out.resolve() / given.profile)
    keys = {notebook.key for notebook in selected}

    def look_up(notebook: Notebook) -> Planned:
        chosen = notebook.key in keys
        return plan.look_up(plan.task(notebook, settings if chosen else others), folder, force=given.force and chosen)

    if given.dry_run:
        show_plan(out, [look_up(notebook) for notebook in selected])
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
        show_report(out, report)
        try:
            written = report.write(folder)
            published = interrupted or not given.publish or _publish(out, report)
            if given.record and not interrupted:
                path = given.notebooks.resolve().parent / "results" / f"{given.profile}.json"
                record.write(path, written)
                say(out, f"recorded: {path}")
        except OSError as error:
            say(out, f"cannot write {error.filename or folder.root}: {error.strerror}; what has run is kept")
            return 1
    say(out, f"report: {folder.report_html}")
    if interrupted:
        say(out, f"stopped; to go on: {_command(argument for argument in arguments if argument != '--force')}")
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


def _publish(out: Console, report: Report) -> bool:
    """Publishes what is good; whether that was all that was selected."""
    complete = True
    for outcome in report.outcomes:
        if outcome.selected:
            try:
                say(out, f"published: {publish(outcome)}")
            except PublishError as error:
                say(out, str(error))
                complete = False
    return complete


def _command(arguments: Iterable[str]) -> str:
    return shlex.join(["python", sys.argv[0], *arguments])
