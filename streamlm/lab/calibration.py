"""Calibration: which attention heads of a model find the answer to a question.

Invented facts are planted in a text that the model reads. For every head, the place that a
question's queries attend to most is compared with the place of the fact. A few heads find most
facts; their joint score finds nearly all (retrieval heads: Wu et al. 2024).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.lab.tasks.facts import Fact, facts, planted
from streamlm.memory.recall import WIDTH, place_scores
from streamlm.models.cache import Cache
from streamlm.models.llama import LlamaModel
from streamlm.models.retrieval import RetrievalHeads, question_queries
from streamlm.runtime.stream import close
from streamlm.state import State

FORMS = ("cue", "question", "told")
CANDIDATES = 16  # heads whose joint scores are tried
MAX_HEADS = 4
RANKED = 8  # places that a search proposes
AROUND = (24, 40)  # tokens of a passage before and behind its middle


@dataclass(frozen=True)
class Calibration:
    """What was measured.

    Attributes:
        heads: the choice.
        found: share of the questions whose best place is the fact's, by form.
        reciprocal_rank: mean over all questions, of the fact among the `RANKED` best places.
        alone: (layer, head) and the share that it finds by itself, best first.
        facts, tokens: of the text that was read.
    """

    heads: RetrievalHeads
    found: dict[str, float]
    reciprocal_rank: float
    alone: list[tuple[int, int, float]]
    facts: int
    tokens: int

    def to_json(self) -> dict[str, Any]:
        """Figures for `checkpoints.retrieval.write_retrieval`."""
        best = [[layer, head, round(share, 4)] for layer, head, share in self.alone]
        found = {form: round(share, 4) for form, share in self.found.items()}
        return {
            "facts": self.facts,
            "tokens": self.tokens,
            "found": found,
            "reciprocal_rank": round(self.reciprocal_rank, 4),
            "alone": best,
        }


@dataclass(frozen=True)
class _Read:
    """A text that was read: keys of all layers, [L, n, H_kv, E] float16, and the state after it."""

    keys: Tensor
    state: State


def calibrate(
    checkpoint: Checkpoint,
    text: str,
    *,
    tokens: int = 12_000,
    n_facts: int = 48,
    progress: Callable[[int], object] = lambda steps: None,
) -> Calibration:
    """Measure all heads and choose at most `MAX_HEADS`.

    Takes about two minutes of one core for 135 million parameters. Keys of all layers are in
    memory: 23 KB a token there.

    Args:
        checkpoint: a Llama-family model.
        text: to plant facts in; at least `tokens` long.
        progress: called with the number of steps done; see `steps`.

    Raises:
        ValueError: the model is of another kind, or the text is too short.
    """
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    if not isinstance(model, LlamaModel):
        head = model.config.head
        raise ValueError(f"{checkpoint.name} has head {head!r}; allowed: Llama-family models")
    length = model.config.segment_len
    tokens = tokens // length * length
    ids = tokenizer.encode(text)
    if len(ids) < tokens:
        raise ValueError(f"a text of {len(ids):,} tokens; allowed: at least {tokens:,}")
    told = list(facts(n_facts, use="calibration"))
    last = tokens - model.config.memory_len - n_facts * 24 - 64
    if last < 20 * n_facts:
        allowed = 44 * n_facts + model.config.memory_len + 64
        raise ValueError(f"tokens = {tokens:,}; allowed: at least {allowed:,}")
    places = np.linspace(length, last, n_facts).astype(int).tolist()
    stream, spans = planted(ids[:tokens], told, places, tokenizer)
    read = _read(checkpoint, model, stream[:tokens], progress)
    asked = [(fact, form, span) for fact, span in zip(told, spans, strict=True) for form in FORMS]
    config = model.config
    every = [(layer, head) for layer in range(config.n_layers) for head in range(config.n_heads)]
    hits = torch.zeros(len(every))
    for fact, form, span in asked:
        hits += _hits(_places(checkpoint, model, read, fact, form, every), span)
        progress(1)
    best = [every[at] for at in hits.argsort(descending=True)[:CANDIDATES].tolist()]
    scores = []
    for fact, form, _ in asked:
        scores.append(_places(checkpoint, model, read, fact, form, best).half())
        progress(1)
    where = [span for _, _, span in asked]
    chosen = _choose(scores, where)
    joint = _joint(scores, chosen)
    found = torch.cat([_hits(each, span) for each, span in zip(joint, where, strict=True)])
    by_form = {form: float(found[at :: len(FORMS)].mean()) for at, form in enumerate(FORMS)}
    share = dict(zip(every, (hits / len(asked)).tolist(), strict=True))
    return Calibration(
        RetrievalHeads(tuple(sorted(best[at] for at in chosen))),
        by_form,
        float(np.mean(list(map(_reciprocal_rank, joint, where)))),
        [(*pair, share[pair]) for pair in best],
        n_facts,
        tokens,
    )


def steps(checkpoint: Checkpoint, *, tokens: int = 12_000, n_facts: int = 48) -> int:
    """How many steps `calibrate` reports."""
    return tokens // checkpoint.model.config.segment_len + 2 * len(FORMS) * n_facts


@torch.no_grad()
def _read(
    checkpoint: Checkpoint,
    model: LlamaModel,
    stream: np.ndarray,
    progress: Callable[[int], object],
) -> _Read:
    config = model.config
    inputs = np.concatenate([[checkpoint.tokenizer.bos_id], stream[:-1]]).astype(np.int64)
    tokens = torch.from_numpy(inputs)[None].to(model.device)
    state, cache, keys = model.init_state(1), Cache(), []
    for part in tokens.split(config.segment_len, dim=1):
        state = model.prefill(part, state, cache)
        slots = state.segment[:, 0].unflatten(-1, (config.n_kv_heads, 2, -1))
        keys.append(slots.select(-2, 0).half())
        state = close(model, state, cache)
        progress(1)
    return _Read(torch.cat(keys, dim=1), state)


@torch.no_grad()
def _places(
    checkpoint: Checkpoint,
    model: LlamaModel,
    read: _Read,
    fact: Fact,
    form: str,
    heads: Sequence[tuple[int, int]],
) -> Tensor:
    """Scores of all places for one question, as of `memory.recall`: [heads, n]."""
    tokenizer, config = checkpoint.tokenizer, model.config
    before = len(tokenizer.encode("\n\n"))
    ids = tokenizer.encode(f"\n\n{getattr(fact, form)}").astype(np.int64)
    tokens = torch.from_numpy(ids)[None].to(model.device)
    queries = question_queries(model, tokens, read.state, heads)[:, before:]
    group, found = config.n_heads // config.n_kv_heads, []
    stop = read.keys.shape[1] - config.memory_len
    for query, (layer, head) in zip(queries, heads, strict=True):
        keys = read.keys[layer, :stop, head // group].float()
        scores = query @ keys.T
        scores[:, : max(1, config.pinned_len)] = -torch.inf
        found.append(place_scores(scores.softmax(dim=1)).float())
    return torch.stack(found)


def _hits(places: Tensor, span: tuple[int, int]) -> Tensor:
    """For each row of scores, whether the passage around its best place has a fact's tokens."""
    middle = places.argmax(dim=1).cpu() - 1  # key i is that of token i - 1
    before, behind = AROUND
    begin, end = span[0] + 4, span[1] - 3  # without the line breaks
    return ((middle - before <= begin) & (middle + behind >= end)).float()


def _reciprocal_rank(places: Tensor, span: tuple[int, int]) -> float:
    """1 / the rank of a fact among the `RANKED` best places, 0 if it is not among them.

    Args:
        places: [1, n].
    """
    left = places.clone()
    for rank in range(1, RANKED + 1):
        if float(_hits(left, span)):
            return 1 / rank
        at = int(left.argmax())
        left[0, max(0, at - WIDTH + 1) : at + WIDTH] = -1
    return 0.0


def _joint(scores: Sequence[Tensor], heads: Sequence[int]) -> list[Tensor]:
    """For each question, the joint score of some heads: [1, n]."""
    return [each[list(heads)].float().mean(dim=0, keepdim=True) for each in scores]


def _choose(scores: Sequence[Tensor], spans: Sequence[tuple[int, int]]) -> list[int]:
    """The heads with the best joint ranks: one after another, while their mean grows."""
    chosen: list[int] = []
    best = 0.0
    while len(chosen) < min(MAX_HEADS, len(scores[0])):
        means = {
            head: float(
                np.mean(list(map(_reciprocal_rank, _joint(scores, [*chosen, head]), spans)))
            )
            for head in range(len(scores[0]))
            if head not in chosen
        }
        head = max(means, key=lambda each: means[each])
        if means[head] <= best:
            break
        chosen, best = [*chosen, head], means[head]
    return chosen
