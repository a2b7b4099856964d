"""The kinds of value that `paper.toml` holds, and what is told of one that is wrong; `paper` has the schema."""

import math
import re
from typing import Annotated, Self

from pydantic import AfterValidator, BeforeValidator, PlainValidator
from pydantic_core import PydanticCustomError

Scalar = bool | int | float | str


def problem(what: str, remedy: str, *at: str) -> PydanticCustomError:
    """An error of our own; `at` are the keys below the checked table that lead to the line to blame."""
    return PydanticCustomError("paper_file", "{what}; {remedy}", {"what": what, "remedy": remedy, "at": at})


def _one_line(text: str) -> str:
    if not text.strip():
        raise problem("is empty", "write it, or remove the key if it is optional")
    if "\n" in text.strip():
        raise problem("spans several lines", "write it on one line, as it is printed")
    return text.strip()


def _claim_id(key: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", key):
        raise problem("is no claim id", "use letters, digits, '-', '.' and '_', as in EP-1")
    return key


def _slug(key: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", key):
        raise problem("is no notebook name", "use small letters, digits and '_', as in elbo_vs_ppca")
    return key


def _setting(value: object) -> Scalar | list[Scalar]:
    if isinstance(value, list):
        return [_scalar(item) for item in value]
    return _scalar(value)


def _scalar(value: object) -> Scalar:
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, bool | int | str):
        return value
    raise problem(f"is {value!r}", "use a boolean, a finite number, a string or a list of these")


class Float(float):
    """A float that remembers how the file writes it."""

    literal: str

    @classmethod
    def parse(cls, literal: str) -> Self:
        number = cls(literal)
        number.literal = literal
        return number


def _as_printed(value: object) -> object:
    """Keeps a reported number as the document (hence the file) prints it: 0.10 stays 0.10."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise problem(f"is {value!r}", "write a number or a string")
    return value.literal if isinstance(value, Float) else str(value)


Line = Annotated[str, AfterValidator(_one_line)]
ClaimId = Annotated[str, AfterValidator(_claim_id)]
Slug = Annotated[str, AfterValidator(_slug)]
Setting = Annotated[Scalar | list[Scalar], PlainValidator(_setting)]
Printed = Annotated[Line, BeforeValidator(_as_printed)]
