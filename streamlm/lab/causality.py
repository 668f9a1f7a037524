"""The causality test: no later token may change an earlier prediction.

Published code for Linformer and Informer looks ahead when it is applied to text: slots mix a whole
window, and queries are measured and chosen over all queries. The resulting losses are far too low.
`streamlm compare` therefore runs only models that pass this test.
"""

import torch
from torch import Tensor

from streamlm.config import ModelConfig
from streamlm.models.base import Model
from streamlm.models.build import build_model
from streamlm.models.cache import Cache
from streamlm.runtime.stream import close, pieces

SEGMENTS, STD = 3, 0.2  # segments to read; a weight scale at which a leak changes the logits


def find_leak(model: Model) -> str | None:
    """The first prediction that a later token changes, as text; None for a causal model.

    Reads a few segments repeatedly, each time with other tokens from some position on. Predictions
    before that position must be bit-identical, with gradients and without.

    Args:
        model: on the CPU, in evaluation mode.
    """
    t = model.config.segment_len
    # Around segment ends, where memory moves, and within each segment.
    inside = {0, 1, t // 2, t // 2 + 1, t - 1}
    edits = sorted({s * t + at for s in range(SEGMENTS) for at in inside if s * t + at > 0})
    random = torch.Generator().manual_seed(0)
    size, n, vocab_size = len(edits), SEGMENTS * t, model.config.vocab_size
    tokens = torch.randint(vocab_size, (1, n), generator=random).expand(size, -1)
    change = torch.randint(1, max(2, vocab_size), (1, n), generator=random)
    later = torch.arange(n) >= torch.tensor(edits)[:, None]  # row i: from the i-th edit on
    other = torch.where(later, (tokens + change) % vocab_size, tokens)
    for gradients in (False, True):
        # As streams are read: with keys and values that are kept from segment to segment.
        with model.inference(), torch.set_grad_enabled(gradients):
            same = (_logits(model, tokens) == _logits(model, other)).all(dim=2)
        for row, edit in enumerate(edits):
            if not bool(same[row, :edit].all()):
                first = int((~same[row, :edit]).nonzero()[0])
                how = "training" if gradients else "evaluation"
                return f"in {how}, tokens from {edit} on change what is predicted after {first}"
    return None


def check_causal(config: ModelConfig) -> str | None:
    """`find_leak` for a model with these settings and random weights, none of them zero."""
    torch.manual_seed(0)
    model = build_model(config).float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * STD)
    return find_leak(model)


def _logits(model: Model, tokens: Tensor) -> Tensor:
    parts, state, cache = [], model.init_state(len(tokens)), Cache()
    for piece in pieces(model, tokens, state):
        logits, state = model(piece, state, cache)
        state = close(model, state, cache)
        parts.append(logits.detach())
    return torch.cat(parts, dim=1)
