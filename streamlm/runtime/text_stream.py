"""TextStream: a stream of text as one immutable value, and how it reads and writes.

Where `State` is what the model remembers, this adds what text needs: the newest token, the tail
that could still merge with what follows, a half-written character, and the random generator.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.models.cache import Cache
from streamlm.runtime.drafter import LONGEST, Drafter
from streamlm.runtime.reports import Choice, ReadReport
from streamlm.runtime.sampling import Sampling, sample
from streamlm.runtime.speculation import Written, write_pass
from streamlm.runtime.stream import advance
from streamlm.runtime.stream import score as score_tokens
from streamlm.state import State
from streamlm.transfer import send
from tokenizer import StreamDecoder, StreamEncoder

REPETITION_WINDOW = 256  # newest tokens that the repetition penalty looks at
Errors = Literal["strict", "replace"]


@dataclass(frozen=True, eq=False)
class TextStream:
    """Where a stream of text stands.

    Attributes:
        state: what the model remembers; it has read everything but the newest token.
        position: tokens read and written.
        pending: the newest token, bos at the beginning.
        recent: the newest REPETITION_WINDOW tokens.
        ahead: ids of text that has come and is to be read next.
        tail: `StreamEncoder.state`, the text behind them that could still merge with what follows.
        cut: `StreamDecoder.state`, bytes of a character that writing has begun.
        random: state of the PCG64 generator that sampling draws from.
        hidden: [1, D] the model's output after what it has read, where it is known; never saved.
    """

    state: State
    position: int
    pending: int
    recent: np.ndarray
    ahead: np.ndarray
    tail: Mapping[str, str]
    cut: Mapping[str, str]
    random: Mapping[str, Any]
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
        """Has text come that was not read yet?"""
        return bool(len(self.ahead) or any(self.tail.values()))

    def take_text(
        self, checkpoint: Checkpoint, block: str | bytes, *, errors: Errors = "strict"
    ) -> "TextStream":
        """The stream with a block of text to be read; the model has not seen it yet.

        Raises:
            ValueError: invalid text under "strict".
        """
        encoder = StreamEncoder(checkpoint.tokenizer, errors, state=self.tail)
        ids = encoder.encode(block)
        return replace(self, ahead=np.concatenate([self.ahead, ids]), tail=encoder.state)

    def end_text(self, checkpoint: Checkpoint) -> "TextStream":
        """The stream with the tail to be read too: what follows begins a new word."""
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
        """Read the text that has come, `limit` tokens of it at most; see `read_ids`.

        Returns:
            The stream afterwards, and the ids read.
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
            report: where to add up what was read.
            score: also add up how likely it was, if there is a report.
            keep: also keep ids and log-probabilities there.
        """
        if not len(ids):
            return self
        model, tokenizer = checkpoint.model, checkpoint.tokenizer
        inputs = np.concatenate([[self.pending], ids[:-1]]).astype(np.int64)
        tokens = send(torch.from_numpy(inputs)[None], model.device)
        hidden, log_probs = None, None
        if report is None or not score:
            hidden, state = advance(model, tokens, self.state, cache)
        else:
            targets = torch.from_numpy(ids.astype(np.int64))[None]
            found, state = score_tokens(model, tokens, targets, self.state, cache)
            log_probs = found[0].cpu().numpy()
        if report is not None:
            n_bytes = int(tokenizer.token_lengths[ids].sum())
            report.add(ids, log_probs, n_bytes, keep=keep)
        return replace(
            self,
            state=state,
            position=self.position + len(ids),
            pending=int(ids[-1]),
            recent=np.concatenate([self.recent, ids])[-REPETITION_WINDOW:],
            cut=StreamDecoder(tokenizer).state,
            hidden=hidden,
        )

    def without_held_text(self, checkpoint: Checkpoint) -> "TextStream":
        """The same stream with the text forgotten that was not read yet."""
        tail = StreamEncoder(checkpoint.tokenizer).state
        return replace(self, ahead=np.zeros(0, np.int32), tail=tail)

    # -- writing ----------------------------------------------------------------------------------

    @torch.no_grad()
    def write_token(
        self, checkpoint: Checkpoint, sampling: Sampling, cache: Cache | None = None
    ) -> tuple["TextStream", int, str]:
        """Draw one token and take it in; also returns its id and the characters it completes."""
        model = checkpoint.model
        # Filled on the device: a copy from the host would wait for it.
        tokens = torch.full((1, 1), self.pending, device=model.device)
        hidden, state = advance(model, tokens, self.state, cache)
        logits = model.logits(hidden)[0].masked_fill(checkpoint.silent, -math.inf)
        bits = self._generator()
        chosen = sample(logits, sampling, random=np.random.Generator(bits), recent=self.recent)
        return self._with_written(
            checkpoint, Written(chosen, state, hidden, cast(Any, bits.state), False)
        )

    def write_tokens(
        self,
        checkpoint: Checkpoint,
        sampling: Sampling,
        drafter: Drafter | None = None,
        *,
        limit: int,
        cache: Cache | None = None,
    ) -> Iterator[tuple["TextStream", int, str]]:
        """Draw as many tokens as one pass of the model gives: one, or some more with a drafter.

        Each comes with the stream that has taken in it and those before it, as from `write_token`.

        Args:
            limit: tokens to write at most.
            cache: the caller's workspace for this stream; see `Model.hidden`.
        """
        if drafter is None:
            yield self.write_token(checkpoint, sampling, cache)
            return
        bos = checkpoint.tokenizer.bos_id
        stream = self
        for written in write_pass(
            checkpoint.model,
            drafter,
            # bos is the first token of a stream, though no log has it.
            known=np.append(np.int32(bos), self.recent)[-LONGEST:],
            state=self.state,
            cache=Cache() if cache is None else cache,
            hidden=self.hidden,
            sampling=sampling,
            recent=self.recent,
            random=self._generator(),
            silent=checkpoint.silent,
            limit=limit,
        ):
            stream, chosen, text = stream._with_written(checkpoint, written)
            yield stream, chosen, text

    @torch.no_grad()
    def choice(self, checkpoint: Checkpoint, text: str, *, others: int) -> Choice:
        """What `write_token` has just written, how likely it was, and what else was.

        Args:
            text: the characters that the token completes.
            others: so many of the likeliest tokens are told.
        """
        assert self.hidden is not None
        logits = checkpoint.model.logits(self.hidden)[0].masked_fill(checkpoint.silent, -math.inf)
        likely = logits.double().cpu().softmax(0)
        ranked, ids = likely.topk(min(others, len(likely)))
        shares = zip(ids.tolist(), ranked.tolist(), strict=True)
        return Choice(
            self.pending,
            text,
            float(likely[self.pending]),
            tuple((checkpoint.tokenizer.decode([id]), share) for id, share in shares),
        )

    def _generator(self) -> np.random.PCG64:
        bits = np.random.PCG64()
        bits.state = cast(Any, dict(self.random))
        return bits

    def _with_written(
        self, checkpoint: Checkpoint, written: Written
    ) -> tuple["TextStream", int, str]:
        """The stream with a token taken in, its id, and the characters that it completes."""
        decoder = StreamDecoder(checkpoint.tokenizer, state=self.cut)
        text = decoder.decode([written.token])
        stream = replace(
            self,
            state=written.state,
            position=self.position + 1,
            pending=written.token,
            recent=np.append(self.recent, np.int32(written.token))[-REPETITION_WINDOW:],
            cut=decoder.state,
            random=written.random,
            hidden=written.hidden,
        )
        return stream, written.token, text

    # -- saving -----------------------------------------------------------------------------------

    def settled(self, checkpoint: Checkpoint, cache: Cache) -> "TextStream":
        """The same stream, computing the same bits from here on as one resumed.

        Args:
            cache: the caller's workspace for this stream; see `Model.settle`.
        """
        checkpoint.model.settle(self.state, cache)
        return replace(self, hidden=None)
