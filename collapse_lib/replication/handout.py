"""Notebooks to hand out as assignments: without outputs, at a size that students can run, with their own claims only.

    python -m collapse_lib.replication.handout stationary_points --out ../handout

What students are to find is blanked by hand. The sizes of the profile stand in a cell below the parameters cell, where
`run_all.py --notebooks ../handout` puts its own when it grades.
"""

import argparse
import re
import sys
from collections.abc import Collection, Sequence
from itertools import groupby
from pathlib import Path

import nbformat

from collapse_lib.paper import PROFILES, Profile
from collapse_lib.replication import catalogue, prepare
from collapse_lib.replication.catalogue import CatalogueError, Notebook, PatternError


def write(notebooks: Sequence[Notebook], profile: Profile, out: Path) -> list[Path]:
    """Writes each notebook to `out`/<paper>/<slug>.ipynb, and beside them a paper.toml of nothing else; their paths.

    Raises FileExistsError, before anything is written, if one is there already; OSError if one cannot be written.
    """
    texts = {}
    for folder, group in groupby(notebooks, key=lambda each: each.path.parent):
        chosen = list(group)
        entries = only((folder / "paper.toml").read_text(encoding="utf-8"), {each.path.stem for each in chosen})
        texts[out / folder.name / "paper.toml"] = entries
        for each in chosen:
            node = prepare.parameterised(each, profile)
            for cell in node.cells:
                if cell.cell_type == "code":
                    cell.outputs, cell.execution_count = [], None
            texts[out / f"{each.key}.ipynb"] = nbformat.writes(node) + "\n"
    for path in texts:
        if path.exists():
            raise FileExistsError(f"{path}: is there already; name another folder, or move it away")
    for path, content in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return list(texts)


def only(toml: str, slugs: Collection[str]) -> str:
    """The text of a paper.toml without the tables of notebooks other than `slugs`."""
    tables = re.split(r"^(?=\[)", toml, flags=re.MULTILINE)
    return "".join(
        each for each in tables if (slug := re.match(r"\[notebooks\.(\w+)", each)) is None or slug[1] in slugs
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m collapse_lib.replication.handout", description="Write notebooks to hand out as assignments."
    )
    parser.add_argument("patterns", nargs="+", metavar="PATTERN", help="glob or part of paper/notebook")
    parser.add_argument("--profile", choices=PROFILES, default="smoke", help="size (default: smoke)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    given = parser.parse_args(arguments)
    try:
        notebooks = catalogue.select(catalogue.load(catalogue.FOLDER), given.patterns)
        for path in write(notebooks, given.profile, given.out):
            print(path)
    except (CatalogueError, PatternError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
