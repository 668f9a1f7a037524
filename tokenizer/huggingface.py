"""Tokenizers from the files of a Hugging Face model directory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizer.byte_pair import BytePairTokenizer
from tokenizer.metaspace import pieces_of, space_prefix
from tokenizer.patterns import pattern_of
from tokenizer.piece_model import CONTROL, USER_DEFINED, Piece, adopt_model, build_model
from tokenizer.sentencepiece import SentencePieceTokenizer
from tokenizer.tokenizer import Tokenizer
from tokenizer.vocabulary import Vocabulary, end_ids, start_id, token_names

MOST_TOKENS = 1 << 22


def from_huggingface(folder: str | Path) -> Tokenizer:
    """The tokenizer of a directory with tokenizer.json or, without it, tokenizer.model.

    Read as well, where they are there: tokenizer_config.json, special_tokens_map.json,
    generation_config.json, chat_template.jinja.

    Raises:
        FileNotFoundError: there is neither file.
        ValueError: a file is damaged, or a part of the tokenizer is not supported; names it and
            what is allowed.
    """
    folder = Path(folder)
    config = _json(folder / "special_tokens_map.json") | _json(folder / "tokenizer_config.json")
    generation = _json(folder / "generation_config.json")
    config["chat_template"] = chat_template(folder)
    if (folder / "tokenizer.json").is_file():
        return from_tokenizer_json(_json(folder / "tokenizer.json"), config, generation)
    if (folder / "tokenizer.model").is_file():
        return _adopted((folder / "tokenizer.model").read_bytes(), config)
    raise FileNotFoundError(f"{folder} has no tokenizer.json and no tokenizer.model")


def from_tokenizer_json(
    data: Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
    generation: Mapping[str, Any] | None = None,
) -> Tokenizer:
    """The tokenizer of the contents of a tokenizer.json, and of the files beside it."""
    config, model = config or {}, _part(data, "model")
    if model.get("type", "BPE") != "BPE":
        raise ValueError(f"cannot use a model of type {model['type']!r}; allowed: 'BPE'")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise ValueError(f"the model's {name} is {model[name]!r}; it must be empty")
    added = _added_tokens(data.get("added_tokens") or ())
    _check_strips(data.get("added_tokens") or (), config.get("chat_template"))
    special = {piece.text: i for i, piece in added.items() if piece.kind == CONTROL}
    names = token_names(config)
    bos, eos = (special.get(names.get(name, "")) for name in ("bos_token", "eos_token"))
    adds = bool(config.get("add_bos_token")) or _adds(data.get("post_processor"), names)
    shared: dict[str, Any] = {
        "bos_id": start_id(special, bos=bos, eos=eos, adds=adds),
        "eos_ids": end_ids(special, _ends(eos, generation or {}, special)),
        "chat_template": config.get("chat_template"),
        "names": names,
    }
    if model.get("byte_fallback"):
        pieces, prefix = pieces_of(model, added), space_prefix(data)
        return SentencePieceTokenizer(build_model(pieces, space_prefix=prefix, **shared))
    normalizer = data.get("normalizer")
    if normalizer and _part(data, "normalizer").get("type") != "NFC":
        raise ValueError(f"cannot use the normalizer {normalizer!r}; allowed: none, NFC")
    return BytePairTokenizer(_byte_level(data, model, added, shared))


def chat_template(folder: Path) -> str | None:
    """The Jinja source of a directory's chat template, the one named "default" of several."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        given = _json(folder / name).get("chat_template")
        if isinstance(given, list):
            given = {entry.get("name"): entry.get("template") for entry in given}.get("default")
        if isinstance(given, str):
            return given
    return None


def _byte_level(
    data: Mapping[str, Any],
    model: Mapping[str, Any],
    added: Mapping[int, Piece],
    shared: Mapping[str, Any],
) -> Vocabulary:
    vocab = _part(model, "vocab")
    last = max([*vocab.values(), *added])
    if last >= MOST_TOKENS:
        raise ValueError(f"the vocabulary has an id {last:,}; allowed: below {MOST_TOKENS:,}")
    tokens: list[str | None] = [None] * (last + 1)
    for token, i in vocab.items():
        if i < 0 or tokens[i] is not None:
            raise ValueError(f"the vocabulary gives id {i} to {tokens[i]!r} and {token!r}")
        tokens[i] = token
    for i, piece in added.items():
        tokens[i] = piece.text
    return Vocabulary(
        pattern=pattern_of(data.get("pre_tokenizer")),
        tokens=tuple(tokens),
        merges=tuple(
            merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]
        ),
        special=tuple(sorted(i for i, piece in added.items() if piece.kind == CONTROL)),
        added=tuple(sorted(i for i, piece in added.items() if piece.kind != CONTROL)),
        ignore_merges=bool(model.get("ignore_merges")),
        **shared,
    )


def _adopted(model: bytes, config: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a tokenizer.model, with the tokens that were added to it later."""
    listed = config.get("added_tokens_decoder") or {}
    added = _added_tokens({**entry, "id": int(i)} for i, entry in listed.items())
    extras = {"chat_template": config.get("chat_template"), "names": token_names(config)}
    return SentencePieceTokenizer(adopt_model(model, added, extras))


def _added_tokens(listed: Iterable[Mapping[str, Any]]) -> dict[int, Piece]:
    return {
        int(entry["id"]): Piece(
            str(entry["content"]), 0.0, CONTROL if entry.get("special") else USER_DEFINED
        )
        for entry in listed
    }


def _check_strips(listed: Iterable[Mapping[str, Any]], template: str | None) -> None:
    """Refuse a token of the template that takes away the white space beside it."""
    for entry in listed:
        for flag in ("lstrip", "rstrip"):
            if template and entry.get(flag) and entry["content"] in template:
                raise ValueError(f"the chat template's token {entry['content']!r} has {flag} on")


def _adds(post_processor: Any, names: Mapping[str, str]) -> bool:
    """Whether the post-processor puts bos before a text."""
    bos, steps = names.get("bos_token"), post_processor or {}
    for step in steps.get("processors", [steps]):
        for item in step.get("single", ()) if step.get("type") == "TemplateProcessing" else ():
            if bos is not None and item.get("SpecialToken", {}).get("id") == bos:
                return True
    return False


def _ends(eos: int | None, generation: Mapping[str, Any], special: Mapping[str, int]) -> list[int]:
    given = generation.get("eos_token_id")
    more = given if isinstance(given, list) else [given]
    return [i for i in (eos, *more) if i in special.values()]


def _part(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = data.get(name)
    if not isinstance(part, Mapping):
        raise ValueError(f"tokenizer.json has no {name}: given {part!r}")
    return part


def _json(path: Path) -> dict[str, Any]:
    """The object of a JSON file; empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} is damaged: it holds no object")
    return data
