"""Fields of a protobuf message, read and written, without the protobuf package."""

from __future__ import annotations

from collections.abc import Iterator

LONGEST = 10  # bytes of a varint


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The number and value of each field of a message; ValueError if it is cut off or none."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value: int | bytes
            value, at = _varint(data, at)
        else:
            if kind == 2:
                size, at = _varint(data, at)
            elif kind in (1, 5):
                size = 8 if kind == 1 else 4
            else:
                raise ValueError(f"the bytes are no protobuf message: wire type {kind}")
            if at + size > len(data):
                raise ValueError("the bytes are no protobuf message: it is cut off")
            value = data[at : at + size]
            at += size
        yield key >> 3, value


def message(number: int, value: int | bytes) -> bytes:
    """A field: a number as a varint, bytes with their length."""
    if isinstance(value, int):
        return _written(number << 3) + _written(value)
    return _written(number << 3 | 2) + _written(len(value)) + value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    end = min(len(data), at + LONGEST)
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
    why = "it is cut off" if at == len(data) else "a number is too long"
    raise ValueError(f"the bytes are no protobuf message: {why}")


def _written(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
