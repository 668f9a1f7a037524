"""The Tokenizer protocol, implemented by a second kind of tokenizer; load_tokenizer."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import tokenizer
from tests.support.tokenizers import TokenizerConformance
from tokenizer import SentencePieceTokenizer, Tokenizer, load_tokenizer
from tokenizer.tokenizer import Errors, Ids, valid_ids, valid_text

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = ROOT / "streamlm" / "assets" / "books" / "tokenizer.model"


class ByteTokenizer(Tokenizer):
    """A token for each byte, and bos."""

    def __init__(self) -> None:
        self.model_bytes, self.fingerprint = b"bytes", b"bytes".hex()
        self.vocab_size, self.bos_id = 257, 256
        self.token_lengths = np.array([1] * 256 + [0], dtype=np.int32)
        self.token_lengths.flags.writeable = False

    def encode(self, text: str, *, errors: Errors = "replace") -> NDArray[np.int32]:
        return np.frombuffer(valid_text(text, errors).encode(), np.uint8).astype(np.int32)

    def settled(self, text: str) -> int:
        return len(text)

    def decode_bytes(self, ids: Ids) -> bytes:
        return bytes(i for i in valid_ids(ids, self.vocab_size) if i != self.bos_id)

    def decode(self, ids: Ids) -> str:
        return self.decode_bytes(ids).decode(errors="replace")


class TestAnotherKind(TokenizerConformance):
    """The contract does not depend on SentencePiece."""

    longest_tail = 0

    @pytest.fixture(scope="class")
    @classmethod
    def tok(cls) -> Tokenizer:
        return ByteTokenizer()

    def test_the_model_bytes_are_the_tokenizer(self, tok: Tokenizer) -> None:
        with pytest.raises(ValueError, match="the bytes are no SentencePiece model"):
            load_tokenizer(tok.model_bytes)  # load_tokenizer does not know this kind


def test_a_tokenizer_is_loaded_from_a_path_or_bytes() -> None:
    data = BUNDLED.read_bytes()
    for model in (data, BUNDLED, str(BUNDLED)):
        found = load_tokenizer(model)
        assert isinstance(found, SentencePieceTokenizer) and found.model_bytes == data
    with pytest.raises(FileNotFoundError, match=r"missing\.model"):
        load_tokenizer(BUNDLED.with_name("missing.model"))


def test_the_protocol_cannot_be_instantiated() -> None:
    with pytest.raises(TypeError, match="cannot be instantiated"):
        Tokenizer(BUNDLED)  # type: ignore[call-arg,misc]


def test_importing_the_package_is_light() -> None:
    code = "import sys, tokenizer; print(*sys.modules); print(tokenizer.train.__name__)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded, name = result.stdout.splitlines()
    heavy = {"sentencepiece", "tokenizers", "jinja2", "torch", "streamlm"}
    assert not heavy & set(loaded.split())
    assert name == "train"
    assert all(hasattr(tokenizer, name) for name in tokenizer.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tokenizer.nothing
