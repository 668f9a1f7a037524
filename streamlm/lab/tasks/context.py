"""Relative effective context length: the length beyond which more context does not help.

Dai et al. 2019, §4.3 and appendix C. For models m_i of a group, l_i(c, t) is the loss of token t
given the c tokens before it, b(c, t) = min_i l_i(c, t), and

    f_i(c, c') = mean over t of min(b(c, t), l_i(c', t)),    t among the share r of largest b(c, t)
    g_i(c, c') = (exp f_i(c, c) - exp f_i(c, c')) / exp f_i(c, c)

With c' = c + Δ, RECL is the first c at which g_i falls below 1 %.

Two simplifications. The group is one model with and without its memory (emptied before every
segment) rather than several trained models. And the context is not exactly c tokens: the `run`
tokens at the end of a segment are scored together, so the i-th of them has c + i. Every reading
starts c tokens before the run, with an empty memory and bos.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from streamlm.models.base import Model
from streamlm.runtime.stream import score
from streamlm.training.data import Corpus

LEAST_GAIN = 0.01
SHARES = (1.0, 0.5, 0.1)  # the paper's r


def effective_context(
    model: Model,
    corpus: Corpus,
    *,
    bos: int,
    runs: int = 64,
    run: int | None = None,
    step: int = 1,
    most: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
    progress: Callable[[int], None] = lambda tokens: None,
) -> dict[str, Any]:
    """RECL of a model with its memory and without, over the same tokens.

    Args:
        runs: scored positions of the corpus, of `run` tokens each; by default half a segment.
        step: Δ in segments.
        most: the largest context in segments; by default one more than the reach, limited by the
            longest document.
        progress: called with the number of tokens read.

    Returns:
        "recl": share r → {"memory": tokens, "no memory": tokens, "ended": whether the gain fell
        below 1 % within `most`}; "gains": rows of c, c', r and g_i; "losses": mean nats by context.

    Raises:
        ValueError: no document is long enough.
    """
    length = model.config.segment_len
    run = max(1, length // 2) if run is None else run
    if not 1 <= run < length:
        raise ValueError(f"run = {run}; allowed: 1 to {length - 1}, less than a segment")
    if most is None:
        longest = int(np.diff(corpus.offsets).max()) // length
        most = max(1, min(model.config.reach // length + 1, longest))
    ends = _ends(corpus, runs, need=most * length, seed=seed)
    contexts = [length * j - run for j in range(1, most + 1, step)]
    recl = {r: {"memory": contexts[0], "no memory": contexts[0], "ended": False} for r in SHARES}
    gains: list[dict[str, Any]] = []
    open_shares = set(SHARES)
    size: dict[str, Any] = {"bos": bos, "run": run, "batch_size": batch_size, "progress": progress}
    # Without memory, a token sees only its own segment: one reading serves all c.
    alone = _losses(model, corpus, ends, context=contexts[0], **size)
    short, means = alone, {contexts[0]: float(alone.mean())}
    for c, longer in pairwise(contexts):
        long = _losses(model, corpus, ends, context=longer, **size)
        means[longer] = float(long.mean())
        for r in sorted(open_shares):
            gain = relative_gains(np.stack([short, alone]), np.stack([long, alone]), r)
            gains.append({"c": c, "longer": longer, "r": r, "gain": float(gain[0])})
            if gain[0] < LEAST_GAIN:
                open_shares.discard(r)
                recl[r]["ended"] = True
            else:
                recl[r]["memory"] = longer
        short = long
        if not open_shares:
            break
    return {"recl": recl, "gains": gains, "losses": means, "tokens": int(alone.size)}


def relative_gains(short: np.ndarray, longer: np.ndarray, share: float) -> np.ndarray:
    """g_i of each model (appendix C): losses [models, tokens] with c and with c' → [models]."""
    baseline = short.min(axis=0)
    hardest = np.argsort(-baseline, kind="stable")[: max(1, round(share * len(baseline)))]
    base = baseline[hardest]
    before = np.exp(base.mean())
    after = np.exp(np.minimum(base, longer[:, hardest]).mean(axis=1))
    gains: np.ndarray = (before - after) / before
    return gains


def _ends(corpus: Corpus, runs: int, *, need: int, seed: int) -> np.ndarray:
    """Ends of runs in `corpus.tokens`; the `need` tokens before each are of one document."""
    lengths = np.diff(corpus.offsets)
    room = np.maximum(lengths - need + 1, 0)
    if not room.sum():
        raise ValueError(
            f"the longest document has {lengths.max()} tokens; effective context needs {need}"
        )
    random = np.random.default_rng(seed)
    document = random.choice(len(room), runs, p=room / room.sum())
    ends: np.ndarray = corpus.offsets[document] + need + random.integers(0, room[document])
    return ends


def _losses(
    model: Model,
    corpus: Corpus,
    ends: np.ndarray,
    *,
    context: int,
    bos: int,
    run: int,
    batch_size: int,
    progress: Callable[[int], None],
) -> np.ndarray:
    """Nats of the `run` tokens before each end, given `context` tokens before them: [tokens]."""
    nats = []
    for begin in range(0, len(ends), batch_size):
        some = ends[begin : begin + batch_size, None] + np.arange(-context - run, 0)
        ids = torch.from_numpy(corpus.tokens[some].astype(np.int64)).to(model.device)
        before = torch.cat([torch.full_like(ids[:, :1], bos), ids[:, :-1]], dim=1)
        log_probs, _ = score(model, before, ids, model.init_state(len(ids)))
        nats.append(-log_probs[:, -run:].double().cpu().numpy())
        progress(ids.numel())
    return np.concatenate(nats).ravel()
