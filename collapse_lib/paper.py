"""`paper.toml`: one document's bibliography, notebooks, profiles and claims, read and checked.

    [paper]                                   title, authors, year, reference, url, document
    [notebooks.<slug>]                        title, replicates, figures, timeout_s, dataset
    [notebooks.<slug>.profiles.<profile>]     overrides of the notebook's parameters (smoke, laptop)
    [notebooks.<slug>.claims.<ID>]            text, kind, expected, reported, source, why, judge, profiles,
                                              differs, contradicts

The classes below are the schema. Whatever is wrong with a file is told as `<path>:<line>: <what>; <remedy>`.
"""

import reprlib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from collapse_lib.paper_values import ClaimId, Float, Line, Printed, Setting, Slug, problem
from collapse_lib.toml_lines import Key, key_lines, line_of, syntax_error_line

Profile = Literal["smoke", "laptop", "paper"]
Kind = Literal["mechanism", "headline"]
PROFILES: tuple[Profile, ...] = get_args(Profile)


class PaperFileError(ValueError):
    """A `paper.toml` that cannot be used; one line a problem, `<path>:<line>: <what>; <remedy>`."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Expected(_Table):
    """What a value must be: {min=, max=} (or one of them), {equals=, atol= or rtol=}, or {is=}; bounds are included."""

    min: FiniteFloat | None = None
    max: FiniteFloat | None = None
    equals: FiniteFloat | None = None
    atol: Annotated[FiniteFloat, Field(gt=0)] | None = None
    rtol: Annotated[FiniteFloat, Field(gt=0)] | None = None
    is_: bool | None = Field(default=None, alias="is")

    @model_validator(mode="after")
    def _is_one_form(self) -> Self:
        given = self.model_fields_set
        if not (given in ({"equals", "atol"}, {"equals", "rtol"}, {"is_"}) or (given and given <= {"min", "max"})):
            raise problem(
                f"does not say what is expected (has {', '.join(sorted(given)).replace('is_', 'is') or 'no key'})",
                "give min and/or max, or equals with one of atol and rtol, or is",
            )
        if self.min is not None and self.max is not None and self.min > self.max:
            raise problem(f"min {self.min:g} is greater than max {self.max:g}", "swap them, or correct one", "min")
        if self.rtol and not self.equals:
            raise problem("rtol is no tolerance around 0", "use atol", "rtol")
        return self

    @property
    def tolerance(self) -> float | None:
        """Half the width of the accepted interval; None where it is open or not a number's."""
        if self.min is not None and self.max is not None:
            return (self.max - self.min) / 2
        return self.rtol * abs(self.equals) if self.rtol and self.equals else self.atol

    def holds(self, value: float) -> bool:
        """Whether `value` (a truth value as 0 or 1) is as expected."""
        if self.is_ is not None:
            return value == self.is_
        if self.equals is not None and self.tolerance is not None:
            return abs(value - self.equals) <= self.tolerance
        return (self.min is None or self.min <= value) and (self.max is None or value <= self.max)

    def __str__(self) -> str:
        if self.is_ is not None:
            return str(self.is_).lower()
        if self.equals is not None:
            return f"{self.equals:.12g} ± " + (f"{100 * self.rtol:.12g} %" if self.rtol else f"{self.atol:.12g}")
        if self.min is not None and self.max is not None:
            return f"{self.min:.12g} to {self.max:.12g}"
        return f"≥ {self.min:.12g}" if self.min is not None else f"≤ {self.max:.12g}"


_BRANCHES = ("one for all profiles", "one per profile")


def _branch(expected: object) -> str:
    per_profile = isinstance(expected, Mapping) and any(key in PROFILES for key in expected)
    return _BRANCHES[per_profile]


class Claim(_Table):
    """One sentence held against an expected range; a mechanism in every profile, a headline where `profiles` says."""

    text: Line
    kind: Kind
    expected: Annotated[
        Annotated[Expected, Tag(_BRANCHES[0])] | Annotated[dict[Profile, Expected], Tag(_BRANCHES[1])],
        Discriminator(_branch),
    ]
    reported: Printed | None = None
    source: Line | None = None
    why: Line | None = None
    judge: Literal["every", "mean"] = "every"
    profiles: list[Profile] | None = None
    differs: Line | None = None
    contradicts: bool = False

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if self.kind == "mechanism" and self.profiles is not None:
            remedy = 'remove it, or say kind = "headline"'
            raise problem("a mechanism must hold in every profile, so it has no `profiles`", remedy, "profiles")
        if self.kind == "headline" and not self.profiles:
            remedy = 'add profiles = ["paper"]'
            raise problem("a headline must say in which profiles it is judged", remedy, "profiles")
        ranges = self.expected if isinstance(self.expected, dict) else dict.fromkeys(self.judged_in, self.expected)
        if absent := [profile for profile in self.judged_in if profile not in ranges]:
            remedy = f"add expected.{absent[0]}" + (" or correct `profiles`" if self.profiles else "")
            raise problem(f"nothing is expected in {', '.join(absent)}, where it is judged", remedy, "expected")
        if idle := [profile for profile in ranges if profile not in self.judged_in]:
            remedy = "remove the range, or add the profile to `profiles`"
            raise problem(f"is never judged in {idle[0]}", remedy, "expected", idle[0])
        if self.judge == "mean" and any(each.is_ is not None for each in ranges.values()):
            raise problem("a truth has no mean", 'remove judge = "mean"', "judge")
        if self.contradicts and self.reported is None:
            remedy = "add what it says as `reported`, or remove `contradicts`"
            raise problem("contradicts a document that says nothing", remedy, "contradicts")
        if self.contradicts and self.differs is not None:
            remedy = (
                "keep one: `differs` where the document's number is not reached, `contradicts` where none was expected"
            )
            raise problem("both differs from the document and contradicts it", remedy, "contradicts")
        return self

    @property
    def judged_in(self) -> tuple[Profile, ...]:
        return PROFILES if self.profiles is None else tuple(self.profiles)

    def expected_in(self, profile: Profile) -> Expected:
        """What is expected in `profile`; where the claim is not judged, what is expected where it is."""
        if isinstance(self.expected, Expected):
            return self.expected
        return self.expected[profile if profile in self.expected else self.judged_in[0]]


def _override_profile(key: object) -> object:
    if key == "paper":
        raise problem("the paper profile is the parameters cell itself", "remove this table")
    return key


class Notebook(_Table):
    """One notebook: what it replicates, what it must deliver, how it shrinks, what it claims."""

    title: Line
    replicates: Line
    figures: NonNegativeInt
    timeout_s: dict[Profile, PositiveInt]
    claims: Annotated[dict[ClaimId, Claim], Field(min_length=1)]
    profiles: dict[Annotated[Literal["smoke", "laptop"], BeforeValidator(_override_profile)], dict[str, Setting]] = {}
    dataset: Line | None = None

    @model_validator(mode="after")
    def _has_every_limit(self) -> Self:
        if absent := [profile for profile in PROFILES if profile not in self.timeout_s]:
            raise problem(f"timeout_s has no {', '.join(absent)}", "give seconds for every profile", "timeout_s")
        return self


class Bibliography(_Table):
    """The document that a folder of notebooks replicates."""

    title: Line
    authors: Annotated[list[Line], Field(min_length=1)]
    year: int
    reference: Line
    url: Line
    document: Line


class Paper(_Table):
    """One `paper.toml`."""

    paper: Bibliography
    notebooks: dict[Slug, Notebook]


def load_paper(path: str | Path) -> Paper:
    """Reads and checks a `paper.toml`; a PaperFileError names every line that is wrong and what to do about it."""
    path = Path(path)
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise PaperFileError(f"{path}: no such file; every folder of notebooks has a paper.toml") from None
    try:
        text = raw.decode()
        return Paper.model_validate(tomllib.loads(text, parse_float=Float.parse))
    except UnicodeDecodeError as error:
        line = 1 + raw.count(b"\n", 0, error.start)
        raise PaperFileError(f"{path}:{line}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise PaperFileError(f"{path}:{syntax_error_line(text, error)}: {error}; correct the TOML syntax") from None
    except ValidationError as error:
        lines = key_lines(text)
        told = sorted({_describe(each, lines) for each in error.errors(include_url=False)})
        raise PaperFileError("\n".join(f"{path}:{line}: {what}" for line, what in told)) from None


class _Told(NamedTuple):
    line: int
    text: str


def _describe(error: ErrorDetails, lines: Mapping[Key, int]) -> _Told:
    """One error of pydantic's as a line number and `<what>; <remedy>`."""
    path = tuple(str(part) for part in error["loc"] if part not in (*_BRANCHES, "[key]"))
    name, above, context = ".".join(path), ".".join(path[:-1]) or "the file", error.get("ctx", {})
    value = reprlib.repr(error["input"])
    match error["type"]:
        case "paper_file":
            text = f"{name} {context['what']}; {context['remedy']}"
            path += context["at"]
        case "missing":
            text = f"{above} has no `{path[-1]}`; add it"
        case "extra_forbidden":
            text = f"{above} has no key `{path[-1]}`; use one of {', '.join(_known_keys(path))}"
        case "literal_error":
            text = f"{name} is {value}; use {context['expected']}"
        case "too_short":
            text = f"{name} is empty; give at least one"
        case "model_type" | "dict_type":
            text = f"{name} is {value}; write it as a table"
        case _:
            text = f"{name} is {value}; {error['msg'].replace('Input', 'it')}"
    return _Told(line_of(path, lines), text)


def _known_keys(path: Key) -> list[str]:
    """The keys that the table holding the last key of `path` may have."""
    tables: dict[str, type[_Table]]
    tables = {"expected": Expected, "claims": Claim, "notebooks": Notebook, "paper": Bibliography}
    table = next((model for name, model in tables.items() if name in path[:-1]), Paper)
    return [field.alias or name for name, field in table.model_fields.items()]
