"""The words of a text as phrases that a search looks for, in the tokens of a tokenizer."""

import re

import numpy as np

from streamlm.memory.phrases import DIGIT, LETTER, OTHER, Edges, Phrase
from tokenizer import Tokenizer

# Thai, Burmese, Khmer, kana and Han: no spaces, so their tokens are their words.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_RUN = re.compile(f"[{_UNSPACED}]+")
_WORD = re.compile(rf"\d+|(?:(?![{_UNSPACED}])[^\W\d_])+")
_BEGINNING = re.compile(
    r"""(?:^|[.!?:]["'”’)]*|\n)\s*["'“‘(]*$"""
)  # of a sentence, up to its first word
_JOIN = re.compile(r"[\s_-]")  # between the words of a name
_EDGES: dict[str, Edges] = {}  # by the fingerprint of the tokenizer


def phrases(text: str, tokenizer: Tokenizer, n: int) -> list[Phrase]:
    """Each n consecutive words of a text, without repetitions, as phrases.

    A phrase may begin with a capital letter or not, and behind a space or not. A text without words
    is taken by its tokens.
    """
    found: dict[object, Phrase] = {}
    words = list(_WORD.finditer(text))
    for first, last in zip(words, words[n - 1 :], strict=False):
        written = text[first.start() : last.end()]
        found.setdefault(written.lower(), _spellings(written, tokenizer))
    parts = _RUN.findall(text) or ([] if words else [text])
    for part in parts:
        ids = tokenizer.encode(part).tolist()
        for at in range(len(ids) - n + 1):
            some = tuple(ids[at : at + n])
            found.setdefault(some, (some,))
    return list(found.values())


def names(text: str, tokenizer: Tokenizer) -> list[list[Phrase]]:
    """The names and numbers of a text, without repetitions; each is the words that it consists of.

    The words of a name have capital letters and are longer than one letter. A word that begins a
    sentence is none of them.
    """
    found: dict[str, list[Phrase]] = {}
    parts: list[re.Match[str]] = []
    for word in [*_WORD.finditer(text), None]:
        if parts and not (
            word and _named(word) and _JOIN.fullmatch(text[parts[-1].end() : word.start()])
        ):
            written = text[parts[0].start() : parts[-1].end()]
            words = [_spellings(part.group(), tokenizer) for part in parts]
            found.setdefault(written.lower(), words)
            parts = []
        if word and _named(word):
            parts.append(word)
    return list(found.values())


def _named(word: re.Match[str]) -> bool:
    written = word.group()
    begins = _BEGINNING.search(word.string[: word.start()]) is not None
    return written.isdecimal() or (len(written) > 1 and written[0].isupper() and not begins)


def _spellings(phrase: str, tokenizer: Tokenizer) -> Phrase:
    head, rest = phrase[0], phrase[1:]
    forms = dict.fromkeys((phrase, head.lower() + rest, head.upper() + rest))
    encoded = (tokenizer.encode(before + form) for form in forms for before in ("", " "))
    spelled = dict.fromkeys(tuple(ids.tolist()) for ids in encoded)
    # A space that is a token of its own stands before what is found without it.
    return [ids for ids in spelled if ids[1:] not in spelled]


def edges(tokenizer: Tokenizer) -> Edges:
    """The kinds of characters at both ends of every token; kept for each tokenizer."""
    name = tokenizer.fingerprint
    if name not in _EDGES:
        texts = [tokenizer.decode([id]) for id in range(tokenizer.vocab_size)]
        first, last = (
            np.array([_kind(text[at : at + 1 or None]) for text in texts], np.int8)
            for at in (0, -1)
        )
        _EDGES[name] = Edges(first, last)
    return _EDGES[name]


def _kind(character: str) -> int:
    if _WORD.fullmatch(character):
        return DIGIT if character.isdecimal() else LETTER
    return OTHER
