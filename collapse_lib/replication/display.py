"""The progress of a run: a live table in a terminal, plain lines in a log."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from collapse_lib.replication.outcome import Outcome, State
from collapse_lib.replication.plan import Planned

_STYLES = {State.RAN: "green", State.CACHED: "green", State.STALE: "dim", State.NOT_RUN: "dim"}


def duration(seconds: float) -> str:
    """8.1 s, 3 min 12 s, 1 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def state(outcome: Outcome) -> Text:
    """How a notebook ended, in red where something is wrong."""
    style = _STYLES.get(outcome.state, "bold red")
    return Text(outcome.state, style="bold red" if outcome.ledger and outcome.ledger.failed else style)


def claims(outcome: Outcome) -> str:
    """7 hold, 1 FAILS, 2 not judged."""
    if outcome.recorded is None:
        return ""
    verdicts = [claim.verdict for claim in outcome.recorded.claims]
    words = {"holds": "hold", "FAILS": "FAILS", "differs": "differs as known", "not judged": "not judged"}
    return ", ".join(f"{verdicts.count(verdict)} {word}" for verdict, word in words.items() if verdict in verdicts)


class _Running:
    def __init__(self, estimate: float | None) -> None:
        self.estimate, self.began = estimate, time.monotonic()
        self.number = self.cells = 0

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began

    @property
    def left(self) -> float | None:
        return None if self.estimate is None else max(0.0, self.estimate - self.elapsed)


class Display:
    """Tells what runs and what has ended; in a terminal, the running notebooks are a table that keeps up."""

    def __init__(self, console: Console, plan: Sequence[Planned], jobs: int, *, every: float = 30.0) -> None:
        self._console, self._jobs, self._every = console, jobs, every
        self._total, self._ended, self._said = len(plan), 0, time.monotonic()
        self._waiting = {planned.task.key: planned.estimate for planned in plan}
        self._running: dict[str, _Running] = {}
        terminal = console.is_terminal and not console.is_dumb_terminal
        self._live = Live(get_renderable=self._table, console=console, transient=True) if terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def started(self, planned: Planned) -> None:
        key = planned.task.key
        self._running[key] = _Running(self._waiting.pop(key))
        if self._live is None:
            about = f", about {duration(planned.estimate)}" if planned.estimate else ""
            self._say(f"{key}: started on {planned.task.device}{about}")

    def cell(self, key: str, number: int, total: int) -> None:
        running = self._running[key]
        running.number, running.cells = number, total
        if self._live is None and number and time.monotonic() - self._said >= self._every:
            self._say(f"{key}: cell {number} of {total}, {duration(running.elapsed)}")

    def finished(self, outcome: Outcome) -> None:
        self._running.pop(outcome.notebook.key, None)
        self._ended += 1
        said = (duration(outcome.seconds) if outcome.seconds is not None else "", claims(outcome))
        line = Text.assemble(f"[{self._ended}/{self._total}] {outcome.notebook.key}: ", state(outcome))
        self._say(line.append("".join(f", {each}" for each in said if each)))
        if outcome.failure is not None:
            self._say(f"    {outcome.failure.error}")

    def _say(self, line: str | Text) -> None:
        self._said = time.monotonic()
        self._console.print(line, soft_wrap=True)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, title=self._summary(), title_justify="left", title_style="")
        for heading in ("running", "cell", "elapsed", "left"):
            table.add_column(heading, style="dim" if heading != "running" else "")
        for key, running in self._running.items():
            cell = f"{running.number}/{running.cells}" if running.cells else "starting"
            left = "" if running.left is None else f"about {duration(running.left)}"
            table.add_row(key, cell, duration(running.elapsed), left)
        return table

    def _summary(self) -> str:
        left = [running.left for running in self._running.values()] + list(self._waiting.values())
        known = [seconds for seconds in left if seconds is not None]
        about = f", about {duration(sum(known) / self._jobs)} left" if known and len(known) == len(left) else ""
        return f"{self._ended} of {self._total} done{about}"
