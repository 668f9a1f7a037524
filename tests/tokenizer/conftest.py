"""Two tokenizers: the bundled one, and a tiny one with multilingual pieces."""

from pathlib import Path

import pytest

from tests.support.texts import CORPUS
from tokenizer import SentencePieceTokenizer, train

BUNDLED = Path(__file__).resolve().parents[2] / "streamlm" / "assets" / "books" / "tokenizer.model"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> SentencePieceTokenizer:
    out = tmp_path_factory.mktemp("tiny") / "tokenizer.model"
    return SentencePieceTokenizer(train([CORPUS], out, vocab_size=420, character_coverage=1.0))


@pytest.fixture(scope="module")
def bundled() -> SentencePieceTokenizer:
    return SentencePieceTokenizer(BUNDLED)


@pytest.fixture(scope="module", params=["bundled", "tiny"])
def tok(request: pytest.FixtureRequest) -> SentencePieceTokenizer:
    found: SentencePieceTokenizer = request.getfixturevalue(request.param)
    return found
