"""The tokenizer of a byte-level BPE model: GPT-2, SmolLM, Llama 3, Qwen, and their kin."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenizer import cuts
from tokenizer.patterns import pre_tokenizer
from tokenizer.tokenizer import ChatFormat, Errors, Ids, Tokenizer, valid_ids, valid_text
from tokenizer.vocabulary import Vocabulary

_REPLACEMENT = "\ufffd"
# Bytes that never occur in UTF-8: a vocabulary need not have them.
_NOT_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}


class BytePairTokenizer(Tokenizer):
    """A byte-level BPE; its methods are those of `Tokenizer`.

    Its ids are those of the model's own tokenizer (the `tokenizers` library), with these
    differences:

    - Special tokens are never read from text, nor added tokens such as Qwen's <think>. Both come
      from chat templates alone. An added token is decoded to its text, a special one to none.
    - Text is not normalised: Qwen's own tokenizer composes it first (NFC).
    - A run of text without a hard boundary (`tokenizer.cuts`) longer than `cuts.MAX_RUN` is cut.
    - A character whose bytes the vocabulary lacks is read as U+FFFD, where the model's own would
      read a special token or nothing; errors="strict" refuses it. SmolLM2 lacks six control
      characters and U+40000 to U+BFFFF, of which none is assigned.

    `settled` holds back less than `cuts.MAX_RUN` characters. The fingerprint covers vocabulary,
    merges, pattern and special tokens, not the chat template.

    Args:
        vocabulary: the model; from its serialisation, see `Vocabulary.from_bytes`.

    Raises:
        ValueError: the vocabulary is inconsistent, or cannot spell ASCII text; says why.
        ModuleNotFoundError: the `tokenizers` library is missing; says how to install it.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.model_bytes = vocabulary.to_bytes()
        self.fingerprint = vocabulary.fingerprint
        self.vocab_size = len(vocabulary.tokens)
        self.bos_id = vocabulary.bos_id
        self.eos_ids = vocabulary.eos_ids
        tokens = vocabulary.tokens
        self.chat = ChatFormat(
            vocabulary.chat_template,
            special={str(tokens[i]): i for i in vocabulary.special},
            added={str(tokens[i]): i for i in vocabulary.added},
            names=dict(vocabulary.names),
        )
        self._bytes_of = [_spelled(vocabulary, i) for i in range(self.vocab_size)]
        for i in vocabulary.special:
            self._bytes_of[i] = b""
        for i in vocabulary.added:
            self._bytes_of[i] = str(tokens[i]).encode()
        self.token_lengths = np.array([len(data) for data in self._bytes_of], dtype=np.int32)
        self.token_lengths.flags.writeable = False
        apart = {*vocabulary.special, *vocabulary.added}
        ids = {token: i for i, token in enumerate(tokens) if token is not None and i not in apart}
        self._unspellable = _unspellable({ALPHABET[char] for char in ALPHABET if char in ids})
        self._encoder = _build(vocabulary, ids)

    def __repr__(self) -> str:
        pattern, fingerprint = self.vocabulary.pattern, self.fingerprint[:12]
        return f"BytePairTokenizer(vocab_size={self.vocab_size}, {pattern=}, {fingerprint=})"

    def encode(self, text: str, *, errors: Errors = "replace") -> NDArray[np.int32]:
        """The tokens of `text`, without bos; see `Tokenizer.encode`."""
        parts = list(cuts.parts(valid_text(text, errors)))
        if self._unspellable is not None:
            if errors == "strict" and (found := self._unspellable.search(text)):
                raise ValueError(
                    f"character U+{ord(found.group()):04X} at offset {found.start()} has bytes "
                    "that this vocabulary lacks"
                )
            parts = [self._unspellable.sub(_REPLACEMENT, part) for part in parts]
        if len(parts) == 1:  # a call with a list starts threads
            ids = self._encoder.encode(parts[0], add_special_tokens=False).ids
            return np.array(ids, dtype=np.int32)
        found = self._encoder.encode_batch_fast(parts, add_special_tokens=False)
        pieces = [np.array(encoding.ids, dtype=np.int32) for encoding in found]
        return np.concatenate([np.zeros(0, np.int32), *pieces])

    def settled(self, text: str) -> int:
        """The place of the last cut in `text`; see `tokenizer.cuts`."""
        return cuts.settled(text)

    def decode_bytes(self, ids: Ids) -> bytes:
        """The bytes that `ids` stand for; see `Tokenizer.decode_bytes`."""
        return b"".join(map(self._bytes_of.__getitem__, valid_ids(ids, self.vocab_size)))

    def decode(self, ids: Ids) -> str:
        """The text that `ids` stand for; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")


def _alphabet() -> dict[str, int]:
    """GPT-2's alphabet: a visible character for every byte.

    Source: bytes_to_unicode of openai/gpt-2 (encoder.py).
    """
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {
        **{chr(byte): byte for byte in visible},
        **{chr(256 + n): byte for n, byte in enumerate(others)},
    }


ALPHABET = _alphabet()


def _spelled(vocabulary: Vocabulary, i: int) -> bytes:
    """The bytes of an ordinary token; b"" for an id without one, and for others."""
    token = vocabulary.tokens[i]
    if token is None:
        return b""
    try:
        return bytes(map(ALPHABET.__getitem__, token))
    except KeyError as error:
        if i in vocabulary.special or i in vocabulary.added:
            return b""
        raise ValueError(
            f"token {token!r} (id {i}) is not spelled in the alphabet of byte-level BPE: it has "
            f"{error.args[0]!r}"
        ) from None


def _build(vocabulary: Vocabulary, ids: dict[str, int]) -> Any:
    """The library's tokenizer, without special and added tokens: text cannot name them."""
    try:
        from tokenizers import Tokenizer as Library
        from tokenizers.models import BPE
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "byte-level BPE needs the tokenizers library: pip install 'streamlm[pretrained]'"
        ) from None

    ordinary = sum(token is not None for token in vocabulary.tokens)
    if len(ids) != ordinary - len({*vocabulary.special, *vocabulary.added}):
        raise ValueError("two ids of the vocabulary have the same token")
    merges = []
    for merge in vocabulary.merges:
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= ids.keys():
            raise ValueError(f"the merge {merge!r} has tokens that the vocabulary lacks")
        merges.append((left, right))
    library = Library(BPE(ids, merges, ignore_merges=vocabulary.ignore_merges))
    library.pre_tokenizer = pre_tokenizer(vocabulary.pattern)
    return library


def _unspellable(spelled: set[int]) -> re.Pattern[str] | None:
    """Matches the characters with a byte that is not `spelled`; None if every one is."""
    missing = set(range(256)) - spelled - _NOT_IN_UTF8
    needed = {*b"\t\n\r", *range(0x20, 0x7F), *range(0x80, 0xC0), *_REPLACEMENT.encode()}
    if bad := missing & needed:
        raise ValueError(f"the vocabulary cannot spell text: it has no token for 0x{min(bad):02X}")
    spans = []
    for byte in sorted(missing):  # ASCII, or the first byte of two, three or four
        if byte < 0x80:
            first, last = byte, byte
        elif byte < 0xE0:
            first, last = (byte & 0x1F) << 6, (byte & 0x1F) << 6 | 0x3F
        elif byte < 0xF0:
            first, last = max((byte & 0x0F) << 12, 0x800), (byte & 0x0F) << 12 | 0xFFF
        else:
            first = max((byte & 0x07) << 18, 0x10000)
            last = min((byte & 0x07) << 18 | 0x3FFFF, 0x10FFFF)
        spans.append(f"\\U{first:08x}-\\U{last:08x}")
    return re.compile(f"[{''.join(spans)}]") if spans else None
