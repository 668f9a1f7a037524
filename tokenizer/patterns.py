r"""Pre-tokenizers of byte-level BPE models: how a text is split before merges apply.

Each is known by the family of models that made it common. A pre-tokenizer that is not here is
refused, because a wrong one gives plausible but wrong tokens.

Sources: the tokenizer.json files of the models; for GGUF files, the table of pre-tokenizer names in
llama.cpp (llama-vocab.cpp).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"

# The pattern whose matches are split off; None is GPT-2's, which `ByteLevel` holds itself.
PATTERNS: dict[str, str | None] = {
    "gpt2": None,
    "smollm": None,  # after each digit has been split off
    "llama3": rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{_TAIL}",
    "qwen2": rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{_TAIL}",
    "o200k": rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{_TAIL}",
}

# `tokenizer.ggml.pre` of a GGUF file, and the pattern it stands for.
GGML = {
    "gpt-2": "gpt2",
    "smollm": "smollm",
    "llama3": "llama3",
    "llama-v3": "llama3",
    "llama-bpe": "llama3",
    "qwen2": "qwen2",
    "deepseek-r1-qwen": "qwen2",
    "gpt-4o": "o200k",
}


def pre_tokenizer(pattern: str) -> Any:
    """The `tokenizers` pre-tokenizer of a key of PATTERNS."""
    from tokenizers import Regex, pre_tokenizers

    regex = PATTERNS[pattern]
    if pattern == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    first = (
        pre_tokenizers.Digits(individual_digits=True)
        if regex is None
        else pre_tokenizers.Split(Regex(regex), behavior="isolated")
    )
    second = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex is None)
    return pre_tokenizers.Sequence([first, second])


def pattern_of(pre: Any) -> str:
    """The key of PATTERNS for the `pre_tokenizer` of a tokenizer.json.

    Raises:
        ValueError: none of them is meant; shows what was given.
    """
    steps = pre.get("pretokenizers", [pre]) if isinstance(pre, Mapping) else [pre]
    steps = [step if isinstance(step, Mapping) else {} for step in steps]
    *first, last = steps or [{}]
    regex_follows = bool(last.get("use_regex", True))
    if last.get("type") == "ByteLevel" and not last.get("add_prefix_space", True):
        if not first and regex_follows:
            return "gpt2"
        if len(first) == 1 and regex_follows and _is_digits(first[0]):
            return "smollm"
        if len(first) == 1 and not regex_follows and (regex := _split_regex(first[0])):
            for name, known in PATTERNS.items():
                if regex == known:
                    return name
    raise ValueError(
        f"cannot use the pre_tokenizer {_short(pre)}; allowed: those of {', '.join(PATTERNS)}"
    )


def _is_digits(step: Mapping[str, Any]) -> bool:
    return step.get("type") == "Digits" and step.get("individual_digits") is True


def _split_regex(step: Mapping[str, Any]) -> str | None:
    """The regex of a Split that keeps its matches; None for other steps."""
    wanted = {"type": "Split", "behavior": "Isolated", "invert": False}
    if any(step.get(key) != value for key, value in wanted.items()):
        return None
    pattern = step.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, Mapping) else None
    return regex if isinstance(regex, str) else None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]}…"
