"""The notebooks there are: found through notebooks/*/paper.toml, checked as a whole before anything runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path

import collapse_lib
from collapse_lib import paper
from collapse_lib.paper import PROFILES, PaperFileError, Profile
from collapse_lib.replication import notebook_file, parameters
from collapse_lib.replication.notebook_file import CHECKED, PARAMETERS, NotebookFileError
from collapse_lib.replication.parameters import ParameterError, Value

FOLDER = Path(collapse_lib.__file__).resolve().parents[1] / "notebooks"
"""The notebooks of the checkout that this library is part of."""


class CatalogueError(ValueError):
    """Everything that is wrong with the notebooks and their entries, one problem a line."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


class PatternError(ValueError):
    """A pattern that names no notebook."""


@dataclass(frozen=True)
class Notebook:
    """One notebook with its entry in paper.toml."""

    key: str  # paper/slug
    path: Path
    entry: paper.Notebook
    defaults: dict[str, Value]  # the constants of the parameters cell
    overrides: dict[Profile, dict[str, Value]]  # what a run under the profile replaces, in the types of `defaults`


def load(folder: Path) -> list[Notebook]:
    """All notebooks below `folder` (one sub-folder a paper); raises CatalogueError with every problem found."""
    papers = sorted(path.parent for path in folder.glob("[!.]*/paper.toml"))
    problems = [
        f"{stray.parent / 'paper.toml'}: missing, but {stray.name} is there; write the entry"
        for stray in sorted(folder.glob("[!.]*/*.ipynb"))
        if stray.parent not in papers
    ]
    if not papers:
        problems.append(f"{folder}: no */paper.toml below it; name the folder of the notebooks with --notebooks")
    notebooks = []
    for each in papers:
        found, wrong = _load_paper(each)
        notebooks += found
        problems += wrong
    if problems:
        raise CatalogueError(problems)
    return notebooks


def select(notebooks: Sequence[Notebook], patterns: Sequence[str]) -> list[Notebook]:
    """The notebooks whose paper/slug matches a pattern, a glob or a part of it; all without a pattern.

    A path to a notebook will do, too (`notebooks/<paper>/<slug>.ipynb`). Raises PatternError for patterns that match
    nothing, with those that were meant perhaps.
    """

    idle = [pattern for pattern in patterns if not any(_matches(each.key, pattern) for each in notebooks)]
    if idle:
        keys = {name: each.key for each in notebooks for name in (each.key, each.path.stem)}
        near = [keys[name] for each in idle for name in get_close_matches(each.removesuffix(".ipynb"), keys, n=2)]
        meant = f"; did you mean {' or '.join(dict.fromkeys(near))}?" if near else ""
        raise PatternError(f"no notebook matches {', '.join(map(repr, idle))}; run_all.py --list shows them{meant}")
    return [each for each in notebooks if not patterns or any(_matches(each.key, pattern) for pattern in patterns)]


def _matches(key: str, pattern: str) -> bool:
    if pattern.endswith(".ipynb"):  # a path names one notebook
        return f"/{key}".endswith("/" + "/".join(Path(pattern).with_suffix("").parts[-2:]))
    return pattern in key or fnmatchcase(key, pattern)


def _load_paper(folder: Path) -> tuple[list[Notebook], list[str]]:
    toml = folder / "paper.toml"
    try:
        entries = paper.load_paper(toml).notebooks
    except PaperFileError as error:
        return [], str(error).splitlines()
    problems = [
        f"{toml}: no entry for {path.name}; add [notebooks.{path.stem}] or remove the notebook"
        for path in sorted(folder.glob("*.ipynb"))
        if path.stem not in entries
    ]
    notebooks = []
    for slug, entry in entries.items():
        path = folder / f"{slug}.ipynb"
        if not path.exists():
            problems.append(f"{toml}: [notebooks.{slug}] has no notebook {path.name}; add it or remove the entry")
            continue
        defaults, wrong = _read_parameters(path)
        problems += [f"{path}: {each}" for each in wrong]
        if not wrong and entry.dataset not in (None, defaults["dataset"]):
            problems.append(
                f"{toml}: [notebooks.{slug}] dataset is {entry.dataset!r}, {path.name} has {defaults['dataset']!r}"
            )
        if not wrong:
            overrides, wrong = _fit_overrides(entry, defaults)
            problems += [f"{toml}: [notebooks.{slug}.profiles] {each}" for each in wrong]
            notebooks.append(Notebook(f"{folder.name}/{slug}", path, entry, defaults, overrides))
    return notebooks, problems


def _read_parameters(path: Path) -> tuple[dict[str, Value], list[str]]:
    try:
        notebook = notebook_file.read(path)
    except NotebookFileError as error:
        return {}, [str(error).removeprefix(f"{path}: ")]
    if not notebook_file.tagged(notebook, CHECKED):
        return {}, [f"no cell is tagged {CHECKED}; tag the one that prints the verdicts"]
    cells = notebook_file.tagged(notebook, PARAMETERS)
    if len(cells) != 1 or cells[0]["cell_type"] != "code":
        return {}, [f"{len(cells)} cells are tagged {PARAMETERS!r}; tag exactly one code cell"]
    values, problems = parameters.parse(notebook_file.text(cells[0]["source"]))
    return values, problems


def _fit_overrides(
    entry: paper.Notebook, defaults: dict[str, Value]
) -> tuple[dict[Profile, dict[str, Value]], list[str]]:
    overrides: dict[Profile, dict[str, Value]] = {
        profile: {} if profile == "paper" else {"profile": profile} for profile in PROFILES
    }
    problems = []
    for profile, given in entry.profiles.items():
        for name, value in given.items():
            if name == "profile":
                problems.append(f"{profile}.profile: is set by the runner; remove it")
            elif name not in defaults:
                problems.append(f"{profile}.{name}: reaches no parameter; the notebook has {', '.join(defaults)}")
            else:
                try:
                    overrides[profile][name] = parameters.fit(value, defaults[name])
                except ParameterError as error:
                    problems.append(f"{profile}.{name} = {value!r}: {error}")
    return overrides, problems
