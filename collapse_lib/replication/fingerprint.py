"""What a result depends on. A result is current for as long as none of it has changed."""

import functools
import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import collapse_lib
from collapse_lib.replication import notebook_file
from collapse_lib.replication.catalogue import Notebook
from collapse_lib.replication.parameters import Value

Fingerprint = dict[str, str | None]
"""By name of what it covers, so that a stale result can be told why it is stale."""


def of(notebook: Notebook, injected: Mapping[str, Value], device: str) -> Fingerprint:
    """All but the data, which `data` adds: it costs more than the rest and is seldom what has changed."""
    # Limits of time and the overrides of other profiles change nothing; those of this one are among the parameters.
    entry = notebook.entry.model_dump(mode="json", exclude={"timeout_s", "profiles"})
    # "auto" and the device that it comes to give the same result, so only the device counts.
    parameters = {name: value for name, value in {**notebook.defaults, **injected}.items() if name != "device"}
    return {
        "notebook": _digest(notebook_file.content(notebook_file.read(notebook.path))),
        "parameters": _digest(parameters),
        "paper.toml": _digest(entry),
        "library": _library(),
        "device": device,
        "Python": platform.python_version(),
        "torch": version("torch"),
    }


def data(parameters: Mapping[str, Value]) -> str | None:
    """The checksum of the raw files of all named data sets among the parameters, alone or in a list.

    None if there are none (a notebook that makes its data) or one of them is not there (yet).
    """
    from collapse_lib.data import NAMES, DataError, checksum  # brings in torch

    values = [each for value in parameters.values() for each in (value if isinstance(value, list) else [value])]
    names = sorted({value for value in values if isinstance(value, str) and value in NAMES})
    try:
        sums = {name: checksum(name) for name in names}
    except (DataError, OSError):
        return None
    return _digest(sums) if sums and None not in sums.values() else None


def changed(stored: Mapping[str, str | None], current: Mapping[str, str | None]) -> list[str]:
    """What `current` covers and `stored` has otherwise or not at all."""
    return [name for name, value in current.items() if name not in stored or stored[name] != value]


@functools.cache
def _library() -> str:
    """The sources of collapse_lib without the runner, which computes no number and which no notebook imports."""
    root = Path(collapse_lib.__file__).parent
    sources = [path.relative_to(root) for path in root.rglob("*.py")]
    own = Path(__file__).parent.relative_to(root)
    return _digest({str(path): (root / path).read_text() for path in sorted(sources) if own not in path.parents})


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
