"""The parameters cell of a notebook: flat literal constants, and the values that a run puts in their place."""

import ast
from collections.abc import Sequence
from typing import NamedTuple, TypeGuard

Scalar = bool | int | float | str | None
Value = Scalar | list[Scalar]

# Every notebook has these; the runner sets them for all notebooks alike.
STANDARD = {"profile": "the string 'paper'", "dataset": "the name of a data set", "device": "'auto', 'cpu' or 'cuda'"}


class ParameterError(ValueError):
    """A value that a parameter cannot take."""


class Parsed(NamedTuple):
    """Constants by name, and one line for each thing that is wrong."""

    values: dict[str, Value]
    problems: list[str]


def parse(source: str) -> Parsed:
    """The constants that a parameters cell assigns, and all that is wrong with it.

    Papermill only warns about a parameter that the cell does not have and turns tuples into strings, so the cell is
    held to `name = literal`, where a literal is None, a truth value, a number, a string or a list of such.
    """
    values: dict[str, Value] = {}
    problems: list[str] = []
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        return Parsed({}, [f"parameters cell, line {error.lineno}: {error.msg}"])
    for statement in statements:
        match statement:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
            ):
                pass
            case _:
                problems.append(f"parameters cell, line {statement.lineno}: not of the form `name = literal`")
                continue
        try:
            literal = ast.literal_eval(value)
        except (ValueError, TypeError):
            literal = ...
        if not is_plain(literal):
            problems.append(f"parameters cell, line {statement.lineno}: {name} is no number, string or list of these")
        elif name in values:
            problems.append(f"parameters cell, line {statement.lineno}: {name} is assigned twice")
        else:
            values[name] = literal
    return Parsed(values, problems + _standard_problems(values))


def fit(value: Scalar | Sequence[Scalar], default: Value) -> Value:
    """`value` in the type of `default`, an int as the float that it stands for; ParameterError if it has another."""
    if isinstance(default, list) and isinstance(value, list):
        # One kind of element a list: 0 beside 0.5 is a float.
        kind = next((each for each in default if isinstance(each, float)), default[0] if default else None)
        return [_fit_scalar(each, kind) for each in value]
    if isinstance(default, list) or not isinstance(value, Scalar):
        raise ParameterError(f"is {_type(value)}, the notebook has {_type(default)}")
    return _fit_scalar(value, default)


def _fit_scalar(value: Scalar, default: Scalar) -> Scalar:
    if isinstance(default, float) and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if default is None or (isinstance(value, type(default)) and isinstance(value, bool) == isinstance(default, bool)):
        return value
    raise ParameterError(f"is {_type(value)}, the notebook has {_type(default)}")


def _standard_problems(values: dict[str, Value]) -> list[str]:
    problems = [
        f"parameters cell: no parameter {name!r}; add it, {meaning}"
        for name, meaning in STANDARD.items()
        if name not in values
    ]
    if values.get("profile", "paper") != "paper":
        remedy = "put it back; for other sizes say --profile or --set"
        problems.append(f"parameters cell: profile must be 'paper', since the cell holds the paper's sizes; {remedy}")
    if not isinstance(values.get("dataset", ""), str):
        problems.append("parameters cell: dataset must be a string")
    if values.get("device", "auto") not in ("auto", "cpu", "cuda"):
        problems.append("parameters cell: device must be 'auto', 'cpu' or 'cuda'")
    return problems


def is_plain(value: object) -> TypeGuard[Value]:
    """Whether a parameter can be this: a literal, or a flat list of such."""
    if isinstance(value, list):
        return all(isinstance(each, Scalar) for each in value)
    return isinstance(value, Scalar)


def _type(value: object) -> str:
    if isinstance(value, list):
        return "a list"
    return {bool: "a bool", int: "an int", str: "a string", type(None): "None"}.get(type(value), "a float")
