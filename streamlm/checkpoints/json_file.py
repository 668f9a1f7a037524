"""JSON objects from files that are not trusted."""

import json
import os
import stat
from pathlib import Path
from typing import Any

LIMIT = 16 << 20  # bytes


def require_regular(path: Path) -> int:
    """The size of a regular file, in bytes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is something else, such as a device or a pipe.
    """
    facts = os.stat(path)
    if not stat.S_ISREG(facts.st_mode):
        raise ValueError(f"{path} is no regular file")
    return facts.st_size


def read_json(path: Path, *, limit: int = LIMIT) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is too large, is no JSON object, or repeats a key; names the file.
    """
    size = require_regular(path)
    if size > limit:
        raise ValueError(f"{path} has {size:,} bytes; allowed: at most {limit:,}")
    try:
        return parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def parse_json(data: bytes) -> dict[str, Any]:
    """The object in JSON text.

    Raises:
        ValueError: it is no JSON object, repeats a key, or holds NaN or Infinity.
    """
    try:
        values = json.loads(data, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError("it holds no JSON object")
    return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"key {name!r} stands twice")
        found[name] = value
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
