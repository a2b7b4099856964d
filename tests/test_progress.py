"""The progress of a run as three places show it: a log file, a terminal, and a notebook that nobody watches."""

import sys

import pytest

from collapse_lib.progress import PLAIN, Progress


class Terminal:
    """Standard error as a terminal, or as a file."""

    def __init__(self, *, tty: bool) -> None:
        self.tty, self.text = tty, ""

    def isatty(self) -> bool:
        return self.tty

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...


def shown(monkeypatch, *, tty: bool, notebook: bool, plain: bool) -> str:
    stderr = Terminal(tty=tty)
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setitem(sys.modules, "ipykernel", sys) if notebook else monkeypatch.delitem(
        sys.modules, "ipykernel", raising=False
    )
    monkeypatch.setenv(PLAIN, "1") if plain else monkeypatch.delenv(PLAIN, raising=False)
    with Progress(10, "fit 2 members", every=0.0) as progress:
        progress.update(4)
        progress.update(6)
    return stderr.text


@pytest.mark.parametrize("notebook", [False, True])
def test_a_log_gets_whole_lines_also_from_an_unattended_notebook(monkeypatch, notebook):
    text = shown(monkeypatch, tty=False, notebook=notebook, plain=notebook)
    assert text.splitlines() == ["fit 2 members: 4/10 steps, 0 s", "fit 2 members: 10/10 steps, 0 s"]
    assert "\r" not in text


def test_a_terminal_gets_one_line_that_is_redrawn(monkeypatch):
    text = shown(monkeypatch, tty=True, notebook=False, plain=False)
    assert "\r" in text
    assert "10/10 steps" not in text


def test_it_can_be_silent(monkeypatch):
    monkeypatch.setattr(sys, "stderr", stderr := Terminal(tty=False))
    with Progress(10, "fit", enabled=False, every=0.0) as progress:
        progress.update(10)
    assert stderr.text == ""
