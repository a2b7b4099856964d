"""The README's tables of what is replicated, written from paper.toml and the published notebooks.

    python -m collapse_lib.replication.readme            # renews the table
    python -m collapse_lib.replication.readme --check    # exit status 1 if it is not what the notebooks say

Run in the project's top folder. What a notebook came out with is read from the ledger that it shows, so the table can
claim no more than the published notebooks do.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from collapse_lib.ledger import ClaimError, LedgerRecord, read_ledger
from collapse_lib.paper import load_paper
from collapse_lib.replication import catalogue, notebook_file

BEGIN, END = "<!-- coverage:begin -->", "<!-- coverage:end -->"

_COMMAND = "python -m collapse_lib.replication.readme"
_HEADINGS = ("Figure, notebook", "Question", "Claims held", "Verdict", "Published run")


class ReadmeError(ValueError):
    """A README without one place for the table, or a notebook that cannot be read for it."""


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
    try:
        ledger = read_ledger(notebook_file.read(notebook.path))
    except ClaimError as error:
        raise ReadmeError(f"{notebook.path}: {error}") from error
    figure = _link(notebook.entry.replicates, notebook.path.relative_to(root).as_posix())
    return figure, notebook.entry.title, *_outcome(ledger)


def renewed(readme: str, table: str) -> str:
    """The README with `table` between its two markers; ReadmeError unless it has each once and in order."""
    if re.findall(f"{BEGIN}|{END}", readme) != [BEGIN, END]:
        raise ReadmeError(f"README.md: needs one line {BEGIN} and after it one line {END}, for the table between them")
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def _outcome(ledger: LedgerRecord | None) -> tuple[str, str, str]:
    """Claims held, verdict and run of a notebook; what its run did not judge counts neither way."""
    if ledger is None:
        return "–", "not executed", "–"
    judged = [claim for claim in ledger.claims if claim.verdict != "not judged"]
    held = sum(claim.verdict == "holds" for claim in judged)
    # Worst first: the reader should not have to look for it.
    others = [
        f"{verdict}: {', '.join(claim.id for claim in judged if claim.verdict == verdict)}"
        for verdict in ("FAILS", "differs")
        if any(claim.verdict == verdict for claim in judged)
    ]
    return (
        f"{held} of {len(judged)}",
        "; ".join(others) or ("holds" if held else "not judged"),
        f"{ledger.profile}, {ledger.dataset}",
    )


def _link(text: str, target: str) -> str:
    return f"[{text.replace('[', '(').replace(']', ')')}]({target})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=_COMMAND, description="Renews the README's table of replicated figures.")
    parser.add_argument("--check", action="store_true", help="only say whether it is fresh")
    check = parser.parse_args(arguments).check
    readme = Path("README.md")
    try:
        old = readme.read_text(encoding="utf-8")
        new = renewed(old, coverage_table(Path()))
        if check and new != old:
            raise ReadmeError(f"README.md: its table is not what the notebooks say; renew it with `{_COMMAND}`")
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
