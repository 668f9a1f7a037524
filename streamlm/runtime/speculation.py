"""Speculative decoding: a drafter guesses tokens, and the model reads all of them in one pass.

A guess x is taken with probability min(1, p(x) / q(x)), where p is what the model draws from and q
what the drafter drew from; instead of the first that is not taken, a token is drawn from the
normalised (p - q)+. So what is written is distributed exactly as if the model had drawn each token
(Leviathan et al., 2023, appendix A.1; Chen et al., 2023, theorem 1).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from streamlm.models.base import Model
from streamlm.models.cache import Cache
from streamlm.runtime.drafter import Drafter
from streamlm.runtime.sampling import Sampling, draw
from streamlm.runtime.stream import close
from streamlm.state import State
from streamlm.transfer import send


@dataclass(frozen=True, eq=False)
class Written:
    """A token that was written, and the stream just behind it.

    Attributes:
        token: its id; the model has read all tokens before it.
        state: the model's; hidden: [1, D] its last output.
        random: state of the PCG64 generator.
        drafted: whether the drafter guessed it.
    """

    token: int
    state: State
    hidden: Tensor
    random: Mapping[str, Any]
    drafted: bool


@torch.no_grad()
def write_pass(
    model: Model,
    drafter: Drafter,
    *,
    known: np.ndarray,
    state: State,
    cache: Cache,
    hidden: Tensor | None,
    sampling: Sampling,
    recent: np.ndarray,
    random: np.random.PCG64,
    silent: Tensor,
    limit: int,
) -> list[Written]:
    """What one pass of the model writes: a token at least, N + 1 and `limit` at most.

    Args:
        known: newest tokens, of which the model has read all but the last.
        state: with room in its open segment; no pass goes past its end.
        cache: the caller's workspace for this stream; see `Model.hidden`.
        hidden: [1, D] the model's output before the last token; None drafts nothing.
        recent: ids that the repetition penalty looks at.
        random: the stream's generator, which moves on.
        silent: [V] True for ids that are never written.
    """
    device = model.device
    numbers = np.random.Generator(random)
    room = model.config.segment_len - state.phase
    n_drafts = 0 if hidden is None else min(drafter.config.n_tokens, limit - 1, room - 1)
    drafts: list[int] = []
    drawn_from: list[Tensor] = []
    if hidden is not None and n_drafts > 0:
        ids = send(torch.from_numpy(known.astype(np.int64))[None], device)
        guessed = drafter(model, drafter.known(ids, hidden, state))[:, :n_drafts]
        for logits in _logits(model, guessed, silent):
            before = np.append(recent, np.array(drafts, recent.dtype))
            drawn_from.append(sampling.probabilities(logits, before))
            drafts.append(draw(drawn_from[-1], numbers))
    tokens = send(torch.tensor([[int(known[-1]), *drafts]]), device)
    outputs, after = model.hidden(tokens, state, cache)
    written: list[Written] = []
    for index, logits in enumerate(_logits(model, outputs, silent)):
        before = np.append(recent, np.array(drafts[:index], recent.dtype))
        wanted = sampling.probabilities(logits, before)
        taken = index < len(drafts) and accepted(
            drafts[index], wanted, drawn_from[index], numbers.random()
        )
        if taken:
            token = drafts[index]
        elif index < len(drafts):
            token = draw(rest(wanted, drawn_from[index]), numbers)
        else:
            token = draw(wanted, numbers)
        reached = model.truncate(state, tokens, after, index + 1, cache)
        if not taken and cache.follows(reached, model.frozen):
            cache.release_tail()  # `after` is dropped, and the states before hold fewer columns
        reached = close(model, reached, cache)
        held = cast("Mapping[str, Any]", random.state)
        written.append(Written(token, reached, outputs[:, index], held, taken))
        if not taken:
            break
    return written


def _logits(model: Model, outputs: Tensor, silent: Tensor) -> Iterator[Tensor]:
    """Logits [V] of each output of [1, t, D], on the host.

    On the CPU they are computed lazily: those after the first rejected guess are not needed. Other
    devices compute all of them, so that the host synchronizes once.
    """
    rows = (
        model.logits(outputs[:, index])[0].masked_fill(silent, -torch.inf)
        for index in range(outputs.shape[1])
    )
    if outputs.device.type == "cpu":
        yield from rows
    else:
        yield from torch.stack(list(rows)).cpu()


def accepted(token: int, wanted: Tensor, drawn_from: Tensor, chance: float) -> bool:
    """Whether a guess is taken: with probability min(1, p / q). `chance` is uniform in [0, 1)."""
    return chance * float(drawn_from[token]) < float(wanted[token])


def rest(wanted: Tensor, drawn_from: Tensor) -> Tensor:
    """(p - q)+, what a guess that was not taken is replaced from: [V], not normalised."""
    left = (wanted - drawn_from).clamp(min=0)
    return left if float(left.sum()) > 0 else wanted  # p = q but for rounding
