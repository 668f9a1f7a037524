"""The tokenizer of a SentencePiece BPE model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenizer import boundaries
from tokenizer.boundaries import SPACE_SYMBOL, blocks, segments
from tokenizer.model_file import byte_ids, check_settings, read_vocabulary
from tokenizer.piece_model import read_extras
from tokenizer.tokenizer import ChatFormat, Errors, Ids, Tokenizer, valid_ids, valid_text


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece BPE model; its methods are those of `Tokenizer`.

    The fingerprint is the SHA-256 of the model file. `settled` holds back less than
    `boundaries.MAX_RUN` characters.

    Args:
        model: the bytes of a model file, or its path.

    Raises:
        ValueError: the bytes are no SentencePiece model, or it has settings or pieces that lose
            text or depend on how text is cut (the message names them), or no `<s>`.
    """

    def __init__(self, model: bytes | str | os.PathLike[str]) -> None:
        import sentencepiece  # here, because `import streamlm` must not load it

        self.model_bytes = model if isinstance(model, bytes) else Path(model).read_bytes()
        self.fingerprint = hashlib.sha256(self.model_bytes).hexdigest()
        self._processor: Any = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(self.model_bytes)
        except RuntimeError as error:
            which = "the bytes are" if isinstance(model, bytes) else f"{os.fspath(model)} is"
            raise ValueError(f"{which} no SentencePiece model: {error}") from error
        check_settings(self.model_bytes)
        self._bytes_of = read_vocabulary(self._processor)
        self.vocab_size = len(self._bytes_of)
        self.bos_id = self._processor.bos_id()
        if self.bos_id < 0:
            raise ValueError("the model has no <s> (bos_id is -1)")
        extras = read_extras(self.model_bytes)
        end = self._processor.eos_id()
        self.eos_ids = tuple(extras.get("eos_ids", (end,) if end >= 0 else ()))
        self.chat = self._chat(extras) if extras else None
        self.token_lengths = np.array([len(data) for data in self._bytes_of], dtype=np.int32)
        self.token_lengths.flags.writeable = False
        spelling = {self._bytes_of[i]: i for i in byte_ids(self._processor)}
        self._space_symbol = [spelling[bytes([byte])] for byte in SPACE_SYMBOL.encode()]

    def __repr__(self) -> str:
        fingerprint = self.fingerprint[:12]
        return f"SentencePieceTokenizer(vocab_size={self.vocab_size}, {fingerprint=})"

    def _chat(self, extras: Mapping[str, Any]) -> ChatFormat:
        piece = self._processor.id_to_piece
        controls = (i for i in range(self.vocab_size) if self._processor.is_control(i))
        return ChatFormat(
            extras.get("chat_template"),
            special={piece(i): i for i in controls},
            added={piece(i): i for i in extras.get("added", ())},
            names=extras.get("names", {}),
            space_prefix=extras.get("space_prefix", "never"),
        )

    def encode(self, text: str, *, errors: Errors = "replace") -> NDArray[np.int32]:
        """The tokens of `text`, without `<s>`; see `Tokenizer.encode`."""
        parts = (part for block in blocks(valid_text(text, errors)) for part in segments(block))
        # One call for each part: a call with a list starts threads, which takes longer than a word.
        encode = self._processor.encode_as_ids
        # SentencePiece would read U+2581 as a space, so these parts are spelled in bytes here.
        ids = (
            self._space_symbol * len(part) if part[0] == SPACE_SYMBOL else encode(part)
            for part in parts
        )
        return np.fromiter(chain.from_iterable(ids), dtype=np.int32)

    def settled(self, text: str) -> int:
        """The place of the last cut in `text`; see `tokenizer.boundaries`."""
        return boundaries.settled(text)

    def decode_bytes(self, ids: Ids) -> bytes:
        """The bytes that `ids` stand for; see `Tokenizer.decode_bytes`."""
        return b"".join(map(self._bytes_of.__getitem__, valid_ids(ids, self.vocab_size)))

    def decode(self, ids: Ids) -> str:
        """The text that `ids` stand for; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")
