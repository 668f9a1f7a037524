"""Log-probabilities in OpenAI's shapes: lists beside each other, or an object for each token."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from apps.server.service import Service, ending
from streamlm.runtime.reports import TokenLogprob
from tokenizer import StreamDecoder


@dataclass
class TextLogprobs:
    """Those of a completion: four lists, and where each token begins in the text."""

    tokens: list[TokenLogprob] = field(default_factory=list)

    def add(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Add tokens; returns the shape of these."""
        start = len(self.tokens)
        self.tokens += tokens
        return self._shape(start)

    def all(self) -> dict[str, Any]:
        """The shape of all."""
        return self._shape(0)

    def _shape(self, start: int) -> dict[str, Any]:
        at, offsets = 0, []
        for token in self.tokens:
            offsets.append(at)
            at += len(token.text)
        chosen = self.tokens[start:]
        return {
            "tokens": [token.text for token in chosen],
            "token_logprobs": [token.logprob for token in chosen],
            "top_logprobs": [dict(token.top) if token.top else None for token in chosen],
            "text_offset": offsets[start:],
        }


def message_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Those of a chat's message."""
    return {"content": message_tokens(tokens), "refusal": None}


def message_tokens(tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """An object for each token."""
    return [
        {
            **_token(token.text, token.logprob),
            "top_logprobs": [_token(text, logprob) for text, logprob in token.top],
        }
        for token in tokens
    ]


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8"))}


async def prompt_logprobs(service: Service, prompt: str) -> list[TokenLogprob]:
    """Those of a prompt that begins a text; the likeliest tokens are not computed."""
    session = await service.fresh()
    async with ending(service.engine.score(session, prompt, logprobs=True)) as handle:
        await handle.ended()
    report = handle.result()
    decoder = StreamDecoder(service.checkpoint.tokenizer)
    return [
        TokenLogprob(id, decoder.decode([id]), logprob)
        for id, logprob in zip(report.ids, report.logprobs, strict=True)
    ]
