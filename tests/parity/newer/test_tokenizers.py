"""Ids of texts and conversations against `transformers`, for every supported kind of tokenizer.

The vocabularies are small and trained here, with the pre-tokenizers of the models. Where SmolLM2's
GGUF file is named by STREAMLM_SMOLLM2, its vocabulary is compared too.
"""

import json
import os
import random
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from tests.parity.peers import peer
from tests.support.texts import CORPUS
from tests.support.vocabularies import (
    ALL_PATTERNS,
    MORE,
    byte_level_json,
    huggingface_folder,
    llama_json,
    llama_model,
)
from tokenizer import Tokenizer, boundaries
from tokenizer.chat import ChatTemplate
from tokenizer.gguf import from_gguf
from tokenizer.huggingface import from_huggingface

transformers = peer("transformers", "transformers 5")
if int(transformers.__version__.split(".")[0]) < 5:
    pytest.skip("needs transformers 5", allow_module_level=True)

ROUNDS = 400
UNITS = [
    *CORPUS.split(" "),
    *MORE.split(" "),
    *(" ", "  ", "    ", "\n", "\n\n", "\r\n", "\t", "\xa0", "\u3000", "\u2028", "\u200b", "\x85"),
    *("'s", "'LL", "'", "1", "1234567", "²", "٣", ".", "...", "?!", "/", "_", "€", "<|im_end|>"),
    *("é", "\u0301", "ß", "слово", "漢字", "ひらがな", "한국어", "العربية", "हिन्दी", "ไทย"),
    *("👩\u200d👧", "🏳\ufe0f", "x" * 200, "0" * 90, "漢" * 90, "=" * 90, "\U0010ffff"),
]
CONTENTS = [
    "Hello there",
    "  two spaces, and 123",
    "漢字 😀\n\nend",
    "It's\ta\r\ntest ",
    "A < b > c",
]

# Short forms of what the models' own files hold.
LLAMA3 = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|start|>' + message['role'] + '<|stop|>\n\n' + message['content'] | trim + '<|eot|>' }}"
    "{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|start|>assistant<|stop|>\n\n' }}{%- endif %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n' + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)


def random_texts(seed: int) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(UNITS, k=rng.randint(1, 40))) for _ in range(ROUNDS)]


def theirs(folder: Path, **options: Any) -> Any:
    """The tokenizer of `transformers`, reading special tokens in a text as text."""
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    named = {name: config[name] for name in ("bos_token", "eos_token") if name in config}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        chat_template=config.get("chat_template"),
        clean_up_tokenization_spaces=False,
        **named,
        **options,
    )


def their_ids(tok: Any, text: str) -> list[int]:
    ids: list[int] = tok.encode(text, add_special_tokens=False, split_special_tokens=True)
    return ids


def compare_texts(ours: Tokenizer, tok: Any, texts: list[str], space: str = "") -> None:
    for text in texts:
        assert ours.encode(space + text).tolist() == their_ids(tok, text), text
        assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize("pattern", ALL_PATTERNS)
def test_byte_level(pattern: str, tmp_path: Path) -> None:
    data = json.loads(byte_level_json(pattern))
    texts = random_texts(1)
    if pattern == "qwen2":  # its own tokenizer composes characters first, ours does not
        data["normalizer"] = {"type": "NFC"}
        texts = [unicodedata.normalize("NFC", text) for text in texts]
    folder = huggingface_folder(tmp_path, json.dumps(data))
    compare_texts(from_huggingface(folder), theirs(folder), texts)


@pytest.mark.parametrize("metaspace", [False, True])
def test_llama(metaspace: bool, tmp_path: Path) -> None:
    data = llama_json(llama_model(tmp_path), metaspace=metaspace)
    config = {"bos_token": "<s>", "eos_token": "</s>"}
    folder = huggingface_folder(tmp_path / "hf", json.dumps(data), **config)
    runs = re.compile(rf"[^ \n]{{{boundaries.MAX_RUN - 1},}}")  # which ours would cut
    texts = [text for text in random_texts(2) if not runs.search(text)]
    if metaspace:  # it puts no space before one
        texts = [text.lstrip(" ") or "." for text in texts]
    assert len(texts) > ROUNDS // 2
    compare_texts(from_huggingface(folder), theirs(folder), texts, space=" ")


def compare_chats(folder: Path) -> None:
    ours, tok = ChatTemplate(from_huggingface(folder)), theirs(folder)
    for n in range(1, len(CONTENTS) + 1, 2):
        roles = ("user", "assistant")
        chat = [{"role": roles[i % 2], "content": CONTENTS[i]} for i in range(n)]
        expected = tok.apply_chat_template(
            chat, tokenize=True, add_generation_prompt=True, return_dict=False
        )
        assert ours.conversation_ids(chat, generation_prompt=True).tolist() == expected
        turn = ours.turn_ids(chat[:-1], chat[-1]).tolist()
        assert turn and expected[-len(turn) :] == turn
        before = expected[: -len(turn)]
        assert before[-1:] == ([ours.reply_end] if n > 1 else before[-1:])


@pytest.mark.parametrize("pattern", ALL_PATTERNS)
def test_chat_of_byte_level_models(pattern: str, tmp_path: Path) -> None:
    compare_chats(huggingface_folder(tmp_path / "chatml", byte_level_json(pattern)))
    names = {"<|start|>": "<|im_start|>", "<|eot|>": "<|im_end|>", "<|stop|>": "<think>"}
    source = LLAMA3
    for name, token in names.items():
        source = source.replace(name, token)
    options = {"bos_token": "<|endoftext|>", "chat_template": source}
    compare_chats(huggingface_folder(tmp_path / "llama3", byte_level_json(pattern), **options))


@pytest.mark.parametrize("metaspace", [False, True])
def test_chat_of_llama_models(metaspace: bool, tmp_path: Path) -> None:
    text = json.dumps(llama_json(llama_model(tmp_path), metaspace=metaspace))
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": ZEPHYR}
    compare_chats(huggingface_folder(tmp_path / "hf", text, **config))


def test_smollm2(tmp_path: Path) -> None:
    """The vocabulary of the GGUF file, in the form of the tokenizer.json it was made from."""
    if "STREAMLM_SMOLLM2" not in os.environ:
        pytest.skip("STREAMLM_SMOLLM2 names no GGUF file")
    gguf = peer("gguf", "gguf")
    reader = gguf.GGUFReader(os.environ["STREAMLM_SMOLLM2"])
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    ours = from_gguf(metadata)
    data = json.loads(byte_level_json("smollm"))
    tokens = metadata["tokenizer.ggml.tokens"]
    kinds = metadata["tokenizer.ggml.token_type"]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    data["added_tokens"] = [
        {"id": i, "content": token, "special": True, **flags}
        for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind == 3
    ]
    data["model"]["vocab"] = {token: i for i, token in enumerate(tokens)}
    data["model"]["merges"] = metadata["tokenizer.ggml.merges"]
    template = metadata["tokenizer.chat_template"]
    folder = huggingface_folder(tmp_path, json.dumps(data), chat_template=template)
    compare_texts(ours, theirs(folder), random_texts(3))
    compare_chats(folder)
    assert from_huggingface(folder).encode(CORPUS).tolist() == ours.encode(CORPUS).tolist()
