"""Token kinds."""

import numpy as np
import pytest

from tokenizer import Tokenizer
from tokenizer.kinds import TYPES, token_types, type_of


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        *((" the", "letter"), ("é", "letter"), ("漢字", "letter"), ("e\u0301", "letter")),
        *(("1851", "digit"), ("²", "digit"), ("  7", "digit")),
        *((" ", "space"), ("   ", "space"), ("\n\n", "space"), ("\t", "space"), ("\xa0", "space")),
        *((",", "punctuation"), (" —", "punctuation"), ("”", "punctuation")),
        *(("", "other"), ("$", "other"), ("'s", "other"), ("2nd", "other"), ("\x00", "other")),
    ],
)
def test_the_kind_of_a_text(text: str, kind: str) -> None:
    assert type_of(text.encode()) == kind


def test_every_token_of_a_vocabulary_has_a_kind(books_tokenizer: Tokenizer) -> None:
    found = token_types(books_tokenizer)
    assert found.shape == (books_tokenizer.vocab_size,) and found.dtype == np.int64
    for text, kind in ((" the", "letter"), (" ", "space"), ("7", "digit"), (";", "punctuation")):
        (id,) = books_tokenizer.encode(text)
        assert TYPES[found[id]] == kind
    assert TYPES[found[books_tokenizer.bos_id]] == type_of(b"\xe2") == "other"
    assert set(found.tolist()) == set(range(5))
