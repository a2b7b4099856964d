"""Which commit the code is at: without torch, so that the command line can ask too."""

import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import collapse_lib


class Commit(NamedTuple):
    """The commit checked out and whether any file of the checkout differs from it."""

    sha: str
    dirty: bool


def library_commit(folder: Path = Path(collapse_lib.__file__).parents[1]) -> Commit | None:
    """The state of the checkout whose top is `folder`; None if it is not one (an installed library), or without git."""
    found = _git(folder, "rev-parse", "--show-cdup", "HEAD")
    if found is None:
        return None
    # A library installed inside somebody else's checkout has a way up to its top: that commit says nothing about us.
    up, _, sha = found.rpartition("\n")
    status = _git(folder, "status", "--porcelain")
    return None if up or status is None else Commit(sha, dirty=bool(status))


def _git(folder: Path, *arguments: str) -> str | None:
    # Inside a git hook GIT_DIR and its like point elsewhere; without optional locks, notebooks can run side by side.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment["GIT_OPTIONAL_LOCKS"] = "0"
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.rstrip("\n")
