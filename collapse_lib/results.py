"""Tables of methods as a notebook shows them: readable, and machine-readable for the README's results section."""

import html
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

MIME = "application/vnd.collapse-lib.results+json"


class ResultsError(ValueError):
    """A notebook that shows results which this version of the library cannot read."""


@dataclass(frozen=True)
class Results:
    """`rows`: method -> column -> its values, one a seed. `labels`: column -> heading, in order."""

    dataset: str
    profile: str
    labels: dict[str, str]
    rows: dict[str, dict[str, list[float]]]

    @classmethod
    def of(cls, table: pd.DataFrame, labels: Mapping[str, str], *, dataset: str, profile: str) -> "Results":
        """From a frame indexed by method and seed (`method_table.measure`); nan (a diverged member) is left out."""
        if missing := set(labels) - set(table.columns):
            raise ValueError(f"the table has no column {sorted(missing)}; it has {sorted(table.columns)}")
        rows = {
            str(method): {column: part[column].dropna().tolist() for column in labels}
            for method, part in table.groupby("method", sort=False)
        }
        return cls(dataset, profile, dict(labels), rows)

    def cells(self) -> list[list[str]]:
        """Headings, then one row a method: its name and mean ± standard deviation over seeds."""
        body = [[method, *(_mean(values[column]) for column in self.labels)] for method, values in self.rows.items()]
        return [["method", *self.labels.values()], *body]

    def __str__(self) -> str:
        widths = [max(map(len, column)) for column in zip(*self.cells(), strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in self.cells()
        )

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        head, *body = [[html.escape(cell) for cell in row] for row in self.cells()]
        lines = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"]
        lines += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in body]
        return {"text/html": f"<table>{''.join(lines)}</table>", "text/plain": str(self), MIME: asdict(self)}


def read_results(notebook: Mapping[str, Any]) -> list[Results]:
    """The tables that an executed notebook (as nbformat reads it) shows, in order.

    Raises ResultsError for one of another version of this library.
    """
    outputs = (output for cell in notebook["cells"] for output in cell.get("outputs", ()))
    stored = [output["data"][MIME] for output in outputs if MIME in output.get("data", {})]
    try:
        return [Results(**one) for one in stored]
    except TypeError as error:
        raise ResultsError(f"the notebook's results cannot be read ({error}); run the notebook again") from error


def _mean(values: list[float]) -> str:
    """Two decimals, "–" if no member is left."""
    if not values:
        return "–"
    series = pd.Series(values)
    spread = f" ± {series.std(ddof=1):.2f}" if len(values) > 1 else ""
    return f"{series.mean():.2f}{spread}"
