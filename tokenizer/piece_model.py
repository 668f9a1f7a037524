"""SentencePiece models made from, or changed to suit, other files.

Llama 2, TinyLlama and Mistral were trained with SentencePiece BPE. Their vocabulary is also found
in GGUF files and in tokenizer.json; from either, `build_model` writes a SentencePiece model, and
`adopt_model` takes over a tokenizer.model. Both turn off what would lose text or make tokens depend
on cuts, above all the space that these models put before a text ("dummy prefix"): a stream has
many beginnings, so it is put there by chat templates alone.

Source of the field numbers: sentencepiece_model.proto of SentencePiece.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tokenizer.protobuf import fields, message

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_BPE = 2
# Messages of a model, and the extension that holds what SentencePiece has no place for.
_PIECE, _TRAINER, _NORMALIZER, _EXTRAS = 1, 2, 3, 1000


class Piece(NamedTuple):
    """A token: its text, its score (the highest is merged first), and its kind."""

    text: str
    score: float
    kind: int


def build_model(
    pieces: Sequence[Piece],
    *,
    bos_id: int,
    eos_ids: Iterable[int],
    chat_template: str | None = None,
    names: Mapping[str, str] | None = None,
    space_prefix: str = "never",
) -> bytes:
    """A SentencePiece BPE model of `pieces`, which reads text without changing it.

    User-defined pieces, which SentencePiece would always read from text, are kept for chat
    templates: they become unused ones.

    Args:
        bos_id: the piece that precedes a text.
        space_prefix: where the model's own tokenizer puts a space: "never", "first", before a text,
            or "always", before the text after a special token too.
    """
    added = [i for i, piece in enumerate(pieces) if piece.kind == USER_DEFINED]
    body = b"".join(map(_piece, pieces))
    unknown = next((piece.text for piece in pieces if piece.kind == UNKNOWN), None)
    if unknown is None:
        raise ValueError("the vocabulary has no unknown token, which SentencePiece needs")
    trainer = message(3, _BPE) + message(35, 1)  # model_type, byte_fallback
    trainer += message(45, unknown.encode()) + message(46, pieces[bos_id].text.encode())
    extras = {
        "added": added,
        "chat_template": chat_template,
        "eos_ids": sorted(eos_ids),
        "names": dict(names or {}),
        "space_prefix": space_prefix,
    }
    return body + message(_TRAINER, trainer) + message(_NORMALIZER, _identity()) + _written(extras)


def adopt_model(model: bytes, added: Mapping[int, Piece], extras: Mapping[str, Any]) -> bytes:
    """A model file with the normaliser that keeps text, more pieces, and `extras`.

    Args:
        added: pieces by id; those with an id of the file are in it already.
        extras: chat_template and names, as in `build_model`.

    Raises:
        ValueError: its normaliser changes characters, as NFKC does, or the ids of `added` have
            gaps; names it.
    """
    kept, normalizer, count = [], b"", 0
    for number, value in fields(model):
        if number == _NORMALIZER and isinstance(value, bytes):
            normalizer += value
        else:
            kept.append(message(number, value))
            count += number == _PIECE
    later = sorted(i for i in added if i >= count)
    if later != list(range(count, count + len(later))):
        raise ValueError(f"added tokens have the ids {later}, the model's end at {count - 1}")
    kept += [_piece(added[i]) for i in later]
    given = dict(fields(normalizer))
    name = given.get(1, b"")
    if given.get(2) or name not in (b"", b"identity"):
        raise ValueError(f"the model's normaliser is {name!r}; allowed: b'identity'")
    extras = {
        "added": [i for i in later if added[i].kind == USER_DEFINED],
        "space_prefix": "first" if given.get(3, 1) else "never",
        **extras,
    }
    return b"".join(kept) + message(_NORMALIZER, _identity()) + _written(extras)


def read_extras(model: bytes) -> dict[str, Any]:
    """What `build_model` and `adopt_model` added for chat; empty for other models."""
    for number, value in fields(model):
        if number == _EXTRAS and isinstance(value, bytes):
            extras: dict[str, Any] = json.loads(value)
            return extras
    return {}


def _identity() -> bytes:
    """A normaliser that changes nothing: no dummy prefix, no spaces removed, spaces escaped."""
    return message(1, b"identity") + message(3, 0) + message(4, 0) + message(5, 1)


def _piece(piece: Piece) -> bytes:
    kind = UNUSED if piece.kind == USER_DEFINED else piece.kind
    score = bytes([2 << 3 | 5]) + struct.pack("<f", piece.score)
    return message(_PIECE, message(1, piece.text.encode()) + score + message(3, kind))


def _written(extras: Mapping[str, Any]) -> bytes:
    text = json.dumps(extras, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return message(_EXTRAS, text.encode())
