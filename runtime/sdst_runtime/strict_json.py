"""JSON that others wrote, strictly: whatever is wrong with it becomes one line that a person can act on.

`subject` begins that line ("a.json:" or "a.json: its header"), `mend` ends it. Numbers with thousands of digits,
nesting without end and bytes that are not UTF-8 are faults like any other.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

from .errors import ContractError, InputError
from .text import MARK

T = TypeVar("T")
_MOST_WORDS = 300  # characters of what a file says that a message repeats


class Misfit(Exception):
    """What keeps a text from being what is expected; `line` of it where one is known, from 1."""

    def __init__(self, fault: str, line: int = 0) -> None:
        super().__init__(fault if len(fault) <= _MOST_WORDS else f"{fault[:_MOST_WORDS]} ...")
        self.line = line


def dump_json(value: Any, *, indent: int | None = None, ensure_ascii: bool = True, sort_keys: bool = False) -> str:
    """JSON of a value: everything that this project writes goes through here, since JSON has no NaN and no infinity.

    Raises InputError naming the first place that holds one.
    """
    try:
        return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, sort_keys=sort_keys, allow_nan=False)
    except ValueError as error:
        where = next(_not_finite(value), None)
        if where is None:
            raise
        raise InputError(f"JSON has no number for {where}: what was computed is not finite") from error


def nulls_for_nan(value: Any) -> Any:
    """A report whose subject is what is not finite: null, as JSON has it, for each number that is none."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: nulls_for_nan(inner) for key, inner in value.items()}
    return [nulls_for_nan(inner) for inner in value] if isinstance(value, list | tuple) else value


def _not_finite(value: Any, place: str = "") -> Iterator[str]:
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{place.removeprefix('.') or 'the value'} = {value}"
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _not_finite(inner, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _not_finite(inner, f"{place}[{index}]")


def load_json(text: str | bytes, subject: str, mend: str = "") -> Any:
    """Any JSON value. Raises InputError."""
    try:
        return _loads(text)
    except Misfit as fault:
        raise InputError(f"{subject} not JSON ({fault}){_end(mend)}") from fault


def read_json(path: Path, mend: str = "") -> Any:
    """The JSON value in a file of UTF-8. Raises InputError, also when the file cannot be read."""
    try:
        return _loads(_read(path, mend).decode())
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read {path}: {error}{_end(mend)}") from error
    except Misfit as fault:
        place = f"{path}, line {fault.line}" if fault.line else str(path)
        raise InputError(f"{place}: not JSON ({fault}){_end(mend)}") from fault


def parse_strict(kind: type[T], text: str | bytes, subject: str, mend: str = "") -> T:
    """A dataclass from JSON with exactly its fields. Raises ContractError naming the first that does not fit."""
    try:
        return parse(kind, text)
    except Misfit as fault:
        raise ContractError(f"{subject} does not parse: {fault}{_end(mend)}") from fault
    except InputError as error:  # of the dataclass itself
        raise ContractError(f"{subject} does not fit: {error}{_end(mend)}") from error


def read_strict(kind: type[T], path: Path, mend: str = "") -> T:
    """`parse_strict` of a file. Raises InputError when it cannot be read."""
    return parse_strict(kind, _read(path, mend), f"{path}:", mend)


def parse(kind: type[T], text: str | bytes, extra: Literal["forbid", "ignore"] = "forbid") -> T:
    """A dataclass from JSON. Raises Misfit, and what the dataclass itself raises."""
    from pydantic import ValidationError

    text = text.removeprefix(MARK.encode()) if isinstance(text, bytes) else text.removeprefix(MARK)
    try:
        return _adapter(kind).validate_json(text, strict=True, extra=extra)
    except ValidationError as error:
        fault = error.errors()[0]
        unknown = fault["type"] in ("extra_forbidden", "unexpected_keyword_argument")
        field = ".".join(str(part) for part in fault["loc"]) or "the whole"
        detail = f"no such field{_nearest(kind, fault['loc'])}" if unknown else fault["msg"]
        raise Misfit(f"{field}: {detail}") from error


def parse_value(kind: type[T], value: Any, extra: Literal["forbid", "ignore"] = "forbid") -> T:
    """A dataclass from a value that JSON can hold, as `parse` does it."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise Misfit(str(error)) from error
    return parse(kind, text, extra)


@cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _loads(text: str | bytes) -> Any:
    try:
        return json.loads((text.decode() if isinstance(text, bytes) else text).removeprefix(MARK))
    except json.JSONDecodeError as error:
        raise Misfit(error.msg, error.lineno) from error
    except (ValueError, RecursionError) as error:  # bytes that are no text, numbers too long, nesting too deep
        raise Misfit(str(error)) from error


def _read(path: Path, mend: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}{_end(mend)}") from error


def _end(mend: str) -> str:
    return f"; {mend}" if mend else ""


def _nearest(kind: Any, path: tuple[int | str, ...]) -> str:
    """The field of a dataclass whose name is nearest to an unknown one."""
    owner: Any = kind
    for part in path[:-1]:
        owner = get_type_hints(owner).get(str(part)) if is_dataclass(owner) else None
    names = [field.name for field in fields(owner)] if is_dataclass(owner) else []
    near = difflib.get_close_matches(str(path[-1]), names, 1, 0)
    return f"; did you mean {near[0]}?" if near else ""
