"""The contract of every tokenizer, as a class of tests that each kind inherits."""

import json
import re
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.texts import CORPUS, CUTS, SHORT, TEXTS, TRAPS, split
from tokenizer import StreamDecoder, StreamEncoder, Tokenizer, load_tokenizer

# Every subclass runs the same test functions.
inherited = settings(suppress_health_check=[HealthCheck.differing_executors])

BROKEN = st.lists(
    st.one_of(
        st.binary(max_size=6),
        st.text(max_size=6).map(str.encode),
        st.sampled_from([b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"\xf0\x9f\x98"]),
    ),
    max_size=6,
).map(b"".join)


def stream(encoder: StreamEncoder, chunks: list[Any], *, longest_tail: int) -> list[int]:
    """All tokens of a stream; checks the held-back tail after every chunk."""
    ids: list[int] = []
    for chunk in chunks:
        ids += encoder.encode(chunk).tolist()
        assert len(encoder.state["text"]) <= longest_tail
        assert len(bytes.fromhex(encoder.state["bytes"])) < 4
    return ids + encoder.flush().tolist()


class TokenizerConformance:
    """The contract of `Tokenizer`, alone and under StreamEncoder and StreamDecoder.

    A subclass provides a fixture `tok`, the tokenizer, in the scope of its class or module.

    Attributes:
        longest_tail: the most characters that `settled` leaves.
    """

    longest_tail: ClassVar[int]

    def stream(self, encoder: StreamEncoder, chunks: list[Any]) -> list[int]:
        return stream(encoder, chunks, longest_tail=self.longest_tail)

    # -- lossless ------------------------------------------------------------------------------

    @inherited
    @given(text=TEXTS)
    @example(text="")
    @example(text="".join(TRAPS))
    def test_encoding_is_lossless(self, tok: Tokenizer, text: str) -> None:
        ids = tok.encode(text)
        assert ids.dtype == np.int32 and ids.ndim == 1
        assert tok.decode_bytes(ids) == text.encode("utf-8")
        assert tok.decode(ids) == text
        assert tok.token_lengths[ids].sum() == len(text.encode("utf-8"))

    @inherited
    @given(text=TEXTS)
    @example(text="".join(TRAPS))
    def test_control_symbols_are_never_read_from_text(self, tok: Tokenizer, text: str) -> None:
        ids = tok.encode(text)
        assert tok.bos_id not in ids and bool((tok.token_lengths[ids] > 0).all())

    @pytest.mark.parametrize("trap", TRAPS)
    def test_traps_within_words(self, tok: Tokenizer, trap: str) -> None:
        for text in (trap, f"a{trap}b", f" {trap} ", trap * 3, f"the{trap}"):
            assert tok.decode_bytes(tok.encode(text)) == text.encode("utf-8")

    @inherited
    @given(text=st.text(st.characters(categories=["Cs", "L"])))
    def test_lone_surrogates(self, tok: Tokenizer, text: str) -> None:
        found = re.search("[\ud800-\udfff]", text)
        replaced = re.sub("[\ud800-\udfff]", "\ufffd", text)
        assert np.array_equal(tok.encode(text), tok.encode(replaced, errors="strict"))
        if found is None:
            assert np.array_equal(tok.encode(text, errors="strict"), tok.encode(text))
            return
        name = rf"U\+{ord(found.group()):04X} at offset {found.start()} "
        with pytest.raises(ValueError, match=name):
            tok.encode(text, errors="strict")
        encoder = StreamEncoder(tok, "strict")
        encoder.encode("kept")
        before = encoder.state
        with pytest.raises(ValueError, match=name):
            encoder.encode(text)
        assert encoder.state == before

    def test_wrong_errors_option_is_refused(self, tok: Tokenizer) -> None:
        with pytest.raises(ValueError, match="'strict' or 'replace', given 'ignore'"):
            tok.encode("a", errors="ignore")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="'strict' or 'replace', given 'ignore'"):
            StreamEncoder(tok, "ignore")  # type: ignore[arg-type]

    # -- independent of cuts -------------------------------------------------------------------

    @inherited
    @given(text=TEXTS, more=TEXTS)
    def test_tokens_of_settled_text_are_final(self, tok: Tokenizer, text: str, more: str) -> None:
        end = tok.settled(text)
        assert 0 <= end <= len(text) and len(text) - end <= self.longest_tail
        parts = [*tok.encode(text[:end]).tolist(), *tok.encode(text[end:] + more).tolist()]
        assert tok.encode(text + more).tolist() == parts

    @inherited
    @given(text=TEXTS, cuts=CUTS)
    @example(text="\n" * 7 + " a" + "\u2581" * 3, cuts=list(range(12)))
    def test_chunks_of_str(self, tok: Tokenizer, text: str, cuts: list[int]) -> None:
        assert self.stream(StreamEncoder(tok), split(text, cuts)) == tok.encode(text).tolist()

    @inherited
    @given(text=TEXTS, cuts=CUTS)
    @example(text="😀" * 3, cuts=list(range(13)))
    def test_chunks_of_bytes(self, tok: Tokenizer, text: str, cuts: list[int]) -> None:
        chunks = split(text.encode("utf-8"), cuts)
        assert self.stream(StreamEncoder(tok, "strict"), chunks) == tok.encode(text).tolist()

    def test_one_character_at_a_time(self, tok: Tokenizer) -> None:
        text = CORPUS + "".join(TRAPS) + "x" * 600
        whole = tok.encode(text).tolist()
        assert self.stream(StreamEncoder(tok), list(text)) == whole
        single = [bytes([byte]) for byte in text.encode()]
        assert self.stream(StreamEncoder(tok), single) == whole

    @inherited
    @given(text=TEXTS, cuts=CUTS)
    def test_emitted_tokens_are_final(self, tok: Tokenizer, text: str, cuts: list[int]) -> None:
        whole = tok.encode(text).tolist()
        encoder, ids = StreamEncoder(tok), []
        for chunk in split(text, cuts):
            ids += encoder.encode(chunk).tolist()
            assert whole[: len(ids)] == ids

    @inherited
    @given(text=TEXTS, cuts=CUTS, as_bytes=st.booleans())
    def test_an_encoder_resumes_from_its_state(
        self, tok: Tokenizer, text: str, cuts: list[int], as_bytes: bool
    ) -> None:
        encoder, ids = StreamEncoder(tok, "strict"), []
        for chunk in split(text.encode() if as_bytes else text, cuts):
            ids += encoder.encode(chunk).tolist()
            encoder = StreamEncoder(tok, "strict", state=json.loads(json.dumps(encoder.state)))
        assert ids + encoder.flush().tolist() == tok.encode(text).tolist()

    # -- bytes that are not UTF-8 --------------------------------------------------------------

    @inherited
    @given(data=BROKEN, cuts=CUTS)
    def test_invalid_bytes_are_replaced(self, tok: Tokenizer, data: bytes, cuts: list[int]) -> None:
        whole = tok.encode(data.decode("utf-8", errors="replace")).tolist()
        assert self.stream(StreamEncoder(tok), split(data, cuts)) == whole

    @inherited
    @given(data=BROKEN, cuts=CUTS)
    def test_invalid_bytes_are_refused(self, tok: Tokenizer, data: bytes, cuts: list[int]) -> None:
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            with pytest.raises(ValueError, match="invalid UTF-8: byte 0x"):
                self.stream(StreamEncoder(tok, "strict"), split(data, cuts))
        else:
            chunks = split(data, cuts)
            assert self.stream(StreamEncoder(tok, "strict"), chunks) == tok.encode(text).tolist()

    # -- decoding ------------------------------------------------------------------------------

    @inherited
    @given(data=st.data(), cuts=CUTS)
    def test_decoder_agrees_with_decode(
        self, tok: Tokenizer, data: st.DataObject, cuts: list[int]
    ) -> None:
        low = st.integers(0, min(300, tok.vocab_size - 1))  # often control symbols and bytes
        ids = data.draw(st.lists(st.one_of(low, st.integers(0, tok.vocab_size - 1))))
        decoder, text = StreamDecoder(tok), ""
        for chunk in split(ids, cuts):
            text += decoder.decode(chunk)
            decoder = StreamDecoder(tok, state=json.loads(json.dumps(decoder.state)))
        assert text + decoder.flush() == tok.decode(ids)
        assert decoder.state == {"bytes": ""}

    @inherited
    @given(text=SHORT)
    @example(text="é👩\u200d👩\u200d👧\u200d👦漢\ufffd")
    def test_decoder_never_emits_half_a_character(self, tok: Tokenizer, text: str) -> None:
        ids = tok.encode(text)
        decoder, done, received, emitted = StreamDecoder(tok), [], 0, 0
        for i in ids.tolist():
            done.append(decoder.decode([i]))
            received += len(tok.decode_bytes([i]))
            emitted += len(done[-1].encode())
            assert 0 <= received - emitted < 4  # it holds back less than a character
        assert "".join(done) == text and decoder.flush() == ""

    def test_wrong_ids_are_refused(self, tok: Tokenizer) -> None:
        last = tok.vocab_size - 1
        cases: list[tuple[Any, str]] = [
            ([5, -1], f"id -1 is out of range: 0 to {last}"),
            ([last + 1], f"id {last + 1} is out of range: 0 to {last}"),
            (np.array([2**40, 3]), f"id {2**40} is out of range"),
            ([0.5], "must be integers, given float64"),
            ([True], "must be integers, given bool"),
            ([[1, 2]], r"given shape \(1, 2\)"),
            (7, r"given shape \(\)"),
        ]
        decoder = StreamDecoder(tok)
        for ids, words in cases:
            for decode in (tok.decode, tok.decode_bytes, decoder.decode):
                with pytest.raises(ValueError, match=words):
                    decode(ids)

    def test_ids_of_any_integer_type(self, tok: Tokenizer) -> None:
        ids = tok.encode("the age of wisdom")
        for kind in (np.int64, np.uint16, np.int32):
            assert tok.decode(ids.astype(kind)) == "the age of wisdom"
        assert tok.decode(tuple(ids.tolist())) == "the age of wisdom"
        assert tok.decode([]) == "" and tok.decode([tok.bos_id]) == ""

    # -- the vocabulary ------------------------------------------------------------------------

    def test_token_lengths_are_those_of_the_bytes(self, tok: Tokenizer) -> None:
        lengths = [len(tok.decode_bytes([i])) for i in range(tok.vocab_size)]
        assert tok.token_lengths.shape == (tok.vocab_size,)
        assert tok.token_lengths.dtype == np.int32 and tok.token_lengths.tolist() == lengths
        assert 0 <= tok.bos_id < tok.vocab_size and lengths[tok.bos_id] == 0
        with pytest.raises(ValueError, match="read-only"):
            tok.token_lengths[0] = 1

    def test_every_byte_can_be_spelled(self, tok: Tokenizer) -> None:
        spelled = {tok.decode_bytes([i]) for i in range(tok.vocab_size)}
        assert {bytes([byte]) for byte in range(256)} <= spelled

    def test_the_model_bytes_are_the_tokenizer(self, tok: Tokenizer) -> None:
        same = load_tokenizer(tok.model_bytes)
        assert type(same) is type(tok) and same.model_bytes == tok.model_bytes
        assert same.fingerprint == tok.fingerprint and bytes.fromhex(tok.fingerprint)
        assert np.array_equal(same.encode(CORPUS), tok.encode(CORPUS))
