"""Claims held against what a notebook measures.

    ledger = Ledger.open("linear_vae/elbo_vs_ppca", profile=profile, dataset=dataset)
    ledger.record("EP-1", excess)              # a number, a truth value, or one of either a seed
    ledger.show()                              # the table; an error below it unless everything is recorded
    ledger.verdicts()                          # in a cell of its own: "EP-1 holds: ..."

The claims are those of the notebook in its `paper.toml`; what was recorded becomes a `LedgerRecord` in one place
(`Ledger.result`), and all that is shown, printed or stored comes from there.
"""

import difflib
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from IPython.display import display

from collapse_lib.ledger import ClaimError, Entry, LedgerRecord, Measured, Verdict
from collapse_lib.paper import PROFILES, Claim, Notebook, PaperFileError, Profile, load_paper


class Judgement(NamedTuple):
    """A verdict, and what has to be said with it."""

    verdict: Verdict
    note: str | None = None


def measure(value: Any, *, truth: bool = False) -> Measured:
    """`value` (a number, or a 1-D list, array or tensor of one number a seed) as mean, spread and extremes.

    With `truth`, a truth value or a 1-D sequence of them. Raises ClaimError on anything else, empty or not finite.
    """
    if hasattr(value, "detach"):  # a tensor, wherever it lives and whatever its precision
        value = value.detach().cpu().tolist()
    array = np.asarray(value)
    if array.ndim > 1 or array.size == 0 or array.dtype.kind not in ("b" if truth else "iuf"):
        found = f"{value!r:.60}" if array.ndim == 0 else f"an array of {array.dtype} of shape {array.shape}"
        raise ClaimError(f"takes {'a truth value' if truth else 'a number'}, or one a seed (1-D), not {found}")
    seeds = np.atleast_1d(array.astype(np.float64))
    if not np.isfinite(seeds).all():
        raise ClaimError(f"takes finite numbers; {np.sum(~np.isfinite(seeds))} of {seeds.size} are NaN or infinite")
    # The mean of equal numbers may be off by a rounding, and so would be what is judged.
    low, high = float(seeds.min()), float(seeds.max())
    mean = low if low == high else float(seeds.mean())
    sd = None if truth or seeds.size == 1 else float(seeds.std(ddof=1, mean=mean))
    return Measured(n=seeds.size, mean=mean, sd=sd, min=low, max=high)


def judge(claim: Claim, measured: Measured, profile: Profile) -> Judgement:
    """The verdict on a claim that is judged in `profile`: all seeds must be as expected, or their mean.

    A claim whose `differs` gives a reason must not come out as expected: it fails then, until the reason is removed.
    """
    expected = claim.expected_in(profile)
    # What is accepted is an interval, so the extremes speak for every seed.
    judged = (measured.mean,) if claim.judge == "mean" else (measured.min, measured.max)
    as_expected = all(expected.holds(value) for value in judged)
    if claim.differs is not None:
        return Judgement("FAILS", "unexpectedly holds") if as_expected else Judgement("differs", claim.differs)
    if not as_expected:
        return Judgement("FAILS")
    return Judgement("holds", "and contradicts the document" if claim.contradicts else None)


class Ledger:
    """What one run of a notebook measures, claim by claim."""

    def __init__(self, name: str, notebook: Notebook, *, profile: Profile, dataset: str) -> None:
        self.name, self.profile, self.dataset = name, profile, dataset
        self._notebook = notebook
        self._measured: dict[str, Measured] = {}

    @classmethod
    def open(cls, name: str, *, profile: str, dataset: str) -> Self:
        """The empty ledger of the notebook `<paper>/<slug>`.

        Its `paper.toml` is looked for from the current folder upwards (in the paper's own folder, and in
        `notebooks/<paper>/`), then in the checkout that this library is part of.
        Raises PaperFileError if there is none or it is wrong, ClaimError on an unknown notebook or profile.
        """
        paper, _, slug = name.partition("/")
        if not (paper and slug) or "/" in slug:
            raise ClaimError(f"no notebook {name!r}; name it <paper>/<notebook>, as in linear_vae/elbo_vs_ppca")
        if profile not in PROFILES:
            raise ClaimError(f"no profile {profile!r}; use one of {', '.join(PROFILES)}")
        path = _find_paper_file(paper)
        notebooks = load_paper(path).notebooks
        if slug not in notebooks:
            raise ClaimError(f"no notebook {slug!r} in {path}; it has {', '.join(notebooks)}")
        return cls(name, notebooks[slug], profile=profile, dataset=dataset)

    def record(self, claim_id: str, value: Any) -> None:
        """Records what was measured for a claim; see `measure` for what `value` may be.

        Raises ClaimError on an unknown id, a second measurement of one claim, or a value of the wrong kind.
        """
        claims = self._notebook.claims
        if claim_id not in claims:
            near = difflib.get_close_matches(claim_id, claims, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ClaimError(f"no claim {claim_id!r} in {self.name}; {hint}it has {', '.join(claims)}")
        if claim_id in self._measured:
            raise ClaimError(
                f"claim {claim_id} of {self.name} is recorded already, as are {', '.join(self._measured)}; "
                "record each once, and run the cell that opens the ledger before recording again"
            )
        try:
            truth = claims[claim_id].expected_in(self.profile).is_ is not None
            self._measured[claim_id] = measure(value, truth=truth)
        except ClaimError as error:
            raise ClaimError(f"claim {claim_id} of {self.name} {error}; its claims are {', '.join(claims)}") from None

    def result(self) -> LedgerRecord:
        """Every claim with its verdict. Raises ClaimError if one that is judged in this run was not recorded."""
        record = self._judged()
        there = {entry.id for entry in record.claims}
        if missing := [claim_id for claim_id in self._notebook.claims if claim_id not in there]:
            raise ClaimError(f"not recorded in {self.name}: {', '.join(missing)}; record every claim first")
        return record

    def _judged(self) -> LedgerRecord:
        """Every claim that was recorded or need not be, with its verdict."""
        entries = []
        for claim_id, claim in self._notebook.claims.items():
            measured, unjudged = self._measured.get(claim_id), self._why_not_judged(claim)
            if unjudged is not None:
                judgement = Judgement("not judged", unjudged)
            elif measured is not None:
                judgement = judge(claim, measured, self.profile)
            else:
                continue
            entries.append(
                Entry(
                    id=claim_id,
                    expected=claim.expected_in(self.profile),
                    measured=measured,
                    **judgement._asdict(),
                    **{name: getattr(claim, name) for name in ("text", "kind", "judge", "reported", "source", "why")},
                )
            )
        return LedgerRecord(notebook=self.name, profile=self.profile, dataset=self.dataset, claims=entries)

    def show(self) -> None:
        """Displays the table and its machine-readable twin as one output.

        Raises ClaimError as `result` does, but after what was recorded is shown with its verdicts.
        """
        display(self._judged())
        self.result()

    def verdicts(self) -> None:
        """Prints one line a mechanism claim, `EP-1 holds: <text>`: the same lines wherever the same follows."""
        print("\n".join(self.result().verdict_lines()))

    def _why_not_judged(self, claim: Claim) -> str | None:
        if self.profile not in claim.judged_in:
            return f"judged in profile {' and '.join(claim.judged_in)} only"
        if claim.kind == "headline" and self._notebook.dataset not in (None, self.dataset):
            return f"judged on {self._notebook.dataset} only"
        return None


def _find_paper_file(paper: str) -> Path:
    here = Path.cwd()
    places = []
    for folder in (here, *here.parents):
        if folder.name == paper:
            places.append(folder / "paper.toml")
        places.append(folder / "notebooks" / paper / "paper.toml")
    places.append(Path(__file__).parents[1] / "notebooks" / paper / "paper.toml")
    for place in places:
        if place.is_file():
            return place
    looked = "\n  ".join(dict.fromkeys(map(str, places)))
    raise PaperFileError(f"no paper.toml of {paper!r}; run inside a checkout that has it. Looked at\n  {looked}")
