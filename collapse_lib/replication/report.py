"""The report of a run: a table for the terminal, report.json for programs, report.html to read without a network."""

import base64
import contextlib
import io
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from rich.table import Table

from collapse_lib.checkout import library_commit
from collapse_lib.replication import display, notebook_file
from collapse_lib.replication.folder import Folder
from collapse_lib.replication.outcome import Failure, Outcome

VERSION = 1
"""Of the form of report.json; raised whenever a reader of the old form would stumble over the new one."""

THUMBNAIL_WIDTH = 560  # pixels


@dataclass(frozen=True)
class Report:
    """What a run under one profile came to; `outcomes` has the notebooks that were not selected, too."""

    profile: str
    device: str
    command: str
    outcomes: Sequence[Outcome]
    interrupted: bool = False

    @property
    def good(self) -> bool:
        """Every selected notebook has a result, and no claim of theirs fails."""
        return not self.interrupted and all(outcome.good for outcome in self.outcomes if outcome.selected)

    def write(self, folder: Folder) -> None:
        """Writes both files, each as a whole or not at all; OSError if that cannot be."""
        written = datetime.now(UTC).isoformat(timespec="seconds")
        data = self.to_json(folder.root, written)
        notebook_file.write_atomically(folder.report_json, json.dumps(data, indent=1, ensure_ascii=False) + "\n")
        notebook_file.write_atomically(folder.report_html, self.to_html(folder.root, data))

    def table(self) -> Table:
        """What was selected, a row a notebook."""
        table = Table("notebook", "state", "time", "claims", box=None, pad_edge=False)
        table.columns[0].overflow = "fold"
        for outcome in self.outcomes:
            if outcome.selected:
                seconds = "" if outcome.seconds is None else display.duration(outcome.seconds)
                table.add_row(outcome.notebook.key, display.state(outcome), seconds, display.claims(outcome))
        return table

    def to_json(self, root: Path, written: str) -> dict[str, Any]:
        commit = library_commit()
        return {
            "format": "collapse-lib replication report",
            "version": VERSION,
            "written": written,
            "profile": self.profile,
            "good": self.good,
            "interrupted": self.interrupted,
            "provenance": {
                "command": self.command,
                "commit": f"{commit.sha[:12]}{'-dirty' if commit.dirty else ''}" if commit else None,
                "collapse_lib": version("collapse-lib"),
                "python": platform.python_version(),
                "torch": version("torch"),
                "platform": platform.platform(),
                "device": self.device,
            },
            "notebooks": [_outcome_json(outcome, root) for outcome in self.outcomes],
        }

    def to_html(self, root: Path, data: dict[str, Any]) -> str:
        """One page that needs nothing but itself; only the links to the executed notebooks and logs lead out of it."""
        notebooks = [
            told
            | {
                "entry": outcome.notebook.entry,
                "time": "" if outcome.seconds is None else display.duration(outcome.seconds),
                "summary": display.claims(outcome),
                "good": outcome.good,
                # escaped where it is made
                "ledger": Markup(outcome.ledger._repr_mimebundle_()["text/html"]) if outcome.ledger else None,
                "figures": _thumbnails(outcome.result) if outcome.result else [],
            }
            for outcome, told in zip(self.outcomes, data["notebooks"], strict=True)
        ]
        environment = jinja2.Environment(
            autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
        )
        return environment.from_string(_PAGE).render(data | {"notebooks": notebooks})


def _outcome_json(outcome: Outcome, root: Path) -> dict[str, Any]:
    ledger = outcome.ledger.model_dump(mode="json", by_alias=True, exclude_none=True) if outcome.ledger else {}
    return {
        "notebook": outcome.notebook.key,
        "title": outcome.notebook.entry.title,
        "replicates": outcome.notebook.entry.replicates,
        "selected": outcome.selected,
        "state": outcome.state.value,
        "seconds": outcome.seconds,
        "result": _relative(outcome.result, root),
        "dataset": ledger.get("dataset"),
        "claims": ledger.get("claims", []),
        "failure": _failure_json(outcome.failure, root) if outcome.failure else None,
    }


def _failure_json(failure: Failure, root: Path) -> dict[str, Any]:
    return {
        "error": failure.error,
        "cell": failure.cell,
        "traceback": list(failure.traceback),
        "log": _relative(failure.log, root),
        "notebook": _relative(failure.notebook, root),
    }


def _relative(path: Path | None, root: Path) -> str | None:
    return None if path is None else Path(os.path.relpath(path, root)).as_posix()


def _thumbnails(result: Path) -> list[str]:
    """The figures of an executed notebook as data URIs, made smaller."""
    from PIL import Image, UnidentifiedImageError

    uris = []
    for figure in notebook_file.images(notebook_file.read(result)):
        with contextlib.suppress(UnidentifiedImageError), Image.open(io.BytesIO(figure)) as image:
            image.thumbnail((THUMBNAIL_WIDTH, 4 * THUMBNAIL_WIDTH))
            small = io.BytesIO()
            image.save(small, "PNG", optimize=True)
            uris.append(f"data:image/png;base64,{base64.b64encode(small.getvalue()).decode()}")
    return uris


_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Replication report, {{ profile }}</title>
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; font-size: 0.9em; }
th, td { text-align: left; vertical-align: top; padding: 0.3em 0.8em; border-bottom: 1px solid #8886; }
caption { text-align: left; opacity: 0.7; }
h2 { margin-top: 2.5em; border-top: 1px solid #8886; padding-top: 1em; }
img { max-width: 100%; margin: 0.5em 1em 0.5em 0; }
pre { overflow-x: auto; padding: 0.8em; border: 1px solid #8886; }
.bad { color: #d9453d; font-weight: bold; }
.off { opacity: 0.6; }
.scroll { overflow-x: auto; }
</style>
</head>
<body>
<h1>Replication report, profile {{ profile }}</h1>
<p>{% if good %}Every notebook ran and every verdict is as expected.{% else %}<span class="bad">\
{{ "Interrupted." if interrupted else "Not everything is as expected." }}</span>{% endif %}
 Written {{ written }}.</p>
<div class="scroll"><table>
<tr><th>notebook</th><th>state</th><th>time</th><th>claims</th></tr>
{% for each in notebooks %}
<tr{% if not each.selected %} class="off"{% endif %}><td><a href="#{{ each.notebook }}">{{ each.notebook }}</a></td>
<td{% if each.selected and not each.good %} class="bad"{% endif %}>{{ each.state }}</td>
<td>{{ each.time }}</td><td>{{ each.summary }}</td></tr>
{% endfor %}
</table></div>
{% for each in notebooks %}
<h2 id="{{ each.notebook }}">{{ each.title }}</h2>
<p>{{ each.replicates }}. {{ each.state }}{% if each.time %}, {{ each.time }}{% endif %}
{% if each.result %}, <a href="{{ each.result }}">executed notebook</a>{% endif %}
{% if not each.selected %}, not selected in this run{% endif %}</p>
{% if each.failure %}
<p class="bad">{{ each.failure.error }}</p>
{% if each.failure.cell %}<p>In {{ each.failure.cell }}</p>{% endif %}
{% if each.failure.traceback %}<pre>{{ each.failure.traceback | join("\\n") }}</pre>{% endif %}
<p>{% if each.failure.log %}<a href="{{ each.failure.log }}">log</a>{% endif %}
{% if each.failure.notebook %}, <a href="{{ each.failure.notebook }}">what was executed</a>{% endif %}</p>
{% endif %}
{% for figure in each.figures %}
<img src="{{ figure }}" alt="figure {{ loop.index }} of {{ each.notebook }}">
{% endfor %}
{% if each.ledger %}<div class="scroll">{{ each.ledger }}</div>{% endif %}
{% endfor %}
<h2>Provenance</h2>
<table>
{% for name, value in provenance.items() %}<tr><th>{{ name }}</th><td>{{ value or "unknown" }}</td></tr>
{% endfor %}
</table>
</body>
</html>
"""
