"""Tiny notebooks for the tests of the runner: a folder of papers, built by the test that needs it, without torch."""

import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

# A PNG of one pixel
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="

FIGURE = f'display({{"image/png": "{PNG}", "text/plain": "a pixel"}}, raw=True)'

# The ledger's output without the library that makes it, where a test is not about the ledger: a second faster.
BARE_LEDGER = """
display({{"application/vnd.collapse-lib.ledger+json": {{
    "notebook": "{key}", "profile": profile, "dataset": dataset,
    "claims": [{{
        "id": "A-1", "text": "there are images", "kind": "mechanism", "expected": {{"min": 1.0}}, "judge": "every",
        "verdict": "holds", "measured": {{"n": 1, "mean": n_images, "min": n_images, "max": n_images}},
    }}],
}}, "text/plain": "ledger"}}, raw=True)
class ledger:
    verdicts = lambda: print("A-1 holds: there are images")
"""

LEDGER = """
from collapse_lib.claims import Ledger
ledger = Ledger.open("{key}", profile=profile, dataset=dataset)
ledger.record("A-1", {value})
ledger.show()
"""

PARAMETERS = """
profile = "paper"  # name of the run
dataset = "mnist"
device = "auto"
n_images = 1000  # the first ones
lr = 1e-3
betas = [0.5, 1]
"""

SMOKE = 'dataset = "digits"\nn_images = 10\nlr = 1'


@dataclass
class Papers:
    """A folder of notebooks; `add` writes a notebook, `write_toml` the entries of all of them."""

    root: Path
    entries: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(
        self,
        key: str,
        run: str = "",
        *,
        value: str = "n_images",
        expected: str = "{min = 1}",
        figure: str = FIGURE,
        ledger: str = BARE_LEDGER,
        parameters: str = PARAMETERS,
        smoke: str = SMOKE,
        figures: int = 1,
        timeout: int = 60,
        extra: str = "",
    ) -> Path:
        """Writes the notebook `key` = paper/slug and its entry; `run` is the code of its third cell; returns its path.

        With `ledger` = LEDGER its one claim measures `value`.
        """
        cells = [
            new_markdown_cell("# A test"),
            new_code_cell(parameters.strip(), metadata={"tags": ["parameters"]}),
            new_code_cell(textwrap.dedent(run).strip()),
            new_code_cell(figure.strip()),
            new_code_cell(ledger.format(key=key, value=value).strip()),
            new_code_cell("ledger.verdicts()", metadata={"tags": ["nbval-check-output"]}),
        ]
        for number, cell in enumerate(cells):
            cell["id"] = f"cell-{number}"
        paper, slug = key.split("/")
        path = self.root / paper / f"{slug}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(new_notebook(cells=cells), path)
        self.entries.setdefault(paper, {})[slug] = (
            textwrap.dedent(
                f"""
            [notebooks.{slug}]
            title = "Test of {slug}"
            replicates = "nothing"
            figures = {figures}
            timeout_s = {{smoke = {timeout}, laptop = {timeout}, paper = {timeout}}}
            [notebooks.{slug}.profiles.smoke]
            @smoke@
            [notebooks.{slug}.claims.A-1]
            text = "there are images"
            kind = "mechanism"
            expected = {expected}
            """
            ).replace("@smoke@", smoke)
            + extra
        )
        self.write_toml()
        return path

    def write_toml(self) -> None:
        for paper, entries in self.entries.items():
            head = '[paper]\ntitle = "T"\nauthors = ["A"]\nyear = 2019\nreference = "R"\nurl = "u"\ndocument = "d"\n'
            (self.root / paper / "paper.toml").write_text(head + "".join(entries.values()))
