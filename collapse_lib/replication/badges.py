"""Links in the README that open the notebooks on Binder and in Colab, once the project has a public address.

    python -m collapse_lib.replication.badges https://github.com/OWNER/NAME [--branch main]

Run in the project's top folder. Binder builds its image from environment.yml there; Colab has torch but not the
library, so the README also says which cell to run first.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, Self

from collapse_lib.replication import catalogue, notebook_file
from collapse_lib.replication.readme import ReadmeError, renewed

_ADDRESS = re.compile(r"https://github\.com/(?P<owner>[A-Za-z0-9][A-Za-z0-9-]*)/(?P<name>[\w.-]*\w)/?", re.ASCII)
_BRANCH = re.compile(r"\w[\w.-]*", re.ASCII)


class AddressError(ValueError):
    """What was given is not the address of a GitHub repository, or not the name of a branch."""


class Repository(NamedTuple):
    """A branch of a GitHub repository."""

    owner: str
    name: str
    branch: str

    @classmethod
    def at(cls, address: str, branch: str = "main") -> Self:
        """The repository at https://github.com/OWNER/NAME, .git or not; AddressError if it is another address."""
        found = _ADDRESS.fullmatch(address.removesuffix("/").removesuffix(".git"))
        if found is None:
            raise AddressError(f"{address!r} is no GitHub repository; give it as https://github.com/OWNER/NAME")
        if not _BRANCH.fullmatch(branch):
            raise AddressError(f"{branch!r} cannot stand in a link; name a branch of letters, digits, '.', '-' and '_'")
        return cls(found["owner"], found["name"], branch)

    def binder(self, folder: str) -> str:
        return f"https://mybinder.org/v2/gh/{self.owner}/{self.name}/{self.branch}?urlpath=lab/tree/{folder}"

    def colab(self, path: str) -> str:
        return f"https://colab.research.google.com/github/{self.owner}/{self.name}/blob/{self.branch}/{path}"

    def install_cell(self) -> str:
        """The cell to run first in Colab: a checkout, where the notebooks find their paper.toml, and the library.

        Without dependencies: Colab has what the notebooks import, and would have to restart for other versions.
        """
        return (
            f"!git clone -q --depth 1 --branch {self.branch} https://github.com/{self.owner}/{self.name}\n"
            f"%cd {self.name}\n"
            "!pip install -q --no-deps ."
        )


def badges(root: Path, repository: Repository) -> str:
    """The Markdown between the README's markers: Binder for all notebooks below `root`, Colab for each.

    Raises CatalogueError if notebooks and entries do not fit together, ReadmeError without an environment.yml.
    """
    if not (root / "environment.yml").is_file():
        raise ReadmeError(f"{root / 'environment.yml'}: missing, and Binder builds from it")
    notebooks = catalogue.load(root / "notebooks")
    lines = []
    for folder, group in groupby(notebooks, lambda notebook: notebook.path.parent):
        links = [f"[{each.path.stem}]({repository.colab(each.path.relative_to(root).as_posix())})" for each in group]
        lines.append(f"- {folder.name}: {', '.join(links)}")
    badge = f"[![Binder](https://mybinder.org/badge_logo.svg)]({repository.binder('notebooks')})"
    return "\n".join(
        [
            f"{badge} opens the notebooks in JupyterLab; building the environment takes a while the first time.",
            "",
            "In Colab, add this as the first cell of the notebook and run it:",
            "",
            "```",
            repository.install_cell(),
            "```",
            "",
            *lines,
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m collapse_lib.replication.badges", description="Writes the README's links to Binder and Colab."
    )
    parser.add_argument("address", help="https://github.com/OWNER/NAME")
    parser.add_argument("--branch", default="main", help="what the links point at; default main")
    given = parser.parse_args(arguments)
    readme = Path("README.md")
    try:
        old = readme.read_text(encoding="utf-8")
        new = renewed(old, "badges", badges(Path(), Repository.at(given.address, given.branch)))
        if new != old:
            notebook_file.write_atomically(readme, new)
    except FileNotFoundError:
        print(f"{readme.absolute()}: no such file; run this in the project's top folder", file=sys.stderr)
        return 1
    except (AddressError, ReadmeError, catalogue.CatalogueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
