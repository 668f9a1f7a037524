"""Small vocabularies of pretrained kinds, trained in a moment, in the forms of model files."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sentencepiece

from tests.support.texts import CORPUS, SYMBOL
from tokenizer.patterns import PATTERNS, pre_tokenizer
from tokenizer.piece_model import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ADDED = ("<think>", "</think>")
GGML = {"gpt2": "gpt-2", "smollm": "smollm", "llama3": "llama-bpe", "qwen2": "qwen2"}
GGML["o200k"] = "gpt-4o"

# What SmolLM2's looks like.
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MORE = """
It's what I've said: we'll see, they're here, I'd go, I'M SURE, don't; 3.1415 + 1,000,000 = 12 345.
def f(x):\n\treturn  x ** 2    # a comment\r\n\r\nhttps://example.org/a/b?c=d&e=f   émigré naïve
한국어 텍스트는 여기에 있다. العربية هنا. हिन्दी में। ภาษาไทย ไม่มีช่องว่าง 👩‍👩‍👧 🏳️‍🌈 e\u0301
吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。
"""


@functools.cache
def byte_level_json(pattern: str) -> str:
    """A tokenizer.json with byte-level BPE, special tokens and added ones."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, trainers
    from tokenizers.pre_tokenizers import ByteLevel

    library = Tokenizer(models.BPE(ignore_merges=pattern == "llama3"))
    library.pre_tokenizer = pre_tokenizer(pattern)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=list(SPECIAL),
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator([CORPUS, MORE] * 4, trainer)
    library.add_tokens([AddedToken(text, normalized=False, special=False) for text in ADDED])
    return library.to_str()


def huggingface_folder(folder: Path, text: str, **config: Any) -> Path:
    """A directory with a tokenizer.json and a tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    given = {"eos_token": "<|im_end|>", "chat_template": CHATML, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(given), encoding="utf-8")
    return folder


def byte_level_gguf(pattern: str) -> dict[str, Any]:
    """The metadata of a GGUF file with the vocabulary of `byte_level_json`."""
    data = json.loads(byte_level_json(pattern))
    kinds = {entry["content"]: 3 if entry["special"] else 4 for entry in data["added_tokens"]}
    vocab = {**data["model"]["vocab"]}
    vocab |= {entry["content"]: entry["id"] for entry in data["added_tokens"]}
    tokens = sorted(vocab, key=vocab.__getitem__)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": GGML[pattern],
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in data["model"]["merges"]],
        "tokenizer.ggml.token_type": [kinds.get(token, 1) for token in tokens],
        "tokenizer.ggml.eos_token_id": vocab["<|im_end|>"],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHATML,
    }


@functools.cache
def llama_model(folder: Path) -> bytes:
    """A tokenizer.model as Llama 2's: SentencePiece BPE with a dummy prefix, without newlines."""
    out = folder / "llama.model"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((CORPUS + MORE).replace("\n", " ").split(". ")),
        model_prefix=str(out.with_suffix("")),
        model_type="bpe",
        vocab_size=800,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    return out.read_bytes()


def llama_gguf(model: bytes) -> dict[str, Any]:
    """The metadata of a GGUF file with the vocabulary of a SentencePiece model."""
    given = sentencepiece.SentencePieceProcessor(model_proto=model)
    size = given.vocab_size()
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [given.id_to_piece(i) for i in range(size)],
        "tokenizer.ggml.scores": [given.get_score(i) for i in range(size)],
        "tokenizer.ggml.token_type": [_kind(given, i) for i in range(size)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": LLAMA_CHAT,
    }


LLAMA_CHAT = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def llama_json(model: bytes, *, metaspace: bool = False) -> dict[str, Any]:
    """The tokenizer.json that a SentencePiece model is converted to."""
    given = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [given.id_to_piece(i) for i in range(given.vocab_size())]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    prepend = {"type": "Prepend", "prepend": SYMBOL}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SYMBOL}
    split = {"type": "Metaspace", "replacement": SYMBOL, "prepend_scheme": "first", "split": False}
    sequence = {"type": "Sequence", "normalizers": [prepend, replace]}
    return {
        "version": "1.0",
        "added_tokens": [_added(i, piece) for i, piece in enumerate(pieces[:3])],
        "normalizer": None if metaspace else sequence,
        "pre_tokenizer": split if metaspace else None,
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": merges_of(given, vocab),
        },
    }


def merges_of(given: Any, vocab: Mapping[str, int]) -> list[list[str]]:
    """The merges of a SentencePiece model: every pair of pieces that make one, best score first."""
    found = []
    for piece, i in vocab.items():
        if given.is_control(i) or given.is_unknown(i) or given.is_byte(i):
            continue
        pairs = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        pairs = [(left, right) for left, right in pairs if left in vocab and right in vocab]
        pairs.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        found += [(given.get_score(i), list(pair)) for pair in pairs]
    return [pair for _, pair in sorted(found, key=lambda entry: -entry[0])]


def _added(i: int, text: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": i, "content": text, "special": True, **flags}


def _kind(given: Any, i: int) -> int:
    if given.is_unknown(i):
        return UNKNOWN
    if given.is_control(i):
        return CONTROL
    if given.is_byte(i):
        return BYTE
    return UNUSED if given.is_unused(i) else NORMAL


ALL_PATTERNS = tuple(PATTERNS)
