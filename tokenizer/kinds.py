"""Token kinds by the text of the token; the `sketch` head merges neighbours of one kind."""

import unicodedata

import numpy as np

from tokenizer import Tokenizer

TYPES = ("letter", "digit", "space", "punctuation", "other")
# By the first letter of the Unicode category; combining marks count as letters.
KINDS = {"L": "letter", "M": "letter", "N": "digit", "Z": "space", "P": "punctuation"}


def token_types(tokenizer: Tokenizer) -> np.ndarray:
    """The index in TYPES of every token: [V] int64.

    Leading spaces of other text are ignored. Text of several kinds is "other", as are symbols,
    single bytes of a multi-byte character, and tokens without text.
    """
    kinds = (type_of(tokenizer.decode_bytes([id])) for id in range(tokenizer.vocab_size))
    return np.array([TYPES.index(kind) for kind in kinds], dtype=np.int64)


def type_of(data: bytes) -> str:
    """The kind of a token's text, one of TYPES."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return "other"
    kinds = {_kind(character) for character in text.lstrip(" ") or text}
    return kinds.pop() if len(kinds) == 1 else "other"


def _kind(character: str) -> str:
    if character.isspace():
        return "space"
    return KINDS.get(unicodedata.category(character)[0], "other")
