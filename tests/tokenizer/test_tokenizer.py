"""The tokenizer: lossless, chunk-invariant, bounded, and honest about what it cannot use."""

import hashlib
import io
import json
import lzma
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st

import tokenizer
from tokenizer import StreamDecoder, StreamEncoder, Tokenizer, train
from tokenizer.boundaries import BLOCK, MAX_RUN, blocks, segments, settled
from tokenizer.training import main, read_books, sample_books

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = ROOT / "streamlm" / "assets" / "books" / "tokenizer.model"
SYMBOL = "\u2581"

# Small, but with more than English in it: the tiny model gets pieces of two spaces, of accented
# letters and of Chinese characters.
CORPUS = """It was the best of times, it was the worst of times, it was the age of wisdom, it was
the age of foolishness, it was the epoch of belief, it was the epoch of incredulity.

    It was the season of Light,  it was the season of Darkness;
    it was the spring of hope,  it was the winter of despair.

道可道，非常道。名可名，非常名。無名天地之始；有名萬物之母。
Où sont les neiges d'antan? Mais où sont les neiges d'antan? 1859, 1895, 1589.
"""

TRAPS = [
    *("<s>", "</s>", "<unk>", "<pad>", "<0x0A>", "<0xE2>", " ⁇ ", "\u2047", "\u2585"),
    *(SYMBOL, f"a{SYMBOL}b", f" {SYMBOL} ", f"\n{SYMBOL}\n", "\0", "a\0b", "\ufffd", "\ufeff"),
    *("\r\n", "\t", "\f\n", "\n\n\n", " \n ", "  two", "\u00a0", "\u2028", "e\u0301", "ﬁ", "Å"),
    *(
        "👩\u200d👩\u200d👧\u200d👦",
        "🏳\ufe0f\u200d🌈",
        "漢字かな",
        "한국어",
        "العربية",
        "\U0010ffff",
        "the ",
        " of the",
        "12345",
        "--",
    ),
]
UNITS = st.sampled_from(["x", " ", "\n", SYMBOL, "é", "漢", "ab", " \n"])
RUNS = st.builds(str.__mul__, UNITS, st.integers(1, 3 * MAX_RUN))
SHORT = st.lists(st.one_of(st.text(), st.sampled_from(TRAPS)), max_size=4).map("".join)
TEXTS = st.lists(st.one_of(st.text(), st.sampled_from(TRAPS), RUNS), max_size=8).map("".join)
CUTS = st.lists(st.integers(0, 2**31), max_size=6)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    out = tmp_path_factory.mktemp("tiny") / "tokenizer.model"
    return Tokenizer(train([CORPUS], out, vocab_size=420, character_coverage=1.0))


@pytest.fixture(scope="module")
def bundled() -> Tokenizer:
    return Tokenizer(BUNDLED)


@pytest.fixture(scope="module", params=["bundled", "tiny"])
def tok(request: pytest.FixtureRequest) -> Tokenizer:
    found: Tokenizer = request.getfixturevalue(request.param)
    return found


def split(whole: Any, cuts: list[int]) -> list[Any]:
    """A str or bytes in `len(cuts) + 1` parts, some of them perhaps empty."""
    places = sorted(cut % (len(whole) + 1) for cut in cuts)
    return [whole[a:b] for a, b in zip([0, *places], [*places, len(whole)], strict=True)]


def stream(encoder: StreamEncoder, chunks: list[Any]) -> list[int]:
    """All tokens of a stream; checks the bounds on what is held back on the way."""
    ids: list[int] = []
    for chunk in chunks:
        ids += encoder.encode(chunk).tolist()
        assert len(encoder.state["text"]) < MAX_RUN
        assert len(bytes.fromhex(encoder.state["bytes"])) < 4
    return ids + encoder.flush().tolist()


def runs(text: str) -> Iterator[str]:
    """The runs of a text, read character by character."""
    run = ""
    for char in text:
        kind = char if char in f" \n{SYMBOL}" else "x"
        if run:
            before = run[-1] if run[-1] in f" \n{SYMBOL}" else "x"
            if len(run) == MAX_RUN or (kind != before and (before, kind) != (" ", "x")):
                yield run
                run = ""
        run += char
    if run:
        yield run


def reference(tok: Tokenizer, text: str) -> list[int]:
    """The definition of `encode`: every run on its own, U+2581 in bytes."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=tok.model_bytes)
    spelled = [processor.piece_to_id(piece) for piece in ("<0xE2>", "<0x96>", "<0x81>")]
    ids: list[int] = []
    for run in runs(text):
        ids += spelled * len(run) if run[0] == SYMBOL else processor.encode(run, out_type=int)
    return ids


# --- nothing is lost ---------------------------------------------------------------------------


@given(text=TEXTS)
@example(text="")
@example(text="".join(TRAPS))
def test_encoding_is_lossless(tok: Tokenizer, text: str) -> None:
    ids = tok.encode(text)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert tok.decode_bytes(ids) == text.encode("utf-8")
    assert tok.decode(ids) == text
    assert tok.token_lengths[ids].sum() == len(text.encode("utf-8"))
    assert not np.isin(ids, [0, 1, 2]).any()  # special symbols are never read from text


@pytest.mark.parametrize("trap", TRAPS)
def test_traps_within_words(tok: Tokenizer, trap: str) -> None:
    for text in (trap, f"a{trap}b", f" {trap} ", trap * 3, f"the{trap}"):
        assert tok.decode_bytes(tok.encode(text)) == text.encode("utf-8")


def test_every_character_survives(bundled: Tokenizer) -> None:
    points = (*range(0xD800), *range(0xE000, 0x110000))
    for text in ("".join(map(chr, points)), " ".join(map(chr, points[:0x3000]))):
        assert bundled.decode_bytes(bundled.encode(text)) == text.encode("utf-8")


@given(text=st.text(st.characters(categories=["Cs", "L"])))
def test_lone_surrogates(tok: Tokenizer, text: str) -> None:
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
    with pytest.raises(ValueError, match=name):
        encoder.encode(text)
    assert encoder.state == {"text": "kept", "bytes": ""}


# --- how the text is cut changes nothing -------------------------------------------------------


@given(text=TEXTS)
@example(text=CORPUS * 40)
@example(text=(CORPUS + SYMBOL + "x" * 1000) * 20)
@example(text=" " * (MAX_RUN - 1) + "x" * 9000 + "\n" * 1001)
def test_encoding_is_run_by_run(tok: Tokenizer, text: str) -> None:
    assert tok.encode(text).tolist() == reference(tok, text)


def test_long_texts_are_run_by_run(tok: Tokenizer) -> None:
    rng = random.Random(0)
    units = [*CORPUS.split(" "), *TRAPS, " ", "  ", "\n", " " * 300, "x" * 300, "漢字" * 200]
    for size in (BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK, 9 * BLOCK):
        text = ""
        while len(text) < size:
            text += rng.choice(units) + rng.choice(["", " ", "\n"])
        text = text[:size]
        assert tok.encode(text).tolist() == reference(tok, text)
        assert [part for block in blocks(text) for part in segments(block)]
        assert all(len(block) <= BLOCK for block in blocks(text))


def test_runs_of_blanks(tok: Tokenizer) -> None:
    newline, double = tok.encode("\n").tolist(), tok.encode("\n\n").tolist()
    assert len(newline) == len(double) == 1
    for n in (*range(1, 20), *range(MAX_RUN - 3, MAX_RUN + 4), 3 * MAX_RUN + 1):
        for text in (" " * n + "the", "a " + " " * n, "the" + " " * n + "\n"):
            assert tok.encode(text).tolist() == reference(tok, text)
        # Pairs of newlines stay together in runs of any length.
        assert tok.encode("\n" * n).tolist() == double * (n // 2) + newline * (n % 2)


@given(text=TEXTS, more=TEXTS)
def test_settled_text_stays_settled(text: str, more: str) -> None:
    end = settled(text)
    assert 0 <= len(text) - end < MAX_RUN
    assert end in {0, *np.cumsum([len(run) for run in runs(text + more)]).tolist()}


@given(text=TEXTS, cuts=CUTS)
@example(text="\n" * 7 + " a" + SYMBOL * 3, cuts=list(range(12)))
def test_chunks_of_str(tok: Tokenizer, text: str, cuts: list[int]) -> None:
    assert stream(StreamEncoder(tok), split(text, cuts)) == tok.encode(text).tolist()


@given(text=TEXTS, cuts=CUTS)
@example(text="😀" * 3, cuts=list(range(13)))
def test_chunks_of_bytes(tok: Tokenizer, text: str, cuts: list[int]) -> None:
    chunks = split(text.encode("utf-8"), cuts)
    assert stream(StreamEncoder(tok, "strict"), chunks) == tok.encode(text).tolist()


def test_one_character_at_a_time(tok: Tokenizer) -> None:
    text = CORPUS + "".join(TRAPS) + "x" * 600
    whole = tok.encode(text).tolist()
    assert stream(StreamEncoder(tok), list(text)) == whole
    assert stream(StreamEncoder(tok), [bytes([byte]) for byte in text.encode()]) == whole


@given(text=TEXTS, cuts=CUTS)
def test_emitted_tokens_are_final(tok: Tokenizer, text: str, cuts: list[int]) -> None:
    whole = tok.encode(text).tolist()
    encoder, ids = StreamEncoder(tok), []
    for chunk in split(text, cuts):
        ids += encoder.encode(chunk).tolist()
        assert whole[: len(ids)] == ids


# --- bytes that are not UTF-8 ------------------------------------------------------------------

BROKEN = st.lists(
    st.one_of(
        st.binary(max_size=6),
        st.text(max_size=6).map(str.encode),
        st.sampled_from([b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"\xf0\x9f\x98"]),
    ),
    max_size=6,
).map(b"".join)


@given(data=BROKEN, cuts=CUTS)
def test_invalid_bytes_are_replaced(tok: Tokenizer, data: bytes, cuts: list[int]) -> None:
    whole = tok.encode(data.decode("utf-8", errors="replace")).tolist()
    assert stream(StreamEncoder(tok), split(data, cuts)) == whole


@given(data=BROKEN, cuts=CUTS)
def test_invalid_bytes_are_refused(tok: Tokenizer, data: bytes, cuts: list[int]) -> None:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        with pytest.raises(ValueError, match="invalid UTF-8: byte 0x"):
            stream(StreamEncoder(tok, "strict"), split(data, cuts))
    else:
        chunks = split(data, cuts)
        assert stream(StreamEncoder(tok, "strict"), chunks) == tok.encode(text).tolist()


def test_a_refusal_names_the_byte_and_changes_nothing(tiny: Tokenizer) -> None:
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


# --- memory and work are bounded ---------------------------------------------------------------


class Counting(Tokenizer):
    """Counts the characters that it encodes."""

    count = 0

    def encode(self, text: str, **options: Any) -> Any:
        self.count += len(text)
        return super().encode(text, **options)


@pytest.mark.parametrize("unit", ["x", " ", "\n", SYMBOL, "漢", "ab\t"])
def test_a_run_without_spaces_is_not_held_back(unit: str) -> None:
    tok = Counting(BUNDLED)
    text = (unit * 200_000)[:200_000]
    encoder = StreamEncoder(tok)
    ids = stream(encoder, [text[i : i + 97] for i in range(0, len(text), 97)])
    assert tok.count == len(text)  # each character was encoded once
    assert ids == tok.encode(text).tolist()


# --- state -------------------------------------------------------------------------------------


@given(text=TEXTS, cuts=CUTS, as_bytes=st.booleans())
def test_encoder_resumes(tok: Tokenizer, text: str, cuts: list[int], as_bytes: bool) -> None:
    encoder, ids = StreamEncoder(tok, "strict"), []
    for chunk in split(text.encode() if as_bytes else text, cuts):
        ids += encoder.encode(chunk).tolist()
        encoder = StreamEncoder(tok, "strict", state=json.loads(json.dumps(encoder.state)))
    assert ids + encoder.flush().tolist() == tok.encode(text).tolist()


def test_copies_go_their_own_way(tiny: Tokenizer) -> None:
    encoder = StreamEncoder(tiny, "strict")
    ids = encoder.encode(b"It was the b\xc3").tolist()
    fork = encoder.copy()
    assert fork.errors == "strict"
    one = ids + stream(fork, [b"\xaa", "te"])
    two = ids + stream(encoder, [b"\xa9b\xc3\xa9"])
    assert one == tiny.encode("It was the bête").tolist()
    assert two == tiny.encode("It was the bébé").tolist()
    assert encoder.state == {"text": "", "bytes": ""}  # flushed: ready for a new text
    assert stream(encoder, ["It was"]) == tiny.encode("It was").tolist()


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


# --- decoding ----------------------------------------------------------------------------------


@given(data=st.data(), cuts=CUTS)
def test_decoder_agrees_with_decode(tok: Tokenizer, data: st.DataObject, cuts: list[int]) -> None:
    near_bytes = st.integers(0, 300)  # control symbols, bytes and some pieces
    ids = data.draw(st.lists(st.one_of(near_bytes, st.integers(0, tok.vocab_size - 1))))
    decoder, text = StreamDecoder(tok), ""
    for chunk in split(ids, cuts):
        text += decoder.decode(chunk)
        decoder = StreamDecoder(tok, state=json.loads(json.dumps(decoder.state)))
    assert text + decoder.flush() == tok.decode(ids)
    assert decoder.state == {"bytes": ""}


@given(text=SHORT)
@example(text="é👩\u200d👩\u200d👧\u200d👦漢\ufffd")
def test_decoder_never_emits_half_a_character(tok: Tokenizer, text: str) -> None:
    ids = tok.encode(text)
    decoder, done, received, emitted = StreamDecoder(tok), [], 0, 0
    for i in ids.tolist():
        done.append(decoder.decode([i]))
        received += len(tok.token_bytes(i))
        emitted += len(done[-1].encode())
        assert 0 <= received - emitted < 4  # it holds back less than a character
    assert "".join(done) == text and decoder.flush() == ""


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


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([5, -1], "id -1 is out of range: 0 to 419"),
        ([420], "id 420 is out of range: 0 to 419"),
        (np.array([2**40, 3]), f"id {2**40} is out of range"),
        ([0.5], "must be integers, given float64"),
        ([True], "must be integers, given bool"),
        ([[1, 2]], r"given shape \(1, 2\)"),
        (7, r"given shape \(\)"),
    ],
)
def test_wrong_ids_are_refused(tiny: Tokenizer, ids: Any, words: str) -> None:
    decoder = StreamDecoder(tiny)
    for decode in (tiny.decode, tiny.decode_bytes, decoder.decode):
        with pytest.raises(ValueError, match=words):
            decode(ids)


def test_ids_of_any_integer_type(tiny: Tokenizer) -> None:
    ids = tiny.encode("the age of wisdom")
    for kind in (np.int64, np.uint16, np.int32):
        assert tiny.decode(ids.astype(kind)) == "the age of wisdom"
    assert tiny.decode(tuple(ids.tolist())) == "the age of wisdom"
    assert tiny.decode([]) == "" and tiny.decode([0, tiny.bos_id, 2]) == ""


# --- the models --------------------------------------------------------------------------------


def test_tokens_have_bytes(tok: Tokenizer) -> None:
    assert tok.token_lengths.shape == (tok.vocab_size,)
    lengths = [len(tok.token_bytes(i)) for i in range(tok.vocab_size)]
    assert tok.token_lengths.tolist() == lengths
    assert [i for i, length in enumerate(lengths) if not length] == [0, 1, 2]
    assert tok.bos_id == 1
    assert {tok.token_bytes(i) for i in range(5, 261)} == {bytes([i]) for i in range(256)}
    with pytest.raises(ValueError, match="read-only"):
        tok.token_lengths[0] = 1


def test_fingerprint(bundled: Tokenizer, tiny: Tokenizer) -> None:
    data = BUNDLED.read_bytes()
    assert bundled.model_bytes == data
    assert bundled.fingerprint == hashlib.sha256(data).hexdigest()
    for same in (Tokenizer(data), Tokenizer(str(BUNDLED))):
        assert same.fingerprint == bundled.fingerprint
        assert np.array_equal(same.encode(CORPUS), bundled.encode(CORPUS))
    assert tiny.fingerprint != bundled.fingerprint


def test_the_bundled_model_suits_books(bundled: Tokenizer) -> None:
    assert bundled.vocab_size == 8192
    pieces = [bundled.token_bytes(i) for i in range(bundled.vocab_size)]
    assert not [piece for piece in pieces if len(re.findall(rb"\d", piece)) > 1]
    english = CORPUS.partition("道")[0]
    assert len(english.encode()) / bundled.encode(english).size > 3.2
    for word in ("the", " the", " was", " of", " and"):
        assert bundled.encode(word).size == 1


# --- foreign models ----------------------------------------------------------------------------


def foreign(**options: Any) -> bytes:
    """A model trained on the corpus with settings like ours but for `options`."""
    model = io.BytesIO()
    ours: dict[str, Any] = {
        "model_type": "bpe",
        "vocab_size": 400,
        "character_coverage": 1.0,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "byte_fallback": True,
        "minloglevel": 2,
        "num_threads": 1,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.split("\n")), model_writer=model, **{**ours, **options}
    )
    return model.getvalue()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model_type": "unigram", "vocab_size": 330}, "model_type must be bpe"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix must be off"),
        ({"byte_fallback": False, "vocab_size": 150}, "byte_fallback must be on"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalization_rule_name must be identity"),
        ({"add_dummy_prefix": True}, "add_dummy_prefix must be off"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces must be off"),
        ({"split_by_whitespace": False}, r"piece 't w' \(id \d+\) crosses a boundary"),
        ({"user_defined_symbols": ["\nThe"]}, r"piece '\\nThe' \(id 3\) crosses a boundary"),
        ({"user_defined_symbols": ["Mr. X"]}, r"piece 'Mr. X' \(id 3\) crosses a boundary"),
        ({"control_symbols": ["q"]}, r"control symbol 'q' \(id 3\) is a single character"),
        ({"bos_id": -1}, "no <s>"),
    ],
)
def test_a_model_that_would_lose_text_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Tokenizer(foreign(**options))


def test_a_fitting_foreign_model_is_used() -> None:
    tok = Tokenizer(foreign(user_defined_symbols=["<note>", "\n\n\n"], bos_id=7, unk_id=5))
    assert tok.bos_id == 7
    text = "of Light<note>,\n\n\n\nof Darkness  <not e>"
    assert tok.decode(tok.encode(text)) == text
    assert stream(StreamEncoder(tok), list(text)) == tok.encode(text).tolist()


@pytest.mark.parametrize("data", [b"", b"garbage", bytes(100)])
def test_what_is_no_model_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="no SentencePiece model"):
        Tokenizer(data)


def test_wrong_errors_option_is_refused(tiny: Tokenizer) -> None:
    calls: list[Callable[[], object]] = [
        lambda: tiny.encode("a", errors="ignore"),  # type: ignore[arg-type]
        lambda: StreamEncoder(tiny, "ignore"),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(ValueError, match="'strict' or 'replace', given 'ignore'"):
            call()


# --- training ----------------------------------------------------------------------------------


def test_training_is_deterministic_and_leaves_one_file(tmp_path: Path) -> None:
    out = tmp_path / "a.model"
    out.write_bytes(b"an older model")
    texts = [CORPUS, "1859, " * 100, "a" * 10_000]
    assert train(texts, out, vocab_size=400, character_coverage=1.0) == out
    again = train(iter(texts), tmp_path / "b.model", vocab_size=400, character_coverage=1.0)
    assert out.read_bytes() == again.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.model", "b.model"]
    tok = Tokenizer(out)
    assert tok.vocab_size == 400
    pieces = [tok.token_bytes(i) for i in range(400)]
    assert b"1" in pieces[261:] and not [p for p in pieces if re.search(rb"\d\d", p)]


def test_training_leaves_out_what_is_no_material_for_pieces(tmp_path: Path) -> None:
    one, two = (
        train([text * 50], tmp_path / name, vocab_size=273).read_bytes()
        for name, text in (("a", f"was{SYMBOL}it\0best\n"), ("b", "was\nit\nbest\n"))
    )
    assert one == two


def test_training_needs_text(tmp_path: Path) -> None:
    for texts in ([], ["", "\n\n"]):
        with pytest.raises(ValueError, match="no text"):
            train(texts, tmp_path / "x.model")
    for size in (100, 50_000):
        with pytest.raises(ValueError, match=f"cannot train {size} pieces"):
            train([CORPUS], tmp_path / "x.model", vocab_size=size)
    assert not list(tmp_path.iterdir())


def write_books(folder: Path) -> tuple[list[Path], list[str]]:
    """Three books of numbered lines in two files, one of them packed."""
    sizes = {"a": 6400, "b": 3200, "c": 640}
    books = ["".join(f"{name} line {i}\r\n" for i in range(n)) for name, n in sizes.items()]
    (folder / "plain.txt").write_bytes(books[0].encode())
    with lzma.open(folder / "packed.txt.xz", "wb") as packed:
        packed.write("\f\n".join(books[1:]).encode())
    return [folder / "plain.txt", folder / "packed.txt.xz"], books


def test_books_are_read_as_they_are(tmp_path: Path) -> None:
    (plain, packed), books = write_books(tmp_path)
    assert read_books(plain) == books[:1]
    assert read_books(packed) == books[1:]
    with pytest.raises(ValueError, match=r"books\.pdf: expected a \.txt or \.txt\.xz file"):
        read_books(tmp_path / "books.pdf")


def test_a_sample_takes_its_share_of_each_book(tmp_path: Path) -> None:
    files, books = write_books(tmp_path)
    total = sum(map(len, books))
    assert "\n".join(sample_books(files, 2 * total)) == "\n".join(books)
    sample = list(sample_books(files, total // 4))
    for name, book in zip("abc", books, strict=True):
        found = re.findall(rf"^{name} line (\d+)", "\n".join(sample), re.MULTILINE)
        mine = [int(number) for number in found]
        lines = book.count("\n")
        assert len(mine) == pytest.approx(lines / 4, rel=0.25)
        assert max(mine) > 0.8 * lines and min(mine) < 0.5 * lines and mine == sorted(set(mine))


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, _ = write_books(tmp_path)
    out = tmp_path / "cli.model"
    arguments = ["--out", str(out), "--vocab-size", "280", *map(str, files)]
    main(arguments)
    assert "280 pieces" in capsys.readouterr().out
    same = train(sample_books(files, 40_000_000), tmp_path / "same.model", vocab_size=280)
    assert out.read_bytes() == same.read_bytes()
    out.unlink()
    command = [sys.executable, "-W", "error", "-m", "tokenizer.training", *arguments]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert out.read_bytes() == same.read_bytes()


def test_import_is_light() -> None:
    code = "import sys, tokenizer; print(*sys.modules); print(tokenizer.train.__name__)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded, name = result.stdout.splitlines()
    assert not {"sentencepiece", "torch", "streamlm"} & set(loaded.split())
    assert name == "train"
    assert set(tokenizer.__all__) == {"StreamDecoder", "StreamEncoder", "Tokenizer", "train"}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tokenizer.nothing


def test_a_vocabulary_without_a_space_is_refused(tmp_path: Path) -> None:
    """It would spell a space as the bytes of U+2581, and write that instead."""
    path = train(["e"], tmp_path / "e.model", vocab_size=262)
    with pytest.raises(ValueError, match="a space has no piece of its own"):
        Tokenizer(path)


def test_the_vocabulary_of_bytes() -> None:
    """Of recipes on bytes: one token a byte, but for a blank line."""
    tokenizer = Tokenizer(Path(__file__).resolve().parents[2] / "recipes" / "bytes.model")
    text = "Call me Ishmael.\n\n Ещё  漢🐋\0 <page>"
    ids = tokenizer.encode(text)
    assert len(ids) == len(text.encode()) - 1 and tokenizer.decode(ids) == text
    assert tokenizer.vocab_size == 262
