"""Two runs side by side: which verdicts changed, which numbers moved, what came and what went.

A number moved if the means of the two runs differ by more than the larger of their standard deviations over seeds, and
by more than rounding, which is 1e-5 of the larger mean (a record keeps seven digits), or 1e-12 where that is more
(what double precision leaves of numbers of order one). A spread moved if the number of seeds is another, or if one
standard deviation is more than twice the other and their difference is more than rounding.

A verdict got worse if it went down in the order holds, differs, not judged, FAILS, or if the notebook was run without a
result, or has lost the claim. Between profiles, which judge different claims, only FAILS is worse than `not judged`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from rich.table import Table

from collapse_lib.ledger import Measured, Verdict, format_number
from collapse_lib.replication.outcome import State
from collapse_lib.replication.record import Claim, NotebookResult, Record

ROUNDING = 1e-5
LEAST = 1e-12
SPREAD_FACTOR = 2.0

_ORDER: tuple[Verdict, ...] = ("holds", "differs", "not judged", "FAILS")
_NO_RUN = (State.NOT_RUN, State.STALE, State.INTERRUPTED)  # these say nothing of the notebook; the first: not selected


class Kind(IntEnum):
    """What happened to a claim or notebook, the most important first."""

    WORSE = 0
    VERDICT = 1
    VALUE = 2
    SPREAD = 3
    GONE = 4
    NEW = 5


_WORDS = {
    Kind.WORSE: "verdict got worse",
    Kind.VERDICT: "verdict changed",
    Kind.VALUE: "value moved",
    Kind.SPREAD: "spread moved",
    Kind.GONE: "is gone",
    Kind.NEW: "is new",
}


@dataclass(frozen=True)
class Change:
    """One line of the comparison; `claim` is None for a whole notebook, `size` orders changes of one kind."""

    kind: Kind
    notebook: str
    claim: str | None
    old: str
    new: str
    size: float = 0.0


@dataclass(frozen=True)
class Comparison:
    """All changes from one run to another, sorted by importance, and the number of claims that both have.

    `parameters` has, by notebook, those that the runs gave different values, `name: old → new`. `unselected` counts the
    notebooks that only one of the runs was asked for.
    """

    changes: list[Change]
    compared: int
    parameters: dict[str, list[str]]
    unselected: int = 0

    @property
    def worse(self) -> int:
        return self.count(Kind.WORSE)

    def count(self, kind: Kind) -> int:
        return sum(change.kind == kind for change in self.changes)

    def summary(self) -> str:
        counts = [f"{_WORDS[kind]}: {self.count(kind)}" for kind in Kind if self.count(kind)]
        if all(change.kind in (Kind.GONE, Kind.NEW) for change in self.changes):
            counts.insert(0, "no verdict changed, no number moved")
        if self.unselected:
            counts.append(f"run in one only, since not selected in the other: {self.unselected} notebooks")
        return f"{self.compared} claims compared: {', '.join(counts)}"

    def table(self) -> Table:
        table = Table("notebook", "claim", "what", "old", "new", "moved by", box=None, pad_edge=False)
        table.columns[0].overflow = "fold"
        for change in self.changes:
            moved = _times(change.size) if change.kind == Kind.VALUE else ""
            table.add_row(change.notebook, change.claim or "", _WORDS[change.kind], change.old, change.new, moved)
        return table


def compare(old: Record, new: Record) -> Comparison:
    """What changed between two records, the most important first."""
    before, after = ({each.notebook: each for each in record.notebooks} for record in (old, new))
    changes: list[Change] = []
    parameters: dict[str, list[str]] = {}
    compared = unselected = 0
    for key in dict.fromkeys([*before, *after]):
        one, other = before.get(key), after.get(key)
        if differing := _parameters(one, other):
            parameters[key] = differing
        if one is not None and one.claims and other is not None and other.claims:
            changes += _claims(one, other, same_profile=old.profile == new.profile)
            compared += len({claim.id for claim in one.claims} & {claim.id for claim in other.claims})
        elif one and other and (one.state == State.NOT_RUN) != (other.state == State.NOT_RUN):
            unselected += 1
        else:
            changes += _notebook(key, one, other)
    return Comparison(sorted(changes, key=lambda each: (each.kind, -each.size)), compared, parameters, unselected)


def _parameters(old: NotebookResult | None, new: NotebookResult | None) -> list[str]:
    """What two runs set otherwise, the profile apart; nothing where one of them does not tell."""
    if old is None or new is None or old.parameters is None or new.parameters is None:
        return []
    one, other = ({name: repr(value) for name, value in each.items()} for each in (old.parameters, new.parameters))
    return [
        f"{name}: {one.get(name, '–')} → {other.get(name, '–')}"
        for name in dict.fromkeys([*one, *other])
        if name != "profile" and one.get(name) != other.get(name)
    ]


def _notebook(key: str, old: NotebookResult | None, new: NotebookResult | None) -> Iterator[Change]:
    """A notebook that one of the runs has no claims of."""
    had, has = bool(old and old.claims), bool(new and new.claims)
    words = _state(old), _state(new)
    if had and new is not None and new.state not in _NO_RUN:
        yield Change(Kind.WORSE, key, None, *words)
    elif had or (old and not new):
        yield Change(Kind.GONE, key, None, *words)
    elif has or (new and not old):
        yield Change(Kind.NEW, key, None, *words)


def _state(result: NotebookResult | None) -> str:
    if result is None:
        return "–"
    return f"{len(result.claims)} claims" if result.claims else str(result.state)


def _claims(old: NotebookResult, new: NotebookResult, *, same_profile: bool) -> Iterator[Change]:
    before, after = ({claim.id: claim for claim in result.claims} for result in (old, new))
    for name in dict.fromkeys([*before, *after]):
        one, other = before.get(name), after.get(name)
        if one is None or other is None:
            yield Change(Kind.NEW if one is None else Kind.WORSE, new.notebook, name, _told(one), _told(other))
        elif found := _change(one, other, same_profile=same_profile):
            kind, size = found
            yield Change(kind, new.notebook, name, _told(one), _told(other), size)


def _change(old: Claim, new: Claim, *, same_profile: bool) -> tuple[Kind, float] | None:
    if old.verdict != new.verdict:
        # A smaller or larger run judges other claims: that is no loss.
        excused = not same_profile and "not judged" in (old.verdict, new.verdict) and new.verdict != "FAILS"
        worse = _ORDER.index(new.verdict) > _ORDER.index(old.verdict) and not excused
        return (Kind.WORSE if worse else Kind.VERDICT), 0.0
    if old.measured is None or new.measured is None:
        return None if old.measured == new.measured else (Kind.VALUE, math.inf)
    return _moved(old.measured, new.measured)


def _moved(old: Measured, new: Measured) -> tuple[Kind, float] | None:
    rounding = max(ROUNDING * max(abs(old.mean), abs(new.mean)), LEAST)
    difference, spread = abs(new.mean - old.mean), max(old.sd or 0.0, new.sd or 0.0)
    if difference > max(spread, rounding):
        return Kind.VALUE, difference / spread if spread else math.inf
    if old.n != new.n:
        return Kind.SPREAD, 0.0
    if old.sd is not None and new.sd is not None:
        small, large = sorted((old.sd, new.sd))
        if large > SPREAD_FACTOR * small and large - small > rounding:
            return Kind.SPREAD, large / small if small else math.inf
    return None


def _told(claim: Claim | None) -> str:
    if claim is None:
        return "–"
    if claim.measured is None:
        return f"not measured, {claim.verdict}"
    value, sd = claim.measured, claim.measured.sd
    told = format_number(value.mean, spread=sd) + ("" if sd is None else f" ± {sd:.2g}")
    return f"{told} ({value.n}), {claim.verdict}"


def _times(size: float) -> str:
    return "no spread" if math.isinf(size) else f"{size:.3g} spreads"
