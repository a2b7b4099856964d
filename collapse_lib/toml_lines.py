"""Which line of a TOML text a key stands on; tomllib itself does not tell.

The text is cut into its statements (the shortest runs of whole lines that parse on their own), and tomllib reads each
of them, so that dotted and quoted keys, inline tables and values over several lines need no parser of ours.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

Key = tuple[str, ...]


class _Statement(NamedTuple):
    line: int
    parsed: dict[str, Any]  # empty if the text ends inside the statement
    is_header: bool


def _statements(text: str) -> Iterator[_Statement]:
    start, chunk = 1, ""
    for number, line in enumerate(text.split("\n"), start=1):
        chunk += line + "\n"
        try:
            parsed = tomllib.loads(chunk)
        except tomllib.TOMLDecodeError:
            continue
        if parsed:
            yield _Statement(start, parsed, chunk.lstrip().startswith("["))
        start, chunk = number + 1, ""
    if chunk:
        yield _Statement(start, {}, False)


def _keys(table: Mapping[str, Any], above: Key = ()) -> Iterator[Key]:
    for name, value in table.items():
        yield (*above, name)
        if isinstance(value, Mapping):
            yield from _keys(value, (*above, name))


def key_lines(text: str) -> dict[Key, int]:
    """The line of every key and table of a valid TOML text, by its full path; a table's is that of its header."""
    lines: dict[Key, int] = {}
    header: Key = ()
    for statement in _statements(text):
        keys = list(_keys(statement.parsed))
        if statement.is_header:
            header = keys[-1]
            # A subtable's header may have come first and stood in for this one.
            lines[header] = statement.line
            below: Key = ()
        else:
            below = header
        for key in keys:
            lines.setdefault(below + key, statement.line)
    return lines


def line_of(path: Sequence[str], lines: Mapping[Key, int]) -> int:
    """The line of the key that `path` leads to, or of the closest table above it that the text has."""
    found: Key = ()
    for name in path:
        if (*found, name) not in lines:
            break
        found = (*found, name)
    return lines.get(found, 1)


def syntax_error_line(text: str, error: tomllib.TOMLDecodeError) -> int:
    """The line of a syntax error; for one met only at the end of the text, that of the statement left open."""
    if told := re.search(r"at line (\d+)", str(error)):
        return int(told[1])
    return max((statement.line for statement in _statements(text)), default=1)
