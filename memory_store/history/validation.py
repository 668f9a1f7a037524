"""Validation of a snapshot before anything is written."""

import numpy as np

from memory_store.backend import MAX_DOCUMENT
from memory_store.format.json import LIMIT, canonical, plain
from memory_store.format.names import ARRAY, MAX_NUMBER, TOKENS
from memory_store.format.zarr import FILL, MAX_NDIM, dtype_name
from memory_store.types import LogRows, Snapshot, Window

MAX_ATTRIBUTES = MAX_DOCUMENT // 2  # bytes; the rest of the document belongs to the store


def checked(snapshot: Snapshot, begin: int | None) -> Snapshot:
    """The snapshot with JSON attributes and int32 tokens; arrays are not copied.

    Args:
        snapshot: the caller's snapshot.
        begin: the parent's position; None without a parent.

    Raises:
        ValueError: the snapshot breaks the rules of `Snapshot`, `Window` or `LogRows`.
    """
    position = snapshot.position
    if type(position) is not int or not 0 <= position <= MAX_NUMBER:
        raise ValueError(f"position = {position!r}; allowed: an int from 0 to {MAX_NUMBER}")
    _check_names([*snapshot.windows, *snapshot.arrays, *snapshot.logs])
    for name, window in snapshot.windows.items():
        _check_window(name, window)
    for name, array in snapshot.arrays.items():
        _check_array(f"arrays[{name!r}]", array)
    for name, rows in snapshot.logs.items():
        _check_rows(f"logs[{name!r}]", rows, position)
    attributes = plain(snapshot.attributes, "attributes")
    size = len(canonical(attributes))
    if size > MAX_ATTRIBUTES:
        raise ValueError(
            f"attributes take {size} bytes; allowed: at most {MAX_ATTRIBUTES} (store numbers in "
            "`arrays`)"
        )
    tokens = _checked_tokens(snapshot.tokens, position, begin)
    return Snapshot(position, snapshot.windows, snapshot.arrays, tokens, attributes, snapshot.logs)


def _check_names(names: list[str]) -> None:
    taken = {TOKENS}
    for name in names:
        if not isinstance(name, str) or not ARRAY.fullmatch(name):
            raise ValueError(
                f"array name {name!r}; allowed: 1 to 128 characters of A-Z, a-z, 0-9, '.', '_', "
                "'-', beginning with a letter or digit"
            )
        if name.lower() in taken:  # some filesystems ignore case
            raise ValueError(f"array name {name!r} is taken; names must differ by more than case")
        taken.add(name.lower())


def _check_window(name: str, window: Window) -> None:
    where = f"windows[{name!r}]"
    _check_array(where, window.data)
    if not all(type(number) is int for number in (window.axis, window.end, window.capacity)):
        raise ValueError(f"{where}: axis, end and capacity must be int")
    if not 0 <= window.axis < window.data.ndim:
        raise ValueError(f"{where}: axis {window.axis} of an array with shape {window.data.shape}")
    count = window.data.shape[window.axis]
    if max(window.end, window.capacity) > LIMIT:
        raise ValueError(f"{where}: end {window.end}, capacity {window.capacity}; at most {LIMIT}")
    if not count <= min(window.end, window.capacity):
        raise ValueError(
            f"{where}: {count} slots, but end is {window.end} and capacity {window.capacity}"
        )


def _check_rows(where: str, rows: LogRows, position: int) -> None:
    if not isinstance(rows, LogRows):
        raise ValueError(f"{where} is a {type(rows).__name__}; allowed: LogRows")
    _check_array(where, rows.data)
    shape = rows.data.shape
    if not shape or 0 in shape:
        raise ValueError(f"{where} has shape {shape}; allowed: at least one row, none empty")
    if type(rows.start) is not int or rows.start < 0:
        raise ValueError(f"{where}: start = {rows.start!r}; allowed: an int of at least 0")
    if rows.start + shape[0] > position:
        raise ValueError(
            f"{where} holds the rows [{rows.start}, {rows.start + shape[0]}) at position "
            f"{position}; allowed: rows of tokens that were read"
        )


def _check_array(where: str, array: np.ndarray) -> None:
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{where} is a {type(array).__name__}; allowed: a numpy array")
    if dtype_name(array.dtype) not in FILL:
        raise ValueError(f"{where} has dtype {array.dtype}; allowed: {', '.join(FILL)}")
    if array.ndim > MAX_NDIM:
        raise ValueError(f"{where} has {array.ndim} axes; allowed: at most {MAX_NDIM}")


def _checked_tokens(tokens: np.ndarray, position: int, begin: int | None) -> np.ndarray:
    if not isinstance(tokens, np.ndarray) or tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise ValueError("tokens must be a one-dimensional array of integers")
    count = len(tokens)
    if count and not (tokens.min() >= -(2**31) and tokens.max() < 2**31):
        raise ValueError("tokens must fit in int32")
    if begin is None and count > position:
        raise ValueError(f"{count} tokens lead to position {position}: more than were read")
    if begin is not None and begin + count != position:
        raise ValueError(
            f"{count} tokens lead from the parent's position {begin} to {begin + count}, not to "
            f"position {position}; give all the ids read since the parent commit"
        )
    return tokens.astype(np.int32)
