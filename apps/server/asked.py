"""Asked: how a request wants text to be written, in the fields of OpenAI and in our own."""

import secrets
from dataclasses import dataclass, replace
from typing import Any

from apps.server.errors import ApiError
from apps.server.fields import Fields
from apps.server.settings import Settings
from streamlm.runtime.sampling import Sampling

MOST_STOPS, MOST_LOGPROBS, MOST_RECALLED = 16, 20, 8
MOST_CHOICES = 64  # of all prompts of a request
SEEDS = 1 << 64


@dataclass(frozen=True)
class Asked:
    """How text is to be written.

    Attributes:
        sampling, max_tokens, stop, seed, recall, top_logprobs: as in `Engine.generate`.
        session: the name of the session to continue; None for a request without.
    """

    sampling: Sampling
    max_tokens: int
    stop: tuple[str, ...]
    seed: int | None
    recall: int
    session: str | None
    top_logprobs: int | None = None

    @classmethod
    def take(
        cls,
        fields: Fields,
        settings: Settings,
        defaults: Sampling,
        *,
        limits: tuple[str, ...] = ("max_tokens",),
        default_limit: int,
        session: str | None = None,
    ) -> "Asked":
        """Take the fields that all ways of writing share.

        Args:
            defaults: of the sampling; limits: the names of the field for `max_tokens`.
            session: where it is known; None takes the field.

        Raises:
            ApiError: a value is not allowed.
            ValueError: one of the sampling is not.
        """
        sampling = Sampling(
            temperature=fields.number("temperature", defaults.temperature),
            top_p=fields.number("top_p", defaults.top_p),
            top_k=fields.whole("top_k", defaults.top_k, most=1 << 31),
            min_p=fields.number("min_p", defaults.min_p),
            repetition_penalty=fields.number("repetition_penalty", defaults.repetition_penalty),
        )
        given = [fields.optional_whole(name, most=settings.max_tokens) for name in limits]
        chosen = [limit for limit in given if limit is not None]
        stop = fields.texts("stop", most=MOST_STOPS)
        if not all(stop):
            raise ApiError(400, "stop has an empty string; allowed: others", param="stop")
        seed = fields.optional_whole("seed", least=-(1 << 63), most=SEEDS - 1)
        if session is None:
            session = fields.text("session")
        recall = fields.whole("recall", 0, most=MOST_RECALLED)
        if recall and session is None:
            raise ApiError(400, "recall without a session; allowed: with one", param="recall")
        return cls(
            sampling,
            chosen[0] if chosen else default_limit,
            tuple(stop),
            None if seed is None else seed % SEEDS,
            recall,
            session,
        )

    def with_logprobs(self, top: int | None) -> "Asked":
        """The same, with log-probabilities; None without."""
        return replace(self, top_logprobs=top)

    def choice(self, n: int) -> "Asked":
        """For choice n of a request without a session, which has random numbers of its own."""
        first = secrets.randbits(63) if self.seed is None else self.seed
        return replace(self, seed=(first + n) % SEEDS)

    def engine(self) -> dict[str, Any]:
        """The arguments of `Engine.generate` and `Engine.reply`."""
        return {
            "max_tokens": self.max_tokens,
            "stop": self.stop,
            "seed": self.seed,
            "recall": self.recall,
            "top_logprobs": self.top_logprobs,
        }


def take_common(fields: Fields) -> None:
    """Accept what clients always send and what changes nothing, and refuse what would."""
    fields.ignore("user", "metadata", "safety_identifier", "prompt_cache_key", "service_tier")
    fields.neutral(
        presence_penalty=(0,),
        frequency_penalty=(0,),
        logit_bias=({},),
    )


def take_stream(fields: Fields) -> tuple[bool, bool]:
    """Whether to stream, and whether to end the stream with the usage."""
    stream, options = fields.flag("stream"), fields.part("stream_options")
    if options is None:
        return stream, False
    if not stream:
        raise ApiError(
            400, "stream_options without stream; allowed: with it", param="stream_options"
        )
    usage = options.flag("include_usage")
    options.ignore("include_obfuscation")
    options.end()
    return stream, usage
