"""The README's tables of what is replicated, written from paper.toml and the published notebooks.

    python -m collapse_lib.replication.readme            # renews the tables
    python -m collapse_lib.replication.readme --check    # exit status 1 if they are not what the notebooks say

Run in the project's top folder. What a notebook came out with is read from the ledger that it shows, and the numbers of
methods from the tables that it shows, so the README can claim no more than the published notebooks do. What is said of
the whole set is read from the record of a run (`run_all.py --record`).
"""

import argparse
import re
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from textwrap import shorten

from collapse_lib.ledger import ClaimError, Entry, LedgerRecord, measured_words, read_ledger
from collapse_lib.paper import load_paper
from collapse_lib.replication import catalogue, display, notebook_file, record
from collapse_lib.replication.plan import METADATA
from collapse_lib.results import ResultsError, read_results

_COMMAND = "python -m collapse_lib.replication.readme"
_HEADINGS = ("Figure, notebook", "Question", "Document → ours (expected)", "Claims held", "Verdict", "Published run")
_RECORD = Path("results/laptop.json")
_SHOWN = 3  # numbers of a notebook
_LONGEST = 60  # characters of what a document reports


class ReadmeError(ValueError):
    """A README without one place for a table, or a notebook that cannot be read for it."""


def coverage_table(root: Path) -> str:
    """For each document its name and a table in Markdown, one row a notebook below `root`/notebooks, links from `root`.

    Raises CatalogueError if notebooks and entries do not fit together, ReadmeError for a ledger that cannot be read.
    """
    notebooks = catalogue.load(root / "notebooks")
    parts = []
    for folder in dict.fromkeys(notebook.path.parent for notebook in notebooks):
        document = load_paper(folder / "paper.toml").paper
        rows = [_row(notebook, root) for notebook in notebooks if notebook.path.parent == folder]
        table = [f"| {' | '.join(map(_cell, row))} |" for row in (_HEADINGS, ("---",) * len(_HEADINGS), *rows)]
        parts.append("\n".join([f"**{document.document}** ({_link(document.reference, document.url)})", "", *table]))
    return "\n\n".join(parts)


def _row(notebook: catalogue.Notebook, root: Path) -> tuple[str, ...]:
    published = notebook_file.read(notebook.path)
    try:
        ledger = read_ledger(published)
    except ClaimError as error:
        raise ReadmeError(f"{notebook.path}: {error}") from error
    figure = _link(notebook.entry.replicates, notebook.path.relative_to(root).as_posix())
    device = published["metadata"].get(METADATA, {}).get("device", "device unknown")
    contradicting = {claim for claim, entry in notebook.entry.claims.items() if entry.contradicts}
    return figure, notebook.entry.title, *_outcome(ledger, device, contradicting)


def _numbers(ledger: LedgerRecord, contradicting: Collection[str]) -> str:
    """Up to three of the values that the document reports, beside ours, in the order of paper.toml.

    First come what the run judged, what contradicts the document, numbers rather than words, and headlines; the same
    value is not shown twice.
    """
    first: dict[str | None, Entry] = {}
    for claim in filter(_is_comparable, ledger.claims):
        first.setdefault(claim.reported, claim)
    chosen = sorted(first.values(), key=lambda claim: _importance(claim, contradicting))[:_SHOWN]
    shown = sorted(chosen, key=ledger.claims.index)
    return "<br>".join(_number(claim, contradicts=claim.id in contradicting) for claim in shown) or "–"


def _is_comparable(claim: Entry) -> bool:
    return claim.reported not in (None, "unknown") and claim.measured is not None


def _importance(claim: Entry, contradicting: Collection[str]) -> tuple[bool, bool, bool, bool]:
    is_number = re.search(r"\d", claim.reported or "") is not None
    return claim.verdict == "not judged", claim.id not in contradicting, not is_number, claim.kind != "headline"


def _number(claim: Entry, *, contradicts: bool) -> str:
    ours, _ = measured_words(claim)
    if contradicts and claim.expected.is_ is not None:
        ours = f"{claim.text}: {ours}"  # of what, where the document says the opposite
    # A truth says by itself what is expected, and a verdict as hoped for goes without saying.
    remarks = [str(claim.expected)] * (claim.expected.is_ is None) + [claim.verdict] * (claim.verdict != "holds")
    remark = f" ({', '.join(remarks)})" if remarks else ""
    said = shorten(claim.reported or "", _LONGEST, placeholder=" …")
    return f"{claim.id}: {said} {'≠' if contradicts else '→'} {ours}{remark}"


def results_tables(root: Path) -> str:
    """A table in Markdown for each table of methods that a published notebook shows, one row a method.

    Raises CatalogueError and ReadmeError as `coverage_table` does.
    """
    parts = []
    for notebook in catalogue.load(root / "notebooks"):
        try:
            shown = read_results(notebook_file.read(notebook.path))
        except ResultsError as error:
            raise ReadmeError(f"{notebook.path}: {error}") from error
        for results in shown:
            head, *body = results.cells()
            lines = [f"| {' | '.join(map(_cell, row))} |" for row in (head, ["---"] * len(head), *body)]
            link = _link(notebook.entry.title, notebook.path.relative_to(root).as_posix())
            parts.append("\n".join([f"**{results.dataset}**, profile {results.profile}: {link}", "", *lines]))
    return "\n\n".join(parts) or "*No table of methods has been published.*"


def whole_run(root: Path) -> str:
    """What results/laptop.json says of the run of the whole set that it keeps; ReadmeError if it is out of date."""
    path = root / _RECORD
    if not path.exists():
        return "*No whole run is recorded yet.*"
    notebooks = catalogue.load(root / "notebooks")
    try:
        run = record.read(path)
    except record.RecordError as error:
        raise ReadmeError(str(error)) from error
    if strangers := record.strangers(run, notebooks):
        raise ReadmeError(f"{path}: names what there is no more: {', '.join(strangers)}; record a new run")
    done = [each for each in run.notebooks if each.claims]
    without = [notebook.key for notebook in notebooks if notebook.key not in {each.notebook for each in done}]
    made = run.provenance
    judged = {verdict: run.count(verdict) for verdict in ("holds", "FAILS", "differs", "not judged")}
    times = [each.seconds for each in done if each.seconds is not None] or [0.0]
    failing = [f"{each.notebook} {claim.id}" for each in done for claim in each.claims if claim.verdict == "FAILS"]
    return "\n".join(
        [
            "| the whole set, profile laptop | |",
            "| --- | --- |",
            f"| when | {run.written:%Y-%m-%d}, commit {made.commit or 'unknown'} |",
            f"| where | {made.device}, {made.cores} cores; Python {made.python}, torch {made.torch} |",
            f"| notebooks | {len(done)} of {len(notebooks)} have a result{_listed(without, '; not: ')} |",
            f"| claims | {judged['holds']} held, {judged['FAILS']} failed{_listed(failing)}, "
            f"{judged['differs']} differ as known, {judged['not judged']} not judged at this size |",
            f"| time | {display.duration(min(times))} to {display.duration(max(times))} a notebook, "
            f"{display.duration(run.sum_of_seconds)} in all |",
            f"| values | {_link(_RECORD.as_posix(), _RECORD.as_posix())} |",
        ]
    )


def _listed(names: Sequence[str], head: str = ": ") -> str:
    return f"{head}{', '.join(names)}" if names else ""


TABLES: dict[str, Callable[[Path], str]] = {
    "coverage": coverage_table,
    "results": results_tables,
    "whole-run": whole_run,
}
"""What stands between the README's markers of each name (`markers`)."""


def markers(name: str) -> tuple[str, str]:
    """The lines around the table of that name."""
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


def renewed(readme: str, name: str, table: str) -> str:
    """The README with `table` between its markers of that name; ReadmeError unless it has each once and in order."""
    begin, end = markers(name)
    if re.findall(f"{begin}|{end}", readme) != [begin, end]:
        raise ReadmeError(f"README.md: needs one line {begin} and after it one line {end}, for the table between them")
    before, rest = readme.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{table}\n{end}{after}"


def _outcome(ledger: LedgerRecord | None, device: str, contradicting: Collection[str]) -> tuple[str, str, str, str]:
    """Numbers, claims held, verdict and run of a notebook; what its run did not judge counts neither way.

    `contradicting`: ids of the claims that contradict the document where they hold.
    """
    if ledger is None:
        return "–", "–", "not executed", "–"
    judged = [claim for claim in ledger.claims if claim.verdict != "not judged"]
    unjudged = len(ledger.claims) - len(judged)
    held = sum(claim.verdict == "holds" for claim in judged)
    # Worst first: the reader should not have to look for it.
    others = [
        f"{verdict}: {', '.join(claim.id for claim in judged if claim.verdict == verdict)}"
        for verdict in ("FAILS", "differs")
        if any(claim.verdict == verdict for claim in judged)
    ]
    against = [claim.id for claim in judged if claim.verdict == "holds" and claim.id in contradicting]
    others += [f"holds, against the document: {', '.join(against)}"] if against else []
    return (
        _numbers(ledger, contradicting),
        f"{held} of {len(judged)}" + (f", {unjudged} not judged" if unjudged else ""),
        "; ".join(others) or ("holds" if held else "not judged"),
        f"{ledger.profile}, {ledger.dataset}, {device}",
    )


def _link(text: str, target: str) -> str:
    return f"[{text.replace('[', '(').replace(']', ')')}]({target})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog=_COMMAND, description="Renews the README's tables of results.")
    parser.add_argument("--check", action="store_true", help="only say whether they are fresh")
    check = parser.parse_args(arguments).check
    readme = Path("README.md")
    try:
        old = readme.read_text(encoding="utf-8")
        new = old
        for name, table in TABLES.items():
            new = renewed(new, name, table(Path()))
        if check and new != old:
            raise ReadmeError(f"README.md: its tables are not what the notebooks say; renew them with `{_COMMAND}`")
        if new != old:
            notebook_file.write_atomically(readme, new)
    except FileNotFoundError:
        print(f"{readme.absolute()}: no such file; run this in the project's top folder", file=sys.stderr)
        return 1
    except (ReadmeError, catalogue.CatalogueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
