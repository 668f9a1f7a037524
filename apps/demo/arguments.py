"""Arguments of the API's functions, which come as JSON of any type."""

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

KINDS = {str: "text", int: "a whole number", float: "a number"}


def checked_types(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that refuses arguments of other types than its own are annotated with.

    A whole number may be written as 5.0, and a number as 5.

    Raises:
        ValueError: by the function, before it begins.
    """
    hints = {name: kind for name, kind in typing.get_type_hints(function).items() if kind in KINDS}
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def checking(*given: Any, **named: Any) -> Any:
        values = dict(zip(names, given, strict=False)) | named
        for name, kind in hints.items():
            if name in values:
                values[name] = _checked(name, values[name], kind)
        return function(**values)

    return checking


def _checked(name: str, value: Any, kind: type) -> Any:
    if kind is str and isinstance(value, str):
        return value
    if kind is not str and isinstance(value, (int, float)) and not isinstance(value, bool):
        whole = isinstance(value, int) or value.is_integer()
        if kind is float and abs(value) <= 1e308:  # neither infinite nor nan
            return float(value)
        if kind is int and whole and abs(value) < 2**63:
            return int(value)
    raise ValueError(f"{name} = {str(value)[:40]!r}; allowed: {KINDS[kind]}")
