"""SentencePiece vocabularies of Llama 2, TinyLlama and Mistral, from every kind of file."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given

from tests.support.texts import CORPUS, SYMBOL, TEXTS
from tests.support.tokenizers import TokenizerConformance
from tests.support.vocabularies import LLAMA_CHAT, MORE, llama_gguf, llama_json, llama_model
from tokenizer import SentencePieceTokenizer, Tokenizer, load_tokenizer
from tokenizer.boundaries import MAX_RUN
from tokenizer.gguf import from_gguf
from tokenizer.huggingface import from_huggingface, from_tokenizer_json
from tokenizer.piece_model import adopt_model

CONFIG = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return llama_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module", params=["gguf", "tokenizer.json", "tokenizer.model"])
def tok(request: pytest.FixtureRequest, model: bytes, tmp_path_factory: Any) -> Tokenizer:
    if request.param == "gguf":
        return from_gguf(llama_gguf(model))
    if request.param == "tokenizer.json":
        return from_tokenizer_json(llama_json(model), CONFIG)
    folder = tmp_path_factory.mktemp("folder")
    (folder / "tokenizer.model").write_bytes(model)
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG))
    return from_huggingface(folder)


class TestConformance(TokenizerConformance):
    longest_tail = MAX_RUN - 1


def reference(model: bytes, text: str) -> list[int]:
    """The ids of the model as it is, which puts a space before the text."""
    ids: list[int] = sentencepiece.SentencePieceProcessor(model_proto=model).encode(text)
    return ids


def comparable(text: str) -> bool:
    """Without U+2581, which the model takes for a space, and without runs that are cut.

    A run is of spaces and the word behind them, the space that the model adds included.
    """
    longest = max(map(len, re.findall(r" *[^ ]*", " " + text)))
    return bool(text) and SYMBOL not in text and longest <= MAX_RUN


def test_a_run_of_spaces_and_a_word_counts_as_one() -> None:
    spaces = " " * (MAX_RUN - 6)
    assert comparable(spaces + "whale") and not comparable(spaces + " whale")


@given(text=TEXTS.filter(comparable))
def test_ids_are_those_of_the_model(tok: Tokenizer, model: bytes, text: str) -> None:
    assert tok.encode(" " + text).tolist() == reference(model, text)


@given(text=TEXTS.filter(comparable))
def test_ids_are_those_of_the_converted_file(tok: Tokenizer, model: bytes, text: str) -> None:
    from tokenizers import Tokenizer as Library

    library = Library.from_str(json.dumps(llama_json(model)))
    library.encode_special_tokens = True
    expected = library.encode(text, add_special_tokens=False).ids
    assert tok.encode(" " + text).tolist() == expected


def test_every_kind_of_file_gives_the_same_ids(tok: Tokenizer, model: bytes) -> None:
    assert isinstance(tok, SentencePieceTokenizer)
    assert tok.encode(" " + CORPUS + MORE).tolist() == reference(model, CORPUS + MORE)
    assert tok.bos_id == 1 and tok.eos_ids == (2,)
    assert tok.chat is not None and set(tok.chat.special) == {"<s>", "</s>"}
    assert tok.chat.names.get("eos_token") == "</s>"
    same = load_tokenizer(tok.model_bytes)
    assert same.chat == tok.chat and same.eos_ids == tok.eos_ids


def test_where_the_model_puts_a_space(model: bytes) -> None:
    def prefix(tok: Tokenizer) -> str:
        assert tok.chat is not None
        return tok.chat.space_prefix

    assert prefix(from_gguf(llama_gguf(model))) == "always"
    no_space = {**llama_gguf(model), "tokenizer.ggml.add_space_prefix": False}
    assert prefix(from_gguf(no_space)) == "never"
    assert prefix(from_tokenizer_json(llama_json(model), CONFIG)) == "always"
    assert prefix(from_tokenizer_json(llama_json(model, metaspace=True), CONFIG)) == "first"
    assert prefix(SentencePieceTokenizer(adopt_model(model, {}, {}))) == "first"
    data = llama_json(model)
    data["normalizer"] = data["normalizer"]["normalizers"][1]
    assert prefix(from_tokenizer_json(data, CONFIG)) == "never"


def test_added_tokens_come_from_no_text(model: bytes, tmp_path: Path) -> None:
    metadata = llama_gguf(model)
    size = len(metadata["tokenizer.ggml.tokens"])
    for name, values in (("tokens", ["<think>", "<|im_end|>"]), ("token_type", [4, 3])):
        metadata[f"tokenizer.ggml.{name}"] = [*metadata[f"tokenizer.ggml.{name}"], *values]
    metadata["tokenizer.ggml.scores"] = [*metadata["tokenizer.ggml.scores"], 0.0, 0.0]
    listed = {
        size: {"content": "<think>", "special": False},
        size + 1: {"content": "<|im_end|>", "special": True},
    }
    (tmp_path / "tokenizer.model").write_bytes(model)
    config = {**CONFIG, "added_tokens_decoder": listed}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    data = llama_json(model)
    data["added_tokens"] += [{"id": i, **entry} for i, entry in listed.items()]
    for tok in (
        from_gguf(metadata),
        from_huggingface(tmp_path),
        from_tokenizer_json(data, CONFIG),
    ):
        ids = tok.encode("a<think>b<|im_end|> <think> <s></s>")
        assert not {1, 2, size, size + 1} & set(ids.tolist())
        assert tok.decode(ids) == "a<think>b<|im_end|> <think> <s></s>"
        assert tok.decode([size]) == "<think>" and tok.decode([size + 1]) == ""
        assert tok.chat is not None and tok.chat.added == {"<think>": size}
        assert tok.chat.special["<|im_end|>"] == size + 1
    listed[size + 3] = {"content": "<gap>", "special": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"the model's end at {size - 1}"):
        from_huggingface(tmp_path)


def test_what_is_not_supported_is_refused(model: bytes) -> None:
    data = llama_json(model)
    data["normalizer"]["normalizers"].insert(0, {"type": "NFKC"})
    with pytest.raises(ValueError, match="cannot use the normalizer"):
        from_tokenizer_json(data, CONFIG)
    data = llama_json(model, metaspace=True)
    data["pre_tokenizer"]["split"] = True
    with pytest.raises(ValueError, match=r"'Metaspace'.*without split"):
        from_tokenizer_json(data, CONFIG)
    data = llama_json(model)
    merges = data["model"]["merges"]
    made = Counter("".join(merge) for merge in merges)
    merges.remove(next(merge for merge in merges if made["".join(merge)] > 1))
    with pytest.raises(ValueError, match="are not those of a SentencePiece model"):
        from_tokenizer_json(data, CONFIG)
    data = llama_json(model)
    del data["model"]["vocab"]["e"]
    with pytest.raises(ValueError, match="has no token with id"):
        from_tokenizer_json(data, CONFIG)
    metadata = llama_gguf(model)
    metadata["tokenizer.ggml.scores"] = [0.0]
    with pytest.raises(ValueError, match="tokens and 1 scores"):
        from_gguf(metadata)
    metadata = llama_gguf(model)
    metadata["tokenizer.ggml.token_type"][0] = 1
    with pytest.raises(ValueError, match="has no unknown token"):
        from_gguf(metadata)


def test_a_model_that_changes_characters(tmp_path: Path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.split("\n")),
        model_prefix=str(tmp_path / "tokenizer"),
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        minloglevel=2,
    )
    with pytest.raises(ValueError, match="normaliser is b'nmt_nfkc'; allowed: b'identity'"):
        from_huggingface(tmp_path)
    for data in (b"\x0a\xff", b"\x0f", b"\x80"):
        with pytest.raises(ValueError, match="no protobuf message"):
            adopt_model(data, {}, {})


def test_the_template_is_kept(model: bytes) -> None:
    chat = from_gguf(llama_gguf(model)).chat
    assert chat is not None and chat.template == LLAMA_CHAT
