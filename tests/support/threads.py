"""What holds for threads that share a model and a state, for every head, compression and norm."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from streamlm.models.base import Model
from streamlm.models.cache import Cache
from streamlm.state import State
from tests.support.invariants import bits_of, random_tokens, read


def check_threads(model: Model, *, rounds: int = 6) -> None:
    """Two threads go on from one state, again and again: each writes what it writes alone.

    Each has a cache of its own: in turns an empty one, and a copy of the one that has read so far,
    which one of them has itself in the end. The state stays what it is.
    """
    t = model.config.segment_len
    branches = [random_tokens(model, t + 2, seed=20 + i) for i in range(2)]
    cache = Cache()
    with torch.no_grad():
        tokens = random_tokens(model, 5 * t + 1)
        root = read(model, tokens, model.init_state(1), cache=cache)[1]
    before = bits_of(root)
    kinds = [lambda: Cache(), cache.copy]
    wanted = [[_written(model, branch, root, kind()) for kind in kinds] for branch in branches]
    caches = [[kinds[index % 2]() for index in range(rounds)] for _ in branches]
    caches[0][-1] = cache
    assert rounds % 2 == 0, "the last round is one with copies"
    found = _side_by_side(model, branches, root, caches)
    for of_branch, right in zip(found, wanted, strict=True):
        for index, (logits, digest) in enumerate(of_branch):
            wanted_logits, wanted_digest = right[index % 2]
            same = torch.equal(logits, wanted_logits) and digest == wanted_digest
            assert same, f"round {index}: a thread does not write what it writes alone"
    assert bits_of(root) == before, "a thread changed the state that it began with"


def _written(model: Model, tokens: Tensor, state: State, cache: Cache) -> tuple[Tensor, str]:
    """Logits of tokens read one by one, and the digest of the state after them."""
    with torch.no_grad():  # threads have a mode each
        logits, state = read(model, tokens, state, sizes=[1] * tokens.shape[1], cache=cache)
    return logits, state.digest()


def _side_by_side(
    model: Model, branches: list[Tensor], root: State, caches: list[list[Cache]]
) -> list[list[tuple[Tensor, str]]]:
    """A thread for each branch, changing turns as often as Python can; caches are by round."""
    together = threading.Barrier(len(branches))

    def work(tokens: Tensor, mine: list[Cache]) -> list[tuple[Tensor, str]]:
        together.wait()
        return [_written(model, tokens, root, cache) for cache in mine]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(len(branches)) as threads:
            return list(threads.map(work, branches, caches))
    finally:
        sys.setswitchinterval(interval)
