"""SentencePiece vocabularies in the form of a tokenizer.json: Llama 2, TinyLlama, Mistral.

The file spells a space as U+2581, in a normaliser or in the pre-tokenizer Metaspace, and lists
merges in place of scores.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tokenizer.boundaries import SPACE_SYMBOL
from tokenizer.piece_model import BYTE, NORMAL, UNKNOWN, UNUSED, Piece

_BYTE = re.compile("<0x[0-9A-F]{2}>")
PREFIXES = ("never", "first", "always")
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_SYMBOL}


def space_prefix(data: Mapping[str, Any]) -> str:
    """Where a tokenizer.json puts a space before text; see `ChatFormat.space_prefix`.

    Raises:
        ValueError: its normaliser or pre-tokenizer are not those of SentencePiece; shows them.
    """
    normalizer, pre = data.get("normalizer"), data.get("pre_tokenizer")
    steps = normalizer.get("normalizers", [normalizer]) if normalizer else []
    if pre is None and steps == [{"type": "Prepend", "prepend": SPACE_SYMBOL}, _REPLACE]:
        return "always"
    if pre is None and steps == [_REPLACE]:
        return "never"
    if not steps and pre and pre.get("type") == "Metaspace":
        scheme, whole = pre.get("prepend_scheme"), pre.get("split") is False
        if whole and pre.get("replacement") == SPACE_SYMBOL and scheme in PREFIXES:
            return str(scheme)
    raise ValueError(
        f"cannot use the normalizer {normalizer!r} with the pre_tokenizer {pre!r} for a vocabulary "
        f"with byte_fallback; allowed: {SPACE_SYMBOL!r} in place of spaces, by Replace or by "
        "Metaspace without split"
    )


def pieces_of(model: Mapping[str, Any], added: Mapping[int, Piece]) -> list[Piece]:
    """The pieces of a BPE model, with scores that give its merges their order.

    SentencePiece merges any two pieces whose text together is a piece, so the merges must be all
    such pairs, as in files converted from a SentencePiece model.

    Raises:
        ValueError: ids have gaps, or merges are missing; says which.
    """
    vocab: Mapping[str, int] = model["vocab"]
    by_id = {i: token for token, i in vocab.items()} | {i: piece.text for i, piece in added.items()}
    merges = [tuple(m.split(" ") if isinstance(m, str) else m) for m in model["merges"]]
    rank: dict[str, int] = {}
    for n, merge in enumerate(merges):
        rank.setdefault("".join(merge), n)
    known, unknown = set(merges), model.get("unk_token")
    pieces = []
    for i in range(max(by_id) + 1):
        if i not in by_id:
            raise ValueError(f"the vocabulary has no token with id {i}")
        text = by_id[i]
        if text == unknown:
            pieces.append(Piece(text, 0.0, UNKNOWN))
        elif i in added:
            pieces.append(added[i])
        elif _BYTE.fullmatch(text):
            pieces.append(Piece(text, 0.0, BYTE))
        elif len(text) > 1 and text not in rank:  # no merge makes it
            pieces.append(Piece(text, 0.0, UNUSED))
        else:
            _check_merges(text, vocab, known)
            pieces.append(Piece(text, -float(rank.get(text, len(merges))), NORMAL))
    return pieces


def _check_merges(text: str, vocab: Mapping[str, int], merges: set[Any]) -> None:
    for at in range(1, len(text)):
        left, right = text[:at], text[at:]
        if left in vocab and right in vocab and (left, right) not in merges:
            raise ValueError(
                f"the merges are not those of a SentencePiece model: {left!r} and {right!r} are "
                f"not merged to {text!r}"
            )
