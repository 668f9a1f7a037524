"""Streaming encoder and decoder: the same result as encoding or decoding the whole text."""

from __future__ import annotations

import codecs
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tokenizer.tokenizer import Errors, Ids, Tokenizer, valid_text


class StreamEncoder:
    """Encodes a text chunk by chunk; the chunking does not affect the tokens.

    The tokens of all `encode` calls and a `flush` are exactly `tokenizer.encode(text)`, even if a
    chunk ends within a word or, in a chunk of bytes, within a character. The encoder holds back
    the tail whose tokens could still change: what `Tokenizer.settled` leaves and, after a chunk of
    bytes, an incomplete character.

    Args:
        errors: "replace" reads lone surrogates and invalid UTF-8 as U+FFFD, as Python does;
            "strict" raises ValueError for them and leaves the encoder unchanged.
        state: the `state` of an encoder to continue; None starts a new stream.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        errors: Errors = "replace",
        *,
        state: Mapping[str, str] | None = None,
    ) -> None:
        valid_text("", errors)
        self.tokenizer = tokenizer
        self.errors = errors
        self._text = ""
        self._bytes = b""
        if state is not None:
            _check_keys(state, {"text", "bytes"})
            self._text = valid_text(state["text"], "strict")
            self._bytes = _incomplete(state["bytes"])

    @property
    def state(self) -> dict[str, str]:
        """The held-back tail as plain JSON: text, and an incomplete character's bytes in hex."""
        return {"text": self._text, "bytes": self._bytes.hex()}

    def encode(self, chunk: str | bytes) -> NDArray[np.int32]:
        """The tokens that `chunk`, text or UTF-8 bytes, makes final: [n].

        If a `str` follows a chunk of bytes that ended within a character, that character counts as
        invalid UTF-8.
        """
        if isinstance(chunk, str):
            new = valid_text(chunk, self.errors)
            new, rest = self._end_of_bytes() + new if chunk else "", b"" if chunk else self._bytes
        else:
            new, rest = self._decode(bytes(chunk), final=False)
        text = self._text + new
        end = self.tokenizer.settled(text)
        ids = self.tokenizer.encode(text[:end])
        self._text, self._bytes = text[end:], rest
        return ids

    def flush(self) -> NDArray[np.int32]:
        """The tokens of the held-back tail: [n]. The text ends; the next chunk starts a new one."""
        ids = self.tokenizer.encode(self._text + self._end_of_bytes())
        self._text, self._bytes = "", b""
        return ids

    def copy(self) -> StreamEncoder:
        """An independent encoder in the same state."""
        return StreamEncoder(self.tokenizer, self.errors, state=self.state)

    def _end_of_bytes(self) -> str:
        return self._decode(b"", final=True)[0] if self._bytes else ""

    def _decode(self, data: bytes, *, final: bool) -> tuple[str, bytes]:
        """The text of the held-back bytes and `data`, and the incomplete character at the end."""
        held = len(self._bytes)
        data = self._bytes + data
        try:
            text, used = codecs.utf_8_decode(data, self.errors, final)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"invalid UTF-8: byte 0x{data[error.start]:02X} at offset {error.start - held} "
                f"of this chunk: {error.reason}"
            ) from None
        return text, data[used:]


class StreamDecoder:
    """Decodes tokens as they arrive, in whole characters.

    The texts of all `decode` calls and a `flush` are `tokenizer.decode` of all ids.

    Args:
        state: the `state` of a decoder to continue; None starts a new stream.
    """

    def __init__(self, tokenizer: Tokenizer, *, state: Mapping[str, str] | None = None) -> None:
        self.tokenizer = tokenizer
        self._bytes = b""
        if state is not None:
            _check_keys(state, {"bytes"})
            self._bytes = _incomplete(state["bytes"])

    @property
    def state(self) -> dict[str, str]:
        """The incomplete character at the end, as plain JSON: its bytes in hex."""
        return {"bytes": self._bytes.hex()}

    def decode(self, ids: Ids) -> str:
        """The characters that `ids` complete; ValueError for an id out of range."""
        data = self._bytes + self.tokenizer.decode_bytes(ids)
        text, used = codecs.utf_8_decode(data, "replace", False)
        self._bytes = data[used:]
        return text

    def flush(self) -> str:
        """U+FFFD for an incomplete character, else ""; the next ids start a new text."""
        text, _ = codecs.utf_8_decode(self._bytes, "replace", True)
        self._bytes = b""
        return text

    def copy(self) -> StreamDecoder:
        """An independent decoder in the same state."""
        return StreamDecoder(self.tokenizer, state=self.state)


def _check_keys(state: Mapping[str, str], keys: set[str]) -> None:
    if set(state) != keys or not all(isinstance(value, str) for value in state.values()):
        raise ValueError(f"state must hold the strings {sorted(keys)}, given {dict(state)!r}")


def _incomplete(data: str) -> bytes:
    """The bytes of a hex string, which must be the start of one UTF-8 character."""
    try:
        held = bytes.fromhex(data)
        used = codecs.utf_8_decode(held, "strict", False)[1]
    except ValueError:
        used = -1
    if used:
        raise ValueError(f"state's bytes must be an incomplete character in hex, given {data!r}")
    return held
