"""TextStream: a stream of text as one immutable value, and how it reads and generates.

To the model's `State` it adds the newest token, the tail of the text that may still merge with what
follows, an incomplete character, and the random generator.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.models.cache import Cache
from streamlm.runtime.conversation import Conversation
from streamlm.runtime.drafter import LONGEST, Drafter
from streamlm.runtime.reports import ReadReport, TokenLogprob
from streamlm.runtime.sampling import Sampling, sample
from streamlm.runtime.speculation import Accepted, generate_pass
from streamlm.runtime.steps import Steps
from streamlm.runtime.stream import advance, prefill
from streamlm.runtime.stream import score as score_tokens
from streamlm.state import State
from streamlm.transfer import send
from tokenizer import StreamDecoder, StreamEncoder

REPETITION_WINDOW = 256  # newest tokens that the repetition penalty applies to
Errors = Literal["strict", "replace"]


class RecalledSpan(NamedTuple):
    """A passage of the stream that was read again: tokens start ≤ i < stop, and its score."""

    start: int
    stop: int
    score: float


@dataclass(frozen=True, eq=False)
class TextStream:
    """The state of a stream of text.

    Attributes:
        state: the model's; it has read everything but the newest token.
        position: tokens read and generated.
        pending: the newest token; bos at the beginning.
        recent: the newest REPETITION_WINDOW tokens.
        ahead: ids of text that was taken and not read.
        tail: `StreamEncoder.state`, the text after `ahead` that may still merge with what follows.
        cut: `StreamDecoder.state`, bytes of an incomplete generated character.
        random: state of the PCG64 generator that sampling draws from.
        conversation: where a chat stands; None if none has begun.
        recalled: passages that were put before the newest prompt.
        hidden: [1, D] the model's last output, None where unknown; never saved.
    """

    state: State
    position: int
    pending: int
    recent: np.ndarray
    ahead: np.ndarray
    tail: Mapping[str, str]
    cut: Mapping[str, str]
    random: Mapping[str, Any]
    conversation: Conversation | None = None
    recalled: tuple["RecalledSpan", ...] = ()
    hidden: Tensor | None = None

    @classmethod
    def begin(cls, checkpoint: Checkpoint, *, seed: int = 0) -> "TextStream":
        """A stream that has read nothing."""
        tokenizer = checkpoint.tokenizer
        return cls(
            state=checkpoint.model.init_state(1),
            position=0,
            pending=tokenizer.bos_id,
            recent=np.zeros(0, np.int32),
            ahead=np.zeros(0, np.int32),
            tail=StreamEncoder(tokenizer).state,
            cut=StreamDecoder(tokenizer).state,
            random=np.random.PCG64(seed).state,
        )

    def seeded(self, seed: int) -> "TextStream":
        """The same stream with a fresh random generator."""
        return replace(self, random=np.random.PCG64(seed).state)

    # -- reading ----------------------------------------------------------------------------------

    @property
    def holds_text(self) -> bool:
        """Whether text was taken that has not been read."""
        return bool(len(self.ahead) or any(self.tail.values()))

    def take_text(
        self, checkpoint: Checkpoint, block: str | bytes, *, errors: Errors = "strict"
    ) -> "TextStream":
        """The stream with a block of text appended to what it will read.

        Raises:
            ValueError: the text is invalid and `errors` is "strict".
        """
        encoder = StreamEncoder(checkpoint.tokenizer, errors, state=self.tail)
        ids = encoder.encode(block)
        return replace(self, ahead=np.concatenate([self.ahead, ids]), tail=encoder.state)

    def end_text(self, checkpoint: Checkpoint) -> "TextStream":
        """The stream with its tail made ready to be read; what follows begins a new word."""
        encoder = StreamEncoder(checkpoint.tokenizer, state=self.tail)
        ids = encoder.flush()
        return replace(self, ahead=np.concatenate([self.ahead, ids]), tail=encoder.state)

    def read_ahead(
        self,
        checkpoint: Checkpoint,
        limit: int | None = None,
        *,
        cache: Cache | None = None,
        report: ReadReport | None = None,
        score: bool = True,
        keep: bool = False,
    ) -> tuple["TextStream", np.ndarray]:
        """Read the text ahead, at most `limit` tokens; see `read_ids`.

        Returns:
            The new stream, and the ids that were read.
        """
        ids = self.ahead[:limit]
        stream = self.read_ids(checkpoint, ids, cache=cache, report=report, score=score, keep=keep)
        return replace(stream, ahead=self.ahead[len(ids) :]), ids

    def read_ids(
        self,
        checkpoint: Checkpoint,
        ids: np.ndarray,
        *,
        cache: Cache | None = None,
        report: ReadReport | None = None,
        score: bool = True,
        keep: bool = False,
    ) -> "TextStream":
        """Read tokens.

        Args:
            cache: the caller's workspace for this stream; see `Model.hidden`.
            report: updated with the tokens read.
            score: also add their log-probabilities to the report.
            keep: also append ids and log-probabilities of each token to it.
        """
        if not len(ids):
            return self
        model, tokenizer = checkpoint.model, checkpoint.tokenizer
        inputs = np.concatenate([[self.pending], ids[:-1]]).astype(np.int64)
        tokens = send(torch.from_numpy(inputs)[None], model.device)
        logprobs = None
        if report is None or not score:
            state = prefill(model, tokens, self.state, cache)
        else:
            targets = torch.from_numpy(ids.astype(np.int64))[None]
            found, state = score_tokens(model, tokens, targets, self.state, cache)
            logprobs = found[0].cpu().numpy()
        if report is not None:
            n_bytes = int(tokenizer.token_lengths[ids].sum())
            split = int(checkpoint.split_lengths[ids].sum())
            report.add(ids, logprobs, n_bytes, keep=keep, split_bytes=split)
        return replace(
            self,
            state=state,
            position=self.position + len(ids),
            pending=int(ids[-1]),
            recent=np.concatenate([self.recent, ids])[-REPETITION_WINDOW:],
            cut=StreamDecoder(tokenizer).state,
            hidden=None,
        )

    def reading_ids(
        self, checkpoint: Checkpoint, ids: np.ndarray, *, cache: Cache | None = None
    ) -> Steps["TextStream"]:
        """`read_ids` in steps, each to the end of a segment."""
        length, stream, start = checkpoint.model.config.segment_len, self, 0
        while start < len(ids):
            part = ids[start : start + length - stream.position % length]
            stream = stream.read_ids(checkpoint, part, cache=cache)
            start += len(part)
            yield len(part)
        return stream

    def without_held_text(self, checkpoint: Checkpoint) -> "TextStream":
        """The same stream without the text that has not been read."""
        tail = StreamEncoder(checkpoint.tokenizer).state
        return replace(self, ahead=np.zeros(0, np.int32), tail=tail)

    # -- generating -------------------------------------------------------------------------------

    @torch.no_grad()
    def generate_token(
        self, checkpoint: Checkpoint, sampling: Sampling, cache: Cache | None = None
    ) -> tuple["TextStream", int, str]:
        """Draw one token; return the new stream, the token, and the characters it completes."""
        drawn = self._draw(checkpoint, sampling, checkpoint.suppressed, self.recent, cache)
        return self.accept(checkpoint, drawn)

    @torch.no_grad()
    def reply_token(
        self,
        checkpoint: Checkpoint,
        sampling: Sampling,
        cache: Cache | None = None,
        *,
        n_said: int = 0,
    ) -> tuple["TextStream", int, str]:
        """`generate_token` within a reply, which ends where the model ends its turn.

        The token that ends it is the template's, whichever the model has chosen. A character that
        the model has left incomplete is U+FFFD.

        Args:
            n_said: tokens of the reply so far, to which the repetition penalty applies: what the
                reply is about may be repeated.

        Raises:
            ValueError: no reply has begun.
        """
        if self.conversation is None or not self.conversation.open:
            raise ValueError("no reply has begun")
        said = self.newest(n_said)
        drawn = self._draw(checkpoint, sampling, checkpoint.suppressed_in_replies, said, cache)
        return self.accept_in_reply(checkpoint, drawn)

    def newest(self, n: int) -> np.ndarray:
        """The ids of `recent` that are among the newest n tokens."""
        return self.recent[max(0, len(self.recent) - n) :]

    def accept_in_reply(
        self, checkpoint: Checkpoint, accepted: Accepted
    ) -> tuple["TextStream", int, str]:
        """`accept` within a reply that is open; see `reply_token`."""
        assert self.conversation is not None
        template = checkpoint.chat
        if accepted.token not in template.stop_ids:
            return self.accept(checkpoint, accepted)
        decoder = StreamDecoder(checkpoint.tokenizer, state=self.cut)
        left = decoder.flush()
        ended = replace(self, cut=decoder.state, conversation=self.conversation.closed())
        stream, token, _ = ended.accept(checkpoint, replace(accepted, token=template.reply_end))
        return stream, token, left

    def _draw(
        self,
        checkpoint: Checkpoint,
        sampling: Sampling,
        suppressed: Tensor,
        recent: np.ndarray,
        cache: Cache | None,
    ) -> Accepted:
        model = checkpoint.model
        # Filled on the device: a copy from the host would wait for it.
        tokens = torch.full((1, 1), self.pending, device=model.device)
        hidden, state = advance(model, tokens, self.state, cache)
        logits = model.logits(hidden)[0].masked_fill(suppressed, -math.inf)
        bits = self.generator()
        chosen = sample(logits, sampling, random=np.random.Generator(bits), recent=recent)
        return Accepted(chosen, state, hidden, cast(Any, bits.state), False)

    def generate_tokens(
        self,
        checkpoint: Checkpoint,
        sampling: Sampling,
        drafter: Drafter | None = None,
        *,
        limit: int,
        cache: Cache | None = None,
    ) -> Iterator[tuple["TextStream", int, str]]:
        """Draw the tokens of one pass of the model: one, or several with a drafter.

        Each comes with the stream after it, as from `generate_token`.

        Args:
            limit: the maximum number of tokens.
            cache: the caller's workspace for this stream; see `Model.hidden`.
        """
        if drafter is None:
            yield self.generate_token(checkpoint, sampling, cache)
            return
        bos = checkpoint.tokenizer.bos_id
        stream = self
        for accepted in generate_pass(
            checkpoint.model,
            drafter,
            # The first token of a stream is bos, although no log contains it.
            known=np.append(np.int32(bos), self.recent)[-LONGEST:],
            state=self.state,
            cache=Cache() if cache is None else cache,
            hidden=self.hidden,
            sampling=sampling,
            recent=self.recent,
            random=self.generator(),
            suppressed=checkpoint.suppressed,
            limit=limit,
        ):
            stream, chosen, text = stream.accept(checkpoint, accepted)
            yield stream, chosen, text

    @torch.no_grad()
    def token_logprob(
        self, checkpoint: Checkpoint, text: str, *, top: int, in_reply: bool = False
    ) -> TokenLogprob:
        """The log-probability of the token that `generate_token` has just drawn.

        Args:
            text: the characters that the token completes.
            top: the number of likeliest tokens to include.
            in_reply: the token was drawn by `reply_token`, for which other tokens are suppressed.
        """
        assert self.hidden is not None
        suppressed = checkpoint.suppressed_in_replies if in_reply else checkpoint.suppressed
        logits = checkpoint.model.logits(self.hidden)[0].masked_fill(suppressed, -math.inf)
        logprobs = logits.cpu().double().log_softmax(0)
        ranked, ids = logprobs.topk(min(top, len(logprobs)))
        likeliest = zip(ids.tolist(), ranked.tolist(), strict=True)
        return TokenLogprob(
            self.pending,
            text,
            float(logprobs[self.pending]),
            tuple((checkpoint.tokenizer.decode([id]), value) for id, value in likeliest),
            tuple(ids.tolist()),
        )

    def generator(self) -> np.random.PCG64:
        """A copy of the random generator."""
        bits = np.random.PCG64()
        bits.state = cast(Any, dict(self.random))
        return bits

    def accept(self, checkpoint: Checkpoint, accepted: Accepted) -> tuple["TextStream", int, str]:
        """The stream after a token, the token, and the characters that it completes."""
        decoder = StreamDecoder(checkpoint.tokenizer, state=self.cut)
        text = decoder.decode([accepted.token])
        stream = replace(
            self,
            state=accepted.state,
            position=self.position + 1,
            pending=accepted.token,
            recent=np.concatenate([self.recent, [np.int32(accepted.token)]])[-REPETITION_WINDOW:],
            cut=decoder.state,
            random=accepted.random,
            hidden=accepted.hidden,
        )
        return stream, accepted.token, text

    # -- saving -----------------------------------------------------------------------------------

    def settled(self, checkpoint: Checkpoint, cache: Cache) -> "TextStream":
        """The same stream, which from now on computes the same bits as one that is resumed.

        Args:
            cache: the caller's workspace for this stream; see `Model.settle`.
        """
        checkpoint.model.settle(self.state, cache)
        return replace(self, hidden=None)
