"""The options of run_all.py, and which of them go together."""

import argparse
import ast
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from collapse_lib.paper import PROFILES
from collapse_lib.replication import catalogue, parameters
from collapse_lib.replication.catalogue import Notebook
from collapse_lib.replication.parameters import ParameterError, Value


class UsageError(ValueError):
    """A command that cannot be carried out as given."""


def parser() -> argparse.ArgumentParser:
    """All options; `check` says which go together."""
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
    option(
        "--set",
        action="append",
        default=[],
        type=_setting,
        metavar="NAME=VALUE",
        help="value of a parameter in every selected notebook that has it, as Python writes it; can be repeated",
    )
    option("--force", action="store_true", help="run even what is up to date")
    option("--publish", action="store_true", help="put good results into the folder of the notebooks, for readers")
    option("--record", action="store_true", help="keep what the whole set came to in results/<profile>.json")
    instead = parser.add_mutually_exclusive_group()
    option = instead.add_argument
    option("--dry-run", action="store_true", help="say what would run and why, and do nothing")
    option("--list", action="store_true", help="list the notebooks, and do nothing")
    option(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("OLD", "NEW"),
        help="say what changed between two runs (report.json, a folder with one, or a file of results/), and do "
        "nothing; exit status 1 if a verdict got worse",
    )
    option = parser.add_argument
    default_out = catalogue.FOLDER.parent / "executed"
    option("--out", type=Path, default=default_out, metavar="DIR", help="output folder (default: executed)")
    option("--notebooks", type=Path, default=catalogue.FOLDER, metavar="DIR", help="folder of the notebooks")
    return parser


def _positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return value


def _setting(text: str) -> tuple[str, Value]:
    name, separator, written = (part.strip() for part in text.partition("="))
    if not (separator and name.isidentifier()):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE")
    if option := {"profile": "--profile", "dataset": "--data", "device": "--device"}.get(name):
        raise argparse.ArgumentTypeError(f"{name} has an option of its own; say {option}")
    try:
        value = ast.literal_eval(written)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        value = ...
    if not parameters.is_plain(value):
        raise argparse.ArgumentTypeError(
            f"{written!r} is no number, string or list of these; a string needs quotes of Python: \"{name}='...'\""
        )
    return name, value


def check(given: argparse.Namespace) -> None:
    """Raises UsageError for options that do not go together, and for data that there is not."""
    if given.compare and (given.patterns or given.publish or given.record or given.force or given.set):
        raise UsageError("--compare only reads two reports; leave out the other options")
    if given.publish and given.profile == "smoke":
        raise UsageError("a smoke run is not for readers; publish with --profile paper (or laptop)")
    if given.publish and given.data is not None:
        raise UsageError("published notebooks show their own data; leave out --data, or --publish")
    if given.record and given.patterns:
        raise UsageError("a record is of all notebooks; leave out the patterns (what is up to date is not run again)")
    if given.record and given.data is not None:
        raise UsageError("a record is of the notebooks' own data; leave out --data, or --record")
    if given.set and (given.publish or given.record):
        kept = "--publish" if given.publish else "--record"
        raise UsageError(f"what is kept has the notebooks' own parameters; leave out --set, or {kept}")
    if given.data is not None:
        from collapse_lib.data import NAMES  # brings in torch

        if given.data not in NAMES:
            raise UsageError(f"no data set {given.data!r}; there are {', '.join(NAMES)}")


def check_values(values: Mapping[str, Value], selected: Sequence[Notebook]) -> None:
    """Raises UsageError for a parameter that no selected notebook has, and for a value that one cannot take."""
    for name, value in values.items():
        having = [notebook for notebook in selected if name in notebook.defaults]
        if not having:
            near = difflib.get_close_matches(name, sorted({each for one in selected for each in one.defaults}))
            remedy = f"did you mean {' or '.join(near)}?" if near else "its cell of parameters names those it has"
            raise UsageError(f"--set {name}: no selected notebook has this parameter; {remedy}")
        for notebook in having:
            try:
                parameters.fit(value, notebook.defaults[name])
            except ParameterError as error:
                told = f"{error} ({notebook.key}: {name} = {notebook.defaults[name]!r})"
                remedy = "set another value, or select other notebooks"
                raise UsageError(f"--set {name}={value!r}: {told}; {remedy}") from None
