"""What defines a byte-level BPE tokenizer, as one value with one serialisation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tokenizer.patterns import PATTERNS

FORMAT = "byte-level BPE 1"
_ENDS = (
    *("</s>", "<|endoftext|>", "<|end_of_text|>"),
    *("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|return|>", "<|call|>"),
)
_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a byte-level BPE model, its merges, and how a text is split before them.

    Attributes:
        pattern: a key of `patterns.PATTERNS`.
        tokens: token of every id: spelled in GPT-2's alphabet of bytes, special and added ones as
            their text, None for ids without a token.
        merges: pairs of tokens, the first merged first, each as "left right".
        special: ids of control tokens: no text, made by chat templates alone.
        added: ids of tokens that are text, but come from chat templates alone, as <think> does.
        bos_id: the token that precedes a text; see `start_id`.
        eos_ids: tokens that end a text or a turn.
        ignore_merges: a match that is a token becomes that token, merges or not.
        chat_template: the Jinja source, None where there is none.
        names: names that chat templates have for tokens, such as bos_token, and their text.
    """

    pattern: str
    tokens: tuple[str | None, ...]
    merges: tuple[str, ...]
    special: tuple[int, ...]
    added: tuple[int, ...]
    bos_id: int
    eos_ids: tuple[int, ...]
    ignore_merges: bool = False
    chat_template: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.pattern not in PATTERNS:
            raise ValueError(f"pattern {self.pattern!r}; allowed: {', '.join(PATTERNS)}")
        if not all(isinstance(token, str | None) for token in self.tokens):
            raise ValueError("tokens must be text")
        ids = {"bos_id": (self.bos_id,), "eos_ids": self.eos_ids}
        for name, given in ids.items():
            if wrong := set(given) - set(self.special):
                raise ValueError(f"{name} {min(wrong)} is no special token of this vocabulary")
        for i in (*self.special, *self.added):
            if not 0 <= i < len(self.tokens) or not self.tokens[i]:
                raise ValueError(f"special or added id {i} has no token")

    def to_bytes(self) -> bytes:
        """The canonical JSON; equal vocabularies have equal bytes."""
        return _json({"format": FORMAT, **asdict(self)})

    @classmethod
    def from_bytes(cls, data: bytes) -> Vocabulary:
        """The vocabulary of `to_bytes`; ValueError for anything else."""
        try:
            given = json.loads(data)
            if given.pop("format") != FORMAT:
                raise ValueError(f"the format must be {FORMAT!r}")
            lists = {name: tuple(value) for name, value in given.items() if type(value) is list}
            return cls(**{**given, **lists})
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"the bytes are no tokenizer model: {error}") from error

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything but the chat template and its names."""
        given = asdict(self)
        del given["chat_template"], given["names"]
        return hashlib.sha256(_json(given)).hexdigest()


def _json(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return text.encode("utf-8", errors="strict")


def start_id(special: Mapping[str, int], *, bos: int | None, eos: int | None, adds: bool) -> int:
    """The token that precedes a text.

    It is bos for a model that was trained to see it there (`adds`). Others never saw it at the
    start of plain text, or have none: SmolLM2's bos, <|im_start|>, opens a turn, and Qwen has none.
    There it is <|endoftext|>, which separated the texts that they were trained on; without it,
    bos, then eos.

    Args:
        special: ids of the special tokens by their text.
        adds: whether the model's own tokenizer puts bos before a text.

    Raises:
        ValueError: there is none of them.
    """
    for found in (bos if adds else None, special.get("<|endoftext|>"), bos, eos):
        if found is not None:
            return found
    raise ValueError("the tokenizer has no bos, eos or <|endoftext|> that could begin a text")


def token_names(named: Mapping[str, Any]) -> dict[str, str]:
    """The tokens that chat templates know by name, from `tokenizer_config.json`'s entries."""
    found = {}
    for name in _NAMES:
        value = named.get(name)
        text = value.get("content") if isinstance(value, Mapping) else value
        if isinstance(text, str):
            found[name] = text
    return found


def end_ids(special: Mapping[str, int], eos: Iterable[int]) -> tuple[int, ...]:
    """The tokens that end a text or a turn: `eos`, and the special tokens with a name that says so.

    Files of chat models often name the end of a text as eos, and not that of a turn, or the other
    way round.
    """
    return tuple(sorted({*eos, *(special[text] for text in _ENDS if text in special)}))
