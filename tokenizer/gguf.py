"""Tokenizers from the metadata of a GGUF file.

Source of the keys: the GGUF specification (ggml, docs/gguf.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizer.byte_pair import BytePairTokenizer
from tokenizer.patterns import GGML
from tokenizer.piece_model import CONTROL, NORMAL, UNUSED, USER_DEFINED, Piece, build_model
from tokenizer.sentencepiece import SentencePieceTokenizer
from tokenizer.tokenizer import Tokenizer
from tokenizer.vocabulary import Vocabulary, end_ids, start_id

_NAMES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


def from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that the metadata of a GGUF file describes: "gpt2" or "llama".

    Args:
        metadata: the file's keys and values, arrays as sequences.

    Raises:
        ValueError: a kind of tokenizer or pre-tokenizer that is not supported, or metadata that are
            incomplete or inconsistent; names it and what is allowed.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        return BytePairTokenizer(_byte_level(metadata))
    if kind == "llama":
        return SentencePieceTokenizer(_pieces(metadata))
    raise ValueError(f"tokenizer.ggml.model is {kind!r}; allowed: 'gpt2', 'llama'")


def _byte_level(metadata: Mapping[str, Any]) -> Vocabulary:
    pre = metadata.get("tokenizer.ggml.pre")
    if pre not in GGML:
        raise ValueError(f"tokenizer.ggml.pre is {pre!r}; allowed: {', '.join(GGML)}")
    tokens, types = _tokens(metadata)
    special = tuple(i for i, kind in enumerate(types) if kind == CONTROL)
    by_text = {tokens[i]: i for i in special}
    adds = metadata.get("tokenizer.ggml.add_bos_token", GGML[pre] == "llama3")
    bos, eos = (_id(metadata, f"{name}_token_id", len(tokens)) for name in ("bos", "eos"))
    return Vocabulary(
        pattern=GGML[pre],
        tokens=tuple(
            None if kind == UNUSED else token for token, kind in zip(tokens, types, strict=True)
        ),
        merges=tuple(map(_text, _array(metadata, "merges"))),
        special=special,
        added=tuple(i for i, kind in enumerate(types) if kind == USER_DEFINED),
        bos_id=start_id(by_text, bos=bos, eos=eos, adds=bool(adds)),
        eos_ids=end_ids(by_text, _ends(metadata, len(tokens))),
        ignore_merges=GGML[pre] == "llama3",
        chat_template=chat_template(metadata),
        names=_names(metadata, tokens),
    )


def _pieces(metadata: Mapping[str, Any]) -> bytes:
    tokens, types = _tokens(metadata)
    scores = _array(metadata, "scores")
    if len(scores) != len(tokens):
        raise ValueError(f"the GGUF file has {len(tokens)} tokens and {len(scores)} scores")
    pieces = [
        Piece(token, float(score), kind)
        for token, score, kind in zip(tokens, scores, types, strict=True)
    ]
    by_text = {piece.text: i for i, piece in enumerate(pieces) if piece.kind == CONTROL}
    bos, eos = (_id(metadata, f"{name}_token_id", len(tokens)) for name in ("bos", "eos"))
    adds = metadata.get("tokenizer.ggml.add_bos_token", True)
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    return build_model(
        pieces,
        bos_id=start_id(by_text, bos=bos, eos=eos, adds=bool(adds)),
        eos_ids=end_ids(by_text, _ends(metadata, len(tokens))),
        chat_template=chat_template(metadata),
        names=_names(metadata, tokens),
        space_prefix="always" if prefix else "never",
    )


def chat_template(metadata: Mapping[str, Any]) -> str | None:
    """The Jinja source of the chat template, None where there is none."""
    value = metadata.get("tokenizer.chat_template")
    return None if value is None else _text(value)


def _tokens(metadata: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    tokens = [_text(token) for token in _array(metadata, "tokens")]
    types = [
        int(kind) for kind in metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    ]
    if len(types) != len(tokens):
        raise ValueError(f"the GGUF file has {len(tokens)} tokens and {len(types)} token types")
    return tokens, types


def _array(metadata: Mapping[str, Any], name: str) -> Sequence[Any]:
    key = f"tokenizer.ggml.{name}"
    if key not in metadata:
        raise ValueError(f"the GGUF file has no {key}")
    array: Sequence[Any] = metadata[key]
    return array


def _id(metadata: Mapping[str, Any], name: str, vocab_size: int) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{name}")
    if value is None:
        return None
    if not 0 <= int(value) < vocab_size:
        raise ValueError(f"tokenizer.ggml.{name} is {value}; allowed: 0 to {vocab_size - 1}")
    return int(value)


def _ends(metadata: Mapping[str, Any], vocab_size: int) -> list[int]:
    """The ids that the file gives as the end of a text or a turn."""
    names = ("eos_token_id", "eot_token_id", "eom_token_id")
    return [i for name in names if (i := _id(metadata, name, vocab_size)) is not None]


def _names(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, str]:
    ids = {name: _id(metadata, key, len(tokens)) for name, key in _NAMES.items()}
    return {name: tokens[i] for name, i in ids.items() if i is not None}


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode("utf-8")
    raise ValueError(f"expected text in the GGUF file's tokenizer, given {type(value).__name__}")
