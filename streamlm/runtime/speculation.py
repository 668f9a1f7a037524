"""Speculative decoding: a drafter proposes tokens, and the model checks them in one pass.

A draft x is accepted with probability min(1, p(x) / q(x)), where p is the model's distribution and
q the drafter's. The first rejected draft is replaced by a token drawn from the normalized (p - q)+.
The output is then distributed exactly as if the model had drawn each token (Leviathan et al., 2023,
appendix A.1; Chen et al., 2023, theorem 1).
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
class Accepted:
    """A generated token, and what the stream needs to continue after it.

    Attributes:
        token: its id.
        state: the model's, before the token is read.
        hidden: [1, D] the model's last output.
        random: state of the PCG64 generator.
        drafted: whether the drafter proposed the token.
    """

    token: int
    state: State
    hidden: Tensor
    random: Mapping[str, Any]
    drafted: bool


@torch.no_grad()
def generate_pass(
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
    suppressed: Tensor,
    limit: int,
) -> list[Accepted]:
    """Generate 1 to min(N + 1, limit) tokens in one pass of the model.

    Args:
        known: the newest tokens; the model has read all but the last.
        state: its open segment is not full, and the pass ends where the segment ends.
        cache: the caller's workspace for this stream; see `Model.hidden`.
        hidden: [1, D] the model's output before the last token; None drafts nothing.
        recent: ids for the repetition penalty.
        random: the stream's generator; it is advanced.
        suppressed: [V] True for ids that are never generated.
    """
    device = model.device
    numbers = np.random.Generator(random)
    room = model.config.segment_len - state.phase
    n_drafts = 0 if hidden is None else min(drafter.config.n_tokens, limit - 1, room - 1)
    drafts: list[int] = []
    drawn_from: list[Tensor] = []
    if hidden is not None and n_drafts > 0:
        ids = send(torch.from_numpy(known.astype(np.int64))[None], device)
        guessed = drafter(model, drafter.context(ids, hidden, state))[:, :n_drafts]
        for logits in _logits(model, guessed, suppressed):
            before = np.append(recent, np.array(drafts, recent.dtype))
            drawn_from.append(sampling.probabilities(logits, before))
            drafts.append(draw(drawn_from[-1], numbers))
    tokens = send(torch.tensor([[int(known[-1]), *drafts]]), device)
    outputs, after = model.hidden(tokens, state, cache)
    generated: list[Accepted] = []
    for index, logits in enumerate(_logits(model, outputs, suppressed)):
        before = np.append(recent, np.array(drafts[:index], recent.dtype))
        wanted = sampling.probabilities(logits, before)
        taken = index < len(drafts) and is_accepted(
            drafts[index], wanted, drawn_from[index], numbers.random()
        )
        if taken:
            token = drafts[index]
        elif index < len(drafts):
            token = draw(residual(wanted, drawn_from[index]), numbers)
        else:
            token = draw(wanted, numbers)
        reached = model.truncate(state, tokens, after, index + 1, cache)
        if not taken and cache.follows(reached, model.frozen):
            cache.release_tail()  # `after` is dropped; earlier states have fewer columns
        reached = close(model, reached, cache)
        generator = cast("Mapping[str, Any]", random.state)
        generated.append(Accepted(token, reached, outputs[:, index], generator, taken))
        if not taken:
            break
    return generated


def _logits(model: Model, outputs: Tensor, suppressed: Tensor) -> Iterator[Tensor]:
    """Logits [V] of each output of [1, t, D], on the host.

    On the CPU they are computed lazily, as those after the first rejected draft are not needed.
    Other devices compute all of them, so that the host synchronizes once.
    """
    rows = (
        model.logits(outputs[:, index])[0].masked_fill(suppressed, -torch.inf)
        for index in range(outputs.shape[1])
    )
    if outputs.device.type == "cpu":
        yield from rows
    else:
        yield from torch.stack(list(rows)).cpu()


def is_accepted(token: int, wanted: Tensor, drawn_from: Tensor, chance: float) -> bool:
    """Whether a draft is accepted: with probability min(1, p / q), for `chance` uniform in [0, 1).

    Args:
        wanted: [V] p, the model's distribution.
        drawn_from: [V] q, the drafter's.
    """
    return chance * float(drawn_from[token]) < float(wanted[token])


def residual(wanted: Tensor, drawn_from: Tensor) -> Tensor:
    """(p - q)+, from which the replacement of a rejected draft is drawn: [V], not normalized."""
    left = (wanted - drawn_from).clamp(min=0)
    return left if float(left.sum()) > 0 else wanted  # p = q up to rounding
