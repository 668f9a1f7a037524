"""Requirements on a SentencePiece model: lossless, with tokens that do not depend on cuts.

The settings are read from the model's bytes: SentencePiece has no call for them, and its own
reader needs the protobuf package.
Source of the field numbers: sentencepiece_model.proto of SentencePiece.
"""

from __future__ import annotations

from typing import Any

from tokenizer.boundaries import SPACE_SYMBOL, is_within_a_run
from tokenizer.protobuf import fields

# Messages and fields of a model, by number.
_TRAINER, _NORMALIZER = 2, 3
_BPE = 2

# message, field, value of an absent field, required value, error message
_SETTINGS: tuple[tuple[int, int, int | bytes, int | bytes, str], ...] = (
    (_TRAINER, 3, 1, _BPE, "model_type must be bpe"),
    (_TRAINER, 24, 0, 0, "treat_whitespace_as_suffix must be off"),
    (_TRAINER, 35, 0, 1, "byte_fallback must be on"),
    (_NORMALIZER, 2, b"", b"", "normalization_rule_name must be identity"),
    (_NORMALIZER, 3, 1, 0, "add_dummy_prefix must be off"),
    (_NORMALIZER, 4, 1, 0, "remove_extra_whitespaces must be off"),
    (_NORMALIZER, 5, 1, 1, "escape_whitespaces must be on"),
)


def check_settings(model: bytes) -> None:
    """Raise ValueError, naming the setting, for a model that would not preserve text."""
    messages = {_TRAINER: b"", _NORMALIZER: b""}
    for number, value in fields(model):
        if number in messages and isinstance(value, bytes):
            messages[number] += value
    given = {name: dict(fields(message)) for name, message in messages.items()}
    for message, field, absent, needed, words in _SETTINGS:
        if given[message].get(field, absent) != needed:
            raise ValueError(f"cannot use this SentencePiece model: {words}")


def read_vocabulary(processor: Any) -> list[bytes]:
    """The bytes that each token stands for; b"" for control symbols.

    Raises:
        ValueError: a piece crosses a hard boundary, a byte or the space has no piece, or a control
            symbol could be read from text; names the piece.
    """
    table = []
    for i in range(processor.vocab_size()):
        piece = processor.id_to_piece(i)
        if processor.is_control(i) or processor.is_unknown(i):
            if len(piece) == 1:
                raise ValueError(f"control symbol {piece!r} (id {i}) is a single character")
            table.append(b"")
        elif processor.is_byte(i):
            table.append(bytes([int(piece[3:5], 16)]))  # "<0x0A>"
        elif processor.is_unused(i):
            table.append(piece.replace(SPACE_SYMBOL, " ").encode())  # never read from text
        else:
            text = piece.replace(SPACE_SYMBOL, " ")
            if not is_within_a_run(text):
                raise ValueError(
                    f"piece {text!r} (id {i}) crosses a boundary: a piece may be newlines, or "
                    "characters other than spaces and newlines with any spaces in front"
                )
            table.append(text.encode())
    missing = set(range(256)) - {table[i][0] for i in byte_ids(processor)}
    if missing:
        raise ValueError(f"{len(missing)} bytes have no piece, among them 0x{min(missing):02X}")
    if b" " not in (table[i] for i in range(len(table)) if not processor.is_byte(i)):
        # SentencePiece would spell it as the bytes of U+2581, its internal space symbol.
        raise ValueError("a space has no piece of its own")
    return table


def byte_ids(processor: Any) -> list[int]:
    """The ids of the byte pieces, such as <0x0A>."""
    return [i for i in range(processor.vocab_size()) if processor.is_byte(i)]
