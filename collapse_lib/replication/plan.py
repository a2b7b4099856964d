"""What a run has to do: for every notebook its parameters, and whether the result of an earlier run still stands."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from collapse_lib.ledger import read_ledger
from collapse_lib.paper import Profile
from collapse_lib.replication import fingerprint, notebook_file, parameters
from collapse_lib.replication.catalogue import Notebook
from collapse_lib.replication.fingerprint import Fingerprint
from collapse_lib.replication.folder import Folder
from collapse_lib.replication.notebook_file import NotebookFileError
from collapse_lib.replication.outcome import Outcome, State, shortcomings
from collapse_lib.replication.parameters import Value

METADATA = "collapse_lib"
"""Key of an executed notebook's metadata that keeps {fingerprint, profile, parameters, seconds, device}."""


@dataclass(frozen=True)
class Settings:
    """What the command line says about every notebook; `device` and `dataset` None leave the notebook's own.

    `values` replace parameters of the notebooks that have them, in the type that they have there.
    """

    profile: Profile
    device: str | None = None
    dataset: str | None = None
    has_gpu: bool = False
    values: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """One notebook under one profile: what is injected, where it computes, how long it may take."""

    notebook: Notebook
    profile: Profile
    injected: dict[str, Value]
    device: str  # "cpu" or "cuda"
    fingerprint: Fingerprint  # without the data; taken before the run, so that an edit meanwhile makes the result stale

    @property
    def key(self) -> str:
        return self.notebook.key

    @property
    def parameters(self) -> dict[str, Value]:
        return {**self.notebook.defaults, **self.injected}

    @property
    def limit(self) -> int:
        """Seconds after which it counts as hanging."""
        return self.notebook.entry.timeout_s[self.profile]


def task(notebook: Notebook, settings: Settings) -> Task:
    """Only what differs from the notebook's own constants is injected: the paper's sizes stay where they stand."""
    wanted = dict(notebook.overrides[settings.profile])
    if settings.device is not None:
        wanted["device"] = settings.device
    if settings.dataset is not None:
        wanted["dataset"] = settings.dataset
    for name, value in settings.values.items():
        if name in notebook.defaults:
            wanted[name] = parameters.fit(value, notebook.defaults[name])
    injected = {name: value for name, value in wanted.items() if value != notebook.defaults[name]}
    device = str({**notebook.defaults, **injected}["device"])
    if device == "auto":
        device = "cuda" if settings.has_gpu else "cpu"
    return Task(notebook, settings.profile, injected, device, fingerprint.of(notebook, injected, device))


@dataclass(frozen=True)
class Planned:
    """A task, what stands of it (cached, stale, not run), why it must run (empty if it need not) and for how long."""

    task: Task
    standing: Outcome
    why: str
    estimate: float | None  # seconds that the last run took


def look_up(task: Task, folder: Folder, *, force: bool = False) -> Planned:
    """What an earlier run left of `task`, and whether it still stands."""
    path = folder.result(task.key)
    absent = Outcome(task.notebook, State.NOT_RUN)
    try:
        executed = notebook_file.read(path)
    except FileNotFoundError:
        return Planned(task, absent, "no result yet", None)
    except NotebookFileError:
        return Planned(task, absent, "its result is damaged", None)
    kept: Mapping[str, Any] = executed["metadata"].get(METADATA, {})
    seconds = kept.get("seconds")
    if why := "forced" if force else _outdated(task, executed, kept.get("fingerprint", {})):
        return Planned(task, Outcome(task.notebook, State.STALE), why, seconds)
    standing = Outcome(
        task.notebook,
        State.CACHED,
        seconds,
        read_ledger(executed),
        result=path,
        device=kept.get("device"),
        parameters=task.parameters,
    )
    return Planned(task, standing, "", seconds)


def _outdated(task: Task, executed: Mapping[str, Any], stored: Fingerprint) -> str:
    changed = fingerprint.changed(stored, task.fingerprint)
    if not changed:
        changed = fingerprint.changed(stored, {"data": fingerprint.data(task.parameters)})
    if changed:
        return f"changed: {', '.join(changed)}"
    return "; ".join(shortcomings(executed, task.notebook, task.parameters))
