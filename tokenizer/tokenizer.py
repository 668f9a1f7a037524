"""The tokenizer protocol, and checks that its implementations share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Errors: TypeAlias = Literal["strict", "replace"]
Ids: TypeAlias = Sequence[int] | NDArray[np.integer[Any]]

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class ChatFormat:
    """The chat template of a model, and the tokens that only a template makes, never a text.

    Attributes:
        template: the Jinja source; None where the model has none.
        special: ids of the control symbols by their text.
        added: ids of tokens that stand for text, such as <think>, by it.
        names: text of the tokens that templates know by name, such as bos_token.
        space_prefix: where the model's own tokenizer puts a space before text: "never"; "first",
            at the beginning; "always", after a special token too.
    """

    template: str | None
    special: Mapping[str, int]
    added: Mapping[str, int] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    space_prefix: str = "never"


class Tokenizer(Protocol):
    """A lossless map between text and token ids; `load_tokenizer` returns one.

    `decode_bytes(encode(text)) == text.encode("utf-8")` holds for every text: no normalisation,
    and text outside the vocabulary is spelled in bytes. Special symbols are never read from text:
    `"<s>"` in a book is ordinary tokens. A tokenizer is immutable.

    Attributes:
        model_bytes: the model file; `load_tokenizer(model_bytes)` is the same tokenizer.
        fingerprint: hex digest; tokenizers with the same one agree on everything.
        vocab_size: V; ids are 0 to V - 1.
        bos_id: the control symbol that precedes a text; `encode` never returns it.
        token_lengths: [V] bytes that each token stands for, 0 for control symbols; read-only.
        eos_ids: control symbols that end a text or a turn; a model that chats stops at them.
        chat: what a chat template can make of the vocabulary; None where that is not known.
    """

    model_bytes: bytes
    fingerprint: str
    vocab_size: int
    bos_id: int
    token_lengths: NDArray[np.int32]
    eos_ids: tuple[int, ...] = ()
    chat: ChatFormat | None = None

    def encode(self, text: str, *, errors: Errors = "replace") -> NDArray[np.int32]:
        """The tokens of `text`, without `bos_id`: [n].

        A `str` can hold lone surrogates, which UTF-8 cannot encode: "replace" reads each as U+FFFD,
        "strict" raises a ValueError that names the first one and its offset.
        """

    def settled(self, text: str) -> int:
        """Characters at the start of `text` whose tokens are final, whatever text follows.

        For n = settled(text) and any `more`, encode(text + more) is encode(text[:n]) followed by
        encode(text[n:] + more). `text` starts where an earlier call cut, or at the beginning of the
        whole text. The length of text[n:] is bounded, so that a stream holds little back.
        """

    def decode_bytes(self, ids: Ids) -> bytes:
        """The bytes that `ids` stand for; control symbols stand for none.

        Raises ValueError for an id outside the vocabulary.
        """

    def decode(self, ids: Ids) -> str:
        """The text that `ids` stand for; bytes that are not UTF-8 become U+FFFD."""


def valid_text(text: str, errors: Errors) -> str:
    """`text` with lone surrogates replaced by U+FFFD or, under "strict", refused."""
    if errors not in ("strict", "replace"):
        raise ValueError(f"errors must be 'strict' or 'replace', given {errors!r}")
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError as error:
        if errors == "strict":
            raise ValueError(
                f"character U+{ord(text[error.start]):04X} at offset {error.start} is a lone "
                "surrogate, which UTF-8 cannot encode"
            ) from None
        return _SURROGATE.sub("\ufffd", text)
    return text


def valid_ids(ids: Ids, vocab_size: int) -> list[int]:
    """`ids` as a list; ValueError unless they are a sequence of integers below `vocab_size`."""
    array = np.asarray(ids)
    if array.ndim != 1:
        raise ValueError(f"ids must be a sequence of integers, given shape {array.shape}")
    if array.size == 0:
        return []
    if array.dtype.kind not in "iu":
        raise ValueError(f"ids must be integers, given {array.dtype}")
    for extreme in (array.min(), array.max()):
        if not 0 <= extreme < vocab_size:
            raise ValueError(f"id {extreme} is out of range: 0 to {vocab_size - 1}")
    checked: list[int] = array.tolist()
    return checked
