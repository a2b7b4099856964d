"""What a run tells while it goes on: lines in a log, a table that keeps up in a terminal."""

import io
import re
from pathlib import Path

import pytest
from replication_notebooks import Papers
from rich.console import Console

from collapse_lib.replication import catalogue, display, plan
from collapse_lib.replication.display import Display
from collapse_lib.replication.outcome import Failure, Outcome, State
from collapse_lib.replication.plan import Planned, Settings


@pytest.fixture
def planned(tmp_path: Path) -> list[Planned]:
    papers = Papers(tmp_path / "notebooks")
    papers.add("one/a")
    papers.add("one/b")
    tasks = [plan.task(notebook, Settings("smoke")) for notebook in catalogue.load(papers.root)]
    return [Planned(task, Outcome(task.notebook, State.NOT_RUN), "no result yet", 90.0) for task in tasks]


def tell(console: Console, planned: list[Planned]) -> None:
    first, second = planned
    with Display(console, planned, jobs=1, every=0) as shown:
        shown.started(first)
        shown.cell("one/a", 3, 6)
        shown.finished(Outcome(first.task.notebook, State.RAN, 8.125))
        shown.started(second)
        shown.finished(Outcome(second.task.notebook, State.FAILED, 70, failure=Failure(State.FAILED, "no [b]such[/b]")))


def test_lines_in_a_log(planned: list[Planned]) -> None:
    log = io.StringIO()
    tell(Console(file=log, width=100, markup=False, highlight=False), planned)
    assert re.sub(r", 0\.\d s", ", 0 s", log.getvalue()).splitlines() == [
        "one/a: started on cpu, about 1 min 30 s",
        "one/a: cell 3 of 6, 0 s",
        "[1/2] one/a: ran, 8.1 s",
        "one/b: started on cpu, about 1 min 30 s",
        "[2/2] one/b: failed, 1 min 10 s",
        "    no [b]such[/b]",
    ]


def test_a_table_that_keeps_up_in_a_terminal(planned: list[Planned]) -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=100, force_terminal=True, color_system=None, markup=False)
    with Display(console, planned, jobs=2) as shown:
        shown.started(planned[0])
        shown.cell("one/a", 3, 6)
        shown._live.refresh()
        assert re.search(r"one/a +3/6 +0\.\d s +about 1 min 30 s", screen.getvalue())
        assert "0 of 2 done, about 1 min 30 s left" in screen.getvalue()
        shown.finished(Outcome(planned[0].task.notebook, State.RAN, 8.125))
        shown._live.refresh()
        assert "1 of 2 done, about 45 s left" in screen.getvalue()
    assert "[1/2] one/a: ran, 8.1 s" in screen.getvalue()


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.04, "0.0 s"), (8.14, "8.1 s"), (59.4, "59 s"), (192, "3 min 12 s"), (3901, "1 h 05 min")],
)
def test_durations(seconds: float, told: str) -> None:
    assert display.duration(seconds) == told
