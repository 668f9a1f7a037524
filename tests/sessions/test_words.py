"""The words of a text as phrases: they are found however a text writes or a tokenizer cuts them."""

import numpy as np
import pytest

from streamlm.memory.phrases import DIGIT, LETTER, OTHER, occurrences, share_within
from streamlm.sessions.words import edges, names, phrases
from tokenizer import Tokenizer


def count(wanted: str, text: str, tokenizer: Tokenizer, n: int = 1) -> int:
    """How often the last n words of `wanted` stand in a text."""
    terms = phrases(wanted, tokenizer, n)[-1:]
    ids = tokenizer.encode(text)
    parts = occurrences(terms, lambda: iter([ids]), edges(tokenizer))()
    return int(sum((part == 0).sum() for part in parts))


@pytest.mark.parametrize(
    "text", ["amber", "See amber.", "\n\namber = 5", '"Amber," he said', "VAR_amber_2", "(amber)"]
)
def test_a_word_is_found_wherever_it_stands(text: str, books_tokenizer: Tokenizer) -> None:
    assert count("Where is the amber?", text, books_tokenizer) == 1
    assert count("Amber", text, books_tokenizer) == 1


@pytest.mark.parametrize("text", ["chamber", "ambers", "amberlike", "remember", "am berry"])
def test_a_part_of_a_word_is_not_found(text: str, books_tokenizer: Tokenizer) -> None:
    assert count("amber", f"The {text} was here.", books_tokenizer) == 0


def test_a_number_is_whole(books_tokenizer: Tokenizer) -> None:
    for text, n in (("gate 938.", 1), ("938", 1), ("936", 0), ("93812", 0), ("1938 or 938", 1)):
        assert count("gate 938", text, books_tokenizer) == n


def test_pairs_have_an_order(books_tokenizer: Tokenizer) -> None:
    pair = "Which number belongs to amber anchor"
    assert count(pair, "\n\namber anchor = 12345", books_tokenizer, 2) == 1
    assert count(pair, "anchor amber = 12345", books_tokenizer, 2) == 0
    assert count(pair, "amber and anchor", books_tokenizer, 2) == 0


def test_each_phrase_is_one_term(books_tokenizer: Tokenizer) -> None:
    assert len(phrases("The sea, the sea: THE sea", books_tokenizer, 1)) == 2
    assert len(phrases("one", books_tokenizer, 2)) == 0
    assert len(phrases("one 2 three", books_tokenizer, 2)) == 2


def test_a_text_without_words_or_spaces_has_its_tokens(books_tokenizer: Tokenizer) -> None:
    for text in ("?!", "東京の海"):
        ids = books_tokenizer.encode(text).tolist()
        assert phrases(text, books_tokenizer, 1) == [((id,),) for id in dict.fromkeys(ids)]
    assert count("京", "東京の海", books_tokenizer) == 1


def test_edges_are_kinds_of_characters(books_tokenizer: Tokenizer) -> None:
    ids = [int(books_tokenizer.encode(text)[-1]) for text in ("sea", "7", ".")]
    kinds = edges(books_tokenizer)
    assert kinds.last[ids].tolist() == [LETTER, DIGIT, OTHER]
    assert kinds.first.dtype == kinds.last.dtype == np.int8
    assert len(kinds.first) == books_tokenizer.vocab_size


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("What is the pass key for gate 471?", ["471"]),
        ("Where was Silas Finch born? Who is he?", ["Silas Finch"]),
        ("Are Jean-Luc and Silas Finch, Amos Pym's friends, 20?", ["Jean Luc", "Silas Finch"]),
        (
            'Of London, she said. "Paris is nicer."\nRome too, Rome and ROME: Bonn',
            ["London", "Rome"],
        ),
        ("And VAR_SEA_2 = 15", ["VAR SEA 2", "15"]),
        ("How do I boil an egg?", []),
        ("東京の海", []),
    ],
)
def test_names_are_words_with_capitals_that_begin_no_sentence(
    text: str, wanted: list[str], books_tokenizer: Tokenizer
) -> None:
    found = names(text, books_tokenizer)
    assert found[: len(wanted)] == [phrases(each, books_tokenizer, 1) for each in wanted]
    assert len(found) == len(wanted) + 2 * ("Jean" in text)  # Amos Pym, 20


def test_a_name_is_there_if_all_its_words_are(books_tokenizer: Tokenizer) -> None:
    named = names("Do Silas Finch and Amos Pym sail?", books_tokenizer)
    for text, share in (
        ("Silas, said old Finch.", 0.5),
        ("Silas and Pym.", 0.0),
        ("Amos Pym, Silas Finch.", 1.0),
    ):
        ids = books_tokenizer.encode(text)
        assert share_within(ids, named, edges(books_tokenizer)) == share
