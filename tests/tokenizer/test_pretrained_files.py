"""Tokenizers from Hugging Face directories and GGUF metadata: what is read, what is refused."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.texts import CORPUS, TRAPS
from tests.support.vocabularies import (
    ADDED,
    ALL_PATTERNS,
    CHATML,
    MORE,
    SPECIAL,
    byte_level_gguf,
    byte_level_json,
    huggingface_folder,
)
from tokenizer import load_tokenizer
from tokenizer.byte_pair import BytePairTokenizer
from tokenizer.gguf import from_gguf
from tokenizer.huggingface import from_huggingface, from_tokenizer_json
from tokenizer.patterns import GGML, pattern_of
from tokenizer.vocabulary import end_ids, start_id

TEXT = CORPUS + MORE + "".join(TRAPS)


@pytest.mark.parametrize("pattern", ALL_PATTERNS)
def test_both_kinds_of_file_hold_the_same_tokenizer(pattern: str, tmp_path: Path) -> None:
    folder = huggingface_folder(tmp_path, byte_level_json(pattern))
    one, two = from_huggingface(folder), from_gguf(byte_level_gguf(pattern))
    assert isinstance(one, BytePairTokenizer) and isinstance(two, BytePairTokenizer)
    assert one.fingerprint == two.fingerprint
    assert one.vocabulary.pattern == pattern
    assert one.encode(TEXT).tolist() == two.encode(TEXT).tolist()
    assert one.chat is not None and one.chat.template == CHATML
    assert [one.bos_id, *one.eos_ids] == [0, 0, 2]
    same = load_tokenizer(folder)
    assert same.model_bytes == one.model_bytes
    assert load_tokenizer(folder / "tokenizer.json").fingerprint == one.fingerprint
    kept = tmp_path / "tokenizer.model"
    kept.write_bytes(one.model_bytes)
    assert load_tokenizer(kept).model_bytes == one.model_bytes


def test_bytes_for_text_in_gguf_metadata() -> None:
    metadata = byte_level_gguf("gpt2")
    tokens = [token.encode() for token in metadata["tokenizer.ggml.tokens"]]
    same = from_gguf({**metadata, "tokenizer.ggml.tokens": tokens})
    assert same.model_bytes == from_gguf(metadata).model_bytes


@pytest.mark.parametrize(
    ("special", "bos", "eos", "adds", "start"),
    [
        ({"<s>": 1, "<|endoftext|>": 0}, 1, 2, True, 1),  # Llama
        ({"<|im_start|>": 1, "<|endoftext|>": 0}, 1, 2, False, 0),  # SmolLM2
        ({"<|endoftext|>": 0}, None, 2, False, 0),  # Qwen
        ({"<s>": 1}, 1, 2, False, 1),
        ({"</s>": 2}, None, 2, False, 2),
    ],
)
def test_what_begins_a_text(
    special: dict[str, int], bos: int | None, eos: int, adds: bool, start: int
) -> None:
    assert start_id(special, bos=bos, eos=eos, adds=adds) == start


def test_nothing_to_begin_a_text_with() -> None:
    with pytest.raises(ValueError, match=r"no bos, eos or <\|endoftext\|>"):
        start_id({}, bos=None, eos=None, adds=False)


def test_ends_are_named_by_files_and_by_their_text(tmp_path: Path) -> None:
    assert end_ids({"<|eot_id|>": 9, "<|im_start|>": 1, "</s>": 2}, [4]) == (2, 4, 9)
    folder = huggingface_folder(tmp_path, byte_level_json("qwen2"))
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 700000]}')
    assert from_huggingface(folder).eos_ids == (0, 1, 2)


def test_bos_that_the_files_add(tmp_path: Path) -> None:
    text = byte_level_json("llama3")
    named = {"bos_token": {"content": "<|im_start|>"}}
    assert from_huggingface(huggingface_folder(tmp_path, text, **named)).bos_id == 0
    added = huggingface_folder(tmp_path, text, add_bos_token=True, **named)
    assert from_huggingface(added).bos_id == 1
    data = json.loads(text)
    first = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}
    steps = [{"type": "ByteLevel"}, {"type": "TemplateProcessing", "single": [first]}]
    data["post_processor"] = {"type": "Sequence", "processors": steps}
    assert from_tokenizer_json(data, named).bos_id == 1


@pytest.mark.parametrize(
    "files",
    [
        {"chat_template.jinja": "{{ 1 }}"},
        {"chat_template.json": json.dumps({"chat_template": "{{ 1 }}"})},
        {
            "tokenizer_config.json": json.dumps(
                {
                    "chat_template": [
                        {"name": "tool_use", "template": "{{ 2 }}"},
                        {"name": "default", "template": "{{ 1 }}"},
                    ],
                    "eos_token": "<|im_end|>",
                }
            )
        },
    ],
)
def test_where_chat_templates_are(tmp_path: Path, files: dict[str, str]) -> None:
    folder = huggingface_folder(tmp_path, byte_level_json("gpt2"))
    for name, text in files.items():
        (folder / name).write_text(text)
    chat = from_huggingface(folder).chat
    assert chat is not None and chat.template == "{{ 1 }}"


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer\.json and no tokenizer\.model"):
        from_huggingface(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer\.json is damaged"):
        from_huggingface(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(ValueError, match="it holds no object"):
        from_huggingface(tmp_path)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "tokenizer.json has no model"),
    ({"model": {"type": "Unigram"}}, "a model of type 'Unigram'; allowed: 'BPE'"),
    ({"model.dropout": 0.1}, "the model's dropout is 0.1; it must be empty"),
    ({"model.end_of_word_suffix": "</w>"}, "the model's end_of_word_suffix is '</w>'"),
    ({"model.vocab": {"a": 0, "b": 0}}, "gives id 0 to 'a' and 'b'"),
    ({"normalizer": {"type": "NFKC"}}, "the normalizer {'type': 'NFKC'}; allowed: none, NFC"),
    ({"pre_tokenizer": None}, "the pre_tokenizer None; allowed: those of gpt2, smollm, llama3"),
    ({"pre_tokenizer": {"type": "Whitespace"}}, "cannot use the pre_tokenizer"),
    ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "cannot use the pre_tok"),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED, ids=str)
def test_what_is_not_supported_is_refused(changes: dict[str, Any], words: str) -> None:
    data = json.loads(byte_level_json("gpt2"))
    for name, value in changes.items():
        part = data if "." not in name else data[name.partition(".")[0]]
        part[name.rpartition(".")[2]] = value
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        from_tokenizer_json(data, {"eos_token": "<|im_end|>"})


@pytest.mark.parametrize("pattern", ALL_PATTERNS)
def test_another_pattern_is_no_known_one(pattern: str) -> None:
    pre = json.loads(byte_level_json(pattern))["pre_tokenizer"]
    assert pattern_of(pre) == pattern
    for path in (("behavior", "Removed"), ("invert", True), ("individual_digits", False)):
        other = copy.deepcopy(pre)
        step = other.get("pretokenizers", [{}])[0]
        if path[0] in step:
            step[path[0]] = path[1]
            with pytest.raises(ValueError, match="cannot use the pre_tokenizer"):
                pattern_of(other)
    if "pattern" in pre.get("pretokenizers", [{}])[0]:
        pre["pretokenizers"][0]["pattern"]["Regex"] += "|x"
        with pytest.raises(ValueError, match="cannot use the pre_tokenizer"):
            pattern_of(pre)


def test_nfc_is_left_out() -> None:
    """Qwen's own tokenizer composes characters; this one keeps what was written."""
    data = json.loads(byte_level_json("qwen2"))
    data["normalizer"] = {"type": "NFC"}
    tok = from_tokenizer_json(data)
    assert tok.decode(tok.encode("e\u0301")) == "e\u0301"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "bert"}, "tokenizer.ggml.model is 'bert'; allowed: 'gpt2', 'llama'"),
        ({"model": None}, "tokenizer.ggml.model is None; allowed"),
        ({"pre": "gpt5"}, f"tokenizer.ggml.pre is 'gpt5'; allowed: {', '.join(GGML)}"),
        ({"pre": None}, "tokenizer.ggml.pre is None; allowed"),
        ({"token_type": [1]}, "tokens and 1 token types"),
        ({"eos_token_id": 10**6}, "tokenizer.ggml.eos_token_id is 1000000; allowed: 0 to"),
        ({"tokens": [1]}, "expected text in the GGUF file's tokenizer, given int"),
    ],
)
def test_gguf_metadata_that_are_refused(changes: dict[str, Any], words: str) -> None:
    metadata = byte_level_gguf("gpt2")
    metadata |= {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    with pytest.raises(ValueError, match=words):
        from_gguf(metadata)


def test_gguf_metadata_must_be_complete() -> None:
    metadata = byte_level_gguf("gpt2")
    del metadata["tokenizer.ggml.merges"]
    with pytest.raises(ValueError, match=r"has no tokenizer\.ggml\.merges"):
        from_gguf(metadata)


def test_a_token_of_the_template_that_strips(tmp_path: Path) -> None:
    data = json.loads(byte_level_json("gpt2"))
    data["added_tokens"][2]["rstrip"] = True
    config = {"eos_token": "<|im_end|>", "chat_template": CHATML}
    with pytest.raises(ValueError, match=r"token '<\|im_end\|>' has rstrip on"):
        from_tokenizer_json(data, config)
    assert from_tokenizer_json(data, {"eos_token": "<|im_end|>"}).eos_ids == (0, 2)


def test_unused_ids_of_a_gguf_file() -> None:
    metadata = byte_level_gguf("gpt2")
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "[PAD1]", "[PAD2]"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 5, 5]
    tok = from_gguf(metadata)
    last = tok.vocab_size - 1
    assert tok.decode([last]) == "" and tok.token_lengths[last] == 0
    assert tok.chat is not None
    assert [*tok.chat.special, *tok.chat.added] == [*SPECIAL, *ADDED]
