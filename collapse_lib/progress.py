"""One progress bar for a notebook, a terminal and a log file."""

import os
import sys
import time
from types import TracebackType

from tqdm.auto import tqdm as tqdm_auto

PLAIN = "COLLAPSE_PLAIN_PROGRESS"
"""Environment variable that asks for plain lines in a notebook too: one that is executed unattended, into a log."""


class Progress:
    """A bar in a notebook or a terminal; elsewhere (a log file, a pipe) at most a plain line every `every` seconds."""

    def __init__(self, total: int, label: str, *, enabled: bool = True, every: float = 30.0) -> None:
        self.total, self.label, self.every = total, label, every
        self.done, self._start, self._said = 0, time.monotonic(), time.monotonic()
        in_notebook = "ipykernel" in sys.modules and PLAIN not in os.environ
        self._plain = enabled and not in_notebook and not sys.stderr.isatty()
        bar = enabled and not self._plain
        self._bar = tqdm_auto(total=total, desc=label, leave=False, mininterval=0.5) if bar else None

    def update(self, steps: int) -> None:
        self.done += steps
        if self._bar is not None:
            self._bar.update(steps)
        elif self._plain and time.monotonic() - self._said >= self.every:
            self._said = time.monotonic()
            print(
                f"{self.label}: {self.done}/{self.total} steps, {self._said - self._start:.0f} s",
                file=sys.stderr,
                flush=True,
            )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
