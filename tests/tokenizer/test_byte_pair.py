"""BytePairTokenizer: the contract, for every pattern, and equality with the library."""

import random
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.texts import CORPUS, TEXTS, TRAPS
from tests.support.tokenizers import TokenizerConformance, inherited, stream
from tests.support.vocabularies import ADDED, ALL_PATTERNS, MORE, SPECIAL, byte_level_json
from tokenizer import StreamEncoder, Tokenizer, load_tokenizer
from tokenizer.byte_pair import BytePairTokenizer
from tokenizer.cuts import BLOCK, MAX_RUN, parts, settled
from tokenizer.vocabulary import Vocabulary

# Where patterns differ: contractions, digits, white space of all kinds, marks, signs, half emoji.
HARD = [
    *("'s", "'S", "'ll", "'re ", "I'm", "'", "''", "d'", "ſ's"),
    *("1", "12", "1234567", "²", "Ⅷ", "٣"),
    *(" ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "\r", "\v", "\f", "\x1c", "\x1d", "\x85"),
    *("\xa0", "\u2003", "\u2028", "\u3000", "\ufeff", "\u200b", "\u180e", "\0", "\x7f"),
    *("a", "Z", "word", "CamelCase", "ǅ", "ʰ", "é", "e\u0301", "\u0301", "ß", "Ж", "слово", "ά"),
    *("漢", "漢字", "ひ", "カ", "ー", "한", "한국", "ᄒ", "عر", "हि", "ไทย", "ꦗ"),
    *(".", ",", "?!", "...", "-", "/", "//", "_", "(", "[", "。", "，", "：", "「", "€", "+"),
    *("🏳", "👩\u200d👧", "\ufe0f", "\U000e0061", "\U0010ffff", "\ud800"),
    *(*SPECIAL, *ADDED, "<|im_", "end|>", "Ġ", "Ċ", "▁"),
]
MIXED = st.lists(st.sampled_from(HARD), max_size=40).map("".join)
LONG = st.builds(
    lambda before, unit, times, after: before + unit * times + after,
    MIXED,
    st.sampled_from(HARD),
    st.integers(1, 3 * MAX_RUN),
    MIXED,
)


class _Conformance(TokenizerConformance):
    longest_tail = MAX_RUN - 1
    pattern: str

    @pytest.fixture(scope="class")
    @classmethod
    def tok(cls) -> Tokenizer:
        return load_tokenizer(byte_level_json(cls.pattern).encode())

    @inherited
    @given(text=LONG, cuts=st.lists(st.integers(0, 2**31), max_size=6))
    def test_long_runs_in_chunks(self, tok: Tokenizer, text: str, cuts: list[int]) -> None:
        places = sorted(cut % (len(text) + 1) for cut in cuts)
        chunks = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
        assert self.stream(StreamEncoder(tok), chunks) == tok.encode(text).tolist()


class TestGpt2(_Conformance):
    pattern = "gpt2"


class TestSmollm(_Conformance):
    pattern = "smollm"


class TestLlama3(_Conformance):
    pattern = "llama3"


class TestQwen2(_Conformance):
    pattern = "qwen2"


class TestO200k(_Conformance):
    pattern = "o200k"


@pytest.fixture(scope="module", params=ALL_PATTERNS)
def pattern(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def tok(pattern: str) -> BytePairTokenizer:
    found = load_tokenizer(byte_level_json(pattern).encode())
    assert isinstance(found, BytePairTokenizer)
    return found


@pytest.fixture(scope="module")
def library(pattern: str) -> Any:
    """The library's tokenizer of the whole file, told not to look for special tokens in a text."""
    from tokenizers import Tokenizer as Library

    found = Library.from_str(byte_level_json(pattern))
    found.encode_special_tokens = True
    return found


def known(text: str) -> str:
    """`text` without what the library treats otherwise: added tokens, and lone surrogates."""
    return re.sub("</?think>|[\ud800-\udfff]", "", text)


WORD = r"[0-9A-Za-z\u3041-\u3096\u30a1-\u30fa\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3]"
AFTER_WORD = re.compile(rf"{WORD}(?=[\t\n\v\f\r,.;:!?、。，；：！？])")


def hard_boundaries(text: str) -> list[int]:
    """Every hard boundary, by the definition."""
    found = {match.end() for match in AFTER_WORD.finditer(text)}
    found |= {i for i in range(1, len(text)) if text[i] == " " and not text[i - 1].isspace()}
    return sorted(found)


def longest_run(text: str) -> int:
    """The longest text between hard boundaries."""
    found = [0, *hard_boundaries(text), len(text)]
    return max(b - a for a, b in pairwise(found))


@given(text=st.one_of(MIXED, TEXTS, LONG).map(known))
@example(text=(CORPUS + MORE) * 40)
@example(text="".join(TRAPS))
def test_ids_are_those_of_the_library(tok: BytePairTokenizer, library: Any, text: str) -> None:
    """Up to MAX_RUN; beyond it the definition in `tokenizer.cuts` holds."""
    if longest_run(text) <= MAX_RUN:
        expected = library.encode(text, add_special_tokens=False).ids
    else:
        expected = []
        for part in parts(text):
            expected += library.encode(part, add_special_tokens=False).ids
    assert tok.encode(text).tolist() == expected


def test_long_random_texts(tok: BytePairTokenizer, library: Any) -> None:
    rng = random.Random(0)
    for size in (BLOCK - 1, BLOCK + 1, 30_000):
        text = ""
        while len(text) < size:
            text += "".join(rng.choices(HARD, k=rng.randint(1, 5))) + rng.choice([" ", "", "\n"])
        text = known(text)
        assert longest_run(text) <= MAX_RUN
        assert tok.encode(text).tolist() == library.encode(text, add_special_tokens=False).ids


def places(text: str) -> Iterator[int]:
    """The cuts of a text, found one character at a time."""
    at = 0
    for i in range(1, len(text)):
        alone = longest_run(text[i - 1 : i + 1]) == 1
        if alone or i - at == MAX_RUN:
            yield i
            at = i


@given(text=st.one_of(MIXED, LONG), more=MIXED)
def test_settled_is_the_last_cut(text: str, more: str) -> None:
    end = settled(text)
    assert 0 <= len(text) - end < MAX_RUN
    assert end in {0, *places(text + more + "x"), len(text + more)}
    assert "".join(parts(text)) == text
    assert all(len(part) < BLOCK + MAX_RUN for part in parts(text))


@pytest.mark.parametrize("unit", ["x", " ", "\n", "1", "ไ", "漢", "\t\n", "'"])
def test_an_endless_run_is_cut(tok: BytePairTokenizer, unit: str) -> None:
    text = (unit * 20_000)[:20_000]
    chunks = [text[i : i + 997] for i in range(0, len(text), 997)]
    ids = stream(StreamEncoder(tok), chunks, longest_tail=MAX_RUN - 1)
    assert ids == tok.encode(text).tolist() and tok.decode(ids) == text


def test_special_tokens_come_from_no_text(tok: BytePairTokenizer) -> None:
    assert tok.chat is not None
    assert set(tok.chat.special) == set(SPECIAL) and set(tok.chat.added) == set(ADDED)
    text = "".join((*SPECIAL, *ADDED, *(f" {token} x" for token in (*SPECIAL, *ADDED))))
    ids = set(tok.encode(text).tolist())
    assert not ids & {*tok.chat.special.values(), *tok.chat.added.values()}
    for token, i in tok.chat.special.items():
        assert tok.decode([i]) == "" and tok.token_lengths[i] == 0, token
    for token, i in tok.chat.added.items():
        assert tok.decode([i]) == token and tok.token_lengths[i] == len(token)


def test_the_serialisation_is_canonical(tok: BytePairTokenizer) -> None:
    same = load_tokenizer(tok.model_bytes)
    assert isinstance(same, BytePairTokenizer) and same.vocabulary == tok.vocabulary
    assert same.model_bytes == tok.model_bytes and same.fingerprint == tok.fingerprint


def test_the_fingerprint_covers_what_decides_on_ids(tok: BytePairTokenizer) -> None:
    vocabulary = tok.vocabulary
    other = "gpt2" if vocabulary.pattern != "gpt2" else "qwen2"
    changed = [
        replace(vocabulary, pattern=other),
        replace(vocabulary, merges=vocabulary.merges[:-1]),
        replace(vocabulary, tokens=(*vocabulary.tokens, "unheard")),
        replace(vocabulary, special=vocabulary.special[:-1], eos_ids=(), bos_id=0),
        replace(vocabulary, ignore_merges=not vocabulary.ignore_merges),
    ]
    assert len({vocabulary.fingerprint, *(one.fingerprint for one in changed)}) == 6
    chat = replace(vocabulary, chat_template="{{ messages }}", names={"bos_token": "<s>"})
    assert chat.fingerprint == vocabulary.fingerprint and chat.to_bytes() != vocabulary.to_bytes()


def without(vocabulary: Vocabulary, *bytes_: int) -> Vocabulary:
    """The vocabulary without tokens that hold these bytes, which must be controls."""
    spelled = {chr(256 + byte) for byte in bytes_}
    kept = [None if token and spelled & set(token) else token for token in vocabulary.tokens]
    return replace(vocabulary, tokens=tuple(kept))


def test_characters_that_cannot_be_spelled(tok: BytePairTokenizer) -> None:
    vocabulary = without(tok.vocabulary, 0x04, 0x1D)
    lead = {"ñ": 0xF1, "ò": 0xF2, "Õ": 0xD5}  # first bytes of planes 4 to 11, and of U+0540 to 57F
    tokens = [None if token in lead else token for token in vocabulary.tokens]
    merges = [m for m in vocabulary.merges if not set(lead) & set(m)]
    poor = BytePairTokenizer(replace(vocabulary, tokens=tuple(tokens), merges=tuple(merges)))
    for char in ("\x04", "\x1d", "\U00040000", "\U000bffff", "\u0540", "\u057f"):
        text = f"It was {char} the best"
        assert poor.decode(poor.encode(text)) == text.replace(char, "\ufffd")
        assert stream(StreamEncoder(poor), list(text), longest_tail=MAX_RUN - 1) == (
            poor.encode(text).tolist()
        )
        with pytest.raises(ValueError, match=rf"U\+{ord(char):04X} at offset 7 has bytes that"):
            poor.encode(text, errors="strict")
    for char in ("\x03", "\U0003ffff", "\U000c0000", "\u053f", "\u0580", "\ud7ff"):
        assert poor.decode(poor.encode(char, errors="strict")) == char
    with pytest.raises(ValueError, match="no token for 0x0A"):
        BytePairTokenizer(without(tok.vocabulary, 0x0A))


def test_an_inconsistent_vocabulary_is_refused(tok: BytePairTokenizer) -> None:
    vocabulary = tok.vocabulary
    cases: list[tuple[dict[str, Any], str]] = [
        ({"pattern": "gpt5"}, "pattern 'gpt5'; allowed: gpt2, smollm, llama3"),
        ({"bos_id": 300}, "bos_id 300 is no special token"),
        ({"eos_ids": (1, 300)}, "eos_ids 300 is no special token"),
        ({"added": (5000,)}, "special or added id 5000 has no token"),
        ({"tokens": (*vocabulary.tokens, 7)}, "tokens must be text"),
        ({"tokens": (*vocabulary.tokens, "a b")}, r"token 'a b' \(id \d+\) is not spelled"),
        ({"tokens": (*vocabulary.tokens, "a")}, "two ids of the vocabulary have the same token"),
        ({"merges": ("a zzz",)}, "the merge 'a zzz' has tokens that the vocabulary lacks"),
    ]
    for changes, words in cases:
        with pytest.raises(ValueError, match=words):
            BytePairTokenizer(replace(vocabulary, **changes))
    for data in (b"{}", b'{"format": 7}', b"{", b'{"format":"byte-level BPE 1","tokens":[]}'):
        with pytest.raises(ValueError, match="tokenizer"):
            load_tokenizer(data)


def test_batches_are_deterministic(tok: BytePairTokenizer) -> None:
    text = (CORPUS + MORE) * 60
    assert len(list(parts(text))) > 4
    whole = tok.encode(text)
    assert all(np.array_equal(tok.encode(text), whole) for _ in range(3))


@given(text=st.one_of(MIXED, TEXTS))
@example(text="".join(HARD))
def test_no_match_crosses_a_hard_boundary(tok: BytePairTokenizer, text: str) -> None:
    """Cut at every boundary there is, a text has the same tokens."""
    found = [0, *hard_boundaries(text), len(text)]
    apart = [tok.encode(text[a:b]) for a, b in pairwise(found)]
    if longest_run(text) <= MAX_RUN:
        assert np.concatenate([np.zeros(0, np.int32), *apart]).tolist() == tok.encode(text).tolist()
