"""StreamEncoder and StreamDecoder: states, copies, and errors within a chunk."""

from typing import Any

import pytest

from tests.support.tokenizers import stream
from tokenizer import StreamDecoder, StreamEncoder, Tokenizer
from tokenizer.boundaries import MAX_RUN


def test_an_error_names_the_byte_and_keeps_the_state(tiny: Tokenizer) -> None:
    encoder = StreamEncoder(tiny, "strict")
    encoder.encode(b"ab\xf0\x9f")
    before = encoder.state
    assert before == {"text": "ab", "bytes": "f09f"}
    with pytest.raises(ValueError, match="byte 0xF0 at offset -2 of this chunk"):
        encoder.encode(b"!")
    with pytest.raises(ValueError, match="byte 0xF0 at offset -2 of this chunk: unexpected end"):
        encoder.flush()
    with pytest.raises(ValueError, match="byte 0xF0"):
        encoder.encode("str")
    with pytest.raises(ValueError, match="byte 0xFF at offset 3 of this chunk"):
        encoder.encode(b"\x98\x80c\xff")
    assert encoder.encode("").size == 0 and encoder.state == before
    encoder.encode(b"\x98\x80")
    assert encoder.state == {"text": "ab😀", "bytes": ""}


def test_str_after_an_incomplete_character(tiny: Tokenizer) -> None:
    encoder = StreamEncoder(tiny)
    ids = [*encoder.encode(b"caf\xc3"), *encoder.encode("é"), *encoder.encode(b"\xa9")]
    ids += encoder.flush().tolist()
    assert tiny.decode(ids) == "caf\ufffdé\ufffd"


def test_copies_are_independent(tiny: Tokenizer) -> None:
    encoder = StreamEncoder(tiny, "strict")
    ids = encoder.encode(b"It was the b\xc3").tolist()
    fork = encoder.copy()
    assert fork.errors == "strict"
    one = ids + stream(fork, [b"\xaa", "te"], longest_tail=MAX_RUN - 1)
    two = ids + stream(encoder, [b"\xa9b\xc3\xa9"], longest_tail=MAX_RUN - 1)
    assert one == tiny.encode("It was the bête").tolist()
    assert two == tiny.encode("It was the bébé").tolist()
    assert encoder.state == {"text": "", "bytes": ""}  # flushed: ready for a new text
    again = stream(encoder, ["It was"], longest_tail=MAX_RUN - 1)
    assert again == tiny.encode("It was").tolist()


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"text": ""},
        {"text": "", "bytes": "", "more": ""},
        {"text": 1, "bytes": ""},
        {"text": "\ud800", "bytes": ""},
        {"text": "", "bytes": "zz"},
        {"text": "", "bytes": "61"},
        {"text": "", "bytes": "ff"},
        {"text": "", "bytes": "c3a9c3"},
    ],
)
def test_a_wrong_state_is_refused(tiny: Tokenizer, state: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"state|surrogate"):
        StreamEncoder(tiny, state=state)


def test_decoder_state(tiny: Tokenizer) -> None:
    decoder = StreamDecoder(tiny)
    first, second = tiny.encode("ü").tolist()
    assert decoder.decode([first]) == "" and decoder.state == {"bytes": "c3"}
    fork = decoder.copy()
    assert fork.decode([second]) == "ü"
    assert decoder.flush() == "\ufffd" and decoder.flush() == ""
    for state in ({}, {"bytes": "61"}, {"bytes": "", "text": ""}):
        with pytest.raises(ValueError, match="state"):
            StreamDecoder(tiny, state=state)
